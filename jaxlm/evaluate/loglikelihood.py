"""Log-likelihoods of tokens after given tokens, many rows at once: what perplexity and multiple choice are made of.

Only states whose next token is scored go through the head, whose matrix is a fifth of a small model's work. Rows of
similar length share a batch, padded to one of a few widths. Rows with equal inputs (one-token answers to one question)
are computed once; rows that begin with the same context read it once, and each row only adds its own tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.infer.sample import axis_size, compiled_steps, round_rows
from jaxlm.models.build import LM
from jaxlm.types import Batch, Params, PyTree, UserError

BATCH_SIZE = 32
BATCH_TOKENS = 16_384
"""Of a batch at most, beyond its first row: a row of 8,192 tokens takes as much memory as 64 of 128."""
HEAD_STATES = (16, 64, 256)
"""How many states go through the head at once: 256 rows of a vocabulary of 50,000 are 50 MB of logits."""
PIECE_TOKENS = 256
"""A longer shared context is read in pieces of this size."""
SHARED_SAVING = 0.2
"""Rows share their context where that leaves out this part of their tokens: the cache costs more than plain passes."""

OnProgress = Callable[[int, int], None]


class Row(NamedTuple):
    """Tokens, of which those from `start` on are scored, each given all before it."""

    ids: Sequence[int]
    start: int
    """At least 1."""


class Scores(NamedTuple):
    """Of the scored tokens of a row."""

    logprobs: np.ndarray
    """float32, nats."""
    is_top: np.ndarray
    """bool: whether no other token is more probable at its place."""

    @property
    def total(self) -> float:
        """Log-likelihood of all scored tokens, in nats; summed in float64."""
        return float(self.logprobs.sum(dtype=np.float64))

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would write these tokens."""
        return bool(self.is_top.all())


class Placing(NamedTuple):
    """Where batches go, on a mesh."""

    row_multiple: int = 1
    """The rows of a batch are a multiple of it."""
    place: Callable[[Batch], Batch] = lambda batch: batch


class _States(NamedTuple):
    """What a batch hands to the head."""

    x_XD: jax.Array
    places: dict[tuple[int, ...], int]
    """Inputs of a row -> where in x_XD the state after its first input would be."""


