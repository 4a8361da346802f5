"""The bytes of a raw file without its compression: streaming, with limits, and damage as a fault."""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import zstandard

from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.files import RawFile, RawPart, open_bytes
from jaxlm.corpus.readers import BLOCK_BYTES, FREE_BYTES, MAX_EXPANSION, ZSTD_INPUT_BYTES

INPUT_BYTES = 256 << 10


def stop_of(part: RawPart) -> int:
    """Where the slice ends; far away where the size of the file is not known before it is read (`num_bytes` 0)."""
    return part.stop if part.file.num_bytes else 1 << 62


def has_bytes(file: RawFile) -> bool:
    """Whether there is anything in the file, compressed or not."""
    with open_bytes(file) as stream:
        return bool(stream.read(1))


class Unpacked:
    """Iterates over the decompressed bytes of a file, in blocks of bounded size; ends where they cannot be read on.

    Faults: `truncated_<gz, bz2, zst>`, `broken_<...>`, `bomb`.
    """

    def __init__(self, file: RawFile, account: Account):
        self.file = file
        self.account = account
        self.damaged = False
        """Whether bytes are missing at the end of what was given."""

    def __iter__(self) -> Iterator[bytes]:
        done = 0
        with open_bytes(self.file) as stream:
            blocks = _plain(stream) if not self.file.compression else _unpack(stream, self.file.compression)
            while True:
                try:
                    block = next(blocks, None)
                except _Damage as damage:
                    self._fault(damage.reason, done, str(damage))
                    return
                if block is None:
                    return
                done += len(block)
                if done > max(FREE_BYTES, MAX_EXPANSION * stream.tell()):
                    self._fault("bomb", done, f"its first {stream.tell():,} bytes expand to as many")
                    return
                yield block

    def _fault(self, reason: str, done: int, detail: str) -> None:
        self.damaged = True
        self.account.fault(reason, self.file.name, f"byte {done:,} of its text", detail)


class _Damage(Exception):
    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


def _plain(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(BLOCK_BYTES):
        yield block


def _unpack(stream: BinaryIO, compression: str) -> Iterator[bytes]:
    """Members one after the other."""
    rest = stream.read(INPUT_BYTES)
    is_first = True
    while rest:
        if not is_first and not rest.strip(b"\0"):  # padding, as tapes have
            rest = stream.read(INPUT_BYTES)
            continue
        member = _MEMBERS[compression]()
        while True:
            try:
                block = member.decompress(rest)
            except (OSError, zlib.error, EOFError, ValueError, zstandard.ZstdError) as error:
                raise _Damage(f"broken_{compression}", str(error) or type(error).__name__) from None
            if block:
                yield block
            if member.eof:
                rest = member.unused or stream.read(INPUT_BYTES)
                break
            rest = b"" if member.has_more else stream.read(INPUT_BYTES)
            if not rest and not member.has_more:
                raise _Damage(f"truncated_{compression}", "the file ends before its compressed data does")
        is_first = False


class _Gzip:
    def __init__(self):
        self._inner = zlib.decompressobj(wbits=31)

    def decompress(self, data: bytes) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, BLOCK_BYTES)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def has_more(self) -> bool:
        return bool(self._inner.unconsumed_tail)

    @property
    def unused(self) -> bytes:
        return self._inner.unused_data


class _Bzip2:
    def __init__(self):
        self._inner = bz2.BZ2Decompressor()

    def decompress(self, data: bytes) -> bytes:
        return self._inner.decompress(data, BLOCK_BYTES)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def has_more(self) -> bool:
        return not self._inner.needs_input

    @property
    def unused(self) -> bytes:
        return self._inner.unused_data


class _Zstandard:
    """In small pieces, since the library has no limit of what comes out."""

    def __init__(self):
        self._inner = zstandard.ZstdDecompressor().decompressobj()
        self._left = b""

    def decompress(self, data: bytes) -> bytes:
        data = self._left + data
        self._left = data[ZSTD_INPUT_BYTES:]
        return self._inner.decompress(data[:ZSTD_INPUT_BYTES])

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def has_more(self) -> bool:
        return bool(self._left)

    @property
    def unused(self) -> bytes:
        return self._inner.unused_data + self._left


_MEMBERS: dict[str, Any] = {"gz": _Gzip, "bz2": _Bzip2, "zst": _Zstandard}
