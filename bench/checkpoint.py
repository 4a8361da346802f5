"""How long a checkpoint stalls training, and how it compares with writing the same bytes plainly.

    python bench/checkpoint.py [--shape=M] [--repeats=3] [--directory=DIR]

Per repeat: `stall` is the time that `Checkpoints.save` blocks its caller once the state has been computed; `save`
lasts until everything is on disk, sealed and committed; `raw` writes and fsyncs the same bytes to one file;
`restore` includes `verify`, and reads files that are in the system's cache, as they are right after a save. The
last lines run steps with donated buffers while a save is under way, and time them.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import checkpoint_integrity as integrity
from jaxlm.checkpoint import Checkpoints
from jaxlm.checkpoint_meta import Meta
from jaxlm.train.config import CheckpointConfig

SHAPES = {"S": (6, 384, 1536, 65, 256), "M": (12, 768, 3072, 50304, 1024)}
"""Layers, width, MLP width, vocabulary, positions: S and M of `make bench`."""


def make_state(shape: str):
    """Weights and Adam's two moments, as a model of that shape with scanned layers has them."""
    num_layers, width, mlp, vocab, seq_len = SHAPES[shape]
    shapes = {
        "embed": (vocab, width),
        "positions": (seq_len, width),
        "layers": {
            **{name: (num_layers, width, width) for name in ("query", "key", "value", "out")},
            "up": (num_layers, width, mlp),
            "down": (num_layers, mlp, width),
            "norm1": (num_layers, width),
            "norm2": (num_layers, width),
        },
        "norm": (width,),
    }

    def draw(seed: int):
        rng = np.random.default_rng(seed)
        is_shape = lambda s: isinstance(s, tuple)  # noqa: E731
        return jax.tree.map(
            lambda s: jnp.asarray(rng.standard_normal(s, np.float32)), shapes, is_leaf=is_shape
        )

    return {"params": draw(0), "mu": draw(1), "nu": draw(2), "step": jnp.int32(0)}


def write_raw(path: Path, arrays: list[np.ndarray]) -> float:
    """Seconds to write the bytes of the arrays into one file and fsync it."""
    start = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for array in arrays:
            view = memoryview(array.reshape(-1).view(np.uint8))
            while view:
                view = view[file.write(view) :]
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def seconds(function) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="M", choices=SHAPES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", help="on the disk to measure; default: a temporary one")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=args.directory))
    try:
        run(directory, args.shape, args.repeats)
    finally:
        shutil.rmtree(directory)


def run(directory: Path, shape: str, repeats: int) -> None:
    state = make_state(shape)
    num_bytes = sum(x.nbytes for x in jax.tree.leaves(state))
    place = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    copy = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s))
    train = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    print(f"{shape}: {num_bytes / 1e9:.2f} GB, {len(jax.tree.leaves(state))} arrays, {os.cpu_count()} cores")
    rows: dict[str, list[float]] = {name: [] for name in ("raw", "stall", "save", "verify", "restore")}
    with Checkpoints(directory, CheckpointConfig(every_steps=1, keep_last=1)) as checkpoints:
        for step in range(1, repeats + 1):
            fresh = jax.block_until_ready(copy(state))
            start = time.perf_counter()
            checkpoints.save(fresh, Meta(step))
            rows["stall"].append(time.perf_counter() - start)
            checkpoints.wait()
            rows["save"].append(time.perf_counter() - start)
            rows["raw"].append(write_raw(directory / "raw", [np.asarray(x) for x in jax.tree.leaves(fresh)]))
            del fresh
            rows["verify"].append(seconds(lambda step=step: integrity.verify(directory / str(step))))
            rows["restore"].append(seconds(lambda: checkpoints.restore(place).state))
        for name, times in rows.items():
            rate = num_bytes / statistics.median(times) / 1e6
            each = " ".join(f"{t:.3f}" for t in times)
            print(f"  {name:8} {statistics.median(times):7.3f} s  {rate:9,.0f} MB/s   ({each})")
        ratios = [save / raw for save, raw in zip(rows["save"], rows["raw"])]
        print(f"  save / raw {statistics.median(ratios):.2f}   all: {[round(r, 2) for r in ratios]}")
        size = integrity.size_bytes(directory / str(repeats))
        print(f"  on disk {size / num_bytes:.4f} of the state's bytes")

        state = jax.block_until_ready(train(state))
        beside, quiet = [], []
        for times, saves in ((quiet, False), (beside, True)):
            if saves:
                checkpoints.save(state, Meta(repeats + 1))
            start = time.perf_counter()
            while len(times) < 3 or (saves and checkpoints.saving):
                begin = time.perf_counter()
                state = jax.block_until_ready(train(state))
                times.append(time.perf_counter() - begin)
                if time.perf_counter() - start > 60:
                    break
        print(f"  a step that touches every weight: {statistics.median(quiet):.3f} s alone, beside a save")
        print(
            f"    first {beside[0]:.3f} s (copies what is being saved), then {statistics.median(beside[1:]):.3f} s"
        )
    print(f"  peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
