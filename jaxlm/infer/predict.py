"""Texts in, labels out: with the pooling, the truncation and the order of labels that a classifier was trained with."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm.corpus.columns import ColumnMap, open_unlabelled, text_of
from jaxlm.corpus.records import Record
from jaxlm.data.padding import row_width, text_rows
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.infer.instructions import BadRecord, read_each
from jaxlm.infer.resumable import resumable
from jaxlm.infer.sample import round_rows
from jaxlm.models.build import LM
from jaxlm.objectives.classify import pooled
from jaxlm.types import Batch, Params, UserError

BATCH_SIZE = 32
CHUNK_BATCHES = 16
"""Batches whose texts are sorted by length, computed and written together."""
OnProgress = Callable[[int, int], None]


class Classifier(NamedTuple):
    """A trained classifier, ready to be asked."""

    lm: LM
    params: Params
    tokenizer: Tokenizer
    task: str
    pooling: str
    names: tuple[str, ...]
    """Of the labels, in the order of the logits; empty for a regression."""
    max_tokens: int
    """Longer texts are cut, as in training."""


def classifier_of(loaded: Any) -> Classifier:
    """The classifier of a LoadedRun. Errors: UserError where the run is none."""
    cfg = loaded.config
    if cfg.model.num_classes is None:
        raise UserError(
            f"The run is no classifier: its objective is {cfg.objective}. Give one that was trained with "
            "objective=classify."
        )
    names = tuple(loaded.meta.extra.get("labels") or ())
    if cfg.classify.task != "regression" and len(names) != cfg.model.num_classes:
        raise UserError(
            f"The checkpoint names {len(names)} labels, but its head has {cfg.model.num_classes} outputs: it is "
            "damaged, or was not written by a classification. Try another step."
        )
    return Classifier(
        loaded.lm,
        loaded.params,
        loaded.tokenizer,
        cfg.classify.task,
        cfg.classify.pooling,
        names,
        cfg.data.seq_len,
    )


def text_ids(classifier: Classifier, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts as the examples of the training have them, but for the cut."""
    prefix = list(classifier.tokenizer.prefix_ids)
    return [[*prefix, *ids] for ids in classifier.tokenizer.encode_batch(texts)]


@functools.lru_cache(maxsize=8)
def compiled_scores(hidden: Callable, head: Callable) -> Callable[[Params, Batch], jax.Array]:
    """Jits (params, batch) -> logits_BC."""
    return jax.jit(lambda params, batch: head(params, pooled(hidden(params, batch), batch["weights"])))


def text_logits(
    classifier: Classifier,
    rows: Sequence[Sequence[int]],
    *,
    batch_size: int = BATCH_SIZE,
    on_progress: OnProgress | None = None,
) -> np.ndarray:
    """float32 [N, C], in the order of the rows. Rows of similar length share a batch, which has one of a few widths."""
    logits_NC = np.zeros((len(rows), max(len(classifier.names), 1)), np.float32)
    rows = [row[: classifier.max_tokens] for row in rows]
    lengths = np.array([len(row) for row in rows], int)
    order = np.argsort(lengths, kind="stable")
    scores = compiled_scores(classifier.lm.hidden, classifier.lm.head)
    num_rows = batch_size if len(rows) > batch_size else round_rows(len(rows))
    for first in range(0, len(rows), batch_size):
        chosen = order[first : first + batch_size]
        width = row_width(int(lengths[chosen].max()), classifier.max_tokens)
        batch = text_rows([rows[i] for i in chosen], classifier.pooling, num_rows, width)
        logits_NC[chosen] = np.asarray(scores(classifier.params, batch))[: len(chosen)]
        if on_progress is not None:
            on_progress(first + len(chosen), len(rows))
    return logits_NC


def _short(value: Any) -> float:
    return float(f"{float(value):.6g}")


def predictions(
    task: str, names: Sequence[str], logits_NC: np.ndarray, temperature: float = 1.0
) -> list[dict[str, Any]]:
    """For each text `predicted` (a label, labels, or a number) and, of labels, `probabilities`, to six digits."""
    if task == "regression":
        return [{"predicted": _short(value)} for value in logits_NC[:, 0]]
    scaled_NC = logits_NC.astype(np.float64) / temperature
    if task == "multi_label":
        probs_NC = np.exp(-np.logaddexp(0.0, -scaled_NC))
    else:
        probs_NC = np.exp(scaled_NC - scaled_NC.max(axis=1, keepdims=True))
        probs_NC /= probs_NC.sum(axis=1, keepdims=True)
    found = []
    for logits_C, probs_C in zip(logits_NC, probs_NC, strict=True):
        predicted: Any = names[int(logits_C.argmax())]
        if task == "multi_label":
            predicted = [name for name, logit in zip(names, logits_C, strict=True) if logit > 0]
        probabilities = {name: _short(p) for name, p in zip(names, probs_C, strict=True)}
        found.append({"predicted": predicted, "probabilities": probabilities})
    return found


