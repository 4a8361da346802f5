"""Dataclass sections <-> ConfigDict, command line and JSON; did-you-mean. Imports no JAX."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from jaxlm.types import UserError


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most like `word`, or None where none is alike."""
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return found[0] if found else None


def check_choice(key: str, value: object, choices: Iterable[str]) -> None:
    """Raises a UserError that lists the choices, and the nearest one, unless `value` is one of them."""
    names = list(choices)
    if value in names:
        return
    match = nearest(str(value), names)
    hint = f"; did you mean {match!r}?" if match else "."
    raise UserError(f"{key}={value!r} is not one of {', '.join(names)}{hint}")


def divisors(n: int) -> list[int]:
    """All positive divisors of n, ascending."""
    return [d for d in range(1, n + 1) if n % d == 0]
