"""The raw files of a source and the slices that are read in parallel. Imports no JAX."""

from __future__ import annotations

import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from jaxlm.config import check_choice
from jaxlm.corpus.inputs import (
    has_wildcard,
    match_names,
    not_there,
    printable,
    size_and_change,
    split_pattern,
    unreadable,
    walk,
)
from jaxlm.corpus.raw import remote
from jaxlm.corpus.raw.config import FORMATS
from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.records import HUB, find_records
from jaxlm.corpus.text import Tally
from jaxlm.limits import MAX_NAME_CHARS, is_inside, short
from jaxlm.paths import is_local
from jaxlm.types import UserError


@dataclass(frozen=True)
class RawFile:
    """One raw file. `name` is what reports and manifests show: its path below the folder that was given."""

    path: str
    name: str
    format: str
    """`warc` (WET too), `wikipedia`, `text`, `epub`, `jsonl`, `json`, `csv`, `tsv`, `parquet`."""
    compression: str
    """"", `gz`, `zst` or `bz2`."""
    num_bytes: int
    """0 where it is not known before the file is read, as of files in a list."""
    stamp: str
    """Changes when the content may have: time of change here, etag or generation in a store; empty where it is not
    known before the file is read, as of files in a list."""


@dataclass(frozen=True)
class RawPart:
    """A slice of a file by bytes, as it lies there; [0, num_bytes) of a file that is read as one."""

    file: RawFile
    start: int
    stop: int


@dataclass(frozen=True)
class RawOptions:
    """How raw files of one source become documents."""

    extractor: str = "resiliparse"
    """Of HTML: `resiliparse` or `trafilatura`."""
    document: str = "file"
    """What a document of a text file is: `file`, `chapter`, `paragraph` or `line`."""
    disambiguation: bool = False
    """Whether Wikipedia's pages that only list meanings are kept."""
    text_key: str = "text"
    """Key or column of the text in records."""
    url_key: str = "url"
    score_key: str = "score"
    min_score: float | None = None
    """Records (of links) below are dropped: 3 in WebText."""
    max_document_bytes: int = 16 << 20
    """A longer payload or page is skipped as a fault."""


COMMON_CRAWL = "https://data.commoncrawl.org/"
"""What the lists of a crawl are relative to."""
MAX_LIST_BYTES = 256 << 20
"""Of a list of paths, decompressed; that of a crawl's 90,000 WARC files has about 12 MB."""
_NAMES = (
    ("warc", re.compile(r"\.(?:warc|wet)(?:\.(gz|zst))?$", re.IGNORECASE)),
    ("wikipedia", re.compile(r"\.xml(?:-p\d+p\d+)?(?:\.(bz2|gz|zst))?$", re.IGNORECASE)),
    ("text", re.compile(r"\.txt(?:\.(gz|zst))?$", re.IGNORECASE)),
    ("epub", re.compile(r"\.epub()$", re.IGNORECASE)),
    ("jsonl", re.compile(r"\.(?:jsonl|ndjson)(?:\.(gz|zst))?$", re.IGNORECASE)),
    ("json", re.compile(r"\.json(?:\.(gz|zst))?$", re.IGNORECASE)),
    ("csv", re.compile(r"\.csv(?:\.(gz|zst))?$", re.IGNORECASE)),
    ("tsv", re.compile(r"\.tsv(?:\.(gz|zst))?$", re.IGNORECASE)),
    ("parquet", re.compile(r"\.parquet()$", re.IGNORECASE)),
)
_COMPRESSION = re.compile(r"\.(gz|zst|bz2)$", re.IGNORECASE)
_LIST = re.compile(r"\.paths(?:\.gz)?$", re.IGNORECASE)
_READABLE = (
    ".warc and .wet (also .gz, .zst), .xml (also .bz2), .txt, .epub, .jsonl, .json, .csv, .tsv, .parquet; and lists of "
    "them, .paths and .paths.gz"
)


