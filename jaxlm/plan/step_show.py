"""The predicted step of a run, for people: seconds, speed, MFU, and what it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxlm.plan.report import Table, count, percent
from jaxlm.plan.slices import Slice, between
from jaxlm.plan.step_time import CYCLES, EFFICIENCIES, efficiency_of, time_range


def steps_table(run: Any, slices: Sequence[Slice], flops: float, peaks: Sequence[float]) -> Table:
    """One row for each slice whose step is predicted.

    Args:
      flops: of the model in one step.
      peaks: FLOP/s of each slice, all its chips together.
    """
    rows, borrowed = [], set()
    tokens = run.data.global_batch_size * run.data.seq_len
    for one, peak in zip(slices, peaks, strict=True):
        if (step := one.step) is None:
            continue
        chip, seconds = one.place.chip.name, step.step_s + step.latency_s
        if chip not in EFFICIENCIES:
            borrowed.add(f"{chip} as {efficiency_of(chip)[0]}")
        shortest, longest = time_range(step)
        parts = step.compute_s, step.passes_s, step.exposed_s + step.latency_s
        rows.append((
            chip,
            f"{one.place.num_chips:,}",
            _seconds(seconds),
            between(f"{_seconds(shortest)} s", f"{_seconds(longest)} s"),
            count(tokens / seconds / one.place.num_chips),
            percent(flops / (peak * seconds), 0),
            *(percent(part / seconds, 0) for part in parts),
            step.bound,
        ))  # fmt: skip
    fast, slow = CYCLES
    notes = [
        "Seconds a step as the compiler would count them (`jaxlm compile`), with 1 us a hop of each collective. "
        f"Expected: with the errors of this formula against it, and {fast:.2f} to {slow:.2f}, which real steps took "
        "over compiled ones. Shares: products and kernels, passes over memory, what is sent while chips wait."
    ]
    if borrowed:
        notes.append(
            f"Never compared with the compiler, taken to be as efficient as another: {', '.join(sorted(borrowed))}."
        )
    columns = ("chip", "chips", "s a step", "expected", "tok/s/chip", "MFU", "compute", "HBM", "ICI", "bound")
    return Table("predicted time of a step", columns, rows, notes=notes)


def _seconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
