"""Causal attention on TPUs: JAX's splash kernel, forward and backward, one device's rows and heads at a time.

The kernel holds a block of queries and one of keys in fast memory, and skips blocks that the causal mask or the window
rules out. Documents of a packed row are told apart inside of blocks. Dao et al. 2022, FlashAttention, arXiv:2205.14135.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

from jaxlm.models.attention_flash import fit
from jaxlm.models.attention_flash_kernel import LANES
from jaxlm.models.layers import Spread, on_rows_and_heads

DEFAULT_SIZES = (512, 512)
"""Queries and keys at a time, in both passes; shorter where they do not divide the length."""


def picked_sizes(seq_len: int, asked: Sequence[int] | None = None) -> tuple[int, ...]:
    """Queries and keys at a time, forward and then backward, that divide the length, a multiple of `LANES`.

    asked: the six numbers of model.attention_blocks; the kernel has none for the diagonal.
    """
    sizes = (*DEFAULT_SIZES, *DEFAULT_SIZES) if asked is None else (*asked[:2], *asked[3:5])
    return tuple(fit(size, seq_len) for size in sizes)


def block_sizes(seq_len: int, asked: Sequence[int] | None) -> splash_attention_kernel.BlockSizes:
    """As the kernel takes them; of two backward kernels, one is for the queries."""
    q, kv, q_back, kv_back = picked_sizes(seq_len, asked)
    return splash_attention_kernel.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q_back,
        block_kv_dkv=kv_back,
        block_kv_dkv_compute=kv_back,
        block_q_dq=q_back,
        block_kv_dq=kv_back,
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
    blocks: Sequence[int] | None = None,
    interpret: bool = False,
) -> jax.Array:
    """The same function as `attend_dense`; see there for the arguments.

    Args:
      blocks: as of `picked_sizes`.
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
        block_sizes=block_sizes(size, blocks),
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

    return on_rows_and_heads(spread, local, (q_BTNH, k_BSKH, v_BSKH), segments_BT)
