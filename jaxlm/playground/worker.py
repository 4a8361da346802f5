"""One thread that does all the computing, one request after the other.

A model computes on all cores of a machine, so two requests at a time would only make both slow; and the memory of
one is bounded. What needs a compilation first is compiled while nobody waits (`when_idle`).
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from jaxlm.redact import printable, redact
from jaxlm.types import UserError

MAX_WAITING = 32
"""Requests that wait; one more is refused."""
MAX_REQUEST_S = 120.0
"""Of computing for one request; others wait for it."""

Emit = Callable[[dict[str, Any]], None]
"""Sends one event to the browser; may be called from any thread."""


class Cancelled(Exception):
    """Nobody waits for the rest of a request."""


class Job:
    """A request on its way through the worker."""

    def __init__(self, work: Callable[[Job], None], emit: Emit):
        self._work = work
        self.emit = emit
        self._cancelled = threading.Event()
        self._deadline_s = float("inf")

    def cancel(self) -> None:
        """Ends it at the next token, or before it begins."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for it."""
        return self._cancelled.is_set()

    def check(self) -> None:
        """Called between tokens. Errors: Cancelled; UserError once it has taken its time."""
        if self.cancelled:
            raise Cancelled
        if time.monotonic() > self._deadline_s:
            raise UserError(
                f"this took {MAX_REQUEST_S:.0f} s, the most that one request may: ask for fewer tokens."
            )

    def run(self) -> None:
        """Does it; whatever goes wrong is one event for the browser."""
        if self.cancelled:
            return
        self._deadline_s = time.monotonic() + MAX_REQUEST_S
        try:
            self._work(self)
            self.emit({"event": "end"})
        except Cancelled:
            self.emit({"event": "end"})
        except UserError as error:
            self.emit(error_event(error))
        except Exception as error:  # the server lives on; the mistake is ours, and shown in its terminal
            show_bug(error)
            self.emit(bug_event(error))


def error_event(error: UserError) -> dict[str, Any]:
    """The one line of a mistake of the user's."""
    return {"event": "error", "message": printable(" ".join(str(error).splitlines()))[:1000]}


def bug_event(error: BaseException) -> dict[str, Any]:
    """The one line of a mistake of ours, without what only the terminal should show."""
    return {
        "event": "error",
        "message": f"the playground failed ({type(error).__name__}); its terminal says where. Other requests work.",
    }


def show_bug(error: BaseException) -> None:
    """The traceback, for the terminal."""
    sys.stderr.write(redact("".join(traceback.format_exception(error))))
    sys.stderr.flush()


class Worker:
    """Runs jobs in the order they come, and idle work in between."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._idle: deque[Callable[[], None]] = deque()
        self._running: Job | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="playground", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> int:
        """Queues a job; returns how many are done before it. Errors: UserError when too many wait."""
        with self._changed:
            self._jobs = deque(one for one in self._jobs if not one.cancelled)
            if len(self._jobs) >= MAX_WAITING:
                raise UserError(f"{MAX_WAITING} requests wait already: try again in a minute.")
            self._jobs.append(job)
            self._changed.notify()
            return len(self._jobs) - 1 + (self._running is not None)

    def when_idle(self, work: Callable[[], None]) -> None:
        """Queues work that any request goes before."""
        with self._changed:
            self._idle.append(work)
            self._changed.notify()

    @property
    def num_left(self) -> int:
        """Requests that are not done, and were not cancelled before they began."""
        with self._changed:
            return sum(not job.cancelled for job in self._jobs) + (self._running is not None)

    def close(self, timeout_s: float) -> bool:
        """Cancels all; returns whether the thread has ended in time. It cannot in the middle of a compilation."""
        with self._changed:
            self._closed = True
            self._idle.clear()
            for job in [*self._jobs, *([self._running] if self._running else [])]:
                job.cancel()
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._jobs or self._idle):
                    self._changed.wait()
                if self._closed:
                    return
                job = self._jobs.popleft() if self._jobs else None
                idle = self._idle.popleft() if job is None else None
                self._running = job
            try:
                if job is not None:
                    job.run()
                elif idle is not None:
                    idle()
            except (
                Exception
            ) as error:  # an emit to a browser that left, or idle work: nobody is there to be told
                show_bug(error)
            with self._changed:
                self._running = None
