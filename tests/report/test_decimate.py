"""A decimated curve covers the pixels of the whole one, and hides no spike and no NaN."""

import numpy as np

from jaxlm.report.decimate import NUM_BUCKETS, decimate, stretches


def test_each_bucket_keeps_its_first_last_lowest_and_highest_point():
    rng = np.random.default_rng(0)
    steps = np.sort(rng.choice(1_000_000, 100_000, replace=False)) + 1
    values = rng.normal(size=len(steps))
    values[54_321] = 1e6  # one step of a hundred thousand
    values[77_777] = -1e6
    found = decimate(steps, values)
    assert len(found.steps) <= 4 * NUM_BUCKETS
    assert {1e6, -1e6} <= set(found.values.tolist())
    assert (np.diff(found.steps) > 0).all()
    assert (
        dict(zip(steps.tolist(), values.tolist())).items()
        >= dict(zip(found.steps.tolist(), found.values.tolist())).items()
    )
    width = (steps[-1] - steps[0] + 1) / NUM_BUCKETS
    for i in rng.choice(NUM_BUCKETS, 20):
        inside = ((steps - steps[0]) / width).astype(int) == i
        drawn = ((found.steps - steps[0]) / width).astype(int) == i
        assert found.values[drawn].min() == values[inside].min()
        assert found.values[drawn].max() == values[inside].max()
        np.testing.assert_allclose(found.means[i], values[inside].mean())
    assert found.num_points == 100_000


def test_every_value_that_is_not_finite_is_told_of():
    values = np.arange(10_000.0)
    values[[3, 500, 501, 502, 9_999]] = [np.nan, np.inf, np.nan, -np.inf, np.nan]
    found = decimate(np.arange(10_000), values)
    assert found.nonfinite == [(3, 3), (500, 502), (9_999, 9_999)]
    assert np.isfinite(found.values).all()
    assert decimate(np.arange(3), np.full(3, np.nan)).nonfinite == [(0, 2)]


def test_a_short_curve_is_drawn_whole():
    steps = np.arange(4 * NUM_BUCKETS)
    found = decimate(steps, np.sin(steps))
    assert found.is_whole
    assert np.array_equal(found.values, np.sin(steps))
    assert decimate(np.zeros(0, int), np.zeros(0)).num_points == 0
    assert stretches(np.arange(3), np.zeros(3, bool)) == []
