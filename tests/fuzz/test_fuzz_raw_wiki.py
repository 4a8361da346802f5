"""Dumps, wikitext, books, EPUBs and records from anybody: what is damaged is counted, and nothing else is raised."""

import bz2
import functools
import gzip
import io
import json
import random
import zipfile

import pytest
from hostile import SCALE, damaged_bytes, damaged_files_crash_nothing, fuzz, random_damage, refused
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.corpus.raw.books import read_text_files
from jaxlm.corpus.raw.chapters import chapters
from jaxlm.corpus.raw.config import DOCUMENTS
from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.epub import read_epub
from jaxlm.corpus.raw.files import RawFile, RawOptions, RawPart
from jaxlm.corpus.raw.links import normalise_url
from jaxlm.corpus.raw.rows import read_rows
from jaxlm.corpus.raw.wikipedia import cut_wikipedia, read_wikipedia
from jaxlm.corpus.raw.wikitext import plain_text

WIKITEXT = (
    "'''ঢাকা''' {{lang|bn|ক}} [[File:a.jpg|b]] &lt;ref&gt;x&lt;/ref&gt; == H ==\n{|\n|}\n* [[a|b]] &amp;amp;"
)
PAGES = [
    f"<page><title>P{i}</title><ns>0</ns><id>{i}</id><revision><timestamp>2020</timestamp>"
    f"<text>{WIKITEXT} {i}</text></revision></page>\n"
    for i in range(1, 5)
]
HEAD = (
    '<mediawiki xml:lang="bn"><siteinfo><dbname>bnwiki</dbname><base>https://bn.wikipedia.org/wiki/A</base>'
    "</siteinfo>\n"
)
DUMP = (HEAD + "".join(PAGES) + "</mediawiki>").encode()
BOOK = (
    "The Project Gutenberg Etext of A, by B\nTitle: A\nRelease Date: May, 1999\n"
    "*** START OF THE PROJECT GUTENBERG EBOOK A ***\n\nProduced by C\n\nCHAPTER I\n\nঢাকা caf\u00e9.\n\n"
    "CHAPTER II\n\nText.\n\nEnd of Project Gutenberg's A\n"
).encode()
LINES = (
    b'{"text": "a", "url": "http://a.org", "score": 3}\n{"text": "\\u0995"}\n{"text": "b", "date": "2020"}\n'
)
CSV = b'text,url,score\n"a, ""b""\nc",http://a.org,3\nd,,\n'
TOKENS = [
    *(
        "{{",
        "}}",
        "[[",
        "]]",
        "{|",
        "\n|}",
        "|",
        "\n",
        "<ref>",
        "</ref>",
        "<ref name=a/>",
        "<math>",
        "</math>",
    ),
    *(
        "<!--",
        "-->",
        "''",
        "'''",
        "== a ==",
        "\n* ",
        "\n: ",
        "lang|en|",
        "File:",
        "=",
        "(",
        ")",
        ", ",
        "&amp;",
    ),
    *("&#0;", "&#xd800;", "__TOC__", "-{", "}-", "[http://a ", "]", "<nowiki>", "</nowiki>", "<sup>2</sup>"),
    *("\x01", "\0", "ক\u09cd\u200d", " "),
]


def packed(content, compression):
    return {"": bytes, "gz": functools.partial(gzip.compress, mtime=0), "bz2": bz2.compress}[compression](
        content
    )


def as_file(folder, content, kind, compression=""):
    path = folder / f"fuzz.{kind}"
    path.write_bytes(content)
    return RawFile(str(path), path.name, kind, compression, len(content), "")


def check(documents, account):
    """A text can be written, and has no NUL and no CRLF."""
    for document in documents:
        assert document.text.encode()
        assert "\0" not in document.text
        assert "\r\n" not in document.text
        assert document.text.strip()
        assert document.offset >= 0
        json.dumps(document.id)
    json.dumps(account.to_json())


def read_all(reader, parts, options=None):
    account = Account()
    check([d for part in parts for d in reader(part, options or RawOptions(), account)], account)
    with refused():
        for part in parts:
            list(reader(part, options or RawOptions(), Account(strict=True)))


