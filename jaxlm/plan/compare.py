"""What a run was planned to take against what it took, from the events of its log; opens no file itself.

A log holds one `start` and one `plan` event for each process that trained, then its steps. A process that resumed from
a checkpoint writes the steps after it once more: of those the later ones count as trained, both as time.

Chip-hours are chips x time from a `start` to the last step, evaluation or checkpoint before the next one: with
compilation, evaluation and saving; without opening the data, or the hours between two processes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

from jaxlm.plan.report import Table, count, dollars, flops, gigabytes, percent
from jaxlm.types import UserError

Event = Mapping[str, Any]
WORK = ("step", "eval", "save", "memory", "end")
"""Events of a process that trains; others (a message, a failure) may come hours later, from one that only looked."""
NEEDED = ("step", "train/num_tokens", "train/num_inputs", "perf/step_time_s", "perf/mfu", "peak_device_bytes",
          "peak_process_bytes")  # fmt: skip
"""Keys of steps that are compared, beside those of `start`, `plan` and data/."""


def needed_keys(event: Event) -> dict[str, Any]:
    """The event without what is not compared: a log of a million steps has much of it."""
    if event["event"] in ("start", "plan"):
        return dict(event)
    return {
        key: value
        for key, value in event.items()
        if key in ("event", "time_s", *NEEDED) or key.startswith("data/")
    }


@dataclass(frozen=True)
class Drawn:
    """What is read of one source."""

    tokens: float
    epochs: float


class Attempt(NamedTuple):
    """One process of the run, from its start to the last it did."""

    seconds: float
    num_chips: float | None
    """None in a log without `plan`."""
    num_steps: int
    """That it finished, those among them that a later one did again."""
    is_finished: bool


@dataclass(frozen=True)
class Account:
    """Both sides of a run: what was planned of it, or what happened. None: not known."""

    steps: int | None = None
    tokens: float | None = None
    """Trained on: targets of weight 1."""
    step_time_s: float | None = None
    device_bytes: float | None = None
    chip_hours: float | None = None
    flops: float | None = None
    mfu: float | None = None
    sources: Mapping[str, Drawn] | None = None


@dataclass(frozen=True)
class Comparison:
    """One run."""

    name: str
    planned: Account
    happened: Account
    attempts: tuple[Attempt, ...]
    num_lost: int
    """Steps that were computed and taken back, by a restart from a checkpoint before them."""
    hardware: str
    """Of the latest process; empty where the log does not say."""
    process_bytes: float | None = None
    """The most that the first process held: on CPUs the only peak there is, with all that Python takes."""

    @property
    def is_finished(self) -> bool:
        return bool(self.attempts) and self.attempts[-1].is_finished


def compare(
    name: str,
    events: Sequence[Event],
    steps: Mapping[int, Event],
    *,
    num_steps: int,
    mfu: float | None = None,
) -> Comparison:
    """Both sides of one run.

    Args:
      name: of the run, for people.
      events: all of its log, in order.
      steps: of them those that count, by number: the last one written of each step.
      num_steps: that its config asks for; the plan in the log may have fewer, where a source ends it.
      mfu: that was planned with, if any: nothing in a log says it, and without it no time was planned.

    Errors: UserError where nothing was trained, and for values that are no numbers.
    """
    if not steps:
        raise UserError(f"{name}: its log has no step yet, so there is nothing to compare. Train it first.")
    plans = [event for event in events if event["event"] == "plan"]
    plan = plans[-1] if plans else None
    for one in plans:
        if not (
            isinstance(one.get("sources"), dict) and is_number(one.get("num_chips")) and one.get("num_steps")
        ):
            raise UserError(
                f"{name}: an event 'plan' of its log has no sources, num_chips or num_steps: the log was edited or "
                "damaged."
            )
    attempts = tuple(_attempts(events))
    planned = Account(steps=num_steps) if plan is None else _planned(name, plan, mfu)
    hardware = ""
    if plan is not None:
        num_devices, num_processes = (
            int(_number(name, plan, f"num_{of}")) for of in ("devices", "processes")
        )
        hardware = f"{num_devices:,} {plan.get('device_kind')} device(s), {num_processes:,} process(es)"
    num_written = sum(event["event"] == "step" for event in events)
    happened = _happened(name, events, steps, attempts, plan)
    process_bytes = _peak(name, events, "peak_process_bytes")
    return Comparison(name, planned, happened, attempts, num_written - len(steps), hardware, process_bytes)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a log's value can be counted with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _number(name: str, event: Event, key: str) -> float:
    value = event.get(key)
    if not is_number(value):
        raise UserError(
            f"{name}: an event {event['event']!r} of its log has {key}={value!r}, which must be a number: the log was "
            "edited or damaged."
        )
    return value


def _planned(name: str, plan: Event, mfu: float | None) -> Account:
    sources = {source: _drawn_of(name, source, one) for source, one in plan["sources"].items()}
    num_steps, total = int(_number(name, plan, "num_steps")), _number(name, plan, "flops")
    step_time_s = chip_hours = None
    if mfu is not None and num_steps and plan.get("peak_flops_per_s"):
        step_time_s = total / num_steps / (mfu * _number(name, plan, "peak_flops_per_s"))
        chip_hours = num_steps * step_time_s * _number(name, plan, "num_chips") / 3600
    return Account(
        steps=num_steps,
        tokens=sum(one.tokens for one in sources.values()),
        step_time_s=step_time_s,
        device_bytes=_number(name, plan, "device_bytes"),
        chip_hours=chip_hours,
        flops=total,
        mfu=mfu,
        sources=sources,
    )


def _drawn_of(name: str, source: str, values: Any) -> Drawn:
    event = {"event": f"plan of {source}"} | (values if isinstance(values, dict) else {})
    return Drawn(_number(name, event, "tokens"), _number(name, event, "epochs"))


def _attempts(events: Sequence[Event]) -> list[Attempt]:
    """Of each `start`: what came before the first one is nobody's."""
    found: list[Attempt] = []
    began_s = 0.0
    for event in events:
        kind = event["event"]
        if kind == "start":
            began_s = event["time_s"]
            found.append(Attempt(0.0, None, 0, False))
        elif found and kind == "plan":
            found[-1] = found[-1]._replace(num_chips=event.get("num_chips"))
        elif found and kind in WORK:
            last = found[-1]
            found[-1] = last._replace(
                seconds=max(last.seconds, event["time_s"] - began_s),
                num_steps=last.num_steps + (kind == "step"),
                is_finished=kind == "end",
            )
    return found


