"""Classification: the pooled state of a text to its label, labels or number.

The batch says what each state of a text counts in its pooled state, `weights` [B, T], which sum to 1: so the loss knows
neither pooling nor padding. A row of zeros is no text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxlm.models.build import LM, states
from jaxlm.objectives.sums import Sums
from jaxlm.types import Batch, Params


def pooled(x_BTD: jax.Array, weights_BT: jax.Array) -> jax.Array:
    """The pooled state of every text, float32 [B, D]; zeros for a row that is none."""
    # Not a product of states and weights: a state of padding that is not finite must not reach a text.
    x_BTD = jnp.where(weights_BT[..., None] > 0, x_BTD.astype(jnp.float32), 0.0)
    return (x_BTD * weights_BT[..., None]).sum(axis=1)


def single_label(logits_BC: jax.Array, labels_B: jax.Array, smoothing: float, weights_C: jax.Array):
    """Softmax cross-entropy: (loss_B, weight_B, is right_B).

    As torch's CrossEntropyLoss with `weight` and `label_smoothing`: a text counts as much as its label, and the share
    that is spread over all labels is weighed by theirs.
    """
    log_probs_BC = jax.nn.log_softmax(logits_BC)
    is_label_BC = labels_B[:, None] == jnp.arange(logits_BC.shape[1])[None]
    targets_BC = (1.0 - smoothing) * is_label_BC + smoothing / logits_BC.shape[1]
    loss_B = -(targets_BC * weights_C[None] * log_probs_BC).sum(axis=1)
    return loss_B, (is_label_BC * weights_C[None]).sum(axis=1), jnp.argmax(logits_BC, axis=1) == labels_B


def multi_label(logits_BC: jax.Array, labels_BC: jax.Array, smoothing: float, weights_C: jax.Array):
    """Binary cross-entropy of every label, their mean: (loss_B, weight_B, are all labels right_B).

    As torch's BCEWithLogitsLoss with `weight`; smoothing pulls targets towards 1/2.
    """
    targets_BC = (1.0 - smoothing) * labels_BC + smoothing / 2
    nats_BC = jax.nn.softplus(logits_BC) - targets_BC * logits_BC
    loss_B = (weights_C[None] * nats_BC).mean(axis=1)
    return loss_B, jnp.ones_like(loss_B), ((logits_BC > 0) == (labels_BC > 0.5)).all(axis=1)


def regression(logits_BC: jax.Array, labels_BC: jax.Array, smoothing: float, weights_C: jax.Array):
    """Squared error: (loss_B, weight_B, None)."""
    loss_B = jnp.square(logits_BC - labels_BC).mean(axis=1)
    return loss_B, jnp.ones_like(loss_B), None


TASKS = {"single_label": single_label, "multi_label": multi_label, "regression": regression}


def make_loss(
    lm: LM,
    *,
    task: str = "single_label",
    num_classes: int,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> Callable[..., tuple[jax.Array, Sums]]:
    """loss(params, batch, dropout_key=None) -> (scalar to differentiate, Sums over texts).

    Args:
      task: see ClassifyConfig.
      class_weights: of each label in the loss; None: all 1.
    """
    weights_C = jnp.ones(num_classes) if class_weights is None else jnp.asarray(class_weights, jnp.float32)

    def loss(params: Params, batch: Batch, dropout_key: jax.Array | None = None):
        batch = lm.arrange(batch)
        x_BTD, router = states(lm, params, batch, dropout_key)
        logits_BC = lm.head(params, pooled(x_BTD, batch["weights"]))
        loss_B, weight_B, right_B = TASKS[task](logits_BC, batch["labels"], label_smoothing, weights_C)
        real_B = (batch["weights"] > 0).any(axis=1)
        total = jnp.where(real_B, loss_B, 0.0).sum()
        sums = Sums(
            loss=total,
            weight=jnp.where(real_B, weight_B, 0.0).sum(),
            router=router,
            num_texts=real_B.sum(),
            num_right=None if right_B is None else (real_B & right_B).sum(),
        )
        return total if router is None else total + router.loss, sums

    return loss