def whole(file):
    return [RawPart(file, 0, file.num_bytes)]


@fuzz(150)
@given(content=damaged_bytes(DUMP), compression=st.sampled_from(["", "gz", "bz2"]), unit=st.integers(1, 3000))
def test_damaged_dumps(content, compression, unit, tmp_path_factory):
    file = as_file(tmp_path_factory.getbasetemp(), packed(content, compression), "wikipedia", compression)
    read_all(read_wikipedia, cut_wikipedia(file, unit))


@fuzz(150)
@given(
    seed=st.integers(0, 2**32), unit=st.integers(1, 600), compression=st.sampled_from(["gz", "bz2", "multi"])
)
def test_damaged_compressed_dumps(seed, unit, compression, tmp_path_factory):
    rng = random.Random(seed)
    if compression == "multi":
        content, compression = (
            b"".join(bz2.compress(t.encode()) for t in (HEAD, *PAGES, "</mediawiki>")),
            "bz2",
        )
    else:
        content = packed(DUMP, compression)
    file = as_file(tmp_path_factory.getbasetemp(), random_damage(rng, content), "wikipedia", compression)
    parts = cut_wikipedia(file, unit)
    read_all(read_wikipedia, parts)
    one, many = (
        [d for p in some for d in read_wikipedia(p, RawOptions(), Account())] for some in (whole(file), parts)
    )
    assert {d.id for d in one} == {d.id for d in many}


@fuzz(400)
@given(tokens=st.lists(st.one_of(st.sampled_from(TOKENS), st.text(max_size=6)), max_size=40))
def test_any_wikitext_is_a_text(tokens):
    text = plain_text("".join(tokens), title="A")
    assert not any(c < " " and c not in "\n\t" for c in text.replace("\r", ""))
    assert text == text.strip("\n")


@fuzz(150)
@given(content=damaged_bytes(BOOK), kind=st.sampled_from(DOCUMENTS))
def test_damaged_books(content, kind, tmp_path_factory):
    file = as_file(tmp_path_factory.getbasetemp(), content, "text")
    read_all(read_text_files, whole(file), RawOptions(document=kind))


@fuzz(150)
@given(text=st.text(max_size=200) | damaged_bytes(BOOK).map(lambda raw: raw.decode("utf-8", "replace")))
def test_chapters_hold_all_of_any_text(text):
    assert "".join(text[start:stop] for start, stop in chapters(text)) == text


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
def test_damaged_records(kind, tmp_path_factory):
    @fuzz(100)
    @given(content=damaged_bytes(CSV if kind in ("csv", "tsv") else LINES))
    def run(content):
        file = as_file(tmp_path_factory.getbasetemp(), content, kind)
        read_all(read_rows, whole(file), RawOptions(min_score=1))

    run()


def test_damaged_parquet_crashes_nothing(tmp_path):
    damaged_files_crash_nothing("raw_parquet", 60, tmp_path, memory_mb=4000)


@functools.cache
def epub() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("META-INF/container.xml", '<container><rootfile full-path="b.opf"/></container>')
        archive.writestr(
            "b.opf",
            '<package><dc:title xmlns:dc="x">T</dc:title><item id="a" href="a.xhtml"/><itemref idref="a"/></package>',
        )
        archive.writestr("a.xhtml", "<html><body><p>ঢাকা</p></body></html>")
    return stream.getvalue()


def test_damaged_epubs(tmp_path):
    for seed in range(200 * SCALE):
        rng = random.Random(seed)
        file = as_file(tmp_path, random_damage(rng, epub()), "epub")
        read_all(read_epub, whole(file), RawOptions(document=rng.choice(DOCUMENTS)))


@fuzz(200)
@given(
    url=st.text(max_size=30)
    | st.builds("http://{}/{}?{}".format, st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
)
def test_any_address_is_one_or_none(url):
    normal = normalise_url(url)
    assert normal is None or normal.encode("utf-8")
