"""Causal attention on TPUs: JAX's splash kernel, forward and backward, one device's rows and heads at a time.

The kernel holds a block of queries and one of keys in fast memory, and skips blocks that the causal mask or the window
rules out. Documents of a packed row are told apart inside of blocks. Dao et al. 2022, FlashAttention, arXiv:2205.14135.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.sharding import PartitionSpec

from jaxlm.models.layers import Spread

LANES = 128
"""The kernel takes lengths in multiples of this; its blocks are such multiples too."""


class Blocks(NamedTuple):
    """Queries and keys at a time: of the forward pass, and of the backward pass."""

    q: int = 512
    kv: int = 512
    q_back: int = 512
    kv_back: int = 512
    fused: bool = False
    """One backward kernel, which computes the logits once for the gradients of queries, keys and values, but leaves
    one addend of the queries' gradient for each block of keys; else two kernels."""


DEFAULT_BLOCKS = Blocks()


def pick_blocks(seq_len: int, asked: Blocks) -> splash_attention_kernel.BlockSizes:
    """The largest blocks up to those asked for that divide the length."""

    def fit(size: int) -> int:
        return next(b for b in range(min(size, seq_len), 0, -LANES) if seq_len % b == 0)

    q, kv, q_back, kv_back = (fit(size) for size in asked[:4])
    return splash_attention_kernel.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=min(kv, fit(512)),
        block_q_dkv=q_back,
        block_kv_dkv=kv_back,
        block_kv_dkv_compute=min(kv_back, fit(512)),
        block_q_dq=None if asked.fused else q_back,
        block_kv_dq=None if asked.fused else kv_back,
        use_fused_bwd_kernel=asked.fused,
    )


def attend_splash(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    *,
    segments_BT,
    window: int | None,
    softcap: float | None,
    scale: float,
    spread: Spread | None = None,
    blocks: Blocks = DEFAULT_BLOCKS,
    interpret: bool = False,
) -> jax.Array:
    """The same function as `attend_dense`; see there for the arguments.

    Args:
      spread: the mesh whose devices hold rows and heads; the compiler cannot cut a kernel.
      interpret: on a CPU, for tests.
    """
    B, T, N, _ = q_BTNH.shape
    size = -(-T // LANES) * LANES
    mask = splash_attention_mask.CausalMask((size, size))
    if window is not None:
        mask = splash_attention_mask.LocalMask((size, size), (window - 1, 0), offset=0)
    make = functools.partial(
        splash_attention_kernel.make_splash_mha,
        block_sizes=pick_blocks(size, blocks),
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name="attention",
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    if segments_BT is None:
        segments_BT = jnp.ones((B, T), jnp.int32)

    def local(q_BTNH, k_BSKH, v_BSKH, segments_BT):
        num_heads = q_BTNH.shape[2]
        kernel = make(splash_attention_mask.MultiHeadMask([mask] * num_heads))
        pad = ((0, 0), (0, size - T))  # queries beyond the end see themselves, and nobody sees them
        q, k, v = (
            jnp.pad(x, (*pad, (0, 0), (0, 0))).swapaxes(1, 2) for x in (q_BTNH * scale, k_BSKH, v_BSKH)
        )
        ids = jnp.pad(segments_BT, pad, constant_values=-1)
        o_BNTH: Any = jax.vmap(
            lambda q, k, v, ids: kernel(q, k, v, splash_attention_kernel.SegmentIds(ids, ids))
        )(q, k, v, ids)
        return o_BNTH.swapaxes(1, 2)[:, :T]

    if spread is None:
        return local(q_BTNH, k_BSKH, v_BSKH, segments_BT)
    rows, heads = PartitionSpec(spread.batch), PartitionSpec(spread.batch, None, spread.heads)
    run = jax.shard_map(
        local, mesh=spread.mesh, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )
    return run(q_BTNH, k_BSKH, v_BSKH, segments_BT)
