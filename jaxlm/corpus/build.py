"""Raw text -> tokenised shards and a manifest: in parallel, atomic, continuing where a killed build was.

```
inputs.find_inputs -> plan_units -> units.tokenise, one folder per unit in DIR/.build   (any order, any process)
                                 -> assemble: shards renamed or merged in unit order    -> manifest.json, last
```

A unit's shards depend on its slice of the input and on nothing else, so the result is the same to the byte whatever
the number of workers, and whether or not the build was interrupted. Importing this module imports no JAX: workers
start in a fraction of a second.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from jaxlm.corpus import units
from jaxlm.corpus.inputs import InputFile, Unit, find_inputs, fingerprint, plan_units
from jaxlm.corpus.progress import Progress
from jaxlm.corpus.readers import read_documents
from jaxlm.corpus.split import Split, plan_split
from jaxlm.corpus.text import ReadOptions, Tally
from jaxlm.data.files import cache_root, disk_error, exclusive, is_local, make_folder, write_atomic
from jaxlm.data.shards import (
    CHUNK_TOKENS,
    MANIFEST,
    is_corpus,
    join_shards,
    make_manifest,
    read_manifest,
    write_manifest,
)
from jaxlm.data.tokenizer import SentencePieceTokenizer
from jaxlm.types import UserError

SHARD_TOKENS = 16 << 20
SINGLE_PROCESS_BYTES = 8 << 20
"""Below this, starting worker processes takes longer than the work."""
TOKENIZER_FILE = "tokenizer.model"
_BUILD = ".build"
_PLAN = "plan.json"
_VERSION = 1  # raise it when the same input would give other tokens


def build_corpus(
    paths: Sequence[str],
    output_dir: epath.PathLike,
    tokenizer: SentencePieceTokenizer,
    *,
    text_key: str = "text",
    document: str = "file",
    eval_fraction: float = 0.0,
    eval_split: str = "hash",
    invalid_utf8: str = "strict",
    shard_tokens: int = SHARD_TOKENS,
    workers: int | None = None,
    progress: bool | None = None,
    files: Sequence[tuple[str, int, str]] | None = None,
) -> dict[str, Any]:
    """Builds a corpus; returns its manifest. The same call again continues, or finds it finished.

    Args:
      paths: files, folders, globs, `embedded:<name>`; see inputs.find_inputs.
      text_key, document, invalid_utf8: see SourceConfig and DataConfig.
      eval_fraction, eval_split: what is held out; see DataConfig.
      shard_tokens: about the size of a shard.
      workers: processes; None: as many as there are processors and work for.
      progress: False: say nothing.
      files: the input's fingerprint, where the caller has computed it.
    """
    options = ReadOptions(text_key, document, invalid_utf8)
    tally = Tally()
    inputs = find_inputs(paths, tally)
    content = list(files or fingerprint(inputs))
    key = build_key(content, options, eval_split, eval_fraction, tokenizer.sha256, shard_tokens)
    output = os.fspath(output_dir)
    make_folder(output)
    staging = output if is_local(output) else os.path.join(cache_root(), "staging", key[:16])
    make_folder(os.path.join(staging, _BUILD))
    try:
        with exclusive(os.path.join(staging, _BUILD, "lock")):
            if is_corpus(output):
                manifest = _check_finished(output, key)
            else:
                _prepare(staging, key)
                label = paths[0] if len(paths) == 1 else f"{len(paths)} inputs"
                jobs, split = _plan(inputs, options, eval_split, eval_fraction, shard_tokens, staging, label)
                _run(jobs, tokenizer, workers, Progress(f"tokenising {label}", _size(jobs), progress))
                source = _source(paths, content, options, split)
                manifest = _assemble(staging, jobs, tokenizer, tally, key, source)
                _publish(staging, output, manifest)
            shutil.rmtree(os.path.join(staging, _BUILD), ignore_errors=True)
    except OSError as error:
        raise disk_error(output, error) or error from error
    return manifest


def build_key(
    content: Sequence[tuple[str, int, str]],
    options: ReadOptions,
    eval_split: str,
    eval_fraction: float,
    tokenizer_sha256: str,
    shard_tokens: int = SHARD_TOKENS,
) -> str:
    """Equal keys mean equal corpora: a hash of the input's content and all that decides what becomes of it."""
    parts = [_VERSION, content, [options.text_key, options.document, options.invalid_utf8],
             [eval_split, eval_fraction], tokenizer_sha256, shard_tokens, CHUNK_TOKENS]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _check_finished(output: str, key: str) -> dict[str, Any]:
    manifest = read_manifest(output)
    if manifest.get("key") != key:
        raise UserError(
            f"{output} holds a finished corpus made from other input, tokenizer or options. Choose another "
            "--output, or delete the folder to build it anew."
        )
    return manifest


