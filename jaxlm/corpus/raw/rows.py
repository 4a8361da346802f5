"""Records as documents: JSON lines, JSON, CSV, TSV and Parquet, with a column of texts and others about them.

| field      | column                                                                                     |
|------------|--------------------------------------------------------------------------------------------|
| `text`     | options.text_key                                                                           |
| `url`      | options.url_key: a text, or several in a list or with white space between them: the first  |
| `score`    | options.score_key: a number                                                                |
| `id`       | `id`; else the place in the file: `a.jsonl#<offset>`, `a.parquet#<row>`                    |
| `date`     | the first there is of `date`, `timestamp`, `published`, `publish_date`, `created`, `created_at` |
| `title`, `author`, `licence`, `language` | by these names, and `license`, `lang`                        |

`min_score` drops rows of a lower score, or of none (`low_score`). Among rows with a score (a list of links with texts,
as WebText), of several with one address the first wins (`duplicate_url`), within a file or slice of one.

A slice of .jsonl is the lines that begin in it. Faults are one line or row, and the reader goes on behind it:
`broken_json`, `broken_csv`, `broken_parquet`, `no_text` (no such column, or not a text), `too_long`. A .json file and a
row group of Parquet end where they are damaged.

`offset` is that of the line where there is one (.jsonl), of the decompressed text; the number of the line or row
otherwise."""

from __future__ import annotations

import contextlib
import csv
import datetime
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxlm.corpus.inputs import InputFile
from jaxlm.corpus.raw.books import cleaned
from jaxlm.corpus.raw.document import Account, RawDocument
from jaxlm.corpus.raw.files import RawFile, RawOptions, RawPart, open_bytes
from jaxlm.corpus.raw.links import as_score, first_url, normalise_url
from jaxlm.corpus.raw.unpacked import Unpacked, has_bytes, stop_of
from jaxlm.corpus.readers import (
    BLOCK_BYTES,
    MAX_LINE_BYTES,
    json_reason,
    kind_of,
    open_parquet,
    parquet_batches,
    some_of,
)
from jaxlm.corpus.records import read_records
from jaxlm.corpus.split import hash_of
from jaxlm.corpus.text import Tally
from jaxlm.limits import parse_json
from jaxlm.paths import is_local
from jaxlm.types import JSON_ERRORS, UserError

_DATES = ("date", "timestamp", "published", "publish_date", "created", "created_at")
_MAX_URLS = 2_000_000
"""That are remembered to find those that come twice: 140 MB."""


class _Row(NamedTuple):
    fields: dict[str, Any]
    place: str
    """For messages."""
    offset: int
    num_bytes: int


def read_rows(part: RawPart, options: RawOptions, account: Account) -> Iterator[RawDocument]:
    """The documents of a file of records, or of a slice of one."""
    if not has_bytes(part.file):
        account.drop("empty_file", part.file.name)
        return
    readers = {"jsonl": _jsonl, "json": _json, "csv": _csv, "tsv": _csv, "parquet": _parquet}
    seen: set[int] = set()
    for row in readers[part.file.format](part, options, account):
        document = _document(row, part, options, account)
        if document is not None and (document.score is None or _is_new(document.url, seen, account)):
            yield document


def _is_new(url: str | None, seen: set[int], account: Account) -> bool:
    if url is None:
        return True
    key = hash_of(normalise_url(url) or url)
    if key in seen:
        account.drop("duplicate_url", url)
        return False
    if len(seen) < _MAX_URLS:
        seen.add(key)
    return True


def _document(row: _Row, part: RawPart, options: RawOptions, account: Account) -> RawDocument | None:
    fields, name = row.fields, part.file.name
    if options.text_key not in fields:
        detail = (
            f"no key {options.text_key!r} in this row, only {some_of(fields)} (text_key names the text's)"
        )
        account.fault("no_text", name, row.place, detail)
        return None
    raw = fields[options.text_key]
    if raw is None:
        account.drop("null", f"{name}, {row.place}")
        return None
    if not isinstance(raw, str):
        account.fault("no_text", name, row.place, f"{options.text_key!r} is {kind_of(raw)}, not a text")
        return None
    score = as_score(fields.get(options.score_key))
    if options.min_score is not None and (score is None or score < options.min_score):
        account.drop("low_score", f"{name}, {row.place}: {score}")
        return None
    if len(raw) > options.max_document_bytes:
        account.fault(
            "too_long", name, row.place, f"the text has more than {options.max_document_bytes:,} bytes"
        )
        return None
    text = cleaned(raw, account)
    if text is None:
        return None
    given = fields.get("id")
    is_id = isinstance(given, str | int) and not isinstance(given, bool) and str(given).strip()
    return RawDocument(
        text=text,
        id=_short(given) or "" if is_id else f"{name}#{row.offset}",
        file=name,
        offset=row.offset,
        num_bytes=row.num_bytes,
        url=_short(first_url(fields.get(options.url_key))),
        date=next((date for key in _DATES if (date := _date(fields.get(key)))), None),
        licence=_short(fields.get("licence") or fields.get("license")),
        title=_short(fields.get("title")),
        language=_short(fields.get("language") or fields.get("lang")),
        score=score,
        author=_short(fields.get("author")),
    )


