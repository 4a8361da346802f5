"""What a plan says, once: tables and notes for people, numbers for programs. The terminal, HTML and JSON show the same.

A planner returns a Report; it prints nothing itself. Cells are text, made by the functions at the end of this file, so
that a number looks the same in every table.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

WIDTH = 100
"""Columns of a terminal that every table fits in."""


@dataclass(frozen=True)
class Table:
    """One table: the first column is left-aligned, the others right-aligned unless they are named in `left`."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    """Printed below it: what a number means, where it comes from."""
    left: Sequence[str] = ()
    """Columns of words."""


@dataclass(frozen=True)
class Report:
    """All that one command says."""

    title: str
    tables: Sequence[Table]
    warnings: Sequence[str] = ()
    """What is unusual, each with its reason."""
    notes: Sequence[str] = ()
    """Assumptions that hold for all of it."""
    data: dict[str, Any] = field(default_factory=dict)
    """The numbers of the tables with full precision: what --json prints; plain JSON types."""


def print_report(report: Report, file: TextIO) -> None:
    """On a terminal or into a pipe, in `WIDTH` columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=file, highlight=False, markup=False, emoji=False, width=WIDTH)
    console.print(Text(report.title, style="bold"))
    for table in report.tables:
        shown = RichTable(
            title=Text(table.title),
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for index, column in enumerate(table.columns):
            is_left = index == 0 or column in table.left
            shown.add_column(Text(column), justify="left" if is_left else "right", overflow="fold")
        for row in table.rows:
            shown.add_row(*(Text(cell) for cell in row))
        console.print(shown)
        for note in table.notes:
            console.print(Text(note, style="dim"))
    if report.tables:
        console.print()
    for warning in report.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"))
    for note in report.notes:
        console.print(Text(note, style="dim"))


def to_json(report: Report) -> str:
    """The numbers, with title, warnings and notes. Errors: ValueError for what JSON has no number for."""
    everything = {
        "title": report.title,
        **report.data,
        "warnings": [*report.warnings],
        "notes": [*report.notes],
    }
    return json.dumps(everything, indent=2, ensure_ascii=False, allow_nan=False)


_STYLE = """\
:root { color-scheme: light dark; --line: #8884; --dim: #888; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th.left, td.left { text-align: left; }
.note { color: var(--dim); font-size: .87rem; margin: .3rem 0; }
.warning { border-left: 3px solid #d80; padding-left: .7rem; }
"""


def to_html(report: Report) -> str:
    """One page that needs nothing else: no script, no network, no file beside it."""
    parts = [f"<h1>{html.escape(report.title)}</h1>"]
    parts += [f'<p class="warning">{html.escape(warning)}</p>' for warning in report.warnings]
    for table in report.tables:
        parts.append(f"<h2>{html.escape(table.title)}</h2>")
        parts.append('<div class="scroll"><table>')
        sides = [
            ' class="left"' if index == 0 or column in table.left else ""
            for index, column in enumerate(table.columns)
        ]
        for tag, rows in (("th", [table.columns]), ("td", table.rows)):
            for row in rows:
                cells = (
                    f"<{tag}{side}>{html.escape(cell)}</{tag}>" for side, cell in zip(sides, row, strict=True)
                )
                parts.append(f"<tr>{''.join(cells)}</tr>")
        parts.append("</table></div>")
        parts += [f'<p class="note">{html.escape(note)}</p>' for note in table.notes]
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in report.notes]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    title = f"<title>{html.escape(report.title)}</title>"
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>{head}{title}\n<style>\n{_STYLE}</style></head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


# Cells.

_COUNTS = ((1e15, "Q"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


def count(value: float) -> str:
    """A number of things: 410B, 1.50T, 12,288. Three digits; whole below 100,000."""
    if abs(value) < 1e5:
        return f"{value:,.0f}"
    for size, letter in _COUNTS:
        if abs(value) >= 0.9995 * size:
            return f"{_three_digits(value / size)}{letter}"
    raise AssertionError(value)


def _three_digits(value: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 2
    return f"{value:,.{min(digits, 2)}f}"


def gigabytes(num_bytes: float) -> str:
    """10^9 bytes: 15.8 GB."""
    return f"{num_bytes / 1e9:,.2f} GB" if abs(num_bytes) < 1e10 else f"{num_bytes / 1e9:,.1f} GB"


def flops(value: float) -> str:
    """Operations: 3.15e+23."""
    return f"{value:.3g}"


def dollars(value: float) -> str:
    """US dollars: $4.61M, $502K, $1.35."""
    if abs(value) >= 999_500:
        return f"${_three_digits(value / 1e6)}M"
    if abs(value) >= 9_999.5:
        return f"${value / 1e3:,.0f}K"
    return f"${value:,.2f}" if abs(value) < 1000 else f"${value:,.0f}"


def percent(share: float, digits: int = 1) -> str:
    """40.0%"""
    return f"{share:.{digits}%}"


def days(value: float) -> str:
    """38 days, 1.2 years, 5.3 hours."""
    if value >= 730:
        return f"{value / 365.25:,.1f} years"
    if value >= 1:
        return f"{value:,.1f} days"
    return f"{value * 24:,.1f} hours" if value * 24 >= 1 else f"{value * 1440:,.1f} minutes"
