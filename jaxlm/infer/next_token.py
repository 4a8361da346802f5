"""What may come next: the distribution over the next token, and the probability of whole words."""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.tokenizer import Tokenizer
from jaxlm.infer.config import SamplingConfig, check_seed
from jaxlm.infer.pick import Knobs, filter_logits, forbid_padding, make_knobs, pick
from jaxlm.infer.sample import axis_size, round_rows
from jaxlm.infer.text import REPLACEMENT, encode_prompt
from jaxlm.models.build import LM
from jaxlm.types import Params, UserError


@dataclass(frozen=True)
class TokenProbability:
    """One token of the vocabulary as the next."""

    rank: int
    """1 is the most probable."""
    id: int
    piece: str
    p: float
    """By the model itself."""
    cumulative_p: float
    """Of this and all more probable tokens."""
    p_sampled: float
    """After temperature, top-k, top-p and min-p: how often sampling picks it."""


@dataclass(frozen=True)
class WordProbability:
    """One candidate word after the prompt, by the chain rule over its tokens."""

    word: str
    ids: list[int]
    pieces: list[str]
    token_ps: list[float]
    """p(token | prompt and the word's tokens before it)."""
    p_prefix: float
    """Their product: the text goes on with these letters; "forest" counts in "forests"."""
    p_end: float
    """That the word ends there: the next token begins with no letter, digit or mark, or is EOS."""
    p_word: float
    """p_prefix times p_end."""
    share: float
    """p_word among the candidates."""
    merged: bool
    """The prompt's last token became part of the word: probabilities are given the tokens before it."""


@dataclass(frozen=True)
class NextToken:
    """Input tokens -> model -> distribution -> pick."""

    prompt: str
    ids: list[int]
    pieces: list[str]
    entropy_nats: float
    entropy_bits: float
    sampled_entropy_bits: float
    """Of the distribution that is sampled from."""
    num_kept: int
    """Tokens that sampling can pick."""
    top: list[TokenProbability]
    candidates: list[WordProbability]
    greedy: TokenProbability
    sampled: TokenProbability
    """The pick of `generate` with the same seed."""

    def as_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, for JSON."""
        return asdict(self)


def entropy(probs: np.ndarray) -> float:
    """-sum p ln p, in nats; 0 ln 0 is 0."""
    positive = probs[probs > 0]
    return float(-(positive * np.log(positive)).sum()) + 0.0  # + 0.0: no minus zero


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64: sums to 1 to the last digits."""
    exps = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exps / exps.sum(axis=-1, keepdims=True)


@functools.lru_cache(maxsize=8)
def compiled_logits(hidden: Callable, head: Callable) -> Callable[..., jax.Array]:
    """Jits (params, tokens_BT, lengths_B, places_BW) -> logits_BWV after the tokens at these places."""

    @jax.jit
    def logits_at(params: Params, tokens_BT, lengths_B, places_BW):
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
        segments_BT = (positions_BT < lengths_B[:, None]).astype(jnp.int32)
        x_BTD = hidden(params, {"tokens": tokens_BT, "positions": positions_BT, "segments": segments_BT})
        return head(params, jnp.take_along_axis(x_BTD, places_BW[:, :, None], axis=1))

    return logits_at


@jax.jit
def filter_and_pick(logits_BV, row_keys_B, positions_B, knobs: Knobs):
    """(logits without padding ids, the same filtered, the ids picked), as sampling does it."""
    masked_BV = forbid_padding(logits_BV, knobs)
    return masked_BV, filter_logits(masked_BV, knobs), pick(logits_BV, row_keys_B, positions_B, knobs)[0]


