"""Files of records: JSON, JSON lines, CSV, Parquet, here or in a data set of the Hugging Face hub.

A record is an object with named fields. Every one knows where it comes from, for errors and for `where`.
"""

from __future__ import annotations

import csv
import fnmatch
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jaxlm.corpus import embedded_records
from jaxlm.corpus.inputs import RECORDS, InputFile, Part, find_inputs, printable
from jaxlm.corpus.readers import (
    MAX_LINE_BYTES,
    damaged,
    json_reason,
    kind_of,
    open_parquet,
    parquet_batches,
    read_lines,
    read_whole,
    some_of,
)
from jaxlm.corpus.text import ReadOptions, Tally, decode
from jaxlm.limits import parse_json
from jaxlm.types import JSON_ERRORS, UserError

HUB = "hf://"
_HUB_PATH = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?(?:/(.*))?")
_HUB_FILES = ("*.json", "*.jsonl", "*.csv", "*.tsv", "*.parquet", "*.jsonl.gz", "*.jsonl.zst", "*.json.gz")
MAX_VALUES = 50_000_000
"""In a .json file, which is read whole."""
_SPACE = re.compile(r"[ \t\r\n]*")


class Record(NamedTuple):
    """One record and its place."""

    fields: dict[str, Any]
    file: str
    unit: str
    """What `number` counts, from 1: `line`, `row` or `record`."""
    number: int

    @property
    def where(self) -> str:
        """For messages: "data/train.jsonl, line 12"."""
        return f"{self.file}, {self.unit} {self.number:,}"


def find_records(path: str, tally: Tally) -> list[InputFile]:
    """The files of records below a path: a file, a folder, a glob, or `hf://datasets/OWNER/NAME[@REVISION][/FILE]`.

    Of a data set without FILE (which may be a glob) those with `train` in their name are read, where there are any:
    the others are held out by whoever made it.
    """
    if path.startswith(HUB):
        return _fetch(path, tally)
    return find_inputs([path], tally, RECORDS)


def _fetch(path: str, tally: Tally) -> list[InputFile]:
    """The files of a data set, in the hub's own cache. $HF_HUB_OFFLINE=1 uses what is there."""
    match = _HUB_PATH.fullmatch(path)
    if match is None:
        raise UserError(
            f"{path}: a data set of the hub is written hf://datasets/OWNER/NAME or "
            "hf://datasets/OWNER/NAME/FILE, with @REVISION behind NAME if need be."
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"{path} needs a package that is not installed: pip install 'jaxlm[hf]'.") from None
    name, revision, wanted = match[1], match[2], match[3]
    try:
        folder = snapshot_download(
            name,
            repo_type="dataset",
            revision=revision,
            allow_patterns=[wanted] if wanted else list(_HUB_FILES),
        )
    except Exception as error:  # of the network, of the hub, of the cache: each has its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} could not be fetched from the Hugging Face hub ({type(error).__name__}: {reason}). Check its "
            "name, the network, and $HF_TOKEN for gated data sets; or give a file of this machine."
        ) from None
    found = find_inputs([folder], tally, RECORDS)
    if wanted:  # the cache may hold more files of the same data set
        found = [file for file in found if fnmatch.fnmatchcase(file.name, wanted)]
    elif train := [file for file in found if "train" in file.name.lower()]:
        found = train
    if not found:
        raise UserError(f"{path}: the data set has no such file of a readable kind: {RECORDS.names}.")
    return found


def read_records(file: InputFile, invalid_utf8: str, tally: Tally) -> Iterator[Record]:
    """The records of one file, in order.

    Args:
      invalid_utf8: see DataConfig.
      tally: counts lines that are blank or dropped.

    Errors: UserError that names file and line, and what is wrong there.
    """
    readers: dict[str, Callable[..., Iterator[Record]]] = {
        "json": _read_json,
        "jsonl": _read_jsonl,
        "csv": _read_csv,
        "tsv": _read_csv,
        "parquet": _read_parquet,
        "embedded": _read_embedded,
    }
    if file.num_bytes == 0:
        tally.dropped["empty_file"] += 1
        return iter(())
    return readers[file.format](file, ReadOptions(invalid_utf8=invalid_utf8), tally)


def read_all(path: str, invalid_utf8: str, tally: Tally) -> Iterator[Record]:
    """The records of all files below a path, in order."""
    for file in find_records(path, tally):
        yield from read_records(file, invalid_utf8, tally)


def _record(value: Any, file: InputFile, unit: str, number: int) -> Record:
    record = Record(value, printable(file.path), unit, number)
    if not isinstance(value, dict):
        raise UserError(
            f"{record.where}: a record has to be an object with named fields, found {kind_of(value)}."
        )
    return record


def _read_embedded(file: InputFile, options: ReadOptions, tally: Tally) -> Iterator[Record]:
    for number, fields in enumerate(embedded_records.records(file.path), 1):
        yield Record(fields, file.path, "record", number)


def _whole(file: InputFile) -> Part:
    return Part(file, 0, file.num_bytes, file.num_bytes)