def _prepare(staging: str, key: str) -> None:
    """Keeps the finished units of a build with the same key; removes those of another."""
    plan = os.path.join(staging, _BUILD, _PLAN)
    if os.path.exists(plan):
        with open(plan, encoding="utf-8") as file:
            if json.load(file)["key"] == key:
                return
        for name in os.listdir(staging):
            if name.startswith(tuple(f"{split}-" for split in units.SPLITS)) or name == TOKENIZER_FILE:
                os.unlink(os.path.join(staging, name))
        for name in os.listdir(os.path.join(staging, _BUILD)):
            if name.startswith("unit-"):
                shutil.rmtree(os.path.join(staging, _BUILD, name))
    elif others := [name for name in os.listdir(staging) if name != _BUILD]:
        raise UserError(
            f"{staging} is not empty ({others[0]} is in it) and holds no unfinished build: choose another --output."
        )
    write_atomic(plan, json.dumps({"key": key}).encode())


def _plan(
    inputs: Sequence[InputFile],
    options: ReadOptions,
    eval_split: str,
    eval_fraction: float,
    shard_tokens: int,
    staging: str,
    label: str,
) -> tuple[list[units.Job], Split]:
    work = plan_units(inputs, options)
    scratch = Tally()  # these documents are read, and counted, once more
    documents = (text for unit in work for part in unit for text in read_documents(part, options, scratch))
    split = plan_split(eval_split, eval_fraction, documents, label)
    folder = os.path.join(staging, _BUILD, "unit-")
    return [
        units.Job(unit, f"{folder}{index:06d}", options, split, shard_tokens, CHUNK_TOKENS)
        for index, unit in enumerate(work)
    ], split


def _num_bytes(unit: Unit) -> int:
    # Of a Parquet or ArrayRecord slice, in proportion to its row groups or records.
    whole = {part.file.path for part in unit if part.file.format in ("parquet", "arrayrecord")}
    sliced = sum(part.stop - part.start for part in unit if part.file.path not in whole)
    return sliced + sum(part.file.num_bytes for part in unit if part.file.path in whole)


def _size(jobs: Sequence[units.Job]) -> int:
    return sum(_num_bytes(job.unit) for job in jobs)


def _run(
    jobs: Sequence[units.Job], tokenizer: SentencePieceTokenizer, workers: int | None, bar: Progress
) -> None:
    """Completes every unit that is not complete yet."""
    with bar:
        waiting = []
        for job in jobs:
            if units.finished(job.folder):
                bar.add(_num_bytes(job.unit), 0)
            else:
                waiting.append(job)
        if workers is None:
            workers = len(os.sched_getaffinity(0)) if _size(waiting) >= SINGLE_PROCESS_BYTES else 1
        if workers < 1:
            raise UserError(f"workers={workers} must be at least 1.")
        if min(workers, len(waiting)) <= 1:
            for job in waiting:
                units.tokenise(job, tokenizer, lambda tokens: bar.add(0, tokens))
                bar.add(_num_bytes(job.unit), 0)
        else:
            _run_parallel(waiting, tokenizer, min(workers, len(waiting)), bar)


def _run_parallel(
    jobs: Sequence[units.Job], tokenizer: SentencePieceTokenizer, workers: int, bar: Progress
) -> None:
    # Spawned, not forked: the parent may hold JAX's threads, which a fork would break.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(tokenizer, stop)
    ) as pool:
        futures = {pool.submit(_work, job): job for job in jobs}
        try:
            for future in concurrent.futures.as_completed(futures):
                bar.add(_num_bytes(futures[future].unit), future.result())
        except concurrent.futures.BrokenExecutor:
            raise UserError(
                "A worker process was killed, perhaps for lack of memory. What is done is kept: run the same "
                "command again, with fewer --workers."
            ) from None
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


