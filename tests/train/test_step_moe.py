"""A mixture of experts trains the same however its batch is cut and its experts are spread."""

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from optax.contrib import MuonDimensionNumbers
from slow import slow

sys.path.insert(0, str(Path(__file__).parent))
import tiny

from jaxlm.parallel.sharding import place_batch
from jaxlm.train.optimizer import muon_dims

MODEL = tiny.EXPERTS
ROUTER = ("balance_loss", "router_z_loss", "busiest_expert")


def batch(step):
    """Every third row ends in padding."""
    made = tiny.batch(step)
    is_padding = (np.arange(tiny.B)[:, None] % 3 == 0) & (np.arange(tiny.T)[None] >= 11)
    made["segments"] = np.where(is_padding, 0, made["segments"]).astype(np.int32)
    made["weights"] = np.where(is_padding, 0, made["weights"]).astype(np.float32)
    return made


def training(num_steps=3, model=MODEL, **kwargs):
    """[steps, (loss, gradient norm, what the router reports)]."""
    steps, mesh, state = tiny.begin(model=model, **kwargs)
    found = []
    for i in range(num_steps):
        state, metrics = steps.train(state, place_batch(batch(i), mesh, tiny.B))
        found.append([float(metrics[name]) for name in ("loss", "grad_norm", *ROUTER)])
    return np.array(found)


@functools.cache
def expected():
    return training()


@pytest.mark.parametrize(
    ("sizes", "num_microbatches"),
    [
        slow(tiny.ONE, 4),
        slow({"expert": 8}, 2),
        slow({"expert": 4, "tensor": 2}, 4),
        slow({"data": 2, "fsdp": 2, "expert": 2}, 1),
        ({"fsdp": 2, "expert": 2, "tensor": 2}, 4),
    ],
)
def test_mesh_and_accumulation_do_not_change_training(sizes, num_microbatches):
    found = training(sizes=sizes, num_microbatches=num_microbatches)
    np.testing.assert_allclose(found, expected(), rtol=1e-5)


def test_the_router_is_reported_beside_the_loss_and_changes_with_its_weight():
    loss, _, balance, z, busiest = expected()[0]
    assert loss == pytest.approx(np.log(tiny.V), abs=0.1)
    assert 0.99 < balance < 1.5
    assert z == pytest.approx(np.log(8) ** 2, rel=0.05)
    assert 1 < busiest < 8 / 3
    without = training(1, dataclasses.replace(MODEL, balance_loss=0.0, router_z_loss=0.0))[0]
    np.testing.assert_allclose(without[[0, 2, 3, 4]], expected()[0][[0, 2, 3, 4]], rtol=1e-6)
    assert without[1] != pytest.approx(expected()[0][1], rel=1e-3)


def test_evaluation_is_cross_entropy_alone():
    steps, mesh, state = tiny.begin(model=MODEL, sizes={"expert": 2})
    sums = steps.evaluate(state.params, place_batch(batch(0), mesh, tiny.B))
    assert sums.router is None
    assert float(sums.loss / sums.weight) == pytest.approx(expected()[0][0], rel=1e-5)


@pytest.mark.parametrize("optimizer", [slow("adamw"), "muon"])
def test_every_optimizer_learns_a_batch(optimizer):
    steps, mesh = tiny.make(optimizer=optimizer, model=MODEL)
    state, found = steps.init(jax.random.key(0)), []
    for _ in range(8):
        state, metrics = steps.train(state, place_batch(batch(0), mesh, tiny.B))
        found.append(float(metrics["loss"]))
    assert found[-1] < found[0] - 0.01


def test_muon_takes_each_expert_of_each_layer_for_a_matrix_and_leaves_the_router_alone():
    leaf = np.zeros((2, 8, 16, 4))
    tree = {"layers": {"moe": dict.fromkeys(("router", "up", "down"), leaf), "mlp": {"up": leaf[:, 0]}}}
    dims = muon_dims(tree)["layers"]
    assert dims["moe"]["router"] is None
    assert dims["moe"]["up"] == dims["moe"]["down"] == MuonDimensionNumbers((2,), (3,))
    assert dims["mlp"]["up"] == MuonDimensionNumbers((1,), (2,))


def test_weights_live_where_their_experts_do():
    steps, _ = tiny.make(model=MODEL, sizes={"fsdp": 2, "expert": 2, "tensor": 2})
    layers = steps.shardings.params["layers"]["moe"]
    shapes = jax.eval_shape(steps.init, jax.random.key(0)).params["layers"]["moe"]
    for name, sharding in layers.items():
        of_one = np.prod(sharding.shard_shape(shapes[name].shape))
        assert np.prod(shapes[name].shape) // of_one == (4 if name == "router" else 8), name
