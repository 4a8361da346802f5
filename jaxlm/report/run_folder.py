"""A run as its folder has it: config, event log, and what `jaxlm evaluate` left there. Reads, never writes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from jaxlm.data.files import reachable
from jaxlm.limits import MAX_JSON_BYTES, read_json, short
from jaxlm.paths import is_local
from jaxlm.redact import redact
from jaxlm.report.events import EVENTS, EventReader
from jaxlm.report.missing_run import CONFIG_FILE, missing_run
from jaxlm.report.run_log import RunLog, number
from jaxlm.report.writers import flatten, public_config
from jaxlm.types import JSON_ERRORS, UserError

EVALUATIONS = "evaluations"
"""A folder for the JSON of `jaxlm evaluate --data`, beside the run's own files."""
MAX_SCORES = 50
RECENT_S = 300.0
"""A run on an object store, where no lock can be seen, counts as going on while its log is no older than this."""

Holds = Callable[[str], bool]
"""Whether a process of this machine trains in this folder."""


class RunFolder:
    """One run, read as far as it has come.

    Args:
      path: its workdir; local or on an object store.
      is_held: see Holds.
      lenient: lines of the log that are none are left out and listed in `bad_lines`; else they are an error.
      may_be_empty: a folder whose log has yet to come is fine: somebody waits for it.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        is_held: Holds = lambda path: False,
        lenient: bool = False,
        may_be_empty: bool = False,
    ):
        self.path, self._is_held = os.fspath(path), is_held
        self.folder = reachable(path)
        self.name = redact(self.folder.name or self.path)
        self.bad_lines: list[str] = []
        self.log = RunLog()
        self.config: dict[str, Any] = {}
        """Flat: every key with its value, without secrets; empty where the folder has none."""
        self._may_be_empty = may_be_empty
        self._check()
        self._reader = EventReader(
            self.folder / EVENTS, on_bad_line=self.bad_lines.append if lenient else None
        )

    def _check(self) -> None:
        if not self.folder.is_dir():
            raise missing_run(self.path)
        if not (self.folder / EVENTS).exists() and not self._may_be_empty:
            if not (self.folder / CONFIG_FILE).exists():
                raise missing_run(self.path, missing=f"{CONFIG_FILE} or {EVENTS}")
            raise UserError(
                f"{self.path} has no {EVENTS}: nothing was trained there yet. With --serve the page waits for it."
            )

    def read(self) -> bool:
        """Reads what is new; whether there was anything. Errors: UserError, as of EventReader."""
        if not (self.folder / EVENTS).exists() and self._may_be_empty:
            return False
        if not self.config and (self.folder / CONFIG_FILE).exists():
            self.config = _read_config(self.folder / CONFIG_FILE)
        num_bad = len(self.bad_lines)
        num_new = self.log.add_all(self._reader.new_events())
        if not self.log.num_events and not self._may_be_empty:
            raise UserError(
                f"{self.folder / EVENTS} is empty: nothing was trained there yet. With --serve the page waits for it."
            )
        return bool(num_new) or len(self.bad_lines) > num_bad

    def state(self) -> tuple[str, str]:
        """(finished, running, stopped, failed, interrupted or waiting; a line about it)."""
        log = self.log
        if log.ending is not None and log.ending["event"] == "end":
            return "finished", "reached its last step"
        if log.ending is not None:
            said = str(log.ending.get("error", ""))
            kind, _, rest = said.partition(": ")
            return ("stopped", rest) if kind == "Stopped" else ("failed", said)
        if self._is_held(self.path):
            return "running", "is being trained"
        if log.last is None:
            return "waiting", "has not begun"
        if not is_local(self.path) and time.time() - (number(log.last.get("time_s")) or 0.0) < RECENT_S:
            return "running", "wrote to its log within five minutes"
        return "interrupted", "its log has no end: it was killed, or runs on another machine"

    def scores(self, files: Sequence[str] = ()) -> list[dict[str, Any]]:
        """What the run and `jaxlm evaluate --data --json=FILE` said of it: classification tables, instruction scores.

        Args:
          files: besides the *.json of the folder and of its evaluations/. Those must be such files.

        Errors: UserError for one of `files` that is none.
        """
        found = [
            {"file": EVENTS, "step": event.get("step"), "data": f"held-out {name}", **event["scores"]}
            for name, event in self.log.scores.items()
        ]
        for path in files:
            found.append(_read_scores(epath.Path(path), required=True) or {})
        inside = [*self.folder.glob("*.json"), *(self.folder / EVALUATIONS).glob("*.json")]
        for path in sorted(inside, key=os.fspath)[:MAX_SCORES]:
            if path.name != CONFIG_FILE and (one := _read_scores(path, required=False)) is not None:
                found.append(one)
        return [one for one in found if _is_scores(one)]


def open_runs(paths: Sequence[str], **options: Any) -> list[RunFolder]:
    """One RunFolder for each path, with names that differ; options as of RunFolder.

    Errors: UserError for a path given twice, and those of RunFolder.
    """
    runs = [RunFolder(path, **options) for path in paths]
    places = [os.path.abspath(one.path) if is_local(one.path) else one.path.rstrip("/") for one in runs]
    for i, place in enumerate(places):
        if place in places[:i]:
            raise UserError(f"{paths[i]} is given twice: a run is compared with others, once.")
    names = [one.name for one in runs]
    for one in runs:
        if names.count(one.name) > 1:
            one.name = redact(one.path.rstrip("/"))
    return runs


def _read_config(path: epath.Path) -> dict[str, Any]:
    """Also of another version of jaxlm, with keys that this one does not know."""
    try:
        config = read_json(path)
    except JSON_ERRORS as error:
        raise UserError(f"{path} is no JSON ({error}): it was edited or damaged. Restore it.") from None
    if not isinstance(config, Mapping):
        raise UserError(f"{path} is no JSON object: it was edited or damaged. Restore it.")
    return flatten(public_config(config))


def _is_scores(one: Any) -> bool:
    return isinstance(one, dict) and (
        one.get("task") in ("single_label", "multi_label", "regression") or "exact_match" in one
    )


def _read_scores(path: epath.Path, *, required: bool) -> dict[str, Any] | None:
    try:
        found = read_json(path, MAX_JSON_BYTES)
        if _is_scores(found):
            return {**found, "file": path.name}
        reason = "no scores of `jaxlm evaluate --data`"
    except (*JSON_ERRORS, OSError) as error:
        reason = short(str(error), 200)
    if required:
        raise UserError(f"--scores={path}: {reason}. Give a file that `jaxlm evaluate --data --json` wrote.")
    return None