class _Found(NamedTuple):
    """A file before its format is known."""

    path: str
    name: str
    num_bytes: int
    stamp: str
    is_named: bool
    """Whether it was given by its name or pattern, rather than met in a folder."""


def find_files(paths: Sequence[str], format: str, account: Account) -> list[RawFile]:
    """The raw files that these paths stand for, each once, sorted within each path. None is opened, but lists are.

    Args:
      paths: files, folders (recursively), globs, and lists of paths (`warc.paths.gz`); here, gs://, s3:// or https://.
      format: `auto` tells it from each name; any other is that of all files, but not of files in a folder whose
        names say otherwise.
      account: what lies in folders and is not read is counted here: `other_file`, `hidden`, `linked_folder`; and as a
        fault what cannot be: `unreadable`, a link to nothing or a pipe.

    A list has one path a line, relative to its own folder; `crawl-data/...`, as in the lists of Common Crawl, is
    there or else at https://data.commoncrawl.org/.
    """
    check_choice("format", format, FORMATS)
    files: dict[str, RawFile] = {}
    for path in paths:
        if not path:
            raise UserError(
                "The path of an input is empty: give a file, a folder, a glob or a list of paths."
            )
        if path.startswith(HUB):
            found = _of_hub(path)
        else:
            found = _listed(path) if _LIST.search(path) and not has_wildcard(path) else _expand(path, account)
        some = False
        for one in found:
            if (file := _raw_file(one, format)) is None:
                account.drop("other_file", one.name)
                continue
            some = True
            files.setdefault(file.path, file)
        if not some:
            raise UserError(f"{path} holds no file of a readable kind: {_READABLE}.")
    return list(files.values())


def _of_hub(path: str) -> Iterator[_Found]:
    """The files of a data set of the hub, fetched into its own cache."""
    for file in find_records(path, Tally()):
        yield _Found(file.path, file.name, file.num_bytes, str(file.changed_ns), True)


def _raw_file(found: _Found, format: str) -> RawFile | None:
    """None for a file of another kind that a folder holds."""
    name = found.path.partition("?")[0] if "://" in found.path else found.path
    guesses = ((kind, match[1] or "") for kind, ends in _NAMES if (match := ends.search(name)))
    guess, compression = next(guesses, (None, ""))
    if format != "auto" and (found.is_named or guess in (None, format)):
        match = _COMPRESSION.search(name)
        guess, compression = format, match[1] if match else ""
    elif format not in ("auto", guess):
        return None
    if guess is None:
        if not found.is_named:
            return None
        raise UserError(
            f"{found.path} is of no readable kind: {_READABLE}. Rename it, or say what it is (format=warc)."
        )
    return RawFile(found.path, found.name, guess, compression.lower(), found.num_bytes, found.stamp)


def _expand(path: str, account: Account) -> Iterator[_Found]:
    if not is_local(path):
        yield from remote.expand(path, _Found)
        return
    tally = Tally(account.dropped, account.changed)
    if os.path.isdir(path):
        root, names, is_named = path, walk(path, tally), False
    elif os.path.lexists(path):
        yield _local(path, os.path.basename(path), True)
        return
    elif has_wildcard(path):
        root, pattern = split_pattern(path)
        names, is_named = match_names(root, pattern, tally), True
    else:
        raise not_there(path, "a file, a folder, a glob or a list of paths")
    for name in sorted(names):
        try:
            yield _local(os.path.join(root, name), name, is_named)
        except UserError as error:  # of one file of many, that nobody named
            if account.strict:
                raise
            account.fault("unreadable", printable(name), "all of it", str(error))


def _local(path: str, name: str, is_named: bool) -> _Found:
    num_bytes, changed_ns = size_and_change(path)
    return _Found(path, printable(name), num_bytes, str(changed_ns), is_named)


