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
BLOCK_BYTES = 8 << 10
"""Of compressed bytes that a member is given at a time: what lies behind its end is copied once."""
READ_BYTES = 256 << 10
MAX_EXPANSION, FREE_BYTES = 200, 64 << 20
"""A member may have this many times its bytes of text, and this many in any case: a page shrinks 3 to 20 times."""
MAX_DICTIONARY_BYTES = 16 << 20
ZSTD_INPUT_BYTES = 512
"""At a time: 4 bytes of Zstandard can stand for 128 KiB, so that one piece becomes 16 MiB at most."""
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

    def skip(self, head: bytes) -> int:
        """Bytes of the skippable frame that starts here. Source: RFC 8878, section 3.1.2."""
        if len(head) < 8 or head[1:4] != _SKIPPABLE or not 0x50 <= head[0] <= 0x5F:
            return 0
        return 8 + int.from_bytes(head[4:8], "little")

    def use_dictionary(self, content: bytes) -> None:
        """Of all frames of the file; it may be compressed itself.

        Source: IIPC, WARC compression with Zstandard: the first frame is a skippable one that holds it.
        """
        zstandard = self._zstandard
        if content.startswith(_ZSTD):
            if zstandard.frame_content_size(content) > MAX_DICTIONARY_BYTES:
                raise zstandard.ZstdError("it is too large")
            content = zstandard.ZstdDecompressor().decompress(content, max_output_size=MAX_DICTIONARY_BYTES)
        self._decompressor = zstandard.ZstdDecompressor(zstandard.ZstdCompressionDict(content))


