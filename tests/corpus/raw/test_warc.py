"""Web pages and texts of a crawl: every field of a document, and what damage costs."""

import gzip
import tracemalloc
import zlib

import pytest
import zstandard
from warc_files import PACK, gz, html_of, page, read, record, texts, zst

from jaxlm.corpus.raw import frames
from jaxlm.corpus.raw.document import Account, RawDocument
from jaxlm.types import UserError

BODIES = [f"Text number {n} is here. Rivers: Ōwairaka, পদ্মা.\nSecond line.".encode() for n in range(4)]
RECORDS = [record("conversion", body, n) for n, body in enumerate(BODIES)]
TEXTS = [body.decode() for body in BODIES]


def write(tmp_path, *parts, name="a.warc.wet.gz"):
    path = tmp_path / name
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize("suffix", PACK)
def test_a_document_of_a_wet_file_has_text_and_provenance_to_the_letter(suffix, tmp_path):
    one = record("conversion", b"\xef\xbb\xbfA line.\r\nAnother.", 7, WARC_Identified_Content_Language="ben")
    two = record("conversion", b"Two.", 8, WARC_Identified_Content_Language="eng,fra")
    info = record("warcinfo", b"software: me\r\n", 6)
    pack = PACK[suffix]
    packed = [pack(content) for content in (info, one, two)]
    documents, account = read(write(tmp_path, *packed, name=f"b.warc.wet{suffix}"))
    name = f"b.warc.wet{suffix}"
    first, second, third = map(len, packed)
    assert documents == [
        RawDocument(
            "A line.\nAnother.", "<urn:uuid:7>", name, first, second, "https://example.org/7",
            "2024-05-18T01:58:10Z", None, None, "ben",
        ),
        RawDocument(
            "Two.", "<urn:uuid:8>", name, first + second, third, "https://example.org/8",
            "2024-05-18T01:58:10Z", None, None, None,
        ),
    ]  # fmt: skip
    assert account.dropped == {"warc_warcinfo": 1}
    assert account.changed == {"crlf": 1}
    assert not account.faults


def test_a_page_of_a_warc_file_has_main_text_title_and_licence(tmp_path):
    html = (
        b'<!DOCTYPE html><html><head><title> On  rivers </title><link rel="stylesheet license" '
        b'href="https://creativecommons.org/licenses/by/4.0/"></head><body><nav><a href="/">Home</a></nav>'
        b"<main><h1>Rivers</h1><p>The Padma is the main channel of the Ganges in Bangladesh.</p></main>"
        b"<footer>Cookies</footer><script>var x = 1;</script></body></html>"
    )
    request = record("request", b"GET / HTTP/1.1\r\n\r\n", 1)
    response = record("response", page(html), 2, WARC_Target_URI="<https://example.org/river>")
    documents, account = read(write(tmp_path, gz(request), gz(response), name="a.warc.gz"))
    assert documents == [
        RawDocument(
            "Rivers\n\nThe Padma is the main channel of the Ganges in Bangladesh.", "<urn:uuid:2>", "a.warc.gz",
            len(gz(request)), len(gz(response)), "https://example.org/river", "2024-05-18T01:58:10Z",
            "https://creativecommons.org/licenses/by/4.0/", "On rivers",
        )
    ]  # fmt: skip
    assert account.dropped == {"warc_request": 1}


def test_what_is_no_page_is_dropped_by_its_kind(tmp_path):
    good = page(html_of("good text"))
    kinds = {
        "warc_request": record("request", b"GET / HTTP/1.1\r\n\r\n"),
        "warc_metadata": record("metadata", b"a: b"),
        "warc_revisit": record("revisit", page(b"")),
        "warc_resource": record("resource", b"x"),
        "warc_unknown": record("screenshot", b"x"),
        "http_status": record("response", page(html_of("gone"), status="404 Not Found")),
        "not_html": record("response", page(b"%PDF-1.7", content_type="application/pdf")),
        "not_http": record("response", b"\0\1", Content_Type="text/dns"),
        "no_payload": record("response", page(b" \r\n")),
        "no_text": record("response", page(b"<html><body><script>x</script></body></html>")),
    }
    parts = [gz(content) for content in (*kinds.values(), record("response", good))]
    documents, account = read(write(tmp_path, *parts, name="a.warc.gz"))
    assert [document.text for document in documents] == ["good text"]
    assert account.dropped == dict.fromkeys(kinds, 1)
    assert account.examples["http_status"] == [
        f"a.warc.gz, offset {sum(map(len, parts[:5])):,}: https://example.org/1"
    ]


