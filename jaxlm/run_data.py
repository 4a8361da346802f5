"""What a run reads: its tokenizer, its sources of text or of records, and their rows."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxlm import processes
from jaxlm.config import check_choice
from jaxlm.types import UserError

if TYPE_CHECKING:
    from jaxlm.data.chat import ChatTemplate
    from jaxlm.data.examples import ExampleStore
    from jaxlm.data.notices import Notices
    from jaxlm.data.padding import Labelled
    from jaxlm.data.pipeline import Rows
    from jaxlm.data.tokenizer import Tokenizer
    from jaxlm.runconfig import RunConfig

Say = Callable[[str], None]
Stores = dict[str, Any]
"""By source: of TokenStore, or of ExampleStore where the objective reads records."""


class OpenData(NamedTuple):
    """A run's tokenizer and its tokenised sources."""

    tokenizer: Tokenizer
    train: Stores
    eval: Stores
    """Held-out splits; a source without held-out text is missing."""
    chat: ChatTemplate | None = None
    """How dialogues are written, where the objective is to follow instructions."""
    labels: tuple[str, ...] | None = None
    """Of a classifier, in the order of its outputs; none for a regression."""
    notices: Notices | None = None
    """Of the stores: what happens while they read."""

    @property
    def corpus_sha256(self) -> dict[str, str]:
        """Source -> hash of its manifest."""
        return {name: store.manifest["sha256"] for name, store in self.train.items()}


def open_data(cfg: RunConfig, workdir: str | os.PathLike | None = None, *, quiet: bool = False) -> OpenData:
    """Opens every source, tokenised into the cache on first use, with the run's tokenizer.

    That is the one the config names, else that of the weights it starts from, else one trained on first use.
    """
    say: Say = (lambda line: None) if quiet else (lambda line: print(line, file=sys.stderr))
    opened = open_texts if cfg.objective == "pretrain" else open_records
    return opened(cfg, workdir, say)


def run_tokenizer_config(cfg: RunConfig, workdir: str | os.PathLike | None):
    """cfg.tokenizer, whose path is that of the weights' tokenizer where the config names none."""
    from jaxlm.origin import origin_tokenizer

    if (inherited := origin_tokenizer(cfg, workdir)) is None:
        return cfg.tokenizer
    return dataclasses.replace(cfg.tokenizer, path=os.fspath(inherited))


def open_texts(cfg: RunConfig, workdir: str | os.PathLike | None, say: Say) -> OpenData:
    """The documents of a pretraining."""
    from jaxlm.corpus.sources import check_sources, ensure_corpus, ensure_tokenizer
    from jaxlm.data.notices import Notices
    from jaxlm.data.shards import TokenStore

    check_sources(cfg.data, say=say)
    train, held_out, notices = {}, {}, Notices()
    tokenizer = ensure_tokenizer(run_tokenizer_config(cfg, workdir), cfg.data, say=say, notices=notices)
    options: dict[str, Any] = {"expected_tokenizer_sha256": tokenizer.sha256, "notices": notices}
    for name, source in cfg.data.sources.items():
        data = cfg.data if source.eval_path is None else dataclasses.replace(cfg.data, eval_fraction=0.0)
        folder, split = ensure_corpus(source, data, tokenizer, say=say, notices=notices), "eval"
        if source.weight_tokens > 0:
            train[name] = TokenStore(folder, "train", **options)
        if source.eval_path is not None:
            apart = dataclasses.replace(source, path=source.eval_path, eval_path=None)
            folder, split = ensure_corpus(apart, data, tokenizer, say=say, notices=notices), "train"
        elif cfg.data.eval_fraction == 0:
            continue
        store = TokenStore(folder, split, **options)
        if store.num_tokens > 1:
            held_out[name] = store
        elif cfg.train.eval_batches:
            say(
                f"note: data.sources.{name} has no held-out text and is not evaluated: {folder} was built "
                "without (see `jaxlm corpus build --eval-fraction`)."
            )
    return OpenData(tokenizer, train, held_out, notices=notices)


