"""What `jaxlm plan scaling` says of a fitted law: the report, and a plot of loss against compute."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from jaxlm.plan import report
from jaxlm.plan.flops import training_flops
from jaxlm.plan.report import Report, Table
from jaxlm.plan.scaling import Fit, Interval, check_optimum, doubts, extrapolation
from jaxlm.types import UserError

MAX_ROWS = 20
"""Points in the table; JSON has all."""
_FIT_ROWS = (
    ("E", "floor of the loss, nats per token"),
    ("A", "factor of the term of N"),
    ("B", "factor of the term of D"),
    ("alpha", "exponent of N"),
    ("beta", "exponent of D"),
    ("a", "optimal N grows as C^a"),
    ("b", "optimal D grows as C^b"),
)


@dataclass(frozen=True)
class Budget:
    """What is asked: the optimum of `flops`, or a model of `num_params` and `num_tokens`."""

    flops: float | None = None
    num_params: float | None = None
    num_tokens: float | None = None

    def __post_init__(self):
        given = {"--flops": self.flops, "--params": self.num_params, "--tokens": self.num_tokens}
        for flag, value in given.items():
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{flag}={value:g} must be positive and finite.")
        asked = [flag for flag, value in given.items() if value is not None]
        if asked not in (["--flops"], ["--params", "--tokens"]):
            raise UserError(
                f"{' with '.join(asked)} is no budget: give --flops alone, which is spent in the best way, or --params "
                "with --tokens."
            )


def scaling_report(fit: Fit, budget: Budget | None, *, count: str, seconds: float) -> Report:
    """The fit, the points, and what it predicts.

    Args:
      count: which parameters N counts, in words.
      seconds: that the fit took.
    Errors: UserError where the budget is too far from the points.
    """
    points = fit.points
    warnings = doubts(fit)
    tables = [_fit_table(fit, seconds)]
    data: dict[str, Any] = {
        "law": {name: _numbers(_of_law(fit, name)) for name, _ in _FIT_ROWS},
        "objective": fit.objective,
        "scatter": fit.scatter,
        "points": _point_rows(fit),
        "left_out": points.left_out,
    }
    if budget is not None:
        table, prediction, far = _prediction(fit, budget)
        tables.append(table)
        data["prediction"] = prediction
        warnings += far
    tables.append(_points_table(fit))
    left_out = (
        f"; the {points.left_out} with the highest loss are left out (--drop-highest)"
        if points.left_out
        else ""
    )
    return Report(
        title=f"Scaling law of {len(points.loss)} runs: L(N, D) = E + A / N^alpha + B / D^beta",
        tables=tables,
        warnings=warnings,
        notes=[f"Points: {points.origin}{left_out}. N: {count}; C = 6 N D."],
        data=data,
    )


def _of_law(fit: Fit, name: str) -> Interval:
    return fit.interval(lambda law: getattr(law, name))


def _numbers(interval: Interval) -> dict[str, float]:
    return interval._asdict()


def _digits(value: float) -> str:
    """Four digits, so that a factor of 2143 and an exponent of 0.3473 both read."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 1e5 else f"{value:.3e}"


def _fit_table(fit: Fit, seconds: float) -> Table:
    rows = []
    for name, meaning in _FIT_ROWS:
        found = _of_law(fit, name)
        rows.append([name, meaning, _digits(found.value), _digits(found.low), _digits(found.high)])
    return Table(
        "Fit",
        ["", "meaning", "value", "95% from", "to"],
        rows,
        notes=[
            f"Huber loss of log L, delta 0.001, summed: {fit.objective:.4e}. {len(fit.replicates)} bootstraps; "
            f"{seconds:.1f} s.",
            f"Half of the runs lie within {report.percent(fit.scatter, 2)} of the law.",
        ],
        left=["meaning"],
    )


def _size(fit: Fit, budget: Budget) -> tuple[float, float]:
    """(N, D) of the budget."""
    if budget.num_params is not None and budget.num_tokens is not None:
        return budget.num_params, budget.num_tokens
    assert budget.flops is not None  # Budget checks it
    return fit.law.optimum(budget.flops)


