"""The event log of a run as columns: what its page, its summary and its goodput are made of.

    log = RunLog()
    for event in read_events(path):
        log.add(event)
    log.column("train/loss")      # (steps, values)

Takes one event after another, so that a log that grows is never read twice. A resumed run writes the steps after its
checkpoint once more: what is taken back by them, as in `events.last_of_each_step`, leaves the columns, and is counted.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Event = Mapping[str, Any]
WORK = ("step", "eval", "text", "scores", "save", "memory", "startup", "span", "bad_step", "rollback", "end")
"""Events of a process that trains; others (a message, a failure) may come hours later, from one that only looked."""
MARKS = ("start", "save", "bad_step", "rollback", "warning", "failed", "end")
"""Events that stand on the time line."""
MAX_MARKS = 20_000
MAX_TEXT_CHARS = 4000
"""Of a sample or a message that is kept: a page is no place for a megabyte of it."""


def number(value: Any) -> float | None:
    """A log's value as a float; None for what is none. NaN and infinities are numbers."""
    if type(value) is float:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 1000:
        return float(value)
    return None


def clip(text: str, limit: int = MAX_TEXT_CHARS) -> str:
    """The text, or its beginning and how much was left out."""
    return text if len(text) <= limit else f"{text[:limit]} ... ({len(text) - limit:,} more characters)"


class Column:
    """Values by step, in the order they came."""

    __slots__ = ("num_earlier", "steps", "values")

    def __init__(self):
        self.steps, self.values = array("q"), array("d")
        self.num_earlier = 0
        """How many of them are older than the latest start."""

    def take_back(self, step: int, num_earlier: int) -> None:
        """Drops those of this step and later ones among the first `num_earlier`; and of the step itself, all."""
        steps, values = np.asarray(self.steps), np.asarray(self.values)
        is_earlier = np.arange(len(steps)) < num_earlier
        kept = ~((is_earlier & (steps >= step)) | (steps == step))
        self.num_earlier = int((kept & is_earlier).sum())
        self.steps, self.values = array("q", steps[kept].tobytes()), array("d", values[kept].tobytes())


@dataclass
class Attempt:
    """One process of the run, from its start to the last it did. Times: Unix, or seconds."""

    began_s: float
    """When it was called; without `startup` in the log, when it said that it starts."""
    last_s: float
    first_step: int | None = None
    last_step: int = 0
    is_finished: bool = False
    startup_s: float | None = None
    """Without restoring and compiling. None: not recorded."""
    restore_s: float = 0.0
    compile_s: float = 0.0
    spans: dict[str, float] = field(default_factory=dict)
    """Name -> seconds, without compiling."""


@dataclass
class Windows:
    """Stretches of steps between two measurements of speed; arrays of equal length."""

    first: array = field(default_factory=lambda: array("q"))
    last: array = field(default_factory=lambda: array("q"))
    seconds: array = field(default_factory=lambda: array("d"))
    stall_s: array = field(default_factory=lambda: array("d"))
    compile_s: array = field(default_factory=lambda: array("d"))
    num_lost: array = field(default_factory=lambda: array("q"))
    """Steps of them that did not count in the end: done again, rolled back, or skipped as bad."""
    attempt: array = field(default_factory=lambda: array("q"))


