"""The main text of a web page, without menus, boilerplate and scripts; its title and licence. Imports no JAX.

The work on a page is bounded before it is done. Both extractors are fast on any page that people made; what takes them
minutes is nesting (resiliparse looks through each div once more for every div around it) and tags of 100,000
attributes (each is compared with all before it).
"""

from __future__ import annotations

import re
from html import unescape
from typing import Any, NamedTuple

from jaxlm.config import check_choice
from jaxlm.corpus.raw.config import EXTRACTORS
from jaxlm.types import UserError

MAX_WORK = 100_000_000
"""Elements times their nesting: about 5 s of resiliparse, measured at 48 ns each on one core."""
MAX_ATTRIBUTES = 10_000
"""Of one tag: 0.1 s, and 10 s of ten times as many."""
_LARGE_CHARS = 256 << 10
"""A shorter page can have too many attributes for no more than 20 s of work, and is not searched for them."""
_MIN_TAGS = int(MAX_WORK**0.5)
_TAG = re.compile(r"<[a-zA-Z/][^>\"']*(?:(?:\"[^\"]*\"|'[^']*')[^>\"']*)*")
_ATTRIBUTE = re.compile(r"[^\s=/\"'>]+")
_DIV = re.compile("<div", re.IGNORECASE)
_TITLE = re.compile(r"<title\b[^>]{0,500}>([^<]*)</title", re.IGNORECASE)
_HEAD_CHARS = 32 << 10
_LICENCES = ", ".join(
    (
        'link[rel~="license" i]',
        'a[rel~="license" i]',
        'meta[name="dcterms.license" i]',
        'meta[property="dcterms:license" i]',
    )
)
_MAX_FIELD_CHARS = 500


class CostlyPage(ValueError):
    """A page made so that its extraction takes minutes."""


class Page(NamedTuple):
    """What a document takes from a page."""

    text: str
    title: str | None
    licence: str | None


def extract(html: str, extractor: str = "resiliparse") -> Page:
    """Main text, title and licence of a page.

    Args:
      html: without lone surrogates.

    Errors: CostlyPage; ValueError for a page that the extractor gives up.
    """
    check_choice("extractor", extractor, EXTRACTORS)
    check_work(html)
    text = _resiliparse(html) if extractor == "resiliparse" else _trafilatura(html)
    return Page(text, title_of(html), licence_of(html))


def _parse(html: str) -> Any:
    try:
        from resiliparse.parse.html import HTMLTree
    except ImportError:
        raise _missing("resiliparse") from None
    return HTMLTree.parse(html)


def check_work(html: str) -> None:
    """CostlyPage for a page that would take minutes. A short page cannot."""
    if len(html) > _LARGE_CHARS:
        _check_attributes(html)
    # A tag has three characters at least.
    if len(html) > 3 * _MIN_TAGS and (num_tags := html.count("<")) > _MIN_TAGS:
        num_divs = sum(1 for _ in _DIV.finditer(html))
        if num_tags * num_divs > MAX_WORK:
            _check_nesting(_parse(html), num_tags)


def _check_attributes(html: str) -> None:
    for match in _TAG.finditer(html):
        if match.end() - match.start() > MAX_ATTRIBUTES:
            number = sum(1 for _ in _ATTRIBUTE.finditer(match[0]))
            if number > MAX_ATTRIBUTES:
                raise CostlyPage(f"one of its tags has {number:,} attributes")


def _check_nesting(tree: Any, num_tags: int) -> None:
    from resiliparse.parse.html import traverse_dom

    if num_tags * len(tree.document.get_elements_by_tag_name("div")) <= MAX_WORK:
        return
    deepest = 0

    def enter(context: Any) -> None:
        nonlocal deepest
        deepest = max(deepest, context.depth)

    traverse_dom(tree.document.document_element, enter, elements_only=True)
    if num_tags * deepest > MAX_WORK:
        raise CostlyPage(f"its {num_tags:,} tags are nested {deepest:,} deep")


def _resiliparse(html: str) -> str:
    """Without the texts that stand for pictures: names of files, mostly."""
    try:
        from resiliparse.extract.html2text import extract_plain_text
    except ImportError:
        raise _missing("resiliparse") from None
    # Of the page as text: of its tree, parsed before, it takes an eighth longer.
    return extract_plain_text(html, main_content=True, alt_texts=False)


def _trafilatura(html: str) -> str:
    try:
        import trafilatura
    except ImportError:
        raise _missing("trafilatura") from None
    try:
        return trafilatura.extract(html, include_comments=False) or ""
    except Exception as error:  # of lxml, of recursion, of its own: none of them is documented
        raise ValueError(f"trafilatura gives it up ({type(error).__name__})") from None


def _missing(package: str) -> UserError:
    return UserError(
        f"Text of web pages needs the package {package}, which is not installed: pip install 'jaxlm[corpus]'."
    )


def title_of(html: str) -> str | None:
    """What the title element says, if it is where it belongs."""
    match = _TITLE.search(html, 0, _HEAD_CHARS)
    return _field(unescape(match[1])) if match else None


def licence_of(html: str) -> str | None:
    """The licence that the page states for itself, as an address or in words.

    Source: HTML, link type "license"; DCMI Metadata Terms, `license`.
    """
    if "icense" not in html:  # as of most pages: saves parsing it
        return None
    node = _parse(html).document.query_selector(_LICENCES)
    return (
        _field(node.getattr("content" if node.local_name == "meta" else "href")) if node is not None else None
    )


def _field(value: str | None) -> str | None:
    """On one line, of bounded length; None if there is nothing."""
    return " ".join((value or "").split())[:_MAX_FIELD_CHARS] or None
