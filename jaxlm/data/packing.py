"""Documents -> rows of seq_len tokens, decided ahead: any row is found without reading the others.

A row holds T inputs and, for each, the target that follows it. Two packings with one face:

  ConcatPacking   documents end to end, cut every T tokens. No index at all.
  BestFitPacking  documents whole where they fit (Ding et al. 2024, arXiv:2404.10830). An index on disk.

Of dialogues, only the answers' tokens have weight 1, and BestFitPacking cuts none: they are no longer than a row.
`padding.py` has a third packing: one example a row.

Both promise: in an epoch every token that has a predecessor in its own document is the target of weight 1
exactly once, so the weights sum to `num_tokens - num_documents`; no token is predicted from another document.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from jaxlm.data.notices import Notices
from jaxlm.data.packing_index import BLOCK_PIECES, CachedIndex, MemoryIndex, index_blocks, ranges
from jaxlm.types import Batch, UserError


class TokenReader(Protocol):
    """What packing asks of a store: documents end to end, and random access to any stretch of tokens."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_documents(self) -> int: ...

    @property
    def document_ends(self) -> np.ndarray: ...

    def read_rows(self, starts: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]: ...


@runtime_checkable
class ExampleReader(TokenReader, Protocol):
    """A store of examples (`jaxlm.data.examples.ExampleStore`), of whose tokens only some are trained on."""

    @property
    def num_trained(self) -> int: ...

    def read_trained(self, starts: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]: ...

    def labels(self, names: Sequence[str]) -> np.ndarray: ...


class Packing(Protocol):
    """Rows of one source."""

    seq_len: int
    num_rows: int
    num_tokens_per_epoch: int

    def rows(self, ids: np.ndarray) -> Batch: ...


def open_packing(
    kind: str,
    store: TokenReader,
    seq_len: int,
    *,
    name: str,
    cache: str | os.PathLike | None = None,
    notices: Notices | None = None,
) -> Packing:
    """The packing of a source of documents or dialogues: refuses one that is smaller than a single sequence.

    Args:
      kind: `concat` or `best_fit`.
      name: the source's name, for messages.
      cache: folder for the index of `best_fit`; None keeps it in memory.
      notices: hears of an index that had to be made again.
    """
    is_text = not isinstance(store, ExampleReader)
    if is_text and store.num_tokens <= seq_len:
        raise UserError(
            f"data.sources.{name} has {store.num_tokens:,} training tokens, fewer than one sequence: "
            f"data.seq_len={seq_len} needs {seq_len + 1} (the last target too). Lower data.seq_len, add text "
            f"to the source, or set its weight_tokens=0."
        )
    packing = (
        ConcatPacking(store, seq_len) if kind == "concat" else BestFitPacking(store, seq_len, cache, notices)
    )
    if packing.num_tokens_per_epoch == 0:
        raise UserError(
            f"data.sources.{name} has {store.num_tokens:,} training tokens, each a document of its own: "
            f"nothing to predict. Join its documents, or set its weight_tokens=0."
        )
    return packing


