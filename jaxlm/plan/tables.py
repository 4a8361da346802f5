"""Tables in YAML, the package's own and the user's: read once, checked, with errors that name file, row and key."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxlm.config import check_choice
from jaxlm.data.yaml_files import read_yaml
from jaxlm.limits import short
from jaxlm.types import UserError


def read(path: Path, keys: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:
    """The top level of a YAML file, which has to have `keys`. Errors: UserError for a file that is not such a table."""
    return fields(read_yaml(path, "a table in YAML"), str(path), keys, optional)


def fields(row: Any, where: str, keys: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:
    """The row, if it is a mapping that has all `keys` and no others but those in `optional`."""
    keys = [*keys]
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: needs the keys {', '.join(keys)}, but is {_shown(row)}.")
    for key in row:
        check_choice(f"{where}: key", key, [*keys, *optional])
    for key in keys:
        if row.get(key) is None:
            raise UserError(f"{where}: {key} is missing; it has to have {', '.join(keys)}.")
    return dict(row)


def rows(value: Any, where: str) -> list[Any]:
    """A list with at least one entry."""
    if not isinstance(value, list) or not value:
        raise UserError(f"{where} has to be a list of rows, but is {_shown(value)}.")
    return value


def number(value: Any, where: str, *, above: float = 0.0, at_most: float = math.inf) -> float:
    """A finite number in (above, at_most]. YAML reads 3e8 as text, so text that is a number counts as one."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        out = float(value)
    except (ValueError, OverflowError):
        raise UserError(f"{where}={_shown(value)} has to be a number.") from None
    if not math.isfinite(out) or not above < out <= at_most:
        limit = "" if at_most == math.inf else f" and at most {at_most:g}"
        raise UserError(f"{where}={value} has to be a finite number above {above:g}{limit}.")
    return out


def text(value: Any, where: str) -> str:
    """Words, not empty."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where} has to be text, but is {_shown(value)}.")
    return value.strip()


def url(value: Any, where: str) -> str:
    """Where a figure was read."""
    out = text(value, where)
    if not re.match(r"https?://\S+$", out):
        raise UserError(f"{where}={out!r} has to be a URL: say where the figure was read.")
    return out


def date(value: Any, where: str) -> str:
    """A day (2026-11-24) or a month (2025-02), as text."""
    out = str(value)
    try:
        day(out)
    except ValueError:
        raise UserError(
            f"{where}={out!r} has to be a day such as 2026-11-24, or a month such as 2026-11."
        ) from None
    return out


def day(value: str) -> datetime.date:
    """The day of a `date`; of a month, its first, so that age is never understated."""
    return datetime.date.fromisoformat(value if len(value) > 7 else f"{value}-01")


def _shown(value: Any) -> str:
    return short(value)
