"""The length of rows cut over devices: which pieces a device has, and which keys its queries see.

Of 2 N pieces of a row, device i of N has the i-th from the start and the i-th from the end. Causal attention then costs
every device the same: a query sees what is before it, so that late pieces cost what early ones spare. Sources: Llama 3,
arXiv:2407.21783, section 3.3.2; the striped placement of arXiv:2311.09431 has the same aim.

Batches come with whole rows on every device, five numbers a token, and each cuts its own out: nobody sends anything.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxlm.models.layers import Spread
from jaxlm.models.masks import document_begins
from jaxlm.types import Batch

ALONG = ("tokens", "targets", "weights", "segments", "positions")
"""What of a batch is [B, T]."""


class Pieces(NamedTuple):
    """What one device has of each row: static, but for `device`."""

    device: jax.Array | int
    """Its place along the axis."""
    num: int
    """Of devices."""
    size: int
    """Tokens of a piece."""

    def positions(self) -> jax.Array:
        """Of its tokens in their row, [2 size], ascending."""
        begins = jnp.stack((self.device, 2 * self.num - 1 - self.device)) * self.size
        return (begins[:, None] + jnp.arange(self.size)[None]).reshape(-1)

    def num_before(self, position: jax.Array) -> jax.Array:
        """How many of its tokens are before a position: the place there that a token of this position has."""
        first = jnp.clip(position - self.device * self.size, 0, self.size)
        return first + jnp.clip(position - (2 * self.num - 1 - self.device) * self.size, 0, self.size)

    def cut(self, x_BT: jax.Array) -> jax.Array:
        """Its tokens of whole rows."""
        pieces = (self.device, 2 * self.num - 1 - self.device)
        parts = [lax.dynamic_slice_in_dim(x_BT, piece * self.size, self.size, axis=1) for piece in pieces]
        return jnp.concatenate(parts, axis=1)

    def in_order(self, gathered: jax.Array) -> jax.Array:
        """The tokens of all devices, one device after the other along dim 1, in the order of the row."""
        T = gathered.shape[1]
        pieces = [gathered[:, start : start + self.size] for start in range(0, T, self.size)]
        return jnp.concatenate([*pieces[::2], *pieces[::-2]], axis=1)

    def by_device(self, whole: jax.Array) -> jax.Array:
        """The inverse of `in_order`."""
        T = whole.shape[1]
        pieces = [whole[:, start : start + self.size] for start in range(0, T, self.size)]
        pairs = zip(pieces[: self.num], pieces[: self.num - 1 : -1], strict=True)
        return jnp.concatenate([piece for pair in pairs for piece in pair], axis=1)


def pieces_of(spread: Spread, length: int) -> Pieces:
    """Those of the device that runs this, inside a shard_map; length: of its part of a row."""
    assert spread.length is not None
    num = spread.mesh.shape[spread.length]
    return Pieces(lax.axis_index(spread.length), num, length // 2)


def arrange(batch: Batch, spread: Spread, unit: int = 1) -> Batch:
    """A batch of whole rows -> of each device's pieces; with positions, and with `begins` where it has segments.

    Args:
      unit: what the length of a piece is a multiple of; rows are padded to that.
    """
    mesh, axis = spread.mesh, spread.length
    assert axis is not None
    batch, shape = dict(batch), batch["tokens"].shape
    if "positions" not in batch:
        batch["positions"] = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32)[None], shape)
    if missing := -shape[1] % (2 * mesh.shape[axis] * unit):
        batch.setdefault("segments", jnp.ones(shape, jnp.int32))
        batch |= {name: jnp.pad(batch[name], ((0, 0), (0, missing))) for name in ALONG if name in batch}
    if "segments" in batch:
        batch["begins"] = document_begins(batch["segments"])
    along = {name: batch[name] for name in (*ALONG, "begins") if name in batch}

    def local(along: Batch) -> Batch:
        pieces = pieces_of(spread, next(iter(along.values())).shape[1] // mesh.shape[axis])
        return {name: pieces.cut(x_BT) for name, x_BT in along.items()}

    specs = PartitionSpec(spread.batch), PartitionSpec(spread.batch, axis)
    run = jax.shard_map(local, mesh=mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False)
    return batch | run(along)
