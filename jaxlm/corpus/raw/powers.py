"""Powers modulo 2**64, for hashes of n-grams that are polynomials: sums over a prefix give every n-gram's at once."""

from __future__ import annotations

import numpy as np

BASE = 0x9E3779B97F4A7C15
"""Odd, with bits all over."""
INVERSE = pow(BASE, -1, 1 << 64)
_MAX_KEPT = 1 << 17
_kept: dict[int, np.ndarray] = {}


def powers(count: int, base: int = BASE) -> np.ndarray:
    """At least the first `count` powers of the base, uint64."""
    known = _kept.get(base)
    if known is not None and count <= len(known):
        return known
    factors = np.full(max(count, 1024), base, np.uint64)
    factors[0] = 1
    table = np.multiply.accumulate(factors)
    if count <= _MAX_KEPT:
        _kept[base] = table
    return table
