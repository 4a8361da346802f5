"""Shares of a mixture: weights that sum to exactly 1. Imports no NumPy: plans need them too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

from jaxlm.types import UserError


def normalise_weights(
    weights: Mapping[str, float], table: str = "data.sources"
) -> tuple[dict[str, Fraction], str | None]:
    """Shares that sum to exactly 1, by name and without the sources of weight 0; and a warning, or None.

    Weights that sum to 1 or to 100 say what they mean. Any other sum is divided out, and the warning names
    the factor. Weights are read as the decimals they print as: 0.1 is one tenth.

    Args:
      table: where the weights stand, for the warning.
    """
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(
                f"data.sources.{name}.weight_tokens={weight} must be a number of at least 0: a share of the "
                f"tokens. Give a positive share, or 0 to leave the source out of training."
            )
    exact = {name: Fraction(str(weights[name])) for name in sorted(weights) if weights[name] > 0}
    if not exact:
        raise UserError(
            f"No source has a positive weight ({', '.join(sorted(weights)) or 'data.sources is empty'}): "
            f"nothing to train on. Set data.sources.<name>.weight_tokens to a share of the tokens."
        )
    total = sum(exact.values(), Fraction(0))
    warning = None
    if min(abs(total - 1), abs(total / 100 - 1)) > Fraction(1, 10**6):
        warning = (
            f"{table}: the weights sum to {about(total)}, not to 1 (or 100); each was multiplied by "
            f"{about(1 / total)}: {', '.join(f'{n} {float(w / total):.4g}' for n, w in exact.items())}."
        )
    return {name: weight / total for name, weight in exact.items()}, warning


def about(number: Fraction) -> str:
    """Six digits of a number that may be too large or too small for a float."""
    return f"{(Decimal(number.numerator) / Decimal(number.denominator)).normalize():.6g}"