def _short(value: Any) -> str | None:
    """A value about a document as one line; None of what is no text or number."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return " ".join(str(value).encode("utf-8", "replace").decode().replace("\0", "").split())[:2000] or None


def _date(value: Any) -> str | None:
    if isinstance(value, datetime.date):  # datetime too
        return value.isoformat()
    return _short(value) if isinstance(value, str) else None


# --- formats ---------------------------------------------------------------------------------------------------------


def _lines(part: RawPart, limit: int, account: Account) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, offset, line with its end) of those that begin in the slice; longer ones are faults."""
    offset = part.start if not part.file.compression else 0
    number, size, rest = 0, 0, []
    for block in _blocks(part, account):
        for piece in block.splitlines(keepends=True) if b"\r" not in block else _split(block):
            size += len(piece)
            if size <= limit:
                rest.append(piece)
            else:
                rest.clear()
            if piece.endswith(b"\n"):
                number += 1
                if size > limit:
                    _too_long(part, number, offset, limit, account)
                else:
                    yield number, offset, b"".join(rest)
                offset, size, rest = offset + size, 0, []
    if size > limit:
        _too_long(part, number + 1, offset, limit, account)
    elif size:
        yield number + 1, offset, b"".join(rest)


def _too_long(part: RawPart, number: int, offset: int, limit: int, account: Account) -> None:
    account.fault(
        "too_long", part.file.name, _line(part, number, offset), f"the line has more than {limit:,} bytes"
    )


def _split(block: bytes) -> list[bytes]:
    """At "\\n" only."""
    pieces = [piece + b"\n" for piece in block.split(b"\n")]
    pieces[-1] = pieces[-1][:-1]
    return [piece for piece in pieces if piece]


def _line(part: RawPart, number: int, offset: int) -> str:
    return f"line {number:,}" if not part.start else f"offset {offset:,}"


def _blocks(part: RawPart, account: Account) -> Iterator[bytes]:
    if part.file.compression:
        yield from Unpacked(part.file, account)
        return
    with open_bytes(part.file) as stream:
        stream.seek(part.start)
        left = stop_of(part) - part.start
        while left > 0 and (block := stream.read(min(left, BLOCK_BYTES))):
            left -= len(block)
            yield block


def _jsonl(part: RawPart, options: RawOptions, account: Account) -> Iterator[_Row]:
    # A line of JSON is up to six times its text ("\\u0985"), and has other fields.
    limit = min(MAX_LINE_BYTES, 8 * options.max_document_bytes)
    for number, offset, line in _lines(part, limit, account):
        place = _line(part, number, offset)
        raw = line.removeprefix(b"\xef\xbb\xbf") if offset == 0 else line
        if not raw.strip():
            account.drop("blank_line")
            continue
        try:
            value = parse_json(_decoded(raw, account))
        except JSON_ERRORS as error:
            account.fault("broken_json", part.file.name, place, f"not valid JSON ({json_reason(error)})")
            continue
        if not isinstance(value, dict):
            detail = f"expected an object with named fields, found {kind_of(value)}"
            account.fault("broken_json", part.file.name, place, detail)
            continue
        yield _Row(value, place, offset, len(line))


def _decoded(raw: bytes, account: Account) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        account.changed["invalid_utf8"] += 1
        return raw.decode("utf-8", "replace")