@pytest.mark.parametrize(
    ("content_type", "text"),
    [("text/html", "good text"), ("application/xhtml+xml;charset=x", "good text"), (None, "good text"),
     ("text/plain", html_of("good text").decode())],
)  # fmt: skip
def test_html_xhtml_and_plain_text_are_read(content_type, text, tmp_path):
    block = page(html_of("good text"), content_type=content_type)
    assert texts(write(tmp_path, record("response", block), name="a.warc")) == [text]


def test_a_payload_that_the_crawler_cut_is_kept_and_counted(tmp_path):
    body = gzip.compress(html_of("first part. " + "More of it. " * 400))[:120]
    block = page(body, Content_Encoding="gzip")
    documents, account = read(
        write(tmp_path, record("response", block, WARC_Truncated="length"), name="a.warc")
    )
    assert documents[0].text.startswith("first part. More of it.")
    assert account.changed == {"warc_truncated": 1}


HTML = html_of("good text")
CHUNKED = b"".join(
    b"%x\r\n%s\r\n" % (len(HTML[i : i + 50]), HTML[i : i + 50]) for i in range(0, len(HTML), 50)
)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (gzip.compress(HTML), {"Content_Encoding": "gzip"}),
        (zlib.compress(HTML), {"Content_Encoding": "deflate"}),
        (zlib.compress(HTML, wbits=-15), {"Content_Encoding": "deflate"}),
        (zst(HTML), {"Content_Encoding": "zstd"}),
        (HTML, {"Content_Encoding": "gzip"}),
        (HTML, {"Content_Encoding": "br"}),
        (CHUNKED + b"0\r\n\r\n", {"Transfer_Encoding": "chunked"}),
        (CHUNKED, {"Transfer_Encoding": "chunked"}),
        (HTML, {"Transfer_Encoding": "chunked"}),
    ],
    ids=["gzip", "zlib", "deflate", "zstd", "no-gzip", "no-br", "chunked", "chunked-no-end", "not-chunked"],
)  # fmt: skip
def test_bodies_are_decoded_or_were_already(body, headers, tmp_path):
    assert texts(write(tmp_path, record("response", page(body, **headers)), name="a.warc")) == ["good text"]


