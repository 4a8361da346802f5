"""How long this thread has traced, lowered and compiled, as JAX itself measures it."""

from __future__ import annotations

import functools
import threading
import time
from collections import deque

import jax

PREFIX = "/jax/core/compile/"
"""Of the durations that JAX reports: tracing, lowering, compiling (or fetching the program from the cache)."""
MAX_INTERVALS = 1024
"""Only the last ones can lie inside one that ends now."""


class CompileClock:
    """Adds up intervals, of which an inner one (a function traced inside another) counts once."""

    def __init__(self):
        self.seconds = 0.0
        self._intervals: deque[tuple[float, float]] = deque(maxlen=MAX_INTERVALS)

    def add(self, end: float, seconds: float) -> None:
        """An interval that has just ended; `end` never goes back."""
        begin = end - seconds
        while self._intervals and self._intervals[-1][0] >= begin:
            first, last = self._intervals.pop()
            self.seconds -= last - first
        if self._intervals:
            begin = max(begin, self._intervals[-1][1])
        self._intervals.append((begin, end))
        self.seconds += end - begin


class _Own(threading.local):
    def __init__(self):
        self.clock = CompileClock()


_own = _Own()


@functools.cache
def _listen() -> None:
    def heard(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.startswith(PREFIX):
            _own.clock.add(time.perf_counter(), duration_secs)

    jax.monitoring.register_event_duration_secs_listener(heard)


def compile_seconds() -> float:
    """Seconds that this thread has compiled since it first asked; what other threads compile keeps no loop waiting."""
    _listen()
    return _own.clock.seconds
