"""What a run says on the terminal: one screen at the start, then how far it is.

On a terminal a line at the bottom is redrawn (rich) and evaluations scroll past above it; into a file or a pipe
go plain lines, one per report, without colours or cursor movements.
"""

from __future__ import annotations

import math
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

SCREEN_COLUMNS = 100
LABEL_COLUMNS = 18
RATE_WINDOW_S = 30.0
"""The remaining time follows from the speed over about this long: later than compilation, slower than noise."""

Sections = Mapping[str, Any]
"""Title -> a text (lines as they are); or {label: value}; or a list of dicts with equal keys: a table."""


def start_screen(sections: Sections, columns: int = SCREEN_COLUMNS) -> str:
    """One screen of what was decided before training: mesh, parameters, plan of the data, memory, and so on.

        start_screen({
            "run": {"workdir": "runs/a", "weights": "fresh, seed 0"},
            "sources": [{"source": "topics", "share": "60%", "planned epochs": "1.4"}, ...],
        })

    No line is longer than `columns`: long values continue below themselves.
    """
    lines: list[str] = []
    for title, body in sections.items():
        if lines:
            lines.append("")
        if isinstance(body, Mapping):
            lines.append(title)
            for label, value in body.items():
                lines += _labelled(str(label), str(value), columns)
        elif isinstance(body, Sequence) and not isinstance(body, str):
            lines.append(title)
            lines += table(body, columns)
        elif "\n" in str(body):
            lines.append(title)
            for line in str(body).splitlines():
                lines += [f"  {line}"] if len(line) + 2 <= columns else textwrap.wrap(f"  {line}", columns)
        else:
            lines += _labelled(title, str(body), columns, indent=0)
    return "\n".join(lines)


def _labelled(label: str, value: str, columns: int, indent: int = 2) -> list[str]:
    margin = indent + LABEL_COLUMNS
    head = f"{' ' * indent}{label:<{LABEL_COLUMNS - 1}} "
    wrapped = [
        piece
        for part in (value.splitlines() or [""])
        for piece in textwrap.wrap(part, columns - margin) or [""]
    ]
    if len(head) > margin:  # a long label has its own line
        return [*textwrap.wrap(head, columns), *(" " * margin + piece for piece in wrapped)]
    return [(head + wrapped[0]).rstrip(), *(" " * margin + piece for piece in wrapped[1:])]