_worker: dict[str, Any] = {}


def _start_worker(tokenizer: SentencePieceTokenizer, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which sets `stop`
    _worker.update(tokenizer=tokenizer, stop=stop)


def _work(job: units.Job) -> int:
    tokens = 0

    def heartbeat(count: int) -> None:
        nonlocal tokens
        tokens += count
        if _worker["stop"].is_set() or os.getppid() == 1:
            raise units.Cancelled

    units.tokenise(job, _worker["tokenizer"], heartbeat)
    return tokens


def _source(
    paths: Sequence[str], content: Sequence[tuple[str, int, str]], options: ReadOptions, split: Split
) -> dict[str, Any]:
    listed = [{"name": name, "num_bytes": size, "sha256": digest} for name, size, digest in content[:1000]]
    return {
        "inputs": list(paths),
        "num_files": len(content),
        "num_bytes": sum(size for _, size, _ in content),
        "files": listed,
        "text_key": options.text_key,
        "document": options.document,
        "invalid_utf8": options.invalid_utf8,
        "eval_split": split.kind,
        "eval_fraction": split.fraction,
    }


def _assemble(
    staging: str,
    jobs: Sequence[units.Job],
    tokenizer: SentencePieceTokenizer,
    tally: Tally,
    key: str,
    source: dict[str, Any],
) -> dict[str, Any]:
    """Gives the units' shards their final names, small neighbours joined; may be interrupted and repeated."""
    results = []
    for job in jobs:
        result = units.finished(job.folder)
        assert result is not None, job.folder
        tally.add(Tally.from_json(result["tally"]))
        results.append(result)
    splits: dict[str, list[dict[str, Any]]] = {}
    for name in units.SPLITS:
        pieces = [(job.folder, shard) for job, result in zip(jobs, results) for shard in result["shards"][name]]
        groups = _grouped(pieces, jobs[0].shard_tokens if jobs else 1)
        splits[name] = [
            join_shards(group, staging, f"{name}-{number:05d}", tokenizer.vocab_size, CHUNK_TOKENS)
            for number, group in enumerate(groups)
        ]
    documents = {name: sum(shard["num_documents"] for shard in shards) for name, shards in splits.items()}
    _check_filled(documents, source, tally)
    return make_manifest(
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        splits=splits,
        source=source,
        dropped=tally.dropped,
        changed=dict(sorted(tally.changed.items())),
        key=key,
    )


def _check_filled(documents: dict[str, int], source: dict[str, Any], tally: Tally) -> None:
    if documents["train"]:
        return
    label = ", ".join(source["inputs"])
    if documents["eval"]:
        raise UserError(
            f"{label}: all {documents['eval']} documents were held out by eval_fraction="
            f"{source['eval_fraction']}; nothing is left to train on. Lower it, or choose eval_split=tail."
        )
    drops = ", ".join(f"{count} {reason}" for reason, count in sorted(tally.dropped.items())) or "none"
    raise UserError(f"{label} holds no document: nothing to train on. Dropped: {drops}.")


def _grouped(pieces: list[tuple[str, dict[str, Any]]], shard_tokens: int):
    """Neighbours together until half a shard is full: a full unit stays alone and is renamed, not copied."""
    group, filled = [], 0
    for piece in pieces:
        group.append(piece)
        filled += piece[1]["num_tokens"]
        if 2 * filled >= shard_tokens:
            yield group
            group, filled = [], 0
    if group:
        yield group


def _publish(staging: str, output: str, manifest: dict[str, Any]) -> None:
    """Uploads the shards if the output is remote; then writes the manifest, which makes it a corpus."""
    if staging != output:
        shards = itertools.chain.from_iterable(manifest["splits"][name]["shards"] for name in units.SPLITS)
        for shard in shards:
            base = shard["file"].removesuffix(".arrayrecord")
            for name in (shard["file"], base + ".offsets.npy"):
                epath.Path(staging, name).copy(epath.Path(output) / name, overwrite=True)
    write_manifest(output, manifest)
    if staging != output:
        shutil.rmtree(staging, ignore_errors=True)
