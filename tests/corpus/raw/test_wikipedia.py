"""Dumps of MediaWiki: the same articles however they are compressed, cut or damaged."""

import bz2
import gzip
import random
import tracemalloc

import pytest
import zstandard
from dumps import DROPPED, HEAD, PAGES, TAIL, TEXTS, multistream, page, raw_file, read

from jaxlm.corpus.raw.document import Account, RawDocument
from jaxlm.corpus.raw.files import RawFile, RawOptions
from jaxlm.corpus.raw.wikipedia import cut_wikipedia, read_wikipedia, title_in_url
from jaxlm.corpus.raw.wikipedia_kinds import is_disambiguation, is_redirect
from jaxlm.types import UserError

DUMP = HEAD + "".join(PAGES) + TAIL


@pytest.mark.parametrize(
    ("compression", "pack"),
    [("", bytes), ("gz", gzip.compress), ("bz2", bz2.compress), ("zst", zstandard.compress)],
)
def test_a_dump_is_its_articles_and_an_account_of_the_others(tmp_path, compression, pack):
    file = raw_file(tmp_path / "bnwiki.xml", pack(DUMP.encode()), compression)
    documents, account = read(file)
    assert {d.id: d.text for d in documents} == TEXTS
    assert (account.dropped, account.faults) == (DROPPED, {})
    first = DUMP.encode().index(b"<page>")
    assert documents[0] == RawDocument(
        text=TEXTS["bnwiki:12"],
        id="bnwiki:12",
        file="bnwiki.xml",
        offset=first,
        num_bytes=DUMP.encode().index(b"</page>") + 7 - first,
        url="https://bn.wikipedia.org/wiki/%E0%A6%A2%E0%A6%BE%E0%A6%95%E0%A6%BE",
        date="2026-01-04T00:00:00Z",
        licence="CC BY-SA 4.0",
        title="ঢাকা",
        language="bn",
    )
    assert documents[1].url == "https://bn.wikipedia.org/wiki/AC/DC_(band)%3F"
    at = documents[2].offset
    assert DUMP.encode()[at : at + documents[2].num_bytes].decode() == PAGES[-1].strip()


def test_a_multistream_dump_is_the_same_cut_at_every_possible_place(tmp_path):
    groups = [PAGES[:2], PAGES[2:5], PAGES[5:8], PAGES[9:]]
    file = raw_file(tmp_path / "a.xml.bz2", multistream(HEAD, groups), "bz2")
    whole, _ = read(file)
    assert [d.id for d in whole] == list(TEXTS)
    cuts = set()
    for unit_bytes in range(1, file.num_bytes + 2):
        parts = cut_wikipedia(file, unit_bytes)
        assert [p.start for p in parts[1:]] == [p.stop for p in parts[:-1]]
        assert (parts[0].start, parts[-1].stop) == (0, file.num_bytes)
        cuts |= {p.start for p in parts}
        if len(parts) > 1 and (unit_bytes < 3 or unit_bytes % 97 == 0):
            assert read(file, unit_bytes)[0] == whole
    streams = [len(multistream(HEAD, groups[:n], "")) - len(bz2.compress(b"")) for n in range(4)]
    assert cuts == {0, *streams}
    # As in the index of Wikimedia: a page's place is that of its stream.
    assert [d.offset for d in whole] == [streams[0], streams[0], streams[3]]


def test_a_plain_dump_is_the_same_cut_at_every_page(tmp_path):
    file = raw_file(tmp_path / "a.xml", (HEAD + "".join(PAGES[:8] + PAGES[9:]) + TAIL).encode())
    whole, account = read(file)
    for unit_bytes in (1, 2, 100, 500, 501, 900, 2000, 10**9):
        cut, other = read(file, unit_bytes)
        assert (cut, other) == (whole, account)
    assert len(cut_wikipedia(file, 1)) == 10


