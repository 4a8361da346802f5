"""The event log of a run, `<workdir>/events.jsonl`: one JSON object per line, only ever appended to.

    {"event": "step", "time_s": 1763971200.25, "step": 10, "train/loss": 6.2541823387145996, ...}

`event` is start, plan, step, eval, text, save, memory, warning, message, end, failed, or a word of the caller's;
`time_s` is Unix time. Floats are written so that reading gives back the same bits. NaN and infinities, which JSON has
not, are written as null and named beside it, `"train/loss": null, "nonfinite": {"train/loss": "nan"}`, so that every
number column of the file stays a column of numbers; `read_events` puts them back.

A resumed run writes the steps after its checkpoint once more. `last_of_each_step` lets the later one win.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from etils import epath

from jaxlm.data.files import disk_error
from jaxlm.limits import MAX_JSON_BYTES, MAX_NUMBER_BITS, check, parse_json
from jaxlm.paths import is_local
from jaxlm.redact import redact
from jaxlm.types import JSON_ERRORS, UserError

EVENTS = "events.jsonl"
MAX_FLAT_BYTES = 1 << 16
"""A line of an object without others in it that is no longer than this is read the quick way."""
UPLOAD_EVERY_S = 60.0
"""An object on gs:// cannot be appended to; it is replaced this often, and at the end."""


class EventLog:
    """Appends events to a file; safe between threads, and between processes of one machine.

    Each line reaches the file in one write under a lock, so lines of two processes never mix. A line that a killed
    process left half-written is cut off when the log is next opened or written to.

    Args:
      path: local, or on an object store, where the log is kept in memory and the object replaced every minute.
      enabled: False writes nothing: on all processes of a run but the first.
    """

    def __init__(self, path: epath.PathLike, *, enabled: bool = True):
        self.path = epath.Path(path)
        self.enabled = enabled
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._remote: io.BytesIO | None = None
        self._uploaded_at = 0.0
        if not enabled:
            return
        if is_local(self.path):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            except OSError as error:
                raise disk_error(self.path, error) or UserError(
                    f"{self.path} cannot be written: {error.strerror}. Choose another --workdir."
                ) from None
        else:
            self._remote = io.BytesIO()
            if self.path.exists():
                self._remote.write(_whole_lines(self.path.read_bytes()))

    def write(self, event: str, *, step: int | None = None, **fields: Any) -> None:
        """Appends one event. Values: numbers (also of numpy and jax), strings, lists and dicts of them, None."""
        self.write_many([(event, step, fields)])

    def write_many(self, events: Iterable[tuple[str, int | None, Mapping[str, Any]]]) -> None:
        """Appends (event, step, fields) in one go.

        Errors: UserError when the disk is full; what was written of the lines is taken back.
        """
        if not self.enabled:
            return
        now = time.time()
        text = "".join(encode_event(event, now, step, fields) + "\n" for event, step, fields in events)
        lines = text.encode(errors="backslashreplace")  # a lone surrogate becomes its JSON escape
        with self._lock:
            if self._descriptor is not None:
                self._append(self._descriptor, lines)
            elif self._remote is not None:
                self._remote.write(lines)
                if time.monotonic() - self._uploaded_at > UPLOAD_EVERY_S:
                    self._upload()
            else:
                raise ValueError(f"{self.path} was closed")

    def _append(self, descriptor: int, lines: bytes) -> None:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
        end = None
        try:
            end = _cut_torn_line(descriptor)
            rest = memoryview(lines)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError as error:
            if end is not None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                os.ftruncate(descriptor, end)
            raise disk_error(self.path, error) or error from None
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    def _upload(self) -> None:
        assert self._remote is not None
        self.path.write_bytes(self._remote.getvalue())
        self._uploaded_at = time.monotonic()

    def close(self) -> None:
        """Closes the file; closing twice does nothing."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
            elif self._remote is not None:
                self._upload()
            self._descriptor = self._remote = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ):
        self.close()


def encode_event(event: str, time_s: float, step: int | None, fields: Mapping[str, Any]) -> str:
    """One line, without its newline."""
    nonfinite: dict[str, str] = {}
    line: dict[str, Any] = {"event": event, "time_s": round(time_s, 3)}
    if step is not None:
        line["step"] = int(step)
    for key, value in fields.items():
        if key in ("event", "time_s", "step", "nonfinite"):
            raise ValueError(f"{key!r} is a key of the log's own")
        line[key] = _plain(value, key, nonfinite)
    if nonfinite:
        line["nonfinite"] = nonfinite
    return json.dumps(line, allow_nan=False, ensure_ascii=False)


def _plain(value: Any, path: str, nonfinite: dict[str, str]) -> Any:
    """The value with Python's own numbers, and None where one is not finite. Paths join keys with a tab."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, f"{path}\t{key}", nonfinite) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{path}\t{index}", nonfinite) for index, inner in enumerate(value)]
    if isinstance(value, str):
        return redact(value)
    if value is None or isinstance(value, bool | int):
        return value
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) > 0:
        return _plain(value.tolist(), path, nonfinite)
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        nonfinite[path] = repr(value)
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{path}: {type(value).__name__} is no JSON value")


def read_events(path: epath.PathLike) -> Iterator[dict[str, Any]]:
    """The events of a file, in order, one line in memory at a time. A half-written last line is left out.

    Errors: UserError when there is no such file, or a line that is not the last is no JSON object.
    """
    yield from EventReader(path).new_events()


