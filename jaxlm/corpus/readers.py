"""From files to documents: text, JSON lines, Parquet, ArrayRecord; streaming, in bounded memory."""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from etils import epath

from jaxlm.corpus import embedded
from jaxlm.corpus.inputs import InputFile, Part
from jaxlm.corpus.text import ReadOptions, Tally, Where, clean, decode
from jaxlm.limits import parse_json
from jaxlm.types import JSON_ERRORS, UserError

BLOCK_BYTES = 1 << 20
BATCH_ROWS, LEAST_ROWS, BATCH_BYTES = 1024, 8, 256 << 20
MAX_LINE_BYTES = 64 << 20
"""Of a line of JSON or CSV, decompressed."""
MAX_TEXT_BYTES = 1 << 30
"""Of a document that is a line, a paragraph or all of a text file, and of a .json file, which is read whole. One of the
longest texts that are read as one, enwik9, has 10**9."""
MAX_EXPANSION, FREE_BYTES = 200, 1 << 30
"""A compressed file may have this many times its bytes of text, and this many in any case: text shrinks 3 to 20 times,
and what shrinks 1,000 times was made to fill a memory or a disk."""
ZSTD_INPUT_BYTES = 2 << 10
"""At a time: 4 bytes of Zstandard can stand for 128 KiB, so that one piece becomes 64 MiB at most."""
_BOM = b"\xef\xbb\xbf"


def read_documents(part: Part, options: ReadOptions, tally: Tally) -> Iterator[str]:
    """The documents of one slice, in order; what is dropped or changed is counted in `tally`."""
    readers: dict[str, Callable[..., Iterator[str]]] = {
        "txt": _read_txt,
        "jsonl": _read_jsonl,
        "parquet": _read_parquet,
        "arrayrecord": _read_arrayrecord,
        "embedded": _read_embedded,
    }
    if part.file.num_bytes == 0:
        tally.dropped["empty_file"] += 1
        return iter(())
    return readers[part.file.format](part, options, tally)


def _read_embedded(part: Part, options: ReadOptions, tally: Tally) -> Iterator[str]:
    for number, raw in enumerate(embedded.texts(part.file.path)):
        text = clean(raw, options, tally, lambda _, n=number: f"{part.file.path} document {n}")
        if text is not None:
            yield text


def _read_txt(part: Part, options: ReadOptions, tally: Tally) -> Iterator[str]:
    lines = read_lines(part, tally)
    if options.document == "file":
        documents = iter([(1, read_whole(part, tally))])
    elif options.document == "paragraph":
        documents = _paragraphs(part, lines)
    else:
        documents = ((number, line.rstrip(b"\r\n")) for number, line in lines)
    for number, raw in documents:
        where = _where(part, number)
        text = decode(raw, options, tally, where)
        if text is not None and (text := clean(text, options, tally, where)) is not None:
            yield text


