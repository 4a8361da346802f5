"""Articles of a `pages-articles` dump of MediaWiki: Wikipedia in every language, and other wikis.

    for part in cut_wikipedia(file, unit_bytes=64 << 20):
        for document in read_wikipedia(part, RawOptions(), account): ...

Dumps: https://dumps.wikimedia.org/<wiki>/latest/<wiki>-latest-pages-articles-multistream.xml.bz2: bz2 streams of 100
pages each, one behind the other (their author on the list xmldatadumps-l, read 2026-11).

A document is a page of namespace 0. Left out and counted: `other_namespace`, `redirect`, `disambiguation` (by option),
`other_model` (CSS, Lua, JSON), `duplicate_id` (the first of a part wins), `empty`. Faults: `broken_xml` (it goes on at
the next page), `too_long`, `not_a_dump`, `truncated_bz2` and the like, `broken_bz2` (it goes on at the next stream).

Fields: `id` is "enwiki:12"; `date` is that of the revision; `offset` counts bytes of the file where it is not
compressed. In a multistream file it is the place of the stream that holds the page, as in the index that comes with the
dump; in other compressed files, the place in the decompressed text. `num_bytes` is the length of its XML. `licence` is
that of Wikimedia's terms of use, CC BY-SA 4.0 since 2023-06-07 (http://signpost.news/2023-06-19/News_and_notes, read
2026-11); a dump names none, so for other wikis it is unknown.

Every page is parsed on its own: a document type with entities that expand a billion times has no place to stand.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from xml.parsers import expat

from jaxlm.corpus.raw.document import Account, RawDocument
from jaxlm.corpus.raw.files import RawFile, RawOptions, RawPart
from jaxlm.corpus.raw.unpacked import has_bytes
from jaxlm.corpus.raw.wikipedia_dump import blocks, cut_wikipedia, pages, place_of
from jaxlm.corpus.raw.wikipedia_kinds import is_disambiguation, is_redirect
from jaxlm.corpus.raw.wikitext import plain_text

__all__ = ["Site", "cut_wikipedia", "read_site", "read_wikipedia", "title_in_url"]

LICENCE = "CC BY-SA 4.0"
_HEAD_BYTES = 1 << 20
"""Within so many bytes `</siteinfo>` has to come: enwiki's of 2016 has about 3,000."""
_SMALL_IDS = 1 << 28
"""Ids below take a bit each, 32 MiB at most; larger ones are remembered one by one."""
_PROJECTS = re.compile(
    r"\.(?:wikipedia|wiktionary|wikibooks|wikisource|wikiquote|wikiversity|wikivoyage)\.org$|^(?:commons|meta|incubator)"
    r"\.wikimedia\.org$"
)


@dataclass(frozen=True)
class Site:
    """What a dump says of its wiki."""

    dbname: str = ""
    base: str = ""
    """Everything of an article's address before its title."""
    language: str | None = None
    licence: str | None = None
    namespaces: frozenset[str] = frozenset()
    """Of files and categories, in lower case."""


def read_site(file: RawFile, account: Account) -> Site | None:
    """The `<siteinfo>` at the start of a dump, None of an empty file; faults: `not_a_dump`."""
    head = b""
    for block in blocks(RawPart(file, 0, file.num_bytes), Account()):
        head += block.data
        if b"</siteinfo>" in head or len(head) > _HEAD_BYTES or b"<page>" in head:
            break
    if not head and not has_bytes(file):
        return None
    root = re.search(rb"<mediawiki\b([^<>]{0,2000})>", head)
    if root is None:
        account.fault("not_a_dump", file.name, "offset 0", "it does not start with <mediawiki>")
        return Site()
    info = re.search(rb"<siteinfo>.*?</siteinfo>", head, re.DOTALL)
    values: dict[str, str] = {}
    namespaces: set[str] = set()
    if info is not None:
        try:
            values, namespaces = _siteinfo(info[0])
        except expat.ExpatError as error:
            account.fault("broken_xml", file.name, "<siteinfo>", str(error))
    language = re.search(rb"xml:lang=[\"']([A-Za-z]{2,3})\b", root[1])
    base = values.get("base", "")
    host = urllib.parse.urlsplit(base).hostname or "" if re.match(r"https?://[\w.-]+(?:/|$)", base) else ""
    prefix, slash, _ = base.partition("/wiki/")
    return Site(
        values.get("dbname", ""),
        (f"{prefix}{slash}" if slash else f"{base.rpartition('/')[0]}/") if host else "",
        language[1].decode().lower() if language else None,
        LICENCE if _PROJECTS.search(host) else None,
        frozenset(namespaces),
    )


