"""From logits to one token: temperature, top-k, top-p and min-p without a sort, and an exact draw.

Every filter keeps the tokens at least as probable as some threshold, so all three together are one threshold
per row. It is found by bisecting the bits of a float32: 30 passes over the vocabulary, 0.23 ms for 49,152
tokens where a sort takes 9 ms (XLA:CPU, 2 cores), and no sort on accelerators either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxlm.infer.config import SamplingConfig

BLOCK = 256
"""Tokens in a block of the two-level draw."""


class Knobs(NamedTuple):
    """A SamplingConfig as scalars on the device: no setting needs a compilation of its own."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    vocab_size: jax.Array
    """Ids from here on only pad the embedding: they are never picked and hold no probability."""


NO_LIMIT = 2**31 - 1


def make_knobs(sampling: SamplingConfig, vocab_size: int | None = None) -> Knobs:
    """The values of `sampling` with every unset filter at its neutral value."""
    return Knobs(
        jnp.float32(sampling.temperature),
        jnp.int32(NO_LIMIT if sampling.top_k is None else min(sampling.top_k, NO_LIMIT)),
        jnp.float32(1.0 if sampling.top_p is None else sampling.top_p),
        jnp.float32(sampling.min_p or 0.0),
        jnp.int32(NO_LIMIT if vocab_size is None else vocab_size),
    )


def forbid_padding(logits_BV: jax.Array, knobs: Knobs) -> jax.Array:
    """-inf for the ids that only pad the embedding."""
    ids_1V = jnp.arange(logits_BV.shape[-1])[None, :]
    return jnp.where(ids_1V < knobs.vocab_size, logits_BV.astype(jnp.float32), -jnp.inf)


def largest_threshold(enough: Callable[[jax.Array], jax.Array], num_rows: int) -> jax.Array:
    """Largest float32 threshold in [0, 2) per row for which `enough(threshold_B)` holds; 0 where none does.

    `enough` must hold up to some threshold and not beyond. Non-negative floats order like their bits, so
    fixing the bits from the highest on is exact.
    """

    def fix_bit(i, bits_B):
        trial_B = bits_B | (1 << (29 - i))
        return jnp.where(enough(lax.bitcast_convert_type(trial_B, jnp.float32)), trial_B, bits_B)

    bits_B = lax.fori_loop(0, 30, fix_bit, jnp.zeros(num_rows, jnp.int32))
    return lax.bitcast_convert_type(bits_B, jnp.float32)


def filter_logits(logits_BV: jax.Array, knobs: Knobs) -> jax.Array:
    """Logits over temperature, then -inf where top-k, top-p or min-p drop the token.

    The usual order: temperature, top-k, top-p over what top-k left, min-p. Tokens exactly as probable as the
    last one kept are kept too. At temperature 0 the most probable token alone is left. At least one always
    is.
    """
    B, V = logits_BV.shape
    top_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    is_greedy = knobs.temperature == 0.0
    scaled_BV = (logits_BV - top_B1) / jnp.where(is_greedy, 1.0, knobs.temperature)
    probs_BV = jax.nn.softmax(scaled_BV, axis=-1)

    def top_k():
        def enough(threshold_B):
            return jnp.sum(probs_BV >= threshold_B[:, None], axis=-1) >= knobs.top_k

        return largest_threshold(enough, B)

    def top_p(kth_B):
        def mass(threshold_B):
            return jnp.sum(jnp.where(probs_BV >= threshold_B[:, None], probs_BV, 0.0), axis=-1)

        wanted_B = knobs.top_p * mass(kth_B)
        return jnp.maximum(kth_B, largest_threshold(lambda threshold_B: mass(threshold_B) >= wanted_B, B))

    zeros_B = jnp.zeros(B, jnp.float32)
    kth_B = lax.cond(knobs.top_k < V, top_k, lambda: zeros_B)
    nucleus_B = lax.cond(knobs.top_p < 1.0, top_p, lambda kth_B: kth_B, kth_B)  # >= kth_B
    threshold_B = jnp.maximum(nucleus_B, knobs.min_p * jnp.max(probs_BV, axis=-1))
    kept_BV = probs_BV >= threshold_B[:, None]
    kept_BV = jnp.where(is_greedy, first_max(logits_BV)[:, None] == jnp.arange(V)[None, :], kept_BV)
    return jnp.where(kept_BV, scaled_BV, -jnp.inf)


def first_max(logits_BV: jax.Array) -> jax.Array:
    """The lowest id among the most probable, [B]; V where the row holds a NaN.

    Two plain reductions: on XLA:CPU 6 times as fast as argmax.
    """
    V = logits_BV.shape[-1]
    top_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    return jnp.min(jnp.where(logits_BV == top_B1, jnp.arange(V, dtype=jnp.int32)[None, :], V), axis=-1)


def draw(logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
    """One id per row from softmax(logits), [B]; row i uses nothing but keys_B[i] and its own logits.

    First a block of ids, then an id within it: exact, and 450 random numbers a row instead of one per id
    (XLA:CPU, 8 rows of 49,152: 0.4 ms instead of 8).
    """
    B, V = logits_BV.shape
    logits_BV = jnp.pad(logits_BV, ((0, 0), (0, -V % BLOCK)), constant_values=-jnp.inf)
    logits_BXY = logits_BV.reshape(B, -1, BLOCK)
    block_keys_B, id_keys_B = jnp.moveaxis(jax.vmap(jax.random.split)(keys_B), 1, 0)
    categorical = jax.vmap(jax.random.categorical)
    block_B = categorical(block_keys_B, jax.nn.logsumexp(logits_BXY, axis=-1))
    logits_BY = jnp.take_along_axis(logits_BXY, block_B[:, None, None], axis=1)[:, 0]
    return (block_B * BLOCK + categorical(id_keys_B, logits_BY)).astype(jnp.int32)


def pick(logits_BV: jax.Array, row_keys_B: jax.Array, positions_B: jax.Array, knobs: Knobs):
    """The next token of every row -> (tokens_B, logprobs_B).

    Row i's choice is a function of its logits, its key and the position the new token will stand at: neither
    of the rest of the batch nor of how the text before was made. logprobs_B (nats) are the model's own,
    before temperature and filters; NaN where the logits are not finite.
    """
    logits_BV = forbid_padding(logits_BV, knobs)

    def sampled():
        keys_B = jax.vmap(jax.random.fold_in)(row_keys_B, positions_B)
        return draw(filter_logits(logits_BV, knobs), keys_B)

    tokens_B = lax.cond(knobs.temperature == 0.0, lambda: first_max(logits_BV), sampled)
    chosen_B = jnp.take_along_axis(logits_BV, tokens_B[:, None], axis=-1)[:, 0]
    return tokens_B, chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)
