"""Tokenised corpora on disk: ArrayRecord shards, document ends, one manifest.

```
DIR/manifest.json                       what is here, written last: without it the folder is not a corpus
DIR/train-00000.arrayrecord             a stream of tokens: documents end to end, each with its BOS and EOS
DIR/train-00000.offsets.npy             int64: where each document ends in that stream (exclusive)
DIR/train-00000.crc32.npy               uint32: the checksum of each record, compared whenever it is read
DIR/eval-00000.arrayrecord ...
```

Record r of a shard holds tokens [r * chunk_tokens, (r + 1) * chunk_tokens), little-endian, so that any row of
any document is one or two small reads. Measured on two cores, 2,048 uncompressed tokens to a record: 4 us for
`seek` and `read` without the reader's thread pool, 21 us for `read([r])` with it; zstd halves the disk and
costs 10 us more.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from jaxlm.data.checksums import crc32s, crc_file, npy, sha256
from jaxlm.data.files import disk_error, sync_folder, write_atomic
from jaxlm.data.manifest import (
    check_tokenizer,
    make_manifest,
    offsets_file,
    read_manifest,
    shard_files,
    token_dtype,
    write_manifest,
)
from jaxlm.data.notices import Notices
from jaxlm.data.shard_reader import ShardReader, damaged
from jaxlm.types import UserError

CHUNK_TOKENS = 2048
RESIDENT_BYTES = 64 << 20
"""A split up to this size is held in memory whole: rows become slices of one array."""


class ShardWriter:
    """Writes one shard: documents in, three files out; they get their names when `close` succeeds.

    Args:
      directory: an existing local folder.
      name: of the shard, such as "train-00000".
      vocab_size: decides the stored type; every id must be below it.
    """

    def __init__(
        self, directory: epath.PathLike, name: str, vocab_size: int, chunk_tokens: int = CHUNK_TOKENS
    ):
        self._base = os.path.join(os.fspath(directory), name)
        self._partial = f"{self._base}.{uuid.uuid4().hex[:8]}.partial"
        self._dtype = token_dtype(vocab_size)
        self._vocab_size = vocab_size
        self._chunk_tokens = chunk_tokens
        self._buffer: list[np.ndarray] = []
        self._buffered = 0
        self._ends: list[np.ndarray] = []
        self._crcs: list[np.ndarray] = []
        self._hash = hashlib.sha256()
        self.num_tokens = 0
        self.num_documents = 0
        self.num_bytes = 0
        self._writer = self._guard(lambda: ArrayRecordWriter(self._partial, "group_size:1,uncompressed"))

    def add(self, ids: np.ndarray | list[int], num_bytes: int) -> None:
        """Appends one document; `num_bytes` is the size of its text in UTF-8."""
        self.add_batch(np.asarray(ids), np.array([len(ids)]), num_bytes)

    def add_batch(self, ids: np.ndarray, lengths: np.ndarray, num_bytes: int) -> None:
        """Appends documents lying end to end in `ids`; `num_bytes` is the size of all their text in UTF-8."""
        if len(ids) and not (0 <= int(ids.min()) and int(ids.max()) < self._vocab_size):
            raise ValueError(
                f"token ids must be in [0, {self._vocab_size}); found {ids.min()} and {ids.max()}"
            )
        tokens = np.ascontiguousarray(ids, self._dtype)
        self._ends.append(self.num_tokens + np.cumsum(lengths, dtype=np.int64))
        self.num_tokens += len(tokens)
        self.num_documents += len(lengths)
        self.num_bytes += num_bytes
        self._hash.update(tokens.tobytes())
        self._buffer.append(tokens)
        self._buffered += len(tokens)
        if self._buffered >= 64 * self._chunk_tokens:
            self._flush(final=False)

    def _flush(self, final: bool) -> None:
        stream = np.concatenate(self._buffer) if self._buffer else np.empty(0, self._dtype)
        stop = len(stream) if final else len(stream) - len(stream) % self._chunk_tokens
        records = [
            stream[start : min(start + self._chunk_tokens, stop)].tobytes()
            for start in range(0, stop, self._chunk_tokens)
        ]
        for record in records:
            self._guard(lambda record=record: self._writer.write(record))
        self._crcs.append(crc32s(records))
        self._buffer = [stream[stop:]]
        self._buffered = len(stream) - stop

    def _guard(self, action):
        try:
            return action()
        except (OSError, RuntimeError) as error:
            self._remove_partial()
            raise disk_error(self._base, error) or error from None

    def close(self) -> dict[str, Any]:
        """Finishes the files and gives them their names; returns the shard's entry of the manifest."""
        self._flush(final=True)
        self._guard(self._writer.close)
        ends = np.concatenate(self._ends) if self._ends else np.empty(0, np.int64)
        self._hash.update(ends.astype("<i8").tobytes())
        offsets, crcs = npy(ends.astype("<i8")), npy(np.concatenate(self._crcs))
        self._guard(lambda: self._publish(offsets, crcs))
        return {
            "file": os.path.basename(self._base) + ".arrayrecord",
            "num_tokens": self.num_tokens,
            "num_documents": self.num_documents,
            "num_bytes": self.num_bytes,
            "sha256": self._hash.hexdigest(),
            "offsets_sha256": sha256(offsets),
            "crc32_sha256": sha256(crcs),
        }

    def _publish(self, offsets: bytes, crcs: bytes) -> None:
        with open(self._partial, "rb+") as file:
            os.fsync(file.fileno())
        write_atomic(offsets_file(self._base), offsets)
        write_atomic(crc_file(self._base), crcs)
        os.replace(self._partial, self._base + ".arrayrecord")
        sync_folder(os.path.dirname(self._base))

    def abort(self) -> None:
        """Forgets what was written: no file is left."""
        if self._writer.is_open():
            # Of a file that is thrown away it does not matter whether its end can be written.
            with contextlib.suppress(OSError, RuntimeError):
                self._writer.close()
        self._remove_partial()

    def _remove_partial(self) -> None:
        if os.path.exists(self._partial):
            os.unlink(self._partial)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is not None:
            self.abort()


