"""Cases that `make test-slow` runs, where quicker ones of the same test stay in `make test`."""

from collections.abc import Iterable

import pytest


def slow(*values, id=None):
    """One set of arguments of `pytest.mark.parametrize`, run by `make test-slow` only."""
    return pytest.param(*values, marks=pytest.mark.slow, id=id)


def all_but(quick: Iterable, values: Iterable) -> list:
    """Every value, in order; slow are all but the `quick` ones, which must be among them."""
    quick, values = tuple(quick), tuple(values)
    assert set(quick) < set(values), f"{quick} should be some of {values}"
    return [value if value in quick else slow(value) for value in values]
