"""What a run does besides its steps, made from its config: log, evaluate, save, profile, stop at a signal."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxlm import processes
from jaxlm.checkpoint import EVAL_LOSS, EVALUATED, Checkpoints
from jaxlm.checkpoint_meta import Meta
from jaxlm.data.packing import ExampleReader, TokenReader
from jaxlm.data.padding import PadPacking
from jaxlm.data.pipeline import Batches, make_eval_batches, make_iterator, make_record_eval_batches
from jaxlm.parallel.sharding import local_rows, place_batch
from jaxlm.plan.hardware import find_chip, peak_flops_per_s
from jaxlm.plan.memory import predict
from jaxlm.plan.tuning import tuned_flops_per_token
from jaxlm.report.run_report import RunReport
from jaxlm.run_data import labelled
from jaxlm.train.hooks import (
    BadStep,
    Evaluate,
    Hook,
    LogSteps,
    Profile,
    Save,
    StopOnSignal,
    Stopped,
    TooManyBadSteps,
    is_due,
    span,
)
from jaxlm.train.loop import fit
from jaxlm.train.step import TrainState
from jaxlm.train.watchdog import Watchdog
from jaxlm.types import Batch

if TYPE_CHECKING:
    from jaxlm.run import Run

Scores = dict[str, float]
SaveState = Callable[[int, TrainState, Scores | None], None]
"""save(step, state, scores of an evaluation at that step)."""


class Hooks(NamedTuple):
    """The hooks of a run."""

    log: LogSteps
    evaluate: Evaluate | None
    save: Save
    profile: Profile | None
    stop: Hook
    watchdog: Watchdog

    @property
    def in_order(self) -> list[Hook]:
        """As they are called after a step: what is saved was evaluated, what is evaluated was logged."""
        hooks = (self.log, self.evaluate, self.save, self.profile, self.stop)
        return [hook for hook in hooks if hook is not None]

    @property
    def last_scores(self) -> Scores:
        """Of the latest evaluation; empty before one."""
        return self.evaluate.last[1] if self.evaluate is not None and self.evaluate.last is not None else {}


def make_hooks(
    run: Run,
    batches: Batches,
    report: RunReport,
    checkpoints: Checkpoints,
    stop: StopOnSignal,
    on_bad: Callable[[BadStep], None],
    *,
    began: float,
    notes: Mapping[str, Any],
) -> Hooks:
    """All hooks that the config asks for.

    Args:
      on_bad: see LogSteps.
      began: when the run would have begun, on the clock of time.perf_counter, had it never been interrupted.
      notes: what its checkpoints say of the weights; see `run.Start`.
    """
    train = run.config.train
    log = make_log(run, batches, report, on_bad)
    evaluate = make_evaluate(run, report, log, stop)
    save_state = make_save(run, report, checkpoints, log, began=began, notes=notes)
    save = Save(
        save_state, every=run.config.checkpoint.every_steps, num_steps=run.plan.num_steps, evaluate=evaluate
    )
    profile = None
    if train.profile_window is not None:
        profile = Profile(train.profile_window, run.folder / "profile", report)
    watchdog = Watchdog(
        run.folder, report, settle_steps=train.log_every_steps, timeout_s=train.step_timeout_s
    )
    return Hooks(log, evaluate, save, profile, stop.after(save_state, evaluate), watchdog)


def run_peak_flops_per_s(run: Run) -> float | None:
    """Of all devices of the run together; None where their chip is not in plan/hardware.py."""
    device = run.pieces.mesh.devices.flat[0]
    return peak_flops_per_s(
        device.device_kind, run.config.model.dtype, run.pieces.mesh.size, getattr(device, "num_cores", None)
    )


def plan_numbers(run: Run, first_step: int) -> dict[str, Any]:
    """The `plan` event: what the start screen says, as numbers, for whoever compares it with what happens.

    Tokens are those trained on (targets of weight 1); positions are all places of the batches, which FLOPs count.
    `num_chips` counts TPUs whose devices are cores as chips; of what plan/hardware.py does not know, devices.
    """
    cfg, mesh, num_steps = run.config, run.pieces.mesh, run.plan.num_steps
    device = mesh.devices.flat[0]
    chip, num_chips = find_chip(device.device_kind), float(mesh.size)
    if chip is not None:
        num_chips *= chip.share(getattr(device, "num_cores", None))
    num_positions = num_steps * cfg.data.global_batch_size * cfg.data.seq_len
    per_token = tuned_flops_per_token(cfg.model, cfg.data.seq_len, cfg.tune).total
    memory = predict(cfg, run.pieces.sizes, mesh.size, platform=jax.default_backend())
    return {
        "first_step": first_step,
        "num_steps": num_steps,
        "num_processes": processes.count(),
        "num_devices": mesh.size,
        "num_chips": num_chips,
        "device_kind": device.device_kind,
        "peak_flops_per_s": run_peak_flops_per_s(run),
        "num_positions": num_positions,
        "flops_per_token": per_token,
        "flops": per_token * num_positions,
        "device_bytes": memory.total,
        "sources": {
            source.name: {"tokens": source.planned_tokens, "epochs": source.planned_epochs}
            for source in run.plan.sources
        },
    }


def log_peak_memory(report: RunReport, step: int | None = None) -> None:
    """The `memory` event: the most bytes that were in use at once, on any device and by the process; of the first one.

    CPUs count nothing for their devices, which are the process.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    found = {"peak_device_bytes": max(peaks)} if peaks else {}
    report.event("memory", step=step, **found, peak_process_bytes=peak_process_bytes())


