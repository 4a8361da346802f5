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

import bisect
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from jaxlm.data.files import write_npy_header
from jaxlm.data.npy import read_npy
from jaxlm.limits import read_json
from jaxlm.types import JSON_ERRORS, Batch, UserError

INDEX_FORMAT = 1
BLOCK_PIECES = 1 << 21  # pieces packed together: about 200 MB at work; larger blocks save no more rows
STALE_S = 24 * 3600.0  # an unfinished index older than this belongs to a build that was killed


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
    kind: str, store: TokenReader, seq_len: int, *, name: str, cache: str | os.PathLike | None = None
) -> Packing:
    """The packing of a source of documents or dialogues: refuses one that is smaller than a single sequence.

    Args:
      kind: `concat` or `best_fit`.
      name: the source's name, for messages.
      cache: folder for the index of `best_fit`; None keeps it in memory.
    """
    is_text = not isinstance(store, ExampleReader)
    if is_text and store.num_tokens <= seq_len:
        raise UserError(
            f"data.sources.{name} has {store.num_tokens:,} training tokens, fewer than one sequence: "
            f"data.seq_len={seq_len} needs {seq_len + 1} (the last target too). Lower data.seq_len, add text "
            f"to the source, or set its weight_tokens=0."
        )
    packing = ConcatPacking(store, seq_len) if kind == "concat" else BestFitPacking(store, seq_len, cache)
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
        begin = self._ends[_ranges(first, count)] - starts[row]  # of a document inside its row: 1..T
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
    T only. It is built once and read through a memory map.
    """

    def __init__(self, store: TokenReader, seq_len: int, cache: str | os.PathLike | None = None):
        check_documents(store)
        self.seq_len = seq_len
        self._examples = store if isinstance(store, ExampleReader) else None
        self.num_tokens_per_epoch = (
            store.num_tokens - store.num_documents if self._examples is None else self._examples.num_trained
        )
        self._store = store
        if cache is None:
            blocks = [
                tuple(np.zeros(0, dtype) for dtype in _DTYPES),
                *_index_blocks(store.document_ends, seq_len),
            ]
            self._starts, self._lengths, self._row_ends = map(np.concatenate, zip(*blocks))
        else:
            index = _cached_index(store.document_ends, seq_len, Path(cache))
            self._starts, self._lengths, self._row_ends = map(np.asarray, index)
        self.num_rows = len(self._row_ends)

    def rows(self, ids: np.ndarray) -> Batch:
        """Rows `ids`, each in [0, num_rows): dict of [R, T] arrays as in `jaxlm.types.Batch`."""
        T, R = self.seq_len, len(ids)
        ids = np.asarray(ids, np.int64)
        first = np.where(ids > 0, self._row_ends[ids - 1], 0)
        count = self._row_ends[ids] - first
        piece = _ranges(first, count)
        lengths = self._lengths[piece].astype(np.int64)
        row = np.repeat(np.arange(R), count)
        read = np.concatenate([_NO_TOKENS, *self._store.read_rows(self._starts[piece], lengths + 1)])

        # `read` holds one token more than inputs per piece: its first is no target, its last no input.
        before = np.cumsum(lengths) - lengths
        row_first = np.cumsum(count) - count
        begins = row * T + before - before[row_first][row]
        into = _ranges(begins, lengths)
        from_ = _ranges(before + np.arange(len(piece)), lengths)
        tokens_RT, targets_RT = np.zeros((R, T), np.int32), np.zeros((R, T), np.int32)
        tokens_RT.ravel()[into] = read[from_]
        targets_RT.ravel()[into] = read[from_ + 1]
        weights_RT = np.ones((R, T), np.float32)
        if self._examples is not None:
            trained = self._examples.read_trained(self._starts[piece] + 1, lengths)
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


def _ranges(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1, ... (count[0] of them), then first[1], ...: int64."""
    ends = np.cumsum(count)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(first - (ends - count), count)


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
_NAMES = ("starts", "lengths", "row_ends")
_DTYPES = (np.dtype("<i8"), np.dtype("<i4"), np.dtype("<i8"))
Index = tuple[np.ndarray, np.ndarray, np.ndarray]


