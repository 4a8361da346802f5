"""Perplexity and bits per byte of texts, in windows that overlap or do not, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxlm.data.tokenizer import Tokenizer
from jaxlm.evaluate.loglikelihood import OnProgress, Row, Scorer
from jaxlm.evaluate.standard_errors import of_ratio
from jaxlm.models.build import LM
from jaxlm.types import Params, UserError

BLOCK_TOKENS = 2048
"""Of a long document: the unit that is drawn, where a document is longer."""
SHORTEST_BLOCK, WANTED_BLOCKS = 64, 20
"""Fewer units say little about the error, and blocks that are shorter depend on each other too much."""
CHUNK_ROWS = 1024
"""Windows that are sorted by length and scored together."""
BATCH_SIZE = 8


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts texts."""

    units: list[tuple[float, int, int]] = field(repr=False)
    """(nats, tokens predicted, bytes they stand for) of each document, or of a block of a long one."""
    num_documents: int
    num_truncated: int = 0
    """Documents that --max-tokens cut."""

    @property
    def nats(self) -> float:
        """Sum of the losses of all predicted tokens."""
        return math.fsum(nats for nats, _, _ in self.units)

    @property
    def num_tokens(self) -> int:
        """That were predicted."""
        return sum(tokens for _, tokens, _ in self.units)

    @property
    def num_bytes(self) -> int:
        """Of text that these stand for."""
        return sum(num for _, _, num in self.units)

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700))  # past it a float has no room

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers, which perplexity is not."""
        return self.nats / math.log(2) / self.num_bytes if self.num_bytes else math.nan

    @property
    def loss_error(self) -> float | None:
        """Standard error of `loss`, by unit; None for a single one."""
        return of_ratio([nats for nats, _, _ in self.units], [tokens for _, tokens, _ in self.units])

    @property
    def perplexity_error(self) -> float | None:
        """Of `perplexity`: that of the loss, times the slope of exp."""
        return None if self.loss_error is None else self.perplexity * self.loss_error

    @property
    def bits_per_byte_error(self) -> float | None:
        """Of `bits_per_byte`."""
        error = of_ratio([nats for nats, _, _ in self.units], [num for _, _, num in self.units])
        return None if error is None else error / math.log(2)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the units, for JSON; a standard error is null where there is a single unit."""
        return {
            "nats": self.nats,
            "num_tokens": self.num_tokens,
            "num_bytes": self.num_bytes,
            "num_documents": self.num_documents,
            "num_truncated": self.num_truncated,
            "loss": self.loss,
            "loss_stderr": self.loss_error,
            "perplexity": self.perplexity,
            "perplexity_stderr": self.perplexity_error,
            "bits_per_byte": self.bits_per_byte,
            "bits_per_byte_stderr": self.bits_per_byte_error,
            "num_units": len(self.units),
        }


def together(parts: Iterable[Perplexity]) -> Perplexity:
    """Several sets as one: sums over all their tokens, not means of means."""
    parts = list(parts)
    return Perplexity(
        [unit for part in parts for unit in part.units],
        sum(part.num_documents for part in parts),
        sum(part.num_truncated for part in parts),
    )


def windows(
    ids: Sequence[int], prefix: Sequence[int], window: int, stride: int | None = None
) -> Iterator[Row]:
    """Rows of at most `window` tokens in which every token of a document is scored once.

    Args:
      prefix: BOS, where the model wants one: before every window that does not overlap with the last.
      stride: None: windows do not overlap, and without a prefix the first token of each is only context. Else a window
        starts so many tokens after the one before and scores what that one has not: as in the guide to perplexity of
        transformers' documentation.
    """
    if stride is None:
        step = window - len(prefix)
        for start in range(0, len(ids), step):
            row = [*prefix, *ids[start : start + step]]
            if len(row) > 1:
                yield Row(row, max(len(prefix), 1))
        return
    whole = [*prefix, *ids]
    done = max(len(prefix), 1)
    for start in range(0, len(whole), stride):
        row = whole[start : start + window]
        if start + len(row) > done:
            yield Row(row, max(done - start, 1))
            done = start + len(row)
        if done >= len(whole):
            return


