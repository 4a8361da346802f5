"""Records as documents: columns to fields, and what one bad line costs."""

import bz2
import datetime
import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from jaxlm.corpus.raw.document import Account, RawDocument
from jaxlm.corpus.raw.files import RawFile, RawOptions, RawPart
from jaxlm.corpus.raw.rows import read_rows
from jaxlm.types import UserError


def rows(path, content, *, kind=None, compression="", options=None, strict=False, cut=None):
    path.write_bytes(content)
    file = RawFile(str(path), path.name, kind or path.suffix[1:], compression, len(content), "")
    cuts = [0, *(cut or []), len(content)]
    account = Account(strict=strict)
    parts = [RawPart(file, *ends) for ends in zip(cuts, cuts[1:])]
    return [d for part in parts for d in read_rows(part, options or RawOptions(), account)], account


FULL = {
    "text": "ঢাকা শহর।\r\nA line.",
    "url": "https://a.org/1",
    "score": "4",
    "id": 17,
    "created": "2020-01-02",
    "title": " A\n title ",
    "license": "CC0",
    "lang": "bn",
    "author": "B",
    "metadata": {"x": [1]},
}


def test_other_columns_become_what_is_known_of_a_document(tmp_path):
    line = json.dumps(FULL).encode()
    (document,), account = rows(tmp_path / "a.jsonl", line)
    assert document == RawDocument(
        text="ঢাকা শহর।\nA line.",
        id="17",
        file="a.jsonl",
        offset=0,
        num_bytes=len(line),
        url="https://a.org/1",
        date="2020-01-02",
        licence="CC0",
        title="A title",
        language="bn",
        score=4.0,
        author="B",
    )
    assert account.changed == {"crlf": 1}


def test_a_document_without_an_id_has_its_place(tmp_path):
    content = b'\xef\xbb\xbf{"text": "a"}\n\n{"text": "b"}\n'
    documents, account = rows(tmp_path / "a.jsonl", content)
    assert [(d.id, d.offset, d.num_bytes) for d in documents] == [
        ("a.jsonl#0", 0, 17),
        ("a.jsonl#18", 18, 14),
    ]
    assert content[18:32] == b'{"text": "b"}\n'
    assert account.dropped == {"blank_line": 1}


def test_slices_between_lines_are_the_file(tmp_path):
    lines = [json.dumps({"text": f"text {i}"}).encode() + b"\n" for i in range(20)]
    whole, _ = rows(tmp_path / "a.jsonl", b"".join(lines))
    for at in range(1, 20):
        cut = [len(b"".join(lines[:at]))]
        assert rows(tmp_path / "a.jsonl", b"".join(lines), cut=cut)[0] == whole


@pytest.mark.parametrize(
    ("compression", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("zst", zstandard.compress)]
)
def test_compressed_lines(tmp_path, compression, pack):
    content = pack(b'{"text": "a"}\n{"text": "b"}')
    documents, _ = rows(tmp_path / "a.jsonl.x", content, kind="jsonl", compression=compression)
    assert [d.text for d in documents] == ["a", "b"]
    documents, account = rows(tmp_path / "a.jsonl.x", content[:-6], kind="jsonl", compression=compression)
    assert [d.text for d in documents] in ([], ["a", "b"])
    assert account.faults == {f"truncated_{compression}": 1}


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, zstandard.compress])
def test_compressed_members_one_after_the_other(tmp_path, pack):
    lines = [
        json.dumps({"text": random.Random(i).randbytes(3000 + i).hex()}).encode() + b"\n" for i in range(5)
    ]
    kind = {gzip.compress: "gz", bz2.compress: "bz2"}.get(pack, "zst")
    content = b"".join(map(pack, lines)) + bytes(100 if kind == "gz" else 0)
    documents, account = rows(tmp_path / "a.jsonl.x", content, kind="jsonl", compression=kind)
    assert [d.text for d in documents] == [json.loads(line)["text"] for line in lines]
    assert account.faults == {}


