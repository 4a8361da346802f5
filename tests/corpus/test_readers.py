"""Promises of the readers: every kind of bad input is an error that names its place, or a counted drop."""

import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.corpus import inputs
from jaxlm.corpus.inputs import find_inputs, fingerprint, plan_units
from jaxlm.corpus.readers import read_documents
from jaxlm.corpus.text import ReadOptions, Tally
from jaxlm.data import files
from jaxlm.types import UserError


def read(*paths, unit_bytes=None, tally=None, **options):
    """All documents below the paths, in order."""
    tally = tally if tally is not None else Tally()
    options = ReadOptions(**options)
    units = plan_units(find_inputs([str(path) for path in paths], tally), options, unit_bytes)
    return [text for unit in units for part in unit for text in read_documents(part, options, tally)]


def message_of(*paths, **options):
    with pytest.raises(UserError) as caught:
        read(*paths, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def write_records(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


TEXTS = ["the lion", "  is in\n\tthe forest \n", "ক্‌ষ 🇧🇩", "a\u2028b\x85c\x0cd\r"]


def test_all_formats_hold_the_same_documents(tmp_path):
    rows = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
    content = write_jsonl(tmp_path / "a.jsonl", rows).read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content, mtime=0))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(content))
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet", row_group_size=2)
    write_records(tmp_path / "e.arrayrecord", [text.encode() for text in TEXTS])
    write_records(tmp_path / "f.arrayrecord", [json.dumps(row).encode() for row in rows])
    for name in sorted(os.listdir(tmp_path)):
        assert read(tmp_path / name) == TEXTS, name
    assert read(tmp_path) == TEXTS * 6


def test_a_txt_file_is_one_document_or_its_paragraphs_or_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\none\ntwo\n \t\n\nthree  \n")
    assert read(path) == ["\n\none\ntwo\n \t\n\nthree  \n"]
    assert read(path, document="paragraph") == ["one\ntwo", "three  "]
    tally = Tally()
    assert read(path, document="line", tally=tally) == ["one", "two", "three  "]
    assert tally.dropped == {"empty": 4}