def _paragraphs(part: Part, lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Lines between blank lines, as (number of the first line, bytes)."""
    first, size, block = 0, 0, []
    for number, line in lines:
        if line.strip():
            first, size = (first, size + len(line)) if block else (number, len(line))
            if size > MAX_TEXT_BYTES:
                raise _too_long(_where(part, first)(0), "the paragraph", MAX_TEXT_BYTES)
            block.append(line)
        elif block:
            yield first, b"".join(block).rstrip(b"\r\n")
            block = []
    if block:
        yield first, b"".join(block).rstrip(b"\r\n")


def _read_jsonl(part: Part, options: ReadOptions, tally: Tally) -> Iterator[str]:
    for number, line in read_lines(part, tally):
        if not line.strip():
            tally.dropped["blank_line"] += 1
            continue
        where = _where(part, number)
        row = decode(line, options, tally, where)
        if row is None:
            continue
        try:
            value = parse_json(row)
        except JSON_ERRORS as error:
            raise UserError(
                f"{where(0)}: not valid JSON ({json_reason(error)}). Every line of a .jsonl file must be one JSON "
                "object."
            ) from None
        text = _text_of(value, options, tally, where)
        if text is not None and (text := clean(text, options, tally, where)) is not None:
            yield text


def _text_of(row: Any, options: ReadOptions, tally: Tally, where: Where) -> str | None:
    """The text of a JSON row; null is a counted drop."""
    if not isinstance(row, dict):
        raise UserError(f'{where(0)}: expected a JSON object such as {{"text": ...}}, found {kind_of(row)}.')
    if options.text_key not in row:
        raise UserError(
            f"{where(0)}: no key {options.text_key!r} in this row, only {some_of(row)}. Name the key of the "
            "text with text_key."
        )
    text = row[options.text_key]
    if text is None:
        tally.dropped["null"] += 1
        return None
    if not isinstance(text, str):
        raise UserError(
            f"{where(0)}: the value of {options.text_key!r} must be a string, found {kind_of(text)}. Name the "
            f"key of the text with text_key; this row has {some_of(row)}."
        )
    return text


def some_of(names: Any) -> str:
    """The first of these names, for an error."""
    names = [repr(name) for name in names]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "none"


def kind_of(value: Any) -> str:
    """What a JSON value is, for an error."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _read_parquet(part: Part, options: ReadOptions, tally: Tally) -> Iterator[str]:
    import pyarrow as pa

    path, key = part.file.path, options.text_key
    with open_parquet(part.file) as parquet:
        columns = parquet.schema_arrow.names
        if key not in columns:
            raise UserError(
                f"{path}: no column {key!r}, only {some_of(columns)}. Name the text's with text_key."
            )
        kind = parquet.schema_arrow.field(key).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
                 pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)  # fmt: skip
        if not any(is_text(kind) for is_text in texts) and not pa.types.is_null(kind):
            raise UserError(
                f"{path}: column {key!r} holds {kind}, not text. Name the text's with text_key, of {some_of(columns)}."
            )
        row = sum(parquet.metadata.row_group(group).num_rows for group in range(part.start))
        try:
            for batch in parquet_batches(parquet, part.file, range(part.start, part.stop), [key]):
                # As bytes: Arrow does not promise that its strings are valid UTF-8.
                for raw in batch.column(0).cast(pa.large_binary()).to_pylist():
                    row += 1
                    if raw is None:
                        tally.dropped["null"] += 1
                        continue
                    where = _row_of(path, "row", row)
                    text = decode(raw, options, tally, where)
                    if text is not None and (text := clean(text, options, tally, where)) is not None:
                        yield text
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise damaged(path, f"after row {row}", error) from None


@contextlib.contextmanager
def open_parquet(file: InputFile) -> Iterator[Any]:
    """A pyarrow ParquetFile; damage is a UserError."""
    import pyarrow as pa
    import pyarrow.parquet

    with epath.Path(file.path).open("rb") as stream:
        try:
            parquet = pyarrow.parquet.ParquetFile(stream, page_checksum_verification=True)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise damaged(file.path, "at its footer", error) from None
        yield parquet


