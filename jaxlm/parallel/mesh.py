"""MeshConfig -> Mesh: slices outermost, Auto axis types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxlm.parallel.config import AXES
from jaxlm.types import UserError


def make_mesh(sizes: dict[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of these axis sizes (no -1 left; 1 where none is given) over the devices, by default all there are.

    Axes are Auto: the compiler chooses shardings between our constraints. Plain `jax.make_mesh` may give Explicit
    axes, which is another programming model. Devices of several TPU slices are laid out so that the outermost
    axis, `data`, crosses the slow network between slices.

    Errors: UserError when the sizes do not multiply to the number of devices, or slices do not divide `data`.
    """
    devices = list(jax.devices() if devices is None else devices)
    assert set(sizes) <= set(AXES), f"{sizes}: axes are {AXES}"
    sizes = {axis: sizes.get(axis, 1) for axis in AXES}
    shape = tuple(sizes.values())
    if int(np.prod(shape)) != len(devices):
        wanted = " x ".join(f"{name} {size}" for name, size in sizes.items())
        raise UserError(
            f"The mesh {wanted} needs {int(np.prod(shape))} devices, but there are {len(devices)}."
        )
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    if num_slices > 1 and devices[0].platform == "tpu":
        if sizes["data"] % num_slices:
            raise UserError(
                f"mesh.data={sizes['data']} must be a multiple of the {num_slices} slices: replicas, not shards, "
                "talk over the network between slices."
            )
        within = (sizes["data"] // num_slices, *shape[1:])
        across = (num_slices, *(1,) * (len(shape) - 1))
        grid = _whole_dimensions_first(
            lambda **how: mesh_utils.create_hybrid_device_mesh(within, across, devices, **how)
        )
    elif devices[0].platform == "tpu":
        grid = _whole_dimensions_first(lambda **how: mesh_utils.create_device_mesh(shape, devices, **how))
    else:
        grid = np.array(devices).reshape(shape)
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(shape))


def _whole_dimensions_first(make: Callable[..., np.ndarray]) -> np.ndarray:
    """A grid whose axes are whole dimensions of the TPUs' network; where sizes do not allow that, parts of them."""
    try:
        return make()
    except NotImplementedError:
        return make(allow_split_physical_axes=True)
