"""A bad step once more, from the checkpoint before it: `jaxlm replay`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from jaxlm.checkpoint import Checkpoints
from jaxlm.parallel.sharding import local_rows
from jaxlm.report.events import EVENTS, last_of_each_step, read_events
from jaxlm.report.missing_run import missing_run
from jaxlm.run import Run, fresh_state, prepare, saved_state
from jaxlm.run_bad_steps import Reproducer, batch_sha256, read_reproducer, search_step
from jaxlm.run_hooks import make_place
from jaxlm.runconfig import load_config
from jaxlm.train.step import SOUND
from jaxlm.types import UserError
from jaxlm.workdir import CHECKPOINTS, CONFIG_FILE

COMPARED = ("loss", "grad_norm", "batch_hash")


class Replay(NamedTuple):
    """What a step did then, and what it does now."""

    step: int
    start: str
    """Where the weights came from."""
    then: dict[str, float]
    now: dict[str, float]
    first_bad: str
    num_same: int
    """Steps on the way whose loss is that of the event log, bit for bit..."""
    num_on_the_way: int
    """... of so many that the log has."""

    @property
    def is_same(self) -> bool:
        """Whether the step did the same again; a NaN is one."""
        return all(np.array_equal(self.then[name], self.now[name], equal_nan=True) for name in COMPARED)


def replay(path: str | os.PathLike, workdir: str | os.PathLike | None, say: Callable[[str], Any]) -> Replay:
    """Repeats the step of a file that a run kept of a bad step.

    Args:
      workdir: of the run, where it was moved.

    Errors: UserError when the file, the run, its data or its checkpoint is not there or not the same.
    """
    kept = read_reproducer(path)
    folder = epath.Path(workdir or kept.workdir)
    if not (folder / CONFIG_FILE).exists():
        raise UserError(f"{missing_run(folder)} --workdir says where the run of {path} is now.")
    run = prepare(load_config(folder / CONFIG_FILE), folder)
    _check_batch(run, kept)
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    before = [step for step in checkpoints.all_steps() if step < kept.step]
    if before:
        start = saved_state(run.config, run.pieces, checkpoints, run.data, max(before))
    else:
        start = fresh_state(run.config, run.pieces, checkpoints, run.data, keep=False)
    words = start.words.replace("resumed", "weights")
    run = run._replace(pieces=run.pieces._replace(steps=run.pieces.steps.bind(start.frozen)))
    logged = last_of_each_step(read_events(folder / EVENTS)) if (folder / EVENTS).exists() else {}
    state, first = start.state, int(start.state.step)
    say(f"{words}; {kept.step - first - 1} steps on the way to step {kept.step}")
    losses: dict[int, float] = {}
    train, place = run.pieces.steps.train, make_place(run)
    row_ids = local_rows(run.pieces.mesh, run.config.data.global_batch_size)
    for step in range(first + 1, kept.step):
        state, metrics = train(state, place(run.rows.batch(step - 1, row_ids)))
        losses[step] = float(metrics["loss"])
    first_bad = search_step(run, state.params, kept.step)
    _, metrics = train(state, place(run.rows.batch(kept.step - 1, row_ids)))
    now = {name: float(value) for name, value in jax.device_get(metrics).items() if name != SOUND}
    there = [
        (loss, logged[s]["train/loss"]) for s, loss in losses.items() if "train/loss" in logged.get(s, {})
    ]
    num_same = sum(np.array_equal(mine, its, equal_nan=True) for mine, its in there)
    return Replay(kept.step, words, kept.metrics, now, first_bad, num_same, len(there))


def _check_batch(run: Run, kept: Reproducer) -> None:
    found = batch_sha256(run.rows.batch(kept.step - 1))
    for name, sha256 in kept.batch_sha256.items():
        if found.get(name) != sha256:
            raise UserError(
                f"The run's batch of step {kept.step} is another now: {name} differs from what was kept. Its data, "
                "seed or batch size has changed since."
            )
