"""Chip-hours, days, energy and money of a training, by arithmetic on FLOPs, a peak and an MFU. Estimates, all of them.

    chip-hours = C / (peak x MFU) / 3600            or tokens / (tokens/s per chip) / 3600, where that was measured
    compute    = chip-hours x price
    total      = compute x runs factor + storage + network + staff

The defaults of `Extras` add nothing: total equals compute until someone says what else there is to pay.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from jaxlm.models import sizes
from jaxlm.plan.flops import count_params, training_flops
from jaxlm.plan.hardware import Chip
from jaxlm.plan.report import count
from jaxlm.types import UserError


@dataclass(frozen=True)
class Training:
    """What is trained, as far as its cost needs it."""

    name: str
    flops: float
    """C: of all the training."""
    num_tokens: float | None
    formula: str
    """Where `flops` comes from."""


@dataclass(frozen=True)
class Extras:
    """What a training costs beside its own chip-hours; nothing, unless said."""

    runs_factor: float = 1.0
    """All runs, failed ones and ablations among them, per run that succeeds; multiplies compute."""
    storage_usd: float = 0.0
    network_usd: float = 0.0
    staff_usd: float = 0.0
    pue: float = 1.0
    """Power usage effectiveness: all that a data centre draws per watt that its machines draw."""

    def __post_init__(self) -> None:
        for flag, least in (
            ("runs_factor", 1),
            ("pue", 1),
            ("storage_usd", 0),
            ("network_usd", 0),
            ("staff_usd", 0),
        ):
            value = getattr(self, flag)
            if not math.isfinite(value) or value < least:
                name = flag.replace("_", "-")
                raise UserError(f"--{name}={value:g} has to be a finite number, {least} or more.")

    @property
    def formula(self) -> str:
        """How total follows from compute."""
        return (
            f"An estimate: total = compute x {self.runs_factor:g} (runs factor) + ${self.storage_usd:,.0f} storage + "
            f"${self.network_usd:,.0f} network + ${self.staff_usd:,.0f} staff"
        )

    def data(self) -> dict[str, float]:
        """For --json."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Estimate:
    """What one training takes on one kind of chip."""

    chip_hours: float
    days: float | None
    """On `num_chips` chips; None where their number is not given."""
    compute_usd: float
    total_usd: float
    energy_mwh: float | None
    """Of the chips, times PUE, in the one run; None where the chip's power is not public."""


def training(
    *,
    model: str | None = None,
    num_params: float | None = None,
    num_tokens: float | None = None,
    flops: float | None = None,
) -> Training:
    """A training by its FLOPs: given, or C = 6 N D for a named size or a number of parameters, and tokens.

    Args:
      model: a name of `jaxlm.models.sizes`; N are all parameters that a token meets, embeddings among them, and of
        experts those that it is sent to.
      num_params: N itself.
      flops: C itself, in place of model and num_params.

    Errors: UserError for an unknown model, for more or less than one of the three, and for numbers that are none.
    """
    flags = {"--model": model, "--params": num_params, "--flops": flops}
    named = [flag for flag, value in flags.items() if value is not None]
    if len(named) != 1:
        said = f"not {' and '.join(named)} together" if named else "for example --model=gpt3-175b"
        raise UserError(f"Say what is trained by one of {', '.join(flags)}, {said}.")
    if num_tokens is not None:
        positive("--tokens", num_tokens)
    if flops is not None:
        return Training(
            f"{flops:.4g} FLOP", positive("--flops", flops), num_tokens, f"C = {flops:.4g} FLOP, given"
        )
    if num_tokens is None:
        raise UserError(f"--tokens is needed with {named[0]}: C = 6 N D; for example --tokens=300e9.")
    if model is None:
        assert num_params is not None
        N, name, what = (
            positive("--params", num_params),
            f"a model of {count(num_params)} parameters",
            "given",
        )
    else:
        N, name = float(count_params(sizes.size(model)).active), model
        what = "all parameters that a token meets, embeddings among them"
    C = training_flops(N, num_tokens)
    return Training(
        name,
        C,
        num_tokens,
        f"C = 6 N D = {C:.4g} FLOP, attention not counted (arXiv:2001.08361, section 2.1); N = {N:,.0f}, {what}; "
        f"D = {num_tokens:,.0f} tokens",
    )


def positive(name: str, value: float) -> float:
    """The value. Errors: UserError unless it is a finite number above 0."""
    if not math.isfinite(value) or value <= 0:
        raise UserError(f"{name}={value:g} has to be a finite number above 0.")
    return value


def check_mfu(mfu: float) -> float:
    """The value. Errors: UserError unless it is in (0, 1]."""
    if not 0 < mfu <= 1:
        hint = f"; {mfu:g} %? That is {mfu / 100:g}" if 1 < mfu <= 100 else ""
        raise UserError(f"--mfu={mfu:g} has to be above 0 and at most 1: a share of the chip's peak{hint}.")
    return mfu


def check_num_chips(num_chips: float) -> int:
    """The value, whole. Errors: UserError below 1."""
    if not math.isfinite(num_chips) or num_chips < 1 or num_chips != int(num_chips):
        raise UserError(f"--num-chips={num_chips:g} has to be a whole number of chips, 1 or more.")
    return int(num_chips)


def compute(flops: float, chip: Chip, mfu: float) -> float:
    """Chip-hours of `flops` at a share of the chip's peak for training (`Chip.training_flops_per_s`)."""
    return positive("flops", flops) / (chip.training_flops_per_s * check_mfu(mfu)) / 3600


def compute_at_rate(num_tokens: float, tokens_per_s_per_chip: float) -> float:
    """Chip-hours of tokens at a speed that was measured."""
    rate = positive("--measured-tokens-per-s-per-chip", tokens_per_s_per_chip)
    return positive("--tokens", num_tokens) / rate / 3600


def implied_mfu(flops: float, chip: Chip, chip_hours: float) -> float:
    """The share of the chip's peak for training that so many chip-hours mean; above 1 for faster, smaller dtypes."""
    return flops / (chip.training_flops_per_s * chip_hours * 3600)


def energy_mwh(chip_hours: float, chip: Chip, pue: float = 1.0) -> float | None:
    """Megawatt-hours of the chips alone, times PUE; None where their power is not public."""
    return None if chip.power_w is None else chip_hours * chip.power_w.value * pue / 1e6


def total_usd(compute_usd: float, extras: Extras) -> float:
    """Compute x runs factor + storage + network + staff. Errors: UserError for more than a number can hold."""
    out = compute_usd * extras.runs_factor + extras.storage_usd + extras.network_usd + extras.staff_usd
    if not math.isfinite(out):
        raise UserError(
            "These numbers make a sum too large to count: check FLOPs, MFU or speed, and what is added."
        )
    return out


def estimate(
    chip: Chip,
    chip_hours: float,
    usd_per_chip_hour: float,
    *,
    num_chips: int | None = None,
    extras: Extras | None = None,
) -> Estimate:
    """Money, time and energy of chip-hours; extras as in `Extras`, None: nothing beside compute."""
    extras = extras or Extras()
    compute_usd = chip_hours * usd_per_chip_hour
    return Estimate(
        chip_hours=chip_hours,
        days=None if num_chips is None else chip_hours / check_num_chips(num_chips) / 24,
        compute_usd=compute_usd,
        total_usd=total_usd(compute_usd, extras),
        energy_mwh=energy_mwh(chip_hours, chip, extras.pue),
    )
