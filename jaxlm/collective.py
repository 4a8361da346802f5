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

from jaxlm.tiles import crosses_tiles

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
    by_rows: bool = False
    """A table [V, D], of which every device has a part of all rows: it may come some rows at a time."""


class Cut(NamedTuple):
    """How the devices along one mesh axis share the work on a product (tensor parallelism).

    Between the products of a block each of them has a part of the length of the residual stream: what goes into a
    product is collected before, and what comes out of one is added up and scattered after. Source: Korthikanti et al.
    2022, arXiv:2205.05198, section 4.2.2 (sequence parallelism).
    """

    axis: str
    inputs: bool
    """Each device has a part of the inputs of the matrix (its result is added up); else a part of its outputs."""


class Side(NamedTuple):
    """How activations [B, T, ...] on one side of a product are held, and what takes them into it and out of it."""

    spec: PartitionSpec
    collect: Callable[[jax.Array], jax.Array]
    """From what a device holds to what the product takes."""
    scatter: Callable[[jax.Array], jax.Array]
    """From what products of one device give, to its part of the sum."""


class Place(NamedTuple):
    """Where a product runs: on each device of `mesh` its rows of the batch with the whole weight."""

    mesh: Mesh
    rows: tuple[str, ...]
    """Axes that split the batch."""
    split: Split | None
    """Of the weight, along one of `rows`; None: all have it."""
    cut: Cut | None = None
    """Of the weight, along another axis; None: what other axes do is left to the compiler."""
    length: str | None = None
    """The axis that splits the length of rows; None: they are whole."""

    def run(self, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """`function` on what each device has. Mesh axes that the place does not name are left to the compiler."""
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names={*self.axes, *([] if self.cut is None else [self.cut.axis])},
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

    def sides(self) -> tuple[Side, Side]:
        """Of x and of x @ weight."""
        inner = Side(self.batch_spec, lambda x: x, lambda x: x)
        if self.cut is None:
            return inner, inner
        axis = self.cut.axis
        stream = Side(
            PartitionSpec(self.rows, axis if self.length is None else (self.length, axis)),
            lambda x: lax.all_gather(x, axis, axis=1, tiled=True),
            lambda x: scatter_length(x, axis),
        )
        inner = inner._replace(spec=PartitionSpec(self.rows, self.length, axis))
        return (inner, stream) if self.cut.inputs else (stream, inner)

    @property
    def weight_spec(self) -> PartitionSpec:
        """Of the weight, a matrix."""
        axes: list[str | None] = [None, None]
        if self.split is not None:
            axes[self.split.dim] = self.split.axis
        if self.cut is not None:
            axes[0 if self.cut.inputs else 1] = self.cut.axis
        return PartitionSpec(*axes)

    def collect_grad(self, g: jax.Array) -> jax.Array:
        """What a device holds of the weight's gradient, from what its own tokens say of the whole."""
        others = self.axes
        if self.split is not None:
            g, others = scatter_sum(g, self.split), tuple(a for a in self.axes if a != self.split.axis)
        others = tuple(axis for axis in others if self.mesh.shape[axis] > 1)
        return jax.lax.psum(g, others) if others else g


def gather(w: jax.Array, dtype: jnp.dtype, split: Split | None) -> jax.Array:
    """The whole of a weight in the compute dtype. Made anew in each pass: what is kept between them is w itself."""
    w = w.astype(dtype)
    if split is None:
        return w
    if split.by_rows and crosses_tiles(w.shape[1], w.shape[0]):
        return gather_by_rows(w, split.axis)
    return lax.all_gather(w, split.axis, axis=split.dim, tiled=True)


ROWS_AT_A_TIME = 8192
"""Of Gemma 3's table 88 MB: enough for a network's full speed, and little to write out what is done to its tiles."""


def gather_by_rows(w_VR: jax.Array, axis: str) -> jax.Array:
    """A table [V, D] of which each device holds [V, R], some thousand rows after the other; see `crosses_tiles`."""
    V = w_VR.shape[0]
    num = -(-V // ROWS_AT_A_TIME)
    rows = -(-V // (8 * num)) * 8

    def add(i: jax.Array, whole_VD: jax.Array) -> jax.Array:
        first = jnp.minimum(i * rows, V - rows)  # the last ones come with some of those before them
        some = lax.dynamic_slice_in_dim(w_VR, first, rows, 0)
        return lax.dynamic_update_slice_in_dim(
            whole_VD, lax.all_gather(some, axis, axis=1, tiled=True), first, 0
        )

    return lax.fori_loop(0, num, add, lax.empty((V, w_VR.shape[1] * lax.axis_size(axis)), w_VR.dtype))


def scatter_sum(g: jax.Array, split: Split) -> jax.Array:
    """The sum over the devices of split.axis of a whole gradient, of which each gets its part.

    The dim that is scattered goes first and is cut before: XLA:TPU turns every other form into an all-reduce (libtpu
    0.0.46: `reduce-scatter-decomposer`), and also one over groups that are no ring. Of more than two dims the first
    become one: else it may leave the order in memory as it was, and the dim that is scattered is not first there.
    """
    first = jnp.moveaxis(g.astype(split.sum_dtype), split.dim, 0)
    g = first.reshape(-1, first.shape[-1])
    for groups in split.phases or (None,):
        size = lax.axis_size(split.axis) if groups is None else len(groups[0])
        g = lax.psum_scatter(pieces(g, size), split.axis, axis_index_groups=groups)
    return jnp.moveaxis(g.reshape(-1, *first.shape[1:]), 0, split.dim)


def pieces(x_RC: jax.Array, num: int) -> jax.Array:
    """[num, R / num, C]: a matrix cut into so many pieces of its rows."""
    rows, C = x_RC.shape[0] // num, x_RC.shape[1]
    if not crosses_tiles(rows, C):
        return x_RC.reshape(num, rows, C)
    return jnp.stack([x_RC[i * rows : (i + 1) * rows] for i in range(num)])


def scatter_length(x: jax.Array, axis: str) -> jax.Array:
    """The sum of x_BTD over the devices of an axis, of which each gets its part of the length."""
    B, T, D = x.shape
    size = lax.axis_size(axis)
    pieces = jnp.moveaxis(
        x.reshape(B, size, T // size, D), 1, 0
    )  # first, for the reason that `scatter_sum` gives
    return lax.psum_scatter(pieces, axis)
