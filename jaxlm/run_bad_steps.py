"""A bad step: which tensor, layer, rows and sources it was; a file that repeats it; the way back behind it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from etils import epath

from jaxlm import processes
from jaxlm.checkpoint import REPLAYED, Checkpoints
from jaxlm.limits import check, read_json
from jaxlm.parallel.sharding import local_rows, make_constrain_batch
from jaxlm.report.run_report import RunReport
from jaxlm.run import abstract_state, dropout_seed, saved_state
from jaxlm.run_hooks import make_place
from jaxlm.train.first_bad import make_search
from jaxlm.train.hooks import BadStep, TooManyBadSteps
from jaxlm.train.optimizer import square_sums_names
from jaxlm.train.step import TrainState
from jaxlm.types import JSON_ERRORS, UserError

if TYPE_CHECKING:
    from jaxlm.run import Run

FOLDER = "bad_steps"
"""In the workdir: one file for each bad step that is kept for `jaxlm replay`."""
MAX_KEPT = 3
"""Of bad steps, those that a process explains at length and keeps: each keeps a checkpoint, too."""
MAX_NAMES = 8
MAX_RETURNS = 3
"""Without a good step in between: weights that go wrong on whatever data comes next will not get better."""
FORMAT = 1
_SHAPE = {
    "format": int, "step": int, "workdir": str, "checkpoint": (int, None), "metrics": {str: str}, "mesh": {str: int},
    "rows": {str: [int]}, "batch_sha256": {str: str},
}  # fmt: skip


def search_step(run: Run, params: Any, step: int) -> str:
    """What made the first bad value of a step with these weights, in words. All processes take part."""
    cfg, mesh = run.config, run.pieces.mesh
    search = make_search(
        run.pieces.loss,
        cfg.train.num_microbatches,
        dropout_seed=dropout_seed(cfg),
        constrain_batch=make_constrain_batch(mesh),
        tuning=run.pieces.tuning,
    )
    rows = run.rows.batch(step - 1, local_rows(mesh, cfg.data.global_batch_size))
    try:
        found = search(params, make_place(run)(rows), step - 1, run.pieces.steps.frozen)
    except jax.errors.JaxRuntimeError as error:
        return f"not found: the search failed ({str(error).splitlines()[0][:200]})"
    return "not found: alone, it does not come again" if found is None else str(found)


class Explain:
    """Tells of bad steps: an event for each, and for the first few files that repeat them.

    A NaN spreads; so where the loss is not finite, the step is searched for the operation that made the first one. If
    only gradients are not, the tensors are named, in the order in which the backward pass comes to them.
    """

    def __init__(self, run: Run, report: RunReport, checkpoints: Checkpoints):
        self._run, self._report, self._checkpoints = run, report, checkpoints
        self._names: list[str] = []
        self._left = MAX_KEPT

    def __call__(self, bad: BadStep) -> None:
        row = bad.row
        is_finite = math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])
        kind = "spike" if is_finite else "nonfinite"
        rows = self._run.rows.rows_of(bad.step - 1)
        unsound = [self._gradients[i] for i in np.flatnonzero(~bad.sound_gradients).tolist()]
        unsound.sort(key=_backward)
        facts: dict[str, Any] = {
            "kind": kind,
            "loss": row["loss"],
            "grad_norm": row["grad_norm"],
            "unsound_gradients": unsound[:MAX_NAMES],
            "num_unsound_gradients": len(unsound),
            "rows": rows,
        }
        if bad.is_first and self._left:
            self._left -= 1
            if kind == "nonfinite":
                facts["first_bad"] = self._search(bad)
            facts["file"] = self._keep(bad, rows)
            if processes.is_first():
                self._report.warning(_sentence(bad.step, facts))
        self._report.event("bad_step", step=bad.step, **facts)

    @property
    def _gradients(self) -> list[str]:
        if not self._names:
            tuning = self._run.pieces.tuning.config
            first = 0
            if tuning.train == "last_blocks":
                first = self._run.config.model.num_layers - tuning.num_blocks
            state = abstract_state(self._run.pieces, self._run.config)
            self._names = square_sums_names(state.params, first)
        return self._names

    def _search(self, bad: BadStep) -> str:
        if bad.state is None:
            return "not searched: later steps have changed the weights"
        return search_step(self._run, bad.state.params, bad.step)

    def _keep(self, bad: BadStep, rows: Mapping[str, list[int]]) -> str:
        """Writes the file; the checkpoint from which it goes on is kept as well."""
        if not processes.is_first():
            return ""
        run, path = self._run, self._run.folder / FOLDER / f"step-{bad.step:06d}.json"
        before = [step for step in self._checkpoints.all_steps() if step < bad.step]
        if before:
            self._checkpoints.mark(max(before), REPLAYED)
        info = {
            "format": FORMAT,
            "workdir": os.path.abspath(run.folder) if "://" not in str(run.folder) else str(run.folder),
            "step": bad.step,
            "checkpoint": max(before, default=None),
            "metrics": {name: float(value).hex() for name, value in bad.row.items() if name != "step"},
            "mesh": run.pieces.sizes,
            "rows": dict(rows),
            "batch_sha256": batch_sha256(run.rows.batch(bad.step - 1)),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(info, indent=1))
        return str(path)


def _backward(name: str) -> tuple[int, int]:
    """Sorts names of weights as the backward pass comes to them: the head, the layers from the last, the embedding."""
    if name.startswith("layers["):
        return 1, -int(name.removeprefix("layers[").partition("]")[0])
    return (2 if "embedding" in name else 0), 0


def _sentence(step: int, facts: Mapping[str, Any]) -> str:
    where = facts.get("first_bad")
    if where is None or where.startswith("not "):
        names = ", ".join(facts["unsound_gradients"][:2])
        where = f"not finite first: the gradient of {names}" if names else "a spike"
    sources = ", ".join(f"{len(rows)} rows of {name}" for name, rows in facts["rows"].items())
    return (
        f"Step {step} was bad and is skipped: loss {facts['loss']:.6g}, gradient norm {facts['grad_norm']:.6g}; "
        f"{where}. Its batch: {sources}. To repeat it: jaxlm replay {facts['file']}"
    )


class Reproducer(NamedTuple):
    """A file of FOLDER."""

    step: int
    workdir: str
    metrics: dict[str, float]
    """What the run saw, to the bit."""
    batch_sha256: dict[str, str]
    """Of each array of the global batch."""


def batch_sha256(batch: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Identifies a batch array by array."""
    return {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in batch.items()}