class RunLog:
    """What a log has said so far."""

    def __init__(self):
        self.columns: dict[str, Column] = {}
        """Of `step` events, by key."""
        self.times = Column()
        """When each step was written, in Unix time."""
        self.evals: dict[int, Event] = {}
        self.texts: dict[tuple[int, str], str] = {}
        """(step, name) -> text."""
        self.scores: dict[str, Event] = {}
        """The latest `scores` event of each name: how the run's own held-out records were labelled."""
        self.memory: list[Event] = []
        self.marks: list[tuple[float, str, int | None, str]] = []
        """(time_s, kind, step, words) of MARKS."""
        self.num_marks_left_out = 0
        self.start: Event | None = None
        self.plan: Event | None = None
        self.ending: Event | None = None
        """`end` or `failed`, when no process has started since."""
        self.last: Event | None = None
        self.attempts: list[Attempt] = []
        self.windows = Windows()
        self.num_events = 0
        self.num_lost_steps = 0
        """Computed, and taken back by a restart from before them."""
        self._latest = -1
        self._window: list[tuple[int, bool]] = []
        """(step, is bad) of the steps since the last measurement of speed."""
        self._event_numbers: dict[Any, int] = {}
        """Evaluations and texts: the number of the event."""
        self._started: int | None = None

    def add_all(self, events: Iterable[Event]) -> int:
        """How many there were."""
        before = self.num_events
        for event in events:
            self.add(event)
        return self.num_events - before

    def add(self, event: Event) -> None:
        """Takes the next event. What is no number where one belongs is left out."""
        kind = event["event"]
        if kind == "step":
            self._add_step(event)
        else:
            step = event.get("step")
            if kind == "eval" and step is not None:
                self.evals[step] = event
                self._event_numbers["eval", step] = self.num_events
            elif kind == "text" and step is not None and isinstance(event.get("text"), str):
                name = str(event.get("name", "text"))
                self.texts[step, name] = clip(event["text"])
                self._event_numbers["text", step, name] = self.num_events
            elif kind == "scores" and isinstance(event.get("scores"), dict):
                self.scores[str(event.get("name", ""))] = event
            elif kind == "memory":
                self.memory.append(event)
            elif kind == "start":
                self._add_start(event)
            elif kind == "plan":
                self.plan = event
                if self.attempts and isinstance(event.get("first_step"), int):
                    self.attempts[-1].first_step = event["first_step"]
            elif kind in ("startup", "span"):
                self._add_span(event)
            elif kind == "rollback":
                self._lose_from(event.get("to"))
            elif kind in ("end", "failed"):
                self.ending = event
            if kind in MARKS:
                self._add_mark(event)
        time_s = number(event.get("time_s"))
        if self.attempts and kind in WORK and time_s is not None:
            attempt = self.attempts[-1]
            attempt.last_s = max(attempt.last_s, time_s)
            attempt.is_finished = kind == "end" or (attempt.is_finished and kind in ("memory", "span"))
        self.last = event
        self.num_events += 1

    def _add_start(self, event: Event) -> None:
        self.start, self.ending = event, None
        self._started = self.num_events
        self._window = []
        for column in (self.times, *self.columns.values()):
            column.num_earlier = len(column.steps)
        time_s = number(event.get("time_s")) or 0.0
        self.attempts.append(Attempt(time_s, time_s))

    def _add_span(self, event: Event) -> None:
        seconds, compile_s = (number(event.get(key)) or 0.0 for key in ("seconds", "compile_s"))
        time_s = number(event.get("time_s"))
        if not self.attempts or time_s is None:
            return
        attempt = self.attempts[-1]
        attempt.compile_s += compile_s
        if event["event"] == "startup":
            restore_s = number(event.get("restore_s")) or 0.0
            attempt.began_s = time_s - seconds
            attempt.restore_s += restore_s
            attempt.startup_s = max(0.0, seconds - restore_s - compile_s)
        else:
            name = str(event.get("kind"))
            attempt.spans[name] = attempt.spans.get(name, 0.0) + max(0.0, seconds - compile_s)

    def _add_step(self, event: Event) -> None:
        step = event.get("step")
        if not isinstance(step, int):
            return
        if step <= self._latest:
            self._go_back(step)
        self._latest = step
        columns = self.columns
        for key, value in event.items():
            if type(value) is not float:
                if key in ("event", "step", "batch_hash") or (value := number(value)) is None:
                    continue
            if key == "time_s":
                column = self.times
            else:
                column = columns.get(key)
                if column is None:
                    column = columns[key] = Column()
            column.steps.append(step)
            column.values.append(value)
        self._window.append((step, bool(event.get("train/num_bad_in_row"))))
        if "perf/step_time_s" in event:
            self._end_window(event)
        if self.attempts:
            self.attempts[-1].last_step = step

    def _end_window(self, event: Event) -> None:
        steps, windows = self._window, self.windows
        self._window = []
        seconds = (number(event.get("perf/step_time_s")) or 0.0) * len(steps)
        if not 0.0 <= seconds < 1e12:
            return
        stall = number(event.get("perf/stall_share")) or 0.0
        windows.first.append(steps[0][0])
        windows.last.append(steps[-1][0])
        windows.seconds.append(seconds)
        windows.stall_s.append(seconds * min(max(stall, 0.0), 1.0))
        windows.compile_s.append(min(max(number(event.get("perf/compile_s")) or 0.0, 0.0), seconds))
        windows.num_lost.append(sum(is_bad for _, is_bad in steps))
        windows.attempt.append(len(self.attempts) - 1)

    def _go_back(self, step: int) -> None:
        """What an earlier process wrote of this step and those after it is taken back."""
        num_before = len(self.times.steps)
        for column in (self.times, *self.columns.values()):
            num = len(column.steps) if self._started is None else column.num_earlier
            column.take_back(step, num)
        self.num_lost_steps += num_before - len(self.times.steps)
        started = -1 if self._started is None else self._started
        for key, number_ in list(self._event_numbers.items()):
            if key[1] >= step and not (self._started is not None and number_ > started):
                del self._event_numbers[key]
                if key[0] == "eval":
                    del self.evals[key[1]]
                else:
                    del self.texts[key[1], key[2]]
        self._lose_from(step - 1)

    def _lose_from(self, step: Any) -> None:
        """The steps after this one did not count: those of earlier windows are lost."""
        if not isinstance(step, int):
            return
        windows, i = self.windows, len(self.windows.last) - 1
        latest = len(self.attempts) - 1
        while i >= 0 and (windows.last[i] > step or windows.attempt[i] == latest):
            if windows.last[i] > step:
                num = windows.last[i] - max(windows.first[i], step + 1) + 1
                windows.num_lost[i] = max(windows.num_lost[i], num)
            i -= 1

    def _add_mark(self, event: Event) -> None:
        if len(self.marks) >= MAX_MARKS:
            self.num_marks_left_out += 1
            return
        step = event.get("step") if isinstance(event.get("step"), int) else None
        self.marks.append((number(event.get("time_s")) or 0.0, event["event"], step, _words(event)))

    def column(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of a key of the steps, ascending; empty where there is none."""
        column = self.times if key == "time_s" else self.columns.get(key, Column())
        steps, values = np.array(column.steps, np.int64), np.array(column.values, np.float64)
        if len(steps) > 1 and (np.diff(steps) <= 0).any():  # of a log that was edited
            order = np.argsort(steps, kind="stable")
            steps, values = steps[order], values[order]
            is_last = np.r_[steps[1:] != steps[:-1], True]
            steps, values = steps[is_last], values[is_last]
        return steps, values

    def eval_column(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of a key of the evaluations, ascending."""
        found = sorted(
            (step, value)
            for step, event in self.evals.items()
            if (value := number(event.get(key))) is not None
        )
        return np.array([s for s, _ in found], np.int64), np.array([v for _, v in found], np.float64)

    @property
    def eval_keys(self) -> list[str]:
        """All keys of evaluations, in the order they came."""
        keys: dict[str, None] = {}
        for event in self.evals.values():
            keys |= dict.fromkeys(key for key in event if key.startswith("eval/"))
        return list(keys)


def _words(event: Event) -> str:
    """What the time line says of an event."""
    kind = event["event"]
    if kind == "start":
        return clip(str(event.get("weights", "")), 300)
    if kind == "warning":
        return clip(str(event.get("text", "")), 600)
    if kind == "failed":
        return clip(str(event.get("error", "")), 600)
    if kind == "bad_step":
        parts = [f"{key} {event[key]}" for key in ("kind", "loss", "grad_norm", "first_bad") if key in event]
        return clip(", ".join(parts), 600)
    if kind == "rollback":
        return f"to the weights of step {event.get('to')}"
    return ""
