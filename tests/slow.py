"""Cases that `make test-slow` runs, where quicker ones of the same test stay in `make test`."""

import re
import zlib
from collections.abc import Callable, Iterable

import pytest


def slow(*values, id=None):
    """One set of arguments of `pytest.mark.parametrize`, run by `make test-slow` only."""
    return pytest.param(*values, marks=pytest.mark.slow, id=id)


def all_but(quick: Iterable, values: Iterable) -> list:
    """Every value, in order; slow are all but the `quick` ones, which must be among them."""
    quick, values = tuple(quick), tuple(values)
    assert set(quick) < set(values), f"{quick} should be some of {values}"
    return [value if value in quick else slow(value) for value in values]


def in_share(share: str) -> Callable[[str], bool]:
    """`2/3` -> whether a test of this name is in the second of three shares, which are about as large."""
    match = re.fullmatch("([0-9]+)/([0-9]+)", share)
    k, n = map(int, match.groups()) if match else (0, 0)
    if not 1 <= k <= n:
        raise pytest.UsageError(f"--share={share} should be K/N, with K from 1 to N, as in --share=2/3")
    return lambda name: zlib.crc32(name.encode()) % n == k - 1
