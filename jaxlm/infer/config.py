"""SamplingConfig: how the next token is picked from its distribution. Imports no JAX."""

from __future__ import annotations

from dataclasses import dataclass

from jaxlm.types import UserError


def check_seed(seed: int) -> None:
    """Raises UserError for a seed that has no random key of its own."""
    if not 0 <= seed < 2**32:
        raise UserError(
            f"seed={seed} must be in [0, 2**32): others would repeat the text of one of these. Try 0."
        )


@dataclass(frozen=True)
class SamplingConfig:
    """Temperature and the three filters, in this order; the defaults sample from the model as it is."""

    temperature: float = 1.0
    """Logits are divided by it. 0: always the most probable token (greedy)."""
    top_k: int | None = None
    """Keep the k most probable tokens (and those as probable as the k-th). Fan et al. 2018,
    arXiv:1805.04833."""
    top_p: float | None = None
    """Keep the fewest most probable tokens that hold this share of what is left. Holtzman et al. 2020,
    arXiv:1904.09751."""
    min_p: float | None = None
    """Keep tokens at least this many times as probable as the most probable. Nguyen et al. 2024,
    arXiv:2407.01082."""

    def __post_init__(self):
        if not 0.0 <= self.temperature < float("inf"):
            raise UserError(
                f"temperature={self.temperature} must be 0 (greedy) or a positive number: logits are divided "
                "by it. Try a value between 0.5 and 1."
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(
                f"top_k={self.top_k} must be at least 1: it is the number of tokens kept. Leave it out to "
                "keep all."
            )
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise UserError(
                f"top_p={self.top_p} must be in (0, 1]: it is the share of the probability kept. Try 0.9, or "
                "leave it out to keep all."
            )
        if self.min_p is not None and not 0.0 <= self.min_p <= 1.0:
            raise UserError(
                f"min_p={self.min_p} must be in [0, 1]: it is a share of the largest probability. Try 0.05, "
                "or leave it out to keep all."
            )