def table(rows: Sequence[Mapping[str, Any]], columns: int = SCREEN_COLUMNS) -> list[str]:
    """Lines of a table: text to the left, numbers to the right; the widest column gives way when space is short."""
    if not rows:
        return ["  (none)"]
    names = list(rows[0])
    cells = [[str(row.get(name, "")) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    while sum(widths) + 2 * len(widths) > columns and max(widths) > 4:
        widths[widths.index(max(widths))] -= 1
    right = [all(_is_number(line[i]) for line in cells) for i in range(len(names))]

    def show(line: Sequence[str]) -> str:
        fitted = (_shorten(cell, width) for cell, width in zip(line, widths))
        aligned = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(fitted, widths, right))
        return ("  " + "  ".join(aligned)).rstrip()[:columns]

    return [show(names), *(show(line) for line in cells)]


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in "-+" and text[1:2].isdigit()


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def quantity(value: float, unit: str = "") -> str:
    """`1.52k`, `98.2G`: three digits and a decimal prefix."""
    if not math.isfinite(value):
        return f"{value} {unit}".rstrip()
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 999.5 or prefix == "P":
            digits = f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
            return f"{digits}{' ' if unit else ''}{prefix}{unit}"
        value /= 1000
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    """`42s`, `3m 05s`, `2h 07m`, `3d 04h`; `?` when it is not known."""
    if not math.isfinite(seconds):
        return "?"
    seconds = max(0, round(seconds))
    for unit, size, sub, sub_size in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size:
            return f"{seconds // size}{unit} {seconds % size // sub_size:02d}{sub}"
    return f"{seconds}s"


def step_line(values: Mapping[str, float]) -> str:
    """Loss, speed and use of the hardware, as far as they are among the values."""
    parts = []
    for key, show in (
        ("train/loss", lambda v: f"loss {v:.4f}"),
        ("train/learning_rate", lambda v: f"lr {v:.2e}"),
        ("train/grad_norm", lambda v: f"grad norm {v:.2f}"),
        ("perf/tokens_per_s", lambda v: f"{v:,.0f} tokens/s"),
        ("perf/flops_per_s", lambda v: quantity(v, "FLOP/s")),
        ("perf/mfu", lambda v: f"MFU {v:.1%}"),
    ):
        if key in values:
            parts.append(show(float(values[key])))
    return "  ".join(parts)


def eval_lines(values: Mapping[str, float]) -> list[str]:
    """One line per source, `  topics          loss 3.2123  perplexity 24.83  bits/byte 1.4211`."""
    sources: dict[str, list[str]] = {}
    shown = {"loss": "loss {:.4f}", "perplexity": "perplexity {:,.2f}", "bits_per_byte": "bits/byte {:.4f}",
             "accuracy": "accuracy {:.4f}"}  # fmt: skip
    for key, value in values.items():
        group, _, rest = key.partition("/")
        source, _, metric = rest.rpartition("/")
        if group == "eval" and source and metric in shown:
            sources.setdefault(source, []).append(shown[metric].format(float(value)))
    return [f"  {source:<16} {'  '.join(parts)}" for source, parts in sources.items()]


class Progress:
    """The terminal of a run.

    Args:
      num_steps: of the whole run.
      start_step: where this process begins; the remaining time is reckoned from here.
      file: where to write; default standard output.
      interactive: redraw a line in place; default: when `file` is a terminal.
    """

    def __init__(
        self,
        num_steps: int,
        *,
        start_step: int = 0,
        file: TextIO | None = None,
        interactive: bool | None = None,
    ):
        self._file = sys.stdout if file is None else file
        self._num_steps = num_steps
        self._interactive = self._file.isatty() if interactive is None else interactive
        self._history: list[tuple[float, int]] = []
        self._step = start_step
        self._eval = ""
        self._live: Any = None
        if self._interactive:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._file, force_terminal=True, highlight=False, soft_wrap=True)
            self._live = Live(console=console, auto_refresh=False)

    def print(self, text: str) -> None:
        """Lines that stay, above the line that is redrawn."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._file, flush=True)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Reports a step; values as in `Reporter.step`."""
        self._step = step
        now = time.monotonic()
        self._history.append((now, step))
        while len(self._history) > 2 and now - self._history[1][0] > RATE_WINDOW_S:
            self._history.pop(0)
        left = self.remaining_s()
        eta = "" if math.isnan(left) else f"  {duration(left)} left"
        line = f"step {step:,}/{self._num_steps:,}  {step_line(values)}{eta}"
        if self._live is None:
            self.print(line)
            return
        if not self._live.is_started:
            self._live.start()
        self._live.update(self._bar(line), refresh=True)

    def _bar(self, line: str) -> Any:
        from rich.text import Text

        columns = shutil.get_terminal_size().columns
        share = min(1.0, self._step / max(1, self._num_steps))
        text = f" {line}{'  ' + self._eval if self._eval else ''}"
        bar = min(20, max(0, columns - 1 - len(text)))  # numbers come first where space is short
        filled = round(bar * share)
        text = f"{'━' * filled}{'╌' * (bar - filled)}{text}"
        return Text(_shorten(text, max(20, columns - 1)), no_wrap=True, overflow="ellipsis")

    def remaining_s(self) -> float:
        """Seconds to the last step at the recent speed; NaN before there is one."""
        (then, first), (now, last) = (
            (self._history[0], self._history[-1]) if self._history else ((0, 0), (0, 0))
        )
        if last <= first or now <= then:
            return math.nan
        return (self._num_steps - last) * (now - then) / (last - first)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Reports held-out losses."""
        loss = values.get("eval/loss")
        self._eval = "" if loss is None else f"held out {float(loss):.4f}"
        self.print("\n".join([f"step {step:,}  held out", *eval_lines(values)]))

    def close(self) -> None:
        """Leaves the last line standing."""
        if self._live is not None and self._live.is_started:
            self._live.stop()