class Text(NamedTuple):
    """A record to classify."""

    fields: dict[str, Any]
    text: str
    where: str


def read_texts(path: str, columns: str = "auto") -> list[Text | BadRecord]:
    """The texts of a file of records (- is stdin, JSONL). A label may be there: it is a field like others.

    Errors: UserError for a file that cannot be read, and columns that the first record does not have.
    """

    def read(record: Record, opened: ColumnMap) -> Text:
        return Text(record.fields, text_of(record, opened), record.where)

    return read_each(path, lambda first: open_unlabelled(columns, first), read)


@dataclass
class Summary:
    """What `predict_texts` has done, in this process and those before it."""

    num_texts: int = 0
    num_truncated: int = 0
    """Of this process."""
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    """Texts of each label."""
    errors: list[str] = dataclasses.field(default_factory=list)

    def count(self, line: Mapping[str, Any]) -> None:
        """Adds a line of the output."""
        if line.get("predicted") is None:
            self.errors.append(str(line.get("error")))
            return
        self.num_texts += 1
        predicted = line["predicted"]
        for name in predicted if isinstance(predicted, list) else [predicted]:
            if isinstance(name, str):
                self.counts[name] = self.counts.get(name, 0) + 1


def predict_texts(
    classifier: Classifier,
    texts: Sequence[Text | BadRecord],
    write: Callable[[list[dict[str, Any]]], None],
    *,
    done: Sequence[Mapping[str, Any]] = (),
    temperature: float = 1.0,
    batch_size: int = BATCH_SIZE,
    on_progress: OnProgress | None = None,
) -> Summary:
    """Writes a line for each text, in order: its fields and `predictions`; of a bad record, null and an `error`.

    Args:
      write: takes the lines of a chunk.
      done: lines that are written already: of the first texts.
    """
    summary, chunk = Summary(), batch_size * CHUNK_BATCHES
    for line in done:
        summary.count(line)
    for first in range(len(done), len(texts), chunk):
        chosen = texts[first : first + chunk]
        good = [i for i, text in enumerate(chosen) if isinstance(text, Text)]
        rows = dict(zip(good, text_ids(classifier, [text.text for text in chosen if isinstance(text, Text)])))
        num_prefix = len(classifier.tokenizer.prefix_ids)
        rows = {i: row for i, row in rows.items() if len(row) > num_prefix}
        summary.num_truncated += sum(len(row) > classifier.max_tokens for row in rows.values())
        logits_NC = text_logits(classifier, list(rows.values()), batch_size=batch_size)
        found = dict(zip(rows, predictions(classifier.task, classifier.names, logits_NC, temperature)))
        lines = []
        for i, text in enumerate(chosen):
            error = text.error if isinstance(text, BadRecord) else f"{text.where}: the text has no token."
            lines.append({**text.fields, **found.get(i, {"predicted": None, "error": error})})
        write(lines)
        for line in lines:
            summary.count(line)
        if on_progress is not None:
            on_progress(first + len(chosen), len(texts))
    return summary


def predict_file(
    classifier: Classifier,
    texts: Sequence[Text | BadRecord],
    output: str | os.PathLike,
    *,
    settings: Mapping[str, Any],
    temperature: float = 1.0,
    batch_size: int = BATCH_SIZE,
    on_progress: OnProgress | None = None,
) -> Summary:
    """`predict_texts` into a file that has its name once it is complete; one that was killed goes on where it ended.

    Args:
      settings: what else decides about the lines: which run, which step.
    """
    content = [(text.fields, text.text if isinstance(text, Text) else text.error) for text in texts]
    sha256 = hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()
    key = {**settings, "temperature": temperature, "batch_size": batch_size, "texts": sha256}
    with resumable(output, key, batch_size * CHUNK_BATCHES) as file:
        return predict_texts(
            classifier,
            texts,
            file.write,
            done=file.done,
            temperature=temperature,
            batch_size=batch_size,
            on_progress=on_progress,
        )
