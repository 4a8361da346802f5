"""From bytes to the text of a document: one place for every rule on what is changed, dropped or refused.

Rules: a byte order mark at the start of a file goes; CRLF becomes LF; NUL characters go (they are padding or
broken UTF-16, never prose); invalid UTF-8 and lone surrogates follow `invalid_utf8`; a document of white
space only is dropped. Each is counted in the manifest.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jaxlm.config import check_choice
from jaxlm.data.config import DOCUMENTS, INVALID_UTF8
from jaxlm.types import UserError

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class ReadOptions:
    """How files become documents; see SourceConfig and DataConfig for the meaning."""

    text_key: str = "text"
    document: str = "file"
    invalid_utf8: str = "strict"

    def __post_init__(self):
        check_choice("document", self.document, DOCUMENTS)
        check_choice("invalid_utf8", self.invalid_utf8, INVALID_UTF8)


@dataclass
class Tally:
    """What happened to documents on the way, by reason."""

    dropped: Counter[str] = field(default_factory=Counter)
    """Documents that are not in the corpus, and files that are not text."""
    changed: Counter[str] = field(default_factory=Counter)
    """Documents whose text was repaired (`nul`: characters removed)."""

    def add(self, other: Tally) -> None:
        """Adds the counts of another part of the input."""
        self.dropped.update(other.dropped)
        self.changed.update(other.changed)

    def to_json(self) -> dict[str, Any]:
        """For the file of a work unit."""
        return {"dropped": dict(self.dropped), "changed": dict(self.changed)}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Tally:
        """The inverse of `to_json`."""
        return Tally(Counter(value["dropped"]), Counter(value["changed"]))


Where = Callable[[int], str]
"""Names a place for an error: given newlines since the start of the document, "file:line"."""


def decode(raw: bytes, options: ReadOptions, tally: Tally, where: Where) -> str | None:
    """The bytes as text under the policy for invalid UTF-8; None drops the document."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        if options.invalid_utf8 == "skip":
            tally.dropped["invalid_utf8"] += 1
            return None
        if options.invalid_utf8 == "replace":
            tally.changed["invalid_utf8"] += 1
            return raw.decode("utf-8", "replace")
        hint = ""
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            hint = " It starts like UTF-16: convert it first (iconv -f UTF-16 -t UTF-8)."
        place = where(raw.count(b"\n", 0, error.start))
        raise UserError(
            f"{place}: byte 0x{raw[error.start]:02x} is not valid UTF-8.{hint} Choose "
            "invalid_utf8=replace or skip to go on without it."
        ) from None


def clean(text: str, options: ReadOptions, tally: Tally, where: Where) -> str | None:
    """Applies the rules on characters; None drops the document."""
    try:
        text.encode()  # many times faster than a search for surrogates
    except UnicodeEncodeError as error:
        # Only JSON escapes such as "\ud83d" get here: half of a character.
        if options.invalid_utf8 == "skip":
            tally.dropped["invalid_utf8"] += 1
            return None
        if options.invalid_utf8 == "strict":
            raise UserError(
                f"{where(0)}: the escape \\u{ord(text[error.start]):04x} is half of a character (a lone surrogate). "
                "Choose invalid_utf8=replace or skip to go on without it."
            ) from None
        tally.changed["invalid_utf8"] += 1
        text = _SURROGATE.sub("\ufffd", text)
    if "\r\n" in text:
        tally.changed["crlf"] += 1
        text = text.replace("\r\n", "\n")
    if "\0" in text:
        tally.changed["nul"] += text.count("\0")
        text = text.replace("\0", "")
    if not text or text.isspace():
        tally.dropped["empty"] += 1
        return None
    return text
