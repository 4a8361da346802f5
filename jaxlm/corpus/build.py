"""Raw text -> tokenised shards and a manifest: in parallel, atomic, continuing where a killed build was.

```
inputs.find_inputs -> plan_units -> units.tokenise, a folder per unit in DIR/.build (any order, any process)
                                 -> assemble: shards renamed or merged in unit order    -> manifest.json, last
```

A unit's shards depend on its slice of the input and on nothing else, so the result is the same to the byte
whatever the number of workers, and whether or not the build was interrupted.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import time
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
from jaxlm.data.config import DataConfig, SourceConfig, TokenizerConfig
from jaxlm.data.files import (
    cache_root,
    disk_error,
    exclusive,
    is_local,
    make_folder,
    reachable,
    write_atomic,
)
from jaxlm.data.shards import (
    CHUNK_TOKENS,
    check_tokenizer,
    is_corpus,
    join_shards,
    make_manifest,
    offsets_file,
    read_manifest,
    write_manifest,
)
from jaxlm.data.tokenizer import SentencePieceTokenizer, load_tokenizer, train_tokenizer
from jaxlm.types import UserError

SHARD_TOKENS = 16 << 20
TOKENIZER_FILE = "tokenizer.model"
TRAINING_BYTES = 50 << 20
"""A tokenizer is trained on about this much text at most: more changes little but the time."""
_CLOCK_NS = 2_000_000_000
"""The coarsest clock of a file system: two changes within it may bear one date."""
_BUILD = ".build"
_PLAN = "plan.json"
_LOCK = ".lock"
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
    found: Found | None = None,
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
    """
    options = ReadOptions(text_key, document, invalid_utf8)
    inputs, tally, content = found or _find(paths)
    key = build_key(content, options, eval_split, eval_fraction, tokenizer.sha256, shard_tokens)
    output = os.fspath(output_dir)
    _check_apart(paths, output)
    make_folder(output)
    staging = output if is_local(output) else os.path.join(cache_root(), "staging", key[:16])
    make_folder(staging)
    try:
        with exclusive(os.path.join(staging, _LOCK)):
            if is_corpus(output):
                manifest = _check_finished(output, key)
            else:
                _prepare(staging, key)
                label = paths[0] if len(paths) == 1 else f"{len(paths)} inputs"
                jobs, split = _plan(inputs, options, eval_split, eval_fraction, shard_tokens, staging, label)
                size = sum(job.num_bytes for job in jobs)
                worker_pool.run(jobs, tokenizer, workers, Progress(f"tokenising {label}", size, progress))
                _check_unchanged(inputs, staging)
                source = _source(paths, content, options, split)
                manifest = _assemble(staging, jobs, tokenizer, tally, key, source)
                _publish(staging, output, manifest)
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


def _check_apart(paths: Sequence[str], output: str) -> None:
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
        _write_plan(staging, None)  # what the units hold may be a mixture of before and after
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
        for name in os.listdir(staging):
            if name.endswith(".partial"):  # of a build that was killed
                os.unlink(os.path.join(staging, name))
        with open(plan, encoding="utf-8") as file:
            if json.load(file)["key"] == key:
                return
        _write_plan(staging, None)  # if this is interrupted, no build may go on with what is left
        for name in os.listdir(staging):
            if name.startswith(tuple(f"{split}-" for split in units.SPLITS)) or name == TOKENIZER_FILE:
                os.unlink(os.path.join(staging, name))
        for name in os.listdir(os.path.join(staging, _BUILD)):
            if name.startswith("unit-"):
                shutil.rmtree(os.path.join(staging, _BUILD, name))
    elif others := [name for name in os.listdir(staging) if name not in (_BUILD, _LOCK)]:
        raise UserError(
            f"{staging} is not empty ({others[0]} is in it) and holds no unfinished build: choose another "
            "--output."
        )
    make_folder(os.path.join(staging, _BUILD))
    _write_plan(staging, key)


