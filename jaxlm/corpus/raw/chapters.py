"""Where the chapters of a book begin, by the look of its lines.

A heading stands between blank lines (or above a title that does): `CHAPTER I.`, `Chapter 1`, `BOOK THE FIRST`,
`Kapitel 3`, `Глава II`, `第三章`, `প্রথম পরিচ্ছেদ`, or roman numerals that count I, II, III. A list of headings of
one kind with nothing between them is a table of contents, unless its entries come nowhere else. A heading with nothing
below it but the next (BOOK I above CHAPTER I) belongs to the chapter that follows.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_DIGITS = "one two three four five six seven eight nine".split()
_TENS = "twenty thirty forty fifty".split()
_ORDINALS = (
    *_DIGITS,
    *"ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split(),
    *"first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth".split(),
    *"fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth last".split(),
    *"premier première deuxième troisième erstes zweites drittes viertes primero segundo".split(),
    *"primo secondo terzo".split(),
)
_NUMBER = (
    rf"(?:[IVXLC]{{1,8}}|\d{{1,3}}|(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_DIGITS)}|first|second|third|fourth))?"
    rf"|{'|'.join(_ORDINALS)})"
)
_WORDS = (
    "chapter chap book part volume canto stave letter act section kapitel buch teil chapitre livre partie capítulo "
    "capitulo libro parte capitolo hoofdstuk deel глава часть книга розділ частина rozdział rozdzial luku fejezet"
).split()
_HEADING = re.compile(
    rf"[ \t_*=]*(?P<label>(?P<word>{'|'.join(_WORDS)})\.?[ \t]+(?:the[ \t]+)?(?P<number>{_NUMBER}))(?![^\W_])"
    r"(?P<rest>[^\n]*)",
    re.IGNORECASE,
)
_INDIC = re.compile(
    r"[ \t]*(?P<label>\S{2,12}[ \t]+(?:অধ্যায়|অধ্যায়|পরিচ্ছেদ|খণ্ড|সর্গ)"
    r"|(?:অধ্যায়|অধ্যায়|পরিচ্ছেদ|अध्याय|परिच्छेद)[ \t]+[০-৯०-९]{1,3})[ \t।:.-]*(?P<rest>)$"
)
_EAST_ASIAN = re.compile(
    r"[ \t\u3000]*(?P<label>第[一二三四五六七八九十百千零〇\d０-９]{1,6}[章回節节卷部])(?P<rest>[^\n。]{0,30})$"
)
_ROMAN = re.compile(r"[ \t]*(?P<label>[IVXLC]{1,8})\.?[ \t]*")
_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}
EMPTY_CHARS = 120
"""Less text than this between two headings is none: it is a title, or the number of a page."""


@dataclass(frozen=True)
class _Heading:
    start: int
    """In characters."""
    stop: int
    """Of its line."""
    label: str


def chapters(text: str) -> list[tuple[int, int]]:
    """(start, stop) of each chapter, in order, and before them of what stands before the first; all text is in one."""
    headings = _headings(text)
    starts = _starts(text, headings)
    if not starts:
        return [(0, len(text))]
    cuts = [*([0] if text[: starts[0]].strip() else []), *starts, len(text)]
    return list(zip(cuts, cuts[1:]))


def _headings(text: str) -> list[_Heading]:
    found: list[_Heading] = []
    romans: list[tuple[_Heading, int]] = []
    lines = text.split("\n")
    at, before_is_blank = 0, True
    is_dense = not any(
        line.isspace() or not line for line in lines[:-1]
    )  # some copies have lost their blank lines
    for index, line in enumerate(lines):
        if (before_is_blank or is_dense) and 0 < len(line) < 120:
            after = [] if is_dense else [other.strip() for other in lines[index + 1 : index + 4]]
            label = _label(line.rstrip(), after)
            if label is not None and (not is_dense or line.strip().isupper()):
                found.append(_Heading(at, at + len(line), label))
            elif (match := _ROMAN.fullmatch(line.rstrip())) is not None and (not after or not after[0]):
                romans.append((_Heading(at, at + len(line), match["label"]), _roman(match["label"])))
        before_is_blank = not line.strip()
        at += len(line) + 1
    if not found:
        found = _counted(romans)
    return found


def _label(line: str, after: list[str]) -> str | None:
    """The normalised word and number of a heading, or None of any other line."""
    match = _HEADING.match(line) or _INDIC.match(line) or _EAST_ASIAN.match(line)
    if match is None:
        return None
    rest = match["rest"].strip(" \t_*=")
    # "Chapter 5 of this work was lost" is a sentence; "CHAPTER V. Of Ships", "CHAPTER V  THE SEA" are headings.
    if rest and match.re is _HEADING and rest[0] not in ".:,;—–-([" and not rest[0].isupper():
        return None
    if rest.endswith((".", ",", ";")) and len(rest) > 60:
        return None
    if (
        after
        and (other := _HEADING.match(after[0])) is not None
        and match.re is _HEADING
        and other["word"] == match["word"]
    ):
        return None  # a line of a table of contents
    # A paragraph below without a blank line is a sentence that starts with "Chapter"; a title has a line or two.
    if all(after) and len(after) == 3 and not line.strip().isupper():
        return None
    return " ".join(match["label"].split()).lower()


def _roman(text: str) -> int:
    values = [_VALUES[c] for c in text]
    return sum(-v if any(v < w for w in values[i + 1 : i + 2]) else v for i, v in enumerate(values))


def _counted(romans: list[tuple[_Heading, int]]) -> list[_Heading]:
    """Numerals that count from one, again and again perhaps; none unless three come in a row."""
    kept: list[_Heading] = []
    last, longest = 0, 0
    for heading, value in romans:
        if value == last + 1 or value == 1:
            kept.append(heading)
            last = value
            longest = max(longest, value)
    return kept if longest >= 3 else []


def _word(label: str) -> str:
    first = label.split()[0].rstrip(".")
    return first if first in _WORDS else ""


def _starts(text: str, headings: list[_Heading]) -> list[int]:
    """Where chapters begin: without the entries of tables of contents, and headings without text joined to the next."""
    stops = [heading.start for heading in headings[1:]] + [len(text)]
    is_empty = [
        len(" ".join(text[h.stop : stop].split())) < EMPTY_CHARS and h is not headings[-1]
        for h, stop in zip(headings, stops)
    ]
    later: set[str] = set()
    repeated = [False] * len(headings)
    for index in range(len(headings) - 1, -1, -1):
        repeated[index] = headings[index].label in later
        later.add(headings[index].label)
    listed = [False] * len(headings)
    index = 0
    while index < len(headings):
        end = index
        while end < len(headings) and is_empty[end]:
            end += 1
        # The last entry of a table has the preface below it, or the first chapter's heading far away.
        run = range(index, min(end + 1, len(headings)))
        words = Counter(_word(headings[i].label) for i in run)
        if max(words.values()) >= 2 and sum(repeated[i] for i in run) * 2 > len(run):
            for i in run:
                listed[i] = repeated[i]
        index = end + 1
    out: list[int] = []
    pending: int | None = None
    for index, heading in enumerate(headings):
        if listed[index]:
            continue
        start = heading.start if pending is None else pending
        if is_empty[index]:
            pending = start
            continue
        out.append(start)
        pending = None
    return out