def _siteinfo(xml: bytes) -> tuple[dict[str, str], set[str]]:
    """Values by name of element; the names of the namespaces 6 (files) and 14 (categories)."""
    values: dict[str, str] = {}
    namespaces: set[str] = set()
    path: list[tuple[str, str]] = []
    text: list[str] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        path.append((name, attributes.get("key", "")))
        text.clear()

    def end(name: str) -> None:
        _, key = path.pop()
        values[name] = "".join(text).strip()
        if name == "namespace" and key in ("6", "14") and values[name]:
            namespaces.add(values[name].lower())
        text.clear()

    _parse(xml, start, end, text)
    return values, namespaces


def _parse(xml: bytes, start, end, text: list[str]) -> None:
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.buffer_size = 1 << 16
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text.append
    parser.Parse(xml, True)


@dataclass
class _Page:
    title: str = ""
    namespace: str = "0"
    id: str = ""
    is_redirect: bool = False
    date: str = ""
    model: str = "wikitext"
    text: str = ""


_FIELDS = {
    ("page", "title"): "title",
    ("page", "ns"): "namespace",
    ("page", "id"): "id",
    ("page", "revision", "timestamp"): "date",
    ("page", "revision", "model"): "model",
    ("page", "revision", "text"): "text",
}


def _page(xml: bytes) -> _Page:
    """The fields of a page; of several revisions, those of the last. Errors: ExpatError."""
    page = _Page()
    path: list[str] = []
    text: list[str] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        path.append(name)
        text.clear()
        if name == "redirect":
            page.is_redirect = True

    def end(name: str) -> None:
        field = _FIELDS.get(tuple(path)) if len(path) < 4 else None
        if field:
            setattr(page, field, "".join(text))
        path.pop()
        text.clear()

    _parse(xml, start, end, text)
    return page


class _Ids:
    """Numbers that were seen: a bit each, so that ten million take a few megabytes."""

    def __init__(self):
        self._bits = bytearray()
        self._large: set[int] = set()

    def add(self, number: int) -> bool:
        """Whether it is new."""
        if number >= _SMALL_IDS:
            is_new = number not in self._large
            self._large.add(number)
            return is_new
        place, bit = number >> 3, 1 << (number & 7)
        if place >= len(self._bits):
            self._bits.extend(bytes(max(1 << 16, place + 1 - len(self._bits))))
        is_new = not self._bits[place] & bit
        self._bits[place] |= bit
        return is_new


def read_wikipedia(part: RawPart, options: RawOptions, account: Account) -> Iterator[RawDocument]:
    """The articles of a slice of a dump; see above for what is left out."""
    file = part.file
    site = read_site(file, account if part.start == 0 else Account())
    if site is None:
        account.drop("empty_file", file.name)
        return
    ids = _Ids()
    for offset, xml in pages(part, options.max_document_bytes, account):
        try:
            page = _page(xml)
        except expat.ExpatError as error:
            account.fault("broken_xml", file.name, place_of(xml[:2000], offset), str(error))
            continue
        if not (page.id.isascii() and page.id.isdigit() and len(page.id) < 19):
            account.fault(
                "broken_xml", file.name, place_of(xml[:2000], offset), "the page has no number as its id"
            )
            continue
        if not ids.add(int(page.id)):
            account.drop("duplicate_id", f"{page.id} {page.title}")
        elif (reason := _reason(page, options)) is not None:
            account.drop(reason, page.title)
        else:
            text = plain_text(page.text, title=page.title, namespaces=site.namespaces, account=account)
            if not text:
                account.drop("empty", page.title)
                continue
            yield RawDocument(
                text=text,
                id=f"{site.dbname or file.name}:{int(page.id)}",
                file=file.name,
                offset=offset,
                num_bytes=len(xml),
                url=site.base + title_in_url(page.title) if site.base else None,
                date=page.date or None,
                licence=site.licence,
                title=page.title,
                language=site.language,
            )


def _reason(page: _Page, options: RawOptions) -> str | None:
    """Why the page is no article, or None."""
    if page.namespace.strip() != "0":
        return "other_namespace"
    if page.model.strip() != "wikitext":
        return "other_model"
    if page.is_redirect or is_redirect(page.text):
        return "redirect"
    if not options.disambiguation and is_disambiguation(page.title, page.text):
        return "disambiguation"
    return None


def title_in_url(title: str) -> str:
    """As MediaWiki writes it: `AC/DC (band)` is `AC/DC_(band)` (wfUrlencode in its GlobalFunctions.php)."""
    return urllib.parse.quote(title.replace(" ", "_"), safe=";@$!*(),/~:")
