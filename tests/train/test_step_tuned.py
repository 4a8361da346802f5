"""Promises of a train step that trains a part of the weights; of the split itself, see test_tuning.py."""

import functools

import jax
import numpy as np
import pytest
import tiny
from slow import slow

from jaxlm.parallel.sharding import place_batch
from jaxlm.train.config import TuneConfig
from jaxlm.train.tuning import Tuning

LORA = Tuning(TuneConfig(train="lora", lora_rank=3, lora_dropout=0.1))
INT8 = Tuning(TuneConfig(train="lora", lora_rank=3, quantize="int8"))
NF4 = Tuning(TuneConfig(train="lora", lora_rank=3, quantize="nf4"))
LAST = Tuning(TuneConfig(train="last_blocks", num_blocks=1))
MESHES = [{"data": 1, "fsdp": 8, "tensor": 1}, {"data": 1, "fsdp": 4, "tensor": 2}]


@functools.cache
def on_one_device(tuning):
    return tiny.losses(5, tuning=tuning)


@pytest.mark.parametrize(
    ("tuning", "sizes", "num_microbatches"),
    [slow(LORA, MESHES[0], 1), slow(LORA, MESHES[1], 1), slow(LAST, MESHES[1], 1), slow(LAST, tiny.ONE, 2),
     (INT8, MESHES[1], 2), slow(NF4, MESHES[0], 1)],
)  # fmt: skip
def test_mesh_and_accumulation_do_not_change_training(tuning, sizes, num_microbatches):
    found = tiny.losses(5, sizes=sizes, num_microbatches=num_microbatches, tuning=tuning)
    np.testing.assert_allclose(found, on_one_device(tuning), rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", slow("muon"), slow("adafactor")])
def test_the_optimizer_holds_what_is_trained_and_nothing_else(optimizer):
    steps, mesh = tiny.make(tuning=LORA, optimizer=optimizer)
    state = steps.init(jax.random.key(0))
    before = jax.tree.map(np.asarray, state.params)
    num_trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) <= 2 * num_trained + 200
    losses = []
    for _ in range(3):
        state, metrics = steps.train(state, place_batch(tiny.batch(0), mesh, tiny.B))
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[0]
    changed = jax.tree.map(lambda a, b: bool(np.any(a != np.asarray(b))), before, state.params)
    assert all(jax.tree.leaves(changed))


def test_evaluation_sees_both_parts():
    steps, mesh = tiny.make(tuning=LAST)
    whole, _ = tiny.make()
    params, batch = tiny.first_params(tiny.MODEL), place_batch(tiny.batch(0), mesh, tiny.B)
    trained, frozen = LAST.split(params)
    louder = jax.tree.map(lambda w: 5.0 * w, trained)
    found = steps.evaluate(louder, batch)
    np.testing.assert_allclose(found.loss, whole.evaluate(LAST.whole(louder, frozen), batch).loss, rtol=1e-6)
    assert not np.isclose(found.loss, whole.evaluate(params, batch).loss, rtol=1e-3)