class ConcatPacking:
    """Documents end to end; row k is fed tokens [k T, (k + 1) T) and predicts the token after each.

    Consecutive rows share one token: the last target here, the first input there. The last row is padded.
    Inputs whose next token starts another document have weight 0.
    """

    def __init__(self, store: TokenReader, seq_len: int):
        check_documents(store)
        self.seq_len = seq_len
        self.num_rows = -(-max(store.num_tokens - 1, 0) // seq_len)
        self.num_tokens_per_epoch = store.num_tokens - store.num_documents
        self._store = store
        self._ends = store.document_ends

    def rows(self, ids: np.ndarray) -> Batch:
        """Rows `ids`, each in [0, num_rows): dict of [R, T] arrays as in `jaxlm.types.Batch`."""
        T, R = self.seq_len, len(ids)
        starts = np.asarray(ids, np.int64) * T
        lengths = np.minimum(T + 1, self._store.num_tokens - starts)
        read_RT1 = np.zeros((R, T + 1), np.int32)
        for into, tokens in zip(read_RT1, self._store.read_rows(starts, lengths), strict=True):
            into[: len(tokens)] = tokens

        first = np.searchsorted(self._ends, starts, side="right")
        count = np.searchsorted(self._ends, starts + lengths - 1, side="right") - first
        row = np.repeat(np.arange(R), count)
        begin = self._ends[ranges(first, count)] - starts[row]  # of a document inside its row: 1..T
        weights_RT = np.ones((R, T), np.float32)
        weights_RT[row, begin - 1] = 0.0  # the token before it must not predict it
        inner = begin < T
        begins = np.sort(np.concatenate([np.arange(R) * T, row[inner] * T + begin[inner]]))
        return _batch(read_RT1[:, :T].copy(), read_RT1[:, 1:].copy(), weights_RT, begins, used_R=lengths - 1)


class BestFitPacking:
    """Whole documents where they fit; packed by best-fit decreasing (Ding et al. 2024, arXiv:2404.10830).

    A document of n tokens makes n - 1 pairs of input and target. One with more than T pairs is cut every T
    pairs; neighbouring pieces share one token, the last target here and the first input there, so that no
    target is lost. The pieces fill rows of T pairs; what stays empty is padding (segment 0, weight 0). A last
    token (EOS) is a target but never an input: it would predict nothing.

    The index (a start and a length for each piece, an end for each row) depends on the documents' ends and on
    T only. It is built once and read through a memory map (`packing_index.py`).
    """

    def __init__(
        self,
        store: TokenReader,
        seq_len: int,
        cache: str | os.PathLike | None = None,
        notices: Notices | None = None,
    ):
        check_documents(store)
        self.seq_len = seq_len
        self._examples = store if isinstance(store, ExampleReader) else None
        self.num_tokens_per_epoch = (
            store.num_tokens - store.num_documents if self._examples is None else self._examples.num_trained
        )
        self._store = store
        ends = store.document_ends
        self._index = (
            MemoryIndex(index_blocks(ends, seq_len))
            if cache is None
            else CachedIndex(ends, seq_len, Path(cache), notices or Notices())
        )
        self.num_rows = self._index.num_rows

    def rows(self, ids: np.ndarray) -> Batch:
        """Rows `ids`, each in [0, num_rows): dict of [R, T] arrays as in `jaxlm.types.Batch`."""
        T, R = self.seq_len, len(ids)
        starts, lengths, count = self._index.pieces(np.asarray(ids, np.int64))
        row = np.repeat(np.arange(R), count)
        read = np.concatenate([_NO_TOKENS, *self._store.read_rows(starts, lengths + 1)])

        # `read` holds one token more than inputs per piece: its first is no target, its last no input.
        before = np.cumsum(lengths) - lengths
        row_first = np.cumsum(count) - count
        begins = row * T + before - before[row_first][row]
        into = ranges(begins, lengths)
        from_ = ranges(before + np.arange(len(starts)), lengths)
        tokens_RT, targets_RT = np.zeros((R, T), np.int32), np.zeros((R, T), np.int32)
        tokens_RT.ravel()[into] = read[from_]
        targets_RT.ravel()[into] = read[from_ + 1]
        weights_RT = np.ones((R, T), np.float32)
        if self._examples is not None:
            trained = self._examples.read_trained(starts + 1, lengths)
            weights_RT.ravel()[into] = np.concatenate([np.zeros(0, bool), *trained])
        used_R = np.add.reduceat(lengths, row_first)
        return _batch(tokens_RT, targets_RT, weights_RT, begins, used_R)


def _batch(tokens_RT, targets_RT, weights_RT, begins: np.ndarray, used_R: np.ndarray) -> Batch:
    """Adds segments and positions, and makes everything beyond the first `used_R` inputs of a row padding.

    Args:
      begins: where segments begin in the flattened rows, ascending; r T is among them for each row r.
    """
    R, T = tokens_RT.shape
    first_R = np.searchsorted(begins, np.arange(R) * T)
    number = np.arange(len(begins)) - first_R[begins // T] + 1
    lengths = np.diff(begins, append=R * T)
    segments_RT = np.repeat(number.astype(np.int32), lengths).reshape(R, T)
    begin_RT = np.repeat(begins.astype(np.int32), lengths).reshape(R, T)
    positions_RT = np.arange(R * T, dtype=np.int32).reshape(R, T) - begin_RT
    batch = {
        "tokens": tokens_RT,
        "targets": targets_RT,
        "weights": weights_RT,
        "segments": segments_RT,
        "positions": positions_RT,
    }
    padded = np.flatnonzero(used_R < T)
    if len(padded):
        real_RT = np.arange(T) < used_R[padded, None]
        for field in batch.values():
            field[padded] *= real_RT
    return batch


def check_documents(store: TokenReader) -> None:
    """UserError unless the documents' ends ascend and the last one ends the tokens: packing relies on it."""
    ends = store.document_ends
    good = len(ends) == store.num_documents and (int(ends[-1]) if len(ends) else 0) == store.num_tokens
    good = good and (not len(ends) or ends[0] > 0)
    for start in range(0, len(ends) - 1, BLOCK_PIECES):
        good = good and bool(np.all(np.diff(ends[start : start + BLOCK_PIECES + 1]) > 0))
    if not good:
        raise UserError(
            f"The ends of {store.num_documents:,} documents do not cut {store.num_tokens:,} tokens into "
            f"parts of at least one token: the corpus is damaged. Build it again with `jaxlm corpus build`."
        )


_NO_TOKENS = np.zeros(0, np.int32)
