"""JAX's splash kernel as we call it, interpreted on the CPU, against attention with the whole table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import slow

from jaxlm.models.attention import attend_dense
from jaxlm.models.attention_splash import attend_splash


@pytest.mark.parametrize(
    ("T", "K", "window", "softcap", "packed"),
    [
        slow(128, 2, None, None, False),
        slow(200, 1, None, 2.0, True),
        slow(256, 2, 40, None, True),
        (200, 1, 40, 2.0, True),  # all at once
    ],
)
def test_splash_and_its_gradients_are_those_of_dense_attention(T, K, window, softcap, packed):
    rng = np.random.default_rng(0)
    q, g = (jnp.asarray(rng.normal(size=(2, T, 2, 96)), jnp.float32) for _ in range(2))
    k, v = (jnp.asarray(rng.normal(size=(2, T, K, 96)), jnp.float32) for _ in range(2))
    segments = jnp.asarray(np.sort(rng.integers(0, 4, (2, T))), jnp.int32) if packed else None
    how = {"segments_BT": segments, "window": window, "softcap": softcap, "scale": 0.1}
    expected, pull = jax.vjp(lambda *qkv: attend_dense(*qkv, **how), q, k, v)
    actual, pull_splash = jax.vjp(lambda *qkv: attend_splash(*qkv, **how, interpret=True), q, k, v)
    for a, b in zip((actual, *pull_splash(g)), (expected, *pull(g)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