def test_a_bad_line_is_a_fault_and_the_next_is_read(tmp_path):
    bad = [b"{not json", b"[1]", b'{"other": 1}', b'{"text": 3}',
           b"[" * 5000, b'{"text": "' + b"9" * 9000 + b'", "n": 1e999}',
           b"1" * 5000]  # fmt: skip
    content = b"\n".join(
        [
            b'{"text": "a"}',
            *bad,
            b'{"text": "caf\xe9"}',
            b'{"text": "\\ud83d"}',
            b'{"text": null}',
            b'{"text": " "}',
            b'{"text": "z"}',
        ]
    )
    documents, account = rows(tmp_path / "a.jsonl", content)
    assert [d.text[:6] for d in documents] == ["a", "999999", "caf\ufffd", "\ufffd", "z"]
    assert account.faults == {"broken_json": 4, "no_text": 2}
    assert (account.dropped, account.changed) == ({"null": 1, "empty": 1}, {"invalid_utf8": 2})
    assert account.examples["broken_json"][0].startswith(
        "a.jsonl, line 2: not valid JSON (Expecting property name"
    )
    assert account.examples["no_text"] == [
        "a.jsonl, line 4: no key 'text' in this row, only 'other' (text_key names the text's)",
        "a.jsonl, line 5: 'text' is a number, not a text",
    ]
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: not valid JSON.*broken_json"):
        rows(tmp_path / "a.jsonl", content, strict=True)


def test_a_line_of_fifty_megabytes_is_skipped(tmp_path):
    content = b'{"text": "a"}\n{"text": "' + b"x" * 50_000_000 + b'"}\n{"text": "b"}\n'
    documents, account = rows(tmp_path / "a.jsonl", content)
    assert ([d.text for d in documents], account.faults) == (["a", "b"], {"too_long": 1})
    documents, account = rows(tmp_path / "a.jsonl", content, options=RawOptions(max_document_bytes=1000))
    assert ([d.text for d in documents], account.faults) == (["a", "b"], {"too_long": 1})
    assert account.examples["too_long"] == ["a.jsonl, line 2: the line has more than 8,000 bytes"]


