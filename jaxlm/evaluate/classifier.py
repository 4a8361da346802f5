"""A classifier against records with labels: its scores, and those of the baselines it has to beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config import nearest
from jaxlm.corpus.columns import ColumnMap, Dropped, labelled, open_columns
from jaxlm.corpus.records import read_all
from jaxlm.corpus.text import Tally
from jaxlm.evaluate.classification import Scores, fit_temperature, scores_of
from jaxlm.evaluate.instruction import Consistency, consistency
from jaxlm.evaluate.label_words import TEMPLATE, pick_examples, zero_shot
from jaxlm.infer.predict import BATCH_SIZE, Classifier, classifier_of, predictions, text_ids, text_logits
from jaxlm.types import UserError

OnProgress = Callable[[int, int], None]


class LabelledTexts(NamedTuple):
    """Texts and their labels."""

    texts: list[str]
    labels: np.ndarray
    """int32 [N]; float32 [N, C] of 0 and 1 of multi_label, [N, 1] of regression."""
    groups: list[Any]
    """Rewordings of one text share a group; None: of no group."""
    dropped: Counter[str]
    """Records without a text, by reason."""


def read_labelled(
    path: str, columns: str, task: str, names: Sequence[str], max_records: int | None = None
) -> LabelledTexts:
    """The labelled texts of a file. Errors: UserError that names file, line and field of what is wrong there."""
    texts: list[str] = []
    labels: list[Any] = []
    groups: list[Any] = []
    dropped: Counter[str] = Counter()
    opened: ColumnMap | None = None
    index = {name: i for i, name in enumerate(names)}
    for record in read_all(path, "strict", Tally()):
        if len(texts) == max_records:
            break
        opened = opened or open_columns(columns, "classify", record)
        try:
            text, found = labelled(record, opened, task)
        except Dropped as reason:
            dropped[str(reason)] += 1
            continue
        if isinstance(found, list):
            for name in found:
                if name not in index:
                    match = nearest(name, index)
                    raise UserError(
                        f"{record.where}: the classifier does not know the label {name!r}, only "
                        f"{', '.join(map(repr, names))}." + (f" Did you mean {match!r}?" if match else "")
                    )
        texts.append(text)
        labels.append(found)
        groups.append(record.fields.get("group"))
    if not texts:
        raise UserError(f"{path} holds no text with a label.")
    if task == "regression":
        array = np.array(labels, np.float32)[:, None]
    elif task == "single_label":
        array = np.array([index[found[0]] for found in labels], np.int32)
    else:
        array = np.array([[name in found for name in names] for found in labels], np.float32)
    return LabelledTexts(texts, array, groups, dropped)


@dataclass(frozen=True)
class ClassifierReport:
    """Scores, and what plots are drawn from."""

    scores: Scores
    """See evaluate/classification.py."""
    baselines: dict[str, Scores]
    """By name: of `majority`, whose label all texts get; of the label words of a language model."""
    dropped: dict[str, int]
    num_truncated: int
    consistency: Consistency | None
    logits_NC: np.ndarray
    labels: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """Everything but the arrays, for JSON."""
        return {
            **{name: value for name, value in self.scores.items() if name != "majority"},
            "baselines": self.baselines,
            "dropped": self.dropped,
            "num_truncated": self.num_truncated,
            "consistency": None if self.consistency is None else self.consistency.as_dict(),
        }


class LabelWords(NamedTuple):
    """How a language model is asked for labels; see `zero_shot`."""

    loaded: Any
    """A LoadedRun with a language head."""
    template: str = TEMPLATE
    shots_path: str | None = None
    """Records with labels, from which examples are taken; None: zero-shot."""
    num_shots: int = 0
    normalise: bool = False


def evaluate_classifier(
    loaded: Any,
    path: str,
    columns: str = "auto",
    *,
    calibrate_on: str | None = None,
    label_words: LabelWords | None = None,
    max_records: int | None = None,
    batch_size: int = BATCH_SIZE,
    on_progress: OnProgress | None = None,
) -> ClassifierReport:
    """Labels the texts of a file of records, and compares.

    Args:
      loaded: a LoadedRun of objective=classify.
      columns: column map of all files.
      calibrate_on: other records, on which a temperature is fitted (single_label); None: none is.
      label_words: a baseline beside the majority (single_label).
      on_progress: on_progress(labelled so far, all).

    Errors: UserError for a run that is no classifier, and a label that it does not know.
    """
    classifier = classifier_of(loaded)
    task, names = classifier.task, classifier.names
    if task != "single_label" and (calibrate_on or label_words):
        raise UserError(
            f"A temperature and label words are for one label a text; the run has classify.task={task!r}."
        )
    data = read_labelled(path, columns, task, names, max_records)
    logits_NC, num_truncated = _logits(classifier, data.texts, batch_size, on_progress)
    temperature = None
    if calibrate_on is not None:
        held_out = read_labelled(calibrate_on, columns, task, names)
        temperature = fit_temperature(
            _logits(classifier, held_out.texts, batch_size, on_progress)[0], held_out.labels
        )
    scores = scores_of(task, logits_NC, data.labels, names, temperature)
    baselines = {"majority": scores["majority"]}
    if label_words is not None:
        name, found = _by_label_words(label_words, data, columns, names, on_progress)
        baselines[name] = found
    found = [str(one["predicted"]) for one in predictions(task, names, logits_NC)]
    return ClassifierReport(
        scores,
        baselines,
        dict(data.dropped),
        num_truncated,
        consistency(data.groups, found),
        logits_NC,
        data.labels,
    )


def _logits(
    classifier: Classifier, texts: Sequence[str], batch_size: int, on_progress: OnProgress | None
) -> tuple[np.ndarray, int]:
    """(logits_NC, how many texts were cut)."""
    rows = text_ids(classifier, texts)
    logits_NC = text_logits(classifier, rows, batch_size=batch_size, on_progress=on_progress)
    return logits_NC, sum(len(row) > classifier.max_tokens for row in rows)


def _by_label_words(
    asked: LabelWords, data: LabelledTexts, columns: str, names: Sequence[str], on_progress: OnProgress | None
) -> tuple[str, Scores]:
    examples: list[tuple[str, str]] = []
    if asked.shots_path is not None:
        shots = read_labelled(asked.shots_path, columns, "single_label", names)
        pairs = [(text, str(names[i])) for text, i in zip(shots.texts, shots.labels.tolist(), strict=True)]
        examples = pick_examples(pairs, names, asked.num_shots)
    found_NC = zero_shot(
        asked.loaded,
        data.texts,
        names,
        asked.template,
        examples,
        normalise=asked.normalise,
        on_progress=on_progress,
    )
    scores = scores_of("single_label", found_NC, data.labels, names)
    kept = ("loss", "accuracy", "micro", "macro", "roc_auc", "ece", "classes")
    about = {"template": asked.template, "num_shots": len(examples), "normalise": asked.normalise}
    return f"label words, {len(examples)} shots", about | {name: scores[name] for name in kept}
