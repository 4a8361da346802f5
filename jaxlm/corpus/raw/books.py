"""Text files: books of Project Gutenberg and of others, and folders of plain text.

A document is a file, a chapter, a paragraph (lines between blank ones) or a line. Header, licence and transcribers'
notes of Project Gutenberg are cut off (`changed["gutenberg"]`), and title, author, language, date and licence taken
from them. Lines stay as they are broken.

Encodings: UTF-8; UTF-16 and UTF-32 by their byte order mark; what is not UTF-8 is read as Windows-1252, of which
Latin-1 is a part (`changed["cp1252"]`), unless more of it is well-formed UTF-8 than is not: then it is damaged UTF-8,
and the damaged bytes become U+FFFD (`changed["invalid_utf8"]`).

A file of more than `max_document_bytes` is read in pieces where a document is a paragraph or a line (what comes before
and after a book is looked for in each), and is a fault otherwise.

Faults: `binary` (no text), `too_long`, and those of compression. A file that is cut short is skipped where a document
is the file or a chapter, and read as far as it goes otherwise."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass

from jaxlm.config import check_choice
from jaxlm.corpus.raw import gutenberg
from jaxlm.corpus.raw.chapters import chapters
from jaxlm.corpus.raw.config import DOCUMENTS
from jaxlm.corpus.raw.document import Account, RawDocument
from jaxlm.corpus.raw.files import RawFile, RawOptions, RawPart
from jaxlm.corpus.raw.unpacked import Unpacked
from jaxlm.corpus.text import ReadOptions, Tally, clean

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WIDE = tuple(bom for bom, _ in _BOMS[1:])
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\x0b\x1a\x1b")) + b"\x7f"
_MAGIC = (
    b"%PDF-",
    b"PK\x03\x04",
    b"\x89PNG",
    b"\x1f\x8b",
    b"BZh9",
    b"\x28\xb5\x2f\xfd",
    b"GIF8",
    b"\xff\xd8\xff",
    b"{\\rtf",
)
_SAMPLE_BYTES = 64 << 10
_REPLACE = ReadOptions(invalid_utf8="replace")
_PARAGRAPH = re.compile(r"(?:[^\n]*\S[^\n]*(?:\n|$))+")
_LINE = re.compile(r"[^\n]+")


@dataclass(frozen=True)
class Decoded:
    """A text, and how its characters were written."""

    text: str
    encoding: str
    mark: int
    """Bytes of the byte order mark before it."""

    def num_bytes(self, start: int, stop: int) -> int:
        """Bytes that a stretch of the text takes in the file."""
        return len(self.text[start:stop].encode(self.encoding, "surrogateescape"))


def decode_text(raw: bytes, account: Account) -> Decoded:
    """Bytes of any of the encodings above; damaged bytes are lone surrogates, which `cleaned` replaces."""
    for bom, encoding in _BOMS:
        if raw.startswith(bom):
            account.changed["bom" if encoding == "utf-8" else encoding[:6].replace("-", "")] += 1
            if encoding != "utf-8":
                return Decoded(raw[len(bom) :].decode(encoding, "replace"), encoding, len(bom))
            return Decoded(raw[3:].decode("utf-8", "surrogateescape"), encoding, 3)
    try:
        return Decoded(raw.decode(), "utf-8", 0)
    except UnicodeDecodeError:
        text = raw.decode("utf-8", "surrogateescape")
        num_bad = sum("\udc80" <= c <= "\udcff" for c in text)
        if sum(c > "\x7f" for c in text) > 2 * num_bad:
            return Decoded(text, "utf-8", 0)
    account.changed["cp1252"] += 1
    try:
        return Decoded(raw.decode("cp1252"), "cp1252", 0)
    except UnicodeDecodeError:
        return Decoded(raw.decode("latin-1"), "latin-1", 0)


def cleaned(text: str, account: Account) -> str | None:
    """Under the rules of jaxlm.corpus.text; None of a text without content."""
    return clean(text, _REPLACE, Tally(account.dropped, account.changed), lambda _: "")


def why_binary(sample: bytes) -> str | None:
    """What a file is that is no text, by its first bytes; None of a text."""
    if sample.startswith(_MAGIC):
        return f"it starts with {sample[:4]!r}, as files of another kind do"
    if sample.startswith(_WIDE):
        return None
    controls = len(sample) - len(sample.translate(None, _CONTROLS))
    if controls * 100 > len(sample):
        return f"{controls:,} of its first {len(sample):,} bytes are control characters"
    return None


def read_text_files(part: RawPart, options: RawOptions, account: Account) -> Iterator[RawDocument]:
    """The documents of a text file."""
    check_choice("document", options.document, DOCUMENTS)
    name = part.file.name
    number, num_faults = 0, account.faults.total()
    for start, raw in _pieces(part.file, options, account):
        if not start and (reason := why_binary(raw[:_SAMPLE_BYTES])) is not None:
            account.fault("binary", name, "offset 0", reason)
            return
        for offset, size, text, about in _texts(raw, options.document, account):
            number += 1
            yield RawDocument(
                text=text,
                id=name if options.document == "file" else f"{name}#{number}",
                file=name,
                offset=start + offset,
                num_bytes=size,
                date=about.date,
                licence=about.licence,
                title=about.title,
                author=about.author,
                language=about.language,
            )
    if not number and account.faults.total() == num_faults:
        account.drop("empty_file", name)


def _pieces(file: RawFile, options: RawOptions, account: Account) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes): all of a file; of one longer than `max_document_bytes`, pieces of whole lines or paragraphs."""
    ends = {"line": (b"\n",), "paragraph": (b"\n\n", b"\n\r\n")}.get(options.document, ())
    unpacked = Unpacked(file, account)
    held, offset = bytearray(), 0
    for block in unpacked:
        held += block
        if len(held) <= options.max_document_bytes:
            continue
        cut = max((held.rfind(end) + len(end) for end in ends if end in held), default=0)
        if not cut or held.startswith(_WIDE):
            detail = (
                f"it has more than {options.max_document_bytes:,} bytes in one document (max_document_bytes)"
            )
            account.fault("too_long", file.name, f"offset {offset:,}", detail)
            return
        yield offset, bytes(held[:cut])
        offset += cut
        del held[:cut]
    if held and (ends or not unpacked.damaged):
        yield offset, bytes(held)


