"""What a search says: the trials that fit, which of them beat which, and why the others are not among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxlm.plan.compile_report import gigabytes
from jaxlm.plan.placement import limit_bytes
from jaxlm.plan.report import Report, Table, count, percent
from jaxlm.plan.search import Left, Trial, beaten
from jaxlm.plan.search_axes import mesh_text
from jaxlm.plan.search_run import Result
from jaxlm.plan.topology import Topology

ON_FRONT = "Pareto"
MOST_ROWS = 30
"""Of a table of trials that are no choice; --json lists all."""


class Search(NamedTuple):
    """A search that is done."""

    name: str
    """What the user calls the config."""
    on: Topology
    results: Sequence[Result]
    left: Sequence[Left]
    """Not compiled."""
    folder: str
    versions: dict[str, str]

    @property
    def fitting(self) -> list[Result]:
        """The fastest first, and of equal ones the smallest."""
        found = [one for one in self.results if one.fits]
        return sorted(found, key=lambda one: (-one.merit, one.total_bytes or 0, one.trial.name))

    @property
    def too_large(self) -> list[Result]:
        return [one for one in self.results if one.error is None and not one.fits]

    @property
    def failed(self) -> list[Result]:
        return [one for one in self.results if one.error is not None]


def search_report(found: Search, commands: dict[str, list[str]]) -> Report:
    """Tables and numbers of a search.

    Args:
      commands: name of a trial -> the command that compiles it.
    """
    fitting, chip = found.fitting, found.on.chip
    limit = None if chip is None else limit_bytes(chip)
    beaten_by = beaten([(one.merit, one.total_bytes or 0) for one in fitting])
    tables = []
    if fitting:
        tables.append(pareto_table(found, fitting, beaten_by, limit))
    if found.too_large and limit is not None:
        tables.append(too_large_table(found.too_large, limit))
    if found.failed:
        rows = [(one.trial.name, one.error or "") for one in found.failed]
        note = "They are not tried again, but with --search-retry."
        tables.append(short("failed", ("trial", "why"), rows, left=("why",), notes=[note]))
    if found.left:
        tables.append(left_table(found.left))
    num_new = sum(one.is_new for one in found.results)
    notes = [
        f"{len(found.results)} trials, {num_new} of them compiled now; results are kept in {found.folder}.",
        "With " + ", ".join(f"{name} {value}" for name, value in found.versions.items()) + ".",
    ]
    if len({one.trial.blocks for one in fitting}) > 1:
        notes.append(
            "Attention blocks: the compiler counts no cycles in a kernel, so its time is estimated by the FLOPs of "
            "the blocks that it computes. Small blocks compute less above the diagonal, and may still take longer."
        )
    return Report(
        title=f"search of {found.name} on {found.on.name}: {len(fitting)} of {len(found.results)} trials fit",
        tables=tables,
        warnings=[] if fitting else ["nothing that was tried fits."],
        notes=notes,
        data=search_data(found, fitting, beaten_by, limit, commands),
    )


def pareto_table(
    found: Search, fitting: Sequence[Result], beaten_by: Sequence[int | None], limit: float | None
) -> Table:
    """All that fit, the fastest first. What is the same in all of them is said once, below."""
    has_times = fitting[0].speed is not None
    choices = {
        "rows": [f"{one.trial.rows:,}" for one in fitting],
        "remat": [one.trial.remat for one in fitting],
        "mesh": [mesh_text(one.trial.mesh) for one in fitting],
        "blocks": [blocks_cell(one) for one in fitting],
    }
    varied = {name: cells for name, cells in choices.items() if len(set(cells)) > 1}
    columns = {"#": [f"{i}" for i in range(1, len(fitting) + 1)], **varied}
    if has_times:
        columns["tokens/s/chip"] = [count(one.merit) for one in fitting]
        columns["MFU"] = [mfu_cell(one) for one in fitting]
    else:
        columns["useful FLOPs"] = [percent(one.useful_share) for one in fitting]
    columns["memory"] = [gigabytes(one.total_bytes or 0) for one in fitting]
    if limit is not None:
        columns["of it"] = [percent((one.total_bytes or 0) / limit, 0) for one in fitting]
    columns["beaten by"] = [ON_FRONT if by is None else f"#{by + 1}" for by in beaten_by]
    notes = [f"In all of them: {', '.join(f'{k} {v[0]}' for k, v in choices.items() if k not in varied)}."]
    if len(varied) == len(choices):
        notes = []
    notes.append(
        "rows: of a device at a time. Beaten: another is as fast with no more memory. "
        + (
            f"By the estimate that is trusted most ({fitting[0].speed['basis']})."
            if fitting[0].speed
            else "CPU devices have no times: compared is which share of the FLOPs the model needs."
        )
    )
    return Table(
        "trials that fit",
        [*columns],
        list(zip(*columns.values(), strict=True)),
        notes=notes,
        left=("remat", "mesh", "blocks"),
    )


def blocks_cell(one: Result) -> str:
    """What the kernel took."""
    assert one.numbers is not None
    return one.numbers["kernels"].get("attention blocks", "none")


def mfu_cell(one: Result) -> str:
    return "-" if one.speed is None or one.speed["mfu"] is None else percent(one.speed["mfu"])


def too_large_table(results: Sequence[Result], limit: float) -> Table:
    """What was compiled and needs too much."""
    rows = [
        (
            one.trial.name,
            gigabytes(one.total_bytes or 0),
            gigabytes((one.total_bytes or 0) - limit),
            gigabytes(one.trial.predicted_bytes),
        )
        for one in sorted(results, key=lambda one: one.total_bytes or 0)
    ]
    title = f"does not fit in {gigabytes(limit)}"
    return short(title, ("trial", "memory", "too much", "plan said"), rows)


def left_table(left: Sequence[Left]) -> Table:
    """What was not compiled; trials that differ in their rows alone share a line, the least memory first."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial, why in left:
        groups.setdefault((trial.name.partition(", ")[2], why), []).append(trial)
    rows = []
    for (name, why), trials in sorted(groups.items(), key=lambda item: (item[0][1], smallest(item[1]))):
        which = ", ".join(f"{trial.rows:,}" for trial in sorted(trials, key=lambda trial: trial.rows))
        sizes = gigabytes(smallest(trials)) if smallest(trials) else "-"
        rows.append((f"rows {which}, {name}", why, sizes))
    note = "Plan says: what `jaxlm plan` predicts of a device, of several rows with the fewest."
    return short("not compiled", ("trial", "why", "plan says"), rows, left=("why",), notes=[note])