def _write_plan(staging: str, key: str | None) -> None:
    write_atomic(os.path.join(staging, _BUILD, _PLAN), json.dumps({"key": key}).encode())


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
        pieces = [
            (job.folder, shard) for job, result in zip(jobs, results) for shard in result["shards"][name]
        ]
        groups = _grouped(pieces, jobs[0].shard_tokens if jobs else 1)
        splits[name] = [
            join_shards(group, staging, f"{name}-{number:05d}", tokenizer.vocab_size, CHUNK_TOKENS)
            for number, group in enumerate(groups)
        ]
    documents = {name: sum(shard["num_documents"] for shard in shards) for name, shards in splits.items()}
    _check_filled(documents, source, tally)
    tokenizer.save(os.path.join(staging, TOKENIZER_FILE))
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
        names = [TOKENIZER_FILE]
        for shard in itertools.chain.from_iterable(
            manifest["splits"][name]["shards"] for name in units.SPLITS
        ):
            names += [shard["file"], offsets_file(shard["file"])]
        for name in names:
            epath.Path(staging, name).copy(epath.Path(output) / name, overwrite=True)
    write_manifest(output, manifest)
    if staging != output:
        shutil.rmtree(staging, ignore_errors=True)


def ensure_corpus(
    source: SourceConfig,
    data: DataConfig,
    tokenizer: SentencePieceTokenizer,
    *,
    workers: int | None = None,
    progress: bool | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """The folder of a source's tokens: the source itself, the cache's, or one built into the cache now.

    The cache's key is the content of the files, the tokenizer's hash and the options: another path, date or
    order of sources finds the same folder.
    """
    if _is_tokenised(source):
        check_tokenizer(source.path, read_manifest(source.path), tokenizer.sha256)
        return source.path
    root = cache_root(data.cache_dir)
    tally = Tally()
    inputs = find_inputs([source.path], tally)
    content = _remembered_fingerprint(inputs, root)
    key = build_key(content, _options(source, data), data.eval_split, data.eval_fraction, tokenizer.sha256)
    name = source.path.removeprefix(embedded.PREFIX).rstrip("/").rsplit("/", 1)[-1]
    name = "".join(c if c.isalnum() else "-" for c in name)[:40]
    folder = os.fspath(epath.Path(root) / "corpora" / f"{name}-{key[:16]}")
    known = is_corpus(folder)
    begin = time.monotonic()
    manifest = build_corpus(
        [source.path], folder, tokenizer, text_key=source.text_key, document=source.document,
        eval_fraction=data.eval_fraction, eval_split=data.eval_split, invalid_utf8=data.invalid_utf8,
        workers=workers, progress=progress, found=(inputs, tally, content),
    )  # fmt: skip
    splits = manifest["splits"]
    how = "in the cache" if known else f"tokenised in {time.monotonic() - begin:.1f} s"
    say(
        f"{source.path}: {splits['train']['num_tokens']:,} tokens to train on, "
        f"{splits['eval']['num_tokens']:,} held out; {how}: {folder}{_remarks(manifest)}"
    )
    return folder


def _remarks(manifest: Mapping[str, Any]) -> str:
    counts = [(f"{reason} dropped", n) for reason, n in manifest["dropped"].items()]
    counts += [(f"{reason} repaired", n) for reason, n in manifest["changed"].items()]
    return f" ({', '.join(f'{n:,} {what}' for what, n in counts)})" if counts else ""


def _is_tokenised(source: SourceConfig) -> bool:
    return not embedded.is_embedded(source.path) and is_corpus(reachable(source.path))


def _options(source: SourceConfig, data: DataConfig) -> ReadOptions:
    return ReadOptions(source.text_key, source.document, data.invalid_utf8)


def _remembered_fingerprint(inputs: Sequence[InputFile], root: str) -> list[tuple[str, int, str]]:
    """`fingerprint`, without reading again a file whose size and last change are those of the last time."""
    memory_file = epath.Path(root) / "fingerprints.json"
    memory: dict[str, list[Any]] = {}
    if memory_file.exists():
        try:
            memory = json.loads(memory_file.read_text())
        except ValueError:  # damaged: only time is lost
            memory = {}
    content, news = [], {}
    for file in inputs:
        if embedded.is_embedded(file.path) or not is_local(file.path):
            content += fingerprint([file])
            continue
        path = os.path.abspath(file.path)
        stamp = [file.num_bytes, file.changed_ns]
        if memory.get(path, [])[:2] == stamp:
            digest = memory[path][2]
        else:
            digest = fingerprint([file])[0][2]
            # What changed a moment ago may change again within the clock of the file system.
            if time.time_ns() - file.changed_ns > _CLOCK_NS:
                news[path] = [*stamp, digest]
        content.append((file.name, file.num_bytes, digest))
    if news:
        make_folder(root)
        write_atomic(memory_file, json.dumps({**memory, **news}).encode())
    return content


def iter_texts(source: SourceConfig, data: DataConfig, max_bytes: int | None = None) -> Iterator[str]:
    """The text of a source that is trained on: what is held out for evaluation is left out.

    Args:
      max_bytes: about as much, taken evenly from all over the source; None: everything.
    """
    options = _options(source, data)
    inputs = find_inputs([source.path], Tally())
    total = sum(file.num_bytes for file in inputs)
    work = plan_units(inputs, options, max(1 << 20, total // 64))
    every = (text for unit in work for text in _read_unit(unit, options))
    split = plan_split(data.eval_split, data.eval_fraction, every, source.path)
    share = None if max_bytes is None or total <= max_bytes else max_bytes // max(1, len(work))
    for unit in work:
        left = share
        for text in _read_unit(unit, options):
            for name, piece in split.cut(text):
                if name == "train":
                    yield piece if left is None else piece[:left]
                    left = None if left is None else left - len(piece)
            if left is not None and left <= 0:
                break


def _read_unit(unit: Sequence[Any], options: ReadOptions) -> Iterator[str]:
    return itertools.chain.from_iterable(read_documents(part, options, Tally()) for part in unit)


def ensure_tokenizer(
    config: TokenizerConfig, data: DataConfig, *, say: Callable[[str], None] = print
) -> SentencePieceTokenizer:
    """The run's tokenizer: the file it names, that of its tokenised sources, or one trained on them, once.

    Of more than TRAINING_BYTES of text each source gives its share by weight. Held-out text is never used.
    """
    if config.path is not None:
        return load_tokenizer(config.path)
    tokenised = {name: source.path for name, source in data.sources.items() if _is_tokenised(source)}
    if tokenised:
        path = os.fspath(epath.Path(next(iter(tokenised.values()))) / TOKENIZER_FILE)
        tokenizer = load_tokenizer(path)
        for folder in tokenised.values():
            check_tokenizer(folder, read_manifest(folder), tokenizer.sha256)
        say(f"tokenizer: {path}, which made {', '.join(tokenised)}")
        return tokenizer
    root = cache_root(data.cache_dir)
    sources = {name: source for name, source in data.sources.items() if source.weight_tokens > 0}
    inputs = {name: find_inputs([source.path], Tally()) for name, source in sources.items()}
    budgets = _budgets(sources, {name: sum(f.num_bytes for f in files) for name, files in inputs.items()})
    parts = [
        [_remembered_fingerprint(inputs[name], root), source.text_key, source.document, budgets[name]]
        for name, source in sorted(sources.items())
    ]
    size = 0 if config.kind == "char" else config.vocab_size
    parts += [_VERSION, config.kind, size, data.eval_split, data.eval_fraction, data.invalid_utf8]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    folder = epath.Path(root) / "tokenizers"
    make_folder(folder)
    path = folder / f"{config.kind}-{key[:16]}.model"
    with exclusive(f"{os.fspath(path)}.lock"):
        if path.exists():
            say(f"tokenizer: {path} (in the cache)")
            return load_tokenizer(path)
        begin = time.monotonic()
        texts = (text for name in sorted(sources) for text in iter_texts(sources[name], data, budgets[name]))
        write_atomic(path, train_tokenizer(texts, config.kind, config.vocab_size))
        tokenizer = load_tokenizer(path)
        seconds = time.monotonic() - begin
        say(f"tokenizer: trained {config.kind}, {tokenizer.vocab_size:,} pieces, in {seconds:.1f} s: {path}")
        return tokenizer


def _budgets(sources: Mapping[str, SourceConfig], sizes: Mapping[str, int]) -> dict[str, int | None]:
    """Bytes each source gives to the training of a tokenizer; None: all it has."""
    if sum(sizes.values()) <= TRAINING_BYTES:
        return dict.fromkeys(sources)
    total = sum(source.weight_tokens for source in sources.values())
    return {name: int(TRAINING_BYTES * s.weight_tokens / total) for name, s in sources.items()}