def _prediction(fit: Fit, budget: Budget) -> tuple[Table, dict[str, Any], list[str]]:
    """Its table, its numbers, and warnings."""
    num_params, num_tokens = _size(fit, budget)
    flops = budget.flops or training_flops(num_params, num_tokens)
    if budget.flops is not None:
        check_optimum(fit, flops)
        title = f"The best use of {report.flops(flops)} FLOPs"
        quantities = {
            "params": fit.interval(lambda law: law.optimum(flops)[0]),
            "tokens": fit.interval(lambda law: law.optimum(flops)[1]),
            "tokens_per_param": fit.interval(lambda law: law.optimum(flops)[1] / law.optimum(flops)[0]),
            "loss": fit.interval(lambda law: law.loss(*law.optimum(flops))),
        }
    else:
        title = f"A model of {report.count(num_params)} parameters on {report.count(num_tokens)} tokens"
        quantities = {"loss": fit.interval(lambda law: law.loss(num_params, num_tokens))}
    far = extrapolation(fit.points, num_params, num_tokens)
    labels = {
        "params": ("parameters N", report.count),
        "tokens": ("tokens D", report.count),
        "tokens_per_param": ("tokens per parameter", "{:.3g}".format),
        "loss": ("loss", _digits),
    }
    rows = [
        [labels[name][0], *(labels[name][1](value) for value in interval)]
        for name, interval in quantities.items()
    ]
    times = flops / fit.points.max_flops
    notes = [
        f"{times:,.3g} times the compute of the largest run. The interval is that of the law, not of a single run."
    ]
    if budget.flops is None:
        notes.append(f"--flops={flops:.3g} says what the best use of that compute would be.")
    table = Table(title, ["", "value", "95% from", "to"], rows, notes=notes)
    return table, {"flops": flops} | {name: _numbers(interval) for name, interval in quantities.items()}, far


def _point_rows(fit: Fit) -> list[dict[str, Any]]:
    points = fit.points
    columns = zip(points.names, points.params, points.tokens, points.loss, fit.residuals, strict=True)
    return [
        {
            "name": name,
            "params": N,
            "tokens": D,
            "flops": training_flops(N, D),
            "loss": L,
            "law": fit.law.loss(N, D),
            "residual": residual,
        }
        for name, N, D, L, residual in columns
    ]


def _points_table(fit: Fit) -> Table:
    rows = sorted(_point_rows(fit), key=lambda row: -abs(row["residual"]))
    shown = rows[:MAX_ROWS]
    title = "Points, the furthest from the law first"
    if len(rows) > len(shown):
        title += f" ({len(shown)} of {len(rows)})"
    return Table(
        title,
        ["point", "N", "D", "FLOPs", "loss", "law", "law - loss"],
        [
            [
                _short(row["name"]),
                report.count(row["params"]),
                report.count(row["tokens"]),
                report.flops(row["flops"]),
                f"{row['loss']:.4f}",
                f"{row['law']:.4f}",
                f"{row['law'] / row['loss'] - 1:+.2%}",
            ]
            for row in shown
        ],
    )


def _short(name: str, width: int = 38) -> str:
    """The end of a path tells runs apart."""
    return name if len(name) <= width else "..." + name[3 - width :]


def check_plot() -> None:
    """Errors: UserError without matplotlib, before anything is fitted."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install 'jaxlm[plot]'.") from None


def plot(fit: Fit, budget: Budget | None, path: str | os.PathLike) -> None:
    """Writes a PNG: loss against compute of the points, coloured by N, and the lowest loss that the law allows.

    Errors: UserError for a file that cannot be written.
    """
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    points = fit.points
    flops = 6 * np.array(points.params) * np.array(points.tokens)
    size = None if budget is None else _size(fit, budget)
    asked = [] if size is None else [training_flops(*size)]
    edges = [*flops, *asked]
    curve = np.geomspace(0.8 * min(edges), 1.25 * max(edges), 100)
    frontier = np.array([[law.loss(*law.optimum(C)) for C in curve] for law in (fit.law, *fit.replicates)])
    low, high = np.percentile(frontier[1:], [2.5, 97.5], axis=0)

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    dots = axes.scatter(flops, points.loss, c=points.params, norm=LogNorm(), cmap="viridis", s=18, zorder=3)
    figure.colorbar(dots, ax=axes, label="parameters N")
    axes.plot(curve, frontier[0], color="black", label="lowest loss by the law")
    axes.fill_between(curve, low, high, color="black", alpha=0.15, linewidth=0, label="95% interval")
    if size is not None:
        N, D = size
        found = fit.interval(lambda law: law.loss(N, D))
        error = np.maximum([[found.value - found.low], [found.high - found.value]], 0)
        axes.errorbar(asked, [found.value], yerr=error, color="crimson", marker="D", label="asked", zorder=4)
    axes.set(xscale="log", xlabel="training compute C = 6 N D, FLOPs", ylabel="held-out loss, nats")
    axes.legend()
    axes.grid(visible=True, which="both", alpha=0.2)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise UserError(f"--plot={path} cannot be written: {error.strerror}.") from None