def join_shards(
    pieces: Sequence[tuple[str, dict[str, Any]]],
    directory: epath.PathLike,
    name: str,
    vocab_size: int,
    chunk_tokens: int = CHUNK_TOKENS,
    *,
    keep: bool = False,
) -> dict[str, Any]:
    """Makes one shard of several, given as (folder, entry). May be done twice.

    Args:
      keep: whether one alone stays where it is too, as a hard link or a copy; else it is renamed.
    """
    target = os.path.join(os.fspath(directory), name) + ".arrayrecord"
    if len(pieces) == 1:
        folder, entry = pieces[0]
        for source, final in zip(shard_files(entry["file"]), shard_files(target)):
            if keep:
                _link(os.path.join(folder, source), final)
            elif os.path.exists(os.path.join(folder, source)) or not os.path.exists(final):
                os.replace(os.path.join(folder, source), final)
        return {**entry, "file": os.path.basename(target)}
    with ShardWriter(directory, name, vocab_size, chunk_tokens) as writer:
        for folder, entry in pieces:
            num_records = -(-entry["num_tokens"] // chunk_tokens)
            piece = ShardReader(
                os.path.join(folder, entry["file"]), entry, token_dtype(vocab_size), num_records, Notices()
            )
            tokens = np.frombuffer(b"".join(piece.read(range(num_records))), token_dtype(vocab_size))
            writer.add_batch(tokens, np.diff(piece.document_ends(), prepend=0), entry["num_bytes"])
            piece.close()
        return writer.close()


def _link(source: str, target: str) -> None:
    """The same file under another name; a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK):
            raise
        shutil.copyfile(source, target)


def write_corpus(
    directory: epath.PathLike,
    splits: Mapping[str, Iterable[tuple[list[int] | np.ndarray, int]]],
    *,
    tokenizer_sha256: str,
    vocab_size: int,
    chunk_tokens: int = CHUNK_TOKENS,
    shard_tokens: int | None = None,
) -> dict[str, Any]:
    """Writes a whole corpus of tokenised documents, in this process; returns its manifest.

    Args:
      splits: for each split, its documents as (ids with BOS and EOS, bytes of the text).
      shard_tokens: a new shard begins once the last one holds as many; None: one shard per split.
    """
    path = epath.Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    entries: dict[str, list[dict[str, Any]]] = {}
    for split, documents in splits.items():
        rest = iter(documents)
        entries[split] = []
        for number, first in enumerate(rest):  # each shard begins where the last one was full
            with ShardWriter(path, f"{split}-{number:05d}", vocab_size, chunk_tokens) as writer:
                writer.add(*first)
                while shard_tokens is None or writer.num_tokens < shard_tokens:
                    document = next(rest, None)
                    if document is None:
                        break
                    writer.add(*document)
                entries[split].append(writer.close())
    manifest = make_manifest(
        tokenizer_sha256=tokenizer_sha256, vocab_size=vocab_size, splits=entries, source={}, dropped={},
        chunk_tokens=chunk_tokens,
    )  # fmt: skip
    write_manifest(path, manifest)
    return manifest


_OLD = (
    "{split}: built by an older version, without checksums: it is read whole at first and compared with its manifest; "
    "`jaxlm corpus build` makes it anew"
)


class TokenStore:
    """One split of a corpus as one long array of tokens, read where needed.

    Thread-safe. Pickled (to Grain's worker processes) without its open files, which reopen on first use.

    Args:
      directory: made by `jaxlm corpus build`; may be gs://.
      split: "train" or "eval".
      expected_tokenizer_sha256: the run's tokenizer; another one made these ids -> UserError.
      resident_bytes: a split up to this size is read into memory whole, on first use.
      notices: hears of reads that were tried again; None: of its own.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        split: str,
        *,
        expected_tokenizer_sha256: str | None = None,
        resident_bytes: int = RESIDENT_BYTES,
        notices: Notices | None = None,
    ):
        self.directory = os.fspath(directory)
        self.split = split
        self.notices = notices or Notices()
        self.manifest = read_manifest(directory, self.notices)
        check_tokenizer(self.directory, self.manifest, expected_tokenizer_sha256)
        if split not in self.manifest["splits"]:
            raise UserError(f"{directory} has no split {split!r}, only {', '.join(self.manifest['splits'])}.")
        entry = self.manifest["splits"][split]
        self.num_tokens: int = entry["num_tokens"]
        self.num_bytes: int = entry["num_bytes"]
        self.num_documents: int = entry["num_documents"]
        self.dtype = np.dtype(self.manifest["dtype"]).newbyteorder("<")
        self._chunk = int(self.manifest["chunk_tokens"])
        sizes = np.array([shard["num_tokens"] for shard in entry["shards"]], np.int64)
        self._num_records = -(-sizes // self._chunk)
        self._token_base = np.concatenate([[0], np.cumsum(sizes)])
        self._record_base = np.concatenate([[0], np.cumsum(self._num_records)])
        self.is_resident = self.num_tokens * self.dtype.itemsize <= resident_bytes
        self._open()

    def _open(self) -> None:
        self._lock = threading.Lock()
        entries = self.manifest["splits"][self.split]["shards"]
        self._shards = [
            ShardReader(
                os.fspath(epath.Path(self.directory) / entry["file"]), entry, self.dtype, num, self.notices
            )
            for entry, num in zip(entries, self._num_records.tolist())
        ]
        self._tokens: np.ndarray | None = None
        self._ends: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        hidden = ("_lock", "_shards", "_tokens", "_ends")
        return {key: value for key, value in self.__dict__.items() if key not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    @property
    def document_ends(self) -> np.ndarray:
        """int64 [num_documents], ascending: document d is tokens [ends[d - 1], ends[d]) of the split."""
        with self._lock:
            if self._ends is None:
                if not self.has_checksums:
                    self.notices("data_verified", file=self.directory, reason=_OLD.format(split=self.split))
                parts = [
                    shard.document_ends() + base
                    for shard, base in zip(self._shards, self._token_base.tolist())
                ]
                self._ends = np.concatenate(parts) if parts else np.empty(0, np.int64)
                self._ends.setflags(write=False)
            return self._ends

    def _read_records(self, records: np.ndarray, num_tokens: int) -> np.ndarray:
        """The `num_tokens` tokens of these records (numbered over the split, ascending), end to end."""
        cuts = np.searchsorted(records, self._record_base)
        pieces: list[bytes] = []
        for shard in np.flatnonzero(np.diff(cuts)).tolist():
            wanted = records[cuts[shard] : cuts[shard + 1]] - self._record_base[shard]
            pieces += self._shards[shard].read(wanted.tolist())
        tokens = np.frombuffer(b"".join(pieces), self.dtype)
        if len(tokens) != num_tokens:
            raise damaged(self.directory, f"{len(tokens)} tokens where {num_tokens} should be")
        return tokens

    @property
    def has_checksums(self) -> bool:
        """Whether the build wrote some; else everything is read at first, and compared with the manifest."""
        return all(shard.has_checksums for shard in self._shards)

    def check_files(self) -> None:
        """Looks at every file, and reads the small ones. Errors: UserError that names one that is not as built."""
        _ = self.document_ends
        for shard in self._shards:
            shard.check_file()

    def check(self) -> None:
        """Reads everything once. Errors: UserError that names a file that is not what the build wrote."""
        self.check_files()
        for shard, num_records in zip(self._shards, self._num_records.tolist()):
            for start in range(0, num_records, 1024):
                shard.read(range(start, min(start + 1024, num_records)))

    def _locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each token of the split: its record, and the first token of that record."""
        shard = np.searchsorted(self._token_base, positions, side="right") - 1
        chunk = (positions - self._token_base[shard]) // self._chunk
        return self._record_base[shard] + chunk, self._token_base[shard] + chunk * self._chunk

    def _span(self, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, offsets): row i is tokens[offsets[i] : offsets[i] + lengths[i]]."""
        starts = np.asarray(starts, np.int64)
        lengths = np.asarray(lengths, np.int64)
        if len(starts) and (
            lengths.min() < 0 or starts.min() < 0 or (starts + lengths).max() > self.num_tokens
        ):
            raise IndexError(
                f"rows must lie within the {self.num_tokens} tokens of {self.directory} {self.split}"
            )
        if self.is_resident:
            with self._lock:
                if self._tokens is None:
                    self._tokens = self._read_records(np.arange(self._record_base[-1]), self.num_tokens)
            return self._tokens, starts
        filled = np.flatnonzero(lengths)
        if not len(filled):
            return np.empty(0, self.dtype), np.zeros_like(starts)
        first, first_token = self._locate(starts[filled])
        last, _ = self._locate(starts[filled] + lengths[filled] - 1)
        widest = int((last - first).max()) + 1
        candidates = first[:, None] + np.arange(widest)
        records = np.unique(candidates[candidates <= last[:, None]])
        # All records are full but the last of each shard, so their places follow from the places of those.
        shard = np.searchsorted(self._record_base, records, side="right") - 1
        inside = (records - self._record_base[shard]) * self._chunk
        sizes = np.minimum(self._chunk, np.diff(self._token_base)[shard] - inside)
        tokens = self._read_records(records, int(sizes.sum()))
        places = np.concatenate([[0], np.cumsum(sizes)])
        offsets = np.zeros_like(starts)
        offsets[filled] = places[np.searchsorted(records, first)] + starts[filled] - first_token
        return tokens, offsets

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of the split, int32."""
        return self.read_rows(np.array([start]), np.array([stop - start]))[0]

    def read_rows(self, starts: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """Row i is tokens [starts[i], starts[i] + lengths[i]), int32. Many rows at once cost fewer reads."""
        tokens, offsets = self._span(starts, lengths)
        stops = offsets + np.asarray(lengths, np.int64)
        return [tokens[a:b].astype(np.int32) for a, b in zip(offsets.tolist(), stops.tolist())]

    def read_block(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Rows of one length as one array, int32 [len(starts), length]: the fastest way for short rows."""
        tokens, offsets = self._span(starts, np.full(len(starts), length, np.int64))
        return tokens[offsets[:, None] + np.arange(length)].astype(np.int32)

    def close(self) -> None:
        """Closes the open files; a later read opens them again."""
        for shard in self._shards:
            shard.close()
