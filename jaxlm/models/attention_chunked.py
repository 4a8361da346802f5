"""Causal attention in static chunks of queries: each sees only the keys up to its end (and inside its window).

The fastest formulation found for XLA:CPU (`make bench` measures it), and the one with the least memory: the [T, T]
table is never whole, its upper half is never computed, and the backward pass needs none of it: it makes its own from
the logsumexp of each row, as in Dao et al. 2022, FlashAttention, arXiv:2205.14135, section 3.1 and appendix B.
(Where blocks are unrolled XLA:CPU sees that both passes begin with the same products, and keeps them.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.models.config import ATTENTION_CHUNK
from jaxlm.models.layers import softcap
from jaxlm.models.masks import NEG_INF, causal_mask


class _Rule(NamedTuple):
    """Who sees whom, and how sharply; static."""

    window: int | None
    softcap: float | None
    chunk: int


def attend_chunked(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    *,
    segments_BT,
    window: int | None,
    softcap: float | None,
    scale: float,
    chunk: int = ATTENTION_CHUNK,
) -> jax.Array:
    """The same function as `attend_dense`; see there for the arguments. chunk: queries at a time.

    All in float32, whatever the inputs: XLA:CPU has no batched products in bfloat16, it would only round in between.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    dtype = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    q_BKGTH = (q_BTNH.astype(dtype) * scale).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k_BSKH.astype(dtype).transpose(0, 2, 1, 3), v_BSKH.astype(dtype).transpose(0, 2, 1, 3)
    o_BKGTH = _attend(q_BKGTH, k_BKSH, v_BKSH, segments_BT, _Rule(window, softcap, chunk))
    return o_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(q_BTNH.dtype)


def _chunks(T: int, rule: _Rule) -> Iterator[tuple[slice, slice]]:
    """The queries of each chunk, and the keys that any of them may see."""
    for start in range(0, T, rule.chunk):
        stop = min(start + rule.chunk, T)
        first = 0 if rule.window is None else max(0, start - rule.window + 1)
        yield slice(start, stop), slice(first, stop)


def _rows(x_BKGTH: jax.Array, queries: slice) -> jax.Array:
    """The queries' rows of all heads that share a KV head, as one dim: [B, K, X = G * C, H]."""
    B, K, _, _, H = x_BKGTH.shape
    return x_BKGTH[:, :, :, queries].reshape(B, K, -1, H)


def _logits(
    q_BKXH, k_BKSH, segments_BT, queries: slice, keys: slice, rule: _Rule
) -> tuple[jax.Array, jax.Array]:
    """-> logits_BKGCS, soft-capped, and mask_BCS."""
    B, K, _, _ = q_BKXH.shape
    C, S = queries.stop - queries.start, keys.stop - keys.start
    logits_BKXS = jnp.einsum("BKXH,BKSH->BKXS", q_BKXH, k_BKSH[:, :, keys])
    logits_BKGCS = logits_BKXS.reshape(B, K, -1, C, S)
    return softcap(logits_BKGCS, rule.softcap), causal_mask(segments_BT, rule.window, queries, keys)


def _forward(q_BKGTH, k_BKSH, v_BKSH, segments_BT, rule: _Rule) -> tuple[jax.Array, jax.Array]:
    """-> o_BKGTH and lse_BKGT1, the logsumexp of each query's logits."""
    B, K, G, T, H = q_BKGTH.shape
    outputs, lses = [], []
    for queries, keys in _chunks(T, rule):
        logits_BKGCS, mask_BCS = _logits(_rows(q_BKGTH, queries), k_BKSH, segments_BT, queries, keys, rule)
        logits_BKGCS = jnp.where(mask_BCS[:, None, None], logits_BKGCS, NEG_INF)
        highest_BKGC1 = jnp.max(logits_BKGCS, axis=-1, keepdims=True)
        exp_BKGCS = jnp.exp(logits_BKGCS - highest_BKGC1)
        total_BKGC1 = jnp.sum(exp_BKGCS, axis=-1, keepdims=True)
        exp_BKXS = exp_BKGCS.reshape(B, K, -1, exp_BKGCS.shape[-1])
        o_BKXH = jnp.einsum("BKXS,BKSH->BKXH", exp_BKXS, v_BKSH[:, :, keys])
        outputs.append(o_BKXH.reshape(B, K, G, -1, H) / total_BKGC1)
        lses.append(highest_BKGC1 + jnp.log(total_BKGC1))
    return jnp.concatenate(outputs, axis=3), jnp.concatenate(lses, axis=3)


