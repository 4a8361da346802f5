"""The kernels of experts compute what `ragged_dot` does, from weights in parts, and read no row that is not theirs.

In interpret mode, on a CPU; rows that a kernel does not write are NaN there, as they may be on a TPU.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from slow import slow

from jaxlm.collective import Split
from jaxlm.models import grouped, moe, sizes
from jaxlm.models.config import ModelConfig
from jaxlm.models.grouped import Kernel
from jaxlm.models.grouped_kernel import (
    most_visits,
    multiply,
    pick_rows,
    pick_weights,
    supports,
    visit,
    weight_grad,
)
from jaxlm.models.vector_memory import VMEM_BYTES

ROOMY, NARROW = Kernel(64 * 2**20, interpret=True), Kernel(1, interpret=True)
"""NARROW takes the smallest blocks there are: several steps along every dim."""
GROUPS = [
    [100, 0, 300, 112],  # two groups begin within a block, one is empty
    [512],
    [0, 0, 512],
    [128, 128, 0, 256, 0],  # every group begins with a block, the last is empty
    [1, 510, 1],
    [77, 0, 30],  # most rows belong to nobody
    [0, 0],
]


def make(sizes_E, parts, rows_of_part, columns, dtype=jnp.float32, num_rows=512):
    """-> a_MR, b_MC, w_SErC, sizes_E; rows beyond the groups are NaN."""
    rng, E, num = np.random.default_rng(0), len(sizes_E), sum(sizes_E)
    a, b = (rng.normal(size=(num_rows, width)) for width in (parts * rows_of_part, columns))
    a[num:], b[num:] = np.nan, np.nan
    w = rng.normal(size=(parts, E, rows_of_part, columns))
    return *(jnp.asarray(x, dtype) for x in (a, b, w)), jnp.asarray(sizes_E, jnp.int32)


def whole(w_SErC):
    return jnp.moveaxis(w_SErC, 0, 1).reshape(w_SErC.shape[1], -1, w_SErC.shape[3])


def assert_close(found, expected, tolerance):
    found, expected = (np.asarray(x, np.float32) for x in (found, expected))
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(initial=0), 1e-9)
    )


BLOCKS = {
    "roomy-16-parts": (ROOMY, 16, 16),
    "roomy-2-parts": (ROOMY, 2, 192),
    "roomy-whole": (ROOMY, 1, 512),
    "narrow-2-parts": (NARROW, 2, 192),
    "narrow-whole": (NARROW, 1, 256),
}


@pytest.mark.parametrize(
    ("blocks", "sizes_E"),
    [
        (blocks, sizes_E)
        if (blocks == "narrow-2-parts" and sizes_E in (GROUPS[0], [0, 0]))
        or (blocks in ("roomy-16-parts", "narrow-whole") and sizes_E == GROUPS[0])
        else slow(blocks, sizes_E)
        for sizes_E in GROUPS
        for blocks in BLOCKS
    ],
    ids=str,
)
def test_they_are_the_products_of_each_group(blocks, sizes_E):
    kernel, parts, rows_of_part = BLOCKS[blocks]
    a, b, w, sizes_E = make(sizes_E, parts, rows_of_part, 384)
    num, w_ERC = int(sizes_E.sum()), whole(w)
    assert supports(512, w)
    y = multiply(a, w, sizes_E, kernel, contract_columns=False)
    assert_close(y[:num], grouped._rows(a, w_ERC, sizes_E)[:num], 3e-6)
    y = multiply(b, w, sizes_E, kernel, contract_columns=True)
    assert_close(y[:num], grouped._rows_back(b, w_ERC, sizes_E)[:num], 3e-6)
    both = multiply(b, w, sizes_E, kernel, contract_columns=True, onto=a)
    assert_close(both[:num], y[:num] + a[:num], 3e-6)
    dw = weight_grad(a, b, sizes_E, parts, jnp.float32, kernel)
    assert dw.shape == w.shape
    masked = (jnp.where(jnp.arange(512)[:, None] < num, x, 0) for x in (a, b))
    assert_close(whole(dw), grouped._weight_grad(*masked, sizes_E), 3e-6)


@pytest.mark.parametrize("kernel", [ROOMY, NARROW], ids=["roomy", "narrow"])
def test_bfloat16_is_rounded_once(kernel):
    a, b, w, sizes_E = make([100, 0, 300, 112], 8, 32, 384, jnp.bfloat16)
    exact = functools.partial(jnp.asarray, dtype=jnp.float32)
    y = multiply(a, w, sizes_E, kernel, contract_columns=False)
    assert y.dtype == jnp.bfloat16
    assert_close(y, grouped._rows(exact(a), exact(whole(w)), sizes_E).astype(jnp.bfloat16), 4e-3)
    grad = weight_grad(a, b, sizes_E, 8, jnp.float32, kernel)
    assert_close(whole(grad), grouped._weight_grad(exact(a), exact(b), sizes_E), 3e-6)
    assert weight_grad(a, b, sizes_E, 8, jnp.bfloat16, kernel).dtype == jnp.bfloat16


def test_a_compiler_is_told_what_a_device_with_a_quarter_of_the_experts_has_to_expect():
    a, b, w, sizes_E = make([77, 0, 30], 2, 128, 384)
    kernel = ROOMY._replace(rows_here=0.25)
    calls = [
        functools.partial(multiply, a, w, sizes_E, kernel, contract_columns=False),
        functools.partial(multiply, b, w, sizes_E, kernel, contract_columns=True),
        functools.partial(weight_grad, a, b, sizes_E, 2, jnp.float32, kernel),
    ]
    for call in calls:
        (told,) = (
            e.params["cost_estimate"] for e in jax.make_jaxpr(call)().eqns if "cost_estimate" in e.params
        )
        assert told.flops == 2 * 128 * 256 * 384
        assert told.bytes_accessed == 4 * (3 * 256 * 384 + 128 * (256 + 384))


@pytest.mark.parametrize("sizes_E", GROUPS, ids=str)
def test_each_row_of_a_group_is_visited_once_and_each_group_at_least_once(sizes_E):
    found = visit(jnp.asarray(sizes_E, jnp.int32), 512, 128)
    num, seen = int(found.num[0]), []
    assert num <= most_visits(512, 128, len(sizes_E)) == len(found.group)
    for v in range(num):
        first = 128 * int(found.block[v])
        rows = range(max(first, int(found.start[v])), min(first + 128, int(found.stop[v])))
        seen += [(int(found.group[v]), row) for row in rows]
    assert seen == list(zip(np.repeat(np.arange(len(sizes_E)), sizes_E), range(sum(sizes_E)), strict=True))
    assert set(found.group.tolist()) == set(range(len(sizes_E)))
    # A block of the result stays in vector memory until the next one comes: it must not come twice.
    assert (np.diff(found.group) >= 0).all()
    assert (np.diff(found.block) >= 0).all()
    assert found.block.max() < 4


@pytest.mark.parametrize(
    ("num_rows", "shape", "dtype", "is_taken"),
    [
        (512, (4, 8, 64, 256), jnp.bfloat16, True),
        (4, (1, 8, 256, 256), jnp.bfloat16, False),  # decoding
        (512, (1, 8, 256, 200), jnp.bfloat16, False),
        (512, (32, 8, 8, 256), jnp.bfloat16, False),  # parts of half a tile
        (512, (32, 8, 8, 256), jnp.float32, True),
        (512, (1, 8, 256, 256), jnp.float64, False),
    ],
)
def test_what_they_take(num_rows, shape, dtype, is_taken):
    assert supports(num_rows, jax.ShapeDtypeStruct(shape, dtype)) == is_taken


@pytest.mark.parametrize("chip", sorted(VMEM_BYTES))
@pytest.mark.parametrize("size", ["mixtral-8x7b", "mixtral-8x22b", "qwen3-30b-a3b", "qwen3-235b-a22b"])
@pytest.mark.parametrize("parts", [1, 16])
def test_blocks_fit_the_vector_memory_of_every_chip(size, chip, parts):
    config, vmem = sizes.size(size), VMEM_BYTES[chip]
    M, E, R, C = 4096 * config.num_experts_per_token, config.num_experts, config.embed_dim, config.mlp_width
    for columns in (False, True):
        b, needed = pick_rows(M, E, R, R // parts, C, 2, vmem, columns)
        assert needed <= vmem // 2
        assert {M % b.m, R % b.r, C % b.c} == {0}
        assert 2 * (b.m * b.r + b.r * b.c + b.m * b.c) * 2 <= needed
    b, needed = pick_weights(M, E, R, R // parts, C, 2, 4, vmem)
    assert 2 * (b.m * (b.r + b.c)) * 2 + 3 * 4 * b.r * b.c <= needed <= vmem // 2


def test_many_rows_of_a_group_stay_for_its_weights():
    """Mixtral on a v5p: all 4,096 rows of the weights are there at once, so each group's weights are read once."""
    b, _ = pick_rows(32768, 8, 4096, 64, 14336, 2, VMEM_BYTES["TPU v5"], False)
    assert b.r == 4096