def _json(part: RawPart, options: RawOptions, account: Account) -> Iterator[_Row]:
    """An array of objects, an object with one array, or JSON lines under another name; see jaxlm.corpus.records."""
    file = part.file
    if file.compression == "bz2":
        account.fault(
            "broken_json",
            file.name,
            "offset 0",
            "bz2 around .json is not read: write JSON lines (.jsonl.bz2)",
        )
        return
    with _here(file) as source:
        records = read_records(source, "replace", Tally(account.dropped, account.changed))
        try:
            for record in records:
                yield _Row(record.fields, f"{record.unit} {record.number:,}", record.number, 0)
        except UserError as error:
            account.fault("broken_json", file.name, "offset 0", str(error))


@contextlib.contextmanager
def _here(file: RawFile) -> Iterator[InputFile]:
    """The file for readers that need one on this machine: a copy of one that lies elsewhere."""
    if is_local(file.path):
        yield InputFile(file.path, file.name, file.format, file.compression, os.path.getsize(file.path))
        return
    with tempfile.NamedTemporaryFile(prefix="jaxlm-") as copy, open_bytes(file) as stream:
        shutil.copyfileobj(stream, copy, BLOCK_BYTES)
        copy.flush()
        yield InputFile(copy.name, file.name, file.format, file.compression, copy.tell())


def _csv(part: RawPart, options: RawOptions, account: Account) -> Iterator[_Row]:
    """The first line names the columns; a row whose number of values differs is a fault."""
    name = part.file.name
    csv.field_size_limit(MAX_LINE_BYTES)
    limit = min(MAX_LINE_BYTES, 8 * options.max_document_bytes)
    lines = (_decoded(line, account).replace("\0", "") for _, _, line in _lines(part, limit, account))
    reader = csv.reader(lines, delimiter="\t" if part.file.format == "tsv" else ",", strict=True)
    names: list[str] | None = None
    while True:
        line = reader.line_num + 1
        place = f"line {line:,}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            account.fault("broken_csv", name, place, f"not valid CSV ({error})")
            if names is None:
                return
            continue
        if row is None:
            return
        if names is None:
            names = [column.removeprefix("\ufeff") for column in row]
            named = [column for column in names if column]  # an index, as pandas writes it, has no name
            if len(set(named)) < len(named):
                account.fault("broken_csv", name, place, f"two columns have the same name: {some_of(names)}")
                return
            if options.text_key not in names:
                detail = f"no column {options.text_key!r}, only {some_of(names)} (text_key names the text's)"
                account.fault("no_text", name, place, detail)
                return
        elif row and len(row) != len(names):
            account.fault("broken_csv", name, place, f"{len(row)} values for {len(names)} columns")
        elif row:
            yield _Row(dict(zip(names, row)), place, line, sum(len(value.encode()) for value in row))


def _parquet(part: RawPart, options: RawOptions, account: Account) -> Iterator[_Row]:
    """Row group by row group, only the columns that are used; text as bytes, since Arrow's may not be UTF-8."""
    import pyarrow as pa

    file = part.file
    try:
        with _here(file) as source, open_parquet(source) as parquet:
            names = parquet.schema_arrow.names
            if options.text_key not in names:
                detail = f"no column {options.text_key!r}, only {some_of(names)} (text_key names the text's)"
                account.fault("no_text", file.name, "its columns", detail)
                return
            about = ("id", "title", "author", "licence", "license", "language", "lang", *_DATES)
            wanted = [
                n
                for n in dict.fromkeys((options.text_key, options.url_key, options.score_key, *about))
                if n in names
            ]
            first = 0
            for group in range(parquet.metadata.num_row_groups):
                row = first
                first += parquet.metadata.row_group(group).num_rows
                try:
                    for batch in parquet_batches(parquet, source, [group], wanted):
                        columns = [_values(column, account) for column in batch.columns]
                        for values in zip(*columns):
                            row += 1
                            size = len(values[0]) if isinstance(values[0], str) else 0
                            yield _Row(dict(zip(batch.schema.names, values)), f"row {row:,}", row, size)
                except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
                    reason = (str(error).splitlines() or [type(error).__name__])[0]
                    account.fault("broken_parquet", file.name, f"behind row {row:,}", reason)
    except UserError as error:
        if account.strict:
            raise
        account.fault("broken_parquet", file.name, "its footer", str(error))


def _values(column: Any, account: Account) -> list[Any]:
    import pyarrow as pa

    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        raw = column.cast(pa.large_binary()).to_pylist()
        return [value if value is None else _decoded(value, account) for value in raw]
    return [_decoded(v, account) if isinstance(v, bytes) else v for v in column.to_pylist()]
