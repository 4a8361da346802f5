"""`jaxlm plan cost`: one training over chips and MFUs, as a Report."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.plan import cost, prices
from jaxlm.plan.cost import Estimate, Extras, Training
from jaxlm.plan.hardware import CHIPS, chip_named
from jaxlm.plan.prices import Price
from jaxlm.plan.report import Report, Table, count, days, dollars, percent
from jaxlm.types import UserError


@dataclass(frozen=True)
class Row:
    """One chip at one speed."""

    price: Price
    mfu: float
    """Asked for, or implied by the speed that was measured."""
    estimate: Estimate


@dataclass(frozen=True)
class Chosen:
    """Prices to compute with."""

    prices: tuple[Price, ...]
    left_out: dict[str, str]
    """Chip -> why it has none; only where chips were not named."""


def choose_prices(
    known: Sequence[Price],
    chips: Sequence[str] | None,
    *,
    commitment: str = "on-demand",
    provider: str | None = None,
    usd: float | None = None,
) -> Chosen:
    """A price for each chip.

    Args:
      chips: None: all that have one.
      usd: the price itself, in place of the known ones.

    Errors: UserError for an unknown chip, for a named one that has no such price, and for `usd` of several chips.
    """
    if usd is not None:
        if chips is None or len(chips) != 1:
            raise UserError(
                f"--price={usd:g} is the price of one chip: name it with --chip, one of {', '.join(CHIPS)}."
            )
        return Chosen((prices.given(chip_named(chips[0]).name, usd),), {})
    if chips is not None:
        for chip in chips:
            chip_named(chip)
        return Chosen(
            tuple(prices.choose(known, chip, commitment=commitment, provider=provider) for chip in chips), {}
        )
    prices.check_choices(known, commitment, provider)
    found, left_out = [], {}
    for chip in CHIPS:
        here = prices.matching(known, chip, commitment=commitment, provider=provider)
        if here:
            found.append(here[0])
        else:
            left_out[chip] = "no public price" if not prices.of_chip(known, chip) else "none that matches"
    if not found:
        raise UserError(
            f"No chip has a {commitment} price{f' from {provider}' if provider else ''}: give another --commitment or "
            "--provider, or your own prices with --prices=FILE."
        )
    return Chosen(tuple(found), left_out)


def estimates(
    training: Training,
    chosen: Chosen,
    *,
    mfus: Sequence[float] | None,
    tokens_per_s_per_chip: float | None,
    num_chips: int | None,
    extras: Extras,
) -> list[Row]:
    """Every chip at every MFU; at the measured speed, where there is one."""
    out = []
    for price in chosen.prices:
        chip = CHIPS[price.chip]
        if tokens_per_s_per_chip is not None:
            if training.num_tokens is None:
                raise UserError(
                    "--measured-tokens-per-s-per-chip needs --tokens: how many there are to train on."
                )
            hours = [cost.compute_at_rate(training.num_tokens, tokens_per_s_per_chip)]
        else:
            hours = [cost.compute(training.flops, chip, mfu) for mfu in mfus or ()]
        for chip_hours in hours:
            estimate = cost.estimate(chip, chip_hours, price.usd, num_chips=num_chips, extras=extras)
            out.append(Row(price, cost.implied_mfu(training.flops, chip, chip_hours), estimate))
    return out


def report(
    training: Training,
    chosen: Chosen,
    rows: Sequence[Row],
    *,
    num_chips: int | None,
    tokens_per_s_per_chip: float | None,
    extras: Extras,
    today: datetime.date,
) -> Report:
    """The table of estimates, and that of the prices they use."""
    warnings = prices.warnings(chosen.prices, today)
    if num_chips is not None:
        warnings += _slice_warnings([price.chip for price in chosen.prices], num_chips)
    if tokens_per_s_per_chip is not None and any(row.mfu > 1 for row in rows):
        warnings.append(
            f"{tokens_per_s_per_chip:,.6g} tokens/s per chip is more than the peak in bfloat16 allows: was it "
            "measured in fp8 or int8, of several chips together, or of a smaller model?"
        )
    notes = [training.formula]
    if chosen.left_out:
        reasons = ", ".join(f"{chip} ({why})" for chip, why in chosen.left_out.items())
        notes.append(f"Left out: {reasons}. Give --chip=NAME with --price=USD, or --prices=FILE.")
    return Report(
        title=f"What {training.name} costs to train",
        tables=[
            _estimates_table(rows, num_chips, tokens_per_s_per_chip, extras),
            _prices_table(chosen.prices),
        ],
        warnings=warnings,
        notes=notes,
        data={
            "training": dataclasses.asdict(training),
            "num_chips": num_chips,
            "measured_tokens_per_s_per_chip": tokens_per_s_per_chip,
            "extras": extras.data(),
            "estimates": [_data(row) for row in rows],
            "prices": [dataclasses.asdict(price) for price in chosen.prices],
            "left_out": chosen.left_out,
        },
    )


def _estimates_table(
    rows: Sequence[Row], num_chips: int | None, tokens_per_s_per_chip: float | None, extras: Extras
) -> Table:
    measured = tokens_per_s_per_chip is not None
    where = "" if num_chips is None else f" on {_chips(num_chips)}"
    columns = ["chip", "implied MFU" if measured else "MFU", "chip-hours", "compute only", "total", "MWh"]
    if num_chips is not None:
        columns.insert(3, "days")
    cells = []
    for row in rows:
        at, energy = row.estimate, row.estimate.energy_mwh
        cells.append(
            [
                row.price.chip,
                percent(row.mfu),
                count(at.chip_hours),
                *([] if at.days is None else [days(at.days)]),
                dollars(at.compute_usd),
                dollars(at.total_usd),
                "unknown" if energy is None else f"{energy:,.1f}",
            ]
        )
    notes = [
        extras.formula,
        f"MWh: chips alone x PUE {extras.pue:g}, of one run; unknown where a chip's power is not public.",
        "MFU: share of the chip's dense peak in bfloat16 (V100: float16).",
    ]
    if num_chips is None:
        notes.append("Days: give --num-chips.")
    if measured:
        notes.append(
            f"Measured: {tokens_per_s_per_chip:,.6g} tokens/s per chip; the MFU is what C means at that speed."
        )
    return Table(title=f"Estimates{where}, in US dollars", columns=columns, rows=cells, notes=notes)


def _prices_table(chosen: Sequence[Price]) -> Table:
    by_url: dict[str, list[str]] = {}
    for price in chosen:
        by_url.setdefault(price.url, []).append(price.chip)
    return Table(
        title="Prices used",
        columns=("chip", "$/chip-hour", "provider", "region", "commitment", "date"),
        rows=[
            (price.chip, f"${price.usd:,.3f}", price.provider, price.region, price.commitment, price.when)
            for price in chosen
        ],
        notes=[f"{', '.join(chips)}: {url}" for url, chips in by_url.items()] + [prices.RULE],
        left=("provider", "region", "commitment", "date"),
    )


def _slice_warnings(chips: Sequence[str], num_chips: int) -> list[str]:
    """At most one: chips of which `num_chips` are neither a slice, nor several of the largest."""
    odd = []
    for chip in chips:
        slices = CHIPS[chip].slices
        larger = slices.at_least(num_chips)
        if not (slices.has(num_chips) or (larger is None and num_chips % slices.counts[-1] == 0)):
            near = " or ".join(f"{n:,}" for n in (slices.at_most(num_chips), larger) if n is not None)
            odd.append(f"{chip} ({near})")
    if not odd:
        return []
    return [
        f"There is no slice of {_chips(num_chips)} of {', '.join(odd)}; days are of that number all the same."
    ]


def _chips(number: int) -> str:
    return f"{number:,} chip{'s' * (number != 1)}"


def _data(row: Row) -> dict[str, Any]:
    return {"chip": row.price.chip, "mfu": row.mfu, **dataclasses.asdict(row.estimate)}
