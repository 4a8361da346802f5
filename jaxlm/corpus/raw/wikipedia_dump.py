"""The bytes of a dump of MediaWiki: where it can be cut, and its pages one by one, past what is damaged.

Every page is handed out by itself, from `<page>` to `</page>`, which never stand in a text (it is escaped): what is
broken ends with its page.
"""

from __future__ import annotations

import bz2
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.files import RawFile, RawPart, open_bytes
from jaxlm.corpus.raw.unpacked import INPUT_BYTES, Unpacked, stop_of
from jaxlm.corpus.readers import BLOCK_BYTES, FREE_BYTES, MAX_EXPANSION

_OPEN, _CLOSE = b"<page>", b"</page>"
_MAGIC = re.compile(rb"BZh[1-9]\x31\x41\x59\x26\x53\x59")
_MAGIC_BYTES = 10
_BLOCK_OF_BZ2 = 2 << 20
"""Compressed bytes in which a block of 900,000 bytes has to end, even where it did not become shorter."""
_TITLE = re.compile(rb"<title>([^<]{1,300})")


def cut_wikipedia(file: RawFile, unit_bytes: int) -> list[RawPart]:
    """Slices of about `unit_bytes` that begin where a page does: of files that are not compressed, or multistream bz2.

    The documents of all slices are those of the file, whatever the unit, except that a page whose id comes twice is
    found out within a slice only.
    """
    if file.compression not in ("", "bz2"):
        return [RawPart(file, 0, file.num_bytes)]
    find = _next_stream if file.compression else _next_page
    cuts = [0]
    with open_bytes(file) as stream:
        target = unit_bytes = max(1, unit_bytes)
        while target < file.num_bytes:
            place = find(stream, target, file.num_bytes)
            if place is None:
                break
            cuts.append(place)
            target = place + unit_bytes
    return [RawPart(file, start, stop) for start, stop in zip(cuts, [*cuts[1:], file.num_bytes])]


def _search(stream: BinaryIO, pattern: re.Pattern[bytes], width: int, start: int, stop: int) -> Iterator[int]:
    """Places in [start, stop) where a pattern of `width` bytes begins."""
    at, buffer = start, b""  # place of the buffer in the file
    while at < stop:
        stream.seek(at + len(buffer))
        block = stream.read(BLOCK_BYTES)
        buffer += block
        for match in pattern.finditer(buffer):
            if at + match.start() < stop:
                yield at + match.start()
        if not block:
            return
        keep = min(len(buffer), width - 1)
        at, buffer = at + len(buffer) - keep, buffer[len(buffer) - keep :]


def _next_page(stream: BinaryIO, start: int, stop: int) -> int | None:
    return next(_search(stream, re.compile(_OPEN), len(_OPEN), start, stop), None)


def _next_stream(stream: BinaryIO, start: int, stop: int) -> int | None:
    """The first bz2 stream that starts with a page; those of parallel compressors start anywhere, even within one."""
    for place in _search(stream, _MAGIC, _MAGIC_BYTES, start, stop):
        stream.seek(place)
        try:
            text = bz2.BZ2Decompressor().decompress(stream.read(_BLOCK_OF_BZ2), 64)
        except OSError:
            continue
        if text.lstrip().startswith(_OPEN):
            return place
    return None


@dataclass
class Block:
    """Decompressed bytes; `offset` is that of their first, or of the compressed stream they are from."""

    data: bytes
    offset: int
    is_stream: bool = False
    after_damage: bool = False


def blocks(part: RawPart, account: Account) -> Iterator[Block]:
    """The decompressed bytes of a slice."""
    if part.file.compression == "bz2":
        yield from _bz2_blocks(part, account)
        return
    if part.file.compression:
        at = 0
        unpacked = Unpacked(part.file, account)
        for data in unpacked:
            yield Block(data, at)
            at += len(data)
        if unpacked.damaged:
            yield Block(b"", at, after_damage=True)
        return
    with open_bytes(part.file) as stream:
        stream.seek(part.start)
        at, stop = part.start, stop_of(part)
        while data := stream.read(min(BLOCK_BYTES, stop - at)):
            yield Block(data, at)
            at += len(data)


