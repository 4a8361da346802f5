"""One example a row: batches of rows of similar length, only as wide as those rows need.

A batch may have one of a few widths (`row_widths`), each compiled once. Which rows share a batch is decided for a
window of steps at a time, from the lengths of exactly the rows that the mixture drew for it: a pure function of
(config, seed, step) like everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.data.mixture import permute, seed_key
from jaxlm.data.packing import ExampleReader, check_documents
from jaxlm.types import Batch

NARROWEST = 16
"""Narrower rows would save nothing: the width is then no longer what a step costs."""


class Labelled(NamedTuple):
    """How texts with labels become rows."""

    pooling: str
    """`last` or `mean`: which states of a text count in what its head reads."""
    names: tuple[str, ...]
    """Of the labels, in the order of the head's outputs; empty for a regression."""


def row_widths(seq_len: int) -> list[int]:
    """The widths that batches may have: powers of two, those between them, and seq_len; ascending."""
    widths, width = [], NARROWEST
    while width < seq_len:
        widths += [width, width * 3 // 2]
        width *= 2
    return [w for w in widths if w < seq_len] + [seq_len]


def row_width(longest: int, seq_len: int) -> int:
    """The narrowest of the widths that takes a row of this many inputs."""
    return next(width for width in row_widths(seq_len) if width >= longest)


def padded(lengths: np.ndarray, width: int) -> tuple[Batch, np.ndarray]:
    """(rows of no tokens yet with their segments and positions, bool [R, T]: where the tokens go)."""
    place_RT = np.arange(width, dtype=np.int32)[None]
    real_RT = place_RT < lengths[:, None]
    batch = {
        "tokens": np.zeros(real_RT.shape, np.int32),
        "segments": real_RT.astype(np.int32),
        "positions": np.where(real_RT, place_RT, np.int32(0)),
        "weights": np.zeros(real_RT.shape, np.float32),
    }
    return batch, real_RT


def text_rows(texts: Sequence[Sequence[int] | np.ndarray], pooling: str, num_rows: int, width: int) -> Batch:
    """Texts as a batch to classify (docs/design/0006-fine-tuning.md), without labels; rows beyond them are no text."""
    num, lengths = len(texts), np.zeros(num_rows, np.int64)
    lengths[:num] = [len(text) for text in texts]
    batch, real_RT = padded(lengths, width)
    batch["tokens"][real_RT] = _joined(texts)
    if pooling == "last":
        batch["weights"][np.arange(num), lengths[:num] - 1] = 1.0
    else:
        batch["weights"][:] = real_RT / np.maximum(lengths, 1)[:, None]
    return batch


class PadPacking:
    """Each example is a row, filled up with padding (segment 0, weight 0).

    With `labelled` a row holds the whole text, and `labels` of it; `weights` says what each state counts in the pooled
    state of the text, and sums to 1. Else it holds all but the last token, and in `targets` all but the first;
    `weights` is 1 where a target is trained on.
    """

    def __init__(self, store: ExampleReader, seq_len: int, labelled: Labelled | None = None):
        check_documents(store)
        self.seq_len = seq_len
        self.num_rows = store.num_documents
        self._store, self._labelled = store, labelled
        self._starts = np.concatenate([[0], store.document_ends[:-1]]).astype(np.int64)
        self.lengths = store.document_ends - self._starts - (0 if labelled else 1)
        """Inputs of each row."""
        self.num_tokens_per_epoch = store.num_tokens if labelled else store.num_trained
        self._labels = store.labels(labelled.names) if labelled else None

    def width(self, longest: int) -> int:
        """The narrowest width that takes a row of this many inputs."""
        return row_width(longest, self.seq_len)

    def empty(self, num_rows: int, width: int) -> Batch:
        """Rows of padding, each no example at all."""
        batch, _ = padded(np.zeros(num_rows, np.int64), width)
        if self._labels is None:
            batch["targets"] = np.zeros((num_rows, width), np.int32)
        else:
            batch["labels"] = np.zeros((num_rows, *self._labels.shape[1:]), self._labels.dtype)
        return batch

    def rows(self, ids: np.ndarray, width: int | None = None) -> Batch:
        """Rows `ids`, each in [0, num_rows), padded to `width` (None: seq_len)."""
        ids = np.asarray(ids, np.int64)
        starts, lengths = self._starts[ids], self.lengths[ids]
        width = self.seq_len if width is None else width
        if self._labelled is not None and self._labels is not None:
            texts = self._store.read_rows(starts, lengths)
            return text_rows(texts, self._labelled.pooling, len(ids), width) | {"labels": self._labels[ids]}
        batch, real_RT = padded(lengths, width)
        read = self._store.read_rows(starts, lengths + 1)
        batch["targets"] = np.zeros_like(batch["tokens"])
        batch["tokens"][real_RT] = _joined([row[:-1] for row in read])
        batch["targets"][real_RT] = _joined([row[1:] for row in read])
        batch["weights"][real_RT] = _joined(self._store.read_trained(starts + 1, lengths))
        return batch


def _joined(parts: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if len(parts) else np.zeros(0, np.int32)


def group_by_length(lengths: np.ndarray, batch_size: int, *key: object) -> np.ndarray:
    """int64 [steps, batch_size]: which of the rows of a window each of its batches takes.

    Rows of similar length share a batch; which batch comes first has nothing to do with its length. Rows of a single
    batch stay in their order.

    Args:
      lengths: of the rows of the window: a multiple of batch_size.
      key: what the order depends on.
    """
    num_steps = len(lengths) // batch_size
    if num_steps == 1:
        return np.arange(batch_size)[None]
    batches = np.argsort(lengths, kind="stable").reshape(num_steps, batch_size)
    return batches[permute(np.arange(num_steps), num_steps, seed_key("window", *key))]
