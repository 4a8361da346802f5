"""The decompressed bytes of a file, member by member, with their places in it; reading goes on behind damage.

    for piece in frames(stream, "gz"):
        piece.data, piece.start, piece.stop    # stop: where the member ends, in the last piece of it

A WARC file is a chain of gzip members (or Zstandard frames), one for each record, so that damage to one need not
harm the next. Readers of gzip, fastwarc's included, know no members: they stop at the first broken one, and some at an
empty one without a word. Here a broken member is a piece with `damage`, and the search for the next one goes on.

ISA-L inflates about twice as fast as zlib, which stands in where it is not installed.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

PIECE_BYTES = 1 << 20
"""Of decompressed bytes at a time; most members are smaller, and then one piece."""
BLOCK_BYTES = 16 << 10
"""Of compressed bytes at a time: what lies behind the end of a member is copied for each."""
SEARCH_BYTES = 256 << 10
MAX_EXPANSION, FREE_BYTES = 200, 64 << 20
"""A member may have this many times its bytes of text, and this many in any case: a page shrinks 3 to 20 times."""
MAX_DICTIONARY_BYTES = 16 << 20
ZSTD_INPUT_BYTES = 2 << 10
"""At a time: 4 bytes of Zstandard can stand for 128 KiB, so that one piece becomes 64 MiB at most."""
_PROBE_BYTES = 4 << 10
_GZIP, _ZSTD = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"
_DICTIONARY = b"\x5d\x2a\x4d\x18"
MARK = b"WARC/"
"""What a record starts with, and so a member behind damage."""


class Piece(NamedTuple):
    """A run of decompressed bytes of one member (or of a file that is not compressed, which counts as one)."""

    start: int
    """Of its member in the file."""
    data: bytes
    stop: int | None = None
    """Where the member ends in the file, if this is its last piece."""
    damage: tuple[str, str] | None = None
    """(reason, detail): from here on the member cannot be read; what comes next is another one."""


def frames(stream: BinaryIO, compression: str, offset: int = 0) -> Iterator[Piece]:
    """The pieces of a file.

    Args:
      compression: "", "gz" or "zst".
      offset: where the stream stands.
    """
    if not compression:
        return _plain(stream, offset)
    codec = _Gzip() if compression == "gz" else _Zstd()
    return _Members(stream, codec, offset).pieces()


def _plain(stream: BinaryIO, offset: int) -> Iterator[Piece]:
    start, block = offset, stream.read(PIECE_BYTES)
    while block:
        offset += len(block)
        following = stream.read(PIECE_BYTES)
        yield Piece(start, block, None if following else offset)
        block = following


@functools.cache
def _inflate() -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    """Makes a decompressor of one gzip member; and the errors it raises."""
    try:
        from isal import isal_zlib
    except ImportError:
        return functools.partial(zlib.decompressobj, 31), (zlib.error,)
    errors: Any = isal_zlib.error  # its stub calls the class an exception
    return functools.partial(isal_zlib.decompressobj, 31), (errors, zlib.error)


class _Gzip:
    name, input_bytes, magic = "gzip", BLOCK_BYTES, _GZIP

    def __init__(self):
        self.open, self.errors = _inflate()

    def starts(self, head: bytes) -> bool:
        return head.startswith(_GZIP)

    def skip(self, head: bytes) -> int:
        return 0


class _ZstdMember:
    """The interface of zlib's decompressor: what it gives at a time is bounded by its input."""

    def __init__(self, member: Any):
        self._member = member

    def decompress(self, block: bytes, max_bytes: int) -> bytes:
        return self._member.decompress(block)

    @property
    def eof(self) -> bool:
        return self._member.eof

    @property
    def unused_data(self) -> bytes:
        return self._member.unused_data

    unconsumed_tail = b""


class _Zstd:
    name, input_bytes, magic = "zstd", ZSTD_INPUT_BYTES, _ZSTD

    def __init__(self):
        import zstandard

        self._zstandard = zstandard
        self._decompressor = zstandard.ZstdDecompressor()
        self.errors = (zstandard.ZstdError,)

    def open(self) -> _ZstdMember:
        return _ZstdMember(self._decompressor.decompressobj())

    def starts(self, head: bytes) -> bool:
        return head.startswith(_ZSTD)

    def skip(self, head: bytes) -> int:
        """Bytes of the skippable frame that starts here. Source: RFC 8878, section 3.1.2."""
        if len(head) < 8 or head[1:4] != _SKIPPABLE or not 0x50 <= head[0] <= 0x5F:
            return 0
        return 8 + int.from_bytes(head[4:8], "little")

    def use_dictionary(self, content: bytes) -> None:
        """Of all frames of the file; it may be compressed itself.

        Source: IIPC, Zstandard compression of WARC files, 1.0, section 3.
        """
        zstandard = self._zstandard
        if content.startswith(_ZSTD):
            if zstandard.frame_content_size(content) > MAX_DICTIONARY_BYTES:
                raise zstandard.ZstdError("it is too large")
            content = zstandard.ZstdDecompressor().decompress(content, max_output_size=MAX_DICTIONARY_BYTES)
        self._decompressor = zstandard.ZstdDecompressor(zstandard.ZstdCompressionDict(content))


