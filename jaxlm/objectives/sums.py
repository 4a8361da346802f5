"""Sums: what every loss returns. Whoever holds all of them divides, once."""

from __future__ import annotations

from typing import NamedTuple

import jax

from jaxlm.models.moe import RouterSums


class Sums(NamedTuple):
    """Sums over targets: they add up over microbatches, devices and evaluation batches; means do not."""

    loss: jax.Array
    """Sum of weighted token losses, nats."""
    weight: jax.Array
    """Sum of weights, tokens."""
    router: RouterSums | None = None
    """Of a mixture of experts, in training."""
