"""The last stages: documents that stay -> a tokenizer, shards for each unit, a corpus for each source."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep

from jaxlm.corpus.build import grouped
from jaxlm.corpus.raw.config import CorpusConfig
from jaxlm.corpus.raw.dedup import removed_file
from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.read import HASHES, read_documents
from jaxlm.corpus.raw.work import BUILD, RawUnit, keep_only, key_of, made_aside, result_of, write_result
from jaxlm.corpus.sources import TRAINING_BYTES
from jaxlm.corpus.split import Split, plan_split_of_hashes
from jaxlm.corpus.units import SPLITS, write_shards
from jaxlm.data.checksums import sha256
from jaxlm.data.files import make_folder, write_atomic
from jaxlm.data.manifest import is_corpus, make_manifest, read_manifest, write_manifest
from jaxlm.data.npy import read_npy
from jaxlm.data.shards import CHUNK_TOKENS, join_shards
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxlm.data.tokenizer_training import train_tokenizer
from jaxlm.types import UserError

TOKENS_VERSION = 1
"""Raise it when the same documents would give other tokens."""
_BLOCKS_PER_SOURCE = 64
"""A tokenizer is trained on as many pieces from all over a source."""


def kept_documents(unit: RawUnit, output: str, dedup: str) -> Iterator[dict[str, Any]]:
    """The documents of a unit that are no copies."""
    gone = set(read_npy(removed_file(dedup, unit)).tolist())
    for place, document in enumerate(read_documents(unit.folder(output))):
        if place not in gone:
            yield document


def split_of(units: Sequence[RawUnit], output: str, dedup: str, cfg: CorpusConfig) -> Split:
    """How the documents of a source, all in these units, are split: known from their hashes, without their text."""

    def hashes() -> Iterator[int]:
        for unit in units:
            found = read_npy(os.path.join(unit.folder(output), HASHES))
            yield from np.delete(found, read_npy(removed_file(dedup, unit))).tolist()

    return plan_split_of_hashes(cfg.eval_split, cfg.eval_fraction, hashes())


def tokenizer_file(output: str, cfg: CorpusConfig) -> str:
    """The tokenizer of the corpus: the one that is named, or where the one that is trained is written.

    It is trained once: files that are added later change neither it nor the tokens of what was there before.
    """
    if cfg.tokenizer.path is not None:
        return cfg.tokenizer.path
    size = "" if cfg.tokenizer.kind == "char" else f"-{cfg.tokenizer.vocab_size}"
    return os.path.join(output, BUILD, "tokenizers", f"{cfg.tokenizer.kind}{size}.model")


def lacks_tokenizer(output: str, cfg: CorpusConfig) -> bool:
    """Whether one is still to be trained."""
    return cfg.tokenizer.path is None and not os.path.exists(tokenizer_file(output, cfg))


class TrainTokenizer(PipelineStep):
    """One task: a tokenizer of the text that is trained on, each source by its weight; nothing where it is there."""

    type = "TOKENIZER"
    name = "sentencepiece"

    def __init__(self, units: Sequence[RawUnit], output: str, dedup: str, cfg: CorpusConfig):
        super().__init__()
        self.units, self.output, self.dedup, self.cfg = units, output, dedup, cfg

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Trains it and writes it. Errors: UserError where nothing of a source is left."""
        if not lacks_tokenizer(self.output, self.cfg):
            return
        for name in self.cfg.names:
            _check_not_empty(self.output, self.dedup, name, [u for u in self.units if u.source == name])
        path = tokenizer_file(self.output, self.cfg)
        make_folder(os.path.dirname(path))
        model = train_tokenizer(self._texts(), self.cfg.tokenizer.kind, self.cfg.tokenizer.vocab_size)
        write_atomic(path, model)

    def _texts(self) -> Iterator[str]:
        total = sum(source.weight_tokens for source in self.cfg.sources.values()) or 1.0
        for name in self.cfg.names:
            source = self.cfg.sources[name]
            units = [unit for unit in self.units if unit.source == name]
            split = split_of(units, self.output, self.dedup, self.cfg)
            budget = int(TRAINING_BYTES * source.weight_tokens / total)
            share = max(1, -(-budget // max(1, min(len(units), _BLOCKS_PER_SOURCE))))
            for unit in units[:: max(1, len(units) // _BLOCKS_PER_SOURCE)]:
                left = share
                for document in kept_documents(unit, self.output, self.dedup):
                    for part, text in split.cut(document["text"]):
                        if part == "train" and left > 0:
                            yield text[:left]
                            left -= len(text)
                    if left <= 0:
                        break


class Tokenise(PipelineStep):
    """Task u: the documents of unit u that stay, as shards of train and eval."""

    type = "TOKENIZER"
    name = "shards"

    def __init__(self, units: Sequence[RawUnit], output: str, dedup: str, cfg: CorpusConfig):
        super().__init__()
        self.units, self.output, self.dedup, self.cfg = units, output, dedup, cfg
        self._tokenizer: Tokenizer | None = None
        self._splits: dict[str, Split] = {}
        self._folders: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokenizer": None}

    @property
    def tokenizer(self) -> Tokenizer:
        """Loaded once in a process."""
        if self._tokenizer is None:
            path = tokenizer_file(self.output, self.cfg)
            self._tokenizer = load_tokenizer(path)
        return self._tokenizer

    def split(self, source: str) -> Split:
        """Of the documents of a source."""
        if source not in self._splits:
            units = [unit for unit in self.units if unit.source == source]
            self._splits[source] = split_of(units, self.output, self.dedup, self.cfg)
        return self._splits[source]

    def folder(self, unit: RawUnit) -> str:
        """Where the shards of a unit lie; to be asked when the copies are chosen. Worked out once in a process."""
        if unit.key not in self._folders:
            self._folders[unit.key] = self._folder(unit)
        return self._folders[unit.key]

    def _folder(self, unit: RawUnit) -> str:
        split = self.split(unit.source)
        gone = sha256(read_npy(removed_file(self.dedup, unit)).tobytes())
        rules = [split.kind, split.fraction, split.threshold, self.tokenizer.sha256, self.cfg.shard_tokens]
        key = key_of(TOKENS_VERSION, unit.key, gone, rules, CHUNK_TOKENS)
        return os.path.join(self.output, BUILD, "tokens", f"{unit.source}-{key}")

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Writes the shards of unit `rank`."""
        unit = self.units[rank]
        folder = self.folder(unit)
        if result_of(folder) is not None:
            return
        begin = time.monotonic()
        texts = (document["text"] for document in kept_documents(unit, self.output, self.dedup))
        split = self.split(unit.source)
        with made_aside(folder) as aside:
            shards = write_shards(texts, aside, split, self.tokenizer, self.cfg.shard_tokens, CHUNK_TOKENS)
            write_result(aside, {"shards": shards, "seconds": round(time.monotonic() - begin, 3)})


def assemble(step: Tokenise) -> dict[str, dict[str, Any]]:
    """Makes OUTPUT/<source> of the units' shards, for each source; returns their manifests.

    A source whose shards are the same as before is left alone. Another one is made beside, and then takes the place of
    the old one: there is a whole corpus under its name at any time but for a moment.
    """
    manifests = {}
    for name in step.cfg.names:
        units = [unit for unit in step.units if unit.source == name]
        folders = [step.folder(unit) for unit in units]
        manifests[name] = _assemble(step, name, units, folders)
    keep = {os.path.basename(step.folder(unit)) for unit in step.units}
    keep_only(os.path.join(step.output, BUILD, "tokens"), keep)
    return manifests


def _assemble(step: Tokenise, name: str, units: Sequence[RawUnit], folders: Sequence[str]) -> dict[str, Any]:
    target = os.path.join(step.output, name)
    key = key_of(TOKENS_VERSION, [os.path.basename(folder) for folder in folders])
    if is_corpus(target) and (found := read_manifest(target)).get("key") == key:
        return found
    _check_not_empty(step.output, step.dedup, name, units)
    results = [result_of(folder) for folder in folders]
    account = _account(step.output, units)
    staging = os.path.join(step.output, BUILD, "assembling", name)
    shutil.rmtree(staging, ignore_errors=True)
    make_folder(staging)
    splits = {}
    for split in SPLITS:
        pieces = [
            (f, shard) for f, result in zip(folders, results) for shard in (result or {})["shards"][split]
        ]
        splits[split] = [
            join_shards(group, staging, f"{split}-{number:05d}", step.tokenizer.vocab_size, keep=True)
            for number, group in enumerate(grouped(pieces, step.cfg.shard_tokens))
        ]
    step.tokenizer.save(staging)
    split_plan = step.split(name)
    source = {
        "inputs": [step.cfg.sources[name].path],
        "num_files": len({part.file.path for unit in units for part in unit.parts}),
        "num_bytes": sum(unit.num_bytes for unit in units),
        "eval_split": split_plan.kind,
        "eval_fraction": split_plan.fraction,
    }
    manifest = make_manifest(
        tokenizer_sha256=step.tokenizer.sha256,
        vocab_size=step.tokenizer.vocab_size,
        splits=splits,
        source=source,
        dropped=account.dropped,
        changed=dict(sorted(account.changed.items())),
        chunk_tokens=CHUNK_TOKENS,
        key=key,
    )
    write_manifest(staging, manifest)
    _replace(staging, target)
    return manifest


def _account(output: str, units: Sequence[RawUnit]) -> Account:
    account = Account()
    for unit in units:
        account.add(Account.from_json((result_of(unit.folder(output)) or {})["account"]))
    return account


def _check_not_empty(output: str, dedup: str, name: str, units: Sequence[RawUnit]) -> None:
    """UserError where nothing of a source is left: its weight would silently be that of others."""
    passed = sum((result_of(unit.folder(output)) or {})["num_documents"] for unit in units)
    gone = sum(len(read_npy(removed_file(dedup, unit))) for unit in units)
    if passed > gone:
        return
    account = _account(output, units)
    reasons = account.dropped + account.faults
    drops = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common(6)) or "none"
    raise UserError(
        f"sources.{name}: no document is left to train on, of {account.read_documents:,} read. Dropped: {drops}; "
        f"copies: {gone:,}. Loosen config.filters or set --config.sources.{name}.filter=false, point its path to other "
        f"files, or leave the source out with --config.sources.{name}=None."
    )


def _replace(staging: str, target: str) -> None:
    old = staging + ".old"
    shutil.rmtree(old, ignore_errors=True)
    if os.path.exists(target):
        os.rename(target, old)
    os.rename(staging, target)
    shutil.rmtree(old, ignore_errors=True)
