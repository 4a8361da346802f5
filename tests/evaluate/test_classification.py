"""Scores of classifiers against worked examples, and against definitions written out the long way."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.evaluate import classification as c
from jaxlm.types import UserError


def logits_of(predicted, num_classes, confidence=0.8):
    """Logits under which these labels have this probability, the others the rest in equal parts."""
    probs = np.full((len(predicted), num_classes), (1 - confidence) / (num_classes - 1))
    probs[np.arange(len(predicted)), predicted] = confidence
    return np.log(probs)


#            true       predicted
EXAMPLE = [("cat", "cat"), ("cat", "cat"), ("cat", "dog"), ("dog", "dog"), ("dog", "cat"), ("owl", "dog")]
NAMES = ("cat", "dog", "owl")


def example(**options):
    true, predicted = (np.array([NAMES.index(pair[i]) for pair in EXAMPLE]) for i in (0, 1))
    return c.single_label_scores(logits_of(predicted, 3), true, NAMES, **options)


def test_a_worked_example():
    scores = example()
    assert scores["confusion"] == [[2, 1, 0], [1, 1, 0], [0, 1, 0]]
    assert scores["accuracy"] == 0.5
    rows = {
        one["label"]: (one["precision"], one["recall"], one["f1"], one["support"])
        for one in scores["classes"]
    }
    assert rows == {
        "cat": (2 / 3, 2 / 3, 2 / 3, 3),
        "dog": (1 / 3, 1 / 2, pytest.approx(2 / 5), 2),
        "owl": (0.0, 0.0, 0.0, 1),  # never predicted
    }
    assert scores["macro"] == {
        "precision": pytest.approx(1 / 3), "recall": pytest.approx(7 / 18), "f1": pytest.approx(16 / 45),
    }  # fmt: skip
    assert scores["micro"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert scores["loss"] == pytest.approx(-(math.log(0.8) + math.log(0.1)) / 2)
    assert scores["majority"] == {"label": "cat", "accuracy": 0.5}
    assert scores["roc_auc"] is None
    # All six are in one bin: half of them right, at 0.8.
    assert scores["ece"] == pytest.approx(0.3)
    assert json.loads(json.dumps(scores)) == scores


def test_a_class_that_is_nowhere_does_not_lower_the_macro_mean():
    scores = c.single_label_scores(logits_of([0, 1, 1], 3), np.array([0, 1, 1]), NAMES)
    assert scores["macro"]["f1"] == 1.0


def test_roc_auc_counts_ties_half():
    #                    one tie of a positive and a negative; the others are ordered 3 times of 4
    scores, positive = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert c.roc_auc(scores, positive) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert c.roc_auc(np.ones(4), positive) == 0.5
    assert c.roc_auc(scores, np.ones(4, bool)) is None


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=30))
@settings(max_examples=60)
def test_roc_auc_is_the_share_of_pairs_in_order_and_the_area_under_the_curve(pairs):
    scores, positive = np.array([float(s) for s, _ in pairs]), np.array([p for _, p in pairs])
    found = c.roc_auc(scores, positive)
    if found is None:
        return
    wins = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert found == pytest.approx(np.mean(wins))
    false_rate, true_rate = c.roc_curve(scores, positive)
    assert (false_rate[0], true_rate[0], false_rate[-1], true_rate[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(true_rate, false_rate) == pytest.approx(found)


def test_calibration_by_hand():
    #  probability of the predicted label   its bin of five   right
    #  0.95, 0.85, 0.90                     (0.8, 1.0]        yes, yes, no
    #  0.55, 0.60                           (0.4, 0.6]        no, yes
    probs = np.array([[0.95, 0.05], [0.85, 0.15], [0.9, 0.1], [0.45, 0.55], [0.6, 0.4]])
    found = c.calibration(probs, np.array([0, 0, 1, 0, 0]), num_bins=5)
    assert [one["num_texts"] for one in found["bins"]] == [2, 3]
    assert found["ece"] == pytest.approx(3 / 5 * abs(2 / 3 - 0.9) + 2 / 5 * abs(1 / 2 - 0.575))


def test_the_fitted_temperature_undoes_one_and_calibrates_other_texts():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (8000, 4))
    labels = np.array([rng.choice(4, p=p) for p in np.exp(c.log_softmax(logits))])
    overconfident = 3.0 * logits
    temperature = c.fit_temperature(overconfident[:4000], labels[:4000])
    assert temperature == pytest.approx(3.0, rel=0.1)
    scores = c.single_label_scores(overconfident[4000:], labels[4000:], "abcd", temperature)
    assert scores["ece_at_temperature"] < 0.03 < scores["ece"]
    assert scores["loss_at_temperature"] < scores["loss"]
    grid = np.linspace(0.5, 6, 500)
    losses = [c.mean_nats(c.log_softmax(overconfident[:4000] / t), labels[:4000]) for t in grid]
    assert temperature == pytest.approx(grid[np.argmin(losses)], abs=0.012)


def test_a_model_that_is_always_right_has_the_lowest_temperature():
    assert c.fit_temperature(logits_of([0, 1], 2), np.array([0, 1])) == pytest.approx(
        c.TEMPERATURES[0], rel=1e-3
    )


def test_any_number_of_labels():
    #               red    blue   round
    true = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0]], np.float32)
    said = np.array([[1, 0, 1], [0, 0, 0], [0, 0, 0], [1, 1, 1]])
    scores = c.multi_label_scores(np.where(said, 2.0, -2.0), true, ("red", "blue", "round"))
    assert scores["accuracy"] == 0.5  # of whole sets
    assert scores["label_accuracy"] == 10 / 12
    rows = {one["label"]: (one["precision"], one["recall"], one["f1"]) for one in scores["classes"]}
    assert rows == {
        "red": (1, 1, 1),
        "blue": (1, 0.5, pytest.approx(2 / 3)),
        "round": (0.5, 1, pytest.approx(2 / 3)),
    }
    assert scores["micro"] == {"precision": 4 / 5, "recall": 4 / 5, "f1": 4 / 5}
    assert scores["macro"]["f1"] == pytest.approx(7 / 9)
    assert scores["loss"] == pytest.approx((10 * math.log1p(math.exp(-2)) + 2 * math.log1p(math.exp(2))) / 12)
    assert scores["classes"][0]["roc_auc"] == 1.0
    assert scores["majority"]["accuracy"] == 0.25


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=20))
@settings(max_examples=40)
def test_numbers_against_scipy(pairs):
    import scipy.stats  # takes two seconds, which every worker would spend

    predicted, true = (np.array([float(pair[i]) for pair in pairs]) for i in (0, 1))
    scores = c.regression_scores(predicted[:, None], true[:, None])
    assert scores["mse"] == pytest.approx(np.mean((predicted - true) ** 2))
    assert scores["mae"] == pytest.approx(np.mean(abs(predicted - true)))
    if true.std() == 0:
        assert scores["r2"] is None
    else:
        assert scores["r2"] == pytest.approx(
            1 - np.sum((predicted - true) ** 2) / np.sum((true - true.mean()) ** 2)
        )
    if predicted.std() == 0 or true.std() == 0:
        assert scores["pearson"] is None
        assert scores["spearman"] is None
    else:
        assert scores["pearson"] == pytest.approx(scipy.stats.pearsonr(predicted, true)[0], abs=1e-6)
        assert scores["spearman"] == pytest.approx(scipy.stats.spearmanr(predicted, true)[0], abs=1e-6)


def test_logits_that_are_not_finite_are_an_error():
    with pytest.raises(UserError, match="not finite"):
        c.single_label_scores(np.array([[np.nan, 1.0]]), np.array([0]), ("a", "b"))
    with pytest.raises(UserError, match="no text to evaluate"):
        c.single_label_scores(np.zeros((0, 2)), np.zeros(0, int), ("a", "b"))
