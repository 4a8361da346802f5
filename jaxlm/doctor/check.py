"""One check: it ends in bounded time, whatever it meets, and says one line. Imports no JAX."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from jaxlm.types import UserError

OK, WARN, FAIL = "ok", "warn", "FAIL"


class Doubt(Exception):
    """Raised by a check for what need not keep a run from starting; its text says what, and the way out."""


class Result(NamedTuple):
    """What came of a check."""

    name: str
    status: str
    """OK, WARN or FAIL."""
    text: str
    is_late: bool = False
    """It hit its time limit, and may still be waiting on a thread."""

    def line(self) -> str:
        """For people."""
        return f"{self.status:<4}  {self.name}: {self.text}"


Check = Callable[[], str | None]
"""Returns what it found in order; None: there was nothing to check. Raises UserError, or Doubt."""


def run_check(name: str, check: Check, limit_s: float) -> Result | None:
    """Runs a check on a thread, and leaves it behind when it takes longer than `limit_s`."""
    outcome: list[Result | None] = []
    thread = threading.Thread(target=lambda: outcome.append(run_here(name, check)), name=name, daemon=True)
    thread.start()
    thread.join(limit_s)
    if outcome:
        return outcome[0]
    text = (
        f"not done after {limit_s:.0f} s: something it reads or asks does not answer (a network disk, a device, "
        "another machine), or it is very large. Look at that first; a run would wait there too."
    )
    return Result(name, FAIL, text, True)


def run_here(name: str, check: Check) -> Result | None:
    """Runs a check that has time limits of its own."""
    try:
        text = check()
    except UserError as error:
        return Result(name, FAIL, one_line(error))
    except Doubt as doubt:
        return Result(name, WARN, one_line(doubt))
    except Exception as error:  # whatever a check meets, the others go on
        return Result(name, FAIL, f"{type(error).__name__}: {one_line(error)}")
    return None if text is None else Result(name, OK, text)


def one_line(error: Exception) -> str:
    """The text of an error, for one line."""
    return " ".join(str(error).split())


def size(num_bytes: float) -> str:
    """`1.5 GiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if num_bytes < 1024 or unit == "GiB":
            break
        num_bytes /= 1024
    return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:,.1f} {unit}"