def round_width(num_tokens: int) -> int:
    """Tokens of a compiled row: multiples of 16, and for longer ones of an eighth of their power of two."""
    step = max(16, 1 << max(num_tokens.bit_length() - 4, 0))
    return -(-num_tokens // step) * step


def batch_axis(init_cache: Callable[[int, int], PyTree]) -> int:
    """The axis of rows in every array of a KV cache."""
    one, two = (jax.eval_shape(lambda n=n: init_cache(n, 2)) for n in (3, 5))
    [axis] = {
        next(i for i, (a, b) in enumerate(zip(x.shape, y.shape)) if a != b)
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    }
    return axis


@functools.lru_cache(maxsize=8)
def compiled_hidden(hidden: Callable) -> Callable[[Params, Batch], jax.Array]:
    """Jits (params, batch) -> x_XD, the states of all rows one after the other."""

    def states(params: Params, batch: Batch) -> jax.Array:
        x_BTD = hidden(params, batch)
        return x_BTD.reshape(-1, x_BTD.shape[-1])

    return jax.jit(states)


@functools.lru_cache(maxsize=8)
def compiled_branch(extend: Callable, axis: int) -> Callable[..., jax.Array]:
    """Jits (params, cache of the contexts, context_R, tokens_RT, first_R) -> x_XD of the rows that go on from them."""

    @jax.jit
    def branch(params, cache, context_R, tokens_RT, first_R):
        cache = jax.tree.map(lambda c: jnp.take(c, context_R, axis=axis), cache)
        positions_RT = first_R[:, None] + jnp.arange(tokens_RT.shape[1], dtype=jnp.int32)[None]
        x_RTD = extend(params, tokens_RT, positions_RT, cache)[0]
        return x_RTD.reshape(-1, x_RTD.shape[-1])

    return branch


@functools.lru_cache(maxsize=8)
def compiled_head(head: Callable) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Jits (params, x_CD, targets_C) -> (logprobs_C, is_top_C)."""

    @jax.jit
    def score(params, x_CD, targets_C):
        logits_CV = head(params, x_CD)
        top_C = jnp.max(logits_CV, axis=-1)
        sums_C = jnp.sum(jnp.exp(logits_CV - top_C[:, None]), axis=-1)
        chosen_C = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=-1)[:, 0]
        return chosen_C - top_C - jnp.log(sums_C), chosen_C >= top_C

    return score


take_states = jax.jit(lambda x_XD, places_C: jnp.take(x_XD, places_C, axis=0))


class Scorer:
    """Scores rows with one model.

    The same rows give the same bits every time. Another batch size, and with it other neighbours and padding, changes
    sums in their last digits: by less than 1e-4 nats a token in float32.
    """

    def __init__(self, lm: LM, params: Params, placing: Placing | None = None):
        self._lm, self._params = lm, params
        self._placing = placing or Placing()
        self.max_tokens = axis_size(lm, params, "positions")
        """Inputs of a row that the model has positions for; None: no such limit."""
        self._head_params = {
            key: params[key] for key in getattr(lm, "head_keys", ()) if key in params
        } or params
        self._axis: int | None = None

    def score(
        self, rows: Sequence[Row], *, batch_size: int = BATCH_SIZE, on_progress: OnProgress | None = None
    ) -> list[Scores]:
        """Scores of every row, in their order.

        Args:
          batch_size: most rows of a batch; memory grows with it.
          on_progress: on_progress(rows scored so far, all).

        Errors: UserError for a row beyond the positions of the model, and for weights that give no finite numbers.
        """
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1: the number of rows scored at once.")
        by_inputs: dict[tuple[int, ...], list[int]] = {}
        for i, row in enumerate(rows):
            assert 1 <= row.start <= len(row.ids), f"start={row.start} of {len(row.ids)} tokens"
            self._check_length(row)
            by_inputs.setdefault(tuple(row.ids[:-1]), []).append(i)
        found: list[Scores | None] = [None] * len(rows)
        num_done = 0
        for states in self._batches(rows, by_inputs, batch_size):
            wanted = [i for inputs in states.places for i in by_inputs[inputs]]
            offsets = [place for inputs, place in states.places.items() for _ in by_inputs[inputs]]
            self._score_states(rows, wanted, offsets, states.x_XD, found)
            num_done += len(wanted)
            if on_progress is not None:
                on_progress(num_done, len(rows))
        return [scores for scores in found if scores is not None]

    def _check_length(self, row: Row) -> None:
        if self.max_tokens is not None and len(row.ids) - 1 > self.max_tokens:
            raise UserError(
                f"a row of {len(row.ids):,} tokens is beyond the {self.max_tokens:,} positions the model has learned "
                "(max_seq_len): score shorter ones."
            )

    def _batches(
        self, rows: Sequence[Row], by_inputs: dict[tuple[int, ...], list[int]], batch_size: int
    ) -> Iterator[_States]:
        """Longest first: what does not fit into memory shows at once."""
        groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for inputs, members in by_inputs.items():
            start = min(rows[i].start for i in members)
            groups.setdefault(inputs[:start], []).append(inputs)
        plain = [members[0] for members in groups.values() if len(members) == 1]
        shared: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for context, members in groups.items():
            if len(members) > 1 and self._saves(context, members):
                shared[context] = members
            elif len(members) > 1:
                plain += members
        plain.sort(key=lambda inputs: (-len(inputs), inputs))
        while plain:
            size = max(1, min(batch_size, BATCH_TOKENS // round_width(len(plain[0]))))
            yield self._plain(plain[:size])
            plain = plain[size:]
        yield from self._all_shared(shared, batch_size)

    def _width(self, context: tuple[int, ...], members: Sequence[tuple[int, ...]]) -> int:
        """Of the rows that go on from a context."""
        return round_width(max(len(inputs) for inputs in members) - len(context) + 1)

    def _saves(self, context: tuple[int, ...], members: Sequence[tuple[int, ...]]) -> bool:
        end = round_width(len(context)) + self._width(context, members)
        if self.max_tokens is not None and end > self.max_tokens:
            return False  # padding would stand where the model has no position
        left_out = (len(members) - 1) * (len(context) - 1)
        return left_out >= SHARED_SAVING * sum(map(len, members))

    def _plain(self, members: Sequence[tuple[int, ...]]) -> _States:
        """Every row by itself, all positions at once."""
        T = round_width(len(members[0]))
        B = self._round_rows(len(members))
        lengths_B = np.zeros((B, 1), np.int32)
        tokens_BT = np.zeros((B, T), np.int32)
        for b, inputs in enumerate(members):
            tokens_BT[b, : len(inputs)], lengths_B[b] = inputs, len(inputs)
        places_BT = np.broadcast_to(np.arange(T, dtype=np.int32)[None], (B, T))
        last = T - 1 if self.max_tokens is None else min(T, self.max_tokens) - 1
        batch = {
            "tokens": tokens_BT,
            "segments": (places_BT < lengths_B).astype(np.int32),
            "positions": np.minimum(places_BT, last),  # of padding, where the model has no position
        }
        x_XD = compiled_hidden(self._lm.hidden)(self._params, self._placing.place(batch))
        return _States(x_XD, {inputs: b * T for b, inputs in enumerate(members)})

    def _all_shared(
        self, groups: dict[tuple[int, ...], list[tuple[int, ...]]], batch_size: int
    ) -> Iterator[_States]:
        order = sorted(groups, key=lambda context: (-len(context), context))
        chosen: list[tuple[int, ...]] = []
        num_rows = widest = 0
        for context in order:
            longest = round_width(len(chosen[0] if chosen else context))
            more, width = len(groups[context]), self._width(context, groups[context])
            full = num_rows + more > batch_size or (len(chosen) + 1) * longest > BATCH_TOKENS
            if self.max_tokens is not None and longest + max(widest, width) > self.max_tokens:
                full = True
            if chosen and full:
                yield self._shared({c: groups[c] for c in chosen})
                chosen, num_rows, widest = [], 0, 0
            chosen.append(context)
            num_rows, widest = num_rows + more, max(widest, width)
        if chosen:
            yield self._shared({c: groups[c] for c in chosen})

    def _shared(self, groups: dict[tuple[int, ...], list[tuple[int, ...]]]) -> _States:
        """Every context once, all but its last token, into a cache; then all rows that go on from it."""
        members = [(g, inputs) for g, found in enumerate(groups.values()) for inputs in found]
        lengths = [len(context) - 1 for context in groups]
        T = round_width(max(len(inputs) - lengths[g] for g, inputs in members))
        B, R = self._round_rows(len(groups)), self._round_rows(len(members))
        num_slots = round_width(max(lengths)) + T
        cache = self._lm.init_cache(B, num_slots)
        prefill = compiled_steps(self._lm.extend, self._lm.head).prefill
        for start in range(0, max(lengths), PIECE_TOKENS):
            width = round_width(min(max(lengths) - start, PIECE_TOKENS))
            tokens_BT = np.zeros((B, width), np.int32)
            for g, context in enumerate(groups):
                piece = context[start : min(start + width, lengths[g])]
                tokens_BT[g, : len(piece)] = piece
            cache = prefill(self._params, cache, tokens_BT, jnp.int32(start))
        tokens_RT = np.zeros((R, T), np.int32)
        context_R, first_R = np.zeros(R, np.int32), np.zeros(R, np.int32)
        for r, (g, inputs) in enumerate(members):
            rest = inputs[lengths[g] :]
            tokens_RT[r, : len(rest)], context_R[r], first_R[r] = rest, g, lengths[g]
        if self._axis is None:
            self._axis = batch_axis(self._lm.init_cache)
        x_XD = compiled_branch(self._lm.extend, self._axis)(
            self._params, cache, context_R, tokens_RT, first_R
        )
        return _States(x_XD, {inputs: r * T - lengths[g] for r, (g, inputs) in enumerate(members)})

    def _score_states(
        self,
        rows: Sequence[Row],
        wanted: Sequence[int],
        offsets: Sequence[int],
        x_XD: jax.Array,
        found: list[Scores | None],
    ) -> None:
        """Hands the states before the scored tokens of the rows `wanted` to the head, some at a time."""
        counts = [len(rows[i].ids) - rows[i].start for i in wanted]
        places, targets = np.zeros(sum(counts), np.int32), np.zeros(sum(counts), np.int32)
        end = 0
        for i, offset, count in zip(wanted, offsets, counts, strict=True):
            row = rows[i]
            first = offset + row.start - 1
            places[end : end + count] = np.arange(first, first + count)
            targets[end : end + count] = row.ids[row.start :]
            end += count
        parts: list[tuple[int, Any, Any]] = []
        head = compiled_head(self._lm.head)
        for start in range(0, len(places), HEAD_STATES[-1]):
            some = slice(start, start + HEAD_STATES[-1])
            num = len(places[some])
            size = next(size for size in HEAD_STATES if num <= size)
            padded = (np.pad(a[some], (0, size - num)) for a in (places, targets))
            places_C, targets_C = padded
            parts.append((num, *head(self._head_params, take_states(x_XD, places_C), targets_C)))
        logprobs = np.concatenate([np.asarray(p)[:num] for num, p, _ in parts] or [np.zeros(0, np.float32)])
        is_top = np.concatenate([np.asarray(t)[:num] for num, _, t in parts] or [np.zeros(0, bool)])
        if not np.isfinite(logprobs).all():
            raise UserError(
                "the loss is not finite: the weights have diverged or are damaged. Try an earlier step (--step)."
            )
        ends = np.cumsum(counts)
        for i, count, end in zip(wanted, counts, ends, strict=True):
            found[i] = Scores(logprobs[end - count : end], is_top[end - count : end])

    def _round_rows(self, num_rows: int) -> int:
        multiple = self._placing.row_multiple
        return -(-round_rows(num_rows) // multiple) * multiple
