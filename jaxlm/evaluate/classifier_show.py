"""The report of a classifier for people: tables on the terminal, and PNG plots (extra: plot)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from jaxlm.data.files import make_folder
from jaxlm.evaluate.classification import log_softmax, roc_curve
from jaxlm.evaluate.classifier import ClassifierReport
from jaxlm.types import UserError

MOST_CONFUSION = 20
"""Labels of which a confusion matrix is printed."""


def number(value: Any, digits: int = 4) -> str:
    """A score; - where it is not defined."""
    return "-" if value is None else f"{value:.{digits}f}"


def print_report(report: ClassifierReport, file: TextIO) -> None:
    """Scores, classes, confusion matrix and baselines, as tables."""
    from rich.console import Console

    width = None if file.isatty() else 120
    console = Console(file=file, highlight=False, markup=False, width=width)
    for table in tables(report):
        console.print(table)


def tables(report: ClassifierReport) -> Iterator[Any]:
    """Rich tables; labels are text, not markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def table(title: str, *columns: str) -> Table:
        made = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for i, column in enumerate(columns):
            made.add_column(Text(column), justify="right" if i else "left")
        return made

    def add(made: Table, *cells: Any) -> None:
        made.add_row(*(Text(str(cell)) for cell in cells))

    scores = report.scores
    summary = table(f"{scores['num_texts']:,} texts", "score", "value")
    for name, value in summary_rows(report):
        add(summary, name, value)
    yield summary
    if "classes" in scores:
        classes = table("labels", "label", "precision", "recall", "F1", "texts", "predicted")
        for one in scores["classes"]:
            figures = (number(one[name]) for name in ("precision", "recall", "f1"))
            add(classes, one["label"], *figures, f"{one['support']:,}", f"{one['num_predicted']:,}")
        for name in ("macro", "micro"):
            add(
                classes,
                f"({name})",
                *(number(scores[name][key]) for key in ("precision", "recall", "f1")),
                "",
                "",
            )
        yield classes
    if len(scores.get("confusion", ())) in range(1, MOST_CONFUSION + 1):
        confusion = table("confusion matrix", "true \\ predicted", *scores["labels"])
        for name, row in zip(scores["labels"], scores["confusion"], strict=True):
            add(confusion, name, *(f"{count:,}" for count in row))
        yield confusion
    baselines = table(
        "baselines", "", *(["MSE"] if scores["task"] == "regression" else ["accuracy", "macro F1"])
    )
    for name, found in [("this classifier", scores), *report.baselines.items()]:
        said = f"{name} ({found['label']})" if name == "majority" else name
        if scores["task"] == "regression":
            add(baselines, said.replace("majority", "mean"), number(found["mse"]))
        else:
            add(baselines, said, number(found["accuracy"]), number(found.get("macro", {}).get("f1")))
    yield baselines


def summary_rows(report: ClassifierReport) -> Iterator[tuple[str, str]]:
    """(name, value) of the scores of all texts together."""
    scores = report.scores
    if scores["task"] == "regression":
        for name, key in (("MSE", "mse"), ("MAE", "mae"), ("R2", "r2"), ("Pearson", "pearson")):
            yield name, number(scores[key])
        yield "Spearman", number(scores["spearman"])
    else:
        yield "loss", f"{number(scores['loss'])} nats"
        yield (
            ("accuracy" if scores["task"] == "single_label" else "all labels right"),
            number(scores["accuracy"]),
        )
        if scores["task"] == "multi_label":
            yield "labels right", number(scores["label_accuracy"])
        yield "macro F1", number(scores["macro"]["f1"])
    if scores.get("roc_auc") is not None:
        yield "ROC-AUC", number(scores["roc_auc"])
    if "ece" in scores:
        yield "calibration error", number(scores["ece"])
    if (temperature := scores.get("temperature")) is not None:
        yield f"  at temperature {temperature:.3f}", number(scores["ece_at_temperature"])
        yield "  loss there", f"{number(scores['loss_at_temperature'])} nats"
    if (same := report.consistency) is not None:
        yield "same label for rewordings", f"{same.num_agreeing:,} of {same.num_groups:,} groups"
    for reason, count in report.dropped.items():
        yield f"dropped: {reason.replace('_', ' ')}", f"{count:,}"
    if report.num_truncated:
        yield "cut to the length of training", f"{report.num_truncated:,}"