def test_streams_of_a_parallel_compressor_may_end_within_a_page(tmp_path):
    raw = DUMP.encode()
    content = b"".join(bz2.compress(raw[i : i + 700]) for i in range(0, len(raw), 700))
    file = raw_file(tmp_path / "a.xml.bz2", content, "bz2")
    for unit_bytes in (None, 1, 1000):
        assert {d.id: d.text for d in read(file, unit_bytes)[0]} == TEXTS


def test_pages_that_list_meanings_are_kept_by_option(tmp_path):
    file = raw_file(tmp_path / "a.xml", DUMP.encode())
    documents, account = read(file, options=RawOptions(disambiguation=True))
    assert [d.title for d in documents if d.id == "bnwiki:17"] == ["Mercury"]
    assert "disambiguation" not in account.dropped


@pytest.mark.parametrize(
    ("title", "text"),
    [
        ("A", "{{disambig}}"), ("A", "x {{ Disambiguation|geo }}"), ("A", "{{human name disambiguation}}"),
        ("A", "{{Hndis|A}}"), ("A", "{{Begriffsklärung}}"), ("A", "{{homonymie}}"), ("A", "{{неоднозначность}}"),
        ("A", "{{Aimai}}"), ("A", "{{消歧义}}"), ("A", "{{দ্ব্যর্থতা নিরসন}}"),
        ("A", "{{দ্ব্যর্থতা_নিরসন|ক}}"), ("A", "__DISAMBIG__"),
        ("A (disambiguation)", "x"), ("ঢাকা (দ্ব্যর্থতা নিরসন)", "x"), ("A (Begriffsklärung)", "x"),
        ("東京（曖昧さ回避）", "x"),
    ],
)  # fmt: skip
def test_lists_of_meanings_are_known_in_many_languages(title, text):
    assert is_disambiguation(title, text)


@pytest.mark.parametrize(
    ("title", "text"),
    [
        ("A", "a {{disambiguation needed|date=x}} b"),
        ("Disambiguation", "x"),
        ("A (band)", "{{other uses|A (disambiguation)}}"),
    ],
)
def test_articles_that_mention_such_lists_stay(title, text):
    assert not is_disambiguation(title, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#REDIRECT [[A]]", True),
        ("\n #redirect: [[A b]] {{R}}", True),
        ("#WEITERLEITUNG [[A]]", True),
        ("#পুনর্নির্দেশ [[ক]]", True),
        ("#перенаправление [[A]]", True),
        ("#重定向[[A]]", True),
        ("#đổi hướng [[A]]", True),
        ("# [[A]] is first", False),
        ("#A: [[B]]", False),
        ("A #REDIRECT [[B]]", False),
    ],
)
def test_redirects_are_known_by_their_text_in_any_language(text, expected):
    assert is_redirect(text) is expected


def test_titles_in_addresses_are_written_as_mediawiki_does():
    assert title_in_url("C++ & AT&T's 50% (a/b): ~;@$!*,") == "C%2B%2B_%26_AT%26T%27s_50%25_(a/b):_~;@$!*,"


def test_another_wiki_has_no_licence_and_its_own_address(tmp_path):
    head = HEAD.replace(
        "https://bn.wikipedia.org/wiki/%E0%A6%AA%E0%A7%8D", "http://wiki.example/index.php/Main"
    )
    documents, _ = read(raw_file(tmp_path / "a.xml", (head + PAGES[1] + TAIL).encode()))
    assert (documents[0].licence, documents[0].url) == (None, "http://wiki.example/index.php/AC/DC_(band)%3F")


