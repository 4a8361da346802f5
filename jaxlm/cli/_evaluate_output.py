"""What the parts of `jaxlm evaluate` write."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def json_line(value: Mapping[str, Any]) -> str:
    """One line of JSONL."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def write_output(flag: str, path: str, content: str) -> None:
    """Writes a file that a flag names."""
    from jaxlm.data.files import write_atomic
    from jaxlm.types import UserError

    try:
        write_atomic(path, content.encode("utf-8", "replace"))
    except UserError as error:
        raise UserError(f"{flag}: {error}") from None


def write_json(path: str | None, found: Mapping[str, Any]) -> bool:
    """Prints JSON (path `-`) or writes it to the file that --json names; whether it was printed."""
    if path == "-":
        print(json_line(found), end="")
        return True
    if path is not None:
        write_output("--json", path, json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    return False


def show_part(what: str, num_done: int, num_all: int) -> None:
    """A line that is overwritten, at a terminal."""
    if sys.stderr.isatty():
        end = "\n" if num_done == num_all else ""
        print(f"\r{num_done:,} of {num_all:,} {what}", end=end, file=sys.stderr, flush=True)


def number(value: float, digits: int = 4) -> str:
    """A value as tables have it."""
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:,.4g}"


def with_error(value: float, error: float | None, digits: int = 4) -> str:
    """`0.4310 +- 0.0157`; without what has none."""
    return number(value, digits) + ("" if error is None else f" ± {number(error, digits)}")


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns as wide as they need to be; those in `right` are aligned there."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(w) if c in right else cell.ljust(w) for c, (cell, w) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
