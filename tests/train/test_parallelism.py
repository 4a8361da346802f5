"""Every kind of parallelism, alone and with each other one, trains the same: five steps on fake devices, within 1e-5.

Three at once, microbatches, and what a router reports: test_step.py and test_step_moe.py. Several processes:
test_processes.py.
"""

import functools
import itertools
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from slow import slow

sys.path.insert(0, str(Path(__file__).parent))
import tiny

from jaxlm.parallel.config import AXES
from jaxlm.parallel.sharding import place_batch
from jaxlm.train.config import TuneConfig
from jaxlm.train.tuning import EVERYTHING, Tuning

MODELS = {"dense": tiny.MODEL, "experts": tiny.EXPERTS}
NUM_STEPS = 5
ALONE = [{axis: 2} for axis in AXES]
# data x fsdp is the hybrid: weights are split over fsdp, and whole copies of them are in data.
PAIRS = [{axis: 2, other: 2} for axis, other in itertools.combinations(AXES, 2)]


def training(name, sizes):
    """[steps, (loss, gradient norm)]. So small a model hardly changes its loss when a layer is wrong; its norm does."""
    steps, mesh, state = tiny.begin(sizes=sizes, model=MODELS[name])
    found = []
    for i in range(NUM_STEPS):
        state, metrics = steps.train(state, place_batch(tiny.batch(i), mesh, tiny.B))
        found.append([float(metrics[key]) for key in ("loss", "grad_norm")])
    assert steps.train._cache_size() == 1
    return np.array(found)


@functools.cache
def expected(name):
    return training(name, tiny.ONE)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        # Data, fsdp and tensor: all at once in test_step.py, with experts in test_step_moe.py.
        (name, sizes) if (name, sizes) == ("dense", {"sequence": 2}) else slow(name, sizes)
        for name in MODELS
        for sizes in (*ALONE, *PAIRS)
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_training_is_the_same(name, sizes):
    np.testing.assert_allclose(training(name, sizes), expected(name), rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("axis", ["fsdp", "expert", "tensor"])
def test_an_axis_splits_what_it_says(name, axis):
    """So that the test above does not compare a run with itself."""
    steps, _ = tiny.make(sizes={axis: 2}, model=MODELS[name])
    shapes = jax.eval_shape(steps.init, jax.random.key(0)).params
    of_all = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    of_one = sum(
        int(np.prod(sharding.shard_shape(leaf.shape)))
        for leaf, sharding in zip(
            jax.tree.leaves(shapes), jax.tree.leaves(steps.shardings.params), strict=True
        )
    )
    assert of_one == of_all if (name, axis) == ("dense", "expert") else of_one < 0.7 * of_all


LORA = Tuning(TuneConfig(train="lora", lora_rank=2))


@pytest.mark.parametrize(
    ("name", "sizes", "tuning"),
    [
        slow("dense", {"fsdp": 4, "tensor": 2}, EVERYTHING),
        ("dense", {"fsdp": 4, "tensor": 2}, LORA),
        slow("dense", {"sequence": 2}, EVERYTHING),
        ("experts", {"data": 2, "expert": 4}, EVERYTHING),
    ],
)
def test_every_mesh_begins_with_the_same_weights(name, sizes, tuning):
    steps, _, expected = tiny.begin(sizes=sizes, model=MODELS[name], tuning=tuning)
    state = steps.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert jax.tree.all(
        jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, state, steps.shardings)
    )