@pytest.mark.parametrize("dim", [1, slow(2)])
def test_parts_of_devices_are_used_as_they_arrive(dim):
    """Values and gradients on four devices that hold parts of the weights, against one that has them all."""
    E, num, (wide, narrow) = 3, 256, (256, 128)
    rng = np.random.default_rng(1)
    I, O = (wide, narrow) if dim == 1 else (narrow, wide)
    x = jnp.asarray(rng.normal(size=(4 * num, I)), jnp.float32)
    mix = jnp.asarray(rng.normal(size=(4 * num, O)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(E, I, O)), jnp.float32)
    sizes_E = jnp.asarray([100, 0, 156], jnp.int32)
    mesh = Mesh(np.array(jax.devices()[:4]), ("fsdp",))
    spec = PartitionSpec(None, *(["fsdp", None] if dim == 1 else [None, "fsdp"]))

    def run(x, w, mix, split, kernel):
        def twice(x, w):
            ys = grouped.grouped(x, {"a": w, "b": 2 * w}, sizes_E, {"a": split, "b": split}, kernel)
            return ys["a"] + 3 * ys["b"]

        y, pull = jax.vjp(twice, x, w)
        return y, *pull(mix)

    def on_devices(kernel):
        rows = PartitionSpec("fsdp")
        local = functools.partial(run, split=Split("fsdp", dim), kernel=kernel)
        specs = {"in_specs": (rows, spec, rows), "out_specs": (rows, rows, spec)}
        return jax.jit(jax.shard_map(local, mesh=mesh, check_vma=False, **specs))(x, w, mix)

    each = [run(x[i : i + num], w, mix[i : i + num], None, None) for i in range(0, 4 * num, num)]
    expected = [jnp.concatenate([one[i] for one in each]) for i in (0, 1)] + [sum(one[2] for one in each)]
    for kernel in (None, ROOMY):
        for found, right in zip(on_devices(kernel), expected, strict=True):
            assert_close(found, right, 1e-6)