def test_broken_xml_costs_its_page_and_no_other(tmp_path):
    bad = [
        page(30, "Bad &lol; entity", "x"),
        page(31, "Bad tags", "<b>x</i>"),
        page(32, "No end", "x").replace("</page>", ""),
        page(33, "Control", "\x01"),
        page(34, "No number", "x").replace("<id>34</id>", "<id>x</id>"),
    ]
    content = (HEAD + PAGES[0] + "".join(bad) + PAGES[1] + TAIL).encode().replace(b"Control", b"Contr\xff")
    documents, account = read(raw_file(tmp_path / "a.xml", content))
    assert [d.id for d in documents] == ["bnwiki:12", "bnwiki:13"]
    assert account.faults == {"broken_xml": 5}
    assert account.examples["broken_xml"][0].startswith("a.xml, page 'Bad &lol; entity', offset 1,")
    with pytest.raises(
        UserError, match=r"a\.xml, page 'Bad &lol; entity', offset .*undefined entity: .*broken_xml"
    ):
        read(raw_file(tmp_path / "a.xml", content), strict=True)


def test_entities_that_expand_a_billion_times_or_read_files_are_harmless(tmp_path):
    doctype = (
        '<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;"><!ENTITY f SYSTEM "file:///etc/passwd">]>'
    )
    content = (doctype + HEAD + page(1, "A", "&b;") + page(2, "B", "&f;") + page(3, "C", "c") + TAIL).encode()
    documents, account = read(raw_file(tmp_path / "a.xml", content))
    assert ([d.text for d in documents], account.faults) == (["c"], {"broken_xml": 2})


