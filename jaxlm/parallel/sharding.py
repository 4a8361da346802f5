"""Sharding: two tables and twenty lines. Weights and activations share axis names and differ in rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.collective import Cut, Groups, Place, Split
from jaxlm.types import Batch, PyTree

Table = Mapping[str, str | tuple[str, ...] | None]

PARAMS: Table = {
    "vocab": "tensor",
    "embed": "fsdp",
    "width": None,  # embed, of a vector: to collect so little takes longer than to keep it
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "experts": "expert",
    "layers": None,
    "positions": None,
    "classes": None,
    "rank": None,
    "packed": None,  # of a matrix in 4 bits: whole blocks
}
"""Logical axis of a weight -> mesh axis."""

ACTIVATIONS: Table = {
    "batch": ("data", "fsdp", "expert"),
    "length": "sequence",
    "stream": ("sequence", "tensor"),  # the length between blocks, where norms and additions work on it
    "embed": None,  # whole: the fsdp axis already carries the batch
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "experts": None,  # a token's logits of all experts: the expert axis already carries the batch
    "vocab": "tensor",
    "classes": None,
}
"""Logical axis of an activation -> mesh axis or axes."""


def spec_for(axes: tuple[str, ...], table: Table) -> PartitionSpec:
    """The PartitionSpec of a tensor with these logical axes.

    Errors: ValueError for an axis the table does not know, and for a mesh axis that two dims would share.
    """
    used: dict[str, str] = {}
    spec = []
    for axis in axes:
        if axis not in table:
            raise ValueError(f"Unknown logical axis {axis!r}; the table knows {', '.join(sorted(table))}.")
        rule = table[axis]
        for mesh_axis in (rule,) if isinstance(rule, str) else rule or ():
            if mesh_axis in used:
                raise ValueError(
                    f"Mesh axis {mesh_axis!r} would split both {used[mesh_axis]!r} and {axis!r} of {axes}: a mesh "
                    "axis can split one dim of a tensor. Change the rule of one of them."
                )
            used[mesh_axis] = axis
        spec.append(rule)
    return PartitionSpec(*spec)


def param_shardings(axes: PyTree, mesh: Mesh) -> PyTree:
    """NamedShardings shaped like params, from `LM.axes`."""
    return jax.tree.map(
        lambda names: NamedSharding(mesh, spec_for(names, PARAMS)),
        axes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def shardings_like(tree: PyTree, shardings: PyTree, params: PyTree, mesh: Mesh) -> PyTree:
    """Shardings of a tree that holds copies of params somewhere inside, such as an optimizer state.

    A leaf whose path ends like a param's, and whose shape is the same, is sharded like it; the rest (counters,
    factored moments) is replicated.
    """
    known = {
        path: (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }
    replicated = NamedSharding(mesh, PartitionSpec())

    def pick(path, leaf):
        for start in range(len(path)):
            shape, sharding = known.get(path[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated

    return jax.tree_util.tree_map_with_path(pick, tree)


def make_constrain(mesh: Mesh) -> Callable[..., jax.Array]:
    """The `constrain` of a model on this mesh."""
    if mesh.size == 1:
        return lambda x, *axes: x

    def constrain(x: jax.Array, *axes: str) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec_for(axes, ACTIVATIONS)))

    return constrain


class Spread(NamedTuple):
    """How a mesh spreads a model: the `spread` of `build`; see the Protocol in `jaxlm.models.layers`."""

    mesh: Mesh
    batch: tuple[str, ...]
    experts: str
    embed: str
    heads: str
    mlp: str
    length: str | None
    phases: tuple[Groups, ...]
    """Rings along `embed`, in which sums of gradients are scattered."""
    sum_dtype: str
    sequence_attention: str

    def split(self, dim: int) -> Split | None:
        """How a weight is held whose dim `dim` is `embed`; None: it is whole."""
        if self.mesh.shape[self.embed] == 1:
            return None
        return Split(self.embed, dim, self.phases, self.sum_dtype)

    @property
    def length_split(self) -> Split | None:
        """How the devices hold the length of rows; None: all of it."""
        if self.length is None:
            return None
        return Split(self.length, 1, rings(self.mesh, self.length), self.sum_dtype)

    def place(self, axes: tuple[str, ...], length: int) -> Place | None:
        """Where x[B, length, ...] is multiplied by a matrix of these logical axes, first or last of them `embed`.

        A length that the devices along `mlp` (and `heads`) cannot share is left to the compiler.
        """
        split, cut = self.split(0 if axes[0] == "embed" else 1), None
        assert self.heads == self.mlp
        num_parts = self.mesh.shape[self.mlp]
        shared_by = num_parts * (1 if self.length is None else self.mesh.shape[self.length])
        if num_parts > 1 and length % shared_by == 0:
            cut = Cut(self.mlp, inputs=axes[-1] == "embed")
        return (
            None if split is None and cut is None else Place(self.mesh, self.batch, split, cut, self.length)
        )

    def ends(self) -> Place:
        """Where tokens are looked up and predicted: the tables are [V, embed]."""
        split = self.split(1)
        if split is not None and self.mesh.shape[str(PARAMS["vocab"])] == 1:
            split = split._replace(by_rows=True)
        return Place(self.mesh, self.batch, split, length=self.length)


def make_spread(mesh: Mesh, sum_dtype: str = "float32", sequence_attention: str = "gather") -> Spread | None:
    """The `spread` of a model on this mesh; None on one device that is no TPU, where there is nothing to say.

    Args:
      sum_dtype: in which gradients are summed over the devices that split the weights; or the length of rows.
      sequence_attention: as of MeshConfig.
    """
    if mesh.size == 1 and mesh.devices.flat[0].platform != "tpu":
        return None
    batch = ACTIVATIONS["batch"]
    experts, embed, heads, mlp = (str(PARAMS[axis]) for axis in ("experts", "embed", "heads", "mlp"))
    length = str(ACTIVATIONS["length"])
    assert isinstance(batch, tuple)
    return Spread(
        mesh=mesh,
        batch=batch,
        experts=experts,
        embed=embed,
        heads=heads,
        mlp=mlp,
        length=length if mesh.shape[length] > 1 else None,
        phases=rings(mesh, embed),
        sum_dtype=sum_dtype,
        sequence_attention=sequence_attention,
    )


def rings(mesh: Mesh, axis: str) -> tuple[Groups, ...]:
    """Groups along a mesh axis, one dimension of the TPUs' network after the other, whose devices are neighbours in it.

    Scattering a sum over the groups of one dimension after the other gives every device what it gets from all at
    once. Empty where that is not so: no TPUs, one dimension only, devices that do not lie along the axis like that.
    """
    line = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), 0).reshape(mesh.shape[axis], -1)[:, 0]
    if not all(hasattr(device, "coords") for device in line):
        return ()
    places = np.array([(*device.coords, getattr(device, "core_on_chip", 0)) for device in line])
    used = [dim for dim in range(places.shape[1]) if len(np.unique(places[:, dim])) > 1]
    sizes = [len(np.unique(places[:, dim])) for dim in used]
    if len(used) < 2 or int(np.prod(sizes)) != len(line):
        return ()
    # Outermost first: the dimension that changes slowest along the axis.
    order = sorted(used, key=lambda dim: -int(np.argmax(places[:, dim] != places[0, dim])))
    sizes = [len(np.unique(places[:, dim])) for dim in order]
    index = np.arange(len(line)).reshape(sizes)
    for position, dim in enumerate(order):
        along = np.moveaxis(places[:, dim].reshape(sizes), position, -1)
        if not (along == along.reshape(-1, sizes[position])[0]).all():
            return ()
    lines = (np.moveaxis(index, position, -1).reshape(-1, sizes[position]) for position in range(len(sizes)))
    return tuple(tuple(tuple(map(int, group)) for group in groups) for groups in lines)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of every array of a batch: rows over data, fsdp and expert, the rest whole. A model cuts its length itself."""
    return NamedSharding(mesh, PartitionSpec(ACTIVATIONS["batch"]))


def make_constrain_batch(mesh: Mesh) -> Callable[[Batch], Batch]:
    """A function that keeps the rows of a part of a batch spread over the mesh."""
    if mesh.size == 1:
        return lambda batch: batch
    rows = batch_sharding(mesh)
    return lambda batch: jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, rows), batch)


def local_rows(mesh: Mesh, global_batch_size: int) -> np.ndarray:
    """Which rows of the global batch this process's devices need, ascending int64."""
    index = batch_sharding(mesh).addressable_devices_indices_map((global_batch_size,))
    spans = [span[0].indices(global_batch_size) for span in index.values() if span is not None]
    return np.unique(np.concatenate([np.arange(*span) for span in spans]))


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, global_batch_size: int) -> Batch:
    """This process's rows (in the order of `local_rows`) -> global arrays on the mesh."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), sharding)
    rows = local_rows(mesh, global_batch_size)

    def place(value: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(global_batch_size)
            return value[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]

        return jax.make_array_from_callback((global_batch_size, *value.shape[1:]), sharding, part)

    return {key: place(value) for key, value in batch.items()}
