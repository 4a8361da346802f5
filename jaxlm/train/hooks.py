"""What happens every n steps: log, evaluate, save, profile, stop on bad steps."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any, NamedTuple, Protocol, Self

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from jaxlm.train.compile_clock import compile_seconds
from jaxlm.train.loop import Hook
from jaxlm.train.step import SOUND, Metrics, TrainState
from jaxlm.types import UserError

__all__ = ["BadStep", "Evaluate", "Hook", "LogSteps", "Profile", "Report", "Save", "StopOnSignal", "Stopped",
           "TooManyBadSteps", "is_due", "source_scores", "span"]  # fmt: skip


class Report(Protocol):
    """Where measurements go: the event log, the terminal, TensorBoard and the like."""

    def steps(self, rows: list[dict[str, Any]], extra: dict[str, float]) -> None:
        """One dict per finished step, oldest first; `extra` holds what was measured over all of them."""

    def evaluation(self, step: int, scores: dict[str, float]) -> None:
        """Held-out scores at a step."""

    def event(self, name: str, *, step: int | None = None, **fields) -> None:
        """Anything else worth remembering."""


@contextlib.contextmanager
def span(report: Report, name: str, step: int | None = None) -> Iterator[None]:
    """Logs how long something besides the steps took: a `span` event with its kind, seconds, and of them those that
    compiled; also when it ends by an error."""
    begun, compiled = time.perf_counter(), compile_seconds()
    try:
        yield
    finally:
        seconds, compile_s = time.perf_counter() - begun, compile_seconds() - compiled
        report.event("span", step=step, kind=name, seconds=round(seconds, 6), compile_s=round(compile_s, 6))


def is_due(step: int, every: int, num_steps: int) -> bool:
    """Every `every` steps, and after the last."""
    return step % every == 0 or step == num_steps


class TooManyBadSteps(UserError):
    """`num` steps in a row, up to step `step`, were bad; `num_bad` since the start of the run."""

    def __init__(self, row: dict[str, Any], sources: str):
        self.step, self.num, self.num_bad = row["step"], row["num_bad_in_row"], row["num_bad"]
        super().__init__(
            f"{self.named} (loss {row['loss']}, "
            f"gradient norm {row['grad_norm']}; its batch came from {sources}): their updates were skipped. Lower "
            "optimizer.learning_rate, or look at that data (`jaxlm replay` repeats a bad step); the last checkpoint is "
            "kept, train.max_bad_steps sets this limit, and train.on_bad_steps=rollback goes on behind them."
        )

    @property
    def named(self) -> str:
        """Which they are."""
        return (
            f"{self.num} bad steps in a row up to step {self.step}"
            if self.num > 1
            else f"A bad step {self.step}"
        )


class BadStep(NamedTuple):
    """A step whose update was skipped."""

    row: dict[str, Any]
    """Its metrics."""
    sound_gradients: np.ndarray
    """bool, in the order of `optimizer.square_sums_names`."""
    state: TrainState | None
    """That which it began with, as far as is known: None once another step has changed the weights."""

    @property
    def step(self) -> int:
        return self.row["step"]

    @property
    def is_first(self) -> bool:
        """Whether the step before it was good."""
        return self.row["num_bad_in_row"] == 1


class LogSteps:
    """Writes every step's metrics, fetched from the device once every `every` steps.

    Args:
      flops_per_token: of the model; `perf/flops_per_s` and `perf/mfu` count what it counts (see plan/flops.py).
      peak_flops_per_s: of all devices together; None leaves `perf/mfu` out.
      on_bad: told of every bad step, oldest first.

    Errors: TooManyBadSteps when `max_bad_steps` steps in a row were bad; it names the step, its loss and its sources.
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
        on_bad: Callable[[BadStep], None],
    ):
        self._report, self._every, self._num_steps = report, every, num_steps
        self._max_bad_steps = max_bad_steps
        self._flops_per_token, self._peak = flops_per_token, peak_flops_per_s
        self._stall_s, self._data_metrics, self._sources_of = stall_s, data_metrics, sources_of
        self._on_bad = on_bad
        self._pending: list[tuple[int, Metrics]] = []
        self._since = (time.perf_counter(), stall_s(), compile_seconds())

    @contextlib.contextmanager
    def aside(self, name: str, step: int, state: TrainState | None = None) -> Iterator[None]:
        """Something besides the steps (an evaluation, a save): a `span` of its own, left out of the next throughput.

        Args:
          state: after this step; what is pending is written first, so that nobody waits for it inside. None: nothing
            is pending.
        """
        if state is not None:
            self.flush(state)
        begun, compiled = time.perf_counter(), compile_seconds()
        try:
            with span(self._report, name, step):
                yield
        finally:
            since, stall, compile_s = self._since
            self._since = (
                since + time.perf_counter() - begun,
                stall,
                compile_s + compile_seconds() - compiled,
            )

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        self._pending.append((step, metrics))
        if step == 1 or is_due(step, self._every, self._num_steps):
            self.flush(state)

    def flush(self, state: TrainState) -> None:
        """Fetches and writes what is pending: waits for the device.

        Args:
          state: after the last of these steps.
        """
        if not self._pending:
            return
        values = jax.device_get([metrics for _, metrics in self._pending])
        sound = [one.pop(SOUND) for one in values]
        rows: list[dict[str, Any]] = [
            {"step": step} | {name: value.item() for name, value in sorted(one.items())}
            for (step, _), one in zip(self._pending, values)
        ]
        self._pending = []
        now, stall, compiled = time.perf_counter(), self._stall_s(), compile_seconds()
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
        if compiled > self._since[2]:
            extra["perf/compile_s"] = compiled - self._since[2]
        self._since = (now, stall, compiled)
        self._report.steps(rows, extra | self._data_metrics(rows[-1]["step"]))
        for row, one in zip(rows, sound):
            num = row["num_bad_in_row"]
            if num:
                unchanged = rows[-1]["num_bad_in_row"] == num + rows[-1]["step"] - row["step"]
                self._on_bad(BadStep(row, one, state if unchanged else None))
            if num >= self._max_bad_steps:
                raise TooManyBadSteps(row, self._sources_of(row["step"] - 1))


