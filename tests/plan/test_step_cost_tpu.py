"""Promise of the step's cost on real TPU programs: FLOPs and bytes on the wire are those that arithmetic says.

Needs libtpu (pip install 'libtpu==0.0.42.*' for jax 0.10.2), which compiles for chips that are not there; without it
the tests are skipped. They take about half a minute in all.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm import run_compile
from jaxlm.plan.hardware import CHIPS
from jaxlm.plan.step_cost import read_step, step_time
from jaxlm.plan.topology import parse

pytestmark = pytest.mark.usefixtures("tpu_compiler")


def mesh_of(topology, num_devices, num_slices=1):
    devices = run_compile.devices_of(parse(topology, num_slices))
    grid = np.array(devices[: num_devices * num_slices]).reshape(num_slices, num_devices)
    return Mesh(grid, ("data", "fsdp"))


def compiled_text(function, *arrays):
    return jax.jit(function).lower(*arrays).compile().as_text()


def array(mesh, shape, spec=None, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec or P()))


@pytest.mark.parametrize(("chip", "topology"), [("v5e", "v5e:2x2"), ("v5p", "v5p:2x2x1"), ("v6e", "v6e:2x2")])
def test_a_product_has_its_flops_and_cycles_near_the_peak(chip, topology):
    mesh = mesh_of(topology, 1)
    text = compiled_text(jnp.matmul, array(mesh, (8192, 8192)), array(mesh, (8192, 8192)))
    cost = read_step(text, CHIPS[chip])
    assert cost.flops == 2 * 8192**3
    assert cost.matmul_cycles == cost.cycles > 0
    times = step_time(cost, CHIPS[chip])
    assert times.roofline_s == pytest.approx(2 * 8192**3 / CHIPS[chip].training_flops_per_s)
    assert times.bound == "compute"
    assert 1 < times.cycles_s / times.roofline_s < 1.5


def test_the_gradient_of_a_scan_with_remat_counts_every_layer():
    """Each of 12 layers: forward, forward again, two products backward; the first needs no gradient of its input."""
    mesh = mesh_of("v5e:2x2", 1)

    def layer(x, w):
        return jax.nn.relu(x @ w), None

    def loss(ws, x):
        return (jax.lax.scan(jax.checkpoint(layer), x, ws)[0].astype(jnp.float32) ** 2).mean()

    text = compiled_text(jax.grad(loss), array(mesh, (12, 1024, 1024)), array(mesh, (2048, 1024)))
    cost = read_step(text, CHIPS["v5e"])
    product = 2 * 2048 * 1024 * 1024
    assert cost.flops / product in (12 * 4, 12 * 4 - 1)
    assert {loop.trip_count for loop in cost.loops} <= {11, 12}
    assert (cost.unknown, cost.uncosted, cost.collectives) == ((), {}, ())


def fsdp_step(mesh, ws, x):
    """Four layers with remat and weights split over fsdp, batch over everything: one step of gradient descent.

    The golden text of test_step_cost.py is this one's, 1,024 rows of x a device, on two slices of v6e:2x4 with
    jax 0.11.1 and libtpu 0.0.46.
    """
    rows = NamedSharding(mesh, P(("data", "fsdp"), None))

    def layer(x, w):
        return jax.lax.with_sharding_constraint(jax.nn.relu(x @ w.astype(jnp.bfloat16)), rows), None

    def loss(ws):
        return (jax.lax.scan(jax.checkpoint(layer), x, ws)[0].astype(jnp.float32) ** 2).mean()

    split = NamedSharding(mesh, P(None, "fsdp", None))
    return ws - 0.1 * jax.lax.with_sharding_constraint(jax.grad(loss)(ws), split)


@pytest.mark.parametrize("num_slices", [1, 2])
def test_a_sharded_step_sends_what_it_must(num_slices):
    mesh = mesh_of("v6e:2x4", 8, num_slices)
    rows = 1024 * mesh.size
    text = compiled_text(
        lambda ws, x: fsdp_step(mesh, ws, x),
        array(mesh, (4, 2048, 2048), P(None, "fsdp", None), jnp.float32),
        array(mesh, (rows, 2048), P(("data", "fsdp"), None)),
    )
    cost = read_step(text, CHIPS["v6e"])
    check_fsdp_cost(cost, num_slices)


def check_fsdp_cost(cost, num_slices):
    assert cost.flops == 4 * 4 * 2 * 1024 * 2048 * 2048
    layer_bytes = 2 * 2048 * 2048  # in bfloat16
    by_kind = {}
    for row in cost.collectives:
        sent, across = by_kind.get(row.kind, (0, 0))
        by_kind[row.kind] = sent + row.wire_bytes, across + row.across_slices_bytes
    # Weights are gathered forward and again backward, gradients are scattered, and each eighth of them crosses.
    assert by_kind["all-gather"] == (8 * layer_bytes * 7 / 8, 0)
    assert by_kind["reduce-scatter"] == (4 * layer_bytes * 7 / 8, 0)
    if num_slices == 2:
        assert by_kind["all-reduce"] == (4 * layer_bytes / 8, 4 * layer_bytes / 8)
    assert (cost.unknown, cost.uncosted) == ((), {})