def check_windows(prefix: Sequence[int], window: int, stride: int | None) -> None:
    """Errors: UserError for windows in which nothing can be predicted, or that leave tokens out."""
    if window < len(prefix) + 2:
        raise UserError(
            f"window={window} must be at least {len(prefix) + 2}: a prediction needs a token before it."
        )
    if stride is not None and not 1 <= stride < window:
        raise UserError(
            f"stride={stride} must be in [1, {window - 1}], below window={window}: each window scores its last stride "
            f"tokens, and the first needs one before it. Try stride={window // 2}."
        )


def score_documents(
    scorer: Scorer,
    tokenizer: Tokenizer,
    documents: Iterable[Sequence[int]],
    *,
    window: int,
    stride: int | None = None,
    max_tokens: int | None = None,
    batch_size: int = BATCH_SIZE,
    on_progress: OnProgress | None = None,
) -> Perplexity:
    """Scores documents, each by itself.

    Args:
      documents: ids without the prefix.
      window: tokens of a row, its context. Published figures say theirs: a longer one gives a lower perplexity.
      stride: see `windows`.
      max_tokens: of each document, from its beginning; None: all.
      on_progress: on_progress(windows scored so far, the same).

    Errors: UserError for texts of no two tokens, and for impossible windows.
    """
    prefix, bytes_per_id = list(tokenizer.prefix_ids), tokenizer.bytes_per_id()
    check_windows(prefix, window, stride)
    losses: list[list[np.ndarray]] = []
    sizes: list[list[np.ndarray]] = []
    pending: list[tuple[int, Row]] = []
    num_truncated = num_scored = 0

    def flush() -> None:
        nonlocal num_scored
        found = scorer.score([row for _, row in pending], batch_size=batch_size)
        for (document, row), scores in zip(pending, found, strict=True):
            losses[document].append(-scores.logprobs.astype(np.float64))
            sizes[document].append(bytes_per_id[np.asarray(row.ids[row.start :])])
        num_scored += len(pending)
        pending.clear()
        if on_progress is not None:
            on_progress(num_scored, num_scored)

    for ids in documents:
        losses.append([])
        sizes.append([])
        num_truncated += max_tokens is not None and len(ids) > max_tokens
        for row in windows(ids[:max_tokens], prefix, window, stride):
            pending.append((len(losses) - 1, row))
            if len(pending) == CHUNK_ROWS:
                flush()
    if pending:
        flush()
    whole = [(np.concatenate(l), np.concatenate(s)) for l, s in zip(losses, sizes, strict=True) if l]
    if not whole:
        raise UserError("the text has no two tokens: nothing can be predicted. Give a longer one.")
    return Perplexity(units_of(whole), len(whole), int(num_truncated))


def units_of(documents: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[tuple[float, int, int]]:
    """Documents as (nats, tokens, bytes); long ones in blocks, which are shorter where there would be too few."""
    total = sum(len(losses) for losses, _ in documents)
    block = min(BLOCK_TOKENS, max(SHORTEST_BLOCK, total // WANTED_BLOCKS))
    if len(documents) >= WANTED_BLOCKS:
        block = BLOCK_TOKENS
    units = []
    for losses, sizes in documents:
        num = max(1, round(len(losses) / block))
        for part, size in zip(np.array_split(losses, num), np.array_split(sizes, num), strict=True):
            units.append((float(part.sum()), len(part), int(size.sum())))
    return units


def text_perplexity(
    lm: LM,
    params: Params,
    tokenizer: Tokenizer,
    text: str,
    *,
    window: int,
    stride: int | None = None,
    max_tokens: int | None = None,
) -> Perplexity:
    """`score_documents` of one text."""
    return score_documents(
        Scorer(lm, params),
        tokenizer,
        [tokenizer.encode(text)],
        window=window,
        stride=stride,
        max_tokens=max_tokens,
    )