def open_records(cfg: RunConfig, workdir: str | os.PathLike | None, say: Say) -> OpenData:
    """The dialogues, or the texts with labels, of a fine-tuning."""
    from jaxlm.corpus.examples import ensure_examples
    from jaxlm.data.examples import ExampleStore
    from jaxlm.data.notices import Notices

    tokenizer = records_tokenizer(cfg, workdir, say)
    chat = run_chat(cfg, tokenizer, workdir) if cfg.objective == "instruct" else None
    train, held_out, notices = {}, {}, Notices()

    def build(name: str, split: str) -> ExampleStore:
        source = cfg.data.sources[name]
        folder = ensure_examples(name, source, cfg, cfg.objective, tokenizer, chat, split, say, notices)
        return ExampleStore(folder, expected_tokenizer_sha256=tokenizer.sha256, notices=notices)

    for name, source in cfg.data.sources.items():
        if source.weight_tokens > 0:
            train[name] = build(name, "train")
        if source.eval_path is None and cfg.data.eval_fraction == 0:
            continue
        store = build(name, "eval")
        if store.num_documents:
            held_out[name] = store
        elif cfg.train.eval_batches:
            say(
                f"note: data.sources.{name} has no held-out record and is not evaluated: raise data.eval_fraction="
                f"{cfg.data.eval_fraction}, or give data.sources.{name}.eval_path."
            )
    labels = run_labels(cfg, train) if cfg.objective == "classify" else None
    return OpenData(tokenizer, train, held_out, chat, labels, notices)


def records_tokenizer(cfg: RunConfig, workdir: str | os.PathLike | None, say: Say) -> Tokenizer:
    """That of the weights, or of a file; for random weights, one trained on the English that ships with Python."""
    from jaxlm.corpus.embedded import NAMES, PREFIX
    from jaxlm.corpus.sources import ensure_tokenizer
    from jaxlm.data.config import SourceConfig
    from jaxlm.data.tokenizer import load_tokenizer, saved_tokenizer

    config = run_tokenizer_config(cfg, workdir)
    if config.path is None and workdir is not None and (saved := saved_tokenizer(workdir)).exists():
        return load_tokenizer(saved)
    if config.path is not None:
        return load_tokenizer(config.path)
    say(
        "note: without init_from and tokenizer.path, a tokenizer is trained on the English that ships with Python."
    )
    english = {name: SourceConfig(path=PREFIX + name) for name in NAMES}
    return ensure_tokenizer(config, dataclasses.replace(cfg.data, sources=english), say=say)


def run_chat(cfg: RunConfig, tokenizer: Tokenizer, workdir: str | os.PathLike | None) -> ChatTemplate:
    """The template of a run: that in its folder once it has begun, else the one that the config names."""
    from jaxlm.data.chat import open_template, saved_chat

    saved = saved_chat(workdir, tokenizer) if workdir is not None else None
    return saved or open_template(tokenizer, cfg.instruct.template)


def run_labels(cfg: RunConfig, train: Mapping[str, ExampleStore]) -> tuple[str, ...]:
    """Names of the labels in the order of the head's outputs: the config's, else those in the training data, sorted.

    Errors: UserError for fewer than two, or a label that the config lists twice.
    """
    if cfg.classify.task == "regression":
        return ()
    if cfg.classify.labels is not None:
        names = tuple(name.strip() for name in cfg.classify.labels.split(","))
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(
                f"classify.labels={cfg.classify.labels!r} has {twice!r} twice: name each label once."
            )
    else:
        from jaxlm.corpus.examples import sort_labels

        names = tuple(sort_labels(name for store in train.values() for name in store.manifest["labels"]))
    least = 2 if cfg.classify.task == "single_label" else 1
    if len(names) < least:
        raise UserError(
            f"There is nothing to tell apart: the labels are {', '.join(names) or 'none'}. classify.task="
            f"{cfg.classify.task!r} needs {least} at least: look at the column of the labels (`jaxlm data show`)."
        )
    return names


