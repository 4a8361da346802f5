"""Causal attention in static chunks of queries: each sees only the keys up to its end (and inside its window).

The fastest formulation found for XLA:CPU (`make bench` measures it), and the one with the least memory: the [T, T]
table is never whole, its upper half is never computed, and the backward pass needs none of it: it makes its own from
the logsumexp of each query, as in Dao et al. 2022, FlashAttention, arXiv:2205.14135, section 3.1 and appendix B.
(Where blocks are unrolled XLA:CPU sees that both passes begin with the same products, and keeps them.)

Tables are [keys, queries], the other way round than usual: of the six products of both passes, four then have both
operands in the order in which a CPU multiplies, instead of two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.models.config import attention_chunk
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
    chunk: int | None = None,
) -> jax.Array:
    """The same function as `attend_dense`; see there for the arguments. chunk: queries at a time.

    All in float32, whatever the inputs: most batched products in bfloat16 XLA:CPU converts, and only rounds in between.
    """
    dtype = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    q, k, v = (x.astype(dtype) for x in (q_BTNH, k_BSKH, v_BSKH))
    rule = _Rule(window, softcap, chunk or attention_chunk(q.shape[1]))
    return _attend(q * scale, k, v, segments_BT, rule).astype(q_BTNH.dtype)


def _chunks(T: int, rule: _Rule) -> Iterator[tuple[slice, slice]]:
    """The queries of each chunk, and the keys that any of them may see."""
    for start in range(0, T, rule.chunk):
        stop = min(start + rule.chunk, T)
        first = 0 if rule.window is None else max(0, start - rule.window + 1)
        yield slice(start, stop), slice(first, stop)


def _by_kv_head(x_BTNH: jax.Array, K: int) -> jax.Array:
    """-> x_BKGTH: heads in groups that share a KV head."""
    B, T, N, H = x_BTNH.shape
    return x_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)


def _rows(x_BCNH: jax.Array, K: int) -> jax.Array:
    """Some queries of all heads that share a KV head, as one dim: x_BKXH, X = G * C."""
    B, _, _, H = x_BCNH.shape
    return _by_kv_head(x_BCNH, K).reshape(B, K, -1, H)


def _columns(x_BCNH: jax.Array, K: int) -> jax.Array:
    """The same, x_BKHX."""
    return _rows(x_BCNH, K).swapaxes(2, 3)


def _from_columns(x_BKHX: jax.Array, num_queries: int) -> jax.Array:
    """-> x_BCNH."""
    B, K, H, _ = x_BKHX.shape
    return x_BKHX.reshape(B, K, H, -1, num_queries).transpose(0, 4, 1, 3, 2).reshape(B, num_queries, -1, H)


def _logits(
    q_BCNH, k_BKSH, segments_BT, queries: slice, keys: slice, rule: _Rule
) -> tuple[jax.Array, jax.Array]:
    """-> logits_BKSGC, soft-capped, and mask_B1S1C."""
    B, K, S, _ = k_BKSH.shape
    logits_BKSX = jnp.einsum("BKSH,BKHX->BKSX", k_BKSH, _columns(q_BCNH, K))
    mask_BCS = causal_mask(segments_BT, rule.window, queries, keys)
    logits_BKSGC = logits_BKSX.reshape(B, K, S, -1, mask_BCS.shape[1])
    return softcap(logits_BKSGC, rule.softcap), mask_BCS.swapaxes(1, 2)[:, None, :, None]


def _forward(q_BTNH, k_BSKH, v_BSKH, segments_BT, rule: _Rule) -> tuple[jax.Array, list[jax.Array]]:
    """-> o_BTNH and lse_BK1GC, the logsumexp of each query's logits, of each chunk."""
    B, T, _, _ = q_BTNH.shape
    K = k_BSKH.shape[2]
    k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    outputs, lses = [], []
    for queries, keys in _chunks(T, rule):
        logits_BKSGC, mask = _logits(q_BTNH[:, queries], k_BKSH[:, :, keys], segments_BT, queries, keys, rule)
        logits_BKSGC = jnp.where(mask, logits_BKSGC, NEG_INF)
        highest_BK1GC = jnp.max(logits_BKSGC, axis=2, keepdims=True)
        exp_BKSGC = jnp.exp(logits_BKSGC - highest_BK1GC)
        total_BK1GC = jnp.sum(exp_BKSGC, axis=2, keepdims=True)
        exp_BKSX = exp_BKSGC.reshape(B, K, exp_BKSGC.shape[2], -1)
        o_BKHX = jnp.einsum("BKSH,BKSX->BKHX", v_BKSH[:, :, keys], exp_BKSX)
        o_BKHX = o_BKHX / total_BK1GC.reshape(B, K, 1, -1)
        outputs.append(_from_columns(o_BKHX, queries.stop - queries.start))
        lses.append(highest_BK1GC + jnp.log(total_BK1GC))
    return jnp.concatenate(outputs, axis=1), lses