def read_reproducer(path: str | os.PathLike) -> Reproducer:
    """Errors: UserError when it is no such file, or damaged."""
    file = epath.Path(path)
    if not file.exists():
        raise UserError(f"There is no file {file}. A run keeps bad steps in its folder, under {FOLDER}/.")
    try:
        info = read_json(file)
        check(info, _SHAPE)
        if info["format"] != FORMAT:
            raise ValueError(f"format {info['format']}")
        metrics = {name: float.fromhex(value) for name, value in info["metrics"].items()}
    except (*JSON_ERRORS, OSError, OverflowError) as error:
        raise UserError(
            f"{file} is no bad step that this version of jaxlm has kept, or it is damaged: {error}."
        ) from None
    return Reproducer(info["step"], info["workdir"], metrics, info["batch_sha256"])


def roll_back(
    run: Run,
    report: RunReport,
    checkpoints: Checkpoints,
    bad: TooManyBadSteps,
    notes: Mapping[str, Any],
) -> tuple[TrainState, dict[str, Any]]:
    """The state to go on from behind bad steps, and the notes of its checkpoints.

    Weights and optimizer are those of the last scheduled checkpoint from before the bad steps; step, data and learning
    rate go on after them: what PaLM did by hand (arXiv:2204.02311, section 5.1). So the batch of a step is still a
    function of (config, seed, step) alone. Saves of a preemption do not count: they would make the weights depend on
    when it came.

    Errors: `bad`, where the config wants no return, there is nothing to return to, or it did not help before.
    """
    if run.config.train.on_bad_steps != "rollback":
        raise bad
    traceback.clear_frames(bad.__traceback__)  # they hold the last state: the memory of two would be needed
    checkpoints.wait()
    every, first_bad = run.config.checkpoint.every_steps, bad.step - bad.num + 1
    scheduled = [step for step in checkpoints.all_steps() if step % every == 0 and step < first_bad]
    target = processes.from_first(lambda: max(scheduled, default=None), "The step to roll back to")
    if target is None:
        raise UserError(f"There is no checkpoint from before them to roll back to. {bad}") from None
    last = notes.get("rolled_back", {})
    count = last["count"] + 1 if last.get("at") == first_bad - 1 else 1
    if count > MAX_RETURNS:
        raise UserError(f"Rolled back {MAX_RETURNS} times in a row, in vain. {bad}") from None
    state = saved_state(run.config, run.pieces, checkpoints, run.data, target).state
    counters = {"step": bad.step, "num_bad": bad.num_bad, "num_bad_in_row": 0}
    shardings = run.pieces.steps.shardings
    state = state._replace(
        **{
            name: jax.device_put(np.int32(value), getattr(shardings, name))
            for name, value in counters.items()
        }
    )
    if processes.is_first():
        report.warning(
            f"{bad.named}: going on after {'them' if bad.num > 1 else 'it'} with the weights of step {target}."
        )
    report.event("rollback", step=bad.step, to=target, count=count)
    return state, {**notes, "rolled_back": {"at": bad.step, "to": target, "count": count}}
