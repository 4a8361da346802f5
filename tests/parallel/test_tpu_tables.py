"""What is decided for TPUs without one: options of the compiler, and meshes that split a dimension of the network."""

import numpy as np

from jaxlm.parallel.mesh import _whole_dimensions_first
from jaxlm.parallel.xla_options import OPTIONS, options_for
from jaxlm.plan.hardware import CHIPS


def test_options_are_those_of_chips_that_there_are():
    kinds = {kind for chip in CHIPS.values() for kind in chip.device_kinds}
    assert set(OPTIONS) <= kinds
    assert options_for("cpu") == {}


def test_sparse_cores_run_the_collectives_of_chips_that_have_them():
    offload = "xla_tpu_enable_sparse_core_collective_offload_"
    offloads = {
        kind: {key.removeprefix(offload) for key in options_for(kind) if offload in key} for kind in OPTIONS
    }
    assert offloads.pop("TPU v5 lite") == set()
    assert len(offloads) == 4
    assert all(found > {"all_gather", "reduce_scatter", "all_reduce"} for found in offloads.values())


def test_options_can_be_changed_by_whoever_asks():
    found = options_for("TPU v5 lite")
    found.clear()
    assert options_for("TPU v5 lite")


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
