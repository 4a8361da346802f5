"""Costs under assumptions that others made, row by row: `jaxlm plan cost --scenarios=gpt3`, or a file of one's own.

The format is told at the head of scenarios/gpt3.yaml. Every row has its assumptions and its source; sums that a source
states, and that cannot be computed from what it says, stand as they are stated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.config import check_choice
from jaxlm.plan import cost, tables
from jaxlm.plan.cost import Extras, Training
from jaxlm.plan.hardware import CHIPS
from jaxlm.plan.prices import MAX_USD
from jaxlm.plan.report import Report, Table, count, dollars
from jaxlm.types import UserError

_FOLDER = Path(__file__).with_name("scenarios")
_SPEEDS = ("mfu", "sustained_flops_per_s", "tokens_per_s_per_chip")


@dataclass(frozen=True)
class Row:
    """One speed at one price."""

    scenario: Scenario
    speed: str
    price_from: str
    usd_per_chip_hour: float | None
    chip_hours: float | None
    compute_usd: float
    """Computed, or stated where `chip_hours` is None."""


@dataclass(frozen=True)
class Scenario:
    """What rows share."""

    name: str
    chip: str | None
    assumptions: str
    url: str
    date: str
    is_reconstruction: bool
    """Whether the assumptions were found here, to land on a sum whose own are not known."""


@dataclass(frozen=True)
class Scenarios:
    title: str
    notes: tuple[str, ...]
    training: Training
    rows: tuple[Row, ...]


def names() -> list[str]:
    """Those of the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load(name_or_file: str) -> Scenarios:
    """Scenarios of the package by name, or of a file. Errors: UserError that names file, row and key."""
    path = Path(name_or_file)
    if path.suffix not in (".yaml", ".yml"):
        check_choice("--scenarios (or a .yaml FILE)", name_or_file, names())
        path = _FOLDER / f"{name_or_file}.yaml"
    table = tables.read(path, ("title", "training", "scenarios"), ("notes",))
    training = _training(table["training"], f"{path}: training")
    rows: list[Row] = []
    for index, row in enumerate(tables.rows(table["scenarios"], f"{path}: scenarios")):
        rows += _rows(row, f"{path}: scenarios[{index}]", training)
    notes = [tables.text(note, f"{path}: notes") for note in table.get("notes") or ()]
    return Scenarios(tables.text(table["title"], f"{path}: title"), tuple(notes), training, tuple(rows))


