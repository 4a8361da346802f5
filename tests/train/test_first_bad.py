"""The operation, layer and line that made the first bad value; tests/train/tiny.py has the model."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import tiny
from slow import slow

from jaxlm.models.build import build
from jaxlm.objectives import OBJECTIVES
from jaxlm.train.first_bad import first_bad_value, make_search
from jaxlm.train.optimizer import square_sums, square_sums_names


def test_nothing_is_found_where_all_is_finite_though_masks_are_infinite():
    def masked_mean(x):
        weights = jax.nn.softmax(jnp.where(x > 0, x, -jnp.inf))
        return (weights * x).sum()

    x = jnp.array([0.0, 1.0, 2.0])
    assert first_bad_value(masked_mean, x) is None
    assert first_bad_value(jax.grad(masked_mean), x) is None


@pytest.mark.parametrize(
    ("function", "x", "found"),
    [
        (lambda x: jnp.log(x).sum(), [1.0, -1.0], "nan out of log (test_first_bad.py"),
        (lambda x: jnp.exp(x).sum(), [1.0, 100.0], "inf out of exp (test_first_bad.py"),
        (lambda x: (jnp.exp(x) * 0.0).sum(), [1.0, 100.0], "nan out of mul (test_first_bad.py"),
        (lambda x: (x - 1.0).sum(), [1.0, jnp.nan], "nan in an argument itself, before anything is computed"),
        (lambda x: jax.jit(jnp.sqrt)(-x).sum(), [1.0], "nan out of sqrt (test_first_bad.py"),
        (lambda x: jax.lax.cond(x[0] > 0, jnp.log, jnp.exp, -x).sum(), [1.0], "nan out of log (test_first_bad.py"),
    ],
)  # fmt: skip
def test_the_operation_is_named(function, x, found):
    assert str(first_bad_value(function, jnp.array(x))).startswith(found)


def test_an_infinity_behind_a_nan_is_named_too():
    bad = first_bad_value(lambda x: (jnp.exp(x) - jnp.exp(2 * x)).sum(), jnp.array([100.0]))
    assert (bad.kind, bad.operation) == ("nan", "sub")
    assert bad.after_inf.startswith("exp (test_first_bad.py")


def test_a_gradient_alone_can_be_bad():
    def masked_root(x):
        return jnp.where(x > 0, jnp.sqrt(x), 0.0).sum()

    x = jnp.array([0.0, 1.0])
    assert first_bad_value(masked_root, x) is None
    bad = first_bad_value(jax.grad(masked_root), x)
    assert (bad.kind, bad.operation) == ("nan", "mul")
    assert "backward" in bad.scope


@pytest.fixture(scope="module")
def five_layers():
    """A scan of two periods, and a layer that is left over."""
    lm = build(dataclasses.replace(tiny.MODEL, num_layers=5), tiny.T)
    params = lm.init(jax.random.key(0))
    return OBJECTIVES["pretrain"].make_loss(lm), params


@pytest.mark.parametrize("layer", [slow(1), 2, 4])
def test_the_layer_is_named_in_a_scan_and_behind_it(five_layers, layer):
    loss, params = five_layers
    up = params["layers"]["mlp"]["up"].at[layer].set(1e38)
    params = {**params, "layers": {**params["layers"], "mlp": {**params["layers"]["mlp"], "up": up}}}
    bad = first_bad_value(lambda params: loss(params, tiny.batch(0))[0], params)
    assert bad.scope == f"layers[{layer}]/mlp"
    assert bad.line.startswith("dense.py:")


def test_a_weight_that_is_bad_itself_is_named_with_its_layer(five_layers):
    loss, params = five_layers
    params["layers"]["attention"]["o"] = params["layers"]["attention"]["o"].at[3, 0, 0, 0].set(jnp.inf)
    bad = first_bad_value(lambda params: loss(params, tiny.batch(0))[0], params)
    assert str(bad) == "inf in layers[3]/attention/o itself, before anything is computed"


def test_the_microbatch_that_is_bad_is_found():
    """Row i belongs to microbatch i % 4; row 6 is bad, so the third is."""
    searched = []

    def loss(params, batch, key=None):
        searched.append(batch["weights"].shape)
        return (params["w"] * jnp.log(batch["weights"])).sum(), None

    batch = {"weights": jnp.ones((8, 2)).at[6, 1].set(-1.0), "fingerprint": jnp.ones(8)}
    search = make_search(loss, 4, dropout_seed=None, constrain_batch=lambda batch: batch)
    assert str(search({"w": jnp.ones(())}, batch, 0, {})).startswith("nan out of log")
    assert set(searched) == {(2, 2)}
    assert search({"w": jnp.ones(())}, {"weights": jnp.ones((8, 2))}, 0, {}) is None


def test_names_of_the_square_sums_are_in_their_order():
    grads = {"b": jnp.array([1.0, jnp.nan]), "layers": {"a": jnp.ones((3, 2)).at[1, 0].set(jnp.inf)}}
    sums = jnp.concatenate([one.reshape(-1) for one in square_sums(grads)])
    names = square_sums_names(grads, first_layer=4)
    assert names == ["b", "layers[4]/a", "layers[5]/a", "layers[6]/a"]
    assert [n for n, good in zip(names, jnp.isfinite(sums).tolist()) if not good] == ["b", "layers[5]/a"]
