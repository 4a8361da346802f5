"""An HTTP response as it lies in a WARC record: status, headers, and the body without its encodings.

Archives disagree about the body: some keep it as it was sent, some keep it decoded and the headers as they were. So a
body that does not start like its encoding is taken as decoded. Imports no JAX.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxlm.corpus.raw.warc_records import parse_headers
from jaxlm.types import UserError

_STATUS = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+(\d{3})(?!\d)")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
MAX_HEADER_BYTES = 64 << 10
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]{0,1000})?\r?\n")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_INPUT_BYTES = 16 << 10


class BrokenHttp(ValueError):
    """A response that cannot be read: `reason` is for counting, the text says what is wrong."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


class Response(NamedTuple):
    """Status and headers of a response; the body starts at `body` in its block."""

    status: int
    headers: dict[str, str]
    body: int

    @property
    def content_type(self) -> str:
        """Media type in lower case; empty if none is given."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    @property
    def charset(self) -> str | None:
        match = _CHARSET.search(self.headers.get("Content-Type", ""))
        return match[1] if match else None


def parse_response(block: bytes) -> Response:
    """Status line and headers. Errors: BrokenHttp."""
    status = _STATUS.match(block)
    if status is None:
        raise BrokenHttp("broken_http", "it does not start with an HTTP status line")
    end = _HEADER_END.search(block, 0, MAX_HEADER_BYTES)
    if end is None:
        raise BrokenHttp("broken_http", f"its HTTP headers do not end within {MAX_HEADER_BYTES:,} bytes")
    return Response(int(status[1]), parse_headers(block[: end.end()]), end.end())


def decode_body(response: Response, block: bytes, max_bytes: int, is_cut: bool = False) -> bytes:
    """The body as the server meant it.

    Args:
      max_bytes: that it may have when it is decoded.
      is_cut: whether the crawler kept only its start: what is missing at the end is no error then.

    Errors: BrokenHttp.
    """
    body = block[response.body :]
    if "chunked" in response.headers.get("Transfer-Encoding", "").lower():
        body = _unchunk(body, is_cut)
    encodings = response.headers.get("Content-Encoding", "").lower().split(",")
    for name in reversed([name.strip() for name in encodings]):
        if opened := _DECODERS.get(name):
            body = _decompress(body, name, opened, max_bytes, is_cut)
    return body


def _unchunk(body: bytes, is_cut: bool) -> bytes:
    """Source: RFC 9112, section 7.1."""
    if not _CHUNK_SIZE.match(body):
        return body
    chunks, place = [], 0
    while match := _CHUNK_SIZE.match(body, place):
        size = int(match[1], 16)
        if size == 0:
            return b"".join(chunks)
        chunk = body[match.end() : match.end() + size]
        if len(chunk) < size and not is_cut:
            if not chunks:
                return body  # a text that starts with a number
            raise BrokenHttp(
                "broken_chunks", f"the chunk at byte {place:,} of the body has {size - len(chunk):,} too few"
            )
        chunks.append(chunk)
        place = match.end() + size
        place += 2 if body[place : place + 2] == b"\r\n" else body[place : place + 1] == b"\n"
    if place < len(body) and not is_cut:
        if len(chunks) <= 1:
            return body
        raise BrokenHttp("broken_chunks", f"no chunk starts at byte {place:,} of the body")
    return b"".join(chunks)


def _decompress(body: bytes, name: str, opened: _Opened, max_bytes: int, is_cut: bool) -> bytes:
    decoder, errors = opened(body)
    if decoder is None:
        return body
    parts, size, place = [], 0, 0
    try:
        while place < len(body) and not decoder.eof:
            data = decoder.decompress(body[place : place + _INPUT_BYTES], max_bytes + 1 - size)
            parts.append(data)
            size += len(data)
            place += _INPUT_BYTES - len(decoder.unconsumed_tail)
            if size > max_bytes:
                raise BrokenHttp(
                    "http_bomb", f"its {len(body):,} bytes of {name} expand to more than {max_bytes:,}"
                )
    except errors as error:
        if not is_cut or not parts:
            raise BrokenHttp(
                "broken_encoding", f"its {name} is broken ({' '.join(str(error).split())})"
            ) from None
    if not decoder.eof and not is_cut:
        raise BrokenHttp("broken_encoding", f"its {name} has no end")
    return b"".join(parts)


_Opened = Callable[[bytes], tuple[Any, tuple[type[Exception], ...]]]
"""Given the body: a decompressor with the interface of zlib's, None if the body does not start like its encoding, and
its errors."""


def _open_gzip(body: bytes) -> tuple[Any, tuple[type[Exception], ...]]:
    return zlib.decompressobj(31) if body.startswith(b"\x1f\x8b") else None, (zlib.error,)


def _open_deflate(body: bytes) -> tuple[Any, tuple[type[Exception], ...]]:
    """zlib's format, or bare deflate as some servers send it. Source: RFC 9110, section 8.4.1.2."""
    for bits in (15, -15):
        try:
            zlib.decompressobj(bits).decompress(body[:64], 64)
        except zlib.error:
            continue
        return zlib.decompressobj(bits), (zlib.error,)
    return None, (zlib.error,)


class _Brotli:
    """The interface of zlib's decompressor."""

    unconsumed_tail = b""

    def __init__(self, brotli: Any):
        self._decoder = brotli.Decompressor()

    @property
    def eof(self) -> bool:
        return self._decoder.is_finished()

    def decompress(self, data: bytes, max_bytes: int) -> bytes:
        out = self._decoder.process(data, output_buffer_limit=max_bytes)
        while len(out) < max_bytes and not self._decoder.can_accept_more_data() and not self.eof:
            out += self._decoder.process(b"", output_buffer_limit=max_bytes - len(out))
        return out


def _open_brotli(body: bytes) -> tuple[Any, tuple[type[Exception], ...]]:
    if body[:1].isspace() or body.startswith(b"<"):
        return None, ()
    try:
        import brotli
    except ImportError:
        raise UserError(
            "A page is packed with brotli (Content-Encoding: br), which needs a package: pip install brotli."
        ) from None
    return _Brotli(brotli), (brotli.error,)


class _Zstd:
    unconsumed_tail = b""

    def __init__(self, zstandard: Any):
        self._member = zstandard.ZstdDecompressor().decompressobj()

    @property
    def eof(self) -> bool:
        return self._member.eof

    def decompress(self, data: bytes, max_bytes: int) -> bytes:
        parts, size = [], 0
        for place in range(0, len(data), 512):  # 512 bytes stand for 16 MiB at most
            parts.append(self._member.decompress(data[place : place + 512]))
            size += len(parts[-1])
            if self.eof or size > max_bytes:
                break
        return b"".join(parts)


def _open_zstd(body: bytes) -> tuple[Any, tuple[type[Exception], ...]]:
    import zstandard

    return _Zstd(zstandard) if body.startswith(b"\x28\xb5\x2f\xfd") else None, (zstandard.ZstdError,)


_DECODERS: dict[str, _Opened] = {
    "gzip": _open_gzip,
    "x-gzip": _open_gzip,
    "deflate": _open_deflate,
    "br": _open_brotli,
    "zstd": _open_zstd,
}