class EventReader:
    """Reads a log that may still grow: each time what is new, one line in memory at a time.

    Args:
      on_bad_line: told of a line that is none of this log, which is then left out; None: such a line is an error.
    """

    def __init__(self, path: epath.PathLike, *, on_bad_line: Callable[[str], None] | None = None):
        self.path = epath.Path(path)
        self._on_bad_line = on_bad_line
        self._offset = 0
        self._number = 0
        """Of lines read."""

    def new_events(self) -> Iterator[dict[str, Any]]:
        """The events that came since the last time, in order. A half-written last line waits until it is whole.

        Errors: UserError when there is no such file, it became shorter than what was read of it, or a line that is not
        the last is no JSON object.
        """
        if not self.path.exists():
            raise UserError(f"There is no event log {self.path}. Check the path of the run.")
        with self.path.open("rb") as file:
            if self._offset:
                if file.seek(0, os.SEEK_END) < self._offset:
                    raise UserError(
                        f"{self.path} became shorter while it was read: it was edited, or another run has taken its "
                        "place. Start again."
                    )
                file.seek(self._offset)
            while line := file.readline(MAX_JSON_BYTES):
                if not line.endswith(b"\n") and len(line) < MAX_JSON_BYTES:
                    return
                self._offset += len(line)
                self._number += 1
                try:
                    event = _parse_event(line)
                except ValueError as error:
                    self._bad_line(error)
                    continue
                yield event

    def _bad_line(self, error: ValueError) -> None:
        said = f"{self.path}, line {self._number} is no JSON object of this log ({error})"
        if self._on_bad_line is None:
            raise UserError(f"{said}: the file was edited or damaged. Remove that line.") from None
        self._on_bad_line(said)


def tail_events(path: epath.PathLike, count: int) -> list[dict[str, Any]]:
    """The last `count` events, found from the end of the file: quick however long the log is."""
    path = epath.Path(path)
    size, window = path.stat().length, 1 << 16
    while True:
        with path.open("rb") as file:
            file.seek(max(0, size - window))
            lines = _whole_lines(file.read()).splitlines()
        if window < size:
            lines = lines[1:]  # cut by the window
        if len(lines) >= count or window >= size:
            try:
                return [_parse_event(line) for line in lines[-count:]]
            except ValueError as error:
                raise UserError(
                    f"One of the last {count} lines of {path} is no event of this log ({error}): the file was edited "
                    "or damaged. Remove that line."
                ) from None
        window *= 4


def _parse_event(line: bytes) -> dict[str, Any]:
    """Errors: ValueError when the line is none."""
    if len(line) < MAX_FLAT_BYTES and line.count(b"{") == 1 and b"[" not in line:
        try:
            event = json.loads(line)
        except JSON_ERRORS as error:
            raise ValueError(error) from None
        if _is_flat_event(event):
            return event
    try:
        event = parse_json(line)
    except JSON_ERRORS as error:
        raise ValueError(error) from None
    check(event, {"event": str, "time_s?": float, "step?": int, "nonfinite?": {str: str}})
    try:
        return _restore_nonfinite(event)
    except (LookupError, TypeError, ValueError):
        raise ValueError("'nonfinite' names a number that is not there") from None


def _is_flat_event(event: Any) -> bool:
    """Whether an object of plain values is an event for certain: what nearly every line is, at a fraction of the
    time of the checks for any value."""
    return (
        type(event) is dict
        and type(event.get("event")) is str
        and type(event.get("time_s", 0.0)) is float
        and math.isfinite(event.get("time_s", 0.0))
        and type(step := event.get("step", 0)) is int
        and 0 <= step < 1 << 63
        and "nonfinite" not in event
        and not any(type(value) is int and value.bit_length() > MAX_NUMBER_BITS for value in event.values())
    )


def _restore_nonfinite(event: dict[str, Any]) -> dict[str, Any]:
    for key, text in event.pop("nonfinite", {}).items():
        *outer, last = key.split("\t")
        holder: Any = event
        for name in outer:
            holder = holder[int(name) if isinstance(holder, list) else name]
        holder[int(last) if isinstance(holder, list) else last] = float(text)
    return event


def last_of_each_step(events: Iterable[dict[str, Any]], kind: str = "step") -> dict[int, dict[str, Any]]:
    """Step -> its event of this kind, ascending; what was written last wins.

    Where the steps of the log go back, a process resumed from a checkpoint: what an earlier one wrote of that step
    and those after it is taken back. (Rows of steps are written in bundles, perhaps after an evaluation of the last
    of them: what follows the `start` of the process that resumed is its own.)
    """
    found: dict[int, tuple[int, dict[str, Any]]] = {}
    latest, started = -1, None
    for number, event in enumerate(events):
        if event["event"] == "start":
            started = number
        step = event.get("step")
        if step is None:
            continue
        if event["event"] == "step":
            if step <= latest:
                found = {
                    s: (n, earlier)
                    for s, (n, earlier) in found.items()
                    if s < step or (started is not None and n > started)
                }
            latest = step
        if event["event"] == kind:
            found[step] = (number, event)
    return {step: event for step, (_, event) in sorted(found.items())}


def _cut_torn_line(descriptor: int, block: int = 1 << 16) -> int:
    """Truncates the file after its last newline; returns its size. The caller holds the lock."""
    end = size = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - block)
        if end == size and os.pread(descriptor, 1, size - 1) == b"\n":
            return size
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            os.ftruncate(descriptor, start + newline + 1)
            return start + newline + 1
        end = start
    if size:
        os.ftruncate(descriptor, 0)
    return 0


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]
