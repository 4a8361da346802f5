"""How far a build is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

LINE_EVERY_S = 10.0


class Progress:
    """Counts input bytes and tokens; shows them on stderr.

    Args:
      total: bytes of input.
      show: False: silent; None or True: a bar if stderr is a terminal, else plain lines.
      unit: what `tokens` counts, where it is something else.
    """

    def __init__(self, label: str, total: int, show: bool | None = None, unit: str = "tokens"):
        self._unit = unit
        self._label = label
        self._total = max(total, 1)
        self._show = show is not False
        self._done = 0
        self._tokens = 0
        self._begin = self._said = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self._show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(self._label, total=self._total, detail="")
            self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def add(self, num_bytes: int, tokens: int) -> None:
        """Records work done; input bytes are known when a unit is finished, tokens also before."""
        self._done += num_bytes
        self._tokens += tokens
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, detail=self._detail(now))
        elif self._show and now - self._said >= LINE_EVERY_S:
            self._said = now
            print(
                f"{self._label}: {self._done / self._total:.0%}, {self._detail(now)}",
                file=sys.stderr,
                flush=True,
            )

    def _detail(self, now: float) -> str:
        seconds = max(now - self._begin, 1e-9)
        if self._unit != "tokens":
            return f"{self._tokens:,} {self._unit}, {self._done / seconds / 1e6:.1f} MB/s"
        rate = self._tokens / seconds
        return f"{self._tokens / 1e6:.1f} M tokens, {rate / 1e6:.2f} M/s"
