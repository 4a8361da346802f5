"""Tokens per second of training, against the machine's limit and against peers, all in one run.

    python bench/train_speed.py [--shapes=XS,S,M,L] [--dtypes=float32,bfloat16] [--seconds=10] [--rounds=2]
                                [--torch-python=PYTHON] [--no-peers]

Every measurement is a process of its own; the sides take turns (`--rounds`), and each shows its best round, since
other work on the machine only ever slows down. Everyone starts as its users would start it: jaxlm asks for huge
pages, as `jaxlm train` does. The limit is the matrix product of this machine, measured before.
jaxlm is measured with layers in a scan (the default of `model.scan_layers`) and unrolled: which is the faster depends
on the shape and on the machine's memory, and is for the user to choose, as eager or compiled is in PyTorch.
Peers: the same model in textbook JAX; in PyTorch, eager and compiled, where a Python has it (this one, or
--torch-python). Each is compared with the faster of jaxlm's two. FLOPs are 6 per parameter in a product and 12 L d T
for attention, per token.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from shapes import BETAS, CLIP_NORM, LEARNING_RATE, SHAPES, WEIGHT_DECAY, Measured, Shape, hand_over, measure

HERE = Path(__file__).resolve().parent
SCAN_LAYERS = {"scan": True, "unrolled": False}


def config_of(shape: Shape, dtype: str, scan_layers: bool):
    """The run that `jaxlm train` would make of this shape."""
    from jaxlm import run

    cfg = run.default_config()
    cfg.model.update(
        vocab_size=shape.vocab_size, embed_dim=shape.width, num_layers=shape.num_layers,
        num_heads=shape.num_heads, num_kv_heads=shape.num_kv_heads, mlp_dim=shape.mlp, dtype=dtype,
        activation="swiglu" if shape.llama else "gelu_tanh", norm="rmsnorm" if shape.llama else "layernorm",
        positions="rope" if shape.llama else "learned", scan_layers=scan_layers,
    )  # fmt: skip
    cfg.data.sources.random = dict(path="random", on_exhausted="repeat")
    cfg.data.seq_len, cfg.data.global_batch_size = shape.seq_len, shape.batch_size
    cfg.tokenizer.kind = "char"  # random tokens: none is trained
    cfg.optimizer.update(
        learning_rate=LEARNING_RATE, schedule="constant", warmup_steps=0, b1=BETAS[0], b2=BETAS[1],
        weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM,
    )  # fmt: skip
    return run.resolve(cfg)


def measure_jaxlm(shape: Shape, dtype: str, scan_layers: bool, seconds: float) -> Measured:
    """The steps of `jaxlm train` on random rows of one document each."""
    import jax
    import numpy as np

    from jaxlm import compile_cache, run, step_memory
    from jaxlm.parallel.sharding import place_batch

    compile_cache.use_default()
    step_memory.before_devices()
    cfg = config_of(shape, dtype, scan_layers)
    pieces = run.build_pieces(cfg)
    step_memory.keep()
    state, rng = pieces.steps.init(jax.random.key(0)), np.random.default_rng(0)
    B, T = shape.batch_size, shape.seq_len
    fixed = {
        "weights": np.ones((B, T), np.float32),
        "segments": np.ones((B, T), np.int32),
        "positions": np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)),
        "fingerprint": np.zeros(B, np.uint32),
    }

    def step() -> float:
        nonlocal state
        rows = rng.integers(0, shape.vocab_size, (B, T + 1)).astype(np.int32)
        batch = {"tokens": rows[:, :-1], "targets": rows[:, 1:], **fixed}
        state, metrics = pieces.steps.train(state, place_batch(batch, pieces.mesh, B))
        return float(metrics["loss"])

    return measure(shape, step, seconds)


def matmul_peak(dtype: str) -> float:
    """FLOP/s of the best matrix product of this machine: numpy's BLAS in float32, and XLA's, over a few sizes."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    product = jax.jit(lambda a, b: jax.lax.dot(a, b, preferred_element_type=jnp.float32))
    best = 0.0
    for m, k, n in ((4096, 768, 3072), (2048, 2048, 2048), (4096, 3072, 768)):
        a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
        on_device = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
        ways = [lambda on_device=on_device: product(*on_device).block_until_ready()]
        if dtype == "float32":
            ways.append(lambda a=a, b=b: a @ b)
        for way in ways:
            way()
            for _ in range(8):
                start = time.perf_counter()
                way()
                best = max(best, 2 * m * k * n / (time.perf_counter() - start))
    return best


