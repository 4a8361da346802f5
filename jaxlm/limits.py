"""How much of what comes from outside is read: bytes, depth, numbers, names. Imports no JAX.

    values = read_json(folder / "manifest.json")        # raises one of JSON_ERRORS
    check(values, {"format": int, "splits": {str: {"num_tokens": int}}})

A file from somebody else may be ten gigabytes of brackets, a line that expands a thousandfold, or a list of files
that starts with `../`. What is refused here is refused before memory or time is spent on it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from jaxlm.types import UserError

MAX_JSON_BYTES = 64 << 20
"""Of a file that describes something (a config, an index, a manifest), and of a line of JSON."""
MAX_JSON_VALUES = 10_000_000
"""In one text of JSON: an empty list takes 3 bytes of text, and 64 of memory."""
MAX_DEPTH = 100
"""Brackets inside brackets. Python's own limit lies at 1,000 or 10,000, and what reads the value may have none."""
MAX_NUMBER_BITS = 1023
"""Of a whole number: beyond it no float is as large."""
MAX_NAME_CHARS = 1024
"""Of the name of a file in a list of files."""
MALFORMED = (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)
"""What code raises that was handed a value of another kind than it expects."""


class TooLarge(ValueError):
    """Content beyond a limit; the text says which."""


class Row(NamedTuple):
    """For `check`: a list with just these entries."""

    entries: tuple[Any, ...]


def read_bytes(path: epath.PathLike, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The content of a file that is no longer than the limit. Errors: TooLarge, and those of the file system."""
    with epath.Path(path).open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise TooLarge(f"it has more than {max_bytes:,} bytes, the most that is read of such a file")
    return content


def read_json(path: epath.PathLike, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The value of a JSON file. Errors: JSON_ERRORS, and those of the file system."""
    return parse_json(read_bytes(path, max_bytes))


def parse_json(
    content: bytes | str,
    *,
    max_values: int = MAX_JSON_VALUES,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """`json.loads` that gives up early.

    Args:
      pairs: makes an object of its (name, value) pairs.

    Errors: JSON_ERRORS; for a limit, TooLarge, which is one of them.
    """
    marks = (",", "[", "{") if isinstance(content, str) else (b",", b"[", b"{")
    if len(content) > max_values and sum(map(content.count, marks)) > max_values:  # pyright: ignore[reportArgumentType]
        raise TooLarge(f"it has more than {max_values:,} values, the most that are read")
    value = json.loads(content, object_pairs_hook=pairs)
    _check_value(value)
    return value


def _check_value(value: Any) -> None:
    """Depth and numbers, level by level: without recursion, which has a limit of its own."""
    level = [value]
    for depth in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for one in level:
            if depth == MAX_DEPTH and type(one) in (dict, list):
                raise TooLarge(f"it has brackets more than {MAX_DEPTH} deep")
            if type(one) is dict:
                inner += one.values()
            elif type(one) is list:
                inner += one
            elif type(one) is int and one.bit_length() > MAX_NUMBER_BITS:
                raise TooLarge("a number in it has more than 308 digits")
        if not inner:
            return
        level = inner


def check(value: Any, shape: Any, where: str = "") -> None:
    """Compares a value of JSON with what it has to look like.

    Args:
      shape: int (0 or more, below 2**63), float (finite), str, bool, dict, list, None; a tuple: one of several;
        [inner]: a list; {str: inner}: an object; {"name": inner, "other?": inner}: one that has these names, the second
        perhaps, and any others; a Row: a list of fixed length.

    Errors: ValueError that names the first place that differs.
    """
    if reason := _difference(value, shape, where):
        raise ValueError(reason)


_NAMES = {int: "a whole number, 0 or more", float: "a number", str: "a text", bool: "true or false",
          dict: "an object", list: "a list", None: "null"}  # fmt: skip


def _difference(value: Any, shape: Any, where: str) -> str | None:
    if isinstance(shape, Row):
        if not isinstance(value, list) or len(value) != len(shape.entries):
            return f"{where or 'it'} is {short(value)}, not a list of {len(shape.entries)}"
        inner = ((one, part, f"{where}[{i}]") for i, (one, part) in enumerate(zip(value, shape.entries)))
    elif isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where or 'it'} is {short(value)}, not a list"
        inner = ((one, shape[0], f"{where}[{i}]") for i, one in enumerate(value))
    elif isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return f"{where or 'it'} is {short(value)}, not an object"
        prefix = f"{where}." if where else ""
        if str in shape:
            inner = ((one, shape[str], f"{prefix}{short(key, 40)}") for key, one in value.items())
        else:
            names = {key.removesuffix("?"): key for key in shape}
            if missing := [n for n, key in names.items() if n not in value and not key.endswith("?")]:
                return f"{where or 'it'} has no {', '.join(missing)}"
            inner = ((value[n], shape[key], f"{prefix}{n}") for n, key in names.items() if n in value)
    else:
        kinds = shape if isinstance(shape, tuple) else (shape,)
        if any(_is(value, kind) for kind in kinds):
            return None
        return f"{where or 'it'} is {short(value)}, not {' or '.join(_NAMES.get(k, 'such') for k in kinds)}"
    return next((found for part in inner if (found := _difference(*part))), None)


def _is(value: Any, kind: Any) -> bool:
    if kind is None:
        return value is None
    if kind is int:
        return type(value) is int and 0 <= value < 1 << 63
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if isinstance(kind, type):
        return isinstance(value, kind)
    return _difference(value, kind, "") is None


def short(value: Any, length: int = 60) -> str:
    """`repr`, cut off: a value from outside may have a million characters, or stand for a billion."""
    out = repr(value[: length + 1]) if isinstance(value, str | bytes) else reprlib.repr(value)
    return out if len(out) <= length else f"{out[: length - 3]}..."


def is_inside(name: str) -> bool:
    """Whether a name in a list of files stays in the folder of the list: no `..`, no other root, no odd characters."""
    parts = name.split("/")
    return (
        0 < len(name) <= MAX_NAME_CHARS
        and name.isprintable()
        and "\\" not in name
        and "://" not in name
        and not any(part in ("", ".", "..") for part in parts)
    )


@contextlib.contextmanager
def malformed(path: epath.PathLike, way_out: str) -> Iterator[None]:
    """Turns what code raises that stumbles over a value from outside into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except MALFORMED as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{os.fspath(path)} is damaged ({type(error).__name__}{f': {reason}' if reason else ''}). {way_out}"
        ) from error
