"""The first stage: raw files -> documents that passed the filters, with the hashes that find copies.

Steps of a datatrove pipeline: ReadUnits, then filters and formatters, then WriteUnits; a task is a unit. They share the
account of the unit, in which each counts what it leaves out.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import zstandard
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from jaxlm.corpus.raw.config import DedupConfig
from jaxlm.corpus.raw.document import Account, RawDocument
from jaxlm.corpus.raw.files import RawOptions, RawPart
from jaxlm.corpus.raw.links import keep_linked, read_links
from jaxlm.corpus.raw.minhash import Signatures
from jaxlm.corpus.raw.work import RawUnit, made_aside, result_of, write_result
from jaxlm.corpus.split import hash_of
from jaxlm.data.checksums import npy
from jaxlm.data.files import write_atomic
from jaxlm.data.npy import read_npy
from jaxlm.types import JSON_ERRORS, UserError

DOCUMENTS = "documents.jsonl.zst"
HASHES = "hashes.npy"
_EXACT, _NEAR = "exact", "signatures"
_ZSTD_LEVEL = 3
_FIELDS = tuple(field.name for field in dataclasses.fields(RawDocument) if field.name not in ("text", "id"))


def read_part(part: RawPart, options: RawOptions, account: Account) -> Iterator[RawDocument]:
    """The documents of a slice, by the reader of its format."""
    kind = part.file.format
    if kind == "warc":
        from jaxlm.corpus.raw.warc import read_warc as read
    elif kind == "wikipedia":
        from jaxlm.corpus.raw.wikipedia import read_wikipedia as read
    elif kind == "text":
        from jaxlm.corpus.raw.books import read_text_files as read
    elif kind == "epub":
        from jaxlm.corpus.raw.epub import read_epub as read
    else:
        from jaxlm.corpus.raw.rows import read_rows as read
    return read(part, options, account)


class ReadUnits(PipelineStep):
    """Yields the documents of unit number `rank`; none where they have been written already."""

    type = "READER"
    name = "raw files"

    def __init__(
        self,
        units: Sequence[RawUnit],
        output: str,
        options: RawOptions,
        account: Account,
        links: tuple[str, ...] = (),
    ):
        super().__init__()
        self.units, self.output, self.options, self.account = units, output, options, account
        self.links = links
        self._wanted: set[str] | None = None

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yields them, with where they come from as metadata."""
        unit = self.units[rank]
        self.account.clear()
        if result_of(unit.folder(self.output)) is not None:
            return
        for part in unit.parts:
            for document in read_part(part, self.options, self.account):
                self.stat_update("documents")
                self.account.read_documents += 1
                self.account.read_text_bytes += len(document.text.encode())
                if self.links and not keep_linked(document.url, self.wanted, self.account):
                    continue
                metadata = {name: getattr(document, name) for name in _FIELDS}
                yield Document(text=document.text, id=document.id, metadata=metadata)

    @property
    def wanted(self) -> set[str]:
        """The addresses on the lists, read once in a process."""
        if self._wanted is None:
            self._wanted = set().union(*(read_links(path, self.options.min_score) for path in self.links))
        return self._wanted

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_wanted": None}


