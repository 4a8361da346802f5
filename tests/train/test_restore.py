"""A checkpoint belongs to no mesh and no layout of layers: training goes on wherever it is read."""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
from checkpoint_states import KEEP_ALL

sys.path.insert(0, str(Path(__file__).parent))
import tiny

from jaxlm.checkpoint import Checkpoints
from jaxlm.checkpoint_meta import Meta
from jaxlm.parallel.sharding import place_batch

PLACES = [({"fsdp": 8}, True), (tiny.ONE, False), ({"fsdp": 2, "tensor": 2}, True)]
"""Devices, and whether one loop runs over all layers."""


def test_eight_devices_one_and_four_scanned_and_unrolled_train_one_run(tmp_path):  # pain 18
    states, losses = [], []
    for step, (sizes, scan_layers) in enumerate(PLACES):
        model = dataclasses.replace(tiny.MODEL, scan_layers=scan_layers)
        steps, mesh = tiny.make(sizes=sizes, model=model)
        if step == 0:
            state = steps.init(jax.random.key(0))
        else:
            shapes = jax.tree.map(
                lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
                jax.eval_shape(steps.init, jax.random.key(0)),
                steps.shardings,
            )
            with Checkpoints(tmp_path) as checkpoints:
                state = checkpoints.restore(shapes, step=step).state
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), states[-1])
        assert len(state.params["embedding"].sharding.device_set) == mesh.size
        state, metrics = steps.train(state, place_batch(tiny.batch(step), mesh, tiny.B))
        losses.append(float(metrics["loss"]))
        states.append(jax.device_get(state))
        with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
            checkpoints.save(state, Meta(step + 1))
    np.testing.assert_allclose(losses, tiny.losses(len(PLACES)), rtol=1e-5)
