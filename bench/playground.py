"""How long the playground's first token takes beside `jaxlm generate`: `python bench/playground.py`.

SmolLM2-135M with random weights in float32, prompts of 5, 40 and 150 tokens. Both in one process, in turns: the time to
the first text that `generate_text` streams, and that of the playground over HTTP on 127.0.0.1. Best of five each, after
one that compiles. The first answer of the playground after its warm-up, for a length that nobody asked before, is
printed too. --run=DIR takes a run's weights instead.
"""

from __future__ import annotations

import argparse
import http.client
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

LENGTHS, NEW_TOKENS, ROUNDS = (5, 40, 150), 16, 5


def make_run(folder: Path) -> Path:
    """A run of SmolLM2-135M's shape with random weights and a tokenizer of characters."""
    import jax

    from jaxlm import run
    from jaxlm.checkpoint import Checkpoints
    from jaxlm.checkpoint_meta import Meta
    from jaxlm.data.tokenizer import SentencePieceTokenizer
    from jaxlm.data.tokenizer_training import train_tokenizer
    from jaxlm.models.build import build
    from jaxlm.models.sizes import size
    from jaxlm.run_data import with_vocabulary
    from jaxlm.train.config import CheckpointConfig

    config = run.default_config()
    config.data.sources.topics = {"path": "embedded:topics", "on_exhausted": "repeat"}
    config.data.seq_len = 256
    shape = size("smollm2-135m")
    config.model.update({key: value for key, value in vars(shape).items() if value is not None})
    resolved = run.resolve(config)
    tokenizer = SentencePieceTokenizer(train_tokenizer(["The lion is in the zoo."], "char", 0))
    run.save_config(folder / run.CONFIG_FILE, resolved)
    tokenizer.save(folder)
    params = jax.jit(build(with_vocabulary(resolved, tokenizer).model, 256).init)(jax.random.key(0))
    with Checkpoints(folder / run.CHECKPOINTS, CheckpointConfig()) as checkpoints:
        checkpoints.save({"params": params}, Meta(1, tokenizer_sha256=tokenizer.sha256))
    return folder


def first_text_s(ask: Callable[[Callable[[], None]], None]) -> float:
    """Seconds until `ask` calls what it is given for the first time."""
    begin, seen = time.perf_counter(), []
    ask(lambda: seen.append(time.perf_counter() - begin))
    return seen[0]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", help="a run of a language model (default: random weights of SmolLM2-135M's shape)"
    )
    args = parser.parse_args()
    import uvicorn

    from jaxlm import run
    from jaxlm.infer.text import generate_text
    from jaxlm.playground import serve
    from jaxlm.playground.app import make_app
    from jaxlm.playground.guard import Guard
    from jaxlm.playground.model import Model
    from jaxlm.playground.worker import Worker

    with tempfile.TemporaryDirectory() as folder:
        workdir = args.run or str(make_run(Path(folder)))
        loaded = run.load_run(workdir)
        model = Model(workdir, loaded)
    begin = time.perf_counter()
    for work in model.warm_up():
        work()
    print(f"warm-up {time.perf_counter() - begin:.1f} s (less where the compile cache has it)")
    worker, sock = Worker(), serve.bind("127.0.0.1", 0)
    server = uvicorn.Server(serve.config_of(Guard(make_app([model], worker), None)))
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()

    def by_playground(prompt: str, seen: Callable[[], None]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", sock.getsockname()[1])
        body = json.dumps({"prompt": prompt, "max_new_tokens": NEW_TOKENS})
        connection.request("POST", "/api/continue_text", body, {"Content-Type": "application/json"})
        for line in connection.getresponse():
            if json.loads(line)["event"] == "text":
                seen()
        connection.close()

    def by_generate(prompt: str, seen: Callable[[], None]) -> None:
        generate_text(
            loaded.lm, loaded.params, loaded.tokenizer, [prompt],
            max_new_tokens=NEW_TOKENS, on_text=lambda row, text: seen(),
        )  # fmt: skip

    try:
        for length in LENGTHS:
            prompt = ("The lion is in the zoo. " * length)[: length - 1]
            while len(model.tokenizer.encode(prompt)) < length - 1:
                prompt += " zoo"
            ways = [
                lambda seen, p=prompt: by_playground(p, seen),
                lambda seen, p=prompt: by_generate(p, seen),
            ]
            new = first_text_s(ways[0])
            first_text_s(ways[1])
            times = [[first_text_s(way) for way in ways] for _ in range(ROUNDS)]
            playground, generate = (min(column) for column in zip(*times, strict=True))
            print(
                f"prompt of {length:>3} tokens: first text after {playground * 1e3:6.0f} ms, of generate "
                f"{generate * 1e3:6.0f} ms: {playground / generate:.2f}x; asked for the first time {new * 1e3:.0f} ms"
            )
    finally:
        server.should_exit = True
        thread.join()
        worker.close(60)


if __name__ == "__main__":
    main()
