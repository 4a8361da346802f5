"""Objectives: each pairs what is learnt from a batch with how batches are made. A new one is a file and a line."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxlm.objectives import classify, next_token
from jaxlm.objectives.sums import Sums

__all__ = ["OBJECTIVES", "Objective", "Sums"]


class Objective(NamedTuple):
    """make_loss(lm, **options) -> loss(params, batch, dropout_key) -> (scalar, Sums)."""

    make_loss: Callable[..., Callable]


OBJECTIVES: dict[str, Objective] = {
    "pretrain": Objective(make_loss=next_token.make_loss),
    "instruct": Objective(make_loss=next_token.make_loss),
    "classify": Objective(make_loss=classify.make_loss),
}