def _read_jsonl(file: InputFile, options: ReadOptions, tally: Tally) -> Iterator[Record]:
    lines = ((number, line) for number, line in read_lines(_whole(file), tally))
    for number, text in _decoded(file, lines, options, tally):
        if not text.strip():
            tally.dropped["blank_line"] += 1
            continue
        yield _record(_parse(text, file, number), file, "line", number)


def _decoded(
    file: InputFile, lines: Iterator[tuple[int, bytes]], options: ReadOptions, tally: Tally
) -> Iterator[tuple[int, str]]:
    for number, line in lines:
        text = decode(line, options, tally, lambda _, n=number: f"{printable(file.path)}, line {n:,}")
        if text is not None:
            yield number, text


def _parse(line: str, file: InputFile, number: int) -> Any:
    try:
        return parse_json(line)
    except JSON_ERRORS as error:
        raise UserError(
            f"{printable(file.path)}, line {number:,}: not valid JSON ({json_reason(error)}). Every line has to be one "
            "JSON object."
        ) from None


def _read_json(file: InputFile, options: ReadOptions, tally: Tally) -> Iterator[Record]:
    """An array of objects, an object that has one array, or JSON lines under another name."""
    path = printable(file.path)
    raw = read_whole(_whole(file), tally)
    text = decode(raw, options, tally, lambda newlines: f"{path}, line {newlines + 1:,}")
    if text is None:
        return
    if not text.strip():
        tally.dropped["empty_file"] += 1
        return
    try:
        value = parse_json(text, max_values=MAX_VALUES)
    except JSON_ERRORS as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and text.lstrip()[:1] == "{":
            yield from _read_jsonl(file, options, Tally())
            return
        line = f", line {error.lineno:,}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(
            f"{path}{line}: not valid JSON ({json_reason(error)}): the file was cut short or edited."
        ) from None
    start = _after_space(text, 0)
    if isinstance(value, dict):
        arrays = [name for name, inner in value.items() if isinstance(inner, list)]
        if len(arrays) != 1:
            raise UserError(
                f"{path}: a .json file has to hold an array of records, or an object with one array; this object has "
                f"{len(arrays)} ({', '.join(map(repr, arrays)) or 'none'})."
            )
        start = next(place for name, place in _members(text, start) if name == arrays[0])
    elif not isinstance(value, list):
        raise UserError(f"{path}: a .json file has to hold an array of records, found {kind_of(value)}.")
    line, last = 1, 0
    for place, element in _elements(text, start):
        line, last = line + text.count("\n", last, place), place
        yield _record(element, file, "line", line)


def _after_space(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place


def _elements(text: str, start: int) -> Iterator[tuple[int, Any]]:
    """(place, value) of the elements of the array that starts here, in text that is known to be valid."""
    decoder = json.JSONDecoder()
    place = _after_space(text, start + 1)
    while text[place] != "]":
        value, end = decoder.raw_decode(text, place)
        yield place, value
        place = _after_space(text, end)
        place = _after_space(text, place + 1) if text[place] == "," else place


def _members(text: str, start: int) -> Iterator[tuple[str, int]]:
    """(name, place of the value) of the members of the object that starts here."""
    decoder = json.JSONDecoder()
    place = _after_space(text, start + 1)
    while text[place] != "}":
        name, end = decoder.raw_decode(text, place)
        place = _after_space(text, _after_space(text, end) + 1)
        yield name, place
        _, end = decoder.raw_decode(text, place)
        place = _after_space(text, end)
        place = _after_space(text, place + 1) if text[place] == "," else place


def _read_csv(file: InputFile, options: ReadOptions, tally: Tally) -> Iterator[Record]:
    """The first line names the columns; every value is a text."""
    path = printable(file.path)
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = _decoded(file, read_lines(_whole(file), tally), options, tally)
    reader = csv.reader(
        (text for _, text in lines), delimiter="\t" if file.format == "tsv" else ",", strict=True
    )
    names: list[str] | None = None
    line = 1
    try:
        for row in reader:
            if names is None:
                names = row
                if len(set(names)) < len(names) or not all(names):
                    raise UserError(
                        f"{path}, line 1: the columns need names, each another: found {some_of(names)}."
                    )
            elif row:
                if len(row) != len(names):
                    raise UserError(
                        f"{path}, line {line:,}: {len(row)} values for {len(names)} columns ({', '.join(names):.200}). "
                        'Values with commas or newlines stand in quotes: "...".'
                    )
                yield _record(dict(zip(names, row)), file, "line", line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line:,}: not valid CSV ({error}).") from None


def _read_parquet(file: InputFile, options: ReadOptions, tally: Tally) -> Iterator[Record]:
    import pyarrow as pa

    row = 0
    with open_parquet(file) as parquet:
        try:
            for batch in parquet_batches(parquet, file, range(parquet.metadata.num_row_groups)):
                try:
                    rows = batch.to_pylist()
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{printable(file.path)}, rows {row + 1:,} to {row + batch.num_rows:,}: a text is not valid "
                        f"UTF-8 (byte 0x{error.object[error.start]:02x})."
                    ) from None
                for value in rows:
                    row += 1
                    yield _record(value, file, "row", row)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise damaged(file.path, f"after row {row}", error) from None
