"""Units of work: which slices of which files are read together, and the folders of what comes of them.

```
OUTPUT/.build/read/<source>-<key>/      documents.jsonl.zst, hashes.npy, exact.npy, signatures.npy, unit.json (last)
OUTPUT/.build/dedup/<key>/              pairs-<column>.npy, removed-<unit key>.npy, unit.json (last)
OUTPUT/.build/tokens/<source>-<key>/    shards, unit.json (last)
OUTPUT/<source>/                        the corpus that `data.sources.<name>.path` names
```

A key is a hash of all that decides the content of the folder. So whatever is there is right: a build that was killed
goes on, one with more files makes only what is new, and the result is the same for any number of workers. A folder is
made under another name (`NAME.<random>.partial`) and renamed when it is complete: two tasks that do the same at once,
as a cluster may start them, do not get into each other's way.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.corpus.raw.config import CorpusConfig
from jaxlm.corpus.raw.files import RawFile, RawPart, cut
from jaxlm.corpus.split import hash_of
from jaxlm.data.files import disk_error, make_folder, write_atomic
from jaxlm.limits import read_json
from jaxlm.types import JSON_ERRORS

BUILD = ".build"
RESULT = "unit.json"
READ_VERSION = 2
"""Raise it when the same file would give other documents."""
_RANGE = 1 << 64


@dataclass(frozen=True)
class RawUnit:
    """Slices of one source that one task reads; its documents depend on nothing else."""

    source: str
    parts: tuple[RawPart, ...]
    key: str

    @property
    def num_bytes(self) -> int:
        """How much work it is."""
        return sum(part.stop - part.start for part in self.parts)

    def folder(self, output: str) -> str:
        """Where its documents lie."""
        return os.path.join(output, BUILD, "read", f"{self.source}-{self.key}")


def key_of(*parts: Any) -> str:
    """A short name for a value of JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def plan_units(cfg: CorpusConfig, source: str, files: Sequence[RawFile], rules: Any) -> list[RawUnit]:
    """The units of a source, in the order of its files.

    Args:
      rules: all that decides what becomes of a slice, as JSON.
    """
    unit_bytes = cfg.unit_mib << 20
    units = []
    for parts in _grouped([part for file in files for part in cut(file, unit_bytes)], unit_bytes):
        content = [
            [p.file.name, p.file.format, p.file.compression, p.file.num_bytes, p.file.stamp, p.start, p.stop]
            for p in parts
        ]
        units.append(RawUnit(source, tuple(parts), key_of(READ_VERSION, source, content, rules)))
    return units


def _grouped(parts: Iterable[RawPart], unit_bytes: int) -> Iterator[list[RawPart]]:
    """Small neighbours together. A group ends where the name of its last file says so: one file more changes one group.

    (Ends after a fixed number of bytes would all move with the first new file.)
    """
    group: list[RawPart] = []
    filled = 0
    for part in parts:
        size = part.stop - part.start
        group.append(part)
        filled += size
        chance = hash_of(part.file.name) / _RANGE
        if 2 * size >= unit_bytes or chance * unit_bytes < size or filled >= 4 * unit_bytes:
            yield group
            group, filled = [], 0
    if group:
        yield group


def result_of(folder: str) -> dict[str, Any] | None:
    """What a finished task wrote, or None: it has to be done (again)."""
    try:
        found = read_json(os.path.join(folder, RESULT), max_bytes=1 << 30)
    except (FileNotFoundError, NotADirectoryError, *JSON_ERRORS):
        return None
    return found if isinstance(found, dict) else None


@contextlib.contextmanager
def made_aside(folder: str) -> Iterator[str]:
    """Gives a new folder to fill; at the end of the block it becomes `folder`, unless that was finished meanwhile.

    Errors: UserError where the disk is full or read-only; then, as after any other exception, nothing is left.
    """
    aside = f"{folder}.{uuid.uuid4().hex[:8]}.partial"
    try:
        make_folder(aside)
        yield aside
        _rename_unless_done(aside, folder)
    except OSError as error:
        if (reason := disk_error(folder, error)) is not None:
            raise reason from None
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _rename_unless_done(aside: str, folder: str) -> None:
    while result_of(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            os.rename(aside, folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another task was here first
                raise


def write_result(folder: str, result: Any) -> None:
    """Marks a task as finished: everything else must be there already."""
    write_atomic(os.path.join(folder, RESULT), json.dumps(result, ensure_ascii=False).encode())


def keep_only(folder: str, names: set[str]) -> None:
    """Removes what belongs to files or settings that are no longer there, and what killed tasks left."""
    for name in os.listdir(folder):
        if name not in names:
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