def check_plots() -> None:
    """Errors: UserError without matplotlib, before the model is loaded."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("--plots needs matplotlib: pip install 'jaxlm[plot]'.") from None


def draw(report: ClassifierReport, folder: str | os.PathLike) -> list[Path]:
    """Writes confusion.png and reliability.png of one label a text, with two labels roc.png; predicted.png of a
    regression. -> the files."""
    check_plots()
    import warnings

    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    drawings: dict[str, Callable[[Any, ClassifierReport], None]] = {}
    if report.scores["task"] == "single_label":
        drawings |= {"confusion": _confusion, "reliability": _reliability}
        if len(report.scores["labels"]) == 2 and report.scores["roc_auc"] is not None:
            drawings["roc"] = _roc
    elif report.scores["task"] == "regression":
        drawings["predicted"] = _predicted
    make_folder(os.fspath(folder))
    written = []
    # A label may hold a $, and letters the font lacks: those are drawn as boxes.
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        for name, drawing in drawings.items():
            figure, axes = pyplot.subplots(figsize=(5, 5))
            path = Path(folder, f"{name}.png")
            try:
                drawing(axes, report)
                figure.tight_layout()
                figure.savefig(path, dpi=150)
            except OSError as error:
                raise UserError(
                    f"{path} cannot be written: {error.strerror}. Choose another place."
                ) from None
            finally:
                pyplot.close(figure)
            written.append(path)
    return written


def _confusion(axes: Any, report: ClassifierReport) -> None:
    names, counts = report.scores["labels"], np.array(report.scores["confusion"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= MOST_CONFUSION:
        for (i, j), count in np.ndenumerate(counts):
            axes.text(
                j, i, f"{count:,}", ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black"
            )
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"accuracy {number(report.scores['accuracy'])} of {report.scores['num_texts']:,} texts")


def _reliability(axes: Any, report: ClassifierReport) -> None:
    bins = report.scores["calibration_bins"]
    largest = max(one["num_texts"] for one in bins)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    axes.plot(
        [one["confidence"] for one in bins], [one["accuracy"] for one in bins], color="#3b6ea5", linewidth=1
    )
    axes.scatter(
        [one["confidence"] for one in bins],
        [one["accuracy"] for one in bins],
        s=[20 + 180 * one["num_texts"] / largest for one in bins],
        color="#3b6ea5",
    )
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("probability of the predicted label")
    axes.set_ylabel("share that is right")
    axes.set_title(f"expected calibration error {number(report.scores['ece'])}")


def _roc(axes: Any, report: ClassifierReport) -> None:
    log_probs_NC = log_softmax(report.logits_NC)
    axes.plot(*roc_curve(log_probs_NC[:, 1] - log_probs_NC[:, 0], report.labels == 1), color="#3b6ea5")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    names = report.scores["labels"]
    axes.set_xlabel(f"share of {names[0]} that is called {names[1]}")
    axes.set_ylabel(f"share of {names[1]} that is found")
    axes.set_title(f"ROC-AUC {number(report.scores['roc_auc'])}")


def _predicted(axes: Any, report: ClassifierReport) -> None:
    axes.scatter(report.labels[:, 0], report.logits_NC[:, 0], s=8, color="#3b6ea5")
    ends = [float(report.labels.min()), float(report.labels.max())]
    axes.plot(ends, ends, color="grey", linewidth=1, linestyle="--")
    axes.set_xlabel("true")
    axes.set_ylabel("predicted")
    axes.set_title(f"R2 {number(report.scores['r2'])}")
