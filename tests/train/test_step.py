import dataclasses
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from slow import all_but

sys.path.insert(0, str(Path(__file__).parent))
import tiny

from jaxlm.parallel.sharding import place_batch
from jaxlm.train.config import OptimizerConfig
from jaxlm.train.optimizer import decay_mask, make_schedule


@functools.cache
def expected():
    return tiny.losses(5)


@pytest.mark.parametrize(
    ("sizes", "num_microbatches"),
    [({"fsdp": 8}, 2), ({"data": 2, "fsdp": 2, "tensor": 2}, 1), ({"data": 2, "fsdp": 2, "tensor": 2}, 2)],
)
def test_mesh_and_accumulation_do_not_change_training(sizes, num_microbatches):
    found = tiny.losses(5, sizes=sizes, num_microbatches=num_microbatches)
    np.testing.assert_allclose(found, expected(), rtol=1e-5)


def test_four_microbatches_equal_one():  # pain 1: sums, divided once, also with uneven weights
    np.testing.assert_allclose(tiny.losses(5, num_microbatches=4), expected(), rtol=1e-5)


SHALLOW = dataclasses.replace(tiny.MODEL, num_layers=1, layer_pattern="g", sliding_window=None)


@functools.cache
def gradients(num_microbatches, num_devices):
    """Of the mean loss of a batch, clipped, as the optimizer gets them: Adam's first mean is a tenth of them."""
    steps, mesh, state = tiny.begin(
        sizes={"data": num_devices}, num_microbatches=num_microbatches, model=SHALLOW
    )
    state, _ = steps.train(state, place_batch(tiny.batch(0), mesh, tiny.B))
    return jax.tree.map(np.asarray, optax.tree_utils.tree_get(state.opt_state, "mu"))


@pytest.mark.parametrize("num_devices", all_but((1, 4), (1, 2, 4)))
@pytest.mark.parametrize("num_microbatches", all_but((2, 4), (1, 2, 4)))
def test_gradients_are_the_same_however_a_batch_of_random_masks_is_cut(
    num_microbatches, num_devices
):  # pain 1
    weights = tiny.batch(0)["weights"]
    parts = np.stack([weights[part::4].sum() for part in range(4)])
    assert parts.max() > 1.3 * parts.min()  # a mean of means would show

    def assert_close(found, whole):
        assert np.linalg.norm(found - whole) <= 1e-6 * np.linalg.norm(whole)

    jax.tree.map(assert_close, gradients(num_microbatches, num_devices), gradients(1, 1))


def test_first_loss_is_that_of_a_uniform_guess():
    assert expected()[0] == pytest.approx(np.log(tiny.V), abs=0.1)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "lion", "muon"])
def test_every_optimizer_learns_a_batch(optimizer):
    steps, mesh = tiny.make(optimizer=optimizer)
    state, found = steps.init(jax.random.key(0)), []
    for _ in range(8):
        state, metrics = steps.train(state, place_batch(tiny.batch(0), mesh, tiny.B))
        found.append(float(metrics["loss"]))
    assert found[-1] < found[0] - 0.01


def poison(loss):
    def poisoned(params, batch, key=None):
        value, sums = loss(params, batch, key)
        factor = jnp.where(batch["tokens"][0, 0] == 1, jnp.nan, 1.0)
        return value * factor, sums

    return poisoned


def test_a_bad_step_changes_nothing_but_the_counters():
    steps, mesh, state = tiny.begin(loss_wrapper=poison)
    bad, good = tiny.batch(0), tiny.batch(1)
    bad["tokens"][0, 0], good["tokens"][0, 0] = 1, 2
    before = jax.tree.map(np.array, state)
    state, metrics = steps.train(state, place_batch(bad, mesh, tiny.B))
    jax.tree.map(np.testing.assert_array_equal, before.params, jax.tree.map(np.array, state.params))
    jax.tree.map(np.testing.assert_array_equal, before.opt_state, jax.tree.map(np.array, state.opt_state))
    assert (int(state.step), int(metrics["num_bad_in_row"]), int(metrics["num_bad"])) == (1, 1, 1)
    state, metrics = steps.train(state, place_batch(good, mesh, tiny.B))
    assert (int(metrics["num_bad_in_row"]), int(metrics["num_bad"])) == (0, 1)
    assert not np.array_equal(before.params["embedding"], np.array(state.params["embedding"]))


