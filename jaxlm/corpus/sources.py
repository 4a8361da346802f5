"""The sources of a run, as its config names them: checked, tokenised into the cache on first use; its tokenizer.

```
check_sources -> ensure_tokenizer -> ensure_corpus, for each source -> data.shards.TokenStore
```

The cache is keyed by content: another path, date or order of sources finds the same folders.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from jaxlm.corpus import embedded
from jaxlm.corpus.build import VERSION, build_corpus, build_key
from jaxlm.corpus.inputs import InputFile, find_inputs, fingerprint, plan_units, printable
from jaxlm.corpus.readers import read_documents
from jaxlm.corpus.split import note_on_split, plan_split
from jaxlm.corpus.text import ReadOptions, Tally
from jaxlm.data.checksums import sha256
from jaxlm.data.config import DataConfig, SourceConfig, TokenizerConfig
from jaxlm.data.files import exclusive, make_folder, reachable, write_atomic
from jaxlm.data.manifest import check_tokenizer, is_corpus, read_manifest
from jaxlm.data.notices import Notices
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer, saved_tokenizer
from jaxlm.data.tokenizer_training import train_tokenizer
from jaxlm.limits import Row, check, read_json
from jaxlm.paths import cache_root, is_local
from jaxlm.types import JSON_ERRORS, UserError

TRAINING_BYTES = 50 << 20
"""A tokenizer is trained on about this much text at most: more changes little but the time."""
_CLOCK_NS = 2_000_000_000
"""The coarsest clock of a file system: two changes within it may bear one date."""


def check_sources(data: DataConfig, *, say: Callable[[str], None] = print) -> None:
    """Finds the input of every source, before minutes go into the first one. Lists folders, reads no text.

    Errors: one UserError that names all the sources whose input is missing or of no readable kind.
    """
    wrong: list[str] = []
    readers: dict[str, list[str]] = {}  # file -> the sources it belongs to
    for name, source in data.sources.items():
        try:
            for path in _paths(source):
                if source.weight_tokens > 0:
                    readers.setdefault(path, []).append(name)
        except UserError as error:
            wrong.append(f"data.sources.{name}.path: {error}")
    if wrong:
        count = f"{len(wrong)} of {len(data.sources)} sources cannot be read. " if len(wrong) > 1 else ""
        raise UserError(count + " ".join(wrong))
    shared = {path: names for path, names in readers.items() if len(names) > 1}
    if shared:
        path, names = next(iter(shared.items()))
        more = f" (and {len(shared) - 1:,} more files)" if len(shared) > 1 else ""
        say(
            f"note: data.sources: {' and '.join(names)} read the same text, {printable(path)}{more}: it is trained on "
            "as part of each, and what one holds out the other may not."
        )


def _paths(source: SourceConfig) -> list[str]:
    """What a source reads, by names that are the same for the same file."""
    if is_tokenised(source):
        read_manifest(source.path)
        found = [source.path]
    else:
        found = [file.path for file in find_inputs([source.path], Tally())]
    return [os.path.realpath(path) if _is_file(path) else path for path in found]


def _is_file(path: str) -> bool:
    return is_local(path) and not embedded.is_embedded(path)


def is_tokenised(source: SourceConfig) -> bool:
    """Whether its path is a folder made by `jaxlm corpus build`; else it is text, tokenised into the cache."""
    if embedded.is_embedded(source.path):
        return False
    folder = reachable(source.path)
    if is_corpus(folder):
        return True
    if any(folder.glob("*.offsets.npy")) and any(folder.glob("*.arrayrecord")):
        read_manifest(folder)  # tokens are no text: it says that the manifest is missing
    return False


def _options(source: SourceConfig, data: DataConfig) -> ReadOptions:
    return ReadOptions(source.text_key, source.document, data.invalid_utf8)


def ensure_corpus(
    source: SourceConfig,
    data: DataConfig,
    tokenizer: Tokenizer,
    *,
    workers: int | None = None,
    progress: bool | None = None,
    say: Callable[[str], None] = print,
    notices: Notices | None = None,
) -> str:
    """The folder of a source's tokens: the source itself, the cache's, or one built into the cache now.

    The cache's key is the content of the files, the tokenizer's hash and the options.
    """
    if is_tokenised(source):
        check_tokenizer(source.path, read_manifest(source.path), tokenizer.sha256)
        return source.path
    root = cache_root(data.cache_dir)
    tally = Tally()
    inputs = find_inputs([source.path], tally)
    content = remembered_fingerprint(inputs, root)
    folder = _cached_folder(source, data, tokenizer.sha256, content)
    known = is_corpus(folder)
    begin = time.monotonic()
    manifest = build_corpus(
        [source.path], folder, tokenizer, text_key=source.text_key, document=source.document,
        eval_fraction=data.eval_fraction, eval_split=data.eval_split, invalid_utf8=data.invalid_utf8,
        workers=workers, progress=progress, found=(inputs, tally, content),
        rebuild=lambda error: (notices or Notices())("data_rebuilt", file=folder, reason=str(error)),
    )  # fmt: skip
    splits = manifest["splits"]
    how = "in the cache" if known else f"tokenised in {time.monotonic() - begin:.1f} s"
    say(
        f"{printable(source.path)}: {splits['train']['num_tokens']:,} tokens to train on, "
        f"{splits['eval']['num_tokens']:,} held out; {how}: {folder}{_remarks(manifest)}"
    )
    used = manifest["source"]["eval_split"]
    if note := note_on_split(printable(source.path), data.eval_split, used, data.eval_fraction):
        say(f"note: {note}")
    return folder


def _cached_folder(
    source: SourceConfig, data: DataConfig, tokenizer_sha256: str, content: list[tuple[str, int, str]]
) -> str:
    key = build_key(content, _options(source, data), data.eval_split, data.eval_fraction, tokenizer_sha256)
    name = source.path.removeprefix(embedded.PREFIX).rstrip("/").rsplit("/", 1)[-1]
    name = "".join(c if c.isalnum() else "-" for c in name)[:40]
    return os.fspath(epath.Path(cache_root(data.cache_dir)) / "corpora" / f"{name}-{key[:16]}")


def known_corpus(source: SourceConfig, data: DataConfig, tokenizer_sha256: str) -> str | None:
    """Like `ensure_corpus`, but makes and writes nothing: None where the text is not tokenised yet."""
    if is_tokenised(source):
        return source.path
    content = remembered_fingerprint(
        find_inputs([source.path], Tally()), cache_root(data.cache_dir), remember=False
    )
    folder = _cached_folder(source, data, tokenizer_sha256, content)
    return folder if is_corpus(folder) else None


def _remarks(manifest: Mapping[str, Any]) -> str:
    counts = [(f"{reason} dropped", n) for reason, n in manifest["dropped"].items()]
    counts += [(f"{reason} repaired", n) for reason, n in manifest["changed"].items()]
    return f" ({', '.join(f'{n:,} {what}' for what, n in counts)})" if counts else ""


def remembered_fingerprint(
    inputs: Sequence[InputFile], root: str, *, remember: bool = True
) -> list[tuple[str, int, str]]:
    """`fingerprint`, without reading again a file whose size and last change are those of the last time.

    Args:
      remember: whether what is read now is written down.
    """
    memory_file = reachable(root) / "fingerprints.json"
    memory: dict[str, list[Any]] = {}
    if memory_file.exists():
        with contextlib.suppress(*JSON_ERRORS):  # damaged: only time is lost
            found = read_json(memory_file)
            check(found, {str: Row((int, int, str))})
            memory = found
    content, news = [], {}
    for file in inputs:
        if embedded.is_embedded(file.path) or not is_local(file.path):
            content += fingerprint([file])
            continue
        path = os.path.abspath(file.path)
        stamp = [file.num_bytes, file.changed_ns]
        *known, digest = memory.get(path) or [None]
        if known != stamp:
            digest = fingerprint([file])[0][2]
            # What changed a moment ago may change again within the clock of the file system.
            if time.time_ns() - file.changed_ns > _CLOCK_NS:
                news[path] = [*stamp, digest]
        content.append((file.name, file.num_bytes, digest))
    if news and remember:
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
    split = plan_split(data.eval_split, data.eval_fraction, every)
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
    config: TokenizerConfig,
    data: DataConfig,
    *,
    say: Callable[[str], None] = print,
    notices: Notices | None = None,
) -> Tokenizer:
    """The run's tokenizer: the one it names, that of its tokenised sources, or one trained on them, once.

    Of more than TRAINING_BYTES of text each source gives its share by weight. Held-out text is never used.
    """
    tokenised = {name: source.path for name, source in data.sources.items() if is_tokenised(source)}
    if config.path is not None or tokenised:
        path = config.path
        if path is None:
            path = os.fspath(saved_tokenizer(next(iter(tokenised.values()))))
        tokenizer = load_tokenizer(path)
        for folder in tokenised.values():
            check_tokenizer(folder, read_manifest(folder), tokenizer.sha256)
        if config.path is None:
            say(f"tokenizer: {path}, which made {', '.join(tokenised)}")
        return tokenizer
    root = cache_root(data.cache_dir)
    sources = {name: source for name, source in data.sources.items() if source.weight_tokens > 0}
    inputs = {name: find_inputs([source.path], Tally()) for name, source in sources.items()}
    budgets = _budgets(sources, {name: sum(f.num_bytes for f in files) for name, files in inputs.items()})
    parts = [
        [remembered_fingerprint(inputs[name], root), source.text_key, source.document, budgets[name]]
        for name, source in sorted(sources.items())
    ]
    size = 0 if config.kind == "char" else config.vocab_size
    parts += [VERSION, config.kind, size, data.eval_split, data.eval_fraction, data.invalid_utf8]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    folder = epath.Path(root) / "tokenizers"
    make_folder(folder)
    path = folder / f"{config.kind}-{key[:16]}.model"
    with exclusive(f"{os.fspath(path)}.lock"):
        known, promised = _cached_tokenizer(path, notices or Notices())
        if known is not None:
            say(f"tokenizer: {path} (in the cache)")
            return known
        begin = time.monotonic()
        texts = (text for name in sorted(sources) for text in iter_texts(sources[name], data, budgets[name]))
        model = train_tokenizer(texts, config.kind, config.vocab_size)
        if promised and sha256(model) not in promised:
            raise UserError(
                f"{path} was damaged, and the tokenizer that is trained again is another one: another version of "
                "sentencepiece made it. Remove it to start new runs; to go on with one, set tokenizer.path to its "
                "--workdir."
            )
        write_atomic(path, model)
        write_atomic(_checksum_of(path), sha256(model).encode())
        tokenizer = load_tokenizer(path)
        seconds = time.monotonic() - begin
        say(f"tokenizer: trained {config.kind}, {tokenizer.vocab_size:,} pieces, in {seconds:.1f} s: {path}")
        return tokenizer


def _checksum_of(path: epath.Path) -> epath.Path:
    """The file that holds the SHA-256 of a tokenizer of the cache."""
    return path.with_name(path.name + ".sha256")


def _cached_tokenizer(path: epath.Path, notices: Notices) -> tuple[Tokenizer | None, set[str]]:
    """(the tokenizer of the cache, if it is there and whole; the hashes of which one trained again must have one).

    Of a file and its hash that do not agree either may be damaged. An older file without a hash gets one now.
    """
    if not path.exists():
        return None, set()
    model, beside = path.read_bytes(), _checksum_of(path)
    found = sha256(model)
    promised = beside.read_bytes().decode(errors="replace") if beside.exists() else found
    if promised == found:
        with contextlib.suppress(UserError):
            tokenizer = load_tokenizer(path)
            if not beside.exists():
                write_atomic(beside, found.encode())
            return tokenizer, set()
        promised = ""  # older than its hash, and damaged before it had one
    notices("data_rebuilt", file=os.fspath(path), reason="it is not what was trained")
    return None, {promised, found} if promised else set()


def _budgets(sources: Mapping[str, SourceConfig], sizes: Mapping[str, int]) -> dict[str, int | None]:
    """Bytes each source gives to the training of a tokenizer; None: all it has."""
    if sum(sizes.values()) <= TRAINING_BYTES:
        return dict.fromkeys(sources)
    total = sum(source.weight_tokens for source in sources.values())
    return {name: int(TRAINING_BYTES * s.weight_tokens / total) for name, s in sources.items()}