def parquet_batches(
    parquet: Any, file: InputFile, groups: Sequence[int], columns: list[str] | None = None
) -> Iterator[Any]:
    """The rows of these row groups, so many at a time that they fit into BATCH_BYTES.

    A value that stands in a dictionary once may be a million rows: each of them may be as large as all its group.
    """
    import pyarrow as pa

    size = 0
    for group in groups:
        # Of the whole group: what Arrow says of single columns ends the process where a file is damaged.
        largest = max(1, parquet.metadata.row_group(group).total_byte_size)
        num_rows = max(LEAST_ROWS, min(BATCH_ROWS, BATCH_BYTES // largest))
        for batch in parquet.iter_batches(num_rows, row_groups=[group], columns=columns):
            decoded = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
            size += sum(column.nbytes for column in decoded)
            _check_expansion(size, file)
            yield pa.RecordBatch.from_arrays(decoded, batch.schema.names)


def open_arrayrecord(file: InputFile) -> Any:
    """An ArrayRecord reader; damage is a UserError."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(file.path, options="readahead_buffer_size:0")
    except (RuntimeError, OSError, UnicodeEncodeError) as error:
        raise damaged(file.path, "at its start", error) from None
    if not reader.num_records():  # also what the library says of a file without its end
        raise UserError(f"{file.path} holds no record: it is empty or was cut short. Copy it again.")
    return reader


def _read_arrayrecord(part: Part, options: ReadOptions, tally: Tally) -> Iterator[str]:
    """Records are plain text, or JSON objects if the first one of the file is."""
    path = part.file.path
    reader = open_arrayrecord(part.file)
    with contextlib.closing(reader):
        first = _read_records(reader, path, 0, 1)[0]
        is_json = first[:1] == b"{" and isinstance(_json_or_none(first), dict)
        for start in range(part.start, part.stop, BATCH_ROWS):
            records = _read_records(reader, path, start, min(start + BATCH_ROWS, part.stop))
            for number, raw in enumerate(records, start):
                where = _row_of(path, "record", number)
                text = decode(raw, options, tally, where)
                if text is not None and is_json:
                    value = _json_or_none(text)
                    if value is None:
                        raise UserError(f"{where(0)}: not valid JSON, as the first record of the file is.")
                    text = _text_of(value, options, tally, where)
                if text is not None and (text := clean(text, options, tally, where)) is not None:
                    yield text


def _read_records(reader: Any, path: str, start: int, stop: int) -> list[bytes]:
    try:
        return reader.read(list(range(start, stop)))
    except (RuntimeError, IndexError) as error:
        raise damaged(path, f"between records {start} and {stop}", error) from None


def _json_or_none(raw: bytes | str) -> Any:
    try:
        return parse_json(raw)
    except JSON_ERRORS:
        return None


def json_reason(error: Exception) -> str:
    """Why a text is not JSON, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    return str(error).partition(";")[0]


def damaged(path: str, place: str, error: Exception) -> UserError:
    """The error of a file that a library could not read."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{path} is damaged {place} ({reason}); copy or download it again.")


def _row_of(path: str, unit: str, number: int) -> Where:
    return lambda _: f"{path} {unit} {number}"


def _where(part: Part, number: int) -> Where:
    """file:line of a document that starts on line `number` (from 1) of the slice."""

    def place(newlines: int) -> str:
        before = 0
        if part.start:  # counted only for an error: the lines of the slices before this one
            with epath.Path(part.file.path).open("rb") as stream:
                left = part.start
                while left and (block := stream.read(min(left, BLOCK_BYTES))):
                    before += block.count(b"\n")
                    left -= len(block)
        return f"{part.file.path}:{before + number + newlines}"

    return place


def read_lines(part: Part, tally: Tally) -> Iterator[tuple[int, bytes]]:
    """Lines with their ends, numbered from 1 within the slice; only "\\n" ends a line.

    Errors: UserError that names the line when it is longer than the limit.
    """
    limit = MAX_TEXT_BYTES if part.file.format == "txt" else MAX_LINE_BYTES
    number, size = 0, 0
    rest: list[bytes] = []
    for block in read_blocks(part, tally):
        pieces = block.split(b"\n")
        for piece in pieces[:-1]:
            number += 1
            if size + len(piece) > limit:
                raise _too_long(_where(part, number)(0), "the line", limit)
            yield number, b"".join([*rest, piece, b"\n"])
            rest, size = [], 0
        if pieces[-1]:
            rest.append(pieces[-1])
            size += len(pieces[-1])
            if size > limit:
                raise _too_long(_where(part, number + 1)(0), "the line", limit)
    if rest:
        yield number + 1, b"".join(rest)


def limited_lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """As `read_lines`, of a stream without a place, such as stdin."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise _too_long(f"{name}, line {number:,}", "the line", MAX_LINE_BYTES)
        yield number, line


def read_whole(part: Part, tally: Tally) -> bytes:
    """All of a file that is one text, or one JSON value. Errors: UserError when it is longer than the limit."""
    blocks, size = [], 0
    for block in read_blocks(part, tally):
        blocks.append(block)
        size += len(block)
        if size > MAX_TEXT_BYTES:
            raise _too_long(part.file.path, "the text", MAX_TEXT_BYTES)
    return b"".join(blocks)


def _too_long(where: str, what: str, limit: int) -> UserError:
    return UserError(
        f"{where}: {what} has more than {limit:,} bytes, the most that is read as one. Cut it into several documents "
        "(text), or write one record a line (JSON lines)."
    )


def read_blocks(part: Part, tally: Tally) -> Iterator[bytes]:
    """The blocks of the slice without the file's byte order mark."""
    for index, block in enumerate(_blocks(part)):
        if index == 0 and part.start == 0 and block.startswith(_BOM):
            tally.changed["bom"] += 1
            block = block[len(_BOM) :]
        yield block


def _blocks(part: Part) -> Iterator[bytes]:
    """The bytes of the slice, decompressed."""
    file = part.file
    with epath.Path(file.path).open("rb") as stream:
        if file.compression:
            unpack = _gunzip if file.compression == "gz" else _unzstd
            yield from _not_a_bomb(unpack(stream, file.path), file)
            return
        stream.seek(part.start)
        left = part.stop - part.start
        while left > 0:
            block = stream.read(min(left, BLOCK_BYTES))
            if not block:
                raise UserError(
                    f"{file.path} became shorter while it was read; run again when it is complete."
                )
            left -= len(block)
            yield block


def _not_a_bomb(blocks: Iterator[bytes], file: InputFile) -> Iterator[bytes]:
    """The blocks, as long as they are not many more than the compressed file can stand for."""
    size = 0
    for block in blocks:
        size += len(block)
        _check_expansion(size, file)
        yield block


def _check_expansion(size: int, file: InputFile) -> None:
    limit = max(FREE_BYTES, MAX_EXPANSION * file.num_bytes)
    if size > limit:
        raise UserError(
            f"{file.path} has {file.num_bytes:,} bytes and expands to more than {limit:,}: no text is compressed "
            f"so far (at most {MAX_EXPANSION} times). Where you trust it, decompress it first."
        )


def _gunzip(stream: Any, path: str) -> Iterator[bytes]:
    done = 0
    with gzip.GzipFile(fileobj=stream, mode="rb") as unzipped:
        while True:
            try:
                block = unzipped.read1(BLOCK_BYTES)
            except (EOFError, OSError, zlib.error) as error:
                raise _cut(path, done, error) from None
            if not block:
                return
            done += len(block)
            yield block


def _unzstd(stream: Any, path: str) -> Iterator[bytes]:
    import zstandard

    done = 0
    frame = None
    rest = b""
    while True:
        rest = rest or stream.read(ZSTD_INPUT_BYTES)
        if not rest:
            break
        frame = frame or zstandard.ZstdDecompressor().decompressobj()
        try:
            block = frame.decompress(rest)
        except zstandard.ZstdError as error:
            raise _cut(path, done, error) from None
        rest = frame.unused_data if frame.eof else b""
        frame = None if frame.eof else frame
        done += len(block)
        if block:
            yield block
    if frame is not None:
        # The library's own reader says nothing here, and a truncated file would lose text in silence.
        raise _cut(path, done, EOFError("the last frame has no end"))


def _cut(path: str, done: int, error: Exception) -> UserError:
    return UserError(
        f"{path} is truncated or damaged: readable up to byte {done:,} of its decompressed text ({error}). "
        "Copy or download it again."
    )
