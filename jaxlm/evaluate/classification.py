"""How good a classifier is, from its logits and the true labels alone: pure numpy, in float64.

Every function returns a dict of plain numbers, lists and None (what is not defined), for JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxlm.types import UserError

NUM_BINS = 15
"""Of confidences in a calibration error (Guo et al. 2017, arXiv:1706.04599)."""
TEMPERATURES = (0.05, 20.0)
"""Between which a temperature is looked for: a model that is always right would want 0."""

Scores = dict[str, Any]


def log_softmax(logits_NC: np.ndarray) -> np.ndarray:
    """Over the last dim."""
    shifted_NC = logits_NC.astype(np.float64) - logits_NC.max(axis=-1, keepdims=True)
    return shifted_NC - np.log(np.exp(shifted_NC).sum(axis=-1, keepdims=True))


def check_logits(logits_NC: np.ndarray) -> None:
    """Errors: UserError where there are none, or one is not finite."""
    if not len(logits_NC):
        raise UserError("there is no text to evaluate: give records with a text and a label.")
    if not np.isfinite(logits_NC).all():
        raise UserError(
            "the model's logits are not finite: its weights have diverged or are damaged. Try an earlier checkpoint "
            "(--step)."
        )


def ratio(part: float, whole: float) -> float:
    """part / whole; 0 where there is nothing, as scikit-learn does with zero_division=0."""
    return float(part / whole) if whole else 0.0


def precision_recall_f1(hits: float, predicted: float, support: float) -> Scores:
    """Of one class, or of sums over classes."""
    return {
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, support),
        "f1": ratio(2 * hits, predicted + support),
    }


def macro_mean(classes: Sequence[Scores]) -> Scores:
    """Means over those classes that a text has or gets, as scikit-learn's average="macro"."""
    there = [one for one in classes if one["support"] or one["num_predicted"]]
    return {
        name: float(np.mean([one[name] for one in there])) if there else 0.0
        for name in ("precision", "recall", "f1")
    }


def ranks(values_N: np.ndarray) -> np.ndarray:
    """Places 1..N in ascending order; equal values share the mean of theirs."""
    _, inverse_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse_N]


def roc_auc(scores_N: np.ndarray, is_positive_N: np.ndarray) -> float | None:
    """Probability that a positive text scores higher than a negative one, ties half; None without one of both.

    Source: Mann-Whitney U; Fawcett 2006, An introduction to ROC analysis.
    """
    num, num_positive = len(scores_N), int(is_positive_N.sum())
    if num_positive in (0, num):
        return None
    wins = ranks(scores_N)[is_positive_N].sum() - num_positive * (num_positive + 1) / 2
    return float(wins / (num_positive * (num - num_positive)))


