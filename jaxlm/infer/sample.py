"""Sampling token by token: prefill the KV cache, then decode on the device, several tokens a trip.

Rows, prompt pieces and the cache are rounded up to a few sizes, and every sampling setting is an argument of
the compiled functions: neither a new temperature, nor another seed, nor a longer text compiles anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlm.infer.config import SamplingConfig, check_seed
from jaxlm.infer.pick import Knobs, make_knobs, pick
from jaxlm.infer.weights import decoding_weights
from jaxlm.models.build import LM, is_axes
from jaxlm.types import Params, PyTree, UserError

PREFILL_TOKENS = 256
"""A longer prompt is prefilled in pieces of this size: bounded memory, one compiled shape at any length."""
BUFFER_TOKENS = 64
"""Most tokens a row decodes before the host looks at them."""
SMALLEST_PIECE = 32
"""A shorter prompt is padded to this: the few milliseconds cost less than compiling one more shape."""

OnTokens = Callable[[int, list[int]], int | None]
"""on_tokens(row, new tokens) -> None to go on, or how many of them to keep and stop the row there."""


@dataclass
class Generation:
    """What one prompt was continued with."""

    tokens: list[int] = field(default_factory=list)
    """New tokens only, without the id that ended them."""
    logprobs: list[float] = field(default_factory=list)
    """Of those tokens, in nats, by the model itself: before temperature and filters."""
    finish_reason: str = "length"
    """`eos`, `stop` (a stop id, or the caller's on_tokens) or `length`."""


def axis_size(lm: LM, params: Params, axis: str) -> int | None:
    """Size of a logical axis of the weights, or None where no weight has it."""
    sizes = jax.tree.map(
        lambda axes, w: w.shape[axes.index(axis)] if axis in axes else None, lm.axes, params, is_leaf=is_axes
    )
    return next(iter(jax.tree.leaves(sizes)), None)


def round_rows(num_rows: int) -> int:
    """Rows of a compiled batch: powers of two up to 8, then multiples of 8."""
    return next((size for size in (1, 2, 4, 8) if num_rows <= size), -(-num_rows // 8) * 8)


def round_cache(num_slots: int, limit: int | None) -> int:
    """Slots of a compiled cache: multiples of 64, coarser for long ones (a quarter more at most)."""
    step = max(64, 1 << max(num_slots.bit_length() - 3, 0))
    size = -(-num_slots // step) * step
    return size if limit is None else min(size, limit)


def prefill_pieces(num_tokens: int, limit: int | None) -> list[tuple[int, int]]:
    """(start, padded length) of the pieces that cover a prompt: whole ones, then a power of two.

    Padding never reaches `limit`: a learned position table has no row there.
    """
    pieces = [(start, PREFILL_TOKENS) for start in range(0, num_tokens - PREFILL_TOKENS + 1, PREFILL_TOKENS)]
    done = PREFILL_TOKENS * len(pieces)
    if done < num_tokens:
        size = max(SMALLEST_PIECE, 1 << (num_tokens - done - 1).bit_length())
        pieces.append((done, size if limit is None else min(size, limit - done)))
    return pieces


class Rows(NamedTuple):
    """Where every row of a decoding batch stands."""

    last_B: jax.Array
    """The newest token of the row, not in the cache yet."""
    positions_B: jax.Array
    """Its position."""
    done_B: jax.Array


class Steps(NamedTuple):
    """The compiled functions of one model."""

    prefill: Callable[..., PyTree]
    """prefill(params, cache, tokens_BT, start) -> cache with these tokens' keys and values."""
    decode: Callable[..., tuple[PyTree, Rows, jax.Array, jax.Array]]
    """decode(params, cache, rows, row_keys_B, stop_ids, knobs, num_tokens) -> cache, rows, tokens and
    logprobs of shape [B, BUFFER_TOKENS], of which num_tokens are new; -1 after a row is done."""


@functools.lru_cache(maxsize=8)
def compiled_steps(extend: Callable, head: Callable) -> Steps:
    """Jits prefill and decode once per model: a second call of generate finds them compiled."""

    # The cache is the largest array here; donated, it is updated in place.
    @functools.partial(jax.jit, donate_argnums=1)
    def prefill(params: Params, cache: PyTree, tokens_BT: jax.Array, start: jax.Array) -> PyTree:
        positions_T = start + jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)
        return extend(params, tokens_BT, jnp.broadcast_to(positions_T[None], tokens_BT.shape), cache)[1]

    @functools.partial(jax.jit, donate_argnums=1)
    def decode(params, cache, rows: Rows, row_keys_B, stop_ids, knobs: Knobs, num_tokens):
        B = rows.last_B.shape[0]

        def more(carry):
            i, rows = carry[0], carry[2]
            return (i < num_tokens) & ~jnp.all(rows.done_B)

        def one_token(carry):
            i, cache, rows, tokens_BT, logprobs_BT = carry
            x_B1D, cache = extend(params, rows.last_B[:, None], rows.positions_B[:, None], cache)
            logits_BV = head(params, x_B1D[:, 0])
            # A done row stays where it is: the same token into the same slot, and its picks are dropped.
            next_B = rows.positions_B + 1
            picked_B, logprobs_B = pick(logits_BV, row_keys_B, next_B, knobs)
            tokens_BT = tokens_BT.at[:, i].set(jnp.where(rows.done_B, -1, picked_B))
            logprobs_BT = logprobs_BT.at[:, i].set(logprobs_B)
            is_stop_B = jnp.any(picked_B[:, None] == stop_ids[None, :], axis=-1)
            rows = Rows(
                jnp.where(rows.done_B, rows.last_B, picked_B),
                jnp.where(rows.done_B, rows.positions_B, next_B),
                rows.done_B | is_stop_B,
            )
            return i + 1, cache, rows, tokens_BT, logprobs_BT

        tokens_BT = jnp.full((B, BUFFER_TOKENS), -1, jnp.int32)
        logprobs_BT = jnp.zeros((B, BUFFER_TOKENS), jnp.float32)
        carry = (jnp.int32(0), cache, rows, tokens_BT, logprobs_BT)
        return lax.while_loop(more, one_token, carry)[1:]

    return Steps(prefill, decode)


def check_prompts(
    prompts: Sequence[Sequence[int]], max_new_tokens: int, vocab_size: int | None, limit: int | None
):
    """Raises UserError for what the model cannot continue, before anything is compiled."""
    if max_new_tokens < 1:
        raise UserError(
            f"max_new_tokens={max_new_tokens} must be at least 1: the number of tokens to add. Try 100."
        )
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise UserError(f"prompt {number} has no tokens: the model needs one to start from, such as BOS.")
        if min(prompt) < 0 or (vocab_size is not None and max(prompt) >= vocab_size):
            bad = min(prompt) if min(prompt) < 0 else max(prompt)
            raise UserError(
                f"prompt {number} holds token id {bad}, but the model's vocabulary has ids 0 to "
                f"{'?' if vocab_size is None else vocab_size - 1}: encode it with the tokenizer of the "
                "model's run."
            )
        if limit is not None and len(prompt) + max_new_tokens > limit:
            room = limit - len(prompt)
            advice = f"ask for {room} new tokens at most" if room > 0 else "shorten the prompt"
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens and max_new_tokens={max_new_tokens}, together beyond "
                f"the {limit} positions the model has learned (max_seq_len): {advice}."
            )


def generate(
    lm: LM,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int = 0,
    row_ids: Sequence[int] | None = None,
    eos_id: int | None = None,
    stop_ids: Sequence[int] = (),
    vocab_size: int | None = None,
    batch_size: int = 32,
    on_tokens: OnTokens | None = None,
    tokens_per_call: int = 4,
    slot_sizes: Sequence[int] = (),
) -> list[Generation]:
    """Continues every prompt by up to max_new_tokens tokens.

    The token of a row at position t is a function of (weights, the row's tokens before t, seed, row id, t):
    neither of the other rows, nor of how many are sampled together, nor of where prompt and continuation
    meet.

    Args:
      prompts: token ids, at least one each (BOS where the tokenizer has one); lengths may differ.
      temperature, top_k, top_p, min_p: see SamplingConfig.
      row_ids: what tells rows of one seed apart; unset: their place in `prompts`.
      eos_id, stop_ids: ids that end a row; they are not part of the result.
      vocab_size: ids from here on only pad the model's embedding and are never picked.
      batch_size: most rows decoded at once; memory grows with it.
      on_tokens: called with each row's new tokens, may stop the row (stop strings).
      tokens_per_call: tokens between two calls of on_tokens; the result does not depend on it.
      slot_sizes: sizes of the cache, ascending, for a server whose texts of many lengths are to share few compilations;
        a longer text, and all without them, are rounded up as `round_cache` does.

    Raises:
      UserError: an impossible setting; a prompt that is empty, foreign to the vocabulary, or beyond the
        positions a model with learned positions has; logits that are not finite.
    """
    sampling = SamplingConfig(temperature, top_k, top_p, min_p)
    check_seed(seed)
    limit = axis_size(lm, params, "positions")
    check_prompts(prompts, max_new_tokens, axis_size(lm, params, "vocab"), limit)
    if batch_size < 1:
        raise UserError(
            f"batch_size={batch_size} must be at least 1: it is the number of rows decoded at once."
        )
    row_ids = range(len(prompts)) if row_ids is None else row_ids
    if len(row_ids) != len(prompts):
        raise UserError(f"{len(row_ids)} row ids for {len(prompts)} prompts: give one for each.")
    ends = ([eos_id] if eos_id is not None else []) + list(stop_ids)
    padded_ends = ends + [-1] * (-len(ends) % 8 or (0 if ends else 8))
    batch = Request(
        lm, decoding_weights(lm, params), make_knobs(sampling, vocab_size), jnp.asarray(padded_ends, jnp.int32),
        eos_id, max_new_tokens, limit, jax.random.key(seed), on_tokens,
        BUFFER_TOKENS if on_tokens is None else min(max(tokens_per_call, 1), BUFFER_TOKENS), tuple(slot_sizes),
    )  # fmt: skip
    results = [Generation() for _ in prompts]
    # Rows of similar length share a batch, so that short prompts do not pay for long ones.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        run_batch(batch, {i: prompts[i] for i in chosen}, [row_ids[i] for i in chosen], results)
    return results


class Request(NamedTuple):
    """What all batches of one call of generate share."""

    lm: LM
    params: Params
    knobs: Knobs
    stop_ids: jax.Array
    eos_id: int | None
    max_new_tokens: int
    limit: int | None
    key: jax.Array
    on_tokens: OnTokens | None
    tokens_per_call: int
    slot_sizes: tuple[int, ...]


def run_batch(
    request: Request, prompts: dict[int, Sequence[int]], row_ids: list[int], results: list[Generation]
):
    """Prefills and decodes rows together; prompts maps the index into `results` to the row's tokens."""
    indices, B = list(prompts), round_rows(len(prompts))
    lengths = np.array([len(p) for p in prompts.values()] + [1] * (B - len(prompts)), np.int32)
    steps = compiled_steps(request.lm.extend, request.lm.head)
    # All but the last token: decoding starts with that one, so the first new token needs no code of its own.
    pieces = prefill_pieces(int(lengths.max()) - 1, request.limit)
    # The last token picked is never fed back, hence the - 1.
    num_slots = max(
        int(lengths.max()) + request.max_new_tokens - 1,
        *(sum(piece) for piece in pieces),
        1,
    )
    num_slots = next((size for size in request.slot_sizes if num_slots <= size), num_slots)
    num_slots = round_cache(num_slots, request.limit)
    tokens_BS = np.zeros((B, num_slots), np.int32)
    for row, prompt in enumerate(prompts.values()):
        tokens_BS[row, : len(prompt)] = prompt
    cache = request.lm.init_cache(B, num_slots)
    for start, size in pieces:
        cache = steps.prefill(request.params, cache, tokens_BS[:, start : start + size], jnp.int32(start))
    done_B = np.arange(B) >= len(prompts)
    rows = Rows(
        jnp.asarray(tokens_BS[np.arange(B), lengths - 1]), jnp.asarray(lengths - 1), jnp.asarray(done_B)
    )
    row_keys_B = jax.vmap(jax.random.fold_in, (None, 0))(
        request.key, jnp.asarray(list(row_ids) + [0] * (B - len(row_ids)), jnp.uint32)
    )
    num_done = 0
    while num_done < request.max_new_tokens and not done_B.all():
        num_tokens = min(request.tokens_per_call, request.max_new_tokens - num_done)
        cache, rows, tokens_BT, logprobs_BT = steps.decode(
            request.params, cache, rows, row_keys_B, request.stop_ids, request.knobs, jnp.int32(num_tokens)
        )
        num_done += num_tokens
        done_B = collect(
            request, indices, done_B, np.asarray(tokens_BT)[:, :num_tokens], np.asarray(logprobs_BT), results
        )
        rows = rows._replace(done_B=jnp.asarray(done_B))


def collect(
    request: Request,
    indices: list[int],
    done_B: np.ndarray,
    tokens_BT: np.ndarray,
    logprobs_BT: np.ndarray,
    results: list[Generation],
) -> np.ndarray:
    """Adds a chunk of new tokens to the results; returns which rows are done now."""
    done_B = done_B.copy()
    ends = set(np.asarray(request.stop_ids).tolist()) - {-1}
    for row, index in enumerate(indices):
        if done_B[row]:
            continue
        result, new = results[index], tokens_BT[row].tolist()
        end = next((i for i, token in enumerate(new) if token in ends or token < 0), len(new))
        if not np.isfinite(logprobs_BT[row, : min(end + 1, len(new))]).all():
            raise UserError(
                f"the model's logits are not finite after {len(result.tokens)} new tokens: its weights have "
                "diverged or are damaged. Sample from an earlier checkpoint (--step)."
            )
        if end < len(new):
            result.finish_reason = "eos" if new[end] == request.eos_id else "stop"
            done_B[row] = True
        kept = end
        if request.on_tokens is not None and end:
            stop_after = request.on_tokens(index, new[:end])
            if stop_after is not None:
                kept, result.finish_reason, done_B[row] = stop_after, "stop", True
        result.tokens += new[:kept]
        result.logprobs += logprobs_BT[row, :kept].tolist()
    return done_B
