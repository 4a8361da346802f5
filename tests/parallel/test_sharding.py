import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import PARAMS, local_rows, spec_for
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
    assert dict(make_mesh({"expert": 8}).shape) == {"data": 1, "fsdp": 1, "expert": 8, "tensor": 1}


def test_one_process_holds_every_row_once():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    np.testing.assert_array_equal(local_rows(mesh, 16), np.arange(16))
    assert jax.process_count() == 1
