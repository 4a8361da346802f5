"""What devices tell each other about a weight, inside a shard_map: its parts, and the sum of its gradients.

Written out, since what the compiler makes of a sharding alone is worse: the gradient of a weight that is split over
all devices of a TPU pod comes as one all-reduce, of which every device then keeps its part, and so twice the bytes.
"""

from __future__ import annotations

from typing import NamedTuple

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
    """Where a product runs: `mesh` and the axes that split the rows of a batch, `split.axis` among them."""

    mesh: Mesh
    rows: tuple[str, ...]
    split: Split

    def spec(self, ndim: int) -> PartitionSpec:
        """Of a matrix with `ndim` dims that is split."""
        return PartitionSpec(*(self.split.axis if i == self.split.dim else None for i in range(ndim)))


def gather(w: jax.Array, dtype: jnp.dtype, split: Split | None) -> jax.Array:
    """The whole of a weight in the compute dtype. Made anew in each pass: what is kept between them is w itself."""
    w = w.astype(dtype)
    return w if split is None else lax.all_gather(w, split.axis, axis=split.dim, tiled=True)


def scatter_sum(g: jax.Array, split: Split) -> jax.Array:
    """The sum over the devices of split.axis of a whole gradient, of which each gets its part.

    The dim that is scattered goes first and is cut before: XLA:TPU turns every other form into an all-reduce (libtpu
    0.0.46: `reduce-scatter-decomposer`), and also one over groups that are no ring.
    """
    g = jnp.moveaxis(g.astype(split.sum_dtype), split.dim, 0)
    for groups in split.phases or (None,):
        size = lax.axis_size(split.axis) if groups is None else len(groups[0])
        pieces = g.reshape(size, -1, *g.shape[1:])
        g = lax.psum_scatter(
            pieces, split.axis, axis_index_groups=None if groups is None else [*map(list, groups)]
        )
    return jnp.moveaxis(g, 0, split.dim)
