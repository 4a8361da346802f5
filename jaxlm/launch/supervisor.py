"""Keeps the processes of a run going: starts them again after a preemption, a standstill or a crash.

All processes of this machine start and end together. When one ends before its time, the others are stopped, and after a
pause all start again; the run goes on from its last checkpoint. Exit codes decide:

- 0, 3, 5: done. 2, 4: a mistake that a restart would repeat. 130, 141: the user, or the reader of its output, left.
- 143: preempted, the step saved. 75: stood still, or lost another process. Signals and all other codes: crashes.
  These are restarted, `max_restarts` times in a row without a new checkpoint in between.

SIGTERM and SIGINT are passed on, and end the run: its code is then the supervisor's.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import NamedTuple

from jaxlm.types import UserError

FINAL = frozenset({0, 2, 3, 4, 5, 130, 141})
"""Exit codes after which nothing is started again."""
_FOLLOWS = frozenset({2, 75, -signal.SIGABRT, 128 + signal.SIGABRT})
"""Codes of processes that lost another: where one has a different code, that one came first."""
_ENDING = frozenset({0, 130, 143})
"""After these the others are about to end by themselves, with the same step saved."""


@dataclass(frozen=True)
class Policy:
    """How often, and how soon."""

    max_restarts: int = 10
    """In a row, without progress."""
    first_pause_s: float = 1.0
    """Before the first restart; twice as long each time without progress."""
    longest_pause_s: float = 60.0
    steady_s: float = 600.0
    """A run that lasted as long counts as progress, where checkpoints cannot be seen."""
    settle_s: float = 1.0
    """How long ends of several processes are taken for one event."""
    saving_s: float = 300.0
    """For others to end by themselves after one was told to."""
    stopping_s: float = 10.0
    """From SIGTERM to SIGKILL for the others of a process that crashed."""


class End(NamedTuple):
    """Of one process."""

    process: int
    code: int
    """As of subprocess: negative for a signal."""


def exit_code(code: int) -> int:
    """As a shell reports it: 137 for a process that SIGKILL ended."""
    return 128 - code if code < 0 else code


def describe(end: End) -> str:
    """In words: process 1 ended by SIGKILL."""
    if end.code < 0:
        return f"process {end.process} was ended by {signal.Signals(-end.code).name}"
    words = {
        143: "was told to stop (143), its step saved",
        75: "stood still, or lost another process (75)",
        0: "is done (0)",
    }
    return f"process {end.process} {words.get(end.code, f'ended with code {end.code}')}"


def cause(ends: Sequence[End]) -> End:
    """The end that was the reason of the others; ends in the order in which they came."""
    failed = [end for end in ends if end.code != 0]
    if not failed:
        return ends[0]
    return next((end for end in failed if end.code not in _FOLLOWS), failed[0])


class Supervisor:
    """Runs processes until the run is done, or cannot be helped.

    Args:
      start: starts all of them, each with its signals to itself (`start_new_session`).
      progress: what grows as the run gets on, such as the step of its last checkpoint; None: it cannot be told.
      say: gets one line for what happened.
    """

    def __init__(
        self,
        start: Callable[[], Sequence[subprocess.Popen]],
        progress: Callable[[], int | None],
        policy: Policy = Policy(),
        say: Callable[[str], None] | None = None,
    ):
        self._start, self._progress, self._policy = start, progress, policy
        self._say = say or (lambda line: print(f"jaxlm launch: {line}", file=sys.stderr, flush=True))
        self._processes: Sequence[subprocess.Popen] = ()
        self._ends: queue.SimpleQueue[End] = queue.SimpleQueue()
        self._asked = threading.Event()
        self._signal: int | None = None

    def run(self) -> int:
        """Returns the exit code of the run, as a shell reports it."""
        restarts, seen = 0, self._progress()
        with self._signals():
            while True:
                began = time.monotonic()
                end = self._once()
                if self._signal is not None or end.code in FINAL:
                    return exit_code(end.code)
                now = self._progress()
                moved = now != seen if now is not None else time.monotonic() - began >= self._policy.steady_s
                restarts, seen = 1 if moved else restarts + 1, now
                if restarts > self._policy.max_restarts:
                    self._say(
                        f"{describe(end)}, and {self._policy.max_restarts} restarts in a row brought no "
                        "new checkpoint: given "
                        "up. The same command tries again."
                    )
                    return exit_code(end.code)
                pause_s = min(self._policy.first_pause_s * 2 ** (restarts - 1), self._policy.longest_pause_s)
                self._say(
                    f"{describe(end)}; restart {restarts} of {self._policy.max_restarts} in {pause_s:g} s."
                )
                if self._asked.wait(pause_s):
                    return 128 + (self._signal or signal.SIGTERM)

    def _once(self) -> End:
        """One start of all processes, to the end of all; returns the end that decides."""
        self._ends = queue.SimpleQueue()
        try:
            self._processes = self._start()
        except OSError as error:
            raise UserError(f"The processes cannot be started ({error.strerror or error}).") from None
        if self._signal is not None:  # it came while they started
            self._pass_on(self._signal)
        for index, process in enumerate(self._processes):
            threading.Thread(target=self._await, args=(index, process, self._ends), daemon=True).start()
        ends = [self._ends.get()]
        if ends[0].code not in _ENDING:
            self._collect(ends, self._policy.settle_s)
        deciding = list(ends)
        if self._signal is None and cause(ends).code != 0:
            self._collect(ends, self._policy.saving_s if cause(ends).code in _ENDING else 0.0)
            self._stop(ends)
        while len(ends) < len(self._processes):
            ends.append(self._ends.get())
            if self._signal is None and cause(deciding).code == 0 and ends[-1].code != 0:
                deciding.append(ends[-1])
                self._stop(ends)
        return cause(ends if self._signal is not None else deciding)

    def _await(self, index: int, process: subprocess.Popen, ends: queue.SimpleQueue[End]) -> None:
        ends.put(End(index, process.wait()))

    def _collect(self, ends: list[End], seconds: float) -> None:
        """Takes the ends that come within so long."""
        until = time.monotonic() + seconds
        while len(ends) < len(self._processes) and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                ends.append(self._ends.get(timeout=left))

    def _stop(self, ends: list[End]) -> None:
        """Ends the processes that are left."""
        self._pass_on(signal.SIGTERM)
        self._collect(ends, self._policy.stopping_s)
        self._pass_on(signal.SIGKILL)

    def _pass_on(self, number: int) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Passes SIGTERM and SIGINT on while it lasts."""

        def received(number: int, frame: FrameType | None) -> None:
            self._signal = number
            self._asked.set()
            self._pass_on(number)

        before = {number: signal.signal(number, received) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for process in self._processes:
                if process.poll() is None:
                    process.kill()