def _texts(raw: bytes, kind: str, account: Account) -> Iterator[tuple[int, int, str, gutenberg.Book]]:
    """(offset, bytes, text, what the header says) of the documents of a piece that have any text."""
    if not raw.strip():
        return
    decoded = decode_text(raw, account)
    if "\r" in decoded.text and "\n" not in decoded.text:
        account.changed["cr"] += 1
        decoded = Decoded(decoded.text.replace("\r", "\n"), decoded.encoding, decoded.mark)
    text = decoded.text
    start, stop = gutenberg.body(text)
    if gutenberg.is_gutenberg(text):
        account.changed["gutenberg"] += 1
    about = gutenberg.book(text)
    at, offset = 0, decoded.mark  # character, byte
    for first, last in _documents(text, start, stop, kind):
        offset += decoded.num_bytes(at, first)
        size = decoded.num_bytes(first, last)
        at, here, offset = last, offset, offset + size
        content = cleaned(text[first:last], account)
        if content is not None:
            yield here, size, content.strip("\n"), about


def _documents(text: str, start: int, stop: int, kind: str) -> Iterator[tuple[int, int]]:
    """(start, stop) in characters of each document of the body [start, stop)."""
    if kind == "file":
        yield start, stop
    elif kind == "chapter":
        for first, last in chapters(text[start:stop]):
            yield start + first, start + last
    else:
        for match in (_PARAGRAPH if kind == "paragraph" else _LINE).finditer(text, start, stop):
            if not match[0].isspace():
                yield match.start(), match.end()
