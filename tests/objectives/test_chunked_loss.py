import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.objectives.chunked_loss import chunked_loss, num_chunks
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import make_spread

B, T, D, V = 3, 12, 8, 20


def head(params, x):
    return 4.0 * jnp.tanh(x @ params["table"].T / 4.0)


def naive(params, x, targets, weights, z_loss):
    logits = head(params, x)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    nats = log_z - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return (weights * (nats + z_loss * log_z**2)).sum(), (weights * nats).sum()


def inputs():
    rng = np.random.default_rng(0)
    params = {"table": jnp.asarray(rng.normal(size=(V, D)), jnp.float32)}
    x = jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32)
    weights = jnp.asarray(rng.random((B, T)) < 0.7, jnp.float32)
    return params, x, jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32), weights


@pytest.mark.parametrize("chunk_tokens", [B, 3 * B, 6 * B, 1000])  # 12, 4 and 2 chunks in a scan, and 1
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_value_and_gradients_are_those_of_the_whole_table(chunk_tokens, z_loss):
    params, x, targets, weights = inputs()

    def ours(params, x):
        return chunked_loss(head, params, x, targets, weights, chunk_tokens, z_loss)

    expected = naive(params, x, targets, weights, z_loss)
    np.testing.assert_allclose(ours(params, x), expected, rtol=1e-5)
    got = jax.grad(lambda p, x: 3.0 * ours(p, x)[0], argnums=(0, 1))(params, x)
    want = jax.grad(lambda p, x: 3.0 * naive(p, x, targets, weights, z_loss)[0], argnums=(0, 1))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


def test_the_whole_table_of_logits_never_exists():
    rows, length, vocabulary = 4, 64, 512
    params = {"table": jnp.zeros((vocabulary, D))}
    x, ints = jnp.zeros((rows, length, D)), jnp.zeros((rows, length), jnp.int32)

    def loss(params, x):
        return chunked_loss(head, params, x, ints, jnp.ones((rows, length)), 16, 0.0)[0]

    text = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, x))
    assert f"f32[{rows * 4},{vocabulary}]" in text
    assert f"f32[{rows * length},{vocabulary}]" not in text
    assert f"f32[{rows},{length},{vocabulary}]" not in text


def test_chunks_divide_the_length_and_fit():
    assert num_chunks(12, 3, 9) == 4
    assert num_chunks(7, 1, 3) == 7
    assert num_chunks(8, 4, 1000) == 1


@pytest.mark.parametrize(("axis", "is_first"), [("fsdp", True), ("data", False)])
def test_a_split_heads_gradient_is_scattered_before_that_of_the_states_goes_on(axis, is_first):
    """Else it is whole on every device until the blocks' backward pass ends. One that all hold stays whole anyway."""
    place = make_spread(make_mesh({axis: 8})).ends()
    rows = jax.ShapeDtypeStruct((8, T), jnp.int32)

    def loss(table, x, targets, weights):
        return chunked_loss(head, {"table": table}, x, targets, weights, 4, 0.0, place)[0]

    arrays = jax.ShapeDtypeStruct((V, D), jnp.float32), jax.ShapeDtypeStruct((8, T, D), jnp.float32)
    lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arrays, rows, rows)
    assert ("optimization_barrier" in lowered.as_text()) == is_first
