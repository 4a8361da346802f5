"""Causal attention on TPUs that reads queries, keys and values as the projections write them.

The heads of [B, T, N, H] lie side by side in the lanes of [B, T, N * H], and the kernels (`attention_flash_kernel`)
take one head's lanes at a time, so the compiler copies nothing into another layout on the way in or out; JAX's splash
kernel takes [B, N, T, H]. The logsumexp is kept as [B, N, T], 1 / 128 of splash's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlm.models.attention_flash_back import backward
from jaxlm.models.attention_flash_kernel import LANES, Tiling, forward
from jaxlm.models.config import ModelConfig
from jaxlm.models.layers import Spread, on_rows_and_heads
from jaxlm.models.masks import document_begins
from jaxlm.models.vector_memory import bytes_of_core, limit_bytes


class Blocks(NamedTuple):
    """Queries and keys at a time, in the forward and the backward pass, and on the diagonal (see `Tiling`).

    `vmem_bytes`: what a kernel may take of vector memory; None: by the chip.
    """

    q: int = 1024
    kv: int = 512
    diagonal: int = 256
    q_back: int = 1024
    kv_back: int = 512
    diagonal_back: int = 256
    vmem_bytes: int | None = None


DEFAULT_BLOCKS = Blocks()
CHIP_BLOCKS = {"TPU7x": Blocks(kv=1024, kv_back=1024)}
"""`jax.Device.device_kind` -> what it takes in place of `DEFAULT_BLOCKS`.

By the instruction bundles of the scheduled kernels (heads of 128, rows of 2,048 to 8,192 that hold one document each;
libtpu 0.0.46, 2026-11-26; no stalls are in them): twice the keys at a time save 3 to 8 % of the forward and 4 to 9 % of
the backward kernel on TPU7x; on v5e, v5p and v6e they change less than 2 %. Half the queries cost 2 to 27 %, half the
keys up to 35 %; diagonals of 128 or 512 change -6 to 6 %, better in one pass or chip and worse in another. Twice the
queries save up to 18 %, and compute all that is above the diagonal or of other documents within their block.
"""


def blocks_of(device_kind: str, asked: Sequence[Any] | None = None) -> Blocks:
    """As asked, or the default of a chip; with the vector memory that it has, unless they say another."""
    blocks = CHIP_BLOCKS.get(device_kind, DEFAULT_BLOCKS) if asked is None else Blocks(*asked)
    if blocks.vmem_bytes is not None:
        return blocks
    return blocks._replace(vmem_bytes=bytes_of_core(device_kind))


def picked_blocks(config: ModelConfig, seq_len: int, device_kind: str, num_parts: int = 1) -> tuple[int, ...]:
    """The six numbers of `Blocks` that a training takes: as asked for or by default, if length and memory allow.

    Args:
      num_parts: devices that the heads are split over.
    """
    blocks = blocks_of(device_kind, config.block_sizes)
    size, N, K = -(-seq_len // LANES) * LANES, config.num_heads // num_parts, config.kv_heads // num_parts
    q_BTNH = jax.ShapeDtypeStruct((1, size, N, config.head_width), config.dtype)
    how = {"scale": 1.0, "softcap": config.attention_softcap, "limited": True}
    how["rotated"] = config.positions == "rope"
    tilings = (pick_tiling(q_BTNH, K, blocks, back=back, **how) for back in (False, True))
    return tuple(size for t in tilings for size in (t.q, t.kv, t.diagonal))


def fit(size: int, length: int) -> int:
    """The largest multiple of 128 up to `size` that divides the length."""
    return next(b for b in range(min(size, length) // LANES * LANES, 0, -LANES) if length % b == 0)


def first_seen(segments_BT, window: int | None, B: int, T: int) -> jax.Array | None:
    """The first key that each query sees, [B, T] int32, never falling along a row; None: all see key 0."""
    first = None if segments_BT is None else document_begins(segments_BT)
    if window is not None and window < T:
        within = jnp.maximum(jnp.arange(T, dtype=jnp.int32)[None] - (window - 1), 0)
        first = jnp.broadcast_to(within, (B, T)) if first is None else jnp.maximum(first, within)
    return first


def turn_table(rotation, B: int, heads: int) -> jax.Array:
    """[B, T, lanes of a block], float32: in each head's lanes its cosines, then its sines."""
    halves = jnp.concatenate([x_BT1H[:, :, 0] for x_BT1H in rotation], axis=-1).astype(jnp.float32)
    table = jnp.concatenate([halves] * heads, axis=-1)
    return jnp.broadcast_to(table, (B, *table.shape[1:]))


