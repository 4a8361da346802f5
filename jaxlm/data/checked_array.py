"""A .npy file that is read in checked blocks: for arrays that are too large to be held in memory."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from jaxlm.data.checksums import crc32s, split
from jaxlm.data.notices import Notices
from jaxlm.data.npy import read_header
from jaxlm.types import UserError

BLOCK_BYTES = 4096


def file_checksums(path: str) -> tuple[int, np.ndarray]:
    """(size in bytes, uint32 CRC-32 of each block) of a file."""
    parts, size = [np.zeros(0, "<u4")], 0
    with open(path, "rb") as file:
        while content := file.read(256 * BLOCK_BYTES):
            parts.append(crc32s(split(content, BLOCK_BYTES)))
            size += len(content)
    return size, np.concatenate(parts)


def check_blocks(content: bytes, crcs: Sequence[int], first: int = 0) -> int | None:
    """The first block that is not what was built, by its number in the file; None: all are.

    Args:
      crcs: of all blocks of the file.
      first: the block with which `content` begins.
    """
    for number, block in enumerate(split(content, BLOCK_BYTES), start=first):
        if zlib.crc32(block) != crcs[number]:
            return number
    return None


class CheckedArray:
    """Rows of a local .npy file, by index or slice. What it gives was compared with its checksums. Thread-safe.

    Not a memory map: a disk that fails, or a file that is cut short, would end the process without a word.

    Args:
      crcs: uint32, of each block of the file, header included.
      damaged: makes the error.
    """

    def __init__(
        self,
        path: str,
        crcs: np.ndarray,
        num_bytes: int,
        notices: Notices,
        damaged: Callable[[str], UserError],
    ):
        self._path, self._crcs, self._num_bytes = path, crcs.tolist(), num_bytes
        self._notices, self._damaged = notices, damaged
        self._descriptor = os.open(path, os.O_RDONLY)
        header = io.BytesIO(self._read(0, min(num_bytes, BLOCK_BYTES)))
        self.dtype, self.shape, self._begin = read_header(header)
        self._row_bytes = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice) -> np.ndarray:
        if not isinstance(index, slice):
            return self[index : index + 1][0]
        start, stop, _ = index.indices(len(self))
        stop = max(start, stop)
        content = self._read(self._begin + start * self._row_bytes, self._begin + stop * self._row_bytes)
        return np.frombuffer(content, self.dtype).reshape(-1, *self.shape[1:])

    def _read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of the file."""
        first = start // BLOCK_BYTES
        begin, end = first * BLOCK_BYTES, min(-(-stop // BLOCK_BYTES) * BLOCK_BYTES, self._num_bytes)
        content = self._notices.retrying(lambda: os.pread(self._descriptor, end - begin, begin), self._path)
        if len(content) != end - begin:
            raise self._damaged(f"{os.path.basename(self._path)} ends at byte {begin + len(content):,}")
        if (block := check_blocks(content, self._crcs, first)) is not None:
            raise self._damaged(f"{os.path.basename(self._path)}, block {block:,} is not what was built")
        return content[start - begin : stop - begin]

    def __del__(self):
        if (descriptor := getattr(self, "_descriptor", None)) is not None:
            os.close(descriptor)
