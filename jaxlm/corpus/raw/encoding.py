"""The bytes of a page as text, whatever it says of itself. Imports no JAX.

Order: byte order mark, charset of the HTTP header, of a meta element or XML declaration, detection. Bytes that are
UTF-8 are read as UTF-8 whatever is declared: text of another encoding is UTF-8 by chance only if it is ASCII.
Names mean what they mean in browsers (`latin1` is windows-1252, `gb2312` is gb18030).

Source: WHATWG, Encoding, section 4.2 (names); HTML, section 13.2.3.2 (prescan of 1,024 bytes).
"""

from __future__ import annotations

import codecs
import functools
import re
from typing import NamedTuple

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_META = re.compile(rb"<meta\b[^>]{0,500}?\bcharset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_XML = re.compile(
    rb"^\s*<\?xml\b[^>]{0,200}?\bencoding\s*=\s*[\"']([A-Za-z0-9_.:-]{1,40})[\"']", re.IGNORECASE
)
_PRESCAN_BYTES = 1024
_WIDER = {
    "ascii": "cp1252",
    "big5": "big5hkscs",
    "euc_kr": "cp949",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "shift_jis": "cp932",
}
"""Python's codecs to what browsers read in their place: a few hundred characters more."""
_SEVERAL_BYTES = ("big5hkscs", "cp932", "cp949", "euc_jp", "gb18030")
"""Codecs that most bytes of another encoding are no text in: what one of them reads whole is in it."""
_MOSTLY = 8
"""So many characters of more than one byte, for each broken one, are UTF-8 that is damaged."""


class Decoded(NamedTuple):
    """A page's text."""

    text: str
    encoding: str
    """Python's name of the codec."""
    notes: tuple[str, ...] = ()
    """`mislabelled`: the page says another encoding; `undecodable`: some of its bytes became U+FFFD."""


def decode_page(body: bytes, http_charset: str | None = None) -> Decoded:
    """The text of a page. Raises nothing, whatever the bytes.

    Args:
      http_charset: of the Content-Type header.
    """
    for mark, encoding in _BOMS:
        if body.startswith(mark):
            return _decoded(body[len(mark) :].decode(encoding, "replace"), encoding, encoding)
    declared = codec_of(http_charset) or _declared_inside(body)
    if declared in ("utf-16-le", "utf-16-be") and b"\0" in body[:_PRESCAN_BYTES]:
        return _decoded(body.decode(declared, "replace"), declared, declared)
    if declared == "iso2022_jp" and b"\x1b" in body:
        return _decoded(body.decode(declared, "replace"), declared, declared)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        return _not_utf8(body, declared)
    is_ascii = len(text) == len(body)
    return _decoded(text, "utf-8", None if is_ascii else declared)


def _not_utf8(body: bytes, declared: str | None) -> Decoded:
    text = body.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    if len(body) - len(text.encode("ascii", "ignore")) > 0 and _wide(text) >= _MOSTLY * broken:
        return _decoded(text, "utf-8", declared)
    detected = _detected(body)
    if declared and not declared.startswith("utf"):
        text = body.decode(declared, "replace")
        found = (
            body.decode(detected, "replace") if detected in _SEVERAL_BYTES and "\ufffd" in text else "\ufffd"
        )
        if "\ufffd" not in found:
            return _decoded(found, detected, declared)
        if text.count("\ufffd") * _MOSTLY <= _wide(text):
            return _decoded(text, declared, declared)
    return _decoded(body.decode(detected, "replace"), detected, declared)


def _wide(text: str) -> int:
    """Characters beyond ASCII that were decoded."""
    return len(text) - len(text.encode("ascii", "ignore")) - text.count("\ufffd")


def _decoded(text: str, encoding: str, declared: str | None) -> Decoded:
    notes = []
    if declared is not None and declared != encoding:
        notes.append("mislabelled")
    if "\ufffd" in text:
        notes.append("undecodable")
    return Decoded(text, encoding, tuple(notes))


def _declared_inside(body: bytes) -> str | None:
    head = body[:_PRESCAN_BYTES]
    match = _XML.search(head) or _META.search(head)
    encoding = codec_of(match[1].decode("ascii")) if match else None
    # A page that can be read as ASCII up to here is not UTF-16.
    return "utf-8" if encoding and encoding.startswith("utf-16") else encoding


@functools.lru_cache(maxsize=1024)
def codec_of(label: str | None) -> str | None:
    """Python's codec for the name of an encoding on the web; None if browsers know no such name."""
    from resiliparse.parse.encoding import map_encoding_to_html5

    if not label or not label.isascii():
        return None
    return _codec(map_encoding_to_html5(label.strip().strip("\"'").lower(), fallback_utf8=False))


def _detected(body: bytes) -> str:
    from resiliparse.parse.encoding import detect_encoding

    encoding = _codec(detect_encoding(body)) or "cp1252"
    return "cp1252" if encoding.startswith("utf") else encoding


def _codec(name: str | None) -> str | None:
    if not name:
        return None
    try:
        codecs.lookup(name)
    except LookupError:
        return None
    return _WIDER.get(name, name)