def pick_tiling(
    q_BTNH, kv_heads: int, blocks: Blocks, *, back: bool, num_others: int | None = None, **how
) -> Tiling:
    """Blocks that divide the length, and as many keys at a time as vector memory holds; num_others as of Tiling."""
    _, T, N, H = q_BTNH.shape
    num_keys, piece = (T, T) if num_others is None else (num_others, T // 2)
    asked_q, asked_kv, asked_diagonal = blocks[3:6] if back else blocks[:3]
    assert blocks.vmem_bytes is not None
    tiling = None
    for asked in range(asked_q, 0, -LANES):
        q = fit(asked, piece)
        tiling = Tiling(
            seq_len=T,
            q=q,
            kv=fit(asked_kv, q),
            diagonal=fit(asked_diagonal, q),
            chunk=q,
            head_dim=H,
            heads=2 if H < LANES else 1,
            group=N // kv_heads,
            vmem_bytes=blocks.vmem_bytes * 7 // 8,
            num_others=num_others,
            **how,
        )
        for num_chunks in range(1, num_keys // q + 1):
            if num_keys % (num_chunks * q) == 0:
                whole = tiling._replace(chunk=num_keys // num_chunks)
                needed = estimate_bytes(whole, q_BTNH.dtype.itemsize, back=back)
                if needed <= blocks.vmem_bytes * 3 // 4:
                    return whole._replace(vmem_bytes=limit_bytes(needed, blocks.vmem_bytes))
    assert tiling is not None
    return tiling


def estimate_bytes(t: Tiling, size: int, *, back: bool) -> int:
    """Vector memory of a kernel, `size` bytes a number: what it names, and tables of logits between products.

    Blocks that cross HBM are there twice: one is fetched, or written, while one is used.
    """
    moved = 4 * t.lanes * size + (2 * t.lanes * 4 if t.rotated else 0)
    per_key = moved + t.copies * t.variants * t.lanes * size
    per_query = 2 * 2 * t.lanes * size + t.heads * (t.lanes * size + 2 * LANES * 4) + t.lanes * 4 + LANES * 4
    per_pair = 3 * 4 + size
    if back:
        per_key += 2 * t.variants * t.lanes * 4 + 4 * t.lanes * size
        per_query = 2 * 4 * t.lanes * size + 2 * t.heads * t.lanes * size + 4 * t.lanes * 4
        per_query += 4 * t.lanes * 4 if t.num_chunks > 1 else 0
        per_pair = 4 * 4 + 2 * size
    return t.chunk * per_key + t.q * per_query + t.q * max(t.kv, t.diagonal) * per_pair


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def attention(
    q_BTX, k_BTX, v_BTX, first_BT, table_BTX, ahead: Tiling, back: Tiling, window: int | None
) -> jax.Array:
    """One device's rows and heads; X: its heads and their lanes. `ahead`, `back`: of the two passes."""
    return forward(q_BTX, k_BTX, v_BTX, first_BT, table_BTX, ahead, window)[0]


def _attention_ahead(
    q_BTX, k_BTX, v_BTX, first_BT, table_BTX, ahead: Tiling, back: Tiling, window: int | None
):
    o_BTX, lse = forward(q_BTX, k_BTX, v_BTX, first_BT, table_BTX, ahead, window)
    o_BTX, lse = checkpoint_name(o_BTX, "attention"), checkpoint_name(lse, "attention")
    return o_BTX, (q_BTX, k_BTX, v_BTX, first_BT, table_BTX, o_BTX, lse)


def _attention_back(ahead: Tiling, back: Tiling, window: int | None, residuals, do_BTX):
    q_BTX, k_BTX, v_BTX, first_BT, table_BTX, o_BTX, lse = residuals
    gradients = backward(q_BTX, k_BTX, v_BTX, first_BT, table_BTX, o_BTX, lse, do_BTX, back, window)
    return *gradients, None, None


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
    rotation: tuple[jax.Array, jax.Array] | None = None,
    spread: Spread | None = None,
    blocks: Sequence[Any] | None = None,
    interpret: bool = False,
) -> jax.Array:
    """The same function as `attend_dense`, if equal segments of a row are neighbours; see there for the arguments.

    Args:
      rotation: cosines and sines of RoPE, [B or 1, T, 1, H // 2]; queries and keys are turned by them on the way into
        the products (see `rope`), so that nobody writes or keeps them turned. No gradient flows into it.
      spread: the mesh whose devices hold rows and heads; the compiler cannot cut a kernel.
      interpret: on a CPU, for tests.
    """
    B, T, _, H = q_BTNH.shape
    device = spread.mesh.devices.flat[0] if spread is not None else jax.devices()[0]
    blocks = blocks_of(device.device_kind, blocks)
    table_BTX = None if rotation is None else turn_table(rotation, B, 2 if H < LANES else 1)

    def local(q_BTNH, k_BSKH, v_BSKH, segments_BT, table_BTX):
        pad = (
            (0, 0),
            (0, -T % LANES),
        )  # queries beyond the end are cut off, and keys there are seen by them alone
        if T % LANES:
            q_BTNH, k_BSKH, v_BSKH = (jnp.pad(x, (*pad, (0, 0), (0, 0))) for x in (q_BTNH, k_BSKH, v_BSKH))
            segments_BT = None if segments_BT is None else jnp.pad(segments_BT, pad, mode="edge")
            table_BTX = None if table_BTX is None else jnp.pad(table_BTX, (*pad, (0, 0)))
        B, size, N, H = q_BTNH.shape
        first_BT = first_seen(segments_BT, window, B, size)
        how = {
            "scale": scale,
            "softcap": softcap,
            "limited": first_BT is not None,
            "rotated": table_BTX is not None,
        }
        ahead, back = (
            pick_tiling(q_BTNH, k_BSKH.shape[2], blocks, back=back, interpret=interpret, **how)
            for back in (False, True)
        )
        flat = (x.reshape(*x.shape[:2], -1) for x in (q_BTNH, k_BSKH, v_BSKH))
        o_BTX = cast(jax.Array, attention(*flat, first_BT, table_BTX, ahead, back, window))
        return o_BTX[:, :T].reshape(B, T, N, H)

    return on_rows_and_heads(spread, local, (q_BTNH, k_BSKH, v_BSKH), segments_BT, table_BTX)
