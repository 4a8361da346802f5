"""The records of a WARC file, from its decompressed bytes; a broken record costs itself, and what lies behind is read.

Source: IIPC, The WARC Format 1.1, sections 4 and 5: `WARC/1.1`, header lines, an empty line, Content-Length bytes, two
empty lines. In a compressed file each record should be a member of its own; files of one member, and members that know
nothing of records, are read too.

fastwarc reads sound files as fast, but ends the file at the first fault, and takes some for the end of the file or for
text: an empty member, a record that is cut short, header lines that end in LF alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from jaxlm.corpus.raw.frames import MARK, Piece
from jaxlm.limits import short

MAX_HEADER_BYTES = 64 << 10
HEAD_BYTES = 64 << 10
"""Of a record that is too long: enough for its HTTP headers, which say what it is."""
MAX_ENDS = 64
"""Bytes of empty lines that may follow a record, which has two of them."""
_ENDS = b"\r\n"
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_RECORD = re.compile(rb"(?<=\n)WARC/[01]\.\d\d?[ \t]*\r?\n")
_RECORD_CHARS = 32
_COMPACT_BYTES = 1 << 20

Fault = Callable[[str, str, str], None]
"""Called with (reason, place, detail)."""


class Record(NamedTuple):
    """One record."""

    headers: dict[str, str]
    block: bytes
    """What follows the headers."""
    offset: int
    """In the file as it lies there if the record has a member of its own, else in the decompressed text."""
    num_bytes: int
    is_whole: bool = True
    """False if it is longer than the limit: `block` is only its head."""


def records(
    pieces: Iterator[Piece], max_bytes: int, fault: Fault, num_bytes: int | None = None
) -> Iterator[Record]:
    """The sound records of a file, in order.

    Args:
      max_bytes: of a record's block; of a longer one only the head is kept.
      num_bytes: of all the text, where it is known: of a file that is not compressed.
    """
    reader = _Reader(pieces, max_bytes, fault, num_bytes)
    last_start = -1
    while True:
        if reader.at == reader.end:
            if (piece := reader.next_piece()) is None:
                return
            begins, last_start = piece.start != last_start, piece.start
            if begins and piece.stop is not None and (record := _only_record(piece, max_bytes)):
                reader.pass_over(piece)
                yield record
                continue
            reader.add(piece)
        if record := reader.record():
            yield record


def _only_record(piece: Piece, max_bytes: int) -> Record | None:
    """The record that is all of a member, as nearly all are; None if it is anything else."""
    data = piece.data
    end = data.find(b"\r\n\r\n", 0, MAX_HEADER_BYTES) + 4
    if end < 4 or not data.startswith(MARK):
        return None
    headers = parse_headers(data[: end - 4])
    length = block_length(headers)
    if (
        length is None
        or length > max_bytes
        or end + length + 4 != len(data)
        or not data.endswith(b"\r\n\r\n")
    ):
        return None
    assert piece.stop is not None
    return Record(headers, data[end:-4], piece.start, piece.stop - piece.start)


_NAMES = (
    "WARC-Type", "WARC-Record-ID", "WARC-Date", "WARC-Target-URI", "WARC-Refers-To", "WARC-Block-Digest",
    "WARC-Payload-Digest", "WARC-Concurrent-To", "WARC-Warcinfo-ID", "WARC-IP-Address", "WARC-Truncated",
    "WARC-Identified-Payload-Type", "WARC-Identified-Content-Language", "WARC-Protocol", "WARC-Cipher-Suite",
    "Content-Type", "Content-Length", "Content-Encoding", "Transfer-Encoding",
)  # fmt: skip
_USUAL = frozenset(_NAMES)
_SPELLING = {name.lower(): name for name in _NAMES}


def parse_headers(head: bytes) -> dict[str, str]:
    """Name to value of header lines, behind the first line; of a name that is there twice, the first.

    Names are spelt as in the standard, whatever the file has. A line that starts with a space goes on with the one
    before.
    """
    text = head.decode("utf-8", "replace")
    # As usual, and fast, since it is much of the time of a short record: lines that are "Known-Name: value".
    parts = text.replace(": ", "\r\n").split("\r\n")
    headers = dict(zip(parts[1::2], parts[2::2]))
    if _USUAL.issuperset(headers) and len(headers) == text.count("\n") > 0:
        return headers
    headers = {}
    last = ""
    for line in text.replace("\r\n", "\n").split("\n")[1:]:
        name, colon, value = line.partition(":")
        if colon and line[0] not in " \t":
            name = name.strip()
            last = _SPELLING.get(name.lower(), name)
            headers.setdefault(last, value.strip())
        elif last and line.strip():
            headers[last] += " " + line.strip()
    return headers


def block_length(headers: dict[str, str]) -> int | None:
    """Content-Length; None if it is none."""
    digits = headers.get("Content-Length", "").strip()
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 18 else None


@dataclass(slots=True)
class _Span:
    """A member of the file that reaches into the buffer."""

    text: int
    """Its first byte in the decompressed text."""
    start: int
    """And in the file."""
    text_stop: int | None = None
    stop: int | None = None


class _Reader:
    """Records from a run of text. All positions count from the start of the decompressed text.

    `buffer` holds the text from `base` on; it is read up to `at`.
    """

    def __init__(self, pieces: Iterator[Piece], max_bytes: int, fault: Fault, num_bytes: int | None):
        self.pieces, self.max_bytes, self.fault, self.num_bytes = pieces, max_bytes, fault, num_bytes
        self.buffer = bytearray()
        self.base = self.at = 0
        self.spans: list[_Span] = []
        self.damage: Piece | None = None

    @property
    def end(self) -> int:
        return self.base + len(self.buffer)

    def next_piece(self) -> Piece | None:
        """The next sound piece, when all of the buffer is read. Damage before it is told."""
        if self.buffer:
            self.drop_read()
        while True:
            piece, self.damage = self.damage or next(self.pieces, None), None
            if piece is None or piece.damage is None:
                return piece
            self.spans = []
            self.fault(piece.damage[0], f"offset {piece.start:,}", piece.damage[1])

    def pass_over(self, piece: Piece) -> None:
        """A piece that was read elsewhere."""
        self.base = self.at = self.base + len(piece.data)

    def add(self, piece: Piece) -> None:
        last = self.spans[-1] if self.spans else None
        if last is None or last.start != piece.start:
            last = _Span(self.end, piece.start)
            self.spans.append(last)
        self.buffer += piece.data
        if piece.stop is not None:
            last.text_stop, last.stop = self.end, piece.stop

    def more(self) -> bool:
        """Reads on; False at damage, which then waits in `damage`, and at the end of the file."""
        if self.damage or (piece := next(self.pieces, None)) is None:
            return False
        if piece.damage:
            self.damage = piece
            return False
        self.add(piece)
        return True

    def has(self, position: int) -> bool:
        """Whether the text up to this position can be had."""
        while self.end < position:
            if not self.more():
                return False
        return True

    def drop_read(self) -> None:
        """Forgets what is read."""
        del self.buffer[: self.at - self.base]
        self.base = self.at
        self.spans = [span for span in self.spans if span.text_stop is None or span.text_stop > self.base]

    def starts_record(self, position: int) -> bool:
        return self.has(position + len(MARK)) and self.buffer.startswith(MARK, position - self.base)

    def member_with_record(self, after: int, before: int) -> int | None:
        """Where a member starts, between these positions, that starts like a record: no record reaches into it."""
        starts = (span.text for span in self.spans if after < span.text < before)
        return next((text for text in starts if self.buffer.startswith(MARK, text - self.base)), None)

    def record(self) -> Record | None:
        """Reads one record, or goes over something that is none."""
        if self.at - self.base > _COMPACT_BYTES:
            self.drop_read()
        while self.has(self.at + 1) and self.buffer[self.at - self.base] in _ENDS:
            self.at += 1
        if self.at == self.end:
            return None
        start = self.at
        if not self.starts_record(start):
            found = short(bytes(self.buffer[start - self.base :][:20]))
            return self.lose("garbage", start, f"found {found} where a record should start", start + 1)
        if (body := self.header_end(start)) is None:
            detail = f"its headers do not end within {MAX_HEADER_BYTES:,} bytes"
            return self.lose("broken_header", start, detail, start + 1)
        headers = parse_headers(bytes(self.buffer[start - self.base : body - self.base]))
        length = block_length(headers)
        if length is None:
            found = short(headers.get("Content-Length", ""))
            return self.lose("content_length", start, f"its Content-Length is {found}", body)
        if self.num_bytes is not None and body + length > self.num_bytes:
            return self.lose("truncated_record", start, f"the file ends within its {length:,} bytes", body)
        return self.block(start, headers, body, body + length)

    def header_end(self, start: int) -> int | None:
        """Where the headers of a record end and its block starts."""
        first = start - self.base
        while True:
            if match := _HEADER_END.search(self.buffer, first, first + MAX_HEADER_BYTES):
                return match.end() + self.base
            if len(self.buffer) >= first + MAX_HEADER_BYTES or not self.more():
                return None

    def block(self, start: int, headers: dict[str, str], body: int, stop: int) -> Record | None:
        """The record whose block has this start and stop, if it has."""
        span = next(span for span in reversed(self.spans) if span.text <= start)
        head = None
        while True:
            if (other := self.member_with_record(body, stop)) is not None:
                detail = f"the next member starts {stop - other:,} bytes before the end of its block"
                return self.lose("content_length", start, detail, other)
            if self.end >= stop:
                break
            if self.end - body >= max(HEAD_BYTES, self.max_bytes) and stop - body > self.max_bytes:
                if head is None:
                    head = bytes(self.buffer[body - self.base :][:HEAD_BYTES])
                self.at = self.end - len(MARK)  # of a member that starts here with its first bytes
                self.drop_read()
            if not self.more():
                detail = f"the file ends {stop - self.end:,} bytes before its block"
                return self.lose("truncated_record", start, detail, max(body, self.base))
        return self.finish(span, start, headers, body, stop, head)

    def finish(
        self, span: _Span, start: int, headers: dict[str, str], body: int, stop: int, head: bytes | None
    ) -> Record | None:
        """The record, if behind it comes what may: another one, or the end of its member."""
        after = stop
        while self.has(after + 1) and self.buffer[after - self.base] in _ENDS and after < stop + MAX_ENDS:
            after += 1
        if after == self.end and self.damage:
            self.at = after  # its member is broken before its end
            return None
        ends = after == self.end or any(after == other.text for other in self.spans)
        follows = self.buffer[stop - self.base : after - self.base].startswith(b"\r\n\r\n")
        if not ends and not follows and not self.starts_record(after):
            detail = "its block does not end where Content-Length says"
            return self.lose("content_length", start, detail, max(body, self.base))
        self.at = after
        if head is None:
            head = bytes(self.buffer[body - self.base : stop - self.base])
        is_whole = stop - body <= self.max_bytes
        head = head if is_whole else head[:HEAD_BYTES]
        if (
            span.text == start
            and span.stop is not None
            and span.text_stop is not None
            and span.text_stop <= after
        ):
            return Record(headers, head, span.start, span.stop - span.start, is_whole)
        return Record(headers, head, start, after - start, is_whole)

    def lose(self, reason: str, start: int, detail: str, resume: int) -> None:
        """Counts a record that is broken, and goes to the next one, at `resume` or behind.

        A record that breaks off at damage is not counted: the damage is.
        """
        place, self.at = self.place(start), resume
        found = self.find_record()
        if found or not self.damage:
            self.fault(reason, place, detail)

    def find_record(self) -> bool:
        """Goes on to where a record starts; if there is none, to damage or the end of the file."""
        while True:
            first = self.at - self.base
            match = _RECORD.search(self.buffer, first)
            starts = [] if match is None else [match.start() + self.base]
            if (other := self.member_with_record(self.at - 1, self.end)) is not None:
                starts.append(other)
            if starts:
                self.at = min(starts)
                return True
            self.at = max(self.at, self.end - _RECORD_CHARS)
            self.drop_read()
            if not self.more():
                self.at = self.end
                return False

    def place(self, position: int) -> str:
        """Of a record, for people: its member's, if the file is compressed."""
        span = next((span for span in reversed(self.spans) if span.text <= position), None)
        if self.num_bytes is not None or span is None:
            return f"offset {position:,}"
        inside = f", byte {position - span.text:,} of its text" if position > span.text else ""
        return f"offset {span.start:,}{inside}"
