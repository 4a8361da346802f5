"""What devices tell each other about a weight, inside a shard_map: its parts, and the sum of its gradients.

Written out, since what the compiler makes of a sharding alone is worse: the gradient of a weight that is split over
all devices of a TPU pod comes as one all-reduce, of which every device then keeps its part, and so twice the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

Groups = tuple[tuple[int, ...], ...]
"""Positions along a mesh axis that talk to each other."""


class Split(NamedTuple):
    """How the devices along one mesh axis hold the parts of a weight."""

    axis: str
    dim: int
    phases: tuple[Groups, ...] = ()
    """A sum is scattered among these groups, one phase after the other, each along one ring of the network; the first
    decides the largest pieces. Empty: in one phase, among all."""
    sum_dtype: str = "float32"
    """Of gradients on their way."""


class Place(NamedTuple):
    """Where a product runs: on each device of `mesh` its rows of the batch with the whole weight."""

    mesh: Mesh
    rows: tuple[str, ...]
    """Axes that split the batch."""
    split: Split | None
    """Of the weight, along one of `rows`; None: all have it."""
    length: str | None = None
    """The axis that splits the length of rows; None: they are whole."""

    def run(self, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """`function` on what each device has. Mesh axes that are not `axes` (tensor) are left to the compiler."""
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=set(self.axes),
            check_vma=False,
        )

    @property
    def axes(self) -> tuple[str, ...]:
        """Along which devices see different tokens."""
        return self.rows if self.length is None else (*self.rows, self.length)

    @property
    def batch_spec(self) -> PartitionSpec:
        """Of an array of rows."""
        return PartitionSpec(self.rows) if self.length is None else PartitionSpec(self.rows, self.length)

    @property
    def weight_spec(self) -> PartitionSpec:
        """Of the weight."""
        if self.split is None:
            return PartitionSpec()
        return PartitionSpec(*(None,) * self.split.dim, self.split.axis)

    def collect_grad(self, g: jax.Array) -> jax.Array:
        """What a device holds of the weight's gradient, from what its own tokens say of the whole."""
        others = self.axes
        if self.split is not None:
            g, others = scatter_sum(g, self.split), tuple(a for a in self.axes if a != self.split.axis)
        others = tuple(axis for axis in others if self.mesh.shape[axis] > 1)
        return jax.lax.psum(g, others) if others else g


def _lists(groups: Groups | None) -> list[list[int]] | None:
    """As lax takes groups."""
    return None if groups is None else [*map(list, groups)]


def gather(w: jax.Array, dtype: jnp.dtype, split: Split | None) -> jax.Array:
    """The whole of a weight in the compute dtype. Made anew in each pass: what is kept between them is w itself."""
    w = w.astype(dtype)
    if split is None:
        return w
    # Over two rings XLA:TPU gathers as it should; over three it makes an all-reduce of it.
    phases = split.phases if len(split.phases) > 2 else (None,)
    for groups in reversed(phases):
        w = lax.all_gather(w, split.axis, axis_index_groups=_lists(groups), axis=split.dim, tiled=True)
    return w


def scatter_sum(g: jax.Array, split: Split) -> jax.Array:
    """The sum over the devices of split.axis of a whole gradient, of which each gets its part.

    The dim that is scattered goes first and is cut before: XLA:TPU turns every other form into an all-reduce (libtpu
    0.0.46: `reduce-scatter-decomposer`), and also one over groups that are no ring.
    """
    g = jnp.moveaxis(g.astype(split.sum_dtype), split.dim, 0)
    for groups in split.phases or (None,):
        size = lax.axis_size(split.axis) if groups is None else len(groups[0])
        pieces = g.reshape(size, -1, *g.shape[1:])
        g = lax.psum_scatter(pieces, split.axis, axis_index_groups=_lists(groups))
    return jnp.moveaxis(g, 0, split.dim)