def class_weights(cfg: RunConfig, data: OpenData) -> tuple[float, ...] | None:
    """Weight of each label in the loss; None: all 1."""
    wanted, names = cfg.classify.class_weights, data.labels
    if wanted is None or not names:
        return None
    if wanted == "balanced":
        import numpy as np

        counts_C = np.zeros(len(names))
        for store in data.train.values():
            labels = store.labels(names)
            counts_C += labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(names))
        if absent := [name for name, count in zip(names, counts_C) if not count]:
            raise UserError(
                f"classify.class_weights='balanced': no training text has the label {absent[0]!r}, so it cannot be "
                "weighed. Leave it out of classify.labels, or give the weights."
            )
        return tuple((counts_C.sum() / len(names) / counts_C).tolist())
    given: dict[str, float] = {}
    for part in wanted.split(","):
        name, _, value = part.rpartition("=")
        try:
            given[name.strip()] = float(value)
        except ValueError:
            raise UserError(
                f"classify.class_weights={wanted!r}: {part!r} is not LABEL=NUMBER. Try 'balanced', or "
                f"{','.join(f'{name}=1' for name in names)}."
            ) from None
    for name in given:
        check_choice("classify.class_weights", name, names)
    weights = tuple(given.get(name, 1.0) for name in names)
    if not all(weight >= 0 for weight in weights) or not any(weights):
        raise UserError(
            f"classify.class_weights={wanted!r}: a weight must not be negative, nor all of them 0."
        )
    return weights


def with_vocabulary(cfg: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    """Fills in model.vocab_size. Errors: UserError when the model has fewer rows than the tokenizer has ids."""
    size = cfg.model.vocab_size or tokenizer.vocab_size
    if size < tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size={size} is smaller than the tokenizer's {tokenizer.vocab_size}: every token needs a "
            "row. Leave model.vocab_size unset, or raise it."
        )
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, vocab_size=size))


def with_classes(cfg: RunConfig, labels: Sequence[str] | None) -> RunConfig:
    """Fills in model.num_classes of a classifier: its labels, or 1 for a regression."""
    if labels is None:
        return cfg
    num, said = max(len(labels), 1), cfg.model.num_classes
    if said not in (None, num):
        raise UserError(
            f"model.num_classes={said}, but there are {num} labels: {', '.join(labels) or 'one number'}. Leave it "
            "unset, or list all labels in classify.labels."
        )
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, num_classes=num))


def open_data_together(cfg: RunConfig, workdir: str | os.PathLike) -> OpenData:
    """`open_data` on all processes: the first one fills the cache, then the others read it.

    Where they share no file system the others then tokenise for themselves, and must come to the same tokens.
    """
    with processes.waiting_at_most(processes.LONGEST_BUILD_S):
        with processes.together("The data, read by the first process"):
            data = open_data(cfg, workdir) if processes.is_first() else None
        with processes.together("The data"):
            data = data or open_data(cfg, workdir, quiet=True)
        processes.check_same(
            "The data", {"tokenizer_sha256": data.tokenizer.sha256, "corpus_sha256": data.corpus_sha256}
        )
    return data


def labelled(cfg: RunConfig, data: OpenData) -> Labelled | None:
    """How texts become rows of a classification; None for other objectives."""
    from jaxlm.data.padding import Labelled

    return Labelled(cfg.classify.pooling, data.labels or ()) if cfg.objective == "classify" else None


def make_rows(cfg: RunConfig, data: OpenData) -> Rows:
    """The rows of a run."""
    from jaxlm.data.pipeline import Rows

    return Rows(cfg.data, data.train, cfg.seed, labelled(cfg, data), data.notices)
