"""Main text, title and licence of pages; and pages that were made to take hours."""

import sys
import time

import pytest

from jaxlm.corpus.raw.html import CostlyPage, extract
from jaxlm.types import UserError

PARAGRAPHS = [
    "The Sundarbans is the largest mangrove forest in the world, and lies on the delta of three great rivers.",
    "Its name may mean beautiful forest, or come from the sundari tree, which grows there in large numbers.",
    "Tigers swim between its islands, and honey is gathered there in April and May by people with permits.",
]
PAGE = f"""<!DOCTYPE html><html><head><title>Sundarbans</title><style>p {{ color: red }}</style></head><body>
<header><nav><ul><li><a href="/">Home</a></li><li><a href="/about">About us</a></li></ul></nav></header>
<article><h1>The Sundarbans</h1>{"".join(f"<p>{text}</p>" for text in PARAGRAPHS)}
<img src="tiger.jpg" alt="tiger.jpg"></article>
<footer><p>Copyright 2024. All rights reserved.</p></footer><script>track("x")</script></body></html>"""


@pytest.mark.parametrize("extractor", ["resiliparse", "trafilatura"])
def test_the_main_text_is_there_and_what_surrounds_it_is_not(extractor):
    if extractor == "trafilatura":
        pytest.importorskip("trafilatura")
    page = extract(PAGE, extractor)
    assert [line for line in page.text.split("\n") if line] == ["The Sundarbans", *PARAGRAPHS]
    assert (page.title, page.licence) == ("Sundarbans", None)


@pytest.mark.parametrize(
    ("markup", "licence"),
    [
        ('<link rel="license" href=" https://creativecommons.org/licenses/by/4.0/ ">', "https://creativecommons.org/licenses/by/4.0/"),
        ('<a rel="nofollow License" href="/licence.html">CC</a>', "/licence.html"),
        ('<meta name="DCTERMS.license" content="CC0\n 1.0">', "CC0 1.0"),
        ('<a href="/license">no rel</a>', None),
        ('<a rel="license">no address</a>', None),
    ],
)  # fmt: skip
def test_the_licence_is_what_the_page_states_for_itself(markup, licence):
    assert extract(PAGE.replace("</article>", f"</article>{markup}")).licence == licence


COSTLY = {
    "divs": "<div>" * 100_000 + "deep",
    "divs-in-tables": "<div><table><tr><td></div>" * 30_000,
    "wide-and-deep": "<div>" * 3_000 + "<p>wide</p>" * 40_000,
    "attributes": "<div " + " ".join(f"a{n}=b" for n in range(100_000)) + ">text</div>",
    "attributes-with-ends": "<div " + " ".join(f"a{n}='>'" for n in range(60_000)) + ">text</div>",
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_page_that_takes_minutes_is_refused_in_a_moment(name):
    begin = time.process_time()
    with pytest.raises(CostlyPage, match=r"nested [\d,]+ deep|has [\d,]+ attributes"):
        extract(COSTLY[name])
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    "html",
    ["", "\0", "<", "<p>a\0b", "<b>" * 100_000 + "x", "<p>" + "word " * 3_000_000, "<script>" + "x=1;" * 4_000_000,
     "<ul><li>" * 30_000, "<table><tr><td>" * 20_000, "&amp;" * 1_000_000, "<!--" * 100_000],
    ids=["empty", "nul", "open", "nul-inside", "bold", "line", "script", "lists", "tables", "entities", "comments"],
)  # fmt: skip
def test_odd_pages_are_done_in_a_moment(html):
    begin = time.process_time()
    extract(html)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("extractor", ["resiliparse", "trafilatura"])
def test_a_missing_package_is_named(extractor, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "resiliparse.extract.html2text" if extractor == "resiliparse" else extractor, None
    )
    with pytest.raises(
        UserError, match=rf"needs the package {extractor}, which is not installed: pip install"
    ):
        extract(PAGE, extractor)


def test_another_extractor_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="trafilatura"):
        extract(PAGE, "trafilatur")