def row_logits(
    lm: LM, params: Params, rows: Sequence[Sequence[int]], starts: Sequence[int]
) -> list[np.ndarray]:
    """Logits [len(row) - start, V] after each token of a row from place `start` on; one batched pass."""
    limit = axis_size(lm, params, "positions")
    longest = max(len(row) for row in rows)
    if limit is not None and longest > limit:
        raise UserError(
            f"prompt and word have {longest} tokens, beyond the {limit} positions the model has learned "
            "(max_seq_len): shorten the prompt."
        )
    B, T = round_rows(len(rows)), max(16, 1 << (longest - 1).bit_length())
    T = T if limit is None else min(T, limit)
    # Rounded up like T: a word of another number of tokens compiles nothing anew.
    W = 1 << (max(len(row) - start for row, start in zip(rows, starts, strict=True)) - 1).bit_length()
    tokens_BT, places_BW = np.zeros((B, T), np.int32), np.zeros((B, W), np.int32)
    lengths_B = np.ones(B, np.int32)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        tokens_BT[i, : len(row)], lengths_B[i] = row, len(row)
        places_BW[i] = np.minimum(np.arange(start, start + W), len(row) - 1)
    logits_at = compiled_logits(lm.hidden, lm.head)
    logits_BWV = np.asarray(logits_at(params, tokens_BT, lengths_B, places_BW))
    return [
        logits_BWV[i, : len(row) - start] for i, (row, start) in enumerate(zip(rows, starts, strict=True))
    ]


def ends_word(tokenizer: Tokenizer) -> np.ndarray:
    """bool [vocab_size]: whether a word before this token is over.

    It is where the token's text begins with anything but a letter, digit, mark or joiner, and at an id that ends
    the text. A lone byte of a longer character tells neither; it counts as going on.
    """
    anchor = list(tokenizer.encode("a"))  # what follows a word keeps its leading space when decoded
    skip = len(tokenizer.decode(anchor))
    over = np.zeros(tokenizer.vocab_size, bool)
    for token in range(tokenizer.vocab_size):
        first = tokenizer.decode([*anchor, token])[skip : skip + 1]
        if first and first != REPLACEMENT:
            over[token] = unicodedata.category(first)[0] not in "LNM" and first not in "\u200c\u200d"
    over[list(tokenizer.stop_ids)] = True
    return over


def word_row(tokenizer: Tokenizer, prompt: str, prompt_ids: list[int], word: str) -> tuple[list[int], int]:
    """Tokens of the prompt with the word after it, and how many of them it shares with the prompt.

    A word is its letters after one space, unless the prompt is empty or ends in white space.
    """
    space = "" if not prompt or prompt[-1].isspace() else " "
    row = encode_prompt(tokenizer, prompt + space + word)
    pairs = zip(row, prompt_ids)
    num_shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(row), len(prompt_ids)))
    if num_shared == 0:
        raise UserError(
            f"the candidate {word!r} has no token before it: the tokenizer puts no BOS before a text and merges "
            "the prompt with it. Give a longer prompt."
        )
    if num_shared == len(row):
        raise UserError(f"the candidate {word!r} adds no token to the prompt: give a word that can be seen.")
    return row, num_shared


def after_picks(ids: list[int], cut: list[int], row: list[int], num_shared: int) -> tuple[list[int], int]:
    """A word_row behind the tokens there are (`ids`), where the tokenizer would have cut their text otherwise (`cut`).

    A word that merges with the prompt's last token has no place behind other tokens, and stays behind those of `cut`.
    """
    return (ids + row[num_shared:], len(ids)) if num_shared == len(cut) else (row, num_shared)


