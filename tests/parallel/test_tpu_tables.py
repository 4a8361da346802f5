"""What is decided for chips without one: options of the compiler, and meshes that split a dimension of the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.parallel import xla_options
from jaxlm.parallel.mesh import _whole_dimensions_first
from jaxlm.parallel.xla_options import OPTIONS, options_for
from jaxlm.plan.hardware import CHIPS


def test_options_are_those_of_chips_that_there_are():
    kinds = {kind for chip in CHIPS.values() for kind in chip.device_kinds}
    assert set(OPTIONS) <= kinds
    assert options_for("NVIDIA H100 80GB HBM3", "bfloat16") == {}


AVX2, AVX512 = frozenset({"avx2"}), frozenset({"avx2", "avx512f"})


def test_products_are_eigens_where_that_is_faster(monkeypatch):
    memory, eigen = xla_options.ORDER_FOR_MEMORY, xla_options.EIGEN_PRODUCTS
    assert xla_options.cpu_options("float32", AVX2, (0, 10)) == memory | eigen
    assert xla_options.cpu_options("float32", AVX2, (0, 11)) == memory | eigen
    assert xla_options.cpu_options("float32", AVX512, (0, 10)) == memory
    assert xla_options.cpu_options("float32", frozenset(), (0, 10)) == memory  # an ARM, or not Linux
    assert xla_options.cpu_options("bfloat16", AVX2, (0, 10)) == memory
    assert xla_options.cpu_options("float32", AVX2, (0, 12)) == memory | eigen
    assert xla_options.cpu_options("float32", AVX2, (0, 13)) == {}  # may not know them
    monkeypatch.setattr(xla_options, "cpu_features", lambda: AVX2)
    monkeypatch.setattr(xla_options, "jaxlib_version", lambda: (0, 10))
    assert options_for("cpu", "float32") == memory | eigen


def compiled_for_cpu(function, *shapes, donate=()):
    """With the options of float32 on a processor without AVX-512: XLA knows them all, or no model would train there."""
    options = xla_options.cpu_options("float32", AVX2, xla_options.jaxlib_version())
    if not options:
        pytest.skip("this jaxlib is offered none")
    shaped = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    return jax.jit(function, compiler_options=options, donate_argnums=donate).lower(*shaped).compile()


def test_the_option_leaves_sums_to_the_other_library():
    compiled = compiled_for_cpu(lambda a, b: (a @ b, a.sum(-1)), (512, 512), (512, 512))
    lines = [line for line in compiled.as_text().splitlines() if "ynn_fusion(" in line or " dot(" in line]
    assert any(" dot(" in line and "[512,512]" in line for line in lines)
    assert all("[512]{0}" in line for line in lines if "ynn_fusion(" in line)


def test_moments_are_changed_where_they_lie():
    def step(params, mean, square, grads):
        good = jnp.isfinite(grads).all()
        new_mean, new_square = 0.9 * mean + 0.1 * grads, 0.99 * square + 0.01 * grads**2
        new_params = params - new_mean / (jnp.sqrt(new_square) + 1e-8)
        old, new = (params, mean, square), (new_params, new_mean, new_square)
        return jax.tree.map(lambda new, old: jnp.where(good, new, old), new, old)

    compiled = compiled_for_cpu(step, *[(512, 512)] * 4, donate=(0, 1, 2))
    assert compiled.memory_analysis().temp_size_in_bytes < 512 * 512 * 4


def test_sparse_cores_run_the_collectives_of_chips_that_have_them():
    offload = "xla_tpu_enable_sparse_core_collective_offload_"
    offloads = {
        kind: {key.removeprefix(offload) for key in options_for(kind, "bfloat16") if offload in key}
        for kind in OPTIONS
    }
    assert offloads.pop("TPU v5 lite") == set()
    assert len(offloads) == 4
    assert all(found > {"all_gather", "reduce_scatter", "all_reduce"} for found in offloads.values())


def test_options_can_be_changed_by_whoever_asks():
    found = options_for("TPU v5 lite", "bfloat16")
    found.clear()
    assert options_for("TPU v5 lite", "bfloat16")


def test_a_dimension_of_the_network_is_split_only_where_sizes_demand_it():
    asked = []

    def make(needs_split):
        def grid(**how):
            asked.append(how)
            if needs_split and not how:
                raise NotImplementedError("Failed to find assignment")
            return np.zeros((2, 2))

        return grid

    assert _whole_dimensions_first(make(False)).shape == (2, 2)
    assert asked == [{}]
    assert _whole_dimensions_first(make(True)).shape == (2, 2)
    assert asked == [{}, {}, {"allow_split_physical_axes": True}]