def _happened(
    name: str,
    events: Sequence[Event],
    steps: Mapping[int, Event],
    attempts: Sequence[Attempt],
    plan: Event | None,
) -> Account:
    def median(key: str) -> float | None:
        values = [_number(name, step, key) for step in steps.values() if key in step]
        return statistics.median(values) if values else None

    chips = [attempt.num_chips for attempt in attempts]
    chip_hours = None
    if attempts and None not in chips:
        chip_hours = sum(one.seconds * (one.num_chips or 0.0) for one in attempts) / 3600
    num_positions = sum(
        _number(name, step, "train/num_inputs" if "train/num_inputs" in step else "train/num_tokens")
        for step in steps.values()
    )
    return Account(
        steps=max(steps),
        tokens=sum(_number(name, step, "train/num_tokens") for step in steps.values()),
        step_time_s=median("perf/step_time_s"),
        device_bytes=_peak(name, events, "peak_device_bytes"),
        chip_hours=chip_hours,
        flops=None if plan is None else num_positions * _number(name, plan, "flops_per_token"),
        mfu=median("perf/mfu"),
        sources=_drawn(name, steps),
    )


def _peak(name: str, events: Sequence[Event], key: str) -> float | None:
    """The largest of the `memory` events; None where none has it."""
    found = [_number(name, event, key) for event in events if event["event"] == "memory" and key in event]
    return max(found, default=None)


