"""The report of a run: the event log, always, and lines on the terminal."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

EVENTS = "events.jsonl"


def clean(value: Any) -> Any:
    """A float that JSON cannot hold becomes its name: "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


class EventLog:
    """Appends one JSON object a line to <workdir>/events.jsonl; readers take the last of a step logged twice."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        if self._file.tell() and not self._ends_line(path):
            self._file.write(b"\n")  # a killed process may leave half a line; ours must not continue it

    @staticmethod
    def _ends_line(path: Path) -> bool:
        with path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) == b"\n"

    def write(self, events: list[dict[str, Any]]) -> None:
        """One write per call, so that lines of two processes cannot interleave."""
        now = time.time()
        lines = [json.dumps({"time_s": now} | {k: clean(v) for k, v in event.items()}) for event in events]
        self._file.write("".join(line + "\n" for line in lines).encode())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events in order; a torn line is left out."""
    events = []
    for line in path.read_bytes().splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


class RunReport:
    """Implements `train.hooks.Report`."""

    def __init__(self, workdir: Path, writers: tuple[str, ...], *, num_steps: int, config: dict[str, Any]):
        self._log = EventLog(workdir / EVENTS)
        self._num_steps = num_steps

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ):
        if error is not None:
            self.event("failed", error=f"{type(error).__name__}: {error}")
        self._log.close()

    def say(self, line: str) -> None:
        """A line for people, and an event."""
        print(line, flush=True)
        self.event("message", text=line)

    def warning(self, line: str) -> None:
        """A line that people should not miss, and an event."""
        print(f"warning: {line}", flush=True)
        self.event("warning", text=line)

    def event(self, name: str, **fields: Any) -> None:
        """Anything worth remembering."""
        self._log.write([{"event": name, **fields}])

    def start(self, facts: dict[str, str], lines: list[str]) -> None:
        """The first screen: what was decided, and the plan of the data."""
        for name, value in facts.items():
            print(f"{name:<10} {value}")
        print("\n".join(lines), flush=True)
        self.event("start", **facts)

    def steps(self, rows: list[dict[str, Any]], extra: dict[str, float]) -> None:
        """Every step into the log; the last one onto the terminal."""
        events: list[dict[str, Any]] = [{"event": "step", **row} for row in rows]
        events[-1] |= extra
        self._log.write(events)
        last, rate = rows[-1], extra["perf/tokens_per_s"]
        left = (self._num_steps - last["step"]) * extra["perf/step_time_s"]
        print(
            f"step {last['step']:>6}/{self._num_steps}  loss {last['loss']:.4f}  lr {last['learning_rate']:.2e}  "
            f"grad norm {last['grad_norm']:.2f}  {rate:,.0f} tokens/s  {extra['perf/flops_per_s'] / 1e9:,.0f} "
            f"GFLOP/s  {left:,.0f} s left",
            flush=True,
        )

    def evaluation(self, step: int, scores: dict[str, float]) -> None:
        """Held-out scores, one line per source."""
        self._log.write([{"event": "eval", "step": step, **scores}])
        for name in sorted({key.split("/")[1] for key in scores if key.count("/") == 2}):
            one = {part: scores[f"eval/{name}/{part}"] for part in ("loss", "perplexity", "bits_per_byte")}
            print(
                f"  held out at step {step}: {name:<14} loss {one['loss']:.4f}  perplexity "
                f"{one['perplexity']:,.2f}  bits per byte {one['bits_per_byte']:.4f}",
                flush=True,
            )

    def end(self, scores: dict[str, float], *, seconds: float) -> None:
        """The last line."""
        self.event("end", seconds=seconds, **scores)
        print(f"done in {seconds:.0f} s", flush=True)
