"""Promises of the loss of classification: torch's numbers, however the batch is cut and whatever padding holds."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.objectives.classify import make_loss, pooled

LOGITS = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0], [2.0, 2.0, 0.0], [-1.0, 0.5, 4.0]], np.float32)
WEIGHTS = (1.0, 2.0, 0.5)

# Its states are the batch's own, its head changes nothing: a pooled state is the logits of its text.
LM = SimpleNamespace(
    arrange=lambda batch: batch,
    hidden=lambda params, batch, key: batch["states"],
    head=lambda params, x: x,
    hidden_with_router=None,
)


def batch(labels, pooling="last", logits=LOGITS, length=4):
    """Each text has its logits in the states that count, and nonsense in all others."""
    B, C = logits.shape
    states_BTC, weights_BT = np.full((B, length, C), 77.0, np.float32), np.zeros((B, length), np.float32)
    weights_BT[:, 1:3] = 0.5 if pooling == "mean" else [0.0, 1.0]
    states_BTC[:, 1], states_BTC[:, 2] = (logits + 3.0, logits - 3.0) if pooling == "mean" else (77.0, logits)
    return {
        "states": jnp.asarray(states_BTC),
        "weights": jnp.asarray(weights_BT),
        "labels": jnp.asarray(labels),
    }


def mean_loss(batch, **options):
    total, sums = make_loss(LM, num_classes=3, **options)({}, batch)
    assert float(total) == float(sums.loss)
    return float(sums.loss) / float(sums.weight)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize(
    ("smoothing", "weights", "torchs"),  # CrossEntropyLoss(weight, label_smoothing=...)
    [
        (0.0, None, 0.8413435220718384),
        (0.0, WEIGHTS, 0.508452832698822),
        (0.1, None, 0.9663435220718384),
        (0.1, WEIGHTS, 0.6995142698287964),
    ],
)
def test_one_label_a_text_is_torchs_cross_entropy(pooling, smoothing, weights, torchs):
    found = mean_loss(
        batch(np.array([0, 1, 2, 2], np.int32), pooling), class_weights=weights, label_smoothing=smoothing
    )
    np.testing.assert_allclose(found, torchs, rtol=1e-5)


@pytest.mark.parametrize(("weights", "torchs"), [(None, 0.7268128991127014), (WEIGHTS, 0.8957465291023254)])
def test_any_number_of_labels_is_torchs_bce_with_logits(weights, torchs):
    labels = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]], np.float32)
    np.testing.assert_allclose(
        mean_loss(batch(labels), task="multi_label", class_weights=weights), torchs, rtol=1e-5
    )


def test_a_number_has_the_squared_error_and_is_never_right():
    one = batch(np.array([[1.5], [0.0], [2.0], [1.0]], np.float32), logits=LOGITS[:, :1])
    _, sums = make_loss(LM, task="regression", num_classes=1)({}, one)
    assert float(sums.loss) == 0.25 + 0.0 + 0.0 + 4.0
    assert (float(sums.weight), int(sums.num_texts), sums.num_right) == (4.0, 4, None)


@pytest.mark.parametrize(
    ("task", "labels", "num_right"),
    [
        ("single_label", np.array([0, 1, 2, 2], np.int32), 3),  # the third is a tie of the first two
        ("multi_label", np.array([[1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 1]], np.float32), 3),
    ],
)
def test_texts_that_are_right_are_counted(task, labels, num_right):
    _, sums = make_loss(LM, task=task, num_classes=3)({}, batch(labels))
    assert (int(sums.num_texts), int(sums.num_right)) == (4, num_right)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_a_row_without_weights_is_no_text(weights):
    labels = np.array([0, 1, 2, 2], np.int32)
    whole, more = (
        batch(labels),
        batch(np.concatenate([labels, [1, 0]]), logits=np.concatenate([LOGITS, LOGITS[:2]])),
    )
    more["weights"] = more["weights"].at[4:].set(0.0)
    loss = make_loss(LM, num_classes=3, class_weights=weights)
    jax.tree.map(np.testing.assert_array_equal, loss({}, whole)[1], loss({}, more)[1])


def test_sums_of_parts_are_the_sums_of_the_whole():
    labels = np.array([0, 1, 2, 2], np.int32)
    loss = make_loss(LM, num_classes=3, class_weights=WEIGHTS, label_smoothing=0.2)
    whole, parts = batch(labels), [{k: v[i : i + 1] for k, v in batch(labels).items()} for i in range(4)]
    added = jax.tree.map(lambda *each: sum(each), *(loss({}, part)[1] for part in parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), loss({}, whole)[1], added)


def test_padding_that_is_not_finite_reaches_neither_the_state_nor_its_gradient():
    weights_BT = jnp.array([[0.0, 1.0, 0.0]])
    x_BTD = jnp.array([[[1.0], [2.0], [jnp.nan]]])
    assert pooled(x_BTD, weights_BT).tolist() == [[2.0]]
    assert jax.grad(lambda x: pooled(x, weights_BT).sum())(x_BTD).tolist() == [[[0.0], [1.0], [0.0]]]