class Evaluate:
    """Scores the held-out batches of every source: loss and perplexity per token, bits per byte of text.

    Args:
      aside: aside(name, step, state) in which an evaluation runs; see LogSteps.
      after: after(step, weights) when the scores are written: what else is to be known of the weights.
      stopping: asked after every batch: whether the run is to end. Then the evaluation is given up; what continues
        the run makes up for it.
    """

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
        aside: Callable[..., AbstractContextManager[None]],
        after: Sequence[Callable[[int, Any], None]] = (),
        stopping: Callable[[], bool] = lambda: False,
    ):
        self._stopping, self._after = stopping, after
        self._evaluate, self._sources, self._report = evaluate, sources, report
        self._every, self._num_steps = every, num_steps
        self._bytes_per_id, self._place, self._aside = bytes_per_id, place, aside
        self.last: tuple[int, dict[str, float]] | None = None
        """(step, scores) of the latest evaluation."""

    def is_due(self, step: int) -> bool:
        """Whether a run is evaluated after this step."""
        return is_due(step, self._every, self._num_steps)

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        if self.is_due(step):
            with self._aside("evaluation", step, state):
                self._run(step, state.params)

    def run(self, step: int, params) -> bool:
        """Evaluates before the first step of a process; False where it was given up."""
        with self._aside("evaluation", step):
            return self._run(step, params)

    def _run(self, step: int, params) -> bool:
        scores = self.scores(params)
        if scores is not None:
            self.last = (step, scores)
            self._report.evaluation(step, scores)
            for one in self._after:
                one(step, params)
        return scores is not None

    def scores(self, params) -> dict[str, float] | None:
        """`eval/<source>/loss` per source and `eval/loss` over all of them, and what `source_scores` says.

        None where it was given up.
        """
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
                if self._stopping():
                    return None
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


SAME_SIGNAL_S = 2.0
"""A second SIGTERM that comes so soon is the first, sent twice."""


class StopOnSignal:
    """Ends the run after the step in which SIGTERM (a preemption) or SIGINT (Ctrl-C) comes, and saves that step.

    Comes after all other hooks; works inside `with`. A second signal does what it always did, unless it is a SIGTERM
    that comes at once after the first: Slurm and systemd tell every process, and a supervisor passes it on besides. Of
    several processes one is enough: JAX listens for SIGTERM, and names a call of `asked` that all have yet to reach.

    Errors: Stopped.
    """

    def __init__(self, *, num_steps: int):
        self._num_steps = num_steps
        self._received: int | None = None
        self._received_at = 0.0
        self._asked, self._stopping = 0, False
        self._alone = jax.process_count() == 1
        self._before: dict[int, Any] = {}
        self._save: Callable = lambda step, state, scores: None
        self._evaluate: Evaluate | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, _: FrameType | None) -> None:
        again = self._received is not None
        if again and number == signal.SIGTERM and time.monotonic() - self._received_at < SAME_SIGNAL_S:
            return
        if again:
            self.__exit__()
            os.kill(os.getpid(), number)
            return
        self._received, self._received_at = number, time.monotonic()
        if number != signal.SIGTERM:
            self.__exit__()
        if not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)  # which JAX passes on to the others

    def __exit__(self, *_) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def asked(self) -> bool:
        """Whether the run is to end here. All processes call this equally often, after the same things."""
        self._asked += 1
        if self._alone:
            self._stopping = self._received is not None
        elif not self._stopping:
            self._stopping = multihost_utils.reached_preemption_sync_point(self._asked)
        return self._stopping

    def after(self, save: Callable, evaluate: Evaluate | None) -> Self:
        """As the last of the hooks.

        Args:
          save: save(step, state, scores), which does nothing for a step that has just been saved.
          evaluate: which may have been given up; None: there is none.
        """

        self._save, self._evaluate = save, evaluate
        return self

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        evaluate = self._evaluate
        given_up = evaluate is not None and evaluate.is_due(step) and (evaluate.last or (0,))[0] != step
        if self.asked() and (step < self._num_steps or given_up):
            self._save(step, state, None)
            raise Stopped(step, self._received or signal.SIGTERM)
