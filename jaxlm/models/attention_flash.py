"""Causal attention on TPUs that reads queries, keys and values as the projections write them.

The heads of [B, T, N, H] lie side by side in the lanes of [B, T, N * H], and the kernels (`attention_flash_kernel`)
take one head's lanes at a time, so the compiler copies nothing into another layout on the way in or out; JAX's splash
kernel takes [B, N, T, H]. The logsumexp is kept as [B, N, T], 1 / 128 of splash's.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from jaxlm.models import attention_flash_kernel as kernel
from jaxlm.models.attention_flash_kernel import LANES, Tiling
from jaxlm.models.layers import Spread

MIB = 2**20
VMEM_BYTES = {
    "TPU v4": 16 * MIB,
    "TPU v5 lite": 128 * MIB,
    "TPU v5": 64 * MIB,
    "TPU v5p": 64 * MIB,
    "TPU v6 lite": 128 * MIB,
    "TPU7x": 64 * MIB,
}
"""Vector memory of one core, by `jax.Device.device_kind`. Source: the table of chips in JAX 0.11.1 (jax._src.tpu_info,
read 2026-07); an unknown chip is taken for the smallest."""


class Blocks(NamedTuple):
    """Queries and keys at a time, in the forward and the backward pass, and on the diagonal (see `Tiling`).

    `vmem_bytes`: what a kernel may take of vector memory; None: by the chip.
    """

    q: int = 512
    kv: int = 512
    diagonal: int = 256
    q_back: int = 512
    kv_back: int = 512
    diagonal_back: int = 256
    vmem_bytes: int | None = None


DEFAULT_BLOCKS = Blocks()


def supports(head_dim: int, num_heads: int, kv_heads: int) -> bool:
    """Whether the kernels can cut one head, or two, out of the lanes; the numbers of heads are one device's.

    Heads of 128 lanes or a multiple; of 64, in pairs. Else: `attend_splash`.
    """
    if num_heads % kv_heads:
        return False
    if head_dim == LANES // 2:
        return num_heads % 2 == 0 and kv_heads % 2 == 0
    return head_dim % LANES == 0


def fit(size: int, length: int) -> int:
    """The largest multiple of 128 up to `size` that divides the length."""
    return next(b for b in range(min(size, length) // LANES * LANES, 0, -LANES) if length % b == 0)


def first_seen(segments_BT, window: int | None, B: int, T: int) -> jax.Array | None:
    """The first key that each query sees, [B, T] int32, never falling along a row; None: all see key 0.

    A document is a run of equal segments, so where it begins says all.
    """
    position = jnp.arange(T, dtype=jnp.int32)[None]
    first = None
    if segments_BT is not None:
        begins = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)))
        first = jax.lax.cummax(jnp.where(begins, position, 0), axis=1)
    if window is not None and window < T:
        within = jnp.maximum(position - (window - 1), 0)
        first = jnp.broadcast_to(within, (B, T)) if first is None else jnp.maximum(first, within)
    return first


def pick_tiling(q_BTNH, kv_heads: int, blocks: Blocks, *, back: bool, **how) -> Tiling:
    """Blocks that divide the length, and as many keys at a time as vector memory holds."""
    _, T, N, H = q_BTNH.shape
    heads = 2 if H < LANES else 1
    q, kv, diagonal = blocks[3:6] if back else blocks[:3]
    q = fit(q, T)
    kv, diagonal = fit(kv, q), fit(diagonal, q)
    size, group = q_BTNH.dtype.itemsize, N // kv_heads
    assert blocks.vmem_bytes is not None
    lanes = heads * H
    copies = 2 if heads == 2 and group > 1 else 0
    key_bytes = lanes * (4 * size + copies * 2 * size)  # keys and values, twice: one is fetched while one is used
    block_bytes = 2 * 3 * q * lanes * size + heads * q * (lanes * size + 2 * LANES * 4) + q * lanes * 4
    table_bytes = max(q * kv, diagonal * q) * (4 * 3 + size)
    if back:
        key_bytes += lanes * (max(copies, 1) * 2 * 4 + 4 * size)  # sums of both gradients, and what is written of them
        block_bytes = 2 * 5 * q * lanes * size + heads * 2 * q * lanes * size + 2 * q * lanes * 4
        table_bytes = max(q * kv, diagonal * q) * (4 * 4 + 2 * size)
    limit = blocks.vmem_bytes * 3 // 4
    fits = [c for c in range(T, q - 1, -q) if T % c == 0 and c * key_bytes + block_bytes + table_bytes <= limit]
    return Tiling(
        seq_len=T,
        q=q,
        kv=kv,
        diagonal=diagonal,
        chunk=fits[0] if fits else q,
        head_dim=H,
        heads=heads,
        group=group,
        vmem_bytes=blocks.vmem_bytes * 7 // 8,
        **how,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def attention(q_BTX, k_BTX, v_BTX, first_BT, ahead: Tiling, back: Tiling, window: int | None) -> jax.Array:
    """One device's rows and heads; X: its heads and their lanes. `ahead`, `back`: of the two passes."""
    return kernel.forward(q_BTX, k_BTX, v_BTX, first_BT, ahead, window)[0]