def _result(q_BKGTH, k_BKSH, v_BKSH, segments_BT, rule: _Rule) -> jax.Array:
    return _forward(q_BKGTH, k_BKSH, v_BKSH, segments_BT, rule)[0]


_attend = jax.custom_vjp(_result, nondiff_argnums=(4,))


def _attend_fwd(q_BKGTH, k_BKSH, v_BKSH, segments_BT, rule: _Rule):
    o_BKGTH, lse_BKGT1 = _forward(q_BKGTH, k_BKSH, v_BKSH, segments_BT, rule)
    return o_BKGTH, (q_BKGTH, k_BKSH, v_BKSH, segments_BT, o_BKGTH, lse_BKGT1)


def _attend_bwd(rule: _Rule, saved, do_BKGTH):
    q_BKGTH, k_BKSH, v_BKSH, segments_BT, o_BKGTH, lse_BKGT1 = saved
    B, K, G, T, H = q_BKGTH.shape
    # The sum of p * dp over a row's keys is that of o * do over its channels: H of them instead of S.
    # As a product of vectors: XLA:CPU's reduction of 64 channels takes 40 times as long (jax 0.10.2).
    delta_BKGT1 = jnp.einsum("BKGTH,BKGTH->BKGT", o_BKGTH, do_BKGTH)[..., None]
    dqs, dk_BKSH, dv_BKSH = [], jnp.zeros_like(k_BKSH), jnp.zeros_like(v_BKSH)
    for queries, keys in _chunks(T, rule):
        q_BKXH, do_BKXH = _rows(q_BKGTH, queries), _rows(do_BKGTH, queries)
        logits_BKGCS, mask_BCS = _logits(q_BKXH, k_BKSH, segments_BT, queries, keys, rule)
        exponent_BKGCS = jnp.where(
            mask_BCS[:, None, None], logits_BKGCS - lse_BKGT1[:, :, :, queries], NEG_INF
        )
        p_BKGCS = jnp.exp(exponent_BKGCS)
        dp_BKXS = jnp.einsum("BKXH,BKSH->BKXS", do_BKXH, v_BKSH[:, :, keys])
        ds_BKGCS = p_BKGCS * (dp_BKXS.reshape(p_BKGCS.shape) - delta_BKGT1[:, :, :, queries])
        if rule.softcap is not None:
            ds_BKGCS *= 1 - (logits_BKGCS / rule.softcap) ** 2
        p_BKXS, ds_BKXS = p_BKGCS.reshape(dp_BKXS.shape), ds_BKGCS.reshape(dp_BKXS.shape)
        dqs.append(jnp.einsum("BKXS,BKSH->BKXH", ds_BKXS, k_BKSH[:, :, keys]).reshape(B, K, G, -1, H))
        dk_BKSH = dk_BKSH.at[:, :, keys].add(jnp.einsum("BKXS,BKXH->BKSH", ds_BKXS, q_BKXH))
        dv_BKSH = dv_BKSH.at[:, :, keys].add(jnp.einsum("BKXS,BKXH->BKSH", p_BKXS, do_BKXH))
    return jnp.concatenate(dqs, axis=3), dk_BKSH, dv_BKSH, None


_attend.defvjp(_attend_fwd, _attend_bwd)
