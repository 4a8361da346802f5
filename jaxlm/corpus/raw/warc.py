"""Documents from WARC files (web pages as they were served) and WET files (their text). Imports no JAX.

Of a WARC file: responses with status 200 whose body is HTML, XHTML or plain text. Of a WET file: every conversion.
Everything else is counted by kind. What is damaged is counted as a fault, and reading goes on behind it.
"""

from __future__ import annotations

from collections.abc import Iterator

from jaxlm.corpus.raw.document import Account, RawDocument
from jaxlm.corpus.raw.encoding import decode_page
from jaxlm.corpus.raw.files import RawOptions, RawPart, open_bytes
from jaxlm.corpus.raw.frames import frames
from jaxlm.corpus.raw.html import CostlyPage, extract
from jaxlm.corpus.raw.http_response import BrokenHttp, Response, decode_body, parse_response
from jaxlm.corpus.raw.warc_records import Record, records
from jaxlm.corpus.text import ReadOptions, Tally, clean
from jaxlm.paths import is_local

HTML_TYPES = ("text/html", "application/xhtml+xml")
_TEXT_TYPES = ("text/plain",)
_CLEAN = ReadOptions(invalid_utf8="replace")
_SNIFF_BYTES = 512


def read_warc(part: RawPart, options: RawOptions, account: Account) -> Iterator[RawDocument]:
    """The documents of a WARC or WET file, in order. `offset` and `num_bytes` are those of the record."""
    name = part.file.name
    reader = _Reader(name, options, account)
    if part.file.num_bytes == 0 and is_local(part.file.path):
        account.drop("empty_file", name)
        return
    with open_bytes(part.file) as stream:
        size = None if part.file.compression else part.file.num_bytes or None
        pieces = frames(stream, part.file.compression)
        for record in records(pieces, options.max_document_bytes, reader.fault, size):
            document = reader.document(record)
            if document is not None:
                yield document


class _Reader:
    """What becomes of one file's records."""

    def __init__(self, name: str, options: RawOptions, account: Account):
        self.name, self.options, self.account = name, options, account
        self.tally = Tally(account.dropped, account.changed)

    def fault(self, reason: str, place: str, detail: str) -> None:
        self.account.fault(reason, self.name, place, detail)

    def document(self, record: Record) -> RawDocument | None:
        kind = record.headers.get("WARC-Type", "").strip().lower()
        if kind == "conversion":
            return self.conversion(record)
        if kind == "response":
            return self.response(record)
        return self.drop(f"warc_{kind if kind in _OTHER_KINDS else 'unknown'}", record)

    def conversion(self, record: Record) -> RawDocument | None:
        """A page as text, from a record of WET."""
        block = record.block
        if not block:
            return self.drop("no_payload", record)
        if not record.is_whole:
            return self.too_long(record)
        try:
            text = block.decode()
        except UnicodeDecodeError:
            self.account.changed["invalid_utf8"] += 1
            text = block.decode("utf-8", "replace")
        if text[0] == "\ufeff":
            text = text[1:]
        # In the bytes, where they are found sooner. Nothing else that came out of a decoder needs cleaning.
        return self.finish(record, text, is_clean=b"\r" not in block and b"\0" not in block)

    def response(self, record: Record) -> RawDocument | None:
        """A page, from its HTTP response."""
        media = record.headers.get("Content-Type", "application/http").lower()
        if not media.startswith("application/http"):
            return self.drop("not_http", record)
        if not record.block:
            return self.drop("no_payload", record)
        try:
            response = parse_response(record.block)
            if response.status != 200:
                return self.drop("http_status", record)
            kind = _media_type(record, response)
            if kind not in HTML_TYPES and kind not in _TEXT_TYPES:
                return self.drop("not_html", record)
            if not record.is_whole:
                return self.too_long(record)
            is_cut = "WARC-Truncated" in record.headers
            body = decode_body(response, record.block, self.options.max_document_bytes, is_cut)
            if not body or body.isspace():
                return self.drop("no_payload", record)
            return self.page(record, body, response.charset, kind)
        except BrokenHttp as error:
            self.fault(error.reason, self.place(record), str(error))
        return None

    def page(self, record: Record, body: bytes, charset: str | None, kind: str) -> RawDocument | None:
        """A page from its bytes, of the media type `kind`."""
        decoded = decode_page(body, charset)
        for note in decoded.notes:
            self.account.changed[note] += 1
        if kind in _TEXT_TYPES:
            return self.finish(record, decoded.text)
        try:
            page = extract(decoded.text, self.options.extractor)
        except CostlyPage as error:
            self.fault("costly_page", self.place(record), str(error))
            return None
        except ValueError as error:
            self.fault("extractor", self.place(record), str(error))
            return None
        return self.finish(record, page.text, page.title, page.licence)

    def finish(
        self,
        record: Record,
        text: str,
        title: str | None = None,
        licence: str | None = None,
        is_clean: bool | None = None,
    ) -> RawDocument | None:
        """The document with its provenance; None where nothing is left of it.

        Args:
          is_clean: whether the text is known to hold no carriage return and no NUL; None: not known.
        """
        headers = record.headers
        if not text or text.isspace():
            return self.drop("no_text", record)
        if is_clean is None:
            is_clean = "\r" not in text and "\0" not in text
        if not is_clean:
            cleaned = clean(text, _CLEAN, self.tally, lambda _: self.place(record))
            if cleaned is None:
                return None
            text = cleaned
        if "WARC-Truncated" in headers:
            self.account.changed["warc_truncated"] += 1
        language = headers.get("WARC-Identified-Content-Language", "").strip()
        return RawDocument(
            text,
            headers.get("WARC-Record-ID") or f"{self.name}#{record.offset}",
            self.name,
            record.offset,
            record.num_bytes,
            _url(record),
            headers.get("WARC-Date"),
            licence,
            title,
            language if language and "," not in language else None,
        )

    def too_long(self, record: Record) -> None:
        limit = self.options.max_document_bytes
        self.fault(
            "too_long", self.place(record), f"it has more than {limit:,} bytes, the most of one document"
        )

    def drop(self, reason: str, record: Record) -> None:
        self.account.drop(reason, self.example(record))

    def example(self, record: Record) -> str:
        return f"{self.name}, {self.place(record)}: {_url(record) or 'no address'}"

    def place(self, record: Record) -> str:
        return f"offset {record.offset:,}"


_OTHER_KINDS = ("warcinfo", "request", "metadata", "resource", "revisit", "continuation")


def _media_type(record: Record, response: Response) -> str:
    """Of a response, as the server says, else as the crawler found; HTML that nobody calls so is known by its start."""
    found = record.headers.get("WARC-Identified-Payload-Type", "")
    kind = response.content_type or found.partition(";")[0].strip().lower()
    start = record.block[response.body : response.body + _SNIFF_BYTES].lstrip().lower()
    if not kind and start.startswith((b"<!doctype html", b"<html")):
        return "text/html"
    return kind


def _url(record: Record) -> str | None:
    """Some writers of WARC/1.0 put the address into angle brackets."""
    url = record.headers.get("WARC-Target-URI", "").strip() or None
    return url[1:-1] if url and url[0] == "<" and url[-1] == ">" else url
