"""Records and documents from anybody: JSON lines, JSON, CSV, Parquet, compressed or not."""

import gzip
import json
import random
import re
import zlib
from collections import Counter

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from hostile import VALUES, child, damaged_bytes, damaged_files_crash_nothing, dumps, fuzz, refused
from hypothesis import given
from hypothesis import strategies as st
from native import parquet
from slow import slow

from jaxlm.corpus import readers
from jaxlm.corpus.columns import Dropped, dialogue, labelled, open_columns, text_of
from jaxlm.corpus.inputs import find_inputs, plan_units
from jaxlm.corpus.readers import read_documents
from jaxlm.corpus.records import read_all
from jaxlm.corpus.text import ReadOptions, Tally
from jaxlm.infer.instructions import read_questions
from jaxlm.types import UserError

INSTRUCT = (
    b'{"instruction": "Say", "input": "", "output": "so \\u00e9"}\n'
    b'{"instruction": "b", "input": "c", "output": "d"}\n'
)
CHAT = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}\n' * 2
FILES = {
    "a.jsonl": INSTRUCT,
    "b.jsonl": CHAT,
    "c.json": b'{"data": [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]}',
    "d.csv": b'instruction,output\n"a, b",c\nd,"e ""f"""\n',
    "e.tsv": b"instruction\toutput\na\tb\n",
    "f.jsonl.gz": gzip.compress(INSTRUCT, mtime=0),
    "g.jsonl.zst": zstandard.ZstdCompressor().compress(INSTRUCT),
}


@pytest.mark.parametrize("name", FILES)
def test_records_of_a_damaged_file_are_read_or_refused(name, tmp_path):
    path = tmp_path / name

    @fuzz(60)
    @given(content=damaged_bytes(FILES[name]))
    def check(content):
        path.write_bytes(content)
        with refused():
            for _ in read_all(str(path), "strict", Tally()):
                pass
        with refused():
            read_questions(str(path))

    check()


@pytest.mark.parametrize("objective", ["instruct", "classify"])
def test_a_record_of_any_values_is_an_example_or_refused(objective, tmp_path):
    names = {
        "instruct": ["messages", "conversations", "instruction", "input", "output"],
        "classify": ["text", "label"],
    }
    path = tmp_path / "a.jsonl"

    @fuzz(150)
    @given(fields=st.dictionaries(st.sampled_from(names[objective]), VALUES, min_size=1))
    def check(fields):
        path.write_bytes(dumps(fields) + b"\n")
        with refused(Dropped):
            for record in read_all(str(path), "strict", Tally()):
                opened = open_columns("auto", objective, record)
                if objective == "instruct":
                    dialogue(record, opened, Counter())
                else:
                    text_of(record, opened)
                    for task in ("single_label", "multi_label", "regression"):
                        with refused(Dropped):
                            labelled(record, opened, task)

    check()


@pytest.mark.parametrize("document", ["line", "paragraph", "file"])
@pytest.mark.parametrize("suffix", ["txt", "jsonl", "txt.gz", "jsonl.zst"])
def test_documents_of_a_damaged_file_are_read_or_refused(suffix, document, tmp_path):
    text = b'{"text": "one"}\n{"text": "two \\u00e9"}\n\n{"text": null}\n'
    packed = {"gz": gzip.compress(text, mtime=0), "zst": zstandard.ZstdCompressor().compress(text)}
    path = tmp_path / f"a.{suffix}"

    @fuzz(25)
    @given(content=damaged_bytes(packed.get(suffix.rpartition(".")[2], text)))
    def check(content):
        path.write_bytes(content)
        options = ReadOptions(document=document)
        with refused():
            for unit in plan_units(find_inputs([str(path)], Tally()), options):
                for part in unit:
                    for _ in read_documents(part, options, Tally()):
                        pass

    check()


@pytest.mark.parametrize(("kind", "count"), [("parquet", 300), slow("parquet", 1000), ("arrayrecord", 200)])
def test_damaged_files_of_libraries_in_cplusplus_are_read_or_refused(kind, count, tmp_path):
    damaged_files_crash_nothing(kind, count, tmp_path, memory_mb=6000)


def test_names_of_columns_that_are_no_text_are_refused(tmp_path):
    """Found by the test above: Arrow decodes the names in the footer whenever it is asked for one."""
    path = tmp_path / "a.parquet"
    good = parquet()
    places = [match.start() for match in re.finditer(b"output", good)]
    assert len(places) >= 3
    for place in places:
        path.write_bytes(good[:place] + b"\x90" + good[place + 1 :])
        with refused():
            list(read_all(str(path), "strict", Tally()))


