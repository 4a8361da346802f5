"""Causal attention where the length of every row is cut over devices, as `pieces` says.

Two ways to bring queries and keys together:

- `gather`: every device collects the keys and values of all, and computes with its own queries (Llama 3,
  arXiv:2407.21783, section 3.3.2). With grouped queries keys are few, and so they travel while nothing else has begun.
- `ring`: keys and values go round, and every device computes with those it has while the next ones are on their way;
  results are merged by their logsumexps (Ring Attention, arXiv:2310.01889, section 3). In the backward pass the
  gradients of keys and values travel with them, and end where they began. No device holds the keys of all.

Both have gradients of their own: what is kept is what each device has of queries, keys, values and results, and the
logsumexp.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from jaxlm.collective import Split, gather, scatter_sum
from jaxlm.models.attention_table import Seen, TableKernel
from jaxlm.models.layers import Spread
from jaxlm.models.pieces import Pieces


class Way(NamedTuple):
    """All that is fixed when it is compiled. Heads lie side by side: X those of queries, Y those of keys and values."""

    kernel: Any
    """TableKernel or FlashKernel."""
    method: str
    axis: str
    num: int
    """Devices along the axis."""
    window: int | None
    split: Split
    """How the devices hold the keys and values of a row."""

    def pieces(self, length: int, device=None) -> Pieces:
        """Of a device; None: of this one. length: of its part of a row."""
        return Pieces(lax.axis_index(self.axis) if device is None else device, self.num, length // 2)

    def first(self, begins_BT: jax.Array | None, position_T: jax.Array) -> jax.Array | None:
        """The position of the first key that each query sees, [B or 1, T]; None: 0."""
        if self.window is None:
            return begins_BT
        within_1T = jnp.maximum(position_T - (self.window - 1), 0)[None]
        return within_1T if begins_BT is None else jnp.maximum(begins_BT, within_1T)


def _see_all(way: Way, begins_BT, length: int) -> Seen:
    """Of the keys of all devices in order."""
    position_T = way.pieces(length).positions()
    return Seen(way.first(begins_BT, position_T), position_T + 1, True)


def _see(way: Way, begins_BT, length: int, step) -> Seen:
    """Of the keys of the device `step` places before, which are here in that step of the ring; 0: one's own."""
    position_T = way.pieces(length).positions()
    visitor = way.pieces(length, lax.rem(lax.axis_index(way.axis) - step + way.num, way.num))
    first_BT = way.first(begins_BT, position_T)
    if first_BT is not None:
        first_BT = visitor.num_before(first_BT)
    return Seen(first_BT, visitor.num_before(position_T + 1), isinstance(step, int) and step == 0)


def _gather(way: Way, x: jax.Array) -> jax.Array:
    """The keys, or values, of all devices in order."""
    return way.pieces(x.shape[1]).in_order(gather(x, x.dtype, way.split))


