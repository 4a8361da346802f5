"""A curve of any number of points as the few that a screen can show, with nothing striking left out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

NUM_BUCKETS = 500
"""Stretches of equal width, of which each keeps up to four points: about two for each pixel of a plot."""


class Curve(NamedTuple):
    """What is drawn of a column."""

    steps: np.ndarray
    values: np.ndarray
    """Finite."""
    mean_steps: np.ndarray
    """Empty where nothing was left out."""
    means: np.ndarray
    """Of the finite values of each stretch."""
    nonfinite: list[tuple[int, int]]
    """(first, last) step of each stretch of values that are NaN or infinite: all of them."""
    num_points: int
    """Of the column."""

    @property
    def is_whole(self) -> bool:
        """Whether every finite value is drawn."""
        return not len(self.mean_steps)


def decimate(steps: np.ndarray, values: np.ndarray, num_buckets: int = NUM_BUCKETS) -> Curve:
    """First, last, lowest and highest point of each bucket, so that a line through them covers the same pixels.

    Args:
      steps: ascending.
      values: of the same length.
    """
    finite = np.isfinite(values)
    gone = stretches(steps, ~finite)
    num_points = len(steps)
    steps, values = steps[finite], values[finite]
    nothing = np.zeros(0)
    if len(steps) <= 4 * num_buckets:
        return Curve(steps, values, nothing, nothing, gone, num_points)
    width = (steps[-1] - steps[0] + 1) / num_buckets
    bucket = ((steps - steps[0]) / width).astype(np.int64)
    starts = np.flatnonzero(np.r_[True, bucket[1:] != bucket[:-1]])
    ends = np.r_[starts[1:], len(steps)]
    # Sorted by bucket, then by value: the ends of each bucket's range are its lowest and highest point.
    order = np.lexsort((values, bucket))
    kept = np.unique(np.concatenate([starts, ends - 1, order[starts], order[ends - 1]]))
    counts = ends - starts
    means = np.add.reduceat(values, starts) / counts
    mean_steps = np.add.reduceat(steps.astype(np.float64), starts) / counts
    return Curve(steps[kept], values[kept], mean_steps, means, gone, num_points)


def stretches(steps: np.ndarray, marked: np.ndarray) -> list[tuple[int, int]]:
    """(first, last) step of each run of neighbours that are marked."""
    edges = np.diff(np.r_[0, marked.astype(np.int8), 0])
    firsts, lasts = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1
    return [(int(steps[a]), int(steps[b])) for a, b in zip(firsts, lasts)]