def _training(row: Any, where: str) -> Training:
    row = tables.fields(row, where, (), ("model", "params", "tokens", "flops"))
    numbers = {
        key: tables.number(row[key], f"{where}.{key}") if key in row else None
        for key in ("params", "tokens", "flops")
    }
    try:
        return cost.training(
            model=row.get("model"),
            num_params=numbers["params"],
            num_tokens=numbers["tokens"],
            flops=numbers["flops"],
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _rows(row: Any, where: str, training: Training) -> list[Row]:
    common = ("name", "assumptions", "url", "date")
    row = tables.fields(
        row, where, common, ("chip", "training", "prices", "stated_usd", "is_reconstruction", *_SPEEDS)
    )
    where = f"{where} ({row['name']})"
    scenario = Scenario(
        name=tables.text(row["name"], f"{where}.name"),
        chip=row.get("chip"),
        assumptions=tables.text(row["assumptions"], f"{where}.assumptions"),
        url=tables.url(row["url"], f"{where}.url"),
        date=tables.date(row["date"], f"{where}.date"),
        is_reconstruction=row.get("is_reconstruction") is True,
    )
    speeds = [key for key in (*_SPEEDS, "stated_usd") if key in row]
    if len(speeds) != 1:
        raise UserError(
            f"{where}: has to have one of {', '.join((*_SPEEDS, 'stated_usd'))}, not {len(speeds)}."
        )
    if scenario.chip is not None:
        check_choice(f"{where}.chip", scenario.chip, CHIPS)
    key = speeds[0]
    if key == "stated_usd":
        return [Row(scenario, "-", "stated", None, None, tables.number(row[key], f"{where}.{key}"))]
    tables.fields(row, where, (*common, "chip", "prices", key), row)
    if "training" in row:
        training = _training(row["training"], f"{where}.training")
    out = []
    for value in tables.rows(row[key], f"{where}.{key}") if isinstance(row[key], list) else [row[key]]:
        speed = tables.number(value, f"{where}.{key}", at_most=1.0 if key == "mfu" else float("inf"))
        chip_hours, shown = _chip_hours(key, speed, scenario, training, where)
        for index, price in enumerate(tables.rows(row["prices"], f"{where}.prices")):
            at = f"{where}.prices[{index}]"
            price = tables.fields(price, at, ("usd", "from"))
            usd = tables.number(price["usd"], f"{at}.usd", at_most=MAX_USD)
            out.append(
                Row(
                    scenario,
                    shown,
                    tables.text(price["from"], f"{at}.from"),
                    usd,
                    chip_hours,
                    chip_hours * usd,
                )
            )
    return out


def _chip_hours(
    key: str, speed: float, scenario: Scenario, training: Training, where: str
) -> tuple[float, str]:
    """(chip-hours, the speed as a table shows it)."""
    assert scenario.chip is not None
    if key == "mfu":
        return cost.compute(training.flops, CHIPS[scenario.chip], speed), f"{speed:.0%} MFU"
    if key == "sustained_flops_per_s":
        return training.flops / speed / 3600, f"{speed / 1e12:g} TFLOP/s"
    if training.num_tokens is None:
        raise UserError(f"{where}: tokens_per_s_per_chip needs a training with tokens.")
    return cost.compute_at_rate(training.num_tokens, speed), f"{speed:.4g} tok/s"


def report(scenarios: Scenarios, extras: Extras) -> Report:
    """All rows with assumptions and sources."""
    cells, data = [], []
    for number, row in enumerate(scenarios.rows, 1):
        scenario = row.scenario
        chip_hours, price = row.chip_hours, row.usd_per_chip_hour
        total_usd = cost.total_usd(row.compute_usd, extras)
        cells.append(
            (
                f"{number}",
                f"{scenario.name} *" if scenario.is_reconstruction else scenario.name,
                scenario.chip or "-",
                row.speed,
                "-" if price is None else f"${price:,.3f}",
                "-" if chip_hours is None else count(chip_hours),
                dollars(row.compute_usd),
                dollars(total_usd),
            )
        )
        data.append(
            {
                "scenario": scenario.name,
                "chip": scenario.chip,
                "speed": row.speed,
                "usd_per_chip_hour": price,
                "price_from": row.price_from,
                "chip_hours": chip_hours,
                "compute_usd": row.compute_usd,
                "total_usd": total_usd,
                "is_reconstruction": scenario.is_reconstruction,
                "assumptions": scenario.assumptions,
                "url": scenario.url,
                "date": scenario.date,
            }
        )
    is_marked = any(row.scenario.is_reconstruction for row in scenarios.rows)
    marked = [
        "* A reconstruction: its assumptions are not those of the source, which does not say them."
    ] * is_marked
    table = Table(
        title="Estimates, in US dollars",
        columns=("#", "scenario", "chip", "speed", "$/chip-h", "chip-hours", "compute only", "total"),
        rows=cells,
        notes=[extras.formula, *marked, *_sources(scenarios.rows)],
        left=("scenario", "chip", "speed"),
    )
    return Report(
        title=scenarios.title,
        tables=[table],
        notes=(scenarios.training.formula, *scenarios.notes),
        data={"flops": scenarios.training.flops, "extras": extras.data(), "scenarios": data},
    )


def _sources(rows: tuple[Row, ...]) -> list[str]:
    """One note per scenario: which rows, what it assumes, where that is from."""
    by_scenario: dict[Scenario, list[tuple[int, Row]]] = {}
    for number, row in enumerate(rows, 1):
        by_scenario.setdefault(row.scenario, []).append((number, row))
    notes = []
    for scenario, numbered in by_scenario.items():
        first, last = numbered[0][0], numbered[-1][0]
        prices = {
            f"${r.usd_per_chip_hour:g} {r.price_from}": None for _, r in numbered if r.usd_per_chip_hour
        }
        paid = f" Prices: {'; '.join(prices)}." if prices else ""
        which = f"#{first}" if first == last else f"#{first}-{last}"
        notes.append(f"{which} {scenario.assumptions}{paid} {scenario.url} ({scenario.date})")
    return notes