def test_links_with_texts_follow_score_and_address(tmp_path):
    lines = [
        {"text": "a", "url": "http://www.a.org/x", "score": 3},
        {"text": "b", "url": "https://a.org/x/?utm_source=y", "score": 9},
        {"text": "c", "url": ["https://c.org", "https://a.org/x"], "score": 5},
        {"text": "d", "url": "https://d.org https://c.org", "score": 5},
        {"text": "e", "url": "https://e.org", "score": 2.9},
        {"text": "f", "url": "https://f.org"},
        {"text": "g", "score": 4},
        {"text": "h", "score": 4},
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    documents, account = rows(tmp_path / "a.jsonl", content, options=RawOptions(min_score=3))
    assert [(d.text, d.url) for d in documents] == [
        ("a", "http://www.a.org/x"),
        ("c", "https://c.org"),
        ("d", "https://d.org"),
        ("g", None),
        ("h", None),
    ]
    assert account.dropped == {"duplicate_url": 1, "low_score": 2}
    # Without scores these are no links but texts, of which a page may have several.
    plain = "\n".join(json.dumps({"text": t, "url": "http://a.org"}) for t in "ab").encode()
    assert len(rows(tmp_path / "b.jsonl", plain)[0]) == 2


def test_keys_are_named_by_options(tmp_path):
    line = json.dumps({"body": "a", "link": "http://a.org", "karma": 5}).encode()
    (document,), _ = rows(
        tmp_path / "a.jsonl",
        line,
        options=RawOptions(text_key="body", url_key="link", score_key="karma", min_score=5),
    )
    assert (document.text, document.url, document.score) == ("a", "http://a.org", 5.0)


def test_json_is_an_array_or_lines_and_ends_where_it_is_damaged(tmp_path):
    documents, _ = rows(tmp_path / "a.json", b'{"data": [{"text": "a"}, {"text": "b", "id": "x"}]}')
    assert [(d.text, d.id) for d in documents] == [("a", "a.json#1"), ("b", "x")]
    documents, account = rows(tmp_path / "a.json", b'[{"text": "a"}, {"text"')
    assert (documents, account.faults) == ([], {"broken_json": 1})
    with pytest.raises(UserError, match=r"a\.json.*broken_json"):
        rows(tmp_path / "a.json", b"[", strict=True)


def test_csv_has_quotes_and_bad_rows(tmp_path):
    content = 'text,url,score\n"a, ""b""\nc",http://a.org,3\nonly one\nঢাকা,,\n"x"y,http://b.org,1\nlast,http://c.org,2\n'
    documents, account = rows(tmp_path / "a.csv", content.encode())
    assert [(d.text, d.url, d.score) for d in documents] == [
        ('a, "b"\nc', "http://a.org", 3.0),
        ("ঢাকা", None, None),
        ("last", "http://c.org", 2.0),
    ]
    assert account.faults == {"broken_csv": 2}
    assert account.examples["broken_csv"] == [
        "a.csv, line 4: 1 values for 3 columns",
        "a.csv, line 6: not valid CSV (',' expected after '\"')",
    ]
    documents, account = rows(tmp_path / "a.tsv", b"a\ttext\n1\tx, y\n")
    assert [d.text for d in documents] == ["x, y"]
    documents, account = rows(tmp_path / "a.csv", b"a,b\n1,2\n3,4\n")
    assert (documents, account.faults) == ([], {"no_text": 1})
    documents, account = rows(tmp_path / "a.csv", b"text,text\n1,2\n")
    assert (documents, account.faults) == ([], {"broken_csv": 1})


def test_parquet_columns(tmp_path):
    table = pa.table(
        {
            "text": pa.array(["a", None, "c"]),
            "url": [["http://a.org", "http://b.org"], [], None],
            "date": [datetime.datetime(2020, 1, 2, 3, 4)] * 3,
            "big": [[1.0] * 10] * 3,
        }
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    content = (tmp_path / "t.parquet").read_bytes()
    documents, account = rows(tmp_path / "a.parquet", content)
    assert [(d.text, d.id, d.url, d.date) for d in documents] == [
        ("a", "a.parquet#1", "http://a.org", "2020-01-02T03:04:00"),
        ("c", "a.parquet#3", None, "2020-01-02T03:04:00"),
    ]
    assert account.dropped == {"null": 1}
    documents, account = rows(tmp_path / "a.parquet", content, options=RawOptions(text_key="big"))
    assert account.faults == {"no_text": 3}
    documents, account = rows(tmp_path / "a.parquet", content, options=RawOptions(text_key="none"))
    assert (documents, account.faults) == ([], {"no_text": 1})
    documents, account = rows(tmp_path / "a.parquet", content[:-20])
    assert (documents, account.faults) == ([], {"broken_parquet": 1})


def test_parquet_text_that_is_not_utf8_and_a_damaged_row_group(tmp_path):
    raw = pa.array([b"ok", b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": raw}), tmp_path / "t.parquet")
    documents, account = rows(tmp_path / "a.parquet", (tmp_path / "t.parquet").read_bytes())
    assert [d.text for d in documents] == ["ok", "caf\ufffd"]
    table = pa.table({"text": [f"text {i} " * 20 for i in range(30)]})
    pq.write_table(
        table, tmp_path / "t.parquet", row_group_size=10, compression="none", write_page_checksum=True
    )
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    at = content.index(b"text 15 ")
    content[at] ^= 255
    documents, account = rows(tmp_path / "a.parquet", bytes(content))
    assert [int(d.text.split()[1]) for d in documents] == [*range(10), *range(20, 30)]
    assert account.faults == {"broken_parquet": 1}


def test_empty_and_missing_files(tmp_path):
    assert rows(tmp_path / "a.jsonl", b"")[1].dropped == {"empty_file": 1}
    for kind in ("jsonl", "json", "csv", "parquet"):
        file = RawFile(str(tmp_path / "none"), "none", kind, "", 9, "")
        with pytest.raises(UserError, match="none cannot be read"):
            list(read_rows(RawPart(file, 0, 9), RawOptions(), Account()))


@pytest.mark.parametrize(
    ("kind", "content"), [("jsonl", b'{"text": "a"}\n'), ("json", b'[{"text": "a"}]'), ("csv", b"text\na\n")]
)
def test_the_size_of_a_file_need_not_be_known(tmp_path, kind, content):
    (tmp_path / "a").write_bytes(content)
    file = RawFile(str(tmp_path / "a"), "a", kind, "", 0, "")
    assert [d.text for d in read_rows(RawPart(file, 0, 0), RawOptions(), Account())] == ["a"]


def test_a_column_without_a_name_is_an_index(tmp_path):
    """pandas writes one before all others."""
    documents, account = rows(tmp_path / "a.csv", b",text,\n0,One.,x\n1,Two.,y\n", kind="csv")
    assert [document.text for document in documents] == ["One.", "Two."]
    assert not account.faults
