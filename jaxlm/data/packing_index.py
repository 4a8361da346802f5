"""The index of BestFitPacking: which pieces of the documents make each row; built once, kept in a cache.

A folder of three arrays and `index.json`, which holds the CRC-32 of their files and says of which documents they are.
All is compared when the index is opened. A small one is then held in memory; a large one is read through a memory map,
and its dates are looked at before and after each use: if it changed meanwhile it is opened, or built, again. What it
holds follows from the ends of the documents and the length of a row, so one that is built again is the same.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import os
import shutil
import threading
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxlm.data.files import write_npy_header
from jaxlm.data.notices import Notices
from jaxlm.data.npy import read_header
from jaxlm.limits import read_json
from jaxlm.types import JSON_ERRORS, UserError

INDEX_FORMAT = 1
BLOCK_PIECES = 1 << 21  # pieces packed together: about 200 MB at work; larger blocks save no more rows
RESIDENT_BYTES = 64 << 20
"""An index up to this size is held in memory."""
STALE_S = 24 * 3600.0  # an unfinished index older than this belongs to a build that was killed

_NAMES = ("starts", "lengths", "row_ends")
_DTYPES = (np.dtype("<i8"), np.dtype("<i4"), np.dtype("<i8"))
Index = tuple[np.ndarray, np.ndarray, np.ndarray]


_NOTHING: Index = np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64)


def index_blocks(ends: np.ndarray, seq_len: int) -> Iterator[Index]:
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


def ranges(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1, ... (count[0] of them), then first[1], ...: int64."""
    ends = np.cumsum(count)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(first - (ends - count), count)


