"""Next-token prediction: serves pretraining and instruction tuning, which differ only in batch["weights"]."""

from __future__ import annotations

from collections.abc import Callable

import jax

from jaxlm.models.build import LM, states
from jaxlm.objectives.chunked_loss import chunked_loss
from jaxlm.objectives.sums import Sums
from jaxlm.types import Batch, Params


def make_loss(
    lm: LM, *, z_loss: float = 0.0, chunk_tokens: int = 1024
) -> Callable[..., tuple[jax.Array, Sums]]:
    """loss(params, batch, dropout_key=None) -> (scalar to differentiate, Sums).

    The scalar is the sum over targets of weight x (cross-entropy + z_loss x log(Z)^2), in nats; Sums.loss leaves
    the z-loss out, so that perplexities compare. So it does with the losses of routers, which the scalar includes.
    """

    def loss(params: Params, batch: Batch, dropout_key: jax.Array | None = None):
        batch = lm.arrange(batch)
        x_BTD, router = states(lm, params, batch, dropout_key)
        head_params = {key: params[key] for key in lm.head_keys}
        weights_BT = batch["weights"]
        total, cross_entropy = chunked_loss(
            lm.head, head_params, x_BTD, batch["targets"], weights_BT, chunk_tokens, z_loss, lm.head_place
        )
        if router is not None:
            total = total + router.loss
        return total, Sums(loss=cross_entropy, weight=weights_BT.sum(), router=router)

    return loss