def next_token_distribution(
    lm: LM,
    params: Params,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    ids: Sequence[int] | None = None,
    candidates: Sequence[str] = (),
    top: int = 10,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int = 0,
) -> NextToken:
    """The distribution over the token after `prompt`, and the probability of whole words there.

    A candidate's probability is that of its own tokens, as the tokenizer cuts prompt + space + word: the same
    letters cut otherwise are other, mostly far less probable, sequences and not counted. Where the prompt's
    last token merges with the word (a prompt that ends in a space), the tokens both have in common are the
    condition.

    Args:
      ids: tokens of the prompt, where they were picked one by one; None: as the tokenizer cuts it.
      candidates: words without the space before them.
      top: how many of the most probable tokens to list.
      temperature, top_k, top_p, min_p: see SamplingConfig; they change `p_sampled` and the pick, never `p`.
    """
    if top < 1:
        raise UserError(f"top={top} must be at least 1: it is the number of tokens listed.")
    check_seed(seed)
    knobs = make_knobs(SamplingConfig(temperature, top_k, top_p, min_p), tokenizer.vocab_size)
    words = list(dict.fromkeys(word.strip() for word in candidates))
    if "" in words:
        raise UserError("a candidate word is empty: give words separated by single commas.")
    cut = encode_prompt(tokenizer, prompt)
    ids = cut if ids is None else list(ids)
    rows = [(ids, len(ids))] + [
        after_picks(ids, cut, *word_row(tokenizer, prompt, cut, word)) for word in words
    ]
    # Logits after the last shared token give the word's first token, those after its last say whether it
    # ends.
    logits = row_logits(lm, params, [row for row, _ in rows], [shared - 1 for _, shared in rows])
    if not np.isfinite(logits[0]).all():
        raise UserError(
            "the model's logits are not finite: its weights have diverged or are damaged. Try an earlier checkpoint "
            "(--step)."
        )
    logits_1V = jnp.asarray(logits[0])
    row_key = jax.random.fold_in(jax.random.key(seed), 0)
    masked_V, filtered_V, sampled = (
        np.asarray(x)[0] for x in filter_and_pick(logits_1V, row_key[None], jnp.asarray([len(ids)]), knobs)
    )
    probs, probs_sampled = softmax(masked_V), softmax(filtered_V)
    order = np.argsort(-probs, kind="stable")
    cumulative = np.cumsum(probs[order])
    rank_of = np.empty(len(order), np.int64)
    rank_of[order] = np.arange(len(order))

    def entry(token: int) -> TokenProbability:
        rank = int(rank_of[token])
        p, p_sampled = float(probs[token]), float(probs_sampled[token])
        return TokenProbability(
            rank + 1, token, tokenizer.piece(token), p, min(float(cumulative[rank]), 1.0), p_sampled
        )

    nats = entropy(probs)
    return NextToken(
        prompt=prompt,
        ids=ids,
        pieces=[tokenizer.piece(i) for i in ids],
        entropy_nats=nats,
        entropy_bits=nats / math.log(2),
        sampled_entropy_bits=entropy(probs_sampled) / math.log(2),
        num_kept=int(np.isfinite(filtered_V).sum()),
        top=[entry(int(token)) for token in order[: min(top, tokenizer.vocab_size)]],
        candidates=word_probabilities(tokenizer, words, rows[1:], logits[1:], len(ids)),
        greedy=entry(int(order[0])),
        sampled=entry(int(sampled)),
    )


def word_probabilities(
    tokenizer: Tokenizer,
    words: list[str],
    rows: list[tuple[list[int], int]],
    logits: list[np.ndarray],
    num_prompt: int,
) -> list[WordProbability]:
    """Chain rule for each candidate. rows: (tokens, number shared with the prompt); logits: as of
    row_logits."""
    if not words:
        return []
    is_end = ends_word(tokenizer)
    found = []
    for word, (row, num_shared), logits_WV in zip(words, rows, logits, strict=True):
        probs_WV = softmax(logits_WV[:, : tokenizer.vocab_size])
        new = row[num_shared:]
        token_ps = [float(probs_WV[i, token]) for i, token in enumerate(new)]
        p_prefix = math.prod(token_ps)
        p_end = min(float(probs_WV[len(new), is_end].sum()), 1.0)
        pieces = [tokenizer.piece(token) for token in new]
        merged = num_shared < num_prompt
        found.append(
            WordProbability(word, new, pieces, token_ps, p_prefix, p_end, p_prefix * p_end, 0.0, merged)
        )
    total = sum(candidate.p_word for candidate in found)
    return [replace(c, share=c.p_word / total if total > 0 else 0.0) for c in found]
