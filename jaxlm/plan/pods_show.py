"""What `jaxlm plan pods` says: a table for each way to scale, the numbers behind it, and a plot."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxlm.plan.hardware import Chip
from jaxlm.plan.pods import ENOUGH, Point, seconds_per_token
from jaxlm.plan.report import Report, Table, count, gigabytes, percent
from jaxlm.plan.slices import mesh_name
from jaxlm.plan.step_time import AGAINST_COMPILED, CYCLES
from jaxlm.types import UserError

TITLES = {
    "weak": "weak scaling: every chip keeps its rows, the batch grows",
    "strong": "strong scaling: one batch, cut into ever smaller parts",
}


def pods_report(
    name: str,
    chip: Chip,
    found: Mapping[str, Sequence[Point]],
    notes: Sequence[str],
    critical_tokens: float,
) -> Report:
    """Tables, and the numbers behind them.

    Args:
      found: mode -> points, ascending by chips.
      critical_tokens: of a batch, beyond which more of it saves hardly any steps.
    """
    low, high = AGAINST_COMPILED
    fast, slow = CYCLES
    said = [
        *notes,
        "Predicted by arithmetic on the config, as `jaxlm plan` does it; against `jaxlm compile` of pod configs off by "
        f"{100 * low:+.0f} to {100 * high:+.0f} %, and real steps took {fast:.2f} to {slow:.2f} of what compiled ones "
        "say. Latencies of collectives are in, at 1 us a hop; input, stragglers and failures are not.",
        "Of best: speed of a chip over that of the row where it is highest. Bound: what the step waits for most; below "
        f"{percent(ENOUGH, 0)}, what costs most more than there.",
    ]
    return Report(
        title=f"{name} on {chip.name}, from {count(first(found))} to {count(last(found))} chips",
        warnings=too_many(found.get("weak", ()), critical_tokens),
        tables=[table(mode, points) for mode, points in found.items()],
        notes=said,
        data={
            "chip": chip.name,
            **{mode: [numbers(one) for one in points] for mode, points in found.items()},
        },
    )


def too_many(points: Sequence[Point], critical_tokens: float) -> list[str]:
    """Where weak scaling makes batches that train no better."""
    beyond = next((one for one in points if one.tokens > critical_tokens), None)
    if beyond is None:
        return []
    return [
        f"from {beyond.on.num_chips:,} chips on, the batch of weak scaling is beyond the critical size, about "
        f"{count(critical_tokens)} tokens: more of it saves hardly any steps (Kaplan et al. 2020, arXiv:2001.08361, "
        "eq. 5.3)."
    ]


def first(found: Mapping[str, Sequence[Point]]) -> int:
    return next(iter(found.values()))[0].on.num_chips


def last(found: Mapping[str, Sequence[Point]]) -> int:
    return next(iter(found.values()))[-1].on.num_chips


def table(mode: str, points: Sequence[Point]) -> Table:
    """One row for each number of chips."""
    rows = []
    for one in points:
        row = [
            f"{one.on.num_chips:,}",
            one.on.name.replace(f"{one.on.chip.name if one.on.chip else ''}:", ""),
        ]
        if one.way is None:
            rows.append((*row, "-", f"{one.rows:,}", "-", "-", "-", "-", "-", one.bound))
            continue
        way = one.way
        mesh = mesh_name(way.mesh) + (f", {way.num_microbatches} parts" if way.num_microbatches > 1 else "")
        rows.append((
            *row,
            mesh + (f", {way.remat}" if way.remat != points_remat(points) else ""),
            f"{one.rows:,}",
            gigabytes(way.memory.total),
            f"{way.step_s:.3g}",
            count(one.tokens_per_s_per_chip),
            percent(one.mfu, 0),
            percent(one.efficiency, 0),
            one.bound,
        ))  # fmt: skip
    columns = ("chips", "slices", "mesh", "rows", "a device", "s", "tok/s/chip", "MFU", "of best", "bound")
    return Table(TITLES[mode], columns, rows, left=("slices", "mesh", "bound"))


def points_remat(points: Sequence[Point]) -> str | None:
    """What most chips keep: that of the last point."""
    return next((one.way.remat for one in reversed(points) if one.way is not None), None)


def numbers(one: Point) -> dict[str, Any]:
    """For --json."""
    out: dict[str, Any] = {
        "num_chips": one.on.num_chips,
        "topology": one.on.slice_name,
        "num_slices": one.on.num_slices,
        "rows": one.rows,
        "tokens_per_step": one.tokens,
        "bound": one.bound,
        "way": None,
    }
    if one.way is not None:
        way = one.way
        out |= {
            "tokens_per_s_per_chip": one.tokens_per_s_per_chip,
            "mfu": one.mfu,
            "efficiency": one.efficiency,
            "way": {
                "mesh": dict(way.mesh),
                "remat": way.remat,
                "num_microbatches": way.num_microbatches,
                "bytes_per_device": way.memory.total,
                "step_s": way.step_s,
                "parts_s": way.step._asdict(),
                "chip_s_per_token": seconds_per_token(one),
            },
        }
    return out


def check_plot(path: str) -> None:
    """Errors: UserError for what is no PNG, and without matplotlib, before anything is computed."""
    if not path.endswith(".png"):
        raise UserError(f"--plot={path} must end in .png: that is what is drawn. Try --plot={path}.png.")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install 'jaxlm[plot]'.") from None


def plot(report: Report, found: Mapping[str, Sequence[Point]], path: str | os.PathLike) -> None:
    """Writes a PNG: efficiency and MFU over chips, each point with the bound that has set in.

    Errors: UserError for a file that cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for mode, points in found.items():
        there = [one for one in points if one.way is not None]
        chips = [one.on.num_chips for one in there]
        line = axes.plot(chips, [100 * one.mfu for one in there], marker="o", label=f"{mode} scaling")[0]
        for one, before in zip(there, [None, *there]):
            if before is None or one.bound != before.bound:
                at = (one.on.num_chips, 100 * one.mfu)
                axes.annotate(
                    one.bound, at, (4, -14), textcoords="offset points", color=line.get_color(), size=8
                )
        for one in points:
            if one.way is None:
                axes.annotate(one.bound, (one.on.num_chips, 1), color=line.get_color(), size=8, rotation=90)
    ticks = [one.on.num_chips for one in next(iter(found.values()))]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks], rotation=45)
    axes.minorticks_off()
    axes.set(title=report.title, xlabel="chips", ylabel="predicted MFU, %", ylim=(0, None))
    axes.legend(loc="lower left")
    axes.grid(visible=True, alpha=0.2)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise UserError(f"--plot={path} cannot be written: {error.strerror}.") from None
