"""Files of records: every kind is read with its places, and what is malformed is named with file and line."""

import gzip
import json
import sys
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from jaxlm.corpus.inputs import RECORDS, find_inputs
from jaxlm.corpus.records import find_records, read_records
from jaxlm.corpus.text import Tally
from jaxlm.types import UserError

ROWS = [{"q": "one", "n": 1}, {"q": "two, é\n", "n": 2}, {"q": "", "n": None}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def read(path, invalid_utf8="strict", tally=None):
    tally = Tally() if tally is None else tally
    return [
        record
        for file in find_records(str(path), tally)
        for record in read_records(file, invalid_utf8, tally)
    ]


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("a.jsonl", LINES.encode(), [("line", 1), ("line", 2), ("line", 3)]),
        ("a.ndjson", b"\xef\xbb\xbf\n" + LINES.encode(), [("line", 2), ("line", 3), ("line", 4)]),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0), [("line", 1), ("line", 2), ("line", 3)]),
        ("a.jsonl.zst", zstandard.compress(LINES.encode()), [("line", 1), ("line", 2), ("line", 3)]),
        ("a.json", json.dumps(ROWS).encode(), [("line", 1)] * 3),
        ("a.json", json.dumps(ROWS, indent=1).encode(), [("line", 2), ("line", 6), ("line", 10)]),
        ("a.json", json.dumps({"v": {"x": []}, "data": ROWS, "n": 3}, indent=1).encode(),
         [("line", 6), ("line", 10), ("line", 14)]),
        ("a.json", LINES.encode(), [("line", 1), ("line", 2), ("line", 3)]),
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0), [("line", 1)] * 3),
    ],
)  # fmt: skip
def test_json_in_its_forms(tmp_path, name, content, places):
    found = read(write(tmp_path, name, content))
    assert [record.fields for record in found] == ROWS
    assert [(record.unit, record.number) for record in found] == places
    assert found[0].where == f"{tmp_path}/{name}, {places[0][0]} {places[0][1]}"


def test_parquet(tmp_path):
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=2)
    found = read(tmp_path / "a.parquet")
    assert [record.fields for record in found] == ROWS
    assert [(record.unit, record.number) for record in found] == [("row", 1), ("row", 2), ("row", 3)]


@pytest.mark.parametrize(("name", "comma"), [("a.csv", ","), ("a.tsv", "\t")])
def test_csv_with_quotes_and_newlines(tmp_path, name, comma):
    text = f'q{comma}label\n"two{comma} ""é""\nlines"{comma}x\n\nlast{comma}y\n'
    found = read(write(tmp_path, name, text))
    assert [r.fields for r in found] == [
        {"q": f'two{comma} "é"\nlines', "label": "x"},
        {"q": "last", "label": "y"},
    ]
    assert [record.number for record in found] == [2, 5]