def _attention_ahead(q_BTX, k_BTX, v_BTX, first_BT, ahead: Tiling, back: Tiling, window: int | None):
    o_BTX, lse = kernel.forward(q_BTX, k_BTX, v_BTX, first_BT, ahead, window)
    o_BTX, lse = checkpoint_name(o_BTX, "attention"), checkpoint_name(lse, "attention")
    return o_BTX, (q_BTX, k_BTX, v_BTX, first_BT, o_BTX, lse)


def _attention_back(ahead: Tiling, back: Tiling, window: int | None, residuals, do_BTX):
    q_BTX, k_BTX, v_BTX, first_BT, o_BTX, lse = residuals
    return *kernel.backward(q_BTX, k_BTX, v_BTX, first_BT, o_BTX, lse, do_BTX, back, window), None


attention.defvjp(_attention_ahead, _attention_back)


def attend_flash(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    *,
    segments_BT,
    window: int | None,
    softcap: float | None,
    scale: float,
    spread: Spread | None = None,
    blocks: Blocks | None = None,
    interpret: bool = False,
) -> jax.Array:
    """The same function as `attend_dense`, if equal segments of a row are neighbours; see there for the arguments.

    Args:
      spread: the mesh whose devices hold rows and heads; the compiler cannot cut a kernel.
      interpret: on a CPU, for tests.
    """
    T = q_BTNH.shape[1]
    blocks = DEFAULT_BLOCKS if blocks is None else blocks
    if blocks.vmem_bytes is None:
        kind = spread.mesh.devices.flat[0].device_kind if spread is not None else jax.devices()[0].device_kind
        blocks = blocks._replace(vmem_bytes=VMEM_BYTES.get(kind, min(VMEM_BYTES.values())))

    def local(q_BTNH, k_BSKH, v_BSKH, segments_BT):
        pad = ((0, 0), (0, -T % LANES))  # queries beyond the end are cut off, and keys there are seen by them alone
        if T % LANES:
            q_BTNH, k_BSKH, v_BSKH = (jnp.pad(x, (*pad, (0, 0), (0, 0))) for x in (q_BTNH, k_BSKH, v_BSKH))
            segments_BT = None if segments_BT is None else jnp.pad(segments_BT, pad, mode="edge")
        B, size, N, H = q_BTNH.shape
        first_BT = first_seen(segments_BT, window, B, size)
        how = {"scale": scale, "softcap": softcap, "limited": first_BT is not None, "interpret": interpret}
        ahead, back = (pick_tiling(q_BTNH, k_BSKH.shape[2], blocks, back=back, **how) for back in (False, True))
        flat = (x.reshape(*x.shape[:2], -1) for x in (q_BTNH, k_BSKH, v_BSKH))
        return attention(*flat, first_BT, ahead, back, window)[:, :T].reshape(B, T, N, H)

    if spread is None:
        return local(q_BTNH, k_BSKH, v_BSKH, segments_BT)
    rows, heads = PartitionSpec(spread.batch), PartitionSpec(spread.batch, None, spread.heads)
    specs = (heads, heads, heads, None if segments_BT is None else rows)
    run = jax.shard_map(local, mesh=spread.mesh, in_specs=specs, out_specs=heads, check_vma=False)
    return run(q_BTNH, k_BSKH, v_BSKH, segments_BT)
