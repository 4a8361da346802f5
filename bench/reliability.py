"""What it costs to survive: saving, checking what was saved, the event log and the hash of every batch.

    python bench/reliability.py [--steps=45]

A run of shape S (bench/shapes.py) that saves every 20 steps and logs every step. `stall`: what a save adds to the step
behind it, in steps. `log and hash`: writing a step into the event log, and identifying its batch, in shares of a step.
`verify`: what comparing every byte with the seal adds to restoring a state of shape M, 1.5 GB in the system's cache.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from shapes import SHAPES

from jaxlm import run
from jaxlm.report.events import EVENTS, EventLog, read_events

SAVE_EVERY = 20
LIMITS = {"stall": 1.0, "verify": 0.10, "log and hash": 0.01}


def config(num_steps: int) -> run.RunConfig:
    """Shape S on the English that ships with Python."""
    shape = SHAPES["S"]
    cfg = run.default_config()
    cfg.data.sources.text = {"path": "embedded:docstrings", "on_exhausted": "repeat"}
    cfg.tokenizer.kind = "char"
    cfg.data.seq_len, cfg.data.global_batch_size = shape.seq_len, shape.batch_size
    cfg.model.num_layers, cfg.model.embed_dim, cfg.model.mlp_dim = shape.num_layers, shape.width, shape.mlp
    cfg.model.num_heads, cfg.model.num_kv_heads = shape.num_heads, shape.num_kv_heads
    cfg.train.num_steps, cfg.train.eval_batches, cfg.train.log_every_steps = num_steps, 0, 1
    cfg.checkpoint.every_steps = SAVE_EVERY
    return run.resolve(cfg)


def seconds(function: Callable[[], object], repeats: int) -> float:
    """The median."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def step_times(workdir: Path) -> dict[int, float]:
    """Step -> seconds since the step before it."""
    ends = {e["step"]: e["time_s"] for e in read_events(workdir / EVENTS) if e["event"] == "step"}
    return {step: end - ends[step - 1] for step, end in ends.items() if step - 1 in ends}


def restoring(folder: Path) -> tuple[float, float]:
    """(seconds to verify a checkpoint, seconds to restore it, that included)."""
    import jax
    from checkpoint import make_state

    from jaxlm import checkpoint_integrity as integrity
    from jaxlm.checkpoint import Checkpoints
    from jaxlm.checkpoint_meta import Meta
    from jaxlm.train.config import CheckpointConfig

    state = make_state("M")
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        checkpoints.save(state, Meta(1))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    del state
    verify = seconds(lambda: integrity.verify(folder / "1"), 5)
    checkpoints = Checkpoints(folder)
    return verify, seconds(lambda: jax.block_until_ready(checkpoints.restore(abstract).state), 5)


def logging(cfg: run.RunConfig, workdir: Path) -> tuple[float, float]:
    """Seconds a step for (a line in the event log, the hash of a batch)."""
    from jaxlm.data.pipeline import fingerprint

    rows = [event for event in read_events(workdir / EVENTS) if event["event"] == "step"]
    fields = {k: v for k, v in rows[-1].items() if k not in ("event", "time_s", "step")}
    with EventLog(workdir / "measured.jsonl") as log:
        line = seconds(lambda: log.write("step", step=1, **fields), 1000)
    batch = run.prepare(cfg, workdir).rows.batch(0)
    return line, seconds(lambda: fingerprint(batch, np.arange(cfg.data.global_batch_size)), 100)


def main() -> None:
    """Prints each cost beside its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2 * SAVE_EVERY + 5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cfg, workdir = config(args.steps), Path(folder, "run")
        run.train(cfg, workdir)
        times = step_times(workdir)
        behind = [times[s + 1] for s in range(SAVE_EVERY, args.steps, SAVE_EVERY)]
        step_s = statistics.median(t for s, t in times.items() if s > 2 and (s - 1) % SAVE_EVERY)
        verify_s, restore_s = restoring(Path(folder, "saved"))
        line_s, hash_s = logging(cfg, workdir)
    found = {
        "stall": (max(behind) - step_s) / step_s,
        "verify": verify_s / (restore_s - verify_s),
        "log and hash": (line_s + hash_s) / step_s,
    }
    print(f"a step {step_s:.3f} s; behind a save {', '.join(f'{t:.3f}' for t in behind)} s")
    print(f"restore {restore_s:.3f} s, {verify_s:.3f} s of it to verify")
    print(f"a line of the log {line_s * 1e6:.0f} us, the hash of a batch {hash_s * 1e6:.0f} us")
    for name, share in found.items():
        print(f"{name:<14} {share:9.6f} of {LIMITS[name]:g}")


if __name__ == "__main__":
    main()
