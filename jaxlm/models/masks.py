"""Who sees whom: the one rule that every kernel of attention follows."""

from __future__ import annotations

import jax
import jax.numpy as jnp

NEG_INF = -1e30
"""Large enough that exp underflows to 0 in float32 and bfloat16, small enough that a fully masked row is no NaN."""


def is_seen(query: jax.Array, key: jax.Array, window: int | None) -> jax.Array:
    """Whether the query at one position sees the key at another: none after it, and `window` keys at most.

    The positions broadcast. window: its own key included; None: all before it.
    """
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


def causal_mask(segments_BT: jax.Array | None, window: int | None, queries: slice, keys: slice) -> jax.Array:
    """mask_BCS of some positions of packed rows; [1, C, S] where they hold one document each (segments_BT=None)."""
    query, key = jnp.arange(queries.start, queries.stop)[:, None], jnp.arange(keys.start, keys.stop)[None, :]
    seen_1CS = is_seen(query, key, window)[None]
    if segments_BT is None:
        return seen_1CS
    return seen_1CS & (segments_BT[:, queries, None] == segments_BT[:, None, keys])


def document_begins(segments_BT: jax.Array) -> jax.Array:
    """Where in its row each token's document begins, int32. A document is a run of equal segments."""
    begins = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)))
    position = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)[None]
    return jax.lax.cummax(jnp.where(begins, position, 0), axis=1)
