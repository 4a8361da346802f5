"""Which files are read, in which order, cut into which units of work.

All of it is a pure function of the names, sizes and content of the input: the same on every machine, whatever
the number of workers.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from etils import epath

from jaxlm.corpus import embedded, embedded_records
from jaxlm.corpus.text import ReadOptions, Tally
from jaxlm.data.files import reachable
from jaxlm.data.manifest import is_corpus
from jaxlm.paths import is_local
from jaxlm.types import UserError

UNIT_BYTES = 64 << 20
"""Largest unit of work, before compression; smaller for small inputs, so that several workers get a share."""
_FORMATS = {"ndjson": "jsonl", "array_record": "arrayrecord"}
_COMPRESSED = ("txt", "jsonl", "json", "csv", "tsv")
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
_WILD = re.compile(r"[*?\[]")


class Kinds(NamedTuple):
    """Kinds of files, by the ends of their names."""

    suffix: re.Pattern[str]
    names: str
    """For messages."""


TEXTS = Kinds(
    re.compile(r"\.(txt|jsonl|ndjson|parquet|arrayrecord|array_record)(?:\.(gz|zst))?$", re.IGNORECASE),
    ".txt, .jsonl (both also .gz or .zst), .parquet and .arrayrecord",
)
RECORDS = Kinds(
    re.compile(r"\.(json|jsonl|ndjson|csv|tsv|parquet)(?:\.(gz|zst))?$", re.IGNORECASE),
    ".json, .jsonl, .csv, .tsv (all also .gz or .zst) and .parquet",
)


@dataclass(frozen=True)
class InputFile:
    """One file of text; `name` is its path below the folder that was given, and is what manifests say.

    `changed_ns` is when its content last changed; 0 where that cannot be known.
    """

    path: str
    name: str
    format: str
    compression: str
    num_bytes: int
    changed_ns: int = 0

    @property
    def splittable(self) -> bool:
        """Whether a reader can start in the middle."""
        return not self.compression and self.format != "embedded"


@dataclass(frozen=True)
class Part:
    """A slice of a file: bytes (of lines or paragraphs), row groups (Parquet), or records (ArrayRecord)."""

    file: InputFile
    start: int
    stop: int
    num_bytes: int
    """How much work it is: bytes, estimated where they are compressed."""


Unit = tuple[Part, ...]
"""What one worker does at a time; its result depends on nothing else."""


def find_inputs(paths: Sequence[str], tally: Tally, kinds: Kinds = TEXTS) -> list[InputFile]:
    """The files below these paths, each once, sorted within each path.

    Args:
      paths: files, folders (recursively), globs, or `embedded:<name>`; local or gs://.
      tally: what lies in the folders and is not read is counted here as dropped: files that are not text
        ("other_file"), names that start with a dot ("hidden"), links to folders ("linked_folder").
      kinds: which files are read.
    """
    files: dict[str, InputFile] = {}
    for path in paths:
        if not path:
            raise UserError(
                "The path of an input is empty: give a file, a folder, a glob or embedded:topics."
            )
        found = list(_expand(path, tally, kinds))
        if not found:
            raise UserError(f"{path} matches no file of a readable kind: {kinds.names}.")
        for file in found:
            files.setdefault(file.path, file)
    return list(files.values())


def _expand(path: str, tally: Tally, kinds: Kinds) -> Iterator[InputFile]:
    if embedded.is_embedded(path) and kinds is RECORDS:
        yield InputFile(path, path, "embedded", "", embedded_records.about_bytes(path))
        return
    if embedded.is_embedded(path):
        yield InputFile(path, path, "embedded", "", embedded.about_bytes(path))
        return
    root = reachable(path)
    if root.is_dir():
        names = walk(path, tally)
    elif root.exists() or (is_local(path) and os.path.islink(path)):  # a link to nothing is named as such
        yield _input_file(path, root.name, kinds)
        return
    elif has_wildcard(path):
        root, pattern = split_pattern(path)
        names = match_names(root, pattern, tally)
    else:
        raise not_there(path, "a file, a folder, a glob or embedded:topics")
    for name in sorted(names):
        if kinds.suffix.search(name):
            yield _input_file(os.fspath(root / name), name, kinds)
        else:
            tally.dropped["other_file"] += 1


def has_wildcard(path: str) -> bool:
    """Whether the path is a pattern."""
    return _WILD.search(path) is not None


def split_pattern(path: str) -> tuple[epath.Path, str]:
    """The folder of a pattern that has no wildcard, and the rest."""
    parts = path.split("/")
    wild = next(i for i, part in enumerate(parts) if _WILD.search(part))
    return epath.Path("/".join(parts[:wild]) or ("/" if path.startswith("/") else ".")), "/".join(
        parts[wild:]
    )


def not_there(path: str, what: str) -> UserError:
    """The error of a path where nothing is."""
    if is_local(path) and _is_hidden(path):
        return unreadable(path, os.strerror(errno.EACCES))
    home = " (~ is a matter of the shell: write out your home folder)" if path.startswith("~") else ""
    return UserError(f"{path} does not exist{home}: give {what}.")


def walk(folder: str, tally: Tally) -> list[str]:
    """Files below a folder; hidden ones and linked folders (which may form rings) are left out, and counted."""
    if not is_local(folder):
        _refuse_tokens(folder)
        root = epath.Path(folder)
        files = [file for file in root.rglob("*") if not file.is_dir()]
        names = [os.fspath(file)[len(os.fspath(root)) :].lstrip("/") for file in files]
        return [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    names = []
    for where, folders, files in os.walk(folder, onerror=_refuse):
        _refuse_tokens(where)
        _count(tally, "hidden", sum(name.startswith(".") for name in [*folders, *files]))
        folders[:] = [f for f in folders if not f.startswith(".")]
        _count(tally, "linked_folder", sum(os.path.islink(os.path.join(where, f)) for f in folders))
        relative = os.path.relpath(where, folder)
        names += [os.path.normpath(os.path.join(relative, f)) for f in files if not f.startswith(".")]
    return [name.replace(os.sep, "/") for name in names]


def _is_hidden(path: str) -> bool:
    """Whether the path may be there, in a folder that this user may not search."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == errno.EACCES
    return False


