"""One unit of work: a slice of the input -> its shards, in a folder of its own. Imports no JAX."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from jaxlm.corpus.inputs import Unit
from jaxlm.corpus.readers import read_documents
from jaxlm.corpus.split import Split
from jaxlm.corpus.text import ReadOptions, Tally
from jaxlm.data.files import make_folder, write_atomic
from jaxlm.data.shards import ShardWriter
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.limits import check, read_json
from jaxlm.types import JSON_ERRORS

BATCH_CHARS = 1 << 20
SPLITS = ("train", "eval")
RESULT = "unit.json"
_COUNTS = {"num_tokens": int, "num_documents": int, "num_bytes": int}
_SHAPE = {
    "tally": {"dropped": {str: int}, "changed": {str: int}},
    "shards": {name: [{**_COUNTS, "file": str, "sha256": str}] for name in SPLITS},
}


class Cancelled(Exception):
    """Another unit failed, or the user gave up: this one stops early."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A unit and all that decides its result."""

    unit: Unit
    folder: str
    options: ReadOptions
    split: Split
    shard_tokens: int
    chunk_tokens: int

    @property
    def num_bytes(self) -> int:
        """How much work it is."""
        return sum(part.num_bytes for part in self.unit)


def finished(folder: str) -> dict[str, Any] | None:
    """The result of a unit that was completed before, or None."""
    try:
        result = read_json(os.path.join(folder, RESULT))
        check(result, _SHAPE)
        shards = [shard for name in SPLITS for shard in result["shards"][name]]
        return (
            result if all("crc32_sha256" in shard for shard in shards) else None
        )  # else by an older version
    except (FileNotFoundError, NotADirectoryError, KeyError, *JSON_ERRORS):  # damaged, so to be made again
        return None


def tokenise(job: Job, tokenizer: Tokenizer, heartbeat: Callable[[int], None]) -> dict[str, Any]:
    """Does the work and returns {"tally", "shards"}; written last to the unit's folder, atomically.

    Args:
      heartbeat: called after every batch with its number of tokens; may raise Cancelled.
    """
    make_folder(job.folder)
    tally = Tally()
    texts = (text for part in job.unit for text in read_documents(part, job.options, tally))
    shards = write_shards(
        texts, job.folder, job.split, tokenizer, job.shard_tokens, job.chunk_tokens, heartbeat
    )
    result = {"tally": tally.to_json(), "shards": shards}
    write_atomic(os.path.join(job.folder, RESULT), json.dumps(result).encode())
    return result


def write_shards(
    texts: Iterable[str],
    folder: str,
    split: Split,
    tokenizer: Tokenizer,
    shard_tokens: int,
    chunk_tokens: int,
    heartbeat: Callable[[int], None] = lambda tokens: None,
) -> dict[str, list[dict[str, Any]]]:
    """Tokenises documents into shards in an existing folder; split -> the shards' entries of a manifest."""
    outputs = {name: _Output(name, folder, tokenizer, shard_tokens, chunk_tokens) for name in SPLITS}
    try:
        pending = 0
        for text in texts:
            for name, piece in split.cut(text):
                outputs[name].texts.append(piece)
            pending += len(text)
            if pending >= BATCH_CHARS:
                heartbeat(sum(output.flush() for output in outputs.values()))
                pending = 0
        heartbeat(sum(output.flush() for output in outputs.values()))
        return {name: output.finish() for name, output in outputs.items()}
    except BaseException:
        for output in outputs.values():
            output.abort()
        raise


class _Output:
    """The documents of one split on their way to disk."""

    def __init__(self, name: str, folder: str, tokenizer: Tokenizer, shard_tokens: int, chunk_tokens: int):
        self.name = name
        self.folder = folder
        self.tokenizer = tokenizer
        self.shard_tokens = shard_tokens
        self.chunk_tokens = chunk_tokens
        self.texts: list[str] = []
        self.shards: list[dict[str, Any]] = []
        self.writer: ShardWriter | None = None

    def flush(self) -> int:
        """Tokenises and writes what has come together; returns the number of tokens."""
        if not self.texts:
            return 0
        ids, lengths = self.tokenizer.documents(self.texts)
        if self.writer is None:
            name = f"{self.name}-{len(self.shards):05d}"
            self.writer = ShardWriter(self.folder, name, self.tokenizer.vocab_size, self.chunk_tokens)
        self.writer.add_batch(ids, lengths, sum(len(text.encode()) for text in self.texts))
        self.texts = []
        if self.writer.num_tokens >= self.shard_tokens:
            self._close()
        return len(ids)

    def _close(self) -> None:
        if self.writer is not None:
            self.shards.append(self.writer.close())
            self.writer = None

    def finish(self) -> list[dict[str, Any]]:
        self._close()
        return self.shards

    def abort(self) -> None:
        if self.writer is not None:
            self.writer.abort()
            self.writer = None