def _drawn(name: str, steps: Mapping[int, Event]) -> dict[str, Drawn]:
    """Of each source after the last step that says so."""
    last = next(
        (step for step in reversed(list(steps.values())) if any(key.startswith("data/") for key in step)), {}
    )
    sources = [key.removeprefix("data/").removesuffix("/tokens") for key in last if key.endswith("/tokens")]
    sources = [source for source in sources if f"data/{source}/epochs" in last]
    return {
        source: Drawn(
            _number(name, last, f"data/{source}/tokens"), _number(name, last, f"data/{source}/epochs")
        )
        for source in sources
    }


# For people.


def _seconds(value: float) -> str:
    return f"{value:,.3g} s" if value < 100 else f"{value:,.0f} s"


def _hours(value: float) -> str:
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _row(
    label: str, planned: float | None, happened: float | None, cell: Callable[[float], str]
) -> list[str]:
    ratio = f"{happened / planned:.3f}" if planned and happened is not None else "-"
    return [label, *("-" if value is None else cell(value) for value in (planned, happened)), ratio]


def tables(found: Comparison, price_usd: float | None = None) -> list[Table]:
    """A run's two tables: the whole, and its sources.

    Args:
      price_usd: of one chip for an hour.
    """
    planned, happened = found.planned, found.happened
    rows = [
        _row("steps", planned.steps, happened.steps, _whole),
        _row("tokens trained on", planned.tokens, happened.tokens, count),
        _row("time of a step", planned.step_time_s, happened.step_time_s, _seconds),
        _row("memory of a device", planned.device_bytes, happened.device_bytes, gigabytes),
        _row("chip-hours", planned.chip_hours, happened.chip_hours, _hours),
        _row("model FLOPs", planned.flops, happened.flops, flops),
        _row("MFU", planned.mfu, happened.mfu, percent),
    ]
    if price_usd is not None:
        rows.append(_row("money", _money(planned, price_usd), _money(happened, price_usd), dollars))
    everything = [Table(found.name, ("", "planned", "happened", "ratio"), rows, _notes(found))]
    if planned.sources or happened.sources:
        everything.append(_sources_table(found))
    return everything


def _money(side: Account, price_usd: float) -> float | None:
    return None if side.chip_hours is None else side.chip_hours * price_usd


def _sources_table(found: Comparison) -> Table:
    planned, happened = found.planned.sources or {}, found.happened.sources or {}
    rows = []
    for source in sorted({*planned, *happened}):
        a, b = planned.get(source), happened.get(source)
        tokens = _row(source, a and a.tokens, b and b.tokens, count)
        epochs = _row("", a and a.epochs, b and b.epochs, lambda value: f"{value:,.3f}")
        rows.append([*tokens, *epochs[1:3]])
    columns = ("source", "tokens planned", "happened", "ratio", "epochs planned", "happened")
    return Table(f"{found.name}: sources", columns, rows)


def _notes(found: Comparison) -> list[str]:
    seconds = sum(attempt.seconds for attempt in found.attempts)
    lost = f"; {found.num_lost:,} step(s) were lost at restarts" if found.num_lost else ""
    notes = [f"{len(found.attempts):,} start(s), {_seconds(seconds)} of training{lost}"]
    if found.hardware:
        notes[0] += f", on {found.hardware}"
    if not found.is_finished:
        notes.append("the run has not ended: its log is compared as far as it goes")
    if found.planned.flops is None:
        notes.append("its log has no event `plan`: it was written before runs logged one, or edited")
    elif found.planned.mfu is None:
        notes.append("no time was planned: give the MFU that you counted on as --mfu=0.4")
    elif found.planned.step_time_s is None:
        notes.append("no time was planned: the peak FLOP/s of these devices are not known")
    if found.happened.device_bytes is None:
        notes.append(
            "its log has no peak of a device's memory: CPUs count none"
            + (f"; its process held {gigabytes(found.process_bytes)} at most" if found.process_bytes else "")
        )
    return notes