def _bz2_blocks(part: RawPart, account: Account) -> Iterator[Block]:
    """Blocks of the streams that begin in the slice; behind a damaged one it goes on with the next."""
    name = part.file.name
    with open_bytes(part.file) as file:
        start: int | None = part.start
        while start is not None and start < stop_of(part):
            size = 0
            inner = bz2.BZ2Decompressor()
            file.seek(start)
            data = file.read(INPUT_BYTES)
            if not data.strip(b"\0"):
                return  # the end, perhaps behind padding
            reason = detail = ""
            while not inner.eof:
                data = data or (file.read(INPUT_BYTES) if inner.needs_input else b"")
                if inner.needs_input and not data:
                    reason, detail = "truncated_bz2", "the file ends within a compressed stream"
                    break
                try:
                    text, data = inner.decompress(data, BLOCK_BYTES), b""
                except (OSError, ValueError) as error:
                    reason, detail = "broken_bz2", str(error)
                    break
                offset, is_stream = (start, True) if start else (size, False)
                size += len(text)
                if size > max(FREE_BYTES, MAX_EXPANSION * (file.tell() - start)):
                    reason, detail = "bomb", f"a stream of it expands to more than {size:,} bytes"
                    break
                if text:
                    yield Block(text, offset, is_stream)
            if reason:
                account.fault(reason, name, f"stream at byte {start:,}", detail)
                start = next(_search(file, _MAGIC, _MAGIC_BYTES, start + 1, stop_of(part)), None)
                yield Block(b"", start or 0, after_damage=True)
            else:
                start = file.tell() - len(inner.unused_data)


def pages(part: RawPart, limit: int, account: Account) -> Iterator[tuple[int, bytes]]:
    """(offset, XML) of every page, from `<page>` to `</page>`; see wikipedia.py for what the offset counts.

    Args:
      limit: bytes of the longest page; longer ones are the fault `too_long`.
    """
    name = part.file.name
    buffer = bytearray()
    base = 0  # bytes of text before the buffer
    places: list[tuple[int, Block]] = []  # (bytes of text before it, block), of those in the buffer

    def offset_of(at: int) -> int:
        before, block = next((b, k) for b, k in reversed(places) if b <= base + at)
        return block.offset if block.is_stream else block.offset + base + at - before

    is_damaged = False
    for block in blocks(part, account):
        if block.after_damage:
            base, is_damaged = base + len(buffer), True
            buffer.clear()
            continue
        is_damaged = False
        places.append((base + len(buffer), block))
        buffer += block.data
        at = 0
        while (start := buffer.find(_OPEN, at)) >= 0:
            end = buffer.find(_CLOSE, start)
            inner = buffer.find(_OPEN, start + 1, end if end >= 0 else len(buffer))
            if inner >= 0:
                account.fault(
                    "broken_xml", name, place_of(buffer[start:inner], offset_of(start)), "the page has no end"
                )
                at = inner
            elif (end if end >= 0 else len(buffer)) - start > limit:
                where = place_of(buffer[start : start + 1000], offset_of(start))
                account.fault("too_long", name, where, f"the page has more than {limit:,} bytes")
                at = end if end >= 0 else len(buffer)
            elif end < 0:
                at = start
                break
            else:
                at = end + len(_CLOSE)
                yield offset_of(start), bytes(buffer[start:at])
        else:
            at = max(at, len(buffer) - len(_OPEN) + 1)
        del buffer[:at]
        base += at
        while len(places) > 1 and places[1][0] <= base:
            places.pop(0)
    if not is_damaged and (start := buffer.find(_OPEN)) >= 0:
        account.fault(
            "broken_xml", name, place_of(buffer[start:], offset_of(start)), "the file ends within a page"
        )


def place_of(page: bytes | bytearray, offset: int) -> str:
    """For messages: title, where there is one, and offset."""
    match = _TITLE.search(page)
    title = f"page {match[1].decode('utf-8', 'replace')!r}, " if match else ""
    return f"{title}offset {offset:,}"