def test_folders_and_globs(tmp_path):
    for name in ("b.jsonl", "a.json", "notes.txt"):
        write(tmp_path, name, LINES if name != "a.json" else json.dumps(ROWS))
    tally = Tally()
    assert len(read(tmp_path, tally=tally)) == 6
    assert tally.dropped == {"other_file": 1}
    assert len(read(tmp_path / "*.jsonl")) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"q": 1}\n[1]\n', "a.jsonl, line 2: a record has to be an object with named fields, found a list"),
        ("a.jsonl", '{"q": 1}\n"x"\n', "a.jsonl, line 2: .*found a string"),
        ("a.jsonl", '{"q": 1}\n\n{"q": \n', "a.jsonl, line 3: not valid JSON"),
        ("a.jsonl", b'{"q": "\xff"}\n', "a.jsonl, line 1: byte 0xff is not valid UTF-8"),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1: not valid JSON"),
        ("a.json", '[{"q": 1},\n{"q": 2}', "a.json, line 2: not valid JSON"),
        ("a.json", '[{"q": 1},\n 7]', "a.json, line 2: a record has to be an object with named fields, found a number"),
        ("a.json", '{"a": [], "b": []}', r"an object with one array; this object has 2 \('a', 'b'\)"),
        ("a.json", '{"a": 1}', r"this object has 0 \(none\)"),
        ("a.json", "7", "has to hold an array of records, found a number"),
        ("a.json", b'[{"q":\n "\xe9"}]', "a.json, line 2: byte 0xe9"),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-12], "a.jsonl.gz is truncated or damaged"),
        ("a.jsonl.zst", zstandard.compress(LINES.encode())[:-3], "a.jsonl.zst is truncated or damaged"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", r"a.csv, line 3: 3 values for 2 columns \(a, b\)"),
        ("a.csv", 'a,b\n1,"2\n', "a.csv, line 2: not valid CSV"),
        ("a.csv", "a,a\n1,2\n", "a.csv, line 1: the columns need names"),
        ("a.csv", b"a,b\n1,\xff\n", "a.csv, line 2: byte 0xff"),
        ("a.parquet", b"PAR1" + b"\0" * 40, "a.parquet is damaged"),
        ("a.parquet.gz", b"x", "parquet is compressed inside"),
        ("a.docx", b"x", "a.docx is of no readable kind: .json, .jsonl, .csv"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_named(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, name, content))


def test_parquet_with_text_that_is_not_utf8(tmp_path):
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]
    )
    pa.parquet.write_table(pa.table({"q": bad}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet, rows 1 to 1: a text is not valid UTF-8 \(byte 0xff\)"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("invalid_utf8", ["skip", "replace"])
def test_invalid_utf8_can_be_skipped_or_replaced_and_is_counted(tmp_path, invalid_utf8):
    tally = Tally()
    found = read(write(tmp_path, "a.jsonl", b'{"q": "\xff"}\n{"q": "b"}\n'), invalid_utf8, tally)
    assert [r.fields["q"] for r in found] == (["b"] if invalid_utf8 == "skip" else ["\ufffd", "b"])
    assert (tally.dropped + tally.changed)["invalid_utf8"] == 1


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.json does not exist"):
        find_records(str(tmp_path / "nowhere.json"), Tally())
    with pytest.raises(UserError, match=r"matches no file of a readable kind: .json"):
        find_records(str(tmp_path), Tally())


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the hub: `files` are in its data set; `calls` what was asked of it."""
    state = SimpleNamespace(files={}, calls=[], error=None)

    def snapshot_download(name, **options):
        state.calls.append((name, options))
        if state.error:
            raise state.error
        for file, content in state.files.items():
            path = tmp_path / "snapshot" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return str(tmp_path / "snapshot")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    return state


def test_a_data_set_of_the_hub(hub):
    hub.files = {"data/train-0.jsonl": LINES, "data/test-0.jsonl": LINES, "README.md": "x"}
    assert len(read("hf://datasets/owner/name")) == 3  # what is called train
    assert hub.calls[0][0] == "owner/name"
    assert hub.calls[0][1]["repo_type"] == "dataset"
    assert hub.calls[0][1]["revision"] is None
    found = read("hf://datasets/owner/name@v1/data/test-0.jsonl")
    assert {record.file.rsplit("/", 1)[-1] for record in found} == {"test-0.jsonl"}
    assert hub.calls[1][1]["revision"] == "v1"
    assert hub.calls[1][1]["allow_patterns"] == ["data/test-0.jsonl"]
    assert len(read("hf://datasets/owner/name/data/*.jsonl")) == 6


def test_a_data_set_that_cannot_be_had_is_named(hub, monkeypatch):
    with pytest.raises(UserError, match="is written hf://datasets/OWNER/NAME"):
        read("hf://owner/name")
    hub.files = {"train.jsonl": LINES}
    with pytest.raises(UserError, match="the data set has no such file of a readable kind"):
        read("hf://datasets/owner/name/test.jsonl")
    hub.error = OSError("offline mode is enabled\nmore")
    with pytest.raises(UserError, match=r"could not be fetched .*\(OSError: offline mode is enabled\)"):
        read("hf://datasets/owner/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'jaxlm\[hf\]'"):
        read("hf://datasets/owner/name")


def test_texts_and_records_are_other_kinds(tmp_path):
    write(tmp_path, "a.json", "[]")
    with pytest.raises(UserError, match="no readable kind"):
        find_inputs([str(tmp_path / "a.json")], Tally())
    assert find_inputs([str(tmp_path / "a.json")], Tally(), RECORDS)[0].format == "json"
