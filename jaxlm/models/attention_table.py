"""Attention of some queries with some keys, with the whole table of logits: results that can be merged.

What `attention_sequence` is made of, on CPUs and GPUs, and the twin that the kernel of TPUs is tested against.
"""

from __future__ import annotations

import math
from typing import NamedTuple

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
    """Two passes of attention in float32; see `FlashKernel` for the other that there is."""

    scale: float
    softcap: float | None

    def _logits(self, q_BTNH, k_BSKH, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """-> logits_BKGTS, soft-capped, and mask_BTS."""
        B, T, N, H = q_BTNH.shape
        S, K = k_BSKH.shape[1:3]
        q_BTKGH = q_BTNH.astype(_wide(q_BTNH)).reshape(B, T, K, N // K, H) * self.scale
        logits_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH.astype(q_BTKGH.dtype))
        key_11S = jnp.arange(S)[None, None]
        mask_BTS = key_11S < seen.end_T[None, :, None]
        if seen.first_BT is not None:
            mask_BTS &= key_11S >= seen.first_BT[:, :, None]
        return softcap(logits_BKGTS, self.softcap), mask_BTS

    def ahead(self, q_BTNH, k_BSKH, v_BSKH, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """-> o_BTNH in float32, and the logsumexp of each query's logits in powers of 2, lse_BNT.

        A query that sees none of the keys has zeros, and a logsumexp that weighs nothing.
        """
        B, T, N, _ = q_BTNH.shape
        logits_BKGTS, mask_BTS = self._logits(q_BTNH, k_BSKH, seen)
        logits_BKGTS = jnp.where(mask_BTS[:, None, None], logits_BKGTS, NEG_INF)
        # Above the logits of what is not seen, so that those weigh nothing where nothing is seen.
        highest_BKGT1 = jnp.maximum(logits_BKGTS.max(axis=-1, keepdims=True), NEG_INF / 2)
        exp_BKGTS = jnp.exp(logits_BKGTS - highest_BKGT1)
        total_BKGT1 = jnp.maximum(exp_BKGTS.sum(axis=-1, keepdims=True), jnp.finfo(exp_BKGTS.dtype).tiny)
        p_BKGTS = exp_BKGTS / total_BKGT1
        o_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", p_BKGTS, v_BSKH.astype(p_BKGTS.dtype))
        lse_BKGT1 = (highest_BKGT1 + jnp.log(total_BKGT1)) * LOG2_E
        return o_BTKGH.reshape(q_BTNH.shape), lse_BKGT1.reshape(B, N, T)

    def back(self, q_BTNH, k_BSKH, v_BSKH, o_BTNH, lse_BNT, do_BTNH, seen: Seen, dq_BTNH):
        """-> dq with the part of these keys added (None: they are the first), dk and dv, all in float32.

        o, lse: of all keys that the queries see, here and elsewhere.
        """
        B, T, N, H = q_BTNH.shape
        K, dtype = k_BSKH.shape[2], _wide(q_BTNH)
        q_BTKGH, o_BTKGH, do_BTKGH = (
            x.astype(dtype).reshape(B, T, K, N // K, H) for x in (q_BTNH, o_BTNH, do_BTNH)
        )
        k_BSKH, v_BSKH = k_BSKH.astype(dtype), v_BSKH.astype(dtype)
        logits_BKGTS, mask_BTS = self._logits(q_BTNH, k_BSKH, seen)
        lse_BKGT1 = lse_BNT.reshape(B, K, N // K, T, 1) / LOG2_E
        p_BKGTS = jnp.exp(jnp.where(mask_BTS[:, None, None], logits_BKGTS - lse_BKGT1, NEG_INF))
        delta_BKGT1 = jnp.einsum("BTKGH,BTKGH->BKGT", o_BTKGH, do_BTKGH)[..., None]
        dp_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", do_BTKGH, v_BSKH)
        ds_BKGTS = p_BKGTS * (dp_BKGTS - delta_BKGT1)
        if self.softcap is not None:
            ds_BKGTS *= 1 - (logits_BKGTS / self.softcap) ** 2
        ds_BKGTS *= self.scale
        part = jnp.einsum("BKGTS,BSKH->BTKGH", ds_BKGTS, k_BSKH).reshape(B, T, N, H)
        dk_BSKH = jnp.einsum("BKGTS,BTKGH->BSKH", ds_BKGTS, q_BTKGH)
        dv_BSKH = jnp.einsum("BKGTS,BTKGH->BSKH", p_BKGTS, do_BTKGH)
        return part if dq_BTNH is None else dq_BTNH + part, dk_BSKH, dv_BSKH


def _wide(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