def _scatter(way: Way, dx: jax.Array, dtype) -> jax.Array:
    """The gradient of what was gathered -> of each device's own, summed over all queries."""
    by_device = way.pieces(dx.shape[1] // way.num).by_device(dx)
    return scatter_sum(by_device, way.split).astype(dtype)


def _pass_on(way: Way, tree):
    """To the next device of the ring."""
    to = [(index, (index + 1) % way.num) for index in range(way.num)]
    return jax.tree.map(lambda x: lax.ppermute(x, way.axis, to), tree)


def _ring_ahead(way: Way, q_BTX, k_BTY, v_BTY, begins_BT) -> tuple[jax.Array, jax.Array]:
    def visit(step, kv, before, dtype=jnp.float32):
        seen = _see(way, begins_BT, q_BTX.shape[1], step)
        return way.kernel.ahead(q_BTX, *kv, seen, before, dtype)

    def body(carry, step):
        kv, found = carry
        after = _pass_on(way, kv)
        return (after, visit(step, kv, found)), None

    kv = _pass_on(way, (k_BTY, v_BTY))
    found = visit(0, (k_BTY, v_BTY), None)
    (kv, found), _ = lax.scan(body, (kv, found), jnp.arange(1, way.num - 1))
    return visit(way.num - 1, kv, found, q_BTX.dtype)


def _ring_back(way: Way, q_BTX, k_BTY, v_BTY, begins_BT, o_BTX, lse_BNT, do_BTX):
    def part(step, kv, dq_BTX):
        k_BTY, v_BTY = kv
        seen = _see(way, begins_BT, q_BTX.shape[1], step)
        dq, *dkv = way.kernel.back(q_BTX, k_BTY, v_BTY, o_BTX, lse_BNT, do_BTX, seen, dq_BTX)
        return dq, dkv

    def pack(dkv):
        return [x.astype(jnp.promote_types(way.split.sum_dtype, k_BTY.dtype)) for x in dkv]

    def visit(step, kv, dkv, dq_BTX):
        arrived = _pass_on(way, dkv)  # while these keys are computed with, the sums for them are on their way
        dq_BTX, more = part(step, kv, dq_BTX)
        return dq_BTX, pack(jax.tree.map(lambda a, b: a.astype(b.dtype) + b, arrived, more))

    def body(carry, step):
        kv, dkv, dq_BTX = carry
        after = _pass_on(way, kv)
        dq_BTX, dkv = visit(step, kv, dkv, dq_BTX)
        return (after, dkv, dq_BTX), None

    kv = _pass_on(way, (k_BTY, v_BTY))
    dq_BTX, dkv = part(0, (k_BTY, v_BTY), None)
    (kv, dkv, dq_BTX), _ = lax.scan(body, (kv, pack(dkv), dq_BTX), jnp.arange(1, way.num - 1))
    dq_BTX, dkv = visit(way.num - 1, kv, dkv, dq_BTX)
    return dq_BTX, *_pass_on(way, dkv)


def _ahead(q_BTX, k_BTY, v_BTY, begins_BT, way: Way) -> tuple[jax.Array, jax.Array]:
    """-> o_BTX, lse_BNT."""
    if way.method == "ring":
        return _ring_ahead(way, q_BTX, k_BTY, v_BTY, begins_BT)
    seen = _see_all(way, begins_BT, q_BTX.shape[1])
    return way.kernel.ahead(q_BTX, _gather(way, k_BTY), _gather(way, v_BTY), seen, None, q_BTX.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_BTX, k_BTY, v_BTY, begins_BT, way: Way) -> jax.Array:
    """What one device computes."""
    return _ahead(q_BTX, k_BTY, v_BTY, begins_BT, way)[0]


def _attend_fwd(q_BTX, k_BTY, v_BTY, begins_BT, way: Way):
    o_BTX, lse_BNT = _ahead(q_BTX, k_BTY, v_BTY, begins_BT, way)
    o_BTX, lse_BNT = checkpoint_name(o_BTX, "attention"), checkpoint_name(lse_BNT, "attention")
    return o_BTX, (q_BTX, k_BTY, v_BTY, begins_BT, o_BTX, lse_BNT)


def _attend_bwd(way: Way, saved, do_BTX):
    q_BTX, k_BTY, v_BTY, begins_BT, o_BTX, lse_BNT = saved
    if way.method == "ring":
        grads = _ring_back(way, q_BTX, k_BTY, v_BTY, begins_BT, o_BTX, lse_BNT, do_BTX)
    else:
        whole = _gather(way, k_BTY), _gather(way, v_BTY)
        seen = _see_all(way, begins_BT, q_BTX.shape[1])
        dq, *dkv = way.kernel.back(q_BTX, *whole, o_BTX, lse_BNT, do_BTX, seen, None)
        grads = dq, *(_scatter(way, dx, k_BTY.dtype) for dx in dkv)
    return *(g.astype(q_BTX.dtype) for g in grads), None


_attend.defvjp(_attend_fwd, _attend_bwd)


def attend_sequence(
    kernel: str,
    spread: Spread,
    q_BTNH,
    k_BSKH,
    v_BSKH,
    *,
    begins_BT,
    window: int | None,
    softcap: float | None,
    scale: float,
    **how,
) -> jax.Array:
    """The same function as `attend_dense` of rows that `arrange` has cut; queries and keys are turned already.

    Args:
      kernel: `flash`; else whole tables of logits.
      begins_BT: where each token's document begins in its row; None: one document.
      how: of `FlashKernel`: blocks, interpret.
    """
    mesh, axis, split = spread.mesh, spread.length, spread.length_split
    assert axis is not None
    assert split is not None
    one: Any = TableKernel(scale, softcap, q_BTNH.shape[3])
    if kernel == "flash":
        from jaxlm.models.attention_flash_part import flash_kernel

        one = flash_kernel(scale, softcap, q_BTNH.shape[3], mesh.devices.flat[0].device_kind, **how)
    way = Way(one, spread.sequence_attention, axis, mesh.shape[axis], window, split)
    tokens, heads = PartitionSpec(spread.batch, axis), PartitionSpec(spread.batch, axis, spread.heads)

    def local(q_BTNH, k_BTKH, v_BTKH, begins_BT):
        q_BTX, k_BTY, v_BTY = (x.reshape(*x.shape[:2], -1) for x in (q_BTNH, k_BTKH, v_BTKH))
        return cast(jax.Array, _attend(q_BTX, k_BTY, v_BTY, begins_BT, way)).reshape(q_BTNH.shape)

    specs = heads, heads, heads, tokens
    run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False)
    return run(q_BTNH, k_BSKH, v_BSKH, begins_BT)
