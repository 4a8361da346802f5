"""A mixture of sources against a budget of tokens: shares, epochs, caps on epochs, tokens that are needed.

    drawn = share x budget          epochs = drawn / tokens of the source

A share is of the *tokens* trained on, so a small good source with a large share is read several times and a large one
perhaps never to its end. All of it is exact (fractions), and none of it opens a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

from jaxlm.data.weights import normalise_weights
from jaxlm.types import UserError

WORTH_REPEATING_EPOCHS = 4
"""Up to this many epochs repeated tokens are almost as good as new ones; after it they are worth less and less.

Source: Muennighoff et al. 2023, Scaling Data-Constrained Language Models, arXiv:2305.16264.
"""


@dataclass(frozen=True)
class Source:
    """One source of a mixture."""

    name: str
    weight: float
    """Its share of the tokens trained on, in the unit of the table: of 1, of 100, or of whatever the weights add to."""
    tokens: float | None
    """That it has, all different; None: nobody has counted them."""
    published_epochs: float | None = None
    """What the paper of the mixture prints."""


class Rounding(NamedTuple):
    """By how much a published number may be off, since it is printed with few digits."""

    weight: float
    tokens: float


@dataclass(frozen=True)
class MixtureTable:
    """A mixture and what it is trained for."""

    title: str
    sources: tuple[Source, ...]
    budget_tokens: float
    origin: str = ""
    """Where its numbers were read."""
    rounding: Rounding | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(source.name for source in self.sources)

    def shares(self) -> tuple[dict[str, Fraction], str | None]:
        """Share of the tokens by name, summing to 1, 0 for sources that are not used; and a warning, or None.

        Errors: UserError where no source has a positive weight.
        """
        weights = {source.name: source.weight for source in self.sources}
        if not any(weight > 0 for weight in weights.values()):
            raise UserError(
                f"{self.title}: the weights of {', '.join(weights)} are all zero, so there is nothing to train on. "
                "Give one of them a positive weight."
            )
        positive, warning = normalise_weights(weights, self.title)
        return {name: positive.get(name, Fraction(0)) for name in weights}, warning

    def drawn(self, shares: Mapping[str, Fraction]) -> dict[str, Fraction]:
        """Tokens that training reads from each source."""
        budget = Fraction(self.budget_tokens)
        return {name: share * budget for name, share in shares.items()}

    def epochs(self, shares: Mapping[str, Fraction]) -> dict[str, float | None]:
        """How often each source is read; None where its tokens are not known."""
        drawn = self.drawn(shares)
        return {
            source.name: None
            if source.tokens is None
            else float(drawn[source.name] / Fraction(source.tokens))
            for source in self.sources
        }

    def with_weights(self, weights: Mapping[str, float]) -> MixtureTable:
        """The same with other weights; sources that are not named keep theirs."""
        sources = (replace(s, weight=weights.get(s.name, s.weight)) for s in self.sources)
        return replace(self, sources=tuple(sources))

    def with_tokens(self, tokens: Mapping[str, float]) -> MixtureTable:
        """The same with other sizes; sources that are not named keep theirs."""
        sources = (replace(s, tokens=tokens.get(s.name, s.tokens)) for s in self.sources)
        return replace(self, sources=tuple(sources))


def cap_epochs(
    table: MixtureTable, shares: Mapping[str, Fraction], max_epochs: Mapping[str, float]
) -> dict[str, Fraction]:
    """The shares that follow when no source is read more often than `max_epochs` says.

    What is cut off is spread over the others in proportion to their shares; where that breaks another cap, again.

    Errors: UserError for a cap on a source of unknown size, and where all sources are capped and give too little.
    """
    for source in table.sources:
        if source.name in max_epochs and source.tokens is None and shares[source.name]:
            raise UserError(
                f"--max-epochs: how many tokens {source.name} has is not known, so its epochs are not either. Give "
                f"them with --source-tokens={source.name}=NUMBER, or leave it out of --max-epochs."
            )
    largest = {
        s.name: Fraction(max_epochs[s.name]) * Fraction(s.tokens) / Fraction(table.budget_tokens)
        for s in table.sources
        if s.name in max_epochs and s.tokens is not None
    }
    capped: dict[str, Fraction] = {}
    while True:
        free = {name: share for name, share in shares.items() if share and name not in capped}
        left, total = 1 - sum(capped.values()), sum(free.values())
        if not free and left:
            fits_tokens = math.floor(sum(capped.values()) * Fraction(table.budget_tokens))
            raise UserError(
                f"--max-epochs: {', '.join(capped)} give {fits_tokens:,} tokens at most within their caps, and the "
                f"budget is {table.budget_tokens:,.0f}. Try --tokens={fits_tokens} or less, or allow more epochs."
            )
        spread = {name: share / total * left for name, share in free.items()}
        broken = {
            name: largest[name] for name, share in spread.items() if name in largest and share > largest[name]
        }
        if not broken:
            return {name: capped.get(name, spread.get(name, Fraction(0))) for name in shares}
        capped |= broken


class Need(NamedTuple):
    """What a source must have, so that it is read at most `max_epochs` times."""

    max_epochs: float
    drawn_tokens: float
    needed_tokens: float
    short_tokens: float | None
    """0 where it has enough; None where nobody knows how many it has."""


def needs(
    table: MixtureTable, shares: Mapping[str, Fraction], max_epochs: Mapping[str, float]
) -> dict[str, Need]:
    """By source, at these shares and this budget; a source that `max_epochs` does not name is read once."""
    found, drawn = {}, table.drawn(shares)
    for source in table.sources:
        limit = max_epochs.get(source.name, 1.0)
        needed = drawn[source.name] / Fraction(limit)
        short = None if source.tokens is None else float(max(needed - Fraction(source.tokens), Fraction(0)))
        found[source.name] = Need(limit, float(drawn[source.name]), float(needed), short)
    return found


class Published(NamedTuple):
    """A source's published epochs beside what weight, budget and tokens give."""

    epochs: float
    formula: float
    """weight x budget / tokens, the weight in percent as printed."""
    difference: float
    """epochs / formula - 1"""
    low: float
    high: float
    """What the formula gives for the unrounded numbers at most and at least."""
    normalised: float
    """The formula with weights that add to 1."""
    drawn_tokens: float
    """epochs x tokens"""
    implied_weight: float
    """drawn / budget, in percent."""

    @property
    def is_rounding(self) -> bool:
        """Whether rounding of weight and tokens can explain the difference."""
        return self.low <= self.epochs <= self.high


def published(table: MixtureTable) -> dict[str, Published]:
    """Every source with published epochs and known tokens; weights in percent. Empty without `table.rounding`."""
    if table.rounding is None:
        return {}
    shares, _ = table.shares()
    normalised, found = table.epochs(shares), {}
    for source in table.sources:
        if source.published_epochs is None or source.tokens is None:
            continue
        per_percent = table.budget_tokens / 100
        off = table.rounding
        formula = source.weight * per_percent / source.tokens
        found[source.name] = Published(
            epochs=source.published_epochs,
            formula=formula,
            difference=source.published_epochs / formula - 1,
            low=(source.weight - off.weight) * per_percent / (source.tokens + off.tokens),
            high=(source.weight + off.weight) * per_percent / (source.tokens - off.tokens),
            normalised=normalised[source.name] or 0.0,
            drawn_tokens=source.published_epochs * source.tokens,
            implied_weight=source.published_epochs * source.tokens / per_percent,
        )
    return found