class _Members:
    """Reads members one after the other. `buffer[place:]` is what follows in the file, which is at `base + place`."""

    def __init__(self, stream: BinaryIO, codec: Any, offset: int):
        self.stream, self.codec = stream, codec
        self.base = offset
        self.buffer = b""
        self.place = 0

    @property
    def at(self) -> int:
        return self.base + self.place

    def pieces(self) -> Iterator[Piece]:
        """The pieces of all members, and of each damaged one, last, its damage."""
        magic, open_member, errors, step = (
            self.codec.magic, self.codec.open, self.codec.errors, self.codec.input_bytes,
        )  # fmt: skip
        while len(self.buffer) - self.place >= step or self.fill(step):
            buffer, place = self.buffer, self.place
            if not buffer.startswith(magic, place):
                damage = self.between()
            else:
                member, data = open_member(), None
                try:
                    data = member.decompress(buffer[place : place + step], PIECE_BYTES)
                except errors:
                    pass  # told by `member`, with what lies before
                if data is not None and member.eof:  # as of nearly all
                    self.place = min(place + step, len(buffer)) - len(member.unused_data)
                    yield Piece(self.base + place, data, self.base + self.place)
                    continue
                damage = yield from self.member(member, data)
            if damage is not None:
                yield damage
                self.search(damage.start + 1)

    def fill(self, num_bytes: int) -> bool:
        """Whether anything is left; reads until there are as many bytes, or the end of the file."""
        while len(self.buffer) - self.place < num_bytes and (block := self.stream.read(READ_BYTES)):
            self.drop_read()
            self.buffer += block
        return self.place < len(self.buffer)

    def drop_read(self) -> None:
        self.base, self.buffer, self.place = self.at, self.buffer[self.place :], 0

    def take(self, num_bytes: int) -> bytes:
        taken = self.buffer[self.place : self.place + num_bytes]
        self.place += len(taken)
        return taken

    def between(self) -> Piece | None:
        """What lies between members: a skippable frame, zeros up to the end (of tapes and disk blocks), or garbage."""
        start = self.at
        if size := self.codec.skip(self.buffer[self.place : self.place + 8]):
            if (
                self.buffer.startswith(_DICTIONARY, self.place)
                and start == 0
                and size <= MAX_DICTIONARY_BYTES
            ):
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
        while self.fill(1) and not self.buffer[self.place :].strip(b"\0"):
            self.take(len(self.buffer))
        if self.place == len(self.buffer):
            return None
        return Piece(start, b"", damage=("garbage", f"no {self.codec.name} member starts here"))

    def member(self, member: Any, data: bytes | None) -> Iterator[Piece]:
        """The pieces of the member that starts here. Returns its damage, if it has any.

        Args:
          member: its decompressor.
          data: the text of its first block; None if that is broken.
        """
        start, name, step = self.at, self.codec.name, self.codec.input_bytes
        block = self.take(step)
        if data is None:
            member = self.codec.open()  # after an error the other one is of no use
        parts: list[bytes] = []
        waiting = done = 0
        while True:
            try:
                text = member.decompress(block, PIECE_BYTES) if data is None else data
            except self.codec.errors as error:
                yield from self.salvage(start, done, b"".join(parts), block)
                detail = " ".join(str(error).split())
                return Piece(start, b"", damage=(f"corrupt_{name}", f"its member is broken ({detail})"))
            if member.eof:
                self.place -= len(member.unused_data)
                yield Piece(start, b"".join([*parts, text]), self.at)
                return None
            tail = member.unconsumed_tail
            if not text and len(tail) == len(block):
                return Piece(start, b"", damage=(f"corrupt_{name}", "its member cannot be read on"))
            parts.append(text)
            waiting += len(text)
            if waiting >= PIECE_BYTES:
                done += waiting
                yield Piece(start, b"".join(parts))
                parts, waiting = [], 0
                num_read = self.at - len(tail) - start
                if done > max(FREE_BYTES, MAX_EXPANSION * num_read):
                    detail = f"{num_read:,} bytes expand to more than {done:,}: no text is compressed so far"
                    return Piece(start, b"", damage=(f"{name}_bomb", detail))
            if not tail and not self.fill(1):
                if waiting:
                    yield Piece(start, b"".join(parts))
                return Piece(start, b"", damage=(f"truncated_{name}", "the file ends within its member"))
            block, data = tail or self.take(step), None

    def salvage(self, start: int, done: int, waiting_text: bytes, block: bytes) -> Iterator[Piece]:
        """What lies before the damage: decompresses again from the start, the last block byte by byte.

        Args:
          done: bytes of text that were given already; behind them come those of `waiting_text`.
          block: that holds the damage, and was the last to be taken.
        """
        at = self.at - len(block)
        if not self.seek(start):
            if waiting_text:
                yield Piece(start, waiting_text)
            return
        member = self.codec.open()
        skip, parts, waiting = done, [], 0

        def blocks() -> Iterator[bytes]:
            while self.at < at and self.fill(1):
                yield self.take(min(at - self.at, self.codec.input_bytes))
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
        if self.base <= offset <= self.base + len(self.buffer):
            self.place = offset - self.base
            return True
        try:
            self.stream.seek(offset)
        except (OSError, ValueError, NotImplementedError):
            return False
        self.base, self.buffer, self.place = offset, b"", 0
        return True

    def search(self, offset: int) -> None:
        """Goes to the next member that holds a record, from here on; or to the end of the file."""
        self.seek(offset)
        magic = self.codec.magic
        while True:
            found = self.buffer.find(magic, self.place)
            if found >= 0:
                self.place = found
                self.fill(_PROBE_BYTES)
                if self.holds_record():
                    return
                self.place += 1
                continue
            self.place = max(self.place, len(self.buffer) - len(magic) + 1)
            if not (block := self.stream.read(READ_BYTES)):
                self.place = len(self.buffer)
                return
            self.drop_read()
            self.buffer += block

    def holds_record(self) -> bool:
        """Whether the member that starts here starts like a record."""
        probe, member = self.buffer[self.place : self.place + _PROBE_BYTES], self.codec.open()
        text = b""
        try:
            while probe and len(text) < len(MARK) and not member.eof:
                text += member.decompress(probe[:64], len(MARK))
                probe = member.unconsumed_tail + probe[64:]
        except self.codec.errors:
            return False
        return text.startswith(MARK)
