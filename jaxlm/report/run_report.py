"""RunReport: the one object that a run tells what happens; it passes it on to event log, terminal and writers.

Names of metrics are the same everywhere:

    train/loss  train/learning_rate  train/grad_norm  train/num_tokens  train/num_bad
    train/balance_loss  train/router_z_loss  train/busiest_expert (mixtures of experts)
    perf/tokens_per_s  perf/flops_per_s  perf/mfu  perf/step_time_s  perf/stall_share
    data/<source>/tokens  data/<source>/epochs
    eval/loss  eval/<source>/loss  eval/<source>/perplexity  eval/<source>/bits_per_byte
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from etils import epath

from jaxlm.redact import redact
from jaxlm.report.events import EVENTS, EventLog
from jaxlm.report.progress import Progress, duration, start_screen
from jaxlm.report.writers import Writer, check_installed, open_writers

LOG_ONLY = ("step", "batch_hash")
"""Keys of a step's metrics that are no measurements."""


class RunReport:
    """Implements `train.hooks.Report`. On other processes than the first it only warns.

    A writer that fails (its service cannot be reached) is named once, in log and terminal, and left out from then
    on: it need not end a run of weeks, and the event log has everything.

    Args:
      workdir: gets events.jsonl and what the writers keep.
      writers: names, as in `ReportConfig.names`. A missing package is a UserError at once; the services are opened
        with the first metrics, when the step is known from which the run goes on.
      num_steps: of the whole run.
      config: resolved; sent to the writers without secrets.
      progress: default: standard output.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        writers: Sequence[str] = (),
        *,
        num_steps: int,
        config: Mapping[str, Any],
        progress: Progress | None = None,
    ):
        import jax

        self._index = jax.process_index()
        self._first = self._index == 0
        self._workdir = epath.Path(workdir)
        self._config = config
        self._names = tuple(writers) if self._first else ()
        check_installed(self._names)
        self._writers: list[Writer] | None = None
        self._log = EventLog(self._workdir / EVENTS, enabled=self._first)
        self._progress = progress or Progress(num_steps)

    def say(self, line: str) -> None:
        """A line for people, and an event."""
        self._print(line)
        self.event("message", text=line)

    def warning(self, line: str) -> None:
        """A line that people should not miss, and an event. Fits `Checkpoints(warn=...)`; from any thread.

        Of another process than the first it goes to standard error: nobody else knows of it.
        """
        self._print(f"warning: {line}")
        if not self._first:
            print(f"jaxlm: warning of process {self._index}: {line}", file=sys.stderr, flush=True)
        self.event("warning", text=line)

    def event(self, name: str, *, step: int | None = None, **fields: Any) -> None:
        """Anything worth remembering, into the log."""
        self._log.write(name, step=step, **fields)

    def start(self, facts: Mapping[str, Any], lines: Sequence[str] = ()) -> None:
        """The first screen: what was decided, and the plan of the data."""
        sections: dict[str, Any] = {"run": facts}
        if lines:
            sections["data"] = "\n".join(lines)
        self._print(start_screen(sections))
        self.event("start", **facts)

    def steps(self, rows: Sequence[Mapping[str, Any]], extra: Mapping[str, float]) -> None:
        """One dict per finished step, oldest first; `extra` was measured over all of them.

        Every step goes to log and writers, the last one to the terminal.
        """
        named = [{k if k in LOG_ONLY else f"train/{k}": v for k, v in row.items()} for row in rows]
        named[-1] |= extra
        self._log.write_many(
            ("step", row["step"], {k: v for k, v in row.items() if k != "step"}) for row in named
        )
        if not self._first:
            return
        self._progress.step(named[-1]["step"], named[-1])
        for row in named:
            step, values = row["step"], {k: v for k, v in row.items() if k not in LOG_ONLY}
            self._send(step, lambda writer, step=step, values=values: writer.scalars(step, values))

    def evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        """Held-out scores."""
        self._log.write_many([("eval", step, scores)])
        if self._first:
            self._progress.evaluation(step, scores)
            self._send(step, lambda writer: writer.scalars(step, scores))

    def text(self, step: int, name: str, value: str) -> None:
        """A text of a step, such as a sample."""
        self._log.write_many([("text", step, {"name": name, "text": value})])
        self._print(f"{name} at step {step:,}:\n{value}")
        self._send(step, lambda writer: writer.text(step, name, value))

    def label_scores(
        self, step: int, name: str, scores: Mapping[str, Any], images: Mapping[str, str]
    ) -> None:
        """How well the held-out records of a source were labelled: confusion, calibration and so on.

        Args:
          scores: of evaluate/classification.py.
          images: name -> PNG file, for the writers.
        """
        self._log.write_many([("scores", step, {"name": name, "scores": scores})])
        for image, path in images.items():
            key = f"eval/{name}/{image}"
            self._send(step, lambda writer, key=key, path=path: writer.image(step, key, path))

    def end(self, scores: Mapping[str, float], *, seconds: float) -> None:
        """The last line of a run that reached its last step."""
        self._log.write_many([("end", None, {"seconds": seconds, **scores})])
        self._print(f"done in {duration(seconds)}")

    def _print(self, text: str) -> None:
        if self._first:
            self._progress.print(redact(text))

    def _send(self, step: int, send: Callable[[Writer], None]) -> None:
        if self._writers is None:
            self._writers = open_writers(
                self._names,
                self._workdir,
                run_name=self._workdir.name,
                config=self._config,
                start_step=step - 1,
            )
        for writer in list(self._writers):
            try:
                send(writer)
            except Exception as error:  # of a foreign package, so of any type
                self._writers.remove(writer)
                self._failed(writer, error)

    def _failed(self, writer: Writer, error: Exception) -> None:
        # Its type only: the text may hold an address with a key in it.
        self.warning(
            f"{type(writer).__name__} failed ({type(error).__name__}); from here on metrics go to {EVENTS} only."
        )

    def close(self) -> None:
        """Closes terminal, writers and log."""
        self._progress.close()
        for writer in self._writers or []:
            try:
                writer.close()
            except Exception as error:
                self._failed(writer, error)
        self._writers = []
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ):
        if error is not None:
            self.event("failed", error=f"{type(error).__name__}: {error}")
        self.close()