def smallest(trials: Sequence[Trial]) -> int:
    return min(trial.predicted_bytes for trial in trials)


def short(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Table:
    """A table of which no more than `MOST_ROWS` are shown, and that says so."""
    notes = [*notes]
    if len(rows) > MOST_ROWS:
        notes.append(f"And {len(rows) - MOST_ROWS:,} more lines, which --json lists.")
    return Table(title, columns, rows[:MOST_ROWS], notes=notes, left=left)


def search_data(
    found: Search,
    fitting: Sequence[Result],
    beaten_by: Sequence[int | None],
    limit: float | None,
    commands: dict[str, list[str]],
) -> dict[str, Any]:
    """For --json."""

    def numbers(one: Result) -> dict[str, Any]:
        said = one.trial.choices | {
            "command": commands[one.trial.name],
            "predicted_bytes": one.trial.predicted_bytes,
            "seconds": one.seconds,
            "is_new": one.is_new,
        }
        if one.numbers is None:
            return said | {"error": one.error}
        keys = {"kernels": one.numbers["kernels"], "total_bytes": one.total_bytes, "fits": one.fits}
        if one.fits:
            keys["useful_share"] = one.useful_share
        return said | keys | {"speeds": one.numbers["speeds"]}

    return {
        "config": found.name,
        "topology": {"name": found.on.slice_name, "num_slices": found.on.num_slices},
        "versions": dict(found.versions),
        "search_dir": found.folder,
        "limit_bytes": limit,
        "fitting": [numbers(one) | {"beaten_by": by} for one, by in zip(fitting, beaten_by, strict=True)],
        "too_large": [numbers(one) for one in found.too_large],
        "failed": [numbers(one) for one in found.failed],
        "not_compiled": [
            trial.choices | {"why": why, "predicted_bytes": trial.predicted_bytes or None}
            for trial, why in found.left
        ],
        "best": commands[fitting[0].trial.name] if fitting else None,
    }
