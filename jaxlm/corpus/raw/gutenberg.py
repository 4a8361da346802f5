"""Project Gutenberg's additions to a book: its header with title and author, its licence, its transcribers' notes.

Marks of the start and the end of a book, as they stand in files of the nineties (eBook 11) and of later (eBook 8868),
and in the lists of other programs that look for them: nobody has written a standard down.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HEADER_CHARS = 60_000
"""Within so many characters a book has to start."""
_START = re.compile(
    r"^[ \t]*\*{1,3}[ \t]*START OF (?:TH(?:IS|E) )?PROJECT GUTENBERG[^\n]*(?:\n[^\n]*){0,3}?\*{3}[^\n]*$"
    r"|^[ \t]*\*{1,3}[ \t]*START OF (?:TH(?:IS|E) )?PROJECT GUTENBERG[^\n]*$"
    r"|^[ \t]*\*+[ \t]*END[ \t]*\*?[ \t]*THE SMALL PRINT![^\n]*$",
    re.IGNORECASE | re.MULTILINE,
)
_END = re.compile(
    r"^[ \t]*\*{1,3}[ \t]*END OF (?:TH(?:IS|E) )?PROJECT GUTENBERG"
    r"|^[ \t]*(?:\*{3}[ \t]*)?End of (?:the |this )?Project Gutenberg"
    r"|^[ \t]*(?:Fin (?:de|du)|Ende dieses|Ende des|Einde van|Fine di|Fim de) (?:the |this )?Project Gutenberg"
    r"|^[ \t]*\*{3}[ \t]*START: FULL LICENSE",
    re.IGNORECASE | re.MULTILINE,
)
_CREDIT = re.compile(
    r"(?:this )?(?:e-?text|e-?book|electronic (?:text|edition)) (?:was |is )?(?:first )?"
    r"(?:produced|prepared|created|scanned|transcribed|typed|made|converted)\b"
    r"|(?:produced|prepared|transcribed|scanned|typed|proofed|proofread|digitized|digitised|credits|converted|"
    r"html version|updated)\b[^\n]{0,40}?(?: by | from |:)"
    r"|[\[_ ]*(?:transcriber|proofreader|editor of this e-?text)['\u2019]?s?['\u2019]? notes?\b"
    r"|note: (?:project gutenberg|images of the original|this e)"
    r"|\[?(?:e-?text|e-?book) #?\d+\]?",
    re.IGNORECASE,
)
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
_NOTES_AT_END = re.compile(
    r"^[ \t\[_*]*transcriber['\u2019]?s?['\u2019]? notes?\b[^\n]{0,40}$", re.IGNORECASE | re.MULTILINE
)
_FIELD = re.compile(r"^[ \t]*(Title|Author|Language|Release Date|Posting Date):[ \t]*([^\n]*(?:\n[ \t]+\S[^\n]*){0,4})",
                    re.IGNORECASE | re.MULTILINE)  # fmt: skip
_FIRST_LINE = re.compile(
    r"Project Gutenberg(?:'s|\u2019s)?(?: E-?(?:text|book))?(?: of)?:? ([^\n]{2,100}?),? by ([^\n*#\[(]{2,80})",
    re.IGNORECASE,
)
_DATE = re.compile(r"([A-Z][a-z]{2,8})\.? ?(\d{1,2})?,? ?(\d{4})|(\d{4}-\d\d-\d\d)")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_LANGUAGES = {"english": "en", "french": "fr", "german": "de", "spanish": "es", "italian": "it", "portuguese": "pt",
              "dutch": "nl", "finnish": "fi", "swedish": "sv", "danish": "da", "norwegian": "no", "latin": "la",
              "greek": "el", "chinese": "zh", "japanese": "ja", "russian": "ru", "polish": "pl", "hungarian": "hu",
              "esperanto": "eo", "tagalog": "tl", "catalan": "ca", "czech": "cs", "welsh": "cy", "bengali": "bn",
              "hindi": "hi", "sanskrit": "sa", "hebrew": "he", "arabic": "ar", "irish": "ga", "icelandic": "is",
              "afrikaans": "af", "romanian": "ro", "bulgarian": "bg", "serbian": "sr"}  # fmt: skip


@dataclass(frozen=True)
class Book:
    """What the header of a book says of it."""

    title: str | None = None
    author: str | None = None
    language: str | None = None
    """ISO 639-1."""
    date: str | None = None
    """Of its release, ISO 8601 as far as it is given."""
    licence: str | None = None


def is_gutenberg(head: str) -> bool:
    """Whether a text starts like a book of Project Gutenberg."""
    return "project gutenberg" in head[:HEADER_CHARS].lower()


def body(text: str) -> tuple[int, int]:
    """(start, stop) of the book in the text, without header, licence and transcribers' notes; all of it if none is."""
    start, stop = 0, len(text)
    if not is_gutenberg(text):
        return start, stop
    for match in _START.finditer(text, 0, min(len(text), HEADER_CHARS)):
        if start and _END.search(text, start, match.start()):
            break  # small print behind the book
        start = match.end()
    if (end := _END.search(text, start)) is not None:
        stop = end.start()
    start = _after_credits(text, start, stop)
    notes = [
        match.start()
        for match in _NOTES_AT_END.finditer(text, max(start, stop - 6000, (start + 4 * stop) // 5), stop)
    ]
    return start, _trimmed(text, start, notes[0] if notes else stop)


def _after_credits(text: str, start: int, stop: int) -> int:
    """Behind the paragraphs that name who typed, scanned and corrected."""
    for _ in range(8):
        while start < stop and text[start].isspace():
            start += 1
        if not _CREDIT.match(text, start, stop):
            break
        blank = _BLANK_LINE.search(text, start, min(stop, start + 3000))
        line = text.find("\n", start, stop)
        after = blank.end() if blank else line + 1 if line >= 0 else stop
        if text[start] == "[":  # a note in brackets may have several paragraphs
            closing = text.find("]", start, min(stop, start + 5000))
            after = max(after, closing + 1)
        start = after
    return (
        start - len(text[:start]) + len(text[:start].rstrip(" \t"))
    )  # the indent of its first line belongs to it


def _trimmed(text: str, start: int, stop: int) -> int:
    while stop > start and text[stop - 1].isspace():
        stop -= 1
    return stop


def book(text: str) -> Book:
    """What the header says."""
    if not is_gutenberg(text):
        return Book()
    head = text[: max(body(text)[0], 3000)][:HEADER_CHARS]
    fields: dict[str, str] = {}
    for match in _FIELD.finditer(head):
        fields.setdefault(match[1].lower(), " ".join(match[2].split()))
    if "title" not in fields and (match := _FIRST_LINE.search(head)) is not None:
        fields["title"], fields["author"] = match[1].strip(" ,"), match[2].strip(" ,")
    date = _date(fields.get("release date", "")) or _date(fields.get("posting date", ""))
    licence = None
    if re.search(
        r"public\s+domain\s+in\s+the\s+(?:USA|United\s+States)|FOR\s+PUBLIC\s+DOMAIN\s+E-?(?:TEXT|BOOK)S?",
        head,
        re.IGNORECASE,
    ):
        licence = "Public domain in the USA"
    elif re.search(r"this is a \*?copyrighted\*? project gutenberg", head, re.IGNORECASE):
        licence = "Copyrighted, Project Gutenberg License"
    elif "Project Gutenberg License" in " ".join(head.split()):
        licence = "Project Gutenberg License"
    return Book(
        fields.get("title") or None,
        fields.get("author") or None,
        _LANGUAGES.get(fields.get("language", "").split(",")[0].strip().lower()),
        date,
        licence,
    )


def _date(text: str) -> str | None:
    match = _DATE.search(text)
    if match is None:
        return None
    if match[4]:
        return match[4]
    name = match[1][:3].lower()
    if name not in _MONTHS:
        return match[3]
    month = f"{match[3]}-{_MONTHS.index(name) + 1:02d}"
    return f"{month}-{int(match[2]):02d}" if match[2] and 1 <= int(match[2]) <= 31 else month