def peak_process_bytes() -> int:
    """The most memory that this process ever held, in bytes; shared pages count."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def make_log(run: Run, batches: Batches, report: RunReport, on_bad: Callable[[BadStep], None]) -> LogSteps:
    """Metrics of every step, throughput, and the share of the chips' peak where it is known."""

    def sources_of(step: int) -> str:
        return ", ".join(sorted(run.rows.rows_of(step)))

    cfg = run.config
    return LogSteps(
        report,
        every=cfg.train.log_every_steps,
        num_steps=run.plan.num_steps,
        max_bad_steps=cfg.train.max_bad_steps,
        flops_per_token=tuned_flops_per_token(cfg.model, cfg.data.seq_len, cfg.tune).total,
        peak_flops_per_s=run_peak_flops_per_s(run),
        stall_s=lambda: batches.stall_s,
        data_metrics=lambda step: run.plan.metrics_at(step) | run.rows.notices.metrics(),
        sources_of=sources_of,
        on_bad=on_bad,
    )


def make_evaluate(run: Run, report: RunReport, log: LogSteps, stop: StopOnSignal) -> Evaluate | None:
    """Held-out scores of every source; None where the config wants none, or no text is held out."""
    from jaxlm.run_label_scores import make_label_scores
    from jaxlm.run_samples import make_samples

    cfg = run.config
    if not (cfg.train.eval_batches and run.data.eval):
        return None
    row_ids = local_rows(run.pieces.mesh, cfg.data.global_batch_size)
    held_out = {name: held_out_batches(run, store, row_ids) for name, store in run.data.eval.items()}
    place = make_place(run)
    after = (make_samples(run, report), make_label_scores(run, report, held_out, place))
    return Evaluate(
        run.pieces.steps.evaluate,
        held_out,
        report,
        every=cfg.train.eval_every_steps,
        num_steps=run.plan.num_steps,
        bytes_per_id=run.data.tokenizer.bytes_per_id(),
        place=place,
        aside=log.aside,
        after=[one for one in after if one is not None],
        stopping=stop.asked,
    )


def held_out_batches(run: Run, store: TokenReader, row_ids: np.ndarray) -> Callable:
    """bytes_per_id -> (this process's rows, bytes of text that the whole batch's targets stand for), in order."""
    cfg = run.config
    size: dict[str, Any] = dict(batch_size=cfg.data.global_batch_size, num_batches=cfg.train.eval_batches)
    padding = None
    if isinstance(store, ExampleReader):
        padding = PadPacking(store, cfg.data.seq_len, labelled(cfg, run.data))

    def batches(bytes_per_id):
        everyone = (
            make_eval_batches(store, seq_len=cfg.data.seq_len, **size)
            if padding is None
            else make_record_eval_batches(padding, **size)
        )
        for whole in everyone:
            num_bytes = 0.0
            if "targets" in whole:
                num_bytes = float((bytes_per_id[whole["targets"]] * (whole["weights"] > 0)).sum())
            yield {name: value[row_ids] for name, value in whole.items()}, num_bytes

    return batches


def make_save(
    run: Run,
    report: RunReport,
    checkpoints: Checkpoints,
    log: LogSteps,
    *,
    began: float,
    notes: Mapping[str, Any],
) -> SaveState:
    """The function that saves a state with all that a checkpoint says about it; began, notes as of `make_hooks`."""
    labels = {} if run.data.labels is None else {"labels": list(run.data.labels)}

    def save(step: int, state: Any, scores: Scores | None) -> None:
        with log.aside("checkpoint", step, state):  # first the log, so that it is never behind a checkpoint
            write(step, state, scores)

    def write(step: int, state: Any, scores: Scores | None) -> None:
        meta = Meta(
            step=step,
            config=dataclasses.asdict(run.config),
            tokenizer_sha256=run.data.tokenizer.sha256,
            corpus_sha256=run.data.corpus_sha256,
            tokens=sum(run.plan.tokens_at(step).values()),
            epochs=run.plan.epochs_at(step),
            wall_time_s=time.perf_counter() - began,
            eval_loss=scores.get("eval/loss") if scores else None,
            extra={"scores": scores or {}, **notes, **labels},
        )
        checkpoints.save(state, meta)
        report.event("save", step=step)
        log_peak_memory(report, step)  # of a run that is killed, too

    return save


