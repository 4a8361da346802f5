"""Raw text -> tokenised shards and a manifest: in parallel, atomic, continuing where a killed build was.

```
inputs.find_inputs -> plan_units -> units.tokenise, a folder per unit in DIR/.build (any order, any process)
                                 -> assemble: shards renamed or merged in unit order    -> manifest.json, last
```

A unit's shards depend on its slice of the input and on nothing else, so the result is the same to the byte
whatever the number of workers, and whether or not the build was interrupted.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from jaxlm.corpus import embedded, units
from jaxlm.corpus import workers as worker_pool
from jaxlm.corpus.inputs import (
    InputFile,
    check_unchanged,
    find_inputs,
    fingerprint,
    plan_units,
    printable,
)
from jaxlm.corpus.progress import Progress
from jaxlm.corpus.readers import read_documents
from jaxlm.corpus.split import Split, plan_split
from jaxlm.corpus.text import ReadOptions, Tally
from jaxlm.data.files import disk_error, exclusive, make_folder, write_atomic
from jaxlm.data.manifest import is_corpus, make_manifest, read_manifest, shard_files, write_manifest
from jaxlm.data.shards import CHUNK_TOKENS, TokenStore, join_shards
from jaxlm.data.tokenizer import TOKENIZER_FILE, TOKENIZER_FOLDER, Tokenizer
from jaxlm.limits import read_json
from jaxlm.paths import cache_root, is_local
from jaxlm.types import JSON_ERRORS, UserError

SHARD_TOKENS = 16 << 20
_BUILD = ".build"
_PLAN = "plan.json"
_LOCK = ".lock"
VERSION = 1  # raise it when the same input would give other tokens


def build_corpus(
    paths: Sequence[str],
    output_dir: epath.PathLike,
    tokenizer: Tokenizer,
    *,
    text_key: str = "text",
    document: str = "file",
    eval_fraction: float = 0.0,
    eval_split: str = "hash",
    invalid_utf8: str = "strict",
    shard_tokens: int = SHARD_TOKENS,
    workers: int | None = None,
    progress: bool | None = None,
    found: Found | None = None,
    rebuild: Callable[[UserError], None] | None = None,
) -> dict[str, Any]:
    """Builds a corpus; returns its manifest. The same call again continues, or finds it finished.

    Args:
      paths: files, folders, globs, `embedded:<name>`; see inputs.find_inputs.
      text_key, document, invalid_utf8: see SourceConfig and DataConfig.
      eval_fraction, eval_split: what is held out; see DataConfig.
      shard_tokens: about the size of a shard.
      workers: processes; None: as many as there are processors and work for.
      progress: False: say nothing.
      found: the input, where the caller has looked at it already.
      rebuild: for a folder of the cache: a finished corpus that is damaged is told of, removed and built again.
    """
    options = ReadOptions(text_key, document, invalid_utf8)
    inputs, tally, content = found or _find(paths)
    key = build_key(content, options, eval_split, eval_fraction, tokenizer.sha256, shard_tokens)
    output = os.fspath(output_dir)
    if not output:
        raise UserError("The output is empty: give an empty or new folder.")
    check_apart(paths, output)
    staging = output if is_local(output) else os.path.join(cache_root(), "staging", key[:16])
    label = paths[0] if len(paths) == 1 else f"{len(paths)} inputs"
    try:
        with _folders(output, staging):
            with exclusive(os.path.join(staging, _LOCK)):
                promised = _clear_damaged(output, rebuild) if rebuild is not None else None
                if is_corpus(output):
                    manifest = _check_finished(output, key)
                else:
                    jobs, split = _plan(inputs, options, eval_split, eval_fraction, shard_tokens, staging)
                    size = sum(job.num_bytes for job in jobs)
                    bar = Progress(f"tokenising {label}", size, progress)
                    with _prepared(staging, key):
                        worker_pool.run(jobs, tokenizer, workers, bar)
                        _check_unchanged(inputs, staging)
                        source = _source(paths, content, options, split)
                        manifest = _assemble(staging, jobs, tokenizer, tally, key, source)
                        _check_same(output, manifest, promised)
                        _publish(staging, output, manifest, tokenizer)
            shutil.rmtree(os.path.join(staging, _BUILD), ignore_errors=True)
    except OSError as error:
        reason = UserError(f"{error.filename or output}: {error.strerror or error}. Mend it and run again.")
        raise disk_error(output, error) or reason from error
    return manifest


Found = tuple[Sequence[InputFile], Tally, Sequence[tuple[str, int, str]]]
"""The input, what lies beside it and is not read, and its fingerprint."""


def _find(paths: Sequence[str]) -> Found:
    tally = Tally()
    inputs = find_inputs(paths, tally)
    return inputs, tally, fingerprint(inputs)


def check_apart(paths: Sequence[str], output: str) -> None:
    """UserError if the output lies in a folder of the input: the next build would read its tokens as text."""
    for path in filter(is_local, [] if not is_local(output) else paths):
        folder = os.path.realpath(path)
        if os.path.isdir(folder) and os.path.realpath(output).startswith(os.path.join(folder, "")):
            raise UserError(
                f"{output} lies inside the input {path}: a later build would take its tokens for text. Choose a "
                "folder beside it."
            )


def _check_unchanged(inputs: Sequence[InputFile], staging: str) -> None:
    try:
        check_unchanged(inputs)
    except UserError:
        _clear(staging)  # what the units hold may be a mixture of before and after
        raise


def build_key(
    content: Sequence[tuple[str, int, str]],
    options: ReadOptions,
    eval_split: str,
    eval_fraction: float,
    tokenizer_sha256: str,
    shard_tokens: int = SHARD_TOKENS,
) -> str:
    """Equal keys mean equal corpora: a hash of the input and of all that decides what becomes of it."""
    parts = [VERSION, content, [options.text_key, options.document, options.invalid_utf8],
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


def _clear_damaged(output: str, rebuild: Callable[[UserError], None]) -> str | None:
    """Removes a finished corpus whose files are not what was built; returns the hash it had, if that can be read.

    All is looked at but for the tokens of a split that is too large to be held in memory: they are compared as they are
    read.
    """
    unfinished = not is_local(output) or os.path.exists(os.path.join(output, _BUILD, _PLAN))
    if not is_corpus(output) and (unfinished or not any(epath.Path(output).glob("*.offsets.npy"))):
        return None
    promised = None
    try:
        promised = str(read_manifest(output)["sha256"])
        for name in units.SPLITS:
            store = TokenStore(output, name)
            if store.has_checksums:  # else it is read whole when it is used, and once is enough
                store.check() if store.is_resident else store.check_files()
    except UserError as error:
        rebuild(error)
        for path in epath.Path(output).iterdir():
            if path.name != _LOCK:
                path.rmtree() if path.is_dir() else path.unlink()
        return promised
    return None


def _check_same(output: str, manifest: Mapping[str, Any], promised: str | None) -> None:
    """UserError if what was built again is not what was there before: a run that was interrupted must not go on."""
    if promised not in (None, manifest["sha256"]):
        raise UserError(
            f"{output} was damaged and was built again, but came out otherwise ({manifest['sha256'][:12]} instead of "
            f"{promised[:12]}, SHA-256 of its tokens): another version of jaxlm or of the tokenizer's library made it. "
            "Run again to use it, with another --workdir; to go on with a run, use the versions it began with."
        )


@contextlib.contextmanager
def _folders(*paths: str) -> Iterator[None]:
    """Makes the folders; an error takes those away again that were made for nothing."""
    made = []
    for path in filter(is_local, paths):
        while path and not os.path.lexists(path):
            made.append(path)
            path = os.path.dirname(path)
    for path in paths:
        make_folder(path)
    try:
        yield
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):  # there is something in it
                os.rmdir(path)
        raise


@contextlib.contextmanager
def _prepared(staging: str, key: str) -> Iterator[None]:
    """Keeps the finished units of a build with the same key, and removes those of another.

    After an error what is finished stays, to be continued; where nothing is, nothing stays.
    """
    _prepare(staging, key)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError, UserError):  # of a full disk, say: the first error matters
            if os.path.isdir(os.path.join(staging, _BUILD)) and not any(_finished_units(staging)):
                _clear(staging)
        raise


def _finished_units(staging: str) -> Iterator[str]:
    build = os.path.join(staging, _BUILD)
    return (name for name in os.listdir(build) if units.finished(os.path.join(build, name)))


def _prepare(staging: str, key: str) -> None:
    plan = os.path.join(staging, _BUILD, _PLAN)
    if os.path.exists(plan):
        for name in os.listdir(staging):
            if name.endswith(".partial"):  # of a build that was killed
                os.unlink(os.path.join(staging, name))
        shutil.rmtree(os.path.join(staging, TOKENIZER_FOLDER), ignore_errors=True)  # written again
        if _planned_key(plan) == key:
            return
        _clear(staging)
    elif others := [name for name in os.listdir(staging) if name not in (_BUILD, _LOCK)]:
        raise UserError(
            f"{staging} is not empty ({others[0]} is in it) and holds no unfinished build: choose another "
            "--output."
        )
    make_folder(os.path.join(staging, _BUILD))
    _write_plan(staging, key)


def _planned_key(plan: str) -> str | None:
    try:
        return read_json(plan)["key"]
    except (*JSON_ERRORS, KeyError, TypeError):  # damaged
        return None


def _clear(staging: str) -> None:
    """Removes all that an unfinished build has written."""
    _write_plan(staging, None)  # if this is interrupted, no build may go on with what is left
    for name in os.listdir(staging):
        if name.startswith(tuple(f"{split}-" for split in units.SPLITS)) or name == TOKENIZER_FILE:
            os.unlink(os.path.join(staging, name))
    shutil.rmtree(os.path.join(staging, TOKENIZER_FOLDER), ignore_errors=True)
    for name in os.listdir(os.path.join(staging, _BUILD)):
        if name.startswith("unit-"):
            shutil.rmtree(os.path.join(staging, _BUILD, name))
    shutil.rmtree(os.path.join(staging, _BUILD))


def _write_plan(staging: str, key: str | None) -> None:
    write_atomic(os.path.join(staging, _BUILD, _PLAN), json.dumps({"key": key}).encode())


def _plan(
    inputs: Sequence[InputFile],
    options: ReadOptions,
    eval_split: str,
    eval_fraction: float,
    shard_tokens: int,
    staging: str,
) -> tuple[list[units.Job], Split]:
    work = plan_units(inputs, options)
    scratch = Tally()  # these documents are read, and counted, once more
    documents = (text for unit in work for part in unit for text in read_documents(part, options, scratch))
    split = plan_split(eval_split, eval_fraction, documents)
    folder = os.path.join(staging, _BUILD, "unit-")
    return [
        units.Job(unit, f"{folder}{index:06d}", options, split, shard_tokens, CHUNK_TOKENS)
        for index, unit in enumerate(work)
    ], split


def _source(
    paths: Sequence[str], content: Sequence[tuple[str, int, str]], options: ReadOptions, split: Split
) -> dict[str, Any]:
    content = [
        (name, embedded.num_bytes(name) if embedded.is_embedded(name) else size, digest)
        for name, size, digest in content
    ]
    listed = [{"name": name, "num_bytes": size, "sha256": digest} for name, size, digest in content[:1000]]
    return {
        "inputs": [printable(path) for path in paths],
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
    tokenizer: Tokenizer,
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
    documents = {
        name: sum(shard["num_documents"] for result in results for shard in result["shards"][name])
        for name in units.SPLITS
    }
    if not documents["train"]:
        _clear(staging)
        raise _nothing_to_train_on(documents["eval"], source, tally)
    splits: dict[str, list[dict[str, Any]]] = {}
    for name in units.SPLITS:
        pieces = [
            (job.folder, shard) for job, result in zip(jobs, results) for shard in result["shards"][name]
        ]
        groups = grouped(pieces, jobs[0].shard_tokens if jobs else 1)
        splits[name] = [
            join_shards(group, staging, f"{name}-{number:05d}", tokenizer.vocab_size, CHUNK_TOKENS)
            for number, group in enumerate(groups)
        ]
    tokenizer.save(staging)
    return make_manifest(
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        splits=splits,
        source=source,
        dropped=tally.dropped,
        changed=dict(sorted(tally.changed.items())),
        chunk_tokens=CHUNK_TOKENS,
        key=key,
    )


def _nothing_to_train_on(held_out: int, source: dict[str, Any], tally: Tally) -> UserError:
    label = ", ".join(source["inputs"])
    if held_out:  # with "tail" only: "hash" leaves one document at least
        return UserError(
            f"{label}: eval_fraction={source['eval_fraction']} of every document is held out, and that is all of its "
            f"{held_out}, which have a character or two each: nothing is left to train on. Lower eval_fraction, "
            "or set it to 0."
        )
    drops = ", ".join(f"{count} {reason}" for reason, count in sorted(tally.dropped.items())) or "none"
    return UserError(f"{label} holds no document: nothing to train on. Dropped: {drops}.")


def grouped(pieces: list[tuple[str, dict[str, Any]]], shard_tokens: int):
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


def _publish(staging: str, output: str, manifest: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Uploads the shards if the output is remote; then writes the manifest, which makes it a corpus."""
    if staging != output:
        tokenizer.save(output)
        names = []
        for shard in itertools.chain.from_iterable(
            manifest["splits"][name]["shards"] for name in units.SPLITS
        ):
            names += shard_files(shard["file"])
        for name in names:
            epath.Path(staging, name).copy(epath.Path(output) / name, overwrite=True)
    write_manifest(output, manifest)
    if staging != output:
        shutil.rmtree(staging, ignore_errors=True)
