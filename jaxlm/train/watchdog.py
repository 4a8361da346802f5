"""Says so when a run no longer moves: where every thread stands, and which process is behind.

A collective that one process never enters, a read that a network file system never answers: the others wait without a
word, for ever. The watchdog is a thread beside the loop. The loop tells it where it is by writing one attribute before
each hook and before each step; everything else happens once a second, off the loop.

    with Watchdog(folder, report, timeout_s=None) as watchdog:
        fit(state, step, batches, watchdog.watch(hooks, int(state.step)), num_steps)

A step counts as done when it is dispatched, not when the devices have computed it: `LogSteps` waits for them every
few steps, and a step that never ends is found there. So no single step is timed, but how long the loop stands still
at one place. The limit: LEAST_LIMIT_S, or LIMIT_FACTOR times the longest that this place took before. What compiles
(the first steps, the first evaluation) and what has not been seen to take long (saving) has FIRST_LIMIT_S; but when
another process is late, the first one, whose log is read, says so too.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

from etils import epath

from jaxlm import processes
from jaxlm.train.loop import Hook

LEAST_LIMIT_S = 300.0
FIRST_LIMIT_S = 3600.0
LIMIT_FACTOR = 3.0
POLL_S = 1.0
OTHERS_S = 5.0
"""The first process waits this long for what the others say of themselves: they look once in POLL_S, too."""
EXIT_CODE = 75
"""Of a process that `train.step_timeout_s` ends: EX_TEMPFAIL of sysexits.h, "try again later"."""
STACKS = "stacks"
_LATE = "jaxlm/late"
"""In the store of the processes: who is late has its place there."""
STEP = "step"
EVERY_STEP = (STEP, "LogSteps")
"""Places that have a limit from the first step on; the others do nothing in most steps."""


class Place(NamedTuple):
    """Where the loop is."""

    step: int
    """Steps done, which is the step that a hook follows; of `step`, the one before it."""
    name: str
    """`step`, or the class of a hook."""

    def __str__(self) -> str:
        if self.name == STEP:
            return f"step {self.step + 1}"
        waits = " (which waits for the devices)" if self.name in EVERY_STEP else ""
        return f"{self.name} after step {self.step}{waits}"


class Warn(Protocol):
    """What is told: `report.run_report.RunReport`."""

    def warning(self, line: str) -> None: ...


class Watchdog:
    """Watches the hooks and steps of a loop, inside `with`.

    Args:
      workdir: stacks are written to <workdir>/stacks/<process>-<time>.txt.
      report: gets one warning each time; from a thread.
      settle_steps: the first steps, after which the loop has waited for the devices once (`train.log_every_steps`):
        until then some process may still be compiling.
      timeout_s: ends the process with EXIT_CODE when steps stand still this long (the first ones and what hooks do
        besides logging: FIRST_LIMIT_S at least); None: only warns.
      end: how a process is ended.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        report: Warn,
        *,
        settle_steps: int = 1,
        timeout_s: float | None = None,
        end: Callable[[int], Any] = os._exit,
    ):
        self._folder = epath.Path(workdir) / STACKS
        self._report, self._timeout_s, self._end = report, timeout_s, end
        self._settle_steps, self._first_step = settle_steps, 0
        self._at = Place(0, STEP)
        self._longest_s: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def watch(self, hooks: Sequence[Hook], first_step: int) -> list[Hook]:
        """The hooks, which now tell where the loop is; it begins after `first_step` steps."""
        self._first_step, self._at = first_step, Place(first_step, STEP)
        return [*(self._watched(hook) for hook in hooks), self._next_step]

    def _watched(self, hook: Hook) -> Hook:
        name = type(hook).__name__

        def watched(step: int, state: Any, metrics: Any) -> None:
            self._at = Place(step, name)
            hook(step, state, metrics)

        return watched

    def _next_step(self, step: int, state: Any, metrics: Any) -> None:
        self._at = Place(step, STEP)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()

    def limit_s(self, place: Place) -> float:
        """How long the loop may be at a place before somebody is told."""
        longest_s = self._longest_s.get(place.name)
        if longest_s is None and self._may_compile(place):
            return FIRST_LIMIT_S
        return max(LEAST_LIMIT_S, LIMIT_FACTOR * (longest_s or 0.0))

    def end_s(self, place: Place) -> float:
        """How long the loop may be at a place before the process is ended."""
        if self._timeout_s is None:
            return float("inf")
        return max(self._timeout_s, FIRST_LIMIT_S) if self._may_compile(place) else self._timeout_s

    def _may_compile(self, place: Place) -> bool:
        """Here, or in a process that this one waits for."""
        return place.name not in EVERY_STEP or self._settles(place)

    def _settles(self, place: Place) -> bool:
        last = self._first_step + self._settle_steps
        return place.step < last or (place.step == last and place.name != STEP)

    def _run(self) -> None:
        place, still_s, told_s, looked_at = self._at, 0.0, 0.0, time.monotonic()
        while not self._stop.wait(POLL_S):
            now = time.monotonic()
            # A process that was stopped as a whole, or a machine that slept, is no step that hangs.
            passed_s, looked_at = min(now - looked_at, 5 * POLL_S), now
            if self._at is not place:
                self._learn(place, still_s)
                if told_s:
                    self._take_back()
                place, still_s, told_s = self._at, 0.0, 0.0
                continue
            still_s += passed_s
            ends = still_s >= self.end_s(place)
            is_late = still_s >= max(self.limit_s(place), 2 * told_s)
            if ends or is_late or (not told_s and still_s >= LEAST_LIMIT_S and self._others_late()):
                told_s = still_s
                self._tell(place, still_s, ends)
                if ends:
                    self._end(EXIT_CODE)
                    return

    def _learn(self, place: Place, still_s: float) -> None:
        compiles = place.name in EVERY_STEP and self._settles(place)
        if not compiles and POLL_S <= still_s < self.limit_s(place):
            self._longest_s[place.name] = max(still_s, self._longest_s.get(place.name, 0.0))

    def _tell(self, place: Place, still_s: float, ends: bool) -> None:
        if ends:  # whatever becomes of the words: a hanging disk must not keep a hanging process
            timer = threading.Timer(30.0, self._end, [EXIT_CODE])
            timer.daemon = True
            timer.start()
        limit_s = self.limit_s(place)
        limit = f"limit {limit_s:.0f} s" if still_s >= limit_s else "another process is late"
        limit = f"train.step_timeout_s={self._timeout_s:g}" if ends else limit
        line = f"{place} has taken {still_s:.0f} s ({limit}); {self._dump()}"
        if not processes.is_alone():
            line += self._behind()
        if ends:
            line += f". This process ends with exit code {EXIT_CODE}; the same command continues"
        try:
            self._report.warning(line)
        except Exception as error:  # a full disk, a log that is closed: the word is all that matters here
            print(f"jaxlm: warning: {line} ({type(error).__name__}: {error})", file=sys.stderr, flush=True)

    def _dump(self) -> str:
        """Writes the stacks of all threads; says where they are."""
        name = f"{processes.index()}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.txt"
        with tempfile.TemporaryFile() as file:  # faulthandler writes to a file of this machine only
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            stacks = file.read()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_bytes(stacks)
        except OSError as error:
            print(stacks.decode(errors="replace"), file=sys.stderr, flush=True)
            return f"stacks are on stderr, since {self._folder / name} cannot be written ({error})"
        return f"stacks in {self._folder / name}"

    def _behind(self) -> str:
        """What all say of themselves, in the words of the first process; the others say where they are."""
        put = processes.Asked(self._put)
        if not processes.is_first():
            return ""
        put.wait(processes.ANSWER_S)
        self._stop.wait(OTHERS_S)
        try:
            said = processes.listed(_LATE) or {}
        except RuntimeError as error:  # of the store, when a process is gone
            return f". The other processes cannot be asked ({(str(error).splitlines() or [''])[0]})"
        late = {0: self._at} | {index: Place(*json.loads(at)) for index, at in said.items()}
        return describe_behind(late, processes.count())

    def _others_late(self) -> bool:
        """Whether the first process hears from one that is late, while it is where much time is usual."""
        if processes.is_alone() or not processes.is_first():
            return False
        try:
            return any(processes.listed(_LATE) or {})  # 0 is this one
        except RuntimeError:  # of the store: a process is gone, and JAX says so
            return False

    def _put(self) -> None:
        processes.client().key_value_set(f"{_LATE}/{processes.index()}", json.dumps(self._at), True)

    def _take_back(self) -> None:
        if not processes.is_alone():
            processes.Asked(lambda: processes.client().key_value_delete(f"{_LATE}/{processes.index()}"))


def describe_behind(late: Mapping[int, Place], count: int) -> str:
    """Where the processes are that find themselves late, the slowest first; and which ones say nothing.

    Args:
      late: by process.
      count: of all processes.
    """
    at: dict[Place, list[int]] = {}
    for index in sorted(late):
        at.setdefault(late[index], []).append(index)
    places = sorted(at, key=lambda place: place.step)
    words = "; ".join(f"{processes.name_of(*at[place])} at {place}" for place in places)
    silent = [index for index in range(count) if index not in late]
    words = f". Slowest first: {words}" if len(places) > 1 else f". At the same place: {words}"
    return f"{words}; nothing from {processes.name_of(*silent)}: stopped, or not late" if silent else words
