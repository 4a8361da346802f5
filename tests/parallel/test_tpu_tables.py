"""What is decided for chips without one: options of the compiler, and meshes that split a dimension of the network."""

import jax
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


@pytest.mark.parametrize(
    ("features", "jaxlib", "expected"),
    [
        ({"avx2"}, (0, 10), True),
        ({"avx2"}, (0, 11), True),
        ({"avx2", "avx512f"}, (0, 10), False),
        (set(), (0, 10), False),  # an ARM, or not Linux
        ({"avx2"}, (0, 12), False),  # may not know the option
    ],
)
def test_products_are_eigens_where_that_is_faster(monkeypatch, features, jaxlib, expected):
    monkeypatch.setattr(xla_options, "cpu_features", lambda: frozenset(features))
    monkeypatch.setattr(xla_options, "jaxlib_version", lambda: jaxlib)
    assert options_for("cpu", "float32") == (xla_options.EIGEN_PRODUCTS if expected else {})
    assert options_for("cpu", "bfloat16") == {}


def test_the_option_leaves_sums_to_the_other_library():
    """And XLA knows it: else no model would train on such a processor."""
    if not xla_options.prefers_eigen(frozenset({"avx2"}), xla_options.jaxlib_version()):
        pytest.skip("not offered to this version")
    compiled = (
        jax.jit(lambda a, b: (a @ b, a.sum(-1)), compiler_options=xla_options.EIGEN_PRODUCTS)
        .lower(*[jax.ShapeDtypeStruct((512, 512), "float32")] * 2)
        .compile()
    )
    lines = [line for line in compiled.as_text().splitlines() if "ynn_fusion(" in line or " dot(" in line]
    assert any(" dot(" in line and "[512,512]" in line for line in lines)
    assert all("[512]{0}" in line for line in lines if "ynn_fusion(" in line)


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