def _result(q_BTNH, k_BSKH, v_BSKH, segments_BT, rule: _Rule) -> jax.Array:
    return _forward(q_BTNH, k_BSKH, v_BSKH, segments_BT, rule)[0]


_attend = jax.custom_vjp(_result, nondiff_argnums=(4,))


def _attend_fwd(q_BTNH, k_BSKH, v_BSKH, segments_BT, rule: _Rule):
    o_BTNH, lses = _forward(q_BTNH, k_BSKH, v_BSKH, segments_BT, rule)
    return o_BTNH, (q_BTNH, k_BSKH, v_BSKH, segments_BT, o_BTNH, lses)


def _attend_bwd(rule: _Rule, saved, do_BTNH):
    q_BTNH, k_BSKH, v_BSKH, segments_BT, o_BTNH, lses = saved
    T, K = q_BTNH.shape[1], k_BSKH.shape[2]
    k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    # The sum of p * dp over a query's keys is that of o * do over its channels: H of them instead of S.
    # As a product of vectors: XLA:CPU's reduction of 64 channels takes 40 times as long (jax 0.10.2).
    delta_BTN1 = jnp.einsum("BTNH,BTNH->BTN", o_BTNH, do_BTNH)[..., None]
    delta_BK1GT = _by_kv_head(delta_BTN1, K)[:, :, None, ..., 0]
    dqs, dk_BKSH, dv_BKSH = [], jnp.zeros_like(k_BKSH), jnp.zeros_like(v_BKSH)
    for (queries, keys), lse_BK1GC in zip(_chunks(T, rule), lses, strict=True):
        q_BCNH, do_BCNH = q_BTNH[:, queries], do_BTNH[:, queries]
        k, v = k_BKSH[:, :, keys], v_BKSH[:, :, keys]
        logits_BKSGC, mask = _logits(q_BCNH, k, segments_BT, queries, keys, rule)
        p_BKSGC = jnp.exp(jnp.where(mask, logits_BKSGC - lse_BK1GC, NEG_INF))
        dp_BKSX = jnp.einsum("BKSH,BKHX->BKSX", v, _columns(do_BCNH, K))
        ds_BKSGC = p_BKSGC * (dp_BKSX.reshape(p_BKSGC.shape) - delta_BK1GT[..., queries])
        if rule.softcap is not None:
            ds_BKSGC *= 1 - (logits_BKSGC / rule.softcap) ** 2
        p_BKSX, ds_BKSX = p_BKSGC.reshape(dp_BKSX.shape), ds_BKSGC.reshape(dp_BKSX.shape)
        dq_BKHX = jnp.einsum("BKSH,BKSX->BKHX", k, ds_BKSX)
        dqs.append(_from_columns(dq_BKHX, queries.stop - queries.start))
        dk_BKSH = dk_BKSH.at[:, :, keys].add(jnp.einsum("BKSX,BKXH->BKSH", ds_BKSX, _rows(q_BCNH, K)))
        dv_BKSH = dv_BKSH.at[:, :, keys].add(jnp.einsum("BKSX,BKXH->BKSH", p_BKSX, _rows(do_BCNH, K)))
    return jnp.concatenate(dqs, axis=1), dk_BKSH.swapaxes(1, 2), dv_BKSH.swapaxes(1, 2), None


_attend.defvjp(_attend_fwd, _attend_bwd)