@pytest.mark.parametrize("first", [slow(None), 2])
def test_experts_of_other_devices_leave_no_trace(first):
    """`first`: the device has experts 2 and 3 of 6, and most rows belong to others."""
    config = ModelConfig(
        vocab_size=32,
        embed_dim=128,
        num_layers=1,
        num_heads=2,
        mlp_dim=256,
        num_experts=6,
        num_experts_per_token=2,
    )
    rng, here = np.random.default_rng(2), slice(None) if first is None else slice(first, first + 2)
    shapes = {"up": (6, 128, 256), "gate": (6, 128, 256), "down": (6, 256, 128)}
    weights = {
        name: jnp.asarray(rng.normal(0, 0.1, shape), jnp.float32)[here] for name, shape in shapes.items()
    }
    x, mix = (jnp.asarray(rng.normal(size=(128, 128)), jnp.float32) for _ in range(2))
    experts = jnp.asarray(np.argsort(rng.random((128, 6)))[:, :2], jnp.int32)
    shares = jnp.asarray(rng.random((128, 2)), jnp.float32)

    def grads(kernel):
        def loss(x, shares, weights):
            y = moe.mix(config, x, experts, shares, weights, first=first or 0, kernel=kernel)
            return (y * mix).sum(), y

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(x, shares, weights)

    for expected, found in zip(*map(jax.tree.leaves, (grads(None), grads(ROOMY))), strict=True):
        assert np.isfinite(found).all()
        assert_close(found, expected, 2e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_compiled_for_a_tpu_the_weights_of_experts_are_copied_nowhere(tpu_devices, topology, dtype):
    device = tpu_devices(topology)[0]
    place = jax.sharding.SingleDeviceSharding(device)
    kernel = Kernel(VMEM_BYTES[device.device_kind])
    M, S, E, r, C = 4096, 16, 8, 64, 1408
    a, b, w, sizes_E = ((M, S * r), dtype), ((M, C), dtype), ((S, E, r, C), dtype), ((E,), jnp.int32)
    arrays = (jax.ShapeDtypeStruct(*shape, sharding=place) for shape in (a, b, w, sizes_E, a))

    def run(a, b, w, sizes_E, onto):
        there = multiply(a, w, sizes_E, kernel, contract_columns=False)
        back = multiply(b, w, sizes_E, kernel, contract_columns=True)
        both = multiply(b, w, sizes_E, kernel, contract_columns=True, onto=onto)
        return both, there, back, weight_grad(a, b, sizes_E, S, dtype, kernel)

    program = jax.jit(run, donate_argnums=4).lower(*arrays).compile().as_text()
    assert program.count('custom_call_target="tpu_custom_call"') == 4
    large = [line for line in program.splitlines() if " copy(" in line or " transpose(" in line]
    wrong = [line for line in large if f"[{S},{E},{r},{C}]" in line or f"[{M}," in line]
    assert not wrong
