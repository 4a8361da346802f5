"""How fast tokens are sampled, beside the memory's limit and transformers: `python bench/generate.py`.

SmolLM2-135M with random weights in float32: prompts of 32 tokens, 128 new ones, at batch 1 and 8, best of three after
one to compile. Every step reads every weight, so no step is faster than the weights can be read: the limit is that of
a matrix-vector product over 512 MB, measured in the same process before and after. Keys and values come on top.

Where torch and transformers are importable (--peer-python: where they are, if elsewhere), transformers' `generate` does
the same in a process of its own, after this one has finished.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

PROMPT_TOKENS, NEW_TOKENS, BATCHES = 32, 128, (1, 8)


def best_s(run: Callable[[], object], rounds: int = 3) -> float:
    """Shortest time of `run`, after one call that compiles and warms up."""
    times = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def read_bytes_per_s() -> float:
    """Memory bandwidth: a matrix-vector product over an array far larger than any cache."""
    import jax
    import jax.numpy as jnp

    matrix, vector = jnp.ones((32_768, 4096)), jnp.ones(4096)
    product = jax.jit(jnp.matmul)
    return matrix.nbytes / best_s(lambda: product(matrix, vector).block_until_ready(), rounds=15)


def jaxlm_times() -> tuple[dict[int, tuple[float, float]], int]:
    """Batch size -> (seconds to the first new token, seconds to the last); bytes of the weights."""
    import jax

    from jaxlm.infer.sample import generate
    from jaxlm.models.build import build
    from jaxlm.models.sizes import size

    lm = build(size("smollm2-135m"), PROMPT_TOKENS + NEW_TOKENS)
    params = jax.jit(lm.init)(jax.random.key(0))
    times = {}
    for batch_size in BATCHES:
        prompts = [list(range(row, row + PROMPT_TOKENS)) for row in range(batch_size)]

        def sample(on_tokens=None, prompts=prompts):
            return generate(
                lm, params, prompts, max_new_tokens=NEW_TOKENS, on_tokens=on_tokens, tokens_per_call=1
            )

        all_s = best_s(sample)
        first_s = best_s(lambda sample=sample: sample(lambda row, tokens: 1))  # each row stops after one
        times[batch_size] = first_s, all_s
    return times, sum(w.nbytes for w in jax.tree.leaves(params))


def transformers_times() -> dict[int, float]:
    """Batch size -> seconds to the last new token, of transformers' own generate."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, rope_theta=100_000.0, rms_norm_eps=1e-5, tie_word_embeddings=True,
        eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    options = dict(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=True, top_k=0)
    times = {}
    with torch.inference_mode():
        for batch_size in BATCHES:
            tokens = torch.arange(PROMPT_TOKENS)[None] + torch.arange(batch_size)[:, None]
            mask = torch.ones_like(tokens)
            times[batch_size] = best_s(
                lambda tokens=tokens, mask=mask: model.generate(tokens, attention_mask=mask, **options)
            )
    return times


def peer_times(python: str) -> dict[int, float]:
    """The same from another process; empty where that Python has no transformers."""
    there = subprocess.run([python, "-c", "import torch, transformers"], capture_output=True)
    if there.returncode:
        return {}
    done = subprocess.run([python, __file__, "--peer"], capture_output=True, text=True, check=True)
    return {int(batch_size): s for batch_size, s in json.loads(done.stdout.splitlines()[-1]).items()}


def main() -> None:
    """Prints tokens/s, the share of the limit, and the ratio to transformers for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", default=sys.executable, help="a Python with torch and transformers")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        print(json.dumps(transformers_times()))
        return
    before = read_bytes_per_s()
    times, num_bytes = jaxlm_times()
    bytes_per_s = max(before, read_bytes_per_s())
    peer = peer_times(args.peer_python)
    for batch_size, (first_s, all_s) in times.items():
        decode_tokens_per_s = batch_size * (NEW_TOKENS - 1) / (all_s - first_s)
        limit = batch_size * bytes_per_s / num_bytes
        tokens_per_s = batch_size * NEW_TOKENS / all_s
        line = (
            f"generate smollm2-135m batch {batch_size}: {tokens_per_s:.1f} tokens/s; first token after "
            f"{1000 * first_s:.0f} ms, then {decode_tokens_per_s:.1f} = {decode_tokens_per_s / limit:.2f} of the limit "
            f"({limit:.0f}: {num_bytes / 1e6:.0f} MB a step at {bytes_per_s / 1e9:.1f} GB/s)"
        )
        if batch_size in peer:
            peer_tokens_per_s = batch_size * NEW_TOKENS / peer[batch_size]
            line += f"; transformers {peer_tokens_per_s:.1f}, {tokens_per_s / peer_tokens_per_s:.1f} x"
        print(line, flush=True)


if __name__ == "__main__":
    main()
