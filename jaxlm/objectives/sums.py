"""Sums: what every loss returns. Whoever holds all of them divides, once."""

from __future__ import annotations

from typing import NamedTuple

import jax

from jaxlm.models.moe import RouterSums


class Sums(NamedTuple):
    """Sums over targets: they add up over microbatches, devices and evaluation batches; means do not."""

    loss: jax.Array
    """Sum of weighted losses, nats; of a regression, squared errors."""
    weight: jax.Array
    """Sum of weights: tokens, or texts."""
    router: RouterSums | None = None
    """Of a mixture of experts, in training."""
    num_texts: jax.Array | None = None
    """Of a classification; the weight counts labels by their weights."""
    num_right: jax.Array | None = None
    """Texts whose labels are all right; None for a regression."""
