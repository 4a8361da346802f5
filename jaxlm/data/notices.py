"""What happens while data is read, and is no error yet: counted, told, and remembered for the event log.

    data_retry     a read failed in a way that may pass, and is tried again: file, record, error, attempt, wait_s
    data_stall     a read has taken a minute, and another one: file, record, waited_s
    data_rebuilt   something in the cache was damaged, and was made again: file, reason
    data_verified  a corpus without checksums (an older one) was read whole, and is what its manifest says

With `step` where a training batch is being read. A store and what is built on it share one `Notices`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from etils import epath

from jaxlm.paths import is_local
from jaxlm.types import UserError

RETRY_WAITS_S = (0.5, 2.0, 8.0, 20.0)
"""Before each further try of a read. A mount that is gone for longer ends the run."""
STALL_S = 60.0
"""A read that takes longer is told of, and again after each further such time."""
TRANSIENT = {
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EINTR", "EBUSY", "ENETDOWN", "ENETUNREACH", "ENETRESET",
                 "ECONNABORTED", "ECONNRESET", "ECONNREFUSED", "EHOSTDOWN", "EHOSTUNREACH", "EREMOTEIO", "ENOTCONN")
    if hasattr(errno, name)
}  # fmt: skip
"""Errors of a disk, mount or network that may pass."""
_LASTING = (
    "NOT_FOUND",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "INVALID_ARGUMENT",
    "DATA_LOSS",
    "UNIMPLEMENTED",
)
"""Words of array_record's errors on remote files that no second try would change."""

_T = TypeVar("_T")


class Notices:
    """Takes notices from any thread; passes them on once somebody listens, and prints them for people.

    Before that (a run opens its data before it has an event log) they are kept for who comes.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._listener: Callable[..., None] | None = None
        self._waiting: list[tuple[str, dict[str, Any]]] = []
        self._reads: dict[int, list[Any]] = {}  # thread -> [file, where, since, number of notices]
        self._steps: dict[int, tuple[int, threading.Event]] = {}  # thread -> the step whose batch it reads
        self._num_watching = 0
        self._stop = threading.Event()

    def __reduce__(self):
        return Notices, ()

    def __call__(self, event: str, **fields: Any) -> None:
        """Counts the event, prints a line about it, and passes it on to the listener."""
        self._tell(event, fields, threading.get_ident())

    def _tell(self, event: str, fields: dict[str, Any], thread: int) -> None:
        if (known := self._steps.get(thread)) is not None:
            fields = {"step": known[0], **fields}
        with self._lock:
            self._counts[event] += 1
            count, listener = self._counts[event], self._listener
            if listener is None:
                self._waiting.append((event, fields))
        if event != "data_retry" or str(count).strip("0") == "1":  # the 1st, 10th, 100th...: they may be many
            print(f"jaxlm: {_line(event, fields, count)}", file=sys.stderr, flush=True)
        if listener is not None:
            listener(event, **fields)

    def connect(self, listener: Callable[..., None]) -> None:
        """From now on listener(event, **fields) hears of everything, at first of what happened before."""
        with self._lock:
            self._listener, waiting = listener, self._waiting
            self._waiting = []
        for event, fields in waiting:
            listener(event, **fields)

    def counts(self) -> dict[str, int]:
        """How often each event came, of those that did."""
        with self._lock:
            return dict(self._counts)

    def metrics(self) -> dict[str, float]:
        """For the rows of steps: empty as long as nothing happened."""
        names = {"data_retry": "data/num_retries", "data_stall": "data/num_stalls"}
        return {names[event]: float(n) for event, n in self.counts().items() if event in names}

    @contextlib.contextmanager
    def at_step(self, step: int, unwanted: threading.Event | None = None) -> Iterator[None]:
        """What this thread reads meanwhile is for the batch of this step, and not tried again once it is unwanted."""
        self._steps[threading.get_ident()] = step, unwanted or threading.Event()
        try:
            yield
        finally:
            self._steps.pop(threading.get_ident(), None)

    def retrying(self, read: Callable[[], _T], file: epath.PathLike, **where: Any) -> _T:
        """What `read` returns, tried again when it fails in a way that may pass; watched while it lasts.

        Args:
          file: that is read; `where`: in it, such as record=3.

        Errors: UserError once the last try has failed too. Errors that do not pass come through at once.
        """
        thread, began, attempt = threading.get_ident(), time.monotonic(), 0
        while True:
            attempt += 1
            self._reads[thread] = [file, where, time.monotonic(), 0]
            try:
                return read()
            except Exception as error:
                if not may_pass(error, file):
                    raise
                reason = " ".join(str(error).split()) or type(error).__name__
            finally:
                self._reads.pop(thread, None)
            _, unwanted = self._steps.get(thread) or (0, threading.Event())
            if attempt > len(RETRY_WAITS_S) or unwanted.is_set():
                raise UserError(
                    f"{os.fspath(file)} cannot be read, {attempt} tries in {time.monotonic() - began:.0f} s: {reason}. "
                    "Look at its disk, mount or network, then run the same command again: it continues at the last "
                    "checkpoint."
                )
            wait_s = RETRY_WAITS_S[attempt - 1]
            self("data_retry", file=os.fspath(file), **where, error=reason, attempt=attempt, wait_s=wait_s)
            unwanted.wait(wait_s)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Meanwhile a thread of its own tells of reads that take long. Several at once share it."""
        with self._lock:
            self._num_watching += 1
            if self._num_watching == 1:
                self._stop = threading.Event()
                name = "jaxlm watches reads"
                threading.Thread(target=self._watch, args=(self._stop,), name=name, daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._num_watching -= 1
                if self._num_watching == 0:
                    self._stop.set()

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(STALL_S / 10):
            for thread, read in list(self._reads.items()):
                file, where, since, told = read
                waited_s = time.monotonic() - since
                if waited_s >= STALL_S * (told + 1):
                    read[3] += 1
                    self._tell(
                        "data_stall",
                        {"file": os.fspath(file), **where, "waited_s": round(waited_s, 1)},
                        thread,
                    )


def may_pass(error: BaseException, file: epath.PathLike) -> bool:
    """Whether a read that failed like this may succeed a moment later."""
    if isinstance(error, UserError | FileNotFoundError | PermissionError):
        return False
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in TRANSIENT
    if found := re.search(r"\[errno (\d+)\]", str(error)):  # of array_record, for local files
        return int(found.group(1)) in TRANSIENT
    of_storage = isinstance(error, OSError | RuntimeError) or type(error).__module__ != "builtins"
    return of_storage and not is_local(file) and not any(word in str(error) for word in _LASTING)


def _line(event: str, fields: dict[str, Any], count: int) -> str:
    """For people."""
    place, record, step = fields.get("file"), fields.get("record"), fields.get("step")
    place = f"{place}{'' if record is None else f', record {record:,}'}"
    place += "" if step is None else f" (for step {step:,})"
    if event == "data_retry":
        times = f"; retry {count:,} of this run" if count > 1 else ""
        return f"warning: {place}: {fields['error']}; tried again in {fields['wait_s']:g} s{times}"
    if event == "data_stall":
        return f"warning: reading {place} has taken {fields['waited_s']:.0f} s so far"
    if event == "data_rebuilt":
        return f"warning: {place} was damaged ({fields['reason']}) and is made again"
    return f"note: {place}: {fields.get('reason', event)}"
