"""Cosine and sine of RoPE's angles."""

import jax
import numpy as np
import pytest

from jaxlm.models.angles import cos_sin


@pytest.mark.parametrize("highest", [1, 100, 8192, 200_000])
def test_as_exact_as_float32_can_say(highest):
    angles = np.random.default_rng(0).uniform(0, highest, 200_000).astype(np.float32)
    cos, sin = jax.jit(cos_sin)(angles)
    exact = angles.astype(np.float64)
    np.testing.assert_allclose(cos, np.cos(exact), rtol=0, atol=1e-7)
    np.testing.assert_allclose(sin, np.sin(exact), rtol=0, atol=1e-7)


def test_positions_of_a_long_context():
    """The first channel turns by one radian a token: whole numbers, of which many are close to a quarter turn."""
    positions = np.arange(200_001, dtype=np.float32)
    cos, sin = jax.jit(cos_sin)(positions)
    np.testing.assert_allclose(cos, np.cos(positions.astype(np.float64)), rtol=0, atol=1e-7)
    np.testing.assert_allclose(sin, np.sin(positions.astype(np.float64)), rtol=0, atol=1e-7)


def test_nothing_is_turned_by_zero_and_signs_are_kept():
    cos, sin = cos_sin(np.float32([0.0, -1.0, 1.0, -4.0]))
    assert cos[0] == 1
    assert sin[0] == 0
    np.testing.assert_allclose(cos, np.cos([0.0, -1.0, 1.0, -4.0]), atol=1e-7)
    np.testing.assert_allclose(sin, np.sin([0.0, -1.0, 1.0, -4.0]), atol=1e-7)
