"""One shard of a corpus, read so that no other byte than those of the build ever leaves it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from jaxlm.data.checksums import crc32s, crc_file, sha256
from jaxlm.data.manifest import MANIFEST, offsets_file
from jaxlm.data.notices import Notices
from jaxlm.data.npy import parse_npy
from jaxlm.paths import is_local
from jaxlm.types import UserError

_CLOCK_NS = 2_000_000_000
"""The coarsest clock of a file system: two changes within it may bear one date."""


class ShardReader:
    """Tokens and document ends of one shard. Thread-safe; reopens its files after a failed read.

    Every record is compared with its CRC-32 when it is read. Of a local file that has not changed since (its inode,
    size and dates say so, asked after each read) a record is compared once: ArrayRecord has a hash of its own against
    flipped bits, and takes it at every read.

    A shard without checksums (made by an older version) is read whole at first, and must have the SHA-256 that the
    manifest promises; the checksums are then taken from what was read.

    Args:
      path: of the .arrayrecord.
      entry: of the shard in the manifest.
    """

    def __init__(
        self, path: str, entry: Mapping[str, Any], dtype: np.dtype, num_records: int, notices: Notices
    ):
        self.path = path
        self._entry, self._dtype, self._num_records, self._notices = entry, dtype, num_records, notices
        self._local = is_local(path)
        self._lock = threading.RLock()
        self._reader: Any = None
        self._crcs: list[int] | None = None
        self._ends: np.ndarray | None = None  # of a shard without checksums
        self._stamp: tuple[int, ...] | None = None
        self._compared = bytearray(num_records)
        """1 for each record whose bytes were right while the file was as `_stamp` says."""

    @property
    def has_checksums(self) -> bool:
        """Whether the build wrote some."""
        return "crc32_sha256" in self._entry

    def document_ends(self) -> np.ndarray:
        """int64: where each document ends in this shard."""
        if not self.has_checksums:
            with self._lock:
                self._checksums()
                assert self._ends is not None
                return self._ends
        return self._load_ends()

    def _load_ends(self) -> np.ndarray:
        path = offsets_file(self.path)
        ends = self._load_npy(path, self._entry.get("offsets_sha256"))
        good = ends.ndim == 1 and len(ends) == self._entry["num_documents"]
        if not good or (len(ends) and ends[-1] != self._entry["num_tokens"]):
            raise damaged(path, "its documents are not those of the manifest")
        return ends.astype(np.int64)

    def _load_npy(self, path: str, expected_sha256: str | None) -> np.ndarray:
        try:
            content = self._notices.retrying(epath.Path(path).read_bytes, path)
            if expected_sha256 is not None and sha256(content) != expected_sha256:
                raise damaged(path, "it is not the file that the build wrote")
            return parse_npy(content)
        except UserError:
            raise
        except (OSError, ValueError, EOFError) as error:
            raise damaged(path, getattr(error, "strerror", None) or str(error)) from None

    def _checksums(self) -> list[int]:
        """CRC-32 of each record. The caller holds the lock."""
        if self._crcs is None and self.has_checksums:
            path = crc_file(self.path)
            crcs = self._load_npy(path, self._entry["crc32_sha256"])
            if crcs.shape != (self._num_records,):
                raise damaged(path, f"{crcs.size} checksums for {self._num_records} records")
            self._crcs = crcs.tolist()
        elif self._crcs is None:
            records = self._fetch(range(self._num_records))
            ends = self._load_ends()
            found = hashlib.sha256(b"".join(records))
            found.update(ends.astype("<i8").tobytes())
            if found.hexdigest() != self._entry["sha256"]:
                raise damaged(
                    self.path,
                    f"it or {os.path.basename(offsets_file(self.path))} is not what the build wrote",
                )
            self._ends, self._crcs = ends, crc32s(records).tolist()
        assert self._crcs is not None
        return self._crcs

    def read(self, records: Sequence[int]) -> list[bytes]:
        """These records of the shard, ascending."""
        with self._lock:
            crcs, crc32 = self._checksums(), zlib.crc32
            pieces = self._fetch(records)
            stamp = self._look()
            # Since the last look, so also during this read.
            unchanged = stamp is not None and stamp == self._stamp
            if not unchanged:
                self._stamp, self._compared = stamp, bytearray(self._num_records)
            compared = self._compared
            for record, piece in zip(records, pieces):
                if compared[record]:
                    continue
                if crc32(piece) != crcs[record]:
                    self.close()
                    raise damaged(
                        self.path,
                        f"record {record:,} is not what the build wrote: other tokens, or flipped bits",
                    )
                compared[record] = unchanged
            return pieces

    def check_file(self) -> None:
        """Opens the file, and reads its checksums. Errors: UserError."""
        with self._lock:
            self._checksums()
            self._fetch(range(min(1, self._num_records)))

    def _look(self) -> tuple[int, ...] | None:
        """What tells whether the file is still the same; None when that cannot be told."""
        if not self._local:
            return None
        try:
            found = os.stat(self.path)
        except OSError:  # removed, and read on: what is open stays
            return None
        if time.time_ns() - found.st_ctime_ns < _CLOCK_NS:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def _fetch(self, records: Sequence[int]) -> list[bytes]:
        if not len(records):
            return []

        def fetch() -> list[bytes]:
            try:
                reader = self._open()
                if not self._local:
                    return list(reader.read(list(records)))
                pieces, seek, read = [], reader.seek, reader.read
                for record in records:
                    seek(record)
                    pieces.append(read())
                return pieces
            except BaseException:
                self.close()  # a reader that has failed once fails for ever
                raise

        try:
            pieces = self._notices.retrying(fetch, self.path, record=records[0])
        except UserError:
            raise
        except (RuntimeError, OSError, IndexError, ValueError) as error:
            raise damaged(self.path, getattr(error, "strerror", None) or str(error)) from None
        if len(pieces) != len(records):
            raise damaged(self.path, f"{len(pieces)} records where {len(records)} should be")
        return pieces

    def _open(self) -> Any:
        if self._reader is not None:
            return self._reader
        path = self.path
        if self._local and not os.path.exists(path):
            raise damaged(path, "no such file")
        # Local reads are faster without the reader's thread pool; remote ones hide their latency in it.
        options = "readahead_buffer_size:0" + (",max_parallelism:0" if self._local else "")
        reader = ArrayRecordReader(path, options=options, file_reader_buffer_size=4096)
        found = reader.num_records()
        if found != self._num_records:
            _close(reader)
            raise damaged(path, f"{found} records, not {self._num_records}: perhaps truncated")
        # What was compared may have been read from another file of this name.
        self._reader, self._stamp, self._compared = reader, self._look(), bytearray(self._num_records)
        return reader

    def close(self) -> None:
        """Closes the open file; a later read opens it again."""
        with self._lock:
            reader, self._reader = self._reader, None
            if reader is not None:
                _close(reader)


def _close(reader: Any) -> None:
    # One that failed before fails again here: its first error was the news.
    with contextlib.suppress(RuntimeError, OSError, ValueError):
        reader.close()


def damaged(path: epath.PathLike, reason: str) -> UserError:
    """The error for a file of a corpus that is not what it was."""
    path = os.fspath(path)
    reason = " ".join(reason.split()).removesuffix(".") or "it cannot be read: perhaps truncated"
    return UserError(
        f"{path} is missing or damaged ({reason}); {MANIFEST} promises {os.path.basename(path)} as it was built. Copy "
        "it again, or delete the folder and run `jaxlm corpus build`."
    )