@pytest.mark.parametrize(
    ("reason", "block"),
    [
        ("broken_http", b"<html>no status line</html>"),
        ("broken_http", b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"),
        ("broken_encoding", page(gzip.compress(HTML)[:40], Content_Encoding="gzip")),
        ("broken_encoding", page(gzip.compress(HTML)[:40] + b"\xff" * 60, Content_Encoding="gzip")),
        ("broken_chunks", page(CHUNKED[:-20], Transfer_Encoding="chunked")),
        ("broken_chunks", page(CHUNKED + b"zz", Transfer_Encoding="chunked")),
        ("http_bomb", page(gzip.compress(b"x" * (20 << 20)), Content_Encoding="gzip")),
        ("costly_page", page(b"<div>" * 30_000 + b"deep")),
        ("costly_page", page(b"<div " + b" ".join(b"a%d=b" % n for n in range(60_000)) + b">x</div>")),
    ],
)
def test_a_broken_response_costs_one_page(reason, block, tmp_path):
    path = write(
        tmp_path, gz(record("response", block, 1)), gz(record("response", page(HTML), 2)), name="a.warc.gz"
    )
    documents, account = read(path)
    assert [document.id for document in documents] == ["<urn:uuid:2>"]
    assert account.faults == {reason: 1}
    assert account.examples[reason][0].startswith("a.warc.gz, offset 0: ")
    with pytest.raises(UserError, match=rf"a.warc.gz, offset 0: .* \({reason}\)\. Mend or remove it"):
        read(path, Account(strict=True))


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


GZ, ZST = [gz(one) for one in RECORDS], [zst(one) for one in RECORDS]
SHORT = record("conversion", BODIES[1], 1, Content_Length=20)
LONG = record("conversion", BODIES[1], 1, Content_Length=len(BODIES[1]) + 50)
HUGE = record("conversion", BODIES[1], 1, Content_Length=10**30)
NONE = record("conversion", BODIES[1], 1, Content_Length=None)
ENDLESS = b"WARC/1.0\r\n" + b"a" * 200_000
DAMAGE = {
    "truncated": (".gz", GZ[1][:-40], "corrupt_gzip"),  # the next member is read as the rest of this one
    "flipped": (".gz", flipped(GZ[1], 120), "corrupt_gzip"),
    "checksum": (".gz", flipped(GZ[1], -6), "corrupt_gzip"),
    "no-magic": (".gz", flipped(GZ[1], 0), "garbage"),
    "garbage": (".gz", b"<garbage>" * 30, "garbage"),
    "other-member": (".gz", gz(b"no record at all\r\n" * 9), "garbage"),
    "length-short": (".gz", gz(SHORT), "content_length"),
    "length-long": (".gz", gz(LONG), "content_length"),
    "length-huge": (".gz", gz(HUGE), "content_length"),
    "length-none": (".gz", gz(NONE), "content_length"),
    "no-headers": (".gz", gz(b"WARC/1.0\r\n\r\n"), "content_length"),
    "endless-header": (".gz", gz(ENDLESS), "broken_header"),
    "zst-truncated": (".zst", ZST[1][:-40], "corrupt_zstd"),
    "zst-flipped": (".zst", flipped(ZST[1], 120), "corrupt_zstd"),
    "zst-no-magic": (".zst", flipped(ZST[1], 0), "garbage"),
    "plain-garbage": ("", b"<garbage>\r\n" * 30, "garbage"),
    "plain-length-short": ("", SHORT, "content_length"),
    "plain-length-long": ("", LONG, "content_length"),
    "plain-length-huge": ("", HUGE, "content_length"),
    "plain-length-beyond": ("", record("conversion", BODIES[1], 1, Content_Length=10**9), "truncated_record"),
    "plain-no-end-of-header": ("", ENDLESS + b"\r\n", "broken_header"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_costs_the_record_it_is_in_and_no_other(name, tmp_path):
    suffix, broken, reason = DAMAGE[name]
    packed = [PACK[suffix](one) for one in RECORDS]
    documents, account = read(
        write(tmp_path, packed[0], broken, packed[2], packed[3], name=f"a.warc.wet{suffix}")
    )
    assert [document.text for document in documents] == [TEXTS[0], TEXTS[2], TEXTS[3]]
    assert account.faults == {reason: 1}
    assert account.examples[reason][0].startswith(f"a.warc.wet{suffix}, offset {len(packed[0]):,}: ")
    assert documents[1].offset == len(packed[0]) + len(broken)
    assert documents[1].num_bytes == len(packed[2])


@pytest.mark.parametrize("name", ["truncated", "zst-truncated", "plain-length-long"])
def test_in_strict_mode_damage_is_an_error_that_names_file_and_place(name, tmp_path):
    suffix, broken, _ = DAMAGE[name]
    path = write(tmp_path, PACK[suffix](RECORDS[0]), broken, PACK[suffix](RECORDS[2]), name=f"a.wet{suffix}")
    with pytest.raises(UserError, match=rf"^a.wet{suffix}, offset \d+: .*it is skipped and counted\.$"):
        read(path, Account(strict=True))


@pytest.mark.parametrize("suffix", PACK)
def test_a_file_that_ends_within_a_record_loses_only_that(suffix, tmp_path):
    packed = [PACK[suffix](one) for one in RECORDS]
    documents, account = read(write(tmp_path, b"".join(packed)[:-30], name=f"a.wet{suffix}"))
    assert [document.text for document in documents] == TEXTS[:3]
    assert sum(account.faults.values()) == 1


@pytest.mark.parametrize("suffix", PACK)
def test_a_damaged_file_in_one_member_gives_all_that_lies_before_the_damage(suffix, tmp_path):
    whole = PACK[suffix](b"".join(RECORDS))
    documents, account = read(write(tmp_path, whole[:-30], name=f"a.wet{suffix}"))
    # Zstandard gives nothing of a block before its end.
    assert [document.text for document in documents] == TEXTS[: {"": 3, ".gz": 1, ".zst": 0}[suffix]]
    assert sum(account.faults.values()) == 1


def test_what_other_readers_stop_at_is_read_over(tmp_path):
    lf = record("conversion", BODIES[1], 1).replace(b"\r\n", b"\n")
    bare = RECORDS[2][:-4]
    folded = RECORDS[3].replace(b"WARC-Date: ", b"X-Other: a\r\n b\r\nwarc-date:  ")
    skippable = b"\x52\x2a\x4d\x18" + (6).to_bytes(4, "little") + b"hidden"
    parts = [GZ[0], gz(b""), gz(lf), gz(bare), gz(folded), b"\0" * 512]
    documents, account = read(write(tmp_path, *parts))
    assert [document.text for document in documents] == TEXTS
    assert [document.date for document in documents] == ["2024-05-18T01:58:10Z"] * 4
    assert not account.faults
    assert (
        texts(write(tmp_path, skippable, ZST[0], zst(b""), skippable, ZST[1], name="a.wet.zst")) == TEXTS[:2]
    )


def test_records_of_one_member_have_places_in_its_text(tmp_path):
    documents, account = read(write(tmp_path, gz(b"".join(RECORDS))))
    starts = [sum(map(len, RECORDS[:n])) for n in range(4)]
    assert [(document.text, document.offset) for document in documents] == list(zip(TEXTS, starts))
    assert [document.num_bytes for document in documents] == [len(one) for one in RECORDS]
    assert not account.faults


def test_records_that_reach_over_members_are_read(tmp_path):
    whole = b"".join(RECORDS)
    blocks = [gz(whole[place : place + 100]) for place in range(0, len(whole), 100)]
    documents, account = read(write(tmp_path, *blocks))
    assert [document.text for document in documents] == TEXTS
    assert not account.faults


def test_a_dictionary_at_the_start_of_a_zst_file_is_used(tmp_path):
    """As in .warc.zst files whose records share one."""
    content = b"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID: <urn:uuid:" * 4
    dictionary = zstandard.ZstdCompressionDict(content)
    compressor = zstandard.ZstdCompressor(dict_data=dictionary)
    frame = b"\x5d\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content
    packed = [compressor.compress(one) for one in RECORDS]
    documents, account = read(write(tmp_path, frame, *packed, name="a.warc.zst"))
    assert [document.text for document in documents] == TEXTS
    assert documents[0].offset == len(frame)
    assert not account.faults


def test_a_long_record_is_skipped_whole_in_small_memory(tmp_path):
    long = record("conversion", b"word " * (8 << 20), 1)
    for suffix in ("", ".gz", ".zst"):
        packed = [PACK[suffix](one) for one in (RECORDS[0], long, RECORDS[2])]
        path = write(tmp_path, *packed, name=f"a.wet{suffix}")
        tracemalloc.start()
        documents, account = read(path, max_document_bytes=1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert [document.text for document in documents] == [TEXTS[0], TEXTS[2]]
        assert account.faults == {"too_long": 1}
        assert peak < (48 if suffix == ".zst" else 24) << 20, (
            f"{suffix}: {peak:,} bytes for a record of {len(long):,}"
        )


def test_a_long_record_of_another_kind_is_no_fault(tmp_path):
    video = record("response", page(b"\0" * (3 << 20), content_type="video/mp4"), 1)
    documents, account = read(write(tmp_path, gz(video), GZ[2]), max_document_bytes=1 << 20)
    assert [document.text for document in documents] == [TEXTS[2]]
    assert account.dropped == {"not_html": 1}


def test_a_bomb_is_left_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "FREE_BYTES", 4 << 20)
    bomb = gz(record("conversion", b"\0" * (64 << 20), 1))
    path = write(tmp_path, GZ[0], bomb, GZ[2])
    tracemalloc.start()
    documents, account = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [document.text for document in documents] == [TEXTS[0], TEXTS[2]]
    assert account.faults == {"gzip_bomb": 1}
    assert peak < 48 << 20


def test_an_empty_file_is_counted(tmp_path):
    documents, account = read(write(tmp_path, b""))
    assert (documents, account.dropped) == ([], {"empty_file": 1})


def test_bytes_that_are_not_utf8_are_replaced_and_counted(tmp_path):
    documents, account = read(write(tmp_path, gz(record("conversion", b"caf\xe9 \0here"))))
    assert documents[0].text == "caf\ufffd here"
    assert account.changed == {"invalid_utf8": 1, "nul": 1}


def test_zlib_stands_in_where_isal_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "isal", None)
    frames._inflate.cache_clear()
    try:
        for name, (suffix, broken, reason) in DAMAGE.items():
            if suffix == ".gz":
                documents, account = read(write(tmp_path, GZ[0], broken, GZ[2], name=f"{name}.wet.gz"))
                assert [document.text for document in documents] == [TEXTS[0], TEXTS[2]]
                assert account.faults == {reason: 1}
    finally:
        frames._inflate.cache_clear()
