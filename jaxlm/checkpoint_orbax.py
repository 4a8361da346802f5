"""Orbax, imported when it is first needed, and without its tracebacks of what we say in one line."""

from __future__ import annotations

import functools
import logging
import sys
from traceback import extract_tb
from types import TracebackType
from typing import Any


@functools.cache
def import_orbax() -> Any:
    """The module `orbax.checkpoint`."""
    import orbax.checkpoint as ocp

    # Orbax logs the traceback of a failed save and then raises it; one line from us is enough.
    logging.getLogger("absl").addFilter(_not_from_orbax)
    logging.getLogger("asyncio").addFilter(_not_a_write_of_orbax)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not _of_a_write_given_up(unraisable.exc_value, unraisable.exc_traceback):
            before(unraisable)

    sys.unraisablehook = hook
    return ocp


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _not_a_write_of_orbax(record: logging.LogRecord) -> bool:
    """Of the arrays of a save that fail, the first is raised; asyncio tells of the others when they are collected.

    They are tasks, futures of their chunks, and what gathers those: `Task`, `Future`, `_GatheringFuture`.
    """
    if "exception was never retrieved" not in record.msg:
        return True
    trace = record.exc_info[2] if record.exc_info else None
    places = [frame.filename for frame in extract_tb(trace)]
    return not any("orbax" in text for text in (record.msg, *places))


def _of_a_write_given_up(error: BaseException | None, traceback: TracebackType | None) -> bool:
    """When a save fails, Orbax ends its event loop; every other array then reports to it from a thread, in vain."""
    return (
        isinstance(error, RuntimeError)
        and str(error) == "Event loop is closed"
        and traceback is not None
        and traceback.tb_frame.f_code.co_name == "call_soon_threadsafe"
    )