def roc_curve(scores_N: np.ndarray, is_positive_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(false positive rates, true positive rates) from (0, 0) to (1, 1), one point for each different score."""
    order = np.argsort(-scores_N, kind="stable")
    sorted_N, positive_N = scores_N[order], is_positive_N[order]
    ends = np.append(np.flatnonzero(np.diff(sorted_N)), len(sorted_N) - 1)
    hits, misses = np.cumsum(positive_N)[ends], np.cumsum(~positive_N)[ends]
    return np.append(0.0, misses / max(misses[-1], 1)), np.append(0.0, hits / max(hits[-1], 1))


def calibration(probs_NC: np.ndarray, labels_N: np.ndarray, num_bins: int = NUM_BINS) -> Scores:
    """Expected calibration error: the mean over texts of |share of right labels - confidence| in the text's bin.

    Bins (low, high] of equal width over the probability of the predicted label.
    """
    confidence_N, is_right_N = probs_NC.max(axis=1), probs_NC.argmax(axis=1) == labels_N
    bin_N = np.clip(np.ceil(confidence_N * num_bins).astype(int) - 1, 0, num_bins - 1)
    bins, error = [], 0.0
    for i in range(num_bins):
        inside = bin_N == i
        if not inside.any():
            continue
        accuracy, confidence = float(is_right_N[inside].mean()), float(confidence_N[inside].mean())
        bins.append({"num_texts": int(inside.sum()), "confidence": confidence, "accuracy": accuracy})
        error += float(inside.mean()) * abs(accuracy - confidence)
    return {"ece": error, "bins": bins}


def mean_nats(log_probs_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean negative log-likelihood of the labels."""
    return float(-log_probs_NC[np.arange(len(labels_N)), labels_N].mean())


def fit_temperature(logits_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """The temperature in TEMPERATURES by which these logits, divided by it, give the labels the lowest loss.

    The loss is convex in 1 / temperature, so that golden-section search finds the minimum.
    """

    def loss(log_temperature: float) -> float:
        return mean_nats(log_softmax(logits_NC / np.exp(log_temperature)), labels_N)

    return float(np.exp(_minimum(loss, *np.log(TEMPERATURES))))


def _minimum(f: Callable[[float], float], low: float, high: float, tolerance: float = 1e-5) -> float:
    golden = (5**0.5 - 1) / 2
    a, b = high - golden * (high - low), low + golden * (high - low)
    f_a, f_b = f(a), f(b)
    while high - low > tolerance:
        if f_a <= f_b:
            high, b, f_b = b, a, f_a
            a = high - golden * (high - low)
            f_a = f(a)
        else:
            low, a, f_a = a, b, f_b
            b = low + golden * (high - low)
            f_b = f(b)
    return (low + high) / 2


def single_label_scores(
    logits_NC: np.ndarray, labels_N: np.ndarray, names: Sequence[str], temperature: float | None = None
) -> Scores:
    """Loss in nats per text, accuracy, precision, recall and F1, confusion, ROC-AUC of two classes, calibration.

    Args:
      temperature: fitted on other texts; its loss and calibration error stand beside those without.
    """
    check_logits(logits_NC)
    num, C = logits_NC.shape
    log_probs_NC, predicted_N = log_softmax(logits_NC), logits_NC.argmax(axis=1)
    confusion_CC = np.zeros((C, C), np.int64)
    np.add.at(confusion_CC, (labels_N, predicted_N), 1)
    hits_C = np.diagonal(confusion_CC)
    support_C, predicted_C = confusion_CC.sum(axis=1), confusion_CC.sum(axis=0)
    classes = [
        {
            "label": name,
            **precision_recall_f1(*counts),
            "support": int(counts[2]),
            "num_predicted": int(counts[1]),
        }
        for name, *counts in zip(names, hits_C, predicted_C, support_C, strict=True)
    ]
    found = calibration(np.exp(log_probs_NC), labels_N)
    calibrated: Scores = {"temperature": temperature, "ece_at_temperature": None, "loss_at_temperature": None}
    if temperature is not None:
        scaled_NC = log_softmax(logits_NC / temperature)
        calibrated["ece_at_temperature"] = calibration(np.exp(scaled_NC), labels_N)["ece"]
        calibrated["loss_at_temperature"] = mean_nats(scaled_NC, labels_N)
    return {
        "task": "single_label",
        "num_texts": num,
        "labels": list(names),
        "loss": mean_nats(log_probs_NC, labels_N),
        "accuracy": float(hits_C.sum() / num),
        "micro": precision_recall_f1(hits_C.sum(), num, num),
        "macro": macro_mean(classes),
        "classes": classes,
        "confusion": confusion_CC.tolist(),
        "roc_auc": roc_auc(log_probs_NC[:, 1] - log_probs_NC[:, 0], labels_N == 1) if C == 2 else None,
        "ece": found["ece"],
        "calibration_bins": found["bins"],
        **calibrated,
        "majority": {"label": names[int(support_C.argmax())], "accuracy": float(support_C.max() / num)},
    }


def multi_label_scores(logits_NC: np.ndarray, labels_NC: np.ndarray, names: Sequence[str]) -> Scores:
    """Loss (mean binary cross-entropy over labels, nats), the share of texts whose labels are all right, and of
    (text, label) pairs that are; precision, recall and F1 of each label. A text gets what has a logit above 0."""
    check_logits(logits_NC)
    logits_NC, true_NC = logits_NC.astype(np.float64), labels_NC > 0.5
    predicted_NC = logits_NC > 0
    hits_C, predicted_C, support_C = (a.sum(axis=0) for a in (true_NC & predicted_NC, predicted_NC, true_NC))
    classes = [
        {
            "label": name,
            **precision_recall_f1(hits_C[i], predicted_C[i], support_C[i]),
            "support": int(support_C[i]),
            "num_predicted": int(predicted_C[i]),
            "roc_auc": roc_auc(logits_NC[:, i], true_NC[:, i]),
        }
        for i, name in enumerate(names)
    ]
    sets, counts = np.unique(true_NC, axis=0, return_counts=True)
    return {
        "task": "multi_label",
        "num_texts": len(logits_NC),
        "labels": list(names),
        "loss": float((np.logaddexp(0.0, logits_NC) - true_NC * logits_NC).mean()),
        "accuracy": float((true_NC == predicted_NC).all(axis=1).mean()),
        "label_accuracy": float((true_NC == predicted_NC).mean()),
        "micro": precision_recall_f1(hits_C.sum(), predicted_C.sum(), support_C.sum()),
        "macro": macro_mean(classes),
        "classes": classes,
        "majority": {
            "label": [name for name, there in zip(names, sets[counts.argmax()]) if there],
            "accuracy": float(counts.max() / len(logits_NC)),
        },
    }


def regression_scores(predicted_N: np.ndarray, labels_N: np.ndarray) -> Scores:
    """Squared and absolute error, R2, and both correlations; None where all numbers are equal."""
    check_logits(predicted_N)
    predicted_N, labels_N = (np.asarray(a, np.float64).reshape(-1) for a in (predicted_N, labels_N))
    error_N = predicted_N - labels_N
    mse, variance = float(np.square(error_N).mean()), float(labels_N.var())
    return {
        "task": "regression",
        "num_texts": len(labels_N),
        "loss": mse,
        "mse": mse,
        "mae": float(np.abs(error_N).mean()),
        "r2": 1.0 - mse / variance if variance else None,
        "pearson": correlation(predicted_N, labels_N),
        "spearman": correlation(ranks(predicted_N), ranks(labels_N)),
        "majority": {"label": float(labels_N.mean()), "mse": variance},
    }


def correlation(a_N: np.ndarray, b_N: np.ndarray) -> float | None:
    """Pearson's; None where one of them does not vary."""
    a_N, b_N = a_N - a_N.mean(), b_N - b_N.mean()
    scale = np.sqrt(np.square(a_N).sum() * np.square(b_N).sum())
    return float(np.clip((a_N * b_N).sum() / scale, -1.0, 1.0)) if scale else None


def scores_of(
    task: str,
    logits_NC: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    temperature: float | None = None,
) -> Scores:
    """The scores of a task; labels as of `ExampleStore.labels`."""
    if task == "single_label":
        return single_label_scores(logits_NC, labels, names, temperature)
    if task == "multi_label":
        return multi_label_scores(logits_NC, labels, names)
    return regression_scores(logits_NC, labels)
