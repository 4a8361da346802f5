from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import PARAMS, local_rows, rings, spec_for
from jaxlm.types import UserError


def test_a_spec_follows_the_table():
    assert spec_for(("layers", "embed", "heads", "head_dim"), PARAMS) == PartitionSpec(
        None, "fsdp", "tensor", None
    )


def test_experts_are_split_and_so_is_what_is_inside_them():
    assert spec_for(("layers", "experts", "embed", "mlp"), PARAMS) == PartitionSpec(
        None, "expert", "fsdp", "tensor"
    )


def test_an_unknown_axis_is_named():
    with pytest.raises(ValueError, match="'wings'"):
        spec_for(("embed", "wings"), PARAMS)


def test_a_mesh_axis_used_twice_is_named():
    with pytest.raises(ValueError, match="'tensor' would split both 'heads' and 'mlp'"):
        spec_for(("heads", "mlp"), PARAMS)


def test_a_mesh_of_the_wrong_size_says_how_many_devices_there_are():
    with pytest.raises(UserError, match=r"needs 6 devices, but there are 8"):
        make_mesh({"data": 1, "fsdp": 3, "tensor": 2})


def test_an_axis_that_is_not_given_has_one_device():
    assert dict(make_mesh({"expert": 8}).shape) == dict(data=1, fsdp=1, expert=8, sequence=1, tensor=1)


def test_one_process_holds_every_row_once():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    np.testing.assert_array_equal(local_rows(mesh, 16), np.arange(16))
    assert jax.process_count() == 1


class Chip(NamedTuple):
    """What `rings` asks of a TPU device."""

    coords: tuple[int, int, int]
    core_on_chip: int = 0


def mesh_of(grid) -> Any:
    """A stand-in for a mesh whose devices lie along fsdp."""
    devices = np.empty((1, len(grid), 1, 1), object)
    for i, chip in enumerate(grid):
        devices[0, i, 0, 0] = chip
    return SimpleNamespace(
        devices=devices, axis_names=("data", "fsdp", "expert", "tensor"), shape={"fsdp": len(grid)}
    )


def test_sums_are_scattered_in_rings_along_each_dimension_of_the_network():
    grid = [Chip((x, y, 0)) for x in range(2) for y in range(3)]
    assert rings(mesh_of(grid), "fsdp") == (((0, 3), (1, 4), (2, 5)), ((0, 1, 2), (3, 4, 5)))


def test_the_dimension_that_changes_slowest_comes_first_whichever_it_is():
    grid = [Chip((x, y, 0)) for y in range(3) for x in range(2)]
    assert rings(mesh_of(grid), "fsdp") == (((0, 2, 4), (1, 3, 5)), ((0, 1), (2, 3), (4, 5)))


def test_three_dimensions_have_three_phases_and_each_device_is_in_one_ring_of_each():
    grid = [Chip((x, y, z)) for x in range(2) for y in range(2) for z in range(4)]
    found = rings(mesh_of(grid), "fsdp")
    assert [len(groups[0]) for groups in found] == [2, 2, 4]
    assert all(sorted(i for group in groups for i in group) == list(range(16)) for groups in found)


@pytest.mark.parametrize(
    "grid",
    [
        [Chip((x, 0, 0)) for x in range(4)],  # one ring already
        [Chip((0, 0, 0)), Chip((1, 1, 0)), Chip((0, 1, 0)), Chip((1, 0, 0))],  # no lines of a box
        [Chip((0, 0, 0)), Chip((0, 1, 0)), Chip((1, 0, 0))],  # no box
    ],
    ids=["line", "scrambled", "corner"],
)
def test_where_there_are_no_rings_the_sum_is_scattered_at_once(grid):
    assert rings(mesh_of(grid), "fsdp") == ()


def test_devices_that_are_no_tpus_have_no_rings():
    assert rings(make_mesh({"fsdp": 8}), "fsdp") == ()