class _Members:
    """Reads members one after the other. `buffer` holds the bytes of the file from `at` on."""

    def __init__(self, stream: BinaryIO, codec: Any, offset: int):
        self.stream, self.codec = stream, codec
        self.at = offset
        self.buffer = b""

    def pieces(self) -> Iterator[Piece]:
        while self.fill(8):
            if self.codec.starts(self.buffer):
                damage = yield from self.member()
            else:
                damage = self.between()
            if damage is not None:
                yield damage
                self.search(damage.start + 1)

    def fill(self, num_bytes: int) -> bool:
        """Whether anything is left; reads until there are as many bytes, or the end of the file."""
        while len(self.buffer) < num_bytes and (block := self.stream.read(self.codec.input_bytes)):
            self.buffer += block
        return bool(self.buffer)

    def take(self, num_bytes: int) -> bytes:
        taken, self.buffer = self.buffer[:num_bytes], self.buffer[num_bytes:]
        self.at += len(taken)
        return taken

    def between(self) -> Piece | None:
        """What lies between members: a skippable frame, zeros up to the end (of tapes and disk blocks), or garbage."""
        start = self.at
        if size := self.codec.skip(self.buffer):
            is_dictionary = self.buffer.startswith(_DICTIONARY) and start == 0
            if is_dictionary and size <= MAX_DICTIONARY_BYTES:
                self.fill(size)
                content = self.take(size)[8:]
                try:
                    self.codec.use_dictionary(content)
                except self.codec.errors as error:
                    return Piece(start, b"", damage=("corrupt_zstd", f"its dictionary is broken ({error})"))
                return None
            while size and self.fill(1):
                size -= len(self.take(size))
            return None
        while self.fill(1) and not self.buffer.strip(b"\0"):
            self.take(len(self.buffer))
        if not self.buffer:
            return None
        return Piece(start, b"", damage=("garbage", f"no {self.codec.name} member starts here"))

    def member(self) -> Iterator[Piece]:
        """The pieces of the member that starts here. Returns its damage, if it has any."""
        start, member = self.at, self.codec.open()
        parts: list[bytes] = []
        waiting = done = 0
        while True:
            before = self.buffer, self.at
            try:
                data = member.decompress(self.buffer, PIECE_BYTES)
            except self.codec.errors as error:
                yield from self.salvage(start, done, b"".join(parts), *before)
                detail = " ".join(str(error).split())
                return Piece(
                    start, b"", damage=(f"corrupt_{self.codec.name}", f"its member is broken ({detail})")
                )
            rest = member.unused_data if member.eof else member.unconsumed_tail
            self.at += len(self.buffer) - len(rest)
            self.buffer = rest
            if member.eof:
                yield Piece(start, b"".join([*parts, data]) if parts else data, self.at)
                return None
            if data:
                parts.append(data)
                waiting += len(data)
            if waiting >= PIECE_BYTES:
                done += waiting
                yield Piece(start, b"".join(parts))
                parts, waiting = [], 0
                if done > max(FREE_BYTES, MAX_EXPANSION * (self.at - start)):
                    detail = f"{self.at - start:,} bytes expand to more than {done:,}: no text is compressed so far"
                    return Piece(start, b"", damage=(f"{self.codec.name}_bomb", detail))
            if not self.buffer and not self.fill(1):
                if parts:
                    yield Piece(start, b"".join(parts))
                return Piece(
                    start, b"", damage=(f"truncated_{self.codec.name}", "the file ends within its member")
                )

    def salvage(self, start: int, done: int, waiting_text: bytes, block: bytes, at: int) -> Iterator[Piece]:
        """What lies before the damage: decompresses again from the start, the last block byte by byte.

        Args:
          done: bytes of text that were given already; behind them come those of `waiting_text`.
          block: that holds the damage; `at` is its place.
        """
        if not self.seek(start):
            if waiting_text:
                yield Piece(start, waiting_text)
            return
        member = self.codec.open()
        skip, parts, waiting = done, [], 0

        def blocks() -> Iterator[bytes]:
            left = at - start
            while left and (piece := self.stream.read(min(left, self.codec.input_bytes))):
                left -= len(piece)
                yield piece
            for place in range(len(block)):
                yield block[place : place + 1]

        try:
            for piece in blocks():
                while piece:
                    data = member.decompress(piece, PIECE_BYTES)
                    piece = member.unconsumed_tail
                    data, skip = data[skip:], max(0, skip - len(data))
                    parts.append(data)
                    waiting += len(data)
                    if waiting >= PIECE_BYTES:
                        yield Piece(start, b"".join(parts))
                        parts, waiting = [], 0
        except self.codec.errors:
            pass
        if waiting:
            yield Piece(start, b"".join(parts))

    def seek(self, offset: int) -> bool:
        """Goes there in the file, if the stream can."""
        try:
            self.stream.seek(offset)
        except (OSError, ValueError, NotImplementedError):
            return False
        self.buffer, self.at = b"", offset
        return True

    def search(self, offset: int) -> None:
        """Goes to the next member that holds a record, from here on; or to the end of the file."""
        if self.at <= offset <= self.at + len(self.buffer):
            self.take(offset - self.at)
        else:
            self.seek(offset)
        place = 0
        while True:
            place = self.buffer.find(self.codec.magic, place)
            if place >= 0:
                while len(self.buffer) - place < _PROBE_BYTES and (block := self.stream.read(SEARCH_BYTES)):
                    self.buffer += block
                if self.holds_record(place):
                    self.take(place)
                    return
                place += 1
                continue
            self.take(max(0, len(self.buffer) - len(self.codec.magic) + 1))
            place = 0
            if not (block := self.stream.read(SEARCH_BYTES)):
                self.take(len(self.buffer))
                return
            self.buffer += block

    def holds_record(self, place: int) -> bool:
        """Whether a member that starts at this place of the buffer starts like a record."""
        probe, member = self.buffer[place : place + _PROBE_BYTES], self.codec.open()
        text = b""
        try:
            while probe and len(text) < len(MARK) and not member.eof:
                text += member.decompress(probe[:64], len(MARK))
                probe = member.unconsumed_tail + probe[64:]
        except self.codec.errors:
            return False
        return text.startswith(MARK)
