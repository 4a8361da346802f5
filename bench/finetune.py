"""Tokens per second of fine-tuning a SmolLM2-135M, beside transformers: `python bench/finetune.py`.

classify: the last four blocks and a new head, 16 texts a step, as long as text messages are. instruct: all weights,
1,024 tokens of packed dialogues a step for us, four padded dialogues for the peer. Both sides get the same lengths in
the same order; padding is no token. Random weights and ids, float32. Compiling is not counted. lora: instruct with
adapters of rank 16, for the peak memory of its process beside that of all weights (the limit: 60 %).

Where torch and transformers are importable (--peer-python: where they are, if elsewhere), they do the same in a process
of their own, after this one has finished.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

NUM_EXAMPLES = 4000
MEAN, SPREAD, LONGEST = (
    {"classify": 24, "instruct": 60, "lora": 60},
    0.6,
    {"classify": 128, "instruct": 256, "lora": 256},
)
MOST_LORA_MEMORY = 0.6
"""Of what training all weights takes."""


def lengths_of(task: str) -> np.ndarray:
    """Tokens of each example, log-normal as text messages and short instructions are."""
    drawn = np.random.default_rng(0).lognormal(np.log(MEAN[task]), SPREAD, NUM_EXAMPLES)
    return np.clip(drawn, 6, LONGEST[task]).astype(int)


class RandomExamples:
    """An ExampleStore of random ids; the second half of each is trained on."""

    def __init__(self, lengths: np.ndarray):
        self.document_ends = np.cumsum(lengths)
        self.num_documents, self.num_tokens = len(lengths), int(lengths.sum())
        self._tokens = np.random.default_rng(1).integers(1, 49152, self.num_tokens, dtype=np.int32)
        self._trained = np.concatenate([np.arange(n) >= n // 2 for n in lengths])
        self.num_trained = int(self._trained.sum())

    def read_rows(self, starts, lengths):
        return [self._tokens[a : a + n] for a, n in zip(starts, lengths)]

    def read_trained(self, starts, lengths):
        return [self._trained[a : a + n] for a, n in zip(starts, lengths)]

    def labels(self, names):
        return np.arange(self.num_documents, dtype=np.int32) % len(names)


def config_of(task: str):
    """The run that `jaxlm train` would make."""
    from jaxlm import run
    from jaxlm.models import sizes

    cfg = run.default_config()
    cfg.objective = "classify" if task == "classify" else "instruct"
    sizes.apply(cfg.model, "smollm2-135m")
    cfg.data.sources.random = dict(path="random", on_exhausted="repeat")
    cfg.data.seq_len = LONGEST[task]
    cfg.data.global_batch_size = 16 if task == "classify" else 4
    cfg.optimizer.learning_rate = 1e-5
    if task != "classify":
        cfg.model.remat = "attention"  # as configs/instruct_smollm2_cpu.py has it
    if task == "classify":
        cfg.model.num_classes = 2
        cfg.tune.train, cfg.tune.num_blocks = "last_blocks", 4
    if task == "lora":
        cfg.tune.train, cfg.tune.lora_rank, cfg.tune.lora_alpha = "lora", 16, 32.0
    return run.resolve(cfg)


def measure_jaxlm(task: str, seconds: float) -> dict[str, float]:
    """The steps of `jaxlm train`."""
    import jax

    from jaxlm import compile_cache, run
    from jaxlm.data.padding import Labelled
    from jaxlm.data.pipeline import Rows
    from jaxlm.parallel.sharding import place_batch

    compile_cache.use_default()
    cfg = config_of(task)
    labelled = Labelled("last", ("ham", "spam")) if task == "classify" else None
    rows = Rows(cfg.data, {"random": RandomExamples(lengths_of(task))}, 0, labelled)
    pieces = run.build_pieces(cfg)
    params = jax.jit(pieces.lm.init)(jax.random.key(0))
    state = pieces.steps.init(jax.random.key(0))
    trained, frozen = pieces.tuning.split(pieces.tuning.init(jax.random.key(0), params))
    state, steps = state._replace(params=trained), pieces.steps.bind(frozen)
    del params

    def step(state, number):
        batch = rows.batch(number)
        batch.pop("source")
        num_tokens = int((batch["segments"] > 0).sum())
        state, metrics = steps.train(state, place_batch(batch, pieces.mesh, cfg.data.global_batch_size))
        jax.block_until_ready(metrics)
        return state, num_tokens

    seen: set[int] = set()
    for number in range(60):  # every width is compiled before the clock starts
        if (width := rows.batch(number)["tokens"].shape[1]) not in seen:
            seen.add(width)
            state, _ = step(state, number)
    began, num_tokens, num_steps = time.perf_counter(), 0, 0
    while (passed := time.perf_counter() - began) < seconds:
        state, more = step(state, num_steps)
        num_tokens, num_steps = num_tokens + more, num_steps + 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB, on Linux
    return {"tokens_per_s": num_tokens / passed, "step_s": passed / num_steps, "peak_bytes": peak}


def in_process(*command: str) -> dict[str, float] | None:
    """What a process of its own measures; None where it lacks its packages."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1:], file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def measure_peer(python: str, task: str, seconds: str) -> dict[str, float] | None:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(lengths_of(task).tolist(), file)
        file.flush()
        return in_process(
            python, str(Path(__file__).parent / "peers" / "torch_finetune.py"), task, file.name, seconds
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default="classify,instruct,lora")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure_jaxlm(args.one, args.seconds)))
        return
    print(f"{'task':<10} {'jaxlm':>14} {'transformers':>14} {'ratio':>7}   real tokens/s")
    peaks = {}
    for task in args.tasks.split(","):
        seconds = f"--seconds={args.seconds}"
        ours = in_process(sys.executable, __file__, f"--one={task}", seconds)
        if ours is None:
            raise SystemExit(f"{task}: jaxlm's process failed.")
        peaks[task] = ours["peak_bytes"]
        theirs = None if task == "lora" else measure_peer(args.peer_python, task, seconds)
        shown = "-" if task == "lora" else "not here" if theirs is None else f"{theirs['tokens_per_s']:,.0f}"
        ratio = "-" if theirs is None else f"{ours['tokens_per_s'] / theirs['tokens_per_s']:.2f}"
        print(f"{task:<10} {ours['tokens_per_s']:>14,.0f} {shown:>14} {ratio:>7}", flush=True)
    if "instruct" in peaks and "lora" in peaks:
        share, limit = peaks["lora"] / peaks["instruct"], MOST_LORA_MEMORY
        print(f"peak memory: all weights {peaks['instruct'] / 1e9:.2f} GB, lora {peaks['lora'] / 1e9:.2f} GB")
        print(f"lora takes {share:.0%} of all weights' ({share / limit:.2f} of the limit of {limit:.0%})")


if __name__ == "__main__":
    main()