def _index_blocks(ends: np.ndarray, seq_len: int) -> Iterator[Index]:
    """Yields (starts, lengths, row_ends) of rows packed from one block of pieces after another.

    Pieces are numbered through all documents, so that one endless document is cut into blocks like any other.
    """
    doc_starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    pairs = ends - doc_starts - 1
    num_cut = -(-pairs // seq_len)
    piece_ends = np.cumsum(num_cut)
    num_pieces = int(piece_ends[-1]) if len(piece_ends) else 0
    pieces_before = 0
    for first in range(0, num_pieces, BLOCK_PIECES):
        piece = np.arange(first, min(first + BLOCK_PIECES, num_pieces))
        doc = np.searchsorted(piece_ends, piece, side="right")
        cut = (piece - (piece_ends[doc] - num_cut[doc])) * seq_len  # pairs of the document before this piece
        lengths = np.minimum(seq_len, pairs[doc] - cut).astype(_DTYPES[1])
        row, num_rows = best_fit_decreasing(lengths, seq_len)
        order = np.argsort(row, kind="stable")  # documents of a row stay in the order of the corpus
        row_ends = np.cumsum(np.bincount(row, minlength=num_rows)) + pieces_before
        yield (doc_starts[doc] + cut)[order], lengths[order], row_ends
        pieces_before += len(piece)


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """The bin of each item when the longest goes first, each into the fullest bin that still takes it.

    All items of a length are placed together: each bin of the class with r left takes r // length of them and
    moves to the class r % length. The packing is the same, the steps are those of NumPy on classes instead of
    those of Python on items.

    Returns:
      (bin of each item, number of bins). Ties are broken by the order of items: no randomness.
    """
    bin_of = np.empty(len(lengths), np.int64)
    order = np.argsort(-lengths, kind="stable")
    sizes, firsts = np.unique(-lengths[order], return_index=True)
    bounds = [*firsts.tolist(), len(lengths)]
    left: dict[int, np.ndarray] = {}  # room left -> bins with exactly that room
    rooms: list[int] = []  # the keys of `left`, ascending
    num_bins = 0

    def put(room: int, bins: np.ndarray) -> None:
        if room and len(bins):
            if room in left:
                left[room] = np.concatenate([left[room], bins])
            else:
                left[room] = bins
                bisect.insort(rooms, room)

    for size, lo, hi in zip((-sizes).tolist(), bounds, bounds[1:]):
        items = order[lo:hi]
        while len(items):
            at = bisect.bisect_left(rooms, size)
            if at < len(rooms):
                room = rooms.pop(at)
                bins = left.pop(room)
            else:
                room = capacity
                bins = num_bins + np.arange(-(-len(items) // (capacity // size)))
                num_bins += len(bins)
            each = room // size
            full = min(len(bins), len(items) // each)
            bin_of[items[: full * each]] = np.repeat(bins[:full], each)
            items = items[full * each :]
            put(room - each * size, bins[:full])
            bins = bins[full:]
            if len(items) and len(bins):  # fewer than `each` are left: they share one bin
                bin_of[items] = bins[0]
                put(room - len(items) * size, bins[:1])
                items, bins = items[:0], bins[1:]
            put(room, bins)
    return bin_of, num_bins


def _cached_index(ends: np.ndarray, seq_len: int, cache: Path) -> Index:
    """Loads the index from `cache`, building it first if it is not there (or not whole)."""
    key = hashlib.sha256(f"best_fit {INDEX_FORMAT} {seq_len} {len(ends)} ".encode())
    for start in range(0, len(ends), BLOCK_PIECES):  # what the index depends on, and all it depends on
        key.update(np.ascontiguousarray(ends[start : start + BLOCK_PIECES], "<i8").data)
    folder = cache / f"best_fit-{key.hexdigest()[:32]}"
    try:
        index = _load_index(folder)
        if index is None:
            _build_index(ends, seq_len, folder)
            index = _load_index(folder)
    except OSError as error:
        raise UserError(
            f"The index of data.packing=best_fit cannot be kept in {folder} ({error.strerror or error}): set "
            f"data.cache_dir to a folder with room that can be written, or data.packing=concat (no index)."
        ) from error
    if index is None:
        raise UserError(
            f"The index of data.packing=best_fit in {folder} was damaged while it was read: remove it."
        )
    return index


def _load_index(folder: Path) -> Index | None:
    """The arrays in `folder`, memory-mapped; None when it is absent, or damaged (then it is removed)."""
    if not folder.exists():
        return None
    try:
        meta = read_json(folder / "index.json")
        starts, lengths, row_ends = (read_npy(folder / f"{name}.npy", mapped=True) for name in _NAMES)
    except (*JSON_ERRORS, FileNotFoundError):  # no .npy header, or not as many bytes as it promises
        shutil.rmtree(folder)
        return None
    if [len(starts), len(lengths), len(row_ends)] != meta:
        shutil.rmtree(folder)
        return None
    return starts, lengths, row_ends


def _build_index(ends: np.ndarray, seq_len: int, folder: Path) -> None:
    """Writes the index beside `folder`, block by block, then renames: nobody ever sees half of one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for old in folder.parent.glob("best_fit-*.tmp-*"):
        if time.time() - old.stat().st_mtime > STALE_S:
            shutil.rmtree(old, ignore_errors=True)
    temporary = folder.parent / f"{folder.name}.tmp-{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        files = [open(temporary / f"{name}.npy", "wb+") for name in _NAMES]
        try:
            counts = [0, 0, 0]
            for file, dtype in zip(files, _DTYPES):
                write_npy_header(file, dtype, (0,))
            for block in _index_blocks(ends, seq_len):
                for i, (file, dtype, array) in enumerate(zip(files, _DTYPES, block)):
                    file.write(np.ascontiguousarray(array, dtype).data)
                    counts[i] += len(array)
            for file, dtype, count in zip(files, _DTYPES, counts):
                file.seek(0)
                write_npy_header(file, dtype, (count,))
                file.flush()
                os.fsync(file.fileno())
        finally:
            for file in files:
                file.close()
        (temporary / "index.json").write_text(json.dumps(counts))
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was first: its index is the same as ours
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