def _refuse(error: OSError) -> None:
    raise unreadable(error.filename, error.strerror or str(error)) from None


def unreadable(path: str, reason: str) -> UserError:
    """The error of a file or folder that is there."""
    return UserError(f"{printable(path)} cannot be read ({reason}): allow it, or remove it from the input.")


def _refuse_tokens(folder: str) -> None:
    if is_corpus(folder):
        raise UserError(
            f"{folder} is a corpus of tokens already: use it as the source of a run, or give the raw text to "
            "build another."
        )


def _count(tally: Tally, reason: str, number: int) -> None:
    if number:
        tally.dropped[reason] += number


def match_names(root: epath.Path, pattern: str, tally: Tally) -> list[str]:
    """The files below a folder that a pattern matches; counted as by `walk`."""
    if is_local(root):
        _check_searchable(root, pattern)
        names = glob.glob(pattern, root_dir=os.fspath(root), recursive=True)
        if "**" in pattern:  # goes into folders by itself
            names = [name for name in names if not _linked(root, name)]
        else:
            _count(tally, "folder", sum((root / name).is_dir() for name in names))
        return [name for name in names if not (root / name).is_dir()]
    prefix = len(os.fspath(root))
    return [os.fspath(file)[prefix:].lstrip("/") for file in root.glob(pattern) if not file.is_dir()]


def _check_searchable(root: epath.Path, pattern: str) -> None:
    """UserError if a folder that the pattern goes through cannot be read: glob would leave it out in silence."""
    parts = pattern.split("/")
    for depth in range(len(parts)):
        inner = (
            glob.glob("/".join(parts[:depth]), root_dir=os.fspath(root), recursive=True) if depth else [""]
        )
        for folder in (os.path.join(root, name) for name in inner):
            if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
                raise unreadable(folder, os.strerror(errno.EACCES))


def _linked(root: epath.Path, name: str) -> bool:
    """Whether one of the file's folders below `root` is a link: `**` would follow it, round and round."""
    folders = [name[: match.start()] for match in re.finditer("/", name)]
    return any(os.path.islink(os.path.join(root, folder)) for folder in folders)


def _input_file(path: str, name: str, kinds: Kinds) -> InputFile:
    match = kinds.suffix.search(name)
    if match is None:
        raise UserError(f"{path} is of no readable kind: {kinds.names}. Rename it if it is one of these.")
    kind, compression = match[1].lower(), (match[2] or "").lower()
    kind = _FORMATS.get(kind, kind)
    if compression and kind not in _COMPRESSED:
        raise UserError(
            f"{path}: {kind} is compressed inside; decompress the .{compression} around it first."
        )
    if kind == "arrayrecord":
        _refuse_tokens(os.fspath(epath.Path(path).parent))
    return InputFile(path, printable(name), kind, compression, *size_and_change(path))


