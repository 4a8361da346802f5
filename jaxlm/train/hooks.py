"""What happens every n steps: log, evaluate, save, profile, stop on bad steps."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol, Self

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from jaxlm.train.loop import Hook
from jaxlm.train.step import Metrics, TrainState
from jaxlm.types import UserError

__all__ = ["Evaluate", "Hook", "LogSteps", "Profile", "Report", "Save", "StopOnSignal", "Stopped",
           "is_due", "source_scores"]  # fmt: skip


class Report(Protocol):
    """Where measurements go: the event log, the terminal, TensorBoard and the like."""

    def steps(self, rows: list[dict[str, Any]], extra: dict[str, float]) -> None:
        """One dict per finished step, oldest first; `extra` holds what was measured over all of them."""

    def evaluation(self, step: int, scores: dict[str, float]) -> None:
        """Held-out scores at a step."""

    def event(self, name: str, **fields) -> None:
        """Anything else worth remembering."""


def is_due(step: int, every: int, num_steps: int) -> bool:
    """Every `every` steps, and after the last."""
    return step % every == 0 or step == num_steps


class LogSteps:
    """Writes every step's metrics, fetched from the device once every `every` steps.

    Args:
      flops_per_token: of the model; `perf/flops_per_s` and `perf/mfu` count what it counts (see plan/flops.py).
      peak_flops_per_s: of all devices together; None leaves `perf/mfu` out.

    Errors: UserError when `max_bad_steps` steps in a row were bad; it names the step, its loss and its sources.
    """

    def __init__(
        self,
        report: Report,
        *,
        every: int,
        num_steps: int,
        max_bad_steps: int,
        flops_per_token: float,
        peak_flops_per_s: float | None,
        stall_s: Callable[[], float],
        data_metrics: Callable[[int], dict[str, float]],
        sources_of: Callable[[int], str],
    ):
        self._report, self._every, self._num_steps = report, every, num_steps
        self._max_bad_steps = max_bad_steps
        self._flops_per_token, self._peak = flops_per_token, peak_flops_per_s
        self._stall_s, self._data_metrics, self._sources_of = stall_s, data_metrics, sources_of
        self._pending: list[tuple[int, Metrics]] = []
        self._since = (time.perf_counter(), stall_s())

    def skip_time(self, seconds: float) -> None:
        """Leaves `seconds` (of evaluation, of saving) out of the next throughput."""
        self._since = (self._since[0] + seconds, self._since[1])

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        self._pending.append((step, metrics))
        if step == 1 or is_due(step, self._every, self._num_steps):
            self.flush()

    def flush(self) -> None:
        """Fetches and writes what is pending: waits for the device."""
        if not self._pending:
            return
        values = jax.device_get([metrics for _, metrics in self._pending])
        rows: list[dict[str, Any]] = [
            {"step": step} | {name: value.item() for name, value in sorted(one.items())}
            for (step, _), one in zip(self._pending, values)
        ]
        self._pending = []
        now, stall = time.perf_counter(), self._stall_s()
        elapsed = max(now - self._since[0], 1e-9)
        tokens_per_s = sum(row.get("num_inputs", row["num_tokens"]) for row in rows) / elapsed
        extra = {
            "perf/step_time_s": elapsed / len(rows),
            "perf/tokens_per_s": tokens_per_s,
            "perf/flops_per_s": tokens_per_s * self._flops_per_token,
            "perf/stall_share": (stall - self._since[1]) / elapsed,
        }
        if self._peak is not None:
            extra["perf/mfu"] = extra["perf/flops_per_s"] / self._peak
        self._since = (now, stall)
        self._report.steps(rows, extra | self._data_metrics(rows[-1]["step"]))
        for row in rows:
            if row["num_bad_in_row"] >= self._max_bad_steps:
                raise UserError(
                    f"{row['num_bad_in_row']} bad steps in a row up to step {row['step']} (loss {row['loss']}, "
                    f"gradient norm {row['grad_norm']}; its batch came from {self._sources_of(row['step'] - 1)}): "
                    "their updates were skipped. Lower optimizer.learning_rate, or look at that data; the last "
                    "checkpoint is kept, and train.max_bad_steps sets this limit."
                )


class Evaluate:
    """Scores the held-out batches of every source: loss and perplexity per token, bits per byte of text."""

    def __init__(
        self,
        evaluate: Callable,
        sources: dict[str, Callable],
        report: Report,
        *,
        every: int,
        num_steps: int,
        bytes_per_id: np.ndarray,
        place: Callable,
        skip_time: Callable[[float], None],
    ):
        self._evaluate, self._sources, self._report = evaluate, sources, report
        self._every, self._num_steps = every, num_steps
        self._bytes_per_id, self._place, self._skip_time = bytes_per_id, place, skip_time
        self.last: tuple[int, dict[str, float]] | None = None
        """(step, scores) of the latest evaluation."""

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        if is_due(step, self._every, self._num_steps):
            start = time.perf_counter()
            self.last = (step, self.scores(state.params))
            self._report.evaluation(*self.last)
            self._skip_time(time.perf_counter() - start)

    def scores(self, params) -> dict[str, float]:
        """`eval/<source>/loss` per source and `eval/loss` over all of them, and what `source_scores` says."""
        scores, all_sums = {}, np.zeros(2)
        for name, make_batches in self._sources.items():
            sums, texts, num_bytes, has_labels = np.zeros(2), np.zeros(2), 0.0, False
            for batch, batch_bytes in make_batches(self._bytes_per_id):
                one = jax.device_get(self._evaluate(params, self._place(batch)))
                sums += np.array([one.loss, one.weight], np.float64)
                num_bytes += batch_bytes
                if one.num_texts is not None:
                    texts += np.array([one.num_texts, one.num_right or 0])
                    has_labels = one.num_right is not None
            if texts[0]:
                scores |= text_scores(name, sums[0] / sums[1], *texts, has_labels)
            else:
                scores |= source_scores(name, sums[0], sums[1], num_bytes)
            all_sums += sums
        if all_sums[1]:
            scores["eval/loss"] = float(all_sums[0] / all_sums[1])
        return scores


def source_scores(name: str, nats: float, num_tokens: float, num_bytes: float) -> dict[str, float]:
    """Loss in nats per token, perplexity, and bits per byte of the text those tokens decode to."""
    loss = nats / num_tokens
    return {
        f"eval/{name}/loss": float(loss),
        f"eval/{name}/perplexity": float(np.exp(min(loss, 700.0))),
        f"eval/{name}/bits_per_byte": float(nats / np.log(2) / num_bytes),
    }


def text_scores(
    name: str, loss: float, num_texts: float, num_right: float, has_labels: bool
) -> dict[str, float]:
    """Loss per text (of a regression, the mean squared error), and the share of texts that got their labels."""
    scores = {f"eval/{name}/loss": float(loss)}
    return scores | ({f"eval/{name}/accuracy": float(num_right / num_texts)} if has_labels else {})


class Save:
    """Saves the state every `every` steps and after the last; `save(step, state, last_evaluation)` is asynchronous."""

    def __init__(self, save: Callable, *, every: int, num_steps: int, evaluate: Evaluate | None):
        self._save, self._every, self._num_steps, self._evaluate = save, every, num_steps, evaluate

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        if is_due(step, self._every, self._num_steps):
            last = self._evaluate.last if self._evaluate is not None else None
            self._save(step, state, last[1] if last is not None and last[0] == step else None)


class Profile:
    """Writes a profiler trace of the steps first..last to a folder, for TensorBoard or Perfetto."""

    def __init__(self, window: tuple[int, int], folder: epath.Path, report: Report):
        self._first, self._last = window
        self._folder, self._report = folder, report
        self._running = False

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        if step + 1 == self._first or (step == 1 and self._first <= 1):
            jax.block_until_ready(metrics)
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif self._running and step >= self._last:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Ends the trace, if one is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            self._report.event("profile", folder=str(self._folder), first=self._first, last=self._last)


class Stopped(Exception):
    """A signal ended the run after a step, which was saved."""

    def __init__(self, step: int, number: int):
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step}, which is saved: the same command continues"
        )
        self.step, self.signal = step, number


class StopOnSignal:
    """Ends the run after the step in which SIGTERM (a preemption) or SIGINT (Ctrl-C) comes, and saves that step.

    Comes after all other hooks; works inside `with`. A second signal does what it always did. Of several
    processes one is enough: JAX listens for SIGTERM, and names a step that all of them have yet to reach.

    Errors: Stopped.
    """

    def __init__(self, save: Callable, *, num_steps: int):
        self._save, self._num_steps = save, num_steps
        self._received: int | None = None
        self._alone = jax.process_count() == 1
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, _: FrameType | None) -> None:
        self._received = number
        self.__exit__()
        if not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)  # which JAX passes on to the others

    def __exit__(self, *_) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        stop = self._received is not None
        if not self._alone:
            stop = multihost_utils.reached_preemption_sync_point(step)
        if stop and step < self._num_steps:
            self._save(step, state, None)  # does nothing if it has just been saved
            raise Stopped(step, self._received or signal.SIGTERM)