@pytest.mark.parametrize("compression", ["gz", "bz2", "zst"])
def test_a_truncated_dump_gives_what_is_there(tmp_path, compression):
    noise = [random.Random(i).randbytes(120_000).hex() for i in range(9)]
    pages = [page(i, f"P{i}", f"Text {i}. {noise[i]}") for i in range(1, 9)]
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "zst": zstandard.compress}[compression]
    content = pack((HEAD + "".join(pages) + TAIL).encode())
    documents, account = read(raw_file(tmp_path / "a.xml", content[: len(content) * 3 // 4], compression))
    assert [d.id for d in documents] == [f"bnwiki:{i}" for i in range(1, len(documents) + 1)]
    assert 1 <= len(documents) < 8
    assert account.faults == {f"truncated_{compression}": 1}


def test_a_damaged_stream_costs_its_pages_and_no_other(tmp_path):
    groups = [[page(i, f"P{i}", f"Text {i}.")] for i in range(1, 6)]
    content = bytearray(multistream(HEAD, groups))
    second = len(multistream(HEAD, groups[:1], "")) - len(bz2.compress(b""))
    content[second + 60] ^= 255
    file = raw_file(tmp_path / "a.xml.bz2", bytes(content), "bz2")
    for unit_bytes in (None, 1, 300):
        documents, account = read(file, unit_bytes)
        assert [d.title for d in documents] == ["P1", "P3", "P4", "P5"]
        assert account.faults == {"broken_bz2": 1}


def test_a_page_that_lost_its_middle_is_no_page(tmp_path):
    raw = (HEAD + "".join(page(i, f"P{i}", f"Text {i}. " * 100) for i in range(1, 6)) + TAIL).encode()
    pieces = [bz2.compress(raw[i : i + 700]) for i in range(0, len(raw), 700)]
    pieces[3] = pieces[3][:40] + bytes(10) + pieces[3][50:]
    lost = range(3 * 700, 4 * 700)
    expected = [i for i in range(1, 6) if not lost_of(raw, i, lost)]
    assert 2 <= len(expected) < 5
    documents, account = read(raw_file(tmp_path / "a.xml.bz2", b"".join(pieces), "bz2"))
    assert [(d.title, d.text) for d in documents] == [
        (f"P{i}", (f"Text {i}. " * 100).strip()) for i in expected
    ]
    assert account.faults == {"broken_bz2": 1}


def lost_of(raw, number, lost):
    """Whether a part of a page lies in the lost range of bytes."""
    start = raw.index(f"<title>P{number}</title>".encode())
    return start - 20 < lost.stop and raw.index(b"</page>", start) + 7 > lost.start


@pytest.mark.parametrize("block_bytes", [1, 7, 500])
def test_blocks_may_end_anywhere(tmp_path, monkeypatch, block_bytes):
    file = raw_file(tmp_path / "a.xml", DUMP.encode())
    packed = raw_file(tmp_path / "b.xml.bz2", multistream(HEAD, [PAGES[:3], PAGES[3:]]), "bz2")
    expected, cuts = read(file), [cut_wikipedia(f, 600) for f in (file, packed)]
    monkeypatch.setattr("jaxlm.corpus.raw.wikipedia_dump.BLOCK_BYTES", block_bytes)
    assert read(file) == expected
    assert {d.id: d.text for d in read(packed)[0]} == TEXTS
    assert [cut_wikipedia(f, 600) for f in (file, packed)] == cuts


def test_a_page_of_fifty_megabytes_is_skipped(tmp_path):
    content = (HEAD + page(1, "Long", "x" * 50_000_000) + page(2, "B", "b") + TAIL).encode()
    documents, account = read(raw_file(tmp_path / "a.xml", content))
    assert [d.title for d in documents] == ["B"]
    assert account.faults == {"too_long": 1}
    assert "page 'Long'" in account.examples["too_long"][0]


def test_what_is_no_dump_is_said(tmp_path):
    documents, account = read(raw_file(tmp_path / "a.xml", b"<html><page></page></html>"))
    assert (documents, account.faults) == ([], {"not_a_dump": 1, "broken_xml": 1})
    documents, account = read(raw_file(tmp_path / "a.xml.bz2", b"no bz2 at all", "bz2"))
    assert (documents, account.faults) == ([], {"not_a_dump": 1, "broken_bz2": 1})


def test_empty_dumps(tmp_path):
    documents, account = read(raw_file(tmp_path / "a.xml", b""))
    assert (documents, account.dropped, account.faults) == ([], {"empty_file": 1}, {})
    documents, account = read(raw_file(tmp_path / "a.xml", (HEAD + TAIL).encode()))
    assert (documents, account.dropped, account.faults) == ([], {}, {})


def test_pages_without_text_are_counted(tmp_path):
    empty = page(1, "A", "").replace(
        '<text bytes="3" sha1="x" xml:space="preserve"></text>', '<text bytes="0" />'
    )
    deleted = page(2, "B", "").replace('bytes="3"', 'deleted="deleted"')
    documents, account = read(raw_file(tmp_path / "a.xml", (HEAD + empty + deleted + TAIL).encode()))
    assert (documents, account.dropped) == ([], {"empty": 2})


@pytest.mark.parametrize(("compression", "pack"), [("", bytes), ("gz", gzip.compress), ("bz2", bz2.compress)])
def test_size_need_not_be_known_before(tmp_path, compression, pack):
    (tmp_path / "a").write_bytes(pack(DUMP.encode()))
    documents, _ = read(RawFile(str(tmp_path / "a"), "a", "wikipedia", compression, 0, ""))
    assert {d.id: d.text for d in documents} == TEXTS


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    file = RawFile(str(tmp_path / "none.xml"), "none.xml", "wikipedia", "", 7, "")
    with pytest.raises(UserError, match=r"none\.xml cannot be read \(No such file"):
        read(file)
    with pytest.raises(UserError, match="cannot be read"):
        cut_wikipedia(file, 1)


def test_memory_does_not_grow_with_the_dump(tmp_path):
    text = f"A sentence. &lt;!-- {'x ' * 50_000}--&gt;"
    peaks = []
    for count in (100, 400):  # 10 and 40 MB
        pages = "".join(page(i, f"P{i}", text) for i in range(1, count + 1))
        file = raw_file(tmp_path / f"{count}.xml.gz", gzip.compress((HEAD + pages + TAIL).encode()), "gz")
        tracemalloc.start()
        documents = (
            d for part in cut_wikipedia(file, 10**9) for d in read_wikipedia(part, RawOptions(), Account())
        )
        assert sum(1 for _ in documents) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 8e6
