"""Predicted chip-hours beside those that makers published: how far this arithmetic can be trusted.

C = 6 N D leaves out attention, and hours that were published hold restarts, evaluations and longer contexts, so a ratio
of published to predicted somewhat above 1 is what to expect. The other way round, published hours imply an MFU.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.config import check_choice
from jaxlm.models import sizes
from jaxlm.plan import cost, tables
from jaxlm.plan.flops import count_params, training_flops
from jaxlm.plan.hardware import CHIPS
from jaxlm.plan.report import Report, Table, count, flops, percent
from jaxlm.types import UserError

_TABLE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Published:
    """One training, as its makers tell it."""

    name: str
    num_params: float
    """That a token meets."""
    num_tokens: float
    chip: str
    mfu: tuple[float, ...]
    """Of the chip's peak, from low to high; empty where none is given."""
    chip_hours: float
    url: str
    note: str

    @property
    def flops(self) -> float:
        return training_flops(self.num_params, self.num_tokens)

    @property
    def predicted_chip_hours(self) -> tuple[float, ...]:
        """At each MFU that is given."""
        return tuple(cost.compute(self.flops, CHIPS[self.chip], mfu) for mfu in self.mfu)

    @property
    def implied_mfu(self) -> float:
        """That 6 N D in the published hours means."""
        return cost.implied_mfu(self.flops, CHIPS[self.chip], self.chip_hours)


@dataclass(frozen=True)
class PublishedFlops:
    """A training whose FLOPs were published."""

    model: str
    flops: float
    predicted_flops: float


def load(path: Path = _TABLE) -> tuple[list[Published], list[PublishedFlops], dict[str, str]]:
    """(trainings, FLOPs, {"read": when, "flops_url": where}). Errors: UserError that names file, row and key."""
    table = tables.read(path, ("read", "trainings", "flops"))
    trainings = [
        _training(row, f"{path}: trainings[{index}]")
        for index, row in enumerate(tables.rows(table["trainings"], f"{path}: trainings"))
    ]
    where = f"{path}: flops"
    ladder = tables.fields(table["flops"], where, ("url", "tokens", "rows"))
    num_tokens = tables.number(ladder["tokens"], f"{where}.tokens")
    of_flops = [
        PublishedFlops(
            model, tables.number(value, f"{where}.{model}"), training_flops(_active_params(model), num_tokens)
        )
        for model, value in tables.fields(ladder["rows"], f"{where}.rows", (), ladder["rows"]).items()
    ]
    about = {
        "read": tables.date(table["read"], f"{path}: read"),
        "flops_url": tables.url(ladder["url"], f"{where}.url"),
    }
    return trainings, of_flops, about


def _active_params(model: str) -> float:
    return float(count_params(sizes.size(model)).active)


def _training(row: Any, where: str) -> Published:
    row = tables.fields(
        row, where, ("name", "tokens", "chip", "chip_hours", "url", "note"), ("model", "params", "mfu")
    )
    where = f"{where} ({row['name']})"
    if ("model" in row) == ("params" in row):
        raise UserError(f"{where}: has to have model or params, one of them.")
    check_choice(f"{where}.chip", row["chip"], CHIPS)
    params = (
        _active_params(row["model"]) if "model" in row else tables.number(row["params"], f"{where}.params")
    )
    return Published(
        name=tables.text(row["name"], f"{where}.name"),
        num_params=params,
        num_tokens=tables.number(row["tokens"], f"{where}.tokens"),
        chip=row["chip"],
        mfu=tuple(sorted(tables.number(mfu, f"{where}.mfu", at_most=1.0) for mfu in row.get("mfu") or ())),
        chip_hours=tables.number(row["chip_hours"], f"{where}.chip_hours"),
        url=tables.url(row["url"], f"{where}.url"),
        note=tables.text(row["note"], f"{where}.note"),
    )


def report() -> Report:
    """Both tables."""
    trainings, of_flops, about = load()
    return Report(
        title="Published trainings, and what this planner predicts for them",
        tables=[_hours_table(trainings), _flops_table(of_flops, about["flops_url"])],
        notes=(
            "C = 6 N D, attention not counted; N are the parameters that a token meets. Gemma and Mixtral are not "
            "here: no chip-hours of theirs were found.",
            f"Read on {about['read']}: model cards themselves, papers in public accounts of them that agree.",
        ),
        data={"trainings": [_data(t) for t in trainings], "flops": [_flops_data(row) for row in of_flops]},
    )


def _hours_table(trainings: list[Published]) -> Table:
    return Table(
        title="Chip-hours",
        columns=("training", "chip", "MFU given", "predicted", "published", "pub./pred.", "MFU implied"),
        rows=[
            (
                t.name,
                t.chip,
                "-".join(f"{mfu:.0%}" for mfu in t.mfu) or "none",
                "-".join(count(hours) for hours in reversed(t.predicted_chip_hours)) or "-",
                count(t.chip_hours),
                "-".join(f"{t.chip_hours / hours:.2f}" for hours in t.predicted_chip_hours) or "-",
                percent(t.implied_mfu),
            )
            for t in trainings
        ],
        notes=[
            f"{t.name}: N = {count(t.num_params)}, D = {count(t.num_tokens)} tokens. {t.note} {t.url}"
            for t in trainings
        ],
        left=("chip",),
    )


def _flops_table(rows: list[PublishedFlops], url: str) -> Table:
    return Table(
        title="FLOPs of GPT-3 on 300B tokens",
        columns=("model", "predicted", "published", "pub./pred."),
        rows=[
            (
                row.model,
                flops(row.predicted_flops),
                flops(row.flops),
                f"{row.flops / row.predicted_flops:.3f}",
            )
            for row in rows
        ],
        notes=[f"{url}, table D.1. Its chip-hours were not published."],
    )


def _data(training: Published) -> dict[str, Any]:
    return {
        "name": training.name,
        "num_params": training.num_params,
        "num_tokens": training.num_tokens,
        "flops": training.flops,
        "chip": training.chip,
        "mfu": [*training.mfu],
        "predicted_chip_hours": [*training.predicted_chip_hours],
        "published_chip_hours": training.chip_hours,
        "implied_mfu": training.implied_mfu,
        "url": training.url,
        "note": training.note,
    }


def _flops_data(row: PublishedFlops) -> dict[str, Any]:
    return {"model": row.model, "published_flops": row.flops, "predicted_flops": row.predicted_flops}