def in_a_process(command: list[str]) -> dict | None:
    """What a process hands over in its last line; None (and its last words) where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"  {' '.join(command[1:])} failed: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def has_torch(python: str) -> bool:
    """Whether this Python can import PyTorch."""
    return subprocess.run([python, "-c", "import torch, psutil"], capture_output=True).returncode == 0


def sides(
    shape: str, dtype: str, seconds: float, torch_python: str | None, peers: bool
) -> dict[str, list[str]]:
    """Name -> command of everyone that is measured."""
    rest = [shape, dtype, f"--seconds={seconds}"]
    found = {
        f"jaxlm, {layers}": [sys.executable, str(HERE / "train_speed.py"), "--measure", layers, *rest]
        for layers in SCAN_LAYERS
    }
    if peers:
        found["textbook JAX"] = [sys.executable, str(HERE / "peers" / "jax_lm.py"), *rest]
    if peers and torch_python:
        command = [torch_python, str(HERE / "peers" / "torch_lm.py"), *rest]
        found["torch eager"] = command
        found["torch.compile"] = [*command, "--compile"]
    return found


def compare(shape: str, dtype: str, args: argparse.Namespace, peak: float) -> None:
    """Measures every side in turns, and prints a line for each."""
    commands = sides(shape, dtype, args.seconds, args.torch_python, not args.no_peers)
    best: dict[str, dict] = {}
    for _ in range(args.rounds):
        for name, command in commands.items():
            one = in_a_process(command)
            if one is not None:
                kept = best.setdefault(name, one)
                kept["tokens_per_s"] = max(kept["tokens_per_s"], one["tokens_per_s"])
                kept["start_s"] = min(kept["start_s"], one["start_s"])
    ours = [one["tokens_per_s"] for name, one in best.items() if name.startswith("jaxlm")]
    for name, one in best.items():
        flops_per_s = one["tokens_per_s"] * SHAPES[shape].flops_per_token
        is_peer = ours and not name.startswith("jaxlm")
        times = f"; jaxlm is {max(ours) / one['tokens_per_s']:.2f} x as fast" if is_peer else ""
        print(
            f"{shape:>2} {dtype:<8} {name:<15} {one['tokens_per_s']:9,.0f} tokens/s {flops_per_s / 1e9:5.0f} GFLOP/s "
            f"{flops_per_s / peak:4.0%} of peak; first step after {one['start_s']:4.1f} s, "
            f"{one['peak_rss_bytes'] / 2**30:.1f} GiB{times}",
            flush=True,
        )


def main() -> None:
    """Prints the table, or (`--measure LAYERS SHAPE DTYPE`) hands over jaxlm's own measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="XS,S,M,L")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timed steps in each process")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--torch-python", default=None, help="a Python that has PyTorch; default: this one")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--measure", nargs=3, metavar=("LAYERS", "SHAPE", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        from jaxlm import step_memory

        step_memory.begin(sys.orig_argv)  # as `jaxlm train` does
        layers, shape, dtype = args.measure
        hand_over(measure_jaxlm(SHAPES[shape], dtype, SCAN_LAYERS[layers], args.seconds))
        return
    if args.torch_python is None and has_torch(sys.executable):
        args.torch_python = sys.executable
    if args.torch_python is None and not args.no_peers:
        print(
            "PyTorch is not installed here, so there is no peer in it (`--torch-python` names another Python)."
        )
    for dtype in args.dtypes.split(","):
        peak = matmul_peak(dtype)
        print(f"{dtype}: matrix product {peak / 1e9:.0f} GFLOP/s on {os.cpu_count()} cores", flush=True)
        for shape in args.shapes.split(","):
            compare(shape, dtype, args, peak)


if __name__ == "__main__":
    main()