class WriteUnits(PipelineStep):
    """Writes what arrives, and its hashes; the last of the files makes the unit a finished one."""

    type = "WRITER"
    name = "documents"

    def __init__(self, units: Sequence[RawUnit], output: str, dedup: DedupConfig, account: Account):
        super().__init__()
        self.units, self.output, self.dedup, self.account = units, output, dedup, account

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Writes the folder of unit `rank`."""
        folder = self.units[rank].folder(self.output)
        if result_of(folder) is not None:
            return
        begin = time.monotonic()
        with made_aside(folder) as aside:
            facts = _write(data, aside, self.dedup)
            used = {"seconds": round(time.monotonic() - begin, 3), "num_bytes": self.units[rank].num_bytes}
            write_result(aside, {**facts, **used, "account": self.account.to_json()})


def _write(documents: Iterator[Document], folder: str, dedup: DedupConfig) -> dict[str, Any]:
    hashes, rows, signatures = [], [], []
    languages: Counter[str] = Counter()
    num_bytes = 0
    sign = Signatures(dedup) if dedup.minhash else None
    with open(os.path.join(folder, DOCUMENTS), "wb") as file:
        with zstandard.ZstdCompressor(_ZSTD_LEVEL).stream_writer(file, closefd=False) as out:
            for index, document in enumerate(documents):
                row = {"text": document.text, "id": document.id}
                row |= {name: value for name, value in document.metadata.items() if value is not None}
                out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                hashes.append(hash_of(document.text))
                size = len(document.text.encode())
                num_bytes += size
                languages[document.metadata.get("language") or "unknown"] += size
                if sign is not None and (signature := sign(document.text)) is not None:
                    rows.append(index)
                    signatures.append(signature)
        file.flush()
        os.fsync(file.fileno())
    write_atomic(os.path.join(folder, HASHES), npy(np.array(hashes, np.uint64)))
    if dedup.exact:
        _write_columns(folder, _EXACT, np.array([hashes], np.uint64), np.arange(len(hashes), dtype=np.uint32))
    if sign is not None:
        table = np.array(signatures, np.uint64).reshape(-1, dedup.num_buckets)
        _write_columns(folder, _NEAR, table.T, np.array(rows, np.uint32))
    return {
        "num_documents": len(hashes),
        "num_text_bytes": num_bytes,
        "languages": dict(sorted(languages.items())),
    }


def _write_columns(folder: str, name: str, columns: np.ndarray, owners: np.ndarray) -> None:
    """Hashes [columns, documents] and the documents that they belong to, each column in the order of its hashes.

    Sorted, so that a range of hashes is one piece of the file. All columns in one file: a file for each would be 30 of
    a unit, 2.7 million of a snapshot, and each waits for the disk twice.
    """
    order = np.argsort(columns, axis=1, kind="stable")
    write_atomic(os.path.join(folder, f"{name}.npy"), npy(np.take_along_axis(columns, order, axis=1)))
    write_atomic(os.path.join(folder, f"{name}-owners.npy"), npy(owners[order]))


def read_column(folder: str, number: int, dedup: DedupConfig) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, ascending; place in the unit of the document of each), mapped: 0 is the text as a whole (where
    `dedup.exact`), then a bucket each. Errors: UserError where a file is not what was written."""
    name, row = (_EXACT, 0) if dedup.exact and number == 0 else (_NEAR, number - int(dedup.exact))
    path = os.path.join(folder, name)
    try:
        hashes, owners = read_npy(f"{path}.npy", mapped=True), read_npy(f"{path}-owners.npy", mapped=True)
        return hashes[row], owners[row]
    except (OSError, ValueError, IndexError) as error:
        raise _damaged(f"{path}.npy", str(error)) from None


def num_columns(dedup: DedupConfig) -> int:
    """How many columns of hashes a unit has."""
    return int(dedup.exact) + dedup.num_buckets * int(dedup.minhash)


def read_documents(folder: str) -> Iterator[dict[str, Any]]:
    """The documents of a finished unit, in order. Errors: UserError where the file is not what was written."""
    path = os.path.join(folder, DOCUMENTS)
    expected = (result_of(folder) or {}).get("num_documents")
    count = 0
    try:
        with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
            for line in io.BufferedReader(stream, 1 << 20):  # pyright: ignore[reportArgumentType]
                yield json.loads(line)
                count += 1
    except (OSError, zstandard.ZstdError, *JSON_ERRORS) as error:
        raise _damaged(path, str(error)) from None
    if count != expected:  # zstandard ends a file that is cut short in silence
        raise _damaged(path, f"{count:,} documents of {expected}")


def _damaged(path: str, reason: str) -> UserError:
    return UserError(
        f"{path} is damaged ({reason}): remove its folder and run the same command again, which reads those files anew."
    )