def _listed(path: str) -> Iterator[_Found]:
    """The files of a list of paths. Those in a store are not asked for before they are read: there may be 90,000."""
    base = path.rpartition("/")[0]
    number = 0
    for number, raw in enumerate(_list_lines(path), 1):
        try:
            line = raw.decode().strip()
        except UnicodeDecodeError:
            raise UserError(f"{path}, line {number:,} is not UTF-8: give one path a line.") from None
        if not line or line.startswith("#"):
            continue
        if not is_inside(line):
            raise UserError(
                f"{path}, line {number:,}: {short(line)} does not lie below the list's folder. A list has relative "
                "paths, without `..`; give other files as paths of their own."
            )
        here = f"{base}/{line}" if base else line
        if is_local(path) and (os.path.lexists(here) or not line.startswith("crawl-data/")):
            if not os.path.lexists(here):
                raise UserError(
                    f"{path}, line {number:,}: {here} does not exist. Download it, or mend the list."
                )
            yield _local(here, line, True)
        else:
            home = COMMON_CRAWL + line if line.startswith("crawl-data/") else here
            yield _Found(home, line, 0, "", True)


def _list_lines(path: str) -> Iterator[bytes]:
    size = 0
    file = RawFile(path, path, "paths", "gz" if path.lower().endswith(".gz") else "", 0, "")
    with open_bytes(file) as stream:
        lines = gzip.GzipFile(fileobj=stream) if file.compression else stream
        try:
            while line := lines.readline(4 * MAX_NAME_CHARS):
                size += len(line)
                if size > MAX_LIST_BYTES:
                    raise UserError(
                        f"{path} has more than {MAX_LIST_BYTES:,} bytes of paths, the most that are read."
                    )
                yield line
        except (EOFError, OSError, zlib.error) as error:
            raise UserError(f"{path} is truncated or damaged ({error}): download it again.") from None


def open_bytes(file: RawFile) -> BinaryIO:
    """The bytes of the file as it lies there, from its start; from a store in blocks, each tried several times.

    Errors: UserError if it cannot be opened.
    """
    if not is_local(file.path):
        return remote.open_stream(file.path)
    try:
        return io.BufferedReader(_Local(file.path, "rb"))
    except OSError as error:
        raise unreadable(file.path, error.strerror or str(error)) from None


class _Local(io.FileIO):
    """A file whose errors, of a broken disk or a lost mount, are UserErrors that name it."""

    def readinto(self, buffer: Any) -> int | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise unreadable(str(self.name), error.strerror or str(error)) from None


Cutter = Callable[[RawFile, int], list[RawPart]]


def cut(file: RawFile, unit_bytes: int) -> list[RawPart]:
    """The parts of the file that are read in parallel, each of about so many bytes; of most formats, one."""
    if file.num_bytes > unit_bytes and (cutter := CUTTERS.get((file.format, file.compression))):
        return cutter(file, unit_bytes)
    return [RawPart(file, 0, file.num_bytes)]


def _cut_lines(file: RawFile, unit_bytes: int) -> list[RawPart]:
    """Each part starts with a line. A file in a store is not opened for this."""
    if not is_local(file.path):
        return [RawPart(file, 0, file.num_bytes)]
    starts = [0]
    with open_bytes(file) as stream:
        while (position := starts[-1] + unit_bytes) < file.num_bytes:
            stream.seek(position - 1)
            while (line := stream.readline(1 << 20)) and not line.endswith(b"\n"):
                pass
            if stream.tell() >= file.num_bytes:
                break
            starts.append(stream.tell())
    return [RawPart(file, start, stop) for start, stop in zip(starts, [*starts[1:], file.num_bytes])]


def _cut_wikipedia(file: RawFile, unit_bytes: int) -> list[RawPart]:
    from jaxlm.corpus.raw.wikipedia_dump import cut_wikipedia

    return cut_wikipedia(file, unit_bytes)


CUTTERS: dict[tuple[str, str], Cutter] = {
    ("jsonl", ""): _cut_lines,
    ("wikipedia", ""): _cut_wikipedia,
    ("wikipedia", "bz2"): _cut_wikipedia,
}
"""How files of a format and compression are cut. Lines of JSON can be, lines of CSV need not be records."""