def make_place(run: Run) -> Callable[[Batch], Batch]:
    """place(this process's rows of a batch) -> the batch on the mesh."""

    def place(batch: Batch) -> Batch:
        on_device = {name: value for name, value in batch.items() if name != "source"}
        return place_batch(on_device, run.pieces.mesh, run.config.data.global_batch_size)

    return place


def fit_until_done_or_stopped(
    run: Run,
    state: TrainState,
    report: RunReport,
    checkpoints: Checkpoints,
    *,
    meta: Meta | None,
    began: float,
    notes: Mapping[str, Any],
) -> tuple[Scores, Stopped | None]:
    """All steps that are left; or, when a signal comes, those up to it, and what stopped them.

    Args:
      meta: of the checkpoint that the run goes on from; None: it is new.
      began, notes: as of `make_hooks`.

    Errors: TooManyBadSteps where the config does not go back, or cannot.
    """
    from jaxlm.run_bad_steps import Explain, roll_back

    explain = Explain(run, report, checkpoints)
    row_ids = local_rows(run.pieces.mesh, run.config.data.global_batch_size)
    with StopOnSignal(num_steps=run.plan.num_steps) as stop:
        while True:
            batches = make_iterator(
                run.rows, start_step=int(state.step), num_steps=run.plan.num_steps, row_ids=row_ids
            )
            hooks = make_hooks(run, batches, report, checkpoints, stop, explain, began=began, notes=notes)
            try:
                if meta is not None:
                    make_up_for_evaluation(run, state, meta, checkpoints, hooks)
                with hooks.watchdog as watchdog:
                    watched = watchdog.watch(hooks.in_order, int(state.step))
                    fit(state, run.pieces.steps.train, place_each(run, batches), watched, run.plan.num_steps)
            except Stopped as reason:
                with span(report, "checkpoint"):
                    checkpoints.wait()
                return hooks.last_scores, reason
            except TooManyBadSteps as bad:
                meta, state = None, state._replace(params=None, opt_state=None)
                with span(report, "restore"):
                    state, notes = roll_back(run, report, checkpoints, bad, notes)
            else:
                with span(report, "checkpoint"):
                    checkpoints.wait()  # while a signal still does no harm to the last save
                return hooks.last_scores, None
            finally:
                batches.close()
                if hooks.profile is not None:
                    hooks.profile.close()


def place_each(run: Run, batches: Iterator[Batch]) -> Iterator[Batch]:
    """This process's rows of each batch on the mesh."""
    place = make_place(run)
    return (place(batch) for batch in batches)


def is_finished(run: Run, meta: Meta, checkpoints: Checkpoints) -> bool:
    """Whether nothing is left to do after this checkpoint: no step, and not the evaluation of the last one."""
    return meta.step >= run.plan.num_steps and not lacks_evaluation(run, meta, checkpoints)


def lacks_evaluation(run: Run, meta: Meta, checkpoints: Checkpoints) -> bool:
    """Whether a signal came during the evaluation that was due at this step, and nobody has made up for it."""
    train, step = run.config.train, meta.step
    if not (train.eval_batches and run.data.eval) or meta.extra.get("scores"):
        return False
    # Of a run that is finished, and goes on with more steps, the last was evaluated; the config alone cannot tell.
    if not any(
        is_due(step, train.eval_every_steps, last)
        for last in (meta.config["train"]["num_steps"], run.plan.num_steps)
    ):
        return False
    return not processes.from_first(lambda: checkpoints.marked(step, EVALUATED), "What was evaluated")


def make_up_for_evaluation(
    run: Run, state: TrainState, meta: Meta, checkpoints: Checkpoints, hooks: Hooks
) -> None:
    """The evaluation that `lacks_evaluation` speaks of. Errors: Stopped, when there comes another signal."""
    step, evaluate = meta.step, hooks.evaluate
    if evaluate is None or not lacks_evaluation(run, meta, checkpoints):
        return
    if evaluate.run(step, state.params):
        checkpoints.mark(step, EVALUATED)
        loss = hooks.last_scores.get("eval/loss")
        if loss is not None and math.isfinite(loss):
            checkpoints.mark(step, EVAL_LOSS, loss)
    else:
        hooks.stop(step, state, {})
