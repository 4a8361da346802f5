"""E-mail addresses, public IP addresses and telephone numbers, replaced.

The patterns of the first two are datatrove's (PIIFormatter), with three differences. A replacement is chosen by the
address, not by a counter over all documents of a process: a text does not depend on what was read before it, and the
same address becomes the same one everywhere. The pattern of e-mail is tried only around an "@" and over at most 64
characters before it (RFC 5321, 4.5.3.1.1): its time grows with the square of a run such as "a/a/a/". Four numbers are
no IP address where a fifth stands beside them. Replacements are datatrove's: example.com belongs to nobody, and nothing
answered at its IP addresses when its list was made.

A telephone number is replaced where it is written as such: `+` and a country, or the ten digits of North America with
separators, (206) 555-0100. In a sample of web pages, news, Wikipedia, speeches, Python's documentation and old
books (8.7 MB) that finds 2, both right; in 4,124 mails it finds 351, 183 different ones, and each is a telephone
number by the words around it. Bare runs of digits are left, so many numbers of other countries are too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

import xxhash
from datatrove.data import Document
from datatrove.pipeline.formatters.pii import PIIFormatter

from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.steps import AccountedStep

_FORMATTER = PIIFormatter()
_EMAIL = _FORMATTER.emails_replacer
_IP = _FORMATTER.ip_replacer
_IP_ALONE = re.compile(rf"(?<![\d.])(?:{_IP.regex.pattern})(?!\d|\.\d)")
_LOCAL = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+\Z")
_MAX_LOCAL = 64
_MAX_DOMAIN = 255
_ABROAD = re.compile(
    r"\+(?<![\w+.]\+)[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,5}(?:[ .-]?\d{2,5}){1,4}(?![\w]|[.-]\d)"
)
_AMERICAN = re.compile(
    r"(?<![\w.+-])(?:\+?1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[.-])[2-9]\d{2}[.-]\d{4}(?![\w-]|\.\d)"
)
_IP_LIKE = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")
_AMERICAN_LIKE = re.compile(r"[0-9]{3}[.-][0-9]{4}")
"""Found in a few texts and quickly not found in the others: without them the whole is four times slower."""
_PHONE_DIGITS = range(9, 16)
"""ITU-T E.164 allows 15 with the country; shorter ones are as often sums."""


class PersonalDataStep(AccountedStep):
    """Replaces personal data in the text; counts each kind that was replaced, and the documents."""

    def __init__(self, account: Account | None = None):
        super().__init__("personal_data", account)

    def apply(self, document: Document) -> Iterator[Document]:
        counts: Counter[str] = Counter()
        document.text = scrub(document.text, counts)
        if counts:
            self.account.changed["personal_data_documents"] += 1
            self.account.changed.update(counts)
        yield document


def scrub(text: str, counts: Counter[str]) -> str:
    """The text with replacements; counts `email`, `ip` and `phone`."""
    if "@" in text:
        text = _replace_emails(text, counts)
    if _IP_LIKE.search(text):
        text = _IP_ALONE.sub(lambda match: _ip(match[0], counts), text)
    if "+" in text:
        text = _ABROAD.sub(lambda match: _phone(match[0], counts), text)
    if _AMERICAN_LIKE.search(text):
        text = _AMERICAN.sub(lambda match: _phone(match[0], counts), text)
    return text


def _chosen(found: str, replacements: tuple[str, ...]) -> str:
    return replacements[xxhash.xxh64_intdigest(found.lower().encode()) % len(replacements)]


def _replace_emails(text: str, counts: Counter[str]) -> str:
    pieces, done, place = [], 0, text.find("@")
    while place >= 0:
        before = _LOCAL.search(text[max(done, place - _MAX_LOCAL) : place])
        if before:
            found = _email_at(text, place - len(before[0]), place)
            if found:
                counts["email"] += 1
                pieces += (text[done : found.start()], _chosen(found[0], _EMAIL.replacements))
                done = found.end()
        place = text.find("@", max(place + 1, done))
    return "".join((*pieces, text[done:])) if pieces else text


def _email_at(text: str, first: int, place: int) -> re.Match[str] | None:
    """The address whose "@" is at `place`, from the first start at or behind `first`."""
    end = min(len(text), place + 1 + _MAX_DOMAIN)
    return next(filter(None, (_EMAIL.regex.match(text, start, end) for start in range(first, place))), None)


def _ip(found: str, counts: Counter[str]) -> str:
    validator: Callable[[str], bool] | None = _IP.validator
    if validator and not validator(found):
        return found
    counts["ip"] += 1
    return _chosen(found, _IP.replacements)


def _phone(found: str, counts: Counter[str]) -> str:
    digits = "".join(filter(str.isdigit, found))
    if len(digits) not in _PHONE_DIGITS or found.count(".") == 1:
        return found
    counts["phone"] += 1
    # 555-0100 to 555-0199 are kept for fiction in every area of North America.
    return f"+1 202 555 {100 + xxhash.xxh64_intdigest(digits.encode()) % 100:04d}"