def test_a_spike_of_the_gradient_norm_is_a_bad_step():
    def loud(loss):
        def scaled(params, batch, key=None):
            value, sums = loss(params, batch, key)
            return value * jnp.where(batch["tokens"][0, 0] == 1, 1e4, 1.0), sums

        return scaled

    steps, mesh, state = tiny.begin(loss_wrapper=loud, spike_factor=10.0)
    for first, num_bad in ((2, 0), (1, 1), (2, 1)):
        batch = tiny.batch(0)
        batch["tokens"][0, 0] = first
        state, metrics = steps.train(state, place_batch(batch, mesh, tiny.B))
        assert int(metrics["num_bad"]) == num_bad


def test_dropout_is_keyed_by_step():
    model = dataclasses.replace(tiny.MODEL, dropout=0.3)
    steps, mesh = tiny.make(model=model)
    batch = place_batch(tiny.batch(0), mesh, tiny.B)

    def loss_at(step):
        state = steps.init(jax.random.key(0))._replace(step=jnp.asarray(step, jnp.int32))
        return float(steps.train(state, batch)[1]["loss"])

    assert loss_at(3) == loss_at(3)
    assert loss_at(3) != loss_at(4)


def test_the_batch_hash_is_the_sum_of_the_rows_fingerprints():
    steps, mesh, state = tiny.begin(sizes={"data": 1, "fsdp": 8, "tensor": 1})
    batch = tiny.batch(0)
    _, metrics = steps.train(state, place_batch(batch, mesh, tiny.B))
    assert int(metrics["batch_hash"]) == int(batch["fingerprint"].astype(np.uint64).sum() % 2**32)


def test_a_step_compiles_once():  # pain 22
    steps, mesh = tiny.make()
    state = steps.init(jax.random.key(0))
    for i in range(3):
        state, _ = steps.train(state, place_batch(tiny.batch(i), mesh, tiny.B))
    assert steps.train._cache_size() == 1


def test_evaluation_gives_the_same_bits_twice():  # pain 28
    steps, mesh, state = tiny.begin()
    batch = place_batch(tiny.batch(0), mesh, tiny.B)
    first, second = steps.evaluate(state.params, batch), steps.evaluate(state.params, batch)
    assert float(first.loss) == float(second.loss)


@pytest.mark.parametrize(
    ("schedule", "step", "rate"),
    [
        ("cosine", 0, 1 / 11),
        ("cosine", 10, 1.0),
        ("cosine", 55, 0.55),
        ("cosine", 100, 0.1),
        ("linear", 55, 0.55),
        ("constant", 99, 1.0),
        ("wsd", 80, 1.0),
        ("wsd", 95, 0.55),
        ("wsd", 100, 0.1),
    ],
)
def test_learning_rate_schedules(schedule, step, rate):
    config = OptimizerConfig(learning_rate=1.0, schedule=schedule, warmup_steps=10)
    assert float(make_schedule(config, 100)(step)) == pytest.approx(rate, abs=1e-6)


def test_weight_decay_spares_norms_biases_and_position_tables():
    tree = {
        "embedding": 0,
        "positions": 0,
        "final_norm": {"scale": 0, "bias": 0},
        "layers": {"attention": {"q": 0, "q_bias": 0}, "mlp": {"down": 0, "down_bias": 0}},
    }
    assert decay_mask(tree) == {
        "embedding": True,
        "positions": False,
        "final_norm": {"scale": False, "bias": False},
        "layers": {"attention": {"q": True, "q_bias": False}, "mlp": {"down": True, "down_bias": False}},
    }