def gather(index: Index, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(starts, lengths of all pieces of the rows `ids`, number of pieces of each): int64, copies."""
    starts, lengths, row_ends = index
    first = np.where(ids > 0, row_ends[ids - 1], 0)
    count = row_ends[ids] - first
    piece = ranges(first, count)
    return np.array(starts[piece]), lengths[piece].astype(np.int64), count


class MemoryIndex:
    """An index that no file holds."""

    def __init__(self, blocks: Iterable[Index]):
        parts = [tuple(np.zeros(0, dtype) for dtype in _DTYPES), *blocks]
        starts, lengths, row_ends = map(np.concatenate, zip(*parts))
        self._index = starts, lengths, row_ends
        self.num_rows = len(row_ends)

    def pieces(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(starts, lengths, number of pieces of each row), as `gather`."""
        return gather(self._index, ids)


class CachedIndex:
    """An index in `cache`, built if it is not there, or not what was built. Thread-safe."""

    def __init__(self, ends: np.ndarray, seq_len: int, cache: Path, notices: Notices):
        key = hashlib.sha256(f"best_fit {INDEX_FORMAT} {seq_len} {len(ends)} ".encode())
        for start in range(0, len(ends), BLOCK_PIECES):  # what the index depends on, and all it depends on
            key.update(np.ascontiguousarray(ends[start : start + BLOCK_PIECES], "<i8").data)
        self._ends, self._seq_len, self._notices = ends, seq_len, notices
        self._folder = cache / f"best_fit-{key.hexdigest()[:32]}"
        self._lock = threading.Lock()
        self._use(self._open())
        self.num_rows = len(self._index[2])

    def _use(self, mapped: _MappedIndex) -> None:
        self._mapped, self._index = mapped, mapped.arrays

    def pieces(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(starts, lengths, number of pieces of each row), as `gather`."""
        while True:
            with self._lock:
                mapped, index = self._mapped, self._index
            if not mapped.is_changed:
                found = gather(index, ids)
                if not mapped.is_changed:
                    return found
            with self._lock:
                if self._mapped is mapped:
                    self._use(self._open())

    def _open(self) -> _MappedIndex:
        reason = ""
        try:
            for _ in range(
                3
            ):  # another process may find the same damage, and take away what this one has built
                if self._folder.exists():
                    mapped, reason = _open_index(self._folder)
                    if mapped is not None:
                        return mapped
                    self._notices("data_rebuilt", file=str(self._folder), reason=reason)
                    _remove(self._folder)
                _build_index(self._ends, self._seq_len, self._folder)
            mapped, reason = _open_index(self._folder)
        except OSError as error:
            raise UserError(
                f"The index of data.packing=best_fit cannot be kept in {self._folder} ({error.strerror or error}): set "
                f"data.cache_dir to a folder with room that can be written, or data.packing=concat (no index)."
            ) from error
        if mapped is None:
            raise UserError(
                f"The index of data.packing=best_fit in {self._folder} is damaged again as soon as it is built "
                f"({reason}): look at that disk, or set data.cache_dir to a folder on another one."
            )
        return mapped


class _MappedIndex:
    """The arrays of a folder, through memory maps where they are large."""

    def __init__(self, folder: Path):
        self.arrays: Index = _NOTHING
        """starts, lengths, row_ends; there once `problem` found none."""
        self._files = [open(folder / f"{name}.npy", "rb") for name in _NAMES]
        self._stamps = self._look()

    def _look(self) -> list[tuple[int, int]]:
        """What tells whether the files were written to. Of one that was removed or replaced, the old one is asked."""
        found = [os.fstat(file.fileno()) for file in self._files]
        return [(status.st_size, status.st_mtime_ns) for status in found]

    @property
    def is_changed(self) -> bool:
        """Since the index was opened; one that was read into memory never is."""
        return bool(self._files) and self._look() != self._stamps

    def problem(self, meta: Any, name: str) -> str | None:
        """Why these are not the arrays that were built, if they are not; `meta` is what index.json holds."""
        if not isinstance(meta, dict) or meta.get("of") != name:
            return "index.json is not that of these documents"
        for name, file in zip(_NAMES, self._files):
            if _file_crc32(file) != meta.get(name):
                return f"{name}.npy is not what was built"
        starts, lengths, row_ends = map(_map, self._files)
        self.arrays = starts, lengths, row_ends
        is_small = sum(size for size, _ in self._stamps) <= RESIDENT_BYTES
        if is_small:
            self.arrays = np.array(starts), np.array(lengths), np.array(row_ends)
        if self.is_changed:
            return "it changed while it was read"
        if is_small:
            for file in self._files:
                file.close()
            self._files = []
        return None


def _map(file: IO[bytes]) -> np.ndarray:
    file.seek(0)
    dtype, shape, place = read_header(file)
    return np.asarray(np.memmap(file, dtype, "r", place, shape)) if shape[0] else np.zeros(shape, dtype)


def _remove(folder: Path) -> None:
    """Under another name first: what is there in the meantime is of another process."""
    away = folder.parent / f"{folder.name}.tmp-{uuid.uuid4().hex}"
    try:
        folder.rename(away)
    except FileNotFoundError:
        return
    shutil.rmtree(away, ignore_errors=True)


def _file_crc32(file: IO[bytes]) -> int:
    crc = 0
    file.seek(0)
    while block := file.read(1 << 20):
        crc = zlib.crc32(block, crc)
    return crc


def _open_index(folder: Path) -> tuple[_MappedIndex | None, str]:
    """(the index in `folder`, ""), or (None, what is wrong with it)."""
    try:
        meta = read_json(folder / "index.json")
        mapped = _MappedIndex(folder)
    except (*JSON_ERRORS, FileNotFoundError) as error:
        return None, str(error)
    problem = mapped.problem(meta, folder.name)
    return (None, problem) if problem else (mapped, "")


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
            for block in index_blocks(ends, seq_len):
                for i, (file, dtype, array) in enumerate(zip(files, _DTYPES, block)):
                    file.write(np.ascontiguousarray(array, dtype).data)
                    counts[i] += len(array)
            for file, dtype, count in zip(files, _DTYPES, counts):
                file.seek(0)
                write_npy_header(file, dtype, (count,))
                file.flush()
                os.fsync(file.fileno())
            meta = {"of": folder.name} | {name: _file_crc32(file) for name, file in zip(_NAMES, files)}
        finally:
            for file in files:
                file.close()
        (temporary / "index.json").write_text(json.dumps(meta))
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was first: its index is the same as ours
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
