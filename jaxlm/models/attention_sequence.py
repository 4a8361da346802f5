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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from jaxlm.collective import Split, scatter_sum
from jaxlm.models.attention_table import Seen, TableKernel
from jaxlm.models.layers import Spread
from jaxlm.models.pieces import Pieces


class Way(NamedTuple):
    """All that is fixed when it is compiled."""

    kernel: Any
    """TableKernel or FlashKernel."""
    method: str
    axis: str
    num: int
    """Devices along the axis."""
    window: int | None
    sum_dtype: str
    """Of the gradients of keys and values on their way."""

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
    return way.pieces(x.shape[1]).in_order(lax.all_gather(x, way.axis, axis=1, tiled=True))


def _scatter(way: Way, dx: jax.Array, dtype) -> jax.Array:
    """The gradient of what was gathered -> of each device's own, summed over all queries."""
    by_device = way.pieces(dx.shape[1] // way.num).by_device(dx)
    return scatter_sum(by_device, Split(way.axis, 1, sum_dtype=way.sum_dtype)).astype(dtype)


def _pass_on(way: Way, tree):
    """To the next device of the ring."""
    to = [(index, (index + 1) % way.num) for index in range(way.num)]
    return jax.tree.map(lambda x: lax.ppermute(x, way.axis, to), tree)


def merge(o_BTNH, lse_BNT, more_BTNH, more_lse_BNT) -> tuple[jax.Array, jax.Array]:
    """The attention over two sets of keys, from that over each."""
    total_BNT = jnp.logaddexp2(lse_BNT, more_lse_BNT)

    def part(o_BTNH, lse_BNT):
        return o_BTNH * jnp.exp2(lse_BNT - total_BNT).swapaxes(1, 2)[..., None]

    return part(o_BTNH, lse_BNT) + part(more_BTNH, more_lse_BNT), total_BNT


def _ring_ahead(way: Way, q_BTNH, k_BTKH, v_BTKH, begins_BT) -> tuple[jax.Array, jax.Array]:
    def visit(step, kv, o_BTNH, lse_BNT):
        seen = _see(way, begins_BT, q_BTNH.shape[1], step)
        more_BTNH, more_lse_BNT = way.kernel.ahead(q_BTNH, *kv, seen)
        return merge(o_BTNH, lse_BNT, more_BTNH, more_lse_BNT)

    def body(carry, step):
        kv, o_BTNH, lse_BNT = carry
        after = _pass_on(way, kv)
        return (after, *visit(step, kv, o_BTNH, lse_BNT)), None

    kv = _pass_on(way, (k_BTKH, v_BTKH))
    own = way.kernel.ahead(q_BTNH, k_BTKH, v_BTKH, _see(way, begins_BT, q_BTNH.shape[1], 0))
    (kv, o_BTNH, lse_BNT), _ = lax.scan(body, (kv, *own), jnp.arange(1, way.num - 1))
    return visit(way.num - 1, kv, o_BTNH, lse_BNT)


def _ring_back(way: Way, q_BTNH, k_BTKH, v_BTKH, begins_BT, o_BTNH, lse_BNT, do_BTNH):
    def part(step, kv, dq_BTNH):
        k_BTKH, v_BTKH = kv
        seen = _see(way, begins_BT, q_BTNH.shape[1], step)
        dq, *dkv = way.kernel.back(q_BTNH, k_BTKH, v_BTKH, o_BTNH, lse_BNT, do_BTNH, seen, dq_BTNH)
        return dq, dkv

    def pack(dkv):
        return [x.astype(jnp.promote_types(way.sum_dtype, k_BTKH.dtype)) for x in dkv]

    def visit(step, kv, dkv, dq_BTNH):
        arrived = _pass_on(way, dkv)  # while these keys are computed with, the sums for them are on their way
        dq_BTNH, more = part(step, kv, dq_BTNH)
        return dq_BTNH, pack(jax.tree.map(lambda a, b: a.astype(b.dtype) + b, arrived, more))

    def body(carry, step):
        kv, dkv, dq_BTNH = carry
        after = _pass_on(way, kv)
        dq_BTNH, dkv = visit(step, kv, dkv, dq_BTNH)
        return (after, dkv, dq_BTNH), None

    kv = _pass_on(way, (k_BTKH, v_BTKH))
    dq_BTNH, dkv = part(0, (k_BTKH, v_BTKH), None)
    (kv, dkv, dq_BTNH), _ = lax.scan(body, (kv, pack(dkv), dq_BTNH), jnp.arange(1, way.num - 1))
    dq_BTNH, dkv = visit(way.num - 1, kv, dkv, dq_BTNH)
    return dq_BTNH, *_pass_on(way, dkv)


def _ahead(q_BTNH, k_BTKH, v_BTKH, begins_BT, way: Way) -> tuple[jax.Array, jax.Array]:
    """-> o_BTNH in float32, lse_BNT."""
    if way.method == "ring":
        return _ring_ahead(way, q_BTNH, k_BTKH, v_BTKH, begins_BT)
    seen = _see_all(way, begins_BT, q_BTNH.shape[1])
    return way.kernel.ahead(q_BTNH, _gather(way, k_BTKH), _gather(way, v_BTKH), seen)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_BTNH, k_BTKH, v_BTKH, begins_BT, way: Way) -> jax.Array:
    """What one device computes."""
    return _ahead(q_BTNH, k_BTKH, v_BTKH, begins_BT, way)[0].astype(q_BTNH.dtype)


def _attend_fwd(q_BTNH, k_BTKH, v_BTKH, begins_BT, way: Way):
    o_BTNH, lse_BNT = _ahead(q_BTNH, k_BTKH, v_BTKH, begins_BT, way)
    o_BTNH = checkpoint_name(o_BTNH.astype(q_BTNH.dtype), "attention")
    lse_BNT = checkpoint_name(lse_BNT, "attention")
    return o_BTNH, (q_BTNH, k_BTKH, v_BTKH, begins_BT, o_BTNH, lse_BNT)


def _attend_bwd(way: Way, saved, do_BTNH):
    q_BTNH, k_BTKH, v_BTKH, begins_BT, o_BTNH, lse_BNT = saved
    if way.method == "ring":
        grads = _ring_back(way, q_BTNH, k_BTKH, v_BTKH, begins_BT, o_BTNH, lse_BNT, do_BTNH)
    else:
        whole = _gather(way, k_BTKH), _gather(way, v_BTKH)
        seen = _see_all(way, begins_BT, q_BTNH.shape[1])
        dq, *dkv = way.kernel.back(q_BTNH, *whole, o_BTNH, lse_BNT, do_BTNH, seen, None)
        grads = dq, *(_scatter(way, dx, k_BTKH.dtype) for dx in dkv)
    return *(g.astype(q_BTNH.dtype) for g in grads), None


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
    mesh, axis = spread.mesh, spread.length
    assert axis is not None
    one: Any = TableKernel(scale, softcap)
    if kernel == "flash":
        from jaxlm.models.attention_flash_part import flash_kernel

        one = flash_kernel(scale, softcap, mesh.devices.flat[0].device_kind, **how)
    way = Way(one, spread.sequence_attention, axis, mesh.shape[axis], window, spread.sum_dtype)
    tokens, heads = PartitionSpec(spread.batch, axis), PartitionSpec(spread.batch, axis, spread.heads)
    run = jax.shard_map(
        lambda *inputs: _attend(*inputs, way),
        mesh=mesh,
        in_specs=(heads, heads, heads, tokens),
        out_specs=heads,
        check_vma=False,
    )
    return run(q_BTNH, k_BSKH, v_BSKH, begins_BT)