def printable(name: str) -> str:
    """The name on one line: control characters are spelt out, and so are bytes that are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace").translate(_CONTROLS)


def size_and_change(path: str) -> tuple[int, int]:
    """Bytes of a file, and when its content last changed in ns; UserError if it cannot be read."""
    if not is_local(path):
        return epath.Path(path).stat().length, 0
    try:
        status = os.stat(path)
    except OSError as error:
        what = "a link to nothing" if os.path.islink(path) else "not readable"
        raise UserError(
            f"{printable(path)} is {what} ({error.strerror}): restore the text, or remove it from the input."
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{printable(path)} is no file but a pipe or device: remove it from the input.")
    if not os.access(path, os.R_OK):
        raise unreadable(path, os.strerror(errno.EACCES))
    # Not the time of modification, which tools such as `cp -p` and `rsync -t` set at will.
    return status.st_size, status.st_ctime_ns


def fingerprint(files: Sequence[InputFile]) -> list[tuple[str, int, str]]:
    """(name, bytes, content hash) of each file: two inputs with the same list hold the same text."""
    return [(file.name, file.num_bytes, _content_hash(file)) for file in files]


def _content_hash(file: InputFile) -> str:
    if file.format == "embedded":
        of_records = embedded_records.is_records(file.path)
        return (embedded_records if of_records else embedded).fingerprint(file.path)
    if not is_local(file.path):
        # Hashing would mean downloading all of it once more; an object's time changes with its content.
        return f"modified {epath.Path(file.path).stat().mtime}"
    try:
        with open(file.path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(file.path, error.strerror or str(error)) from None


def check_unchanged(files: Sequence[InputFile]) -> None:
    """UserError if a file is not what it was when it was found: its tokens and hash might not agree."""
    for file in files:
        if file.format != "embedded" and size_and_change(file.path) != (file.num_bytes, file.changed_ns):
            raise UserError(
                f"{printable(file.path)} changed while it was read; run again when it is complete."
            )


def plan_units(files: Sequence[InputFile], options: ReadOptions, unit_bytes: int | None = None) -> list[Unit]:
    """Cuts the input into units of about equal size: small files together, large ones in slices."""
    total = sum(_weight(file) for file in files)
    size = unit_bytes or max(1 << 20, min(UNIT_BYTES, total // 64))
    units: list[Unit] = []
    current: list[Part] = []
    filled = 0
    for file in files:
        for part in _slices(file, options, size):
            if current and filled + part.num_bytes > size:
                units.append(tuple(current))
                current, filled = [], 0
            current.append(part)
            filled += part.num_bytes
    if current:
        units.append(tuple(current))
    return units


def _weight(file: InputFile) -> int:
    return file.num_bytes * (4 if file.compression or file.format == "parquet" else 1)


def _slices(file: InputFile, options: ReadOptions, size: int) -> Iterator[Part]:
    weight = _weight(file)
    if file.format == "parquet":
        yield from _row_group_slices(file, size)
    elif file.format == "arrayrecord":
        yield from _record_slices(file, size)
    elif weight <= size or not file.splittable or (file.format == "txt" and options.document == "file"):
        yield Part(file, 0, file.num_bytes, weight)
    else:
        paragraphs = file.format == "txt" and options.document == "paragraph"
        start = 0
        while start < file.num_bytes:
            stop = _next_document(file, start + size, paragraphs)
            yield Part(file, start, stop, stop - start)
            start = stop


def _next_document(file: InputFile, position: int, paragraphs: bool) -> int:
    """The first byte at or after `position` where a line, or the text after a blank line, begins."""
    if position >= file.num_bytes:
        return file.num_bytes
    with epath.Path(file.path).open("rb") as stream:
        stream.seek(position - 1)
        stream.readline()
        while paragraphs and (line := stream.readline()) and line.strip():
            pass
        return stream.tell()


def _row_group_slices(file: InputFile, size: int) -> Iterator[Part]:
    from jaxlm.corpus.readers import open_parquet

    with open_parquet(file) as parquet:
        sizes = [
            parquet.metadata.row_group(i).total_byte_size for i in range(parquet.metadata.num_row_groups)
        ]
    start, filled = 0, 0
    for group, num_bytes in enumerate(sizes):
        filled += num_bytes
        if filled >= size or group == len(sizes) - 1:
            yield Part(file, start, group + 1, filled)
            start, filled = group + 1, 0
    if not sizes:
        yield Part(file, 0, 0, 0)


def _record_slices(file: InputFile, size: int) -> Iterator[Part]:
    from jaxlm.corpus.readers import open_arrayrecord

    reader = open_arrayrecord(file)
    num_records = reader.num_records()
    reader.close()
    slices = max(1, min(num_records, -(-file.num_bytes // size)))
    cuts = [num_records * i // slices for i in range(slices + 1)]
    for start, stop in zip(cuts, cuts[1:]):
        yield Part(file, start, stop, file.num_bytes // slices)
