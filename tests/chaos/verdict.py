"""Whether a run that was disturbed came to what the undisturbed one did."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from chaos_runs import KEEP_LAST, Site

from jaxlm import checkpoint_integrity as integrity
from jaxlm.checkpoint import Checkpoints
from jaxlm.checkpoint_meta import Meta
from jaxlm.report.events import EVENTS, last_of_each_step, read_events
from jaxlm.types import UserError

LOSS_RTOL = 1e-5
"""Of another layout: sums over devices are taken in another order."""
PARAMS_ATOL = 1e-4
"""Of final weights after another layout. Adam divides by the root of the second moment: where a gradient is near zero
a change in its last bit moves a weight by up to the learning rate, 3e-4 here."""


class Outcome(NamedTuple):
    """What is left of a finished run."""

    steps: dict[int, dict]
    evals: dict[int, dict]
    arrays: dict[str, np.ndarray]
    meta: Meta


def outcome(workdir: Path, num_steps: int) -> Outcome:
    """Errors: UserError when its log or last checkpoint cannot be read."""
    events = list(read_events(workdir / EVENTS))
    checkpoints = Checkpoints(workdir / "checkpoints")
    if (latest := checkpoints.latest_step()) != num_steps:
        raise UserError(f"the latest step of {workdir} is {latest}, not {num_steps}")
    abstract: dict = {}
    for name, spec in checkpoints.read_meta(num_steps).arrays.items():
        *folders, last = name.split("/")
        inner = abstract
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = jax.ShapeDtypeStruct(spec.shape, spec.dtype)
    state, meta = checkpoints.restore(abstract, step=num_steps)
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves
    }
    checkpoints.close()
    return Outcome(last_of_each_step(events), last_of_each_step(events, "eval"), arrays, meta)


def measured(event: dict) -> dict:
    """What of an event must not depend on when and how fast it was."""
    return {key: value for key, value in event.items() if key != "time_s" and not key.startswith("perf/")}


class Differences:
    """From the undisturbed run, gathered over a chaos; the largest that were seen where some are allowed.

    Args:
      exact: bit for bit; else batches bit for bit, and losses within LOSS_RTOL.
    """

    def __init__(self, reference: Outcome, *, exact: bool):
        self.reference, self.exact = reference, exact
        self.loss_rtol = self.params_atol = 0.0

    def of_events(self, events: Iterable[dict]) -> list[str]:
        """Of steps and evaluations, each as often as it was made."""
        found = []
        for event in events:
            kind = event["event"]
            if kind not in ("step", "eval"):
                continue
            expected = (self.reference.steps if kind == "step" else self.reference.evals).get(event["step"])
            if expected is None:
                found.append(f"{kind} {event['step']} is not in the undisturbed run")
                continue
            found += self._of_event(f"{kind} {event['step']}", measured(event), measured(expected))
        return found

    def _of_event(self, where: str, event: dict, expected: dict) -> list[str]:
        if event.keys() != expected.keys():
            return [f"{where}: keys {sorted(event.keys() ^ expected.keys())}"]
        found = []
        for key, value in event.items():
            if self.exact or not isinstance(value, float):
                if value != expected[key]:
                    found.append(f"{where}: {key} is {value!r}, not {expected[key]!r}")
            elif key.endswith("loss"):
                rtol = abs(value - expected[key]) / abs(expected[key])
                self.loss_rtol = max(self.loss_rtol, rtol)
                if not rtol <= LOSS_RTOL:
                    found.append(f"{where}: {key} is {value!r}, not {expected[key]!r}: {rtol:.1e} apart")
            elif not math.isclose(value, expected[key], rel_tol=1e-3):
                found.append(f"{where}: {key} is {value!r}, not {expected[key]!r}")
        return found

    def of_end(self, workdir: Path, site: Site) -> list[str]:
        """Of a finished run; also what it left lying about."""
        try:
            end = outcome(workdir, site.num_steps)
        except UserError as error:
            return [str(error)]
        found = []
        for kind, mine, theirs in (
            ("step", end.steps, self.reference.steps),
            ("eval", end.evals, self.reference.evals),
        ):
            if missing := sorted(theirs.keys() - mine.keys()):
                found.append(f"{kind} {missing} missing in the event log")
            found += self.of_events(mine.values())
        for name, expected in self.reference.arrays.items():
            found += self._of_array(name, end.arrays.get(name), expected)
        for key in ("tokens", "epochs", "corpus_sha256", "tokenizer_sha256"):
            if getattr(end.meta, key) != getattr(self.reference.meta, key):
                found.append(f"{key} of the last checkpoint is {getattr(end.meta, key)!r}")
        return found + leftovers(workdir)

    def _of_array(self, name: str, mine: np.ndarray | None, expected: np.ndarray) -> list[str]:
        if mine is None or mine.shape != expected.shape or mine.dtype != expected.dtype:
            return [f"{name} has another shape or type"]
        if self.exact:
            return [] if mine.tobytes() == expected.tobytes() else [f"{name} differs in the last checkpoint"]
        if not name.startswith("params/"):
            return []
        apart = float(np.max(np.abs(mine - expected)))
        self.params_atol = max(self.params_atol, apart)
        return [] if apart <= PARAMS_ATOL else [f"{name} is {apart:.1e} apart in the last checkpoint"]


def leftovers(workdir: Path) -> list[str]:
    """What should not be in the workdir of a finished run."""
    directory = workdir / "checkpoints"
    steps = integrity.list_steps(directory)
    found = [f"{len(steps)} steps are kept: {steps}"] if len(steps) > KEEP_LAST else []
    known = {"config.json", EVENTS, "run.lock", "tokenizer.model", "checkpoints"}
    found += [f"left over: {path.name}" for path in workdir.iterdir() if path.name not in known]
    for path in directory.iterdir():
        aside = integrity.DAMAGED in path.name or path.name == integrity.MARKS
        if not path.name.isdecimal() and not aside:
            found.append(f"left over: checkpoints/{path.name}")
    return found
