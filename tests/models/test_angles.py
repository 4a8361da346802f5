"""Cosine and sine of RoPE's angles."""

import jax
import numpy as np
import pytest

from jaxlm.models.angles import cos_sin


# As one program, whose products and sums may be fused and then are rounded once; and one by one, as TPUs round them.
@pytest.mark.parametrize("run", [jax.jit(cos_sin), cos_sin], ids=["fused", "one by one"])
@pytest.mark.parametrize(
    ("highest", "tolerance"), [(1, 1e-7), (100, 1e-7), (8192, 1e-7), (200_000, 1e-7), (1_000_000, 3e-4)]
)
def test_as_exact_as_float32_can_say(highest, tolerance, run):
    """Any angles, and whole numbers: the first channel turns by one radian a token."""
    angles = np.random.default_rng(0).uniform(0, highest, 200_000).astype(np.float32)
    for x in (angles, np.round(angles)):
        cos, sin = run(x)
        np.testing.assert_allclose(cos, np.cos(x.astype(np.float64)), rtol=0, atol=tolerance)
        np.testing.assert_allclose(sin, np.sin(x.astype(np.float64)), rtol=0, atol=tolerance)


def test_nothing_is_turned_by_zero_and_signs_are_kept():
    cos, sin = cos_sin(np.float32([0.0, -1.0, 1.0, -4.0]))
    assert cos[0] == 1
    assert sin[0] == 0
    np.testing.assert_allclose(cos, np.cos([0.0, -1.0, 1.0, -4.0]), atol=1e-7)
    np.testing.assert_allclose(sin, np.sin([0.0, -1.0, 1.0, -4.0]), atol=1e-7)
