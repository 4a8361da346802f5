"""Causal attention on TPUs: JAX's splash kernel, forward and backward, one device's rows and heads at a time.

The kernel holds a block of queries and one of keys in fast memory, and skips blocks that the causal mask or the window
rules out. Documents of a packed row are told apart inside of blocks. Dao et al. 2022, FlashAttention, arXiv:2205.14135.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.sharding import PartitionSpec

from jaxlm.models.attention_flash import fit
from jaxlm.models.attention_flash_kernel import LANES
from jaxlm.models.layers import Spread

BLOCK = 512
"""Queries and keys at a time, in both passes; shorter where it does not divide the length."""


def pick_blocks(seq_len: int) -> splash_attention_kernel.BlockSizes:
    """Blocks that divide the length, a multiple of `LANES`; of two backward kernels, one for the queries."""
    size = fit(BLOCK, seq_len)
    return splash_attention_kernel.BlockSizes(
        block_q=size,
        block_kv=size,
        block_kv_compute=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=size,
        block_q_dq=size,
        block_kv_dq=size,
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
        block_sizes=pick_blocks(size),
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
