"""Checks of what a run reads: its tokenizer, and every source; against the latest checkpoint, too."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from etils import epath

from jaxlm.checkpoint_meta import Meta, check_corpus, check_tokenizer
from jaxlm.doctor.check import Doubt, size
from jaxlm.runconfig import RunConfig
from jaxlm.types import UserError

if TYPE_CHECKING:
    from jaxlm.data.tokenizer import Tokenizer


def open_tokenizer(cfg: RunConfig, workdir: str | None) -> Tokenizer | None:
    """The one a run would use; None where it would be trained, or fetched from the hub, first."""
    from jaxlm.data.tokenizer import load_tokenizer, saved_tokenizer

    if cfg.tokenizer.path is not None:
        return load_tokenizer(cfg.tokenizer.path)
    if workdir is not None and (saved := saved_tokenizer(workdir)).exists():
        return load_tokenizer(saved)
    if cfg.init_from is not None:
        if not epath.Path(cfg.init_from).exists():
            return None
        from jaxlm.run_data import run_tokenizer_config

        path = run_tokenizer_config(cfg, workdir).path
        return None if path is None else load_tokenizer(path)
    if cfg.objective == "pretrain":
        from jaxlm.corpus.sources import is_tokenised

        folder = next((source.path for source in cfg.data.sources.values() if is_tokenised(source)), None)
        return None if folder is None else load_tokenizer(saved_tokenizer(folder))
    return None


def describe_tokenizer(tokenizer: Tokenizer | None, latest: Meta | None, wanted: str | None) -> str:
    """Its hash, against that of the latest checkpoint.

    Args:
      wanted: where the tokenizer comes from, when it is not there yet.
    """
    if tokenizer is None:
        if latest is not None and latest.tokenizer_sha256:
            raise Doubt(
                f"the workdir has none, though checkpoint {latest.step} was trained with "
                f"{latest.tokenizer_sha256[:12]}: {wanted}, and the run goes on if it is that one."
            )
        return f"none yet: {wanted}"
    if latest is not None:
        check_tokenizer(f"Checkpoint {latest.step}", latest, tokenizer.sha256)
    return f"{tokenizer.vocab_size:,} ids, SHA-256 {tokenizer.sha256[:12]}"


class Found(NamedTuple):
    """What there is of a source."""

    words: str
    sha256: str | None
    """Of its tokens; None where they are not made yet, or made of records."""
    content: str
    """For the other processes to compare: the hash, else names and sizes of the files."""


def find_source(name: str, cfg: RunConfig, tokenizer_sha256: str | None) -> Found:
    """Looks for the files of a source, and for its tokens.

    Errors: UserError when they are missing, of another tokenizer, or not whole.
    """
    source = cfg.data.sources[name]
    if cfg.objective != "pretrain":
        return _find_records(source.path, source.eval_path)
    from jaxlm.corpus.inputs import find_inputs
    from jaxlm.corpus.sources import is_tokenised, known_corpus
    from jaxlm.corpus.text import Tally

    if source.eval_path is not None:
        apart = dataclasses.replace(source, path=source.eval_path, eval_path=None)
        if not is_tokenised(apart):
            find_inputs([apart.path], Tally())
    if is_tokenised(source):
        return _find_corpus(source.path, tokenizer_sha256)
    files = find_inputs([source.path], Tally())
    words = f"{source.path}: {len(files):,} file(s) of text, {size(sum(file.num_bytes for file in files))}"
    folder = None if tokenizer_sha256 is None else known_corpus(source, cfg.data, tokenizer_sha256)
    if folder is not None:
        found = _find_corpus(folder, tokenizer_sha256)
        return found._replace(words=f"{words}; {found.words}")
    content = ", ".join(f"{file.name} {file.num_bytes}" for file in files)
    return Found(f"{words}, to be tokenised when the run starts", None, content)


def _find_corpus(folder: str, tokenizer_sha256: str | None) -> Found:
    from jaxlm.data.manifest import check_tokenizer as check_corpus_tokenizer
    from jaxlm.data.manifest import offsets_file, read_manifest

    manifest = read_manifest(folder)
    check_corpus_tokenizer(folder, manifest, tokenizer_sha256)
    num_tokens = 0
    for split in manifest["splits"].values():
        num_tokens += split["num_tokens"]
        for shard in split["shards"]:
            for file in (shard["file"], offsets_file(shard["file"])):
                if not (epath.Path(folder) / file).exists():
                    raise UserError(
                        f"{folder} is damaged: {file} is missing, which its manifest.json promises. Copy it again, or "
                        "delete the folder and build it again."
                    )
    return Found(f"{num_tokens:,} tokens in {folder}", manifest["sha256"], manifest["sha256"])


def _find_records(path: str, eval_path: str | None) -> Found:
    from jaxlm.corpus.records import HUB, find_records
    from jaxlm.corpus.text import Tally

    files = []
    for one in (path, eval_path):
        if one is not None and not one.startswith(HUB):
            files += find_records(one, Tally())
    content = ", ".join(f"{file.name} {file.num_bytes}" for file in files)
    if path.startswith(HUB):
        return Found(f"{path}: fetched from the hub when the run starts, not looked at", None, content)
    total = size(sum(file.num_bytes for file in files))
    return Found(f"{path}: {len(files):,} file(s) of records, {total}", None, content)


def describe_source(name: str, found: Found, latest: Meta | None, *, comparable: bool) -> str:
    """What was found, against the latest checkpoint.

    Args:
      comparable: whether its tokens could be known, were they in the cache.
    """
    then = None if latest is None else latest.corpus_sha256.get(name)
    if latest is None or then is None:
        return found.words
    if found.sha256 is not None:
        only = dataclasses.replace(latest, corpus_sha256={name: then})
        check_corpus(f"Checkpoint {latest.step}", only, {name: found.sha256})
        return f"{found.words}, those of checkpoint {latest.step}"
    if not comparable:
        return found.words
    raise Doubt(
        f"{found.words}: it is not in the cache, so whether it still is the text of checkpoint {latest.step} shows "
        "when the run has tokenised it; it refuses another."
    )
