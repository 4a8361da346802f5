"""Goodput: what the time of a run went to, from its event log alone. Shares add up to the wall time.

    productive   steps that counted in the end, without waiting for data and without compiling
    compile      tracing, lowering, compiling, or fetching compiled programs from the cache
    checkpoint   what a save kept the run waiting; writing goes on meanwhile
    restore      reading a checkpoint, at a restart or a rollback
    data stall   waiting for the next batch
    evaluation   held-out scores and samples
    startup      from the call of `train` to the first step: opening data, planning, building the model
    lost steps   steps that were done again after a restart, rolled back, or skipped as bad
    down         between the last event of a process that did not finish and the call of the next one
    other        what no measurement covers: writing logs, closing

Wall time runs from the first call of `train` to the last event of the last process. A pause after a run that had
finished (and was given more steps) is nobody's: it does not count. A log of an older jaxlm lacks some of these; they
are None, "not recorded", and their time is in `other` or in `productive`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.report.run_log import RunLog

PARTS = {
    "productive": "steps that counted",
    "compile": "compiling",
    "checkpoint": "waiting for a save",
    "restore": "restoring",
    "data_stall": "waiting for data",
    "evaluation": "evaluation and samples",
    "startup": "starting",
    "lost_steps": "steps that did not count",
    "down": "between two processes",
    "other": "not measured",
}
"""Parts of the wall time, in the order of display -> what they are, in words."""
MEASURED = ("compile", "checkpoint", "restore", "evaluation", "startup")
"""Parts that only a log with `startup` and `span` events has."""


class Goodput(NamedTuple):
    """Seconds of each of PARTS; None: not recorded."""

    wall_s: float
    seconds: dict[str, float | None]
    num_starts: int
    num_lost_steps: int
    """Done again, rolled back, or skipped."""

    @property
    def share(self) -> float | None:
        """Productive time / wall time; None before there is any."""
        return (self.seconds["productive"] or 0.0) / self.wall_s if self.wall_s > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: seconds and shares."""
        shares = {
            name: None if value is None or self.wall_s <= 0 else value / self.wall_s
            for name, value in self.seconds.items()
        }
        return {
            "goodput": self.share,
            "wall_s": self.wall_s,
            "seconds": dict(self.seconds),
            "shares": shares,
            "num_starts": self.num_starts,
            "num_lost_steps": self.num_lost_steps,
        }


def goodput(log: RunLog, now_s: float | None = None) -> Goodput:
    """The account of one run.

    Args:
      now_s: Unix time, for a run that is going on: since its last event it has been `other`; None: that event ends it.
    """
    attempts, windows = log.attempts, log.windows
    wall_s = down_s = 0.0
    for i, attempt in enumerate(attempts):
        last_s = attempt.last_s
        if i + 1 < len(attempts) and not attempt.is_finished:
            gap_s = max(0.0, attempts[i + 1].began_s - last_s)
            down_s += gap_s
            wall_s += gap_s
        elif i + 1 == len(attempts) and now_s is not None and not attempt.is_finished:
            last_s = max(last_s, now_s)
        wall_s += max(0.0, last_s - attempt.began_s)
    seconds, stall_s, compile_s = (np.array(a) for a in (windows.seconds, windows.stall_s, windows.compile_s))
    num = np.array(windows.last, np.int64) - np.array(windows.first, np.int64) + 1
    lost = np.minimum(np.array(windows.num_lost, np.int64), num)
    steps_s = np.maximum(seconds - stall_s - compile_s, 0.0)
    lost_s = float((steps_s * lost / np.maximum(num, 1)).sum()) if len(num) else 0.0
    recorded = any(attempt.startup_s is not None for attempt in attempts)

    def spans(*names: str) -> float:
        return sum(attempt.spans.get(name, 0.0) for attempt in attempts for name in names)

    found: dict[str, float | None] = {
        "productive": float(steps_s.sum()) - lost_s,
        "compile": float(compile_s.sum()) + sum(one.compile_s for one in attempts),
        "checkpoint": spans("checkpoint"),
        "restore": spans("restore") + sum(one.restore_s for one in attempts),
        "data_stall": float(stall_s.sum()),
        "evaluation": spans("evaluation", "samples"),
        "startup": sum(one.startup_s or 0.0 for one in attempts),
        "lost_steps": lost_s,
        "down": down_s,
    }
    if not recorded:
        found |= dict.fromkeys(MEASURED)
    known = sum(value for value in found.values() if value is not None)
    # A clock that is set back, or two that differ, must not make shares of more than the whole.
    wall_s = max(wall_s, known)
    found["other"] = wall_s - known
    return Goodput(wall_s, found, len(attempts), log.num_lost_steps)


def total(accounts: Sequence[Goodput]) -> Goodput:
    """Of several runs together; a part that one of them did not record is the sum of the others'."""
    seconds = {
        name: None
        if all(one.seconds[name] is None for one in accounts)
        else sum(one.seconds[name] or 0.0 for one in accounts)
        for name in PARTS
    }
    return Goodput(
        sum(one.wall_s for one in accounts),
        seconds,
        sum(one.num_starts for one in accounts),
        sum(one.num_lost_steps for one in accounts),
    )