@pytest.mark.parametrize("document", ["line", "paragraph"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet", "arrayrecord"])
@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(
        st.text(st.sampled_from("ab \r\u2028é\ufeff"), min_size=1, max_size=30), min_size=1, max_size=30
    ),
    gaps=st.lists(st.integers(1, 4), min_size=30, max_size=30),
    unit_bytes=st.integers(1, 200),
)
def test_cutting_a_file_into_units_loses_and_repeats_nothing(
    tmp_path_factory, kind, document, texts, gaps, unit_bytes
):
    path = tmp_path_factory.mktemp("cut") / f"a.{kind}"
    if kind == "txt":
        path.write_bytes("".join(text + "\n" * gap for text, gap in zip(texts, gaps)).encode())
    elif kind == "jsonl":
        write_jsonl(path, [{"text": text} for text in texts])
    elif kind == "parquet":
        pyarrow.parquet.write_table(pa.table({"text": texts}), path, row_group_size=gaps[0])
    else:
        write_records(path, [text.encode() for text in texts])
    whole = read(path, document=document, unit_bytes=1 << 30)
    assert read(path, document=document, unit_bytes=unit_bytes) == whole
    if kind != "txt":
        assert whole == [text.replace("\r\n", "\n") for text in texts if not text.isspace()]


def test_a_large_file_is_cut_and_small_ones_go_together(tmp_path):
    write_jsonl(tmp_path / "large.jsonl", [{"text": "x" * 1000}] * 100)
    for i in range(50):
        (tmp_path / f"small{i:02d}.txt").write_text("y" * 100)
    units = plan_units(find_inputs([str(tmp_path)], Tally()), ReadOptions(), 10_000)
    assert 10 <= len(units) <= 13
    assert len(units[-1]) > 20
    assert all(sum(part.num_bytes for part in unit) <= 12_000 for unit in units)


def test_folders_are_read_in_order_of_names_without_hidden_and_other_files(tmp_path):
    for name in ("b.txt", "a/z.txt", "a.txt", ".hidden/x.txt", ".x.txt", "a/B.TXT", "README.md", "data.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "ring").symlink_to(tmp_path, target_is_directory=True)
    tally = Tally()
    assert read(tmp_path, tally=tally) == ["a.txt", "a/B.TXT", "a/z.txt", "b.txt"]
    assert tally.dropped == {"other_file": 2, "hidden": 2, "linked_folder": 1}
    tally = Tally()
    assert read(tmp_path / "*", tally=tally) == ["a.txt", "b.txt"]
    assert tally.dropped == {"other_file": 2, "folder": 2}  # `a` and `ring`: only ** goes into folders
    assert read(tmp_path / "*.txt") == ["a.txt", "b.txt"]
    assert read(tmp_path / "**" / "*.txt") == ["a.txt", "a/z.txt", "b.txt"]
    assert read(tmp_path / "b.txt", tmp_path) == ["b.txt", "a.txt", "a/B.TXT", "a/z.txt"]


def test_links_to_nothing_and_pipes_are_named_and_do_not_hang(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.txt").symlink_to("a.txt")
    assert read(tmp_path) == ["x", "x"]
    (tmp_path / "b.txt").unlink()
    for target in ("nowhere.txt", "b.txt"):
        (tmp_path / "b.txt").symlink_to(target)
        for path in (tmp_path, tmp_path / "*.txt"):
            assert f"{tmp_path}/b.txt is a link to nothing" in message_of(path)
        (tmp_path / "b.txt").unlink()
    os.mkfifo(tmp_path / "b.txt")
    for path in (tmp_path, tmp_path / "*.txt", tmp_path / "b.txt"):
        assert f"{tmp_path}/b.txt is no file but a pipe" in message_of(path)


def test_a_file_that_may_not_be_read_is_named_before_any_work(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("x")
    found = find_inputs([str(path)], Tally())

    def denied(file, *_):
        raise PermissionError(13, "Permission denied", file)

    monkeypatch.setattr(inputs, "open", denied, raising=False)
    with pytest.raises(UserError, match=r"a\.txt cannot be read \(Permission denied\)"):
        fingerprint(found)


def test_storage_that_cannot_be_reached_is_named(monkeypatch):
    assert "nope:// is no known kind of storage" in message_of("nope://bucket/a.txt")
    errors = [
        (ImportError("Please install gcsfs"), "needs a package that is not installed"),
        (OSError("Forbidden\nlong story"), r"cannot be reached (OSError: Forbidden): check"),
    ]
    for error, part in errors:

        def fail(path, error=error):
            raise error

        monkeypatch.setattr(files.epath, "Path", fail)
        assert part in message_of("gs://bucket/a.txt")


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    (tmp_path / "a[1].txt").write_text("x")
    assert read(tmp_path / "a[1].txt") == ["x"]


def test_paths_that_hold_nothing_are_named(tmp_path):
    assert "does not exist" in message_of(tmp_path / "no.txt")
    assert "matches no file" in message_of(tmp_path / "*.txt")
    assert "matches no file" in message_of(tmp_path)
    (tmp_path / "a.csv").write_text("x")
    assert "a.csv is of no readable kind" in message_of(tmp_path / "a.csv")
    assert "did you mean 'topics'" in message_of("embedded:topic")
    assert "is empty" in message_of("")
    (tmp_path / "b.txt").write_text("x")
    (tmp_path / "manifest.json").write_text('{"files": 1}')  # others write such files too
    assert read(tmp_path) == ["x"]
    (tmp_path / "manifest.json").write_text('{"tokenizer_sha256": "0"}')
    assert "corpus of tokens already" in message_of(tmp_path)
    assert "corpus of tokens already" in message_of(tmp_path.parent)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet", "arrayrecord"])
def test_invalid_utf8_is_an_error_with_its_place_or_replaced_or_skipped(tmp_path, kind):
    good, bad = b"fine", b"caf\xe9 noir"
    path = tmp_path / f"a.{kind}"
    if kind == "txt":
        path.write_bytes(good + b"\n" + bad + b"\n")
    elif kind == "jsonl":
        path.write_bytes(b'{"text": "fine"}\n{"text": "' + bad + b'"}\n')
    elif kind == "parquet":
        column = pa.array([good, bad], pa.binary()).view(pa.utf8())
        pyarrow.parquet.write_table(pa.table({"text": column}), path)
    else:
        write_records(path, [good, bad])
    place = {"txt": f"{path}:2", "jsonl": f"{path}:2", "parquet": f"{path} row 2"}.get(
        kind, f"{path} record 1"
    )
    message = message_of(path, document="line")
    assert place in message
    assert "0xe9" in message
    assert "invalid_utf8=replace" in message
    tally = Tally()
    assert read(path, document="line", invalid_utf8="replace", tally=tally) == ["fine", "caf\ufffd noir"]
    assert tally.changed == {"invalid_utf8": 1}
    tally = Tally()
    assert read(path, document="line", invalid_utf8="skip", tally=tally) == ["fine"]
    assert tally.dropped == {"invalid_utf8": 1}


def test_the_line_of_an_error_counts_from_the_start_of_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n' * 700 + b'{"text": 5}\n' + b'{"text": "x"}\n' * 100)
    assert f"{path}:701:" in message_of(path, unit_bytes=1000)
    (tmp_path / "b.txt").write_bytes(b"one\n\ntwo\nthr\xffee\n")
    assert "b.txt:4:" in message_of(tmp_path / "b.txt")
    assert "b.txt:4:" in message_of(tmp_path / "b.txt", document="paragraph")


def test_utf16_is_recognised(tmp_path):
    (tmp_path / "a.txt").write_text("hello", encoding="utf-16")
    assert "UTF-16" in message_of(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"body": "x", "id": 1}', ["no key 'text'", "'body', 'id'", "text_key"]),
        ('{"text": 5}', ["'text' must be a string", "a number"]),
        ('{"text": ["x"]}', ["'text' must be a string", "a list"]),
        ('["x"]', ["expected a JSON object", "a list"]),
        ('"x"', ["expected a JSON object", "a string"]),
        ('{"text": "x"', ["not valid JSON", "column"]),
        ("plain text", ["not valid JSON"]),
        ('{"text": "x', ["(Invalid control character at column 12)"]),
        ('{"text": "x", "n": ' + "9" * 5000 + "}", ["not valid JSON (Exceeds the limit"]),
        ('{"text": "x", "n": ' + "[" * 100_000 + "]" * 100_000 + "}", ["not valid JSON (maximum recursion"]),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_bad_json_row_is_an_error_with_its_line_and_what_is_there(tmp_path, line, parts):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    message = message_of(path)
    assert f"{path}:2:" in message
    for part in parts:
        assert part in message


def test_text_key_names_another_key(tmp_path):
    assert read(write_jsonl(tmp_path / "a.jsonl", [{"body": "x"}]), text_key="body") == ["x"]


def test_half_a_character_in_json_follows_the_policy(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\ud83d b"}\n{"text": "\\ud83d\\ude00"}\n')
    message = message_of(path)
    assert f"{path}:1" in message
    assert "ud83d" in message
    assert read(path, invalid_utf8="replace") == ["a\ufffd b", "😀"]
    assert read(path, invalid_utf8="skip") == ["😀"]


def test_what_is_dropped_or_changed_is_counted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "one\\r\\ntwo"}\r\n\n{"text": ""}\n{"text": " \\n"}\n{"text": null}\n'
        b'{"text": "a\\u0000b\\u0000"}'
    )
    (tmp_path / "b.txt").write_bytes(b"")
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbf\xef\xbb\xbfx\r\n\0y\r")
    (tmp_path / "d.md").write_bytes(b"x")
    tally = Tally()
    assert read(tmp_path, tally=tally) == ["one\ntwo", "ab", "\ufeffx\ny\r"]
    assert tally.dropped == {"blank_line": 1, "empty": 2, "null": 1, "empty_file": 1, "other_file": 1}
    assert tally.changed == {"bom": 2, "crlf": 2, "nul": 3}


def test_one_line_of_five_megabytes_is_one_document(tmp_path):
    text = "lion " * (1 << 20)
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}, {"text": text}, {"text": "y"}])
    assert read(tmp_path / "a.jsonl", unit_bytes=1 << 20) == ["x", text, "y"]
    (tmp_path / "b.txt").write_text(f"x\n{text}\ny")
    assert read(tmp_path / "b.txt", document="line", unit_bytes=1 << 20) == ["x", text, "y"]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_truncated_archive_is_named_with_how_far_it_was_readable(tmp_path, suffix):
    content = b"".join(json.dumps({"text": str(i) * 50}).encode() + b"\n" for i in range(20_000))
    packed = gzip.compress(content, mtime=0) if suffix == "gz" else zstandard.compress(content)
    path = tmp_path / f"a.jsonl.{suffix}"
    # Two members, as `cat a.gz b.gz` makes them, are one text.
    path.write_bytes(packed + packed)
    assert len(read(path)) == 40_000
    for cut in (len(packed) // 2, len(packed) - 4, len(packed) + len(packed) // 2):
        path.write_bytes((packed + packed)[:cut])
        message = message_of(path)
        assert str(path) in message
        assert "readable up to byte" in message
    path.write_bytes(b"not compressed at all")
    assert "truncated or damaged" in message_of(path)


@pytest.mark.parametrize("kind", ["parquet", "arrayrecord"])
def test_a_damaged_container_is_named(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pa.table({"text": ["x" * 1000] * 50}), path)
    else:
        write_records(path, [b"x" * 1000] * 50)
    good = path.read_bytes()
    for content in (good[: len(good) // 2], b"nothing like it"):
        path.write_bytes(content)
        assert str(path) in message_of(path)


@pytest.mark.parametrize("kind", ["parquet", "arrayrecord"])
def test_one_flipped_bit_in_a_file_with_checksums_is_never_another_text(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    texts = ["the lion is in the forest " * 40] * 20
    if kind == "parquet":
        table = pa.table({"text": texts})
        pyarrow.parquet.write_table(
            table, path, compression="none", use_dictionary=False, write_page_checksum=True
        )
    else:
        write_records(path, [text.encode() for text in texts])
    good = path.read_bytes()
    damaged = 0
    for place in range(good.find(b"lion") if kind == "parquet" else 0, len(good), 599):
        path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        try:
            found = read(path)
        except UserError as error:
            found, damaged = texts, damaged + (str(path) in str(error))
        assert found == texts  # perhaps the bit was in the padding
    assert damaged >= 3


def test_parquet_without_the_column_or_of_another_type_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"body": ["x", None, "y"], "n": [1, 2, 3]}), path)
    message = message_of(path)
    assert "no column 'text'" in message
    assert "'body', 'n'" in message
    assert "holds int64, not text. Name the text's with text_key, of 'body', 'n'." in message_of(
        path, text_key="n"
    )
    tally = Tally()
    assert read(path, text_key="body", tally=tally) == ["x", "y"]
    assert tally.dropped == {"null": 1}


def test_parquet_with_dictionary_and_large_strings_is_read(tmp_path):
    columns = [pa.array(TEXTS, pa.large_string()), pa.array(TEXTS).dictionary_encode()]
    if int(pa.__version__.partition(".")[0]) >= 21:  # earlier ones write no views
        columns.append(pa.array(TEXTS, pa.string_view()))
    for number, column in enumerate(columns):
        path = tmp_path / f"{number}.parquet"
        pyarrow.parquet.write_table(pa.table({"text": column}), path)
        assert read(path) == TEXTS


def test_a_json_arrayrecord_without_the_key_is_an_error(tmp_path):
    path = write_records(tmp_path / "a.arrayrecord", [b'{"body": "x"}'])
    assert "no key 'text'" in message_of(path)
    assert read(path, text_key="body") == ["x"]
    mixed = write_records(tmp_path / "b.arrayrecord", [b'{"text": "x"}', b"plain"])
    assert "record 1: not valid JSON" in message_of(mixed)


def test_compression_around_a_compressed_format_is_refused(tmp_path):
    (tmp_path / "a.parquet.gz").write_bytes(b"x")
    assert "decompress the .gz" in message_of(tmp_path / "a.parquet.gz")


def test_the_fingerprint_follows_content_and_names_not_places(tmp_path):
    def of(folder, **texts):
        (tmp_path / folder).mkdir()
        for name, text in texts.items():
            (tmp_path / folder / f"{name}.txt").write_text(text)
        return fingerprint(find_inputs([str(tmp_path / folder)], Tally()))

    same = of("one", a="x", b="y")
    assert of("two", a="x", b="y") == same
    assert of("three", a="x", b="z") != same
    assert of("four", a="x", c="y") != same
