"""Points that a scaling law is fitted to: parameters, tokens and loss of finished runs, perhaps from a CSV file.

plan/points/chinchilla.csv: 245 runs of figure 4 of Hoffmann et al. 2022 (arXiv:2203.15556), read off its SVG by
Besiroglu et al. 2024 (arXiv:2404.10102): https://github.com/epoch-research/analyzing-chinchilla, whose notebook reads
https://raw.githubusercontent.com/Besiroglu/data/main/svg_extracted_data.csv (commit 02783ae). Tokens are FLOPs / 6 N
as there; parameters are rounded to whole ones, losses to six digits. They leave out the five points of highest loss,
which lie far off every fit; so does `NAMED`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jaxlm.config import nearest
from jaxlm.types import UserError

NAMED = {"chinchilla": 5}
"""Files in plan/points/, by name, and how many of their points with the highest loss those who fitted them left out."""
MIN_POINTS = 6
"""One more than the law has parameters: five points lie on some law exactly, and say nothing of how well it holds."""
MIN_LEVELS = 3
"""Different N, and different D: each term has a factor and an exponent, and E is shared; two levels cannot tell a curve
from a line."""
SAME = 1.01
"""Sizes within this factor are one level: read off a figure, or rounded to whole steps."""
MIN_OFF_LINE = 1.1
"""Root-mean-square factor by which points have to lie off a line in log N and log D. On a line D = k N^s, N^-alpha and
D^-beta are both powers of N, and either term can stand for the other. Rounding to whole steps is within 1.1."""


@dataclass(frozen=True)
class Points:
    """Finished runs, in the order they were given."""

    names: tuple[str, ...]
    """Where each comes from: `line 7`, or a workdir."""
    params: tuple[float, ...]
    tokens: tuple[float, ...]
    loss: tuple[float, ...]
    """Held out, in nats per token."""
    origin: str
    left_out: int = 0
    """Points with the highest loss that were dropped."""

    @property
    def max_flops(self) -> float:
        return max(6 * n * d for n, d in zip(self.params, self.tokens, strict=True))


def without_highest(points: Points, number: int) -> Points:
    """Without this many points of the highest loss."""
    if not 0 <= number < len(points.loss):
        raise UserError(
            f"--drop-highest={number} must be in [0, {len(points.loss)}): there are {len(points.loss)} points."
        )
    order = sorted(range(len(points.loss)), key=lambda i: points.loss[i])
    kept = sorted(order[: len(order) - number])
    return replace(
        points,
        names=tuple(points.names[i] for i in kept),
        params=tuple(points.params[i] for i in kept),
        tokens=tuple(points.tokens[i] for i in kept),
        loss=tuple(points.loss[i] for i in kept),
        left_out=number,
    )


def find_csv(name: str) -> tuple[Path, int]:
    """(file, points to leave out unless told otherwise) of --csv=NAME_OR_PATH."""
    if name in NAMED:
        return Path(__file__).parent / "points" / f"{name}.csv", NAMED[name]
    path = Path(name)
    if not path.is_file():
        match = nearest(name, NAMED)
        hint = f"did you mean {match}?" if match else f"give a file, or a name: {', '.join(NAMED)}."
        raise UserError(f"--csv={name}: there is no such file; {hint}")
    return path, 0


def read_csv(path: Path, origin: str) -> Points:
    """Points of a file with a header and columns params, loss, and tokens or flops (D = C / 6 N); others are ignored.

    Errors: UserError naming the line and the rule for whatever is wrong with it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"--csv={path} cannot be read: {reason}.") from None
    rows = csv.reader(text.splitlines(), strict=True)
    names, params, tokens, losses = [], [], [], []
    try:
        header = [column.strip() for column in next(rows, [])]
        size = _check_header(path, header)
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            where = f"{path}, line {rows.line_num}"
            if len(row) != len(header):
                raise UserError(f"{where} has {len(row)} cells, and the header has {len(header)} columns.")
            cells = dict(zip(header, row, strict=True))
            N, L = (_positive(where, column, cells[column]) for column in ("params", "loss"))
            amount = _positive(where, size, cells[size])
            names.append(f"line {rows.line_num}")
            params.append(N)
            tokens.append(amount if size == "tokens" else amount / (6 * N))
            losses.append(L)
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num} is no CSV: {error}.") from None
    if not names:
        raise UserError(f"--csv={path} has a header and no rows: give one row for each run.")
    return Points(tuple(names), tuple(params), tuple(tokens), tuple(losses), origin)


def _check_header(path: Path, header: Sequence[str]) -> str:
    """The column that gives D."""
    if not any(header):
        raise UserError(
            f"--csv={path} is empty: give a header, params,tokens,loss, and one row for each run."
        )
    size = "tokens" if "tokens" in header else "flops"
    missing = [column for column in ("params", size, "loss") if column not in header]
    if missing:
        name = "tokens (or flops)" if missing[0] == "flops" else missing[0]
        raise UserError(
            f"{path}, line 1: column {name} is missing; the header is {', '.join(header)}. Needed are params, tokens "
            "or flops, and loss."
        )
    double = next((column for column in ("params", size, "loss") if header.count(column) > 1), None)
    if double:
        raise UserError(f"{path}, line 1: column {double} is there twice.")
    return size


def _positive(where: str, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{where}: {column}={text.strip()!r} must be a number, such as 7e9.") from None
    if not (math.isfinite(value) and value > 0):
        raise UserError(
            f"{where}: {column}={text.strip()} must be positive and finite: the law takes its logarithm."
        )
    return value


def check_points(points: Points) -> None:
    """Errors: UserError that says why these points cannot be fitted."""
    reason = why_not(points.params, points.tokens)
    if reason is not None:
        raise UserError(f"{points.origin}: {reason}")


def why_not(params: Sequence[float], tokens: Sequence[float]) -> str | None:
    """Why runs of these sizes cannot tell the five parameters of the law apart, with a way out; None where they can."""
    import numpy as np

    logs = np.log(np.array([params, tokens], float))
    pairs = {tuple(np.round(pair / math.log(SAME)).astype(int)) for pair in logs.T}
    if len(pairs) < MIN_POINTS:
        return (
            f"{len(pairs)} different (N, D) in {len(params)} points are too few for the five parameters of the law: "
            f"at least {MIN_POINTS} are needed. Add runs; `jaxlm plan ladder` writes their configs."
        )
    for name, what, values in (("N", "sizes of model", params), ("D", "numbers of tokens", tokens)):
        ordered = sorted(values)
        levels = 1 + sum(high > SAME * low for low, high in zip(ordered, ordered[1:], strict=False))
        if levels < MIN_LEVELS:
            return (
                f"the points have {levels} different {name}, and at least {MIN_LEVELS} are needed: its term has "
                f"a factor and an exponent, above a floor. Add runs of other {what}."
            )
    centred = logs - logs.mean(axis=1, keepdims=True)
    off_line = np.linalg.svd(centred, compute_uv=False)[1] / math.sqrt(len(params))
    if off_line < math.log(MIN_OFF_LINE):
        return (
            "all points lie on one line D = k N^s (such as a fixed number of tokens per parameter): the terms of N "
            "and of D cannot be told apart, nor their exponents. Add runs of the same N and other D."
        )
    return None
