"""How far a number would move if the texts behind it were drawn again.

The unit that is drawn is a document (or the block of a long one), never a token: losses of neighbouring tokens go
together, and counting them as independent makes the error of a corpus several times too small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def of_mean(values: Sequence[float]) -> float | None:
    """Standard error of a mean of independent values; None for fewer than two."""
    if len(values) < 2:
        return None
    return float(np.std(np.asarray(values, np.float64), ddof=1) / math.sqrt(len(values)))


def of_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float | None:
    """Standard error of sum(numerators) / sum(denominators), where each pair is one drawn unit.

    Linearised (the delta method, which for a ratio is the cluster-robust variance): with r the ratio, units of n tokens
    and loss l have residuals l - r n, and the variance is k / (k - 1) sum(residual^2) / (sum n)^2. No resampling, so
    the same numbers give the same bits. None for fewer than two units.

    Source: Cochran 1977, Sampling Techniques, section 6.4; with k / (k - 1) as for clusters.
    """
    y, x = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    keep = x > 0
    y, x = y[keep], x[keep]
    num = len(x)
    if num < 2:
        return None
    residuals = y - y.sum() / x.sum() * x
    return float(math.sqrt(num / (num - 1) * float(np.square(residuals).sum())) / x.sum())