# Bombs: what is small on disk, and would fill the memory.


def bomb(tmp_path, name, packed):
    path = tmp_path / name
    path.write_bytes(packed)
    return path


def zeros(num_bytes, before=b""):
    """Gzip of as many zeros, in members of 16 MiB that follow each other."""

    def member(content):
        packer = zlib.compressobj(9, wbits=31)
        return packer.compress(content) + packer.flush()

    return member(before) + member(b"0" * (16 << 20)) * (num_bytes >> 24)


def rle(num_blocks):
    """A frame of Zstandard whose blocks of 4 bytes stand for 128 KiB each. Source: RFC 8878, section 3.1.1."""
    block = ((128 << 10) << 3 | 1 << 1).to_bytes(3, "little") + b"0"
    last = ((128 << 10) << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"0"
    return b"\x28\xb5\x2f\xfd" + bytes([0x00, 0x38]) + block * (num_blocks - 1) + last


READ = """
from jaxlm.corpus.records import read_all
from jaxlm.corpus.text import Tally
try:
    for record in read_all({path!r}, "strict", Tally()):
        pass
except UserError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.csv.gz"])
def test_a_line_that_expands_to_gigabytes_is_refused_with_file_and_line(name, tmp_path):
    packed = (
        rle(1 << 14) if name.endswith("zst") else zeros(2 << 30, b'{"a": 1}\n' if "jsonl" in name else b"a\n")
    )
    path = bomb(tmp_path, name, packed)
    assert path.stat().st_size < 3 << 20
    code, output = child(READ.format(path=str(path)), memory_mb=900)
    assert code == 0, output[-1500:]
    line = 1 if name.endswith("zst") else 2
    assert f"{name}:{line}: the line has more than 67,108,864 bytes" in output


def test_a_json_file_that_expands_to_gigabytes_is_refused(tmp_path):
    path = bomb(tmp_path, "a.json.gz", zeros(2 << 30, b"["))
    code, output = child(READ.format(path=str(path)), memory_mb=2500)
    assert code == 0, output[-1500:]
    assert re.search(r"a.json.gz has [\d,]+ bytes and expands to more than 1,073,741,824: no text", output)


def test_a_file_that_expands_a_thousandfold_line_by_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "FREE_BYTES", 1 << 20)
    path = bomb(tmp_path, "a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 400_000))
    with pytest.raises(
        UserError, match=r"a.jsonl.gz has [\d,]+ bytes and expands to more than [\d,]+: no text"
    ):
        list(read_all(str(path), "strict", Tally()))
    # Well compressed text is no bomb.
    rng = random.Random(0)
    lines = b"".join(b'{"text": "%d"}\n' % rng.randrange(10**6) for _ in range(100_000))
    path.write_bytes(gzip.compress(lines))
    assert sum(1 for _ in read_all(str(path), "strict", Tally())) == 100_000


@pytest.mark.parametrize(
    "line",
    [b"[" * 200_000, b'{"a":' * 500 + b"1" + b"}" * 500, b'{"a": ' + b"9" * 5000 + b"}", b'{"a": 1' + b"0" * 400 + b"}",
     b'{"a": [' + b"[]," * 12_000_000 + b"[]]}"],
    ids=["brackets", "depth", "digits", "number", "values"],
)  # fmt: skip
def test_json_made_to_break_a_reader_is_refused_with_its_line(line, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(UserError, match=r"a.jsonl, line 2: not valid JSON"):
        list(read_all(str(path), "strict", Tally()))
    (path.parent / "b.jsonl").write_bytes(json.dumps({"text": "fine"}).encode())
    assert len(list(read_all(str(path.parent / "b.jsonl"), "strict", Tally()))) == 1


def test_a_value_that_parquet_repeats_a_million_times_is_refused(tmp_path):
    """One text of 4 MiB in the dictionary, and as many rows as point at it: 400 GB of text in a kilobyte."""
    one = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["x" * (4 << 20)]))
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"text": one}), path, compression="zstd")
    assert path.stat().st_size < 10_000
    code, output = child(READ.format(path=str(path)), memory_mb=2500)
    assert code == 0, output[-1500:]
    assert "expands to more than 1,073,741,824" in output
