"""Attention of some queries with some keys, with the whole table of logits: results that can be merged.

What `attention_sequence` is made of, on CPUs and GPUs, and the twin that the kernel of TPUs is tested against.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.models.layers import softcap
from jaxlm.models.masks import NEG_INF

LOG2_E = math.log2(math.e)


class Seen(NamedTuple):
    """Which of some keys each query sees: those at places from `first` on and before `end`."""

    first_BT: jax.Array | None
    """None: 0."""
    end_T: jax.Array
    is_own: bool
    """Whether its own key is among them, at end - 1; else ends are where pieces end."""


class TableKernel(NamedTuple):
    """Two passes of attention in float32; see `FlashKernel` for the other that there is.

    Heads lie side by side in the last dim: X those of queries, Y those of keys and values.
    """

    scale: float
    softcap: float | None
    head_dim: int

    def _heads(self, q_BTX, *kv_BSY) -> list[jax.Array]:
        """q_BTKGH and each kv_BSKH, in float32."""
        H, dtype = self.head_dim, jnp.promote_types(q_BTX.dtype, jnp.float32)
        K = kv_BSY[0].shape[-1] // H
        kv_BSKH = [x.astype(dtype).reshape(*x.shape[:2], K, H) for x in kv_BSY]
        return [q_BTX.astype(dtype).reshape(*q_BTX.shape[:2], K, -1, H), *kv_BSKH]

    def _logits(self, q_BTKGH, k_BSKH, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """-> logits_BKGTS, soft-capped, and mask_BTS."""
        logits_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH * self.scale, k_BSKH)
        key_11S = jnp.arange(k_BSKH.shape[1])[None, None]
        mask_BTS = key_11S < seen.end_T[None, :, None]
        if seen.first_BT is not None:
            mask_BTS &= key_11S >= seen.first_BT[:, :, None]
        return softcap(logits_BKGTS, self.softcap), mask_BTS

    def ahead(
        self,
        q_BTX,
        k_BSY,
        v_BSY,
        seen: Seen,
        before: tuple[jax.Array, jax.Array] | None = None,
        dtype: Any = jnp.float32,
    ) -> tuple[jax.Array, jax.Array]:
        """-> o_BTX in `dtype`, and the logsumexp of each query's logits in powers of 2, lse_BNT.

        before: the same of other keys, to which these are added; None: these are the first, and each query sees one.
        """
        B, T, X = q_BTX.shape
        q_BTKGH, k_BSKH, v_BSKH = self._heads(q_BTX, k_BSY, v_BSY)
        logits_BKGTS, mask_BTS = self._logits(q_BTKGH, k_BSKH, seen)
        logits_BKGTS = jnp.where(mask_BTS[:, None, None], logits_BKGTS, NEG_INF)
        # Above the logits of what is not seen, so that those weigh nothing where nothing is seen.
        highest_BKGT1 = jnp.maximum(logits_BKGTS.max(axis=-1, keepdims=True), NEG_INF / 2)
        exp_BKGTS = jnp.exp(logits_BKGTS - highest_BKGT1)
        total_BKGT1 = jnp.maximum(exp_BKGTS.sum(axis=-1, keepdims=True), jnp.finfo(exp_BKGTS.dtype).tiny)
        o_BTX = jnp.einsum("BKGTS,BSKH->BTKGH", exp_BKGTS / total_BKGT1, v_BSKH).reshape(B, T, X)
        lse_BNT = ((highest_BKGT1 + jnp.log(total_BKGT1)) * LOG2_E).reshape(B, -1, T)
        if before is not None:
            o_BTX, lse_BNT = merge(*before, o_BTX, lse_BNT)
        return o_BTX.astype(dtype), lse_BNT

    def back(self, q_BTX, k_BSY, v_BSY, o_BTX, lse_BNT, do_BTX, seen: Seen, dq_BTX: jax.Array | None):
        """-> dq with the part of these keys added (None: they are the first), dk and dv, all in float32.

        o, lse: of all keys that the queries see, here and elsewhere.
        """
        B, T, X = q_BTX.shape
        q_BTKGH, k_BSKH, v_BSKH = self._heads(q_BTX, k_BSY, v_BSY)
        o_BTKGH, do_BTKGH = (x.astype(q_BTKGH.dtype).reshape(q_BTKGH.shape) for x in (o_BTX, do_BTX))
        logits_BKGTS, mask_BTS = self._logits(q_BTKGH, k_BSKH, seen)
        lse_BKGT1 = lse_BNT.reshape(*logits_BKGTS.shape[:4], 1) / LOG2_E
        p_BKGTS = jnp.exp(jnp.where(mask_BTS[:, None, None], logits_BKGTS - lse_BKGT1, NEG_INF))
        delta_BKGT1 = jnp.einsum("BTKGH,BTKGH->BKGT", o_BTKGH, do_BTKGH)[..., None]
        ds_BKGTS = p_BKGTS * (jnp.einsum("BTKGH,BSKH->BKGTS", do_BTKGH, v_BSKH) - delta_BKGT1)
        if self.softcap is not None:
            ds_BKGTS *= 1 - (logits_BKGTS / self.softcap) ** 2
        ds_BKGTS *= self.scale
        more_BTX = jnp.einsum("BKGTS,BSKH->BTKGH", ds_BKGTS, k_BSKH).reshape(B, T, X)
        dk_BSKH = jnp.einsum("BKGTS,BTKGH->BSKH", ds_BKGTS, q_BTKGH)
        dv_BSKH = jnp.einsum("BKGTS,BTKGH->BSKH", p_BKGTS, do_BTKGH)
        return (
            more_BTX if dq_BTX is None else dq_BTX + more_BTX,
            dk_BSKH.reshape(k_BSY.shape),
            dv_BSKH.reshape(v_BSY.shape),
        )


def merge(o_BTX, lse_BNT, more_BTX, more_lse_BNT) -> tuple[jax.Array, jax.Array]:
    """The attention over two sets of keys, from that over each."""
    total_BNT = jnp.logaddexp2(lse_BNT, more_lse_BNT)
    B, N, T = lse_BNT.shape

    def part(o_BTX, lse_BNT):
        share_BTN1 = jnp.exp2(lse_BNT - total_BNT).swapaxes(1, 2)[..., None]
        return (o_BTX.reshape(B, T, N, -1) * share_BTN1).reshape(o_BTX.shape)

    return part(o_BTX, lse_BNT) + part(more_BTX, more_lse_BNT), total_BNT
