"""What was planned against what happened: steps, tokens, epochs, time, memory, chip-hours and money of runs.

jaxlm plan compare runs/mine                             one run, from its event log
jaxlm plan compare runs/a runs/b --mfu=0.4 --price=1.2   time and money too; dollars for a chip and an hour
jaxlm plan compare runs/mine --unfinished                as far as it has come
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jaxlm.cli._plan_output import emit
from jaxlm.plan.compare import Comparison, compare, is_number, needed_keys, tables
from jaxlm.plan.mixture_file import number
from jaxlm.plan.report import Report
from jaxlm.types import UserError

if TYPE_CHECKING:
    from etils import epath


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `jaxlm plan compare`."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the --workdir of a training")
    parser.add_argument(
        "--mfu", metavar="SHARE", help="that was planned with: gives planned time and chip-hours"
    )
    parser.add_argument("--price", metavar="USD", help="of one chip for an hour")
    parser.add_argument("--unfinished", action="store_true", help="take runs that have not ended")


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Runs `jaxlm plan compare`."""
    if config_argv:
        raise UserError(
            f"jaxlm plan compare takes no {config_argv[0].partition('=')[0]}: each run has its own config."
        )
    mfu = None if args.mfu is None else number("--mfu", args.mfu)
    if mfu is not None and mfu > 1:
        raise UserError(f"--mfu={args.mfu} must be a share of the peak: at most 1. 40 % is --mfu=0.4.")
    price_usd = None if args.price is None else number("--price", args.price)
    if twice := next((run for run in args.runs if args.runs.count(run) > 1), None):
        raise UserError(f"{twice} is given twice. Give each run once.")
    found = [read_run(run, mfu, unfinished=args.unfinished) for run in args.runs]
    shown = [table for one in found for table in tables(one, price_usd)]
    notes = [
        "chip-hours: from each start to the last step, evaluation or checkpoint, compilation included",
        "model FLOPs: of the steps that count, as perf/mfu counts them; see jaxlm/plan/flops.py",
    ]
    if price_usd is not None:
        notes.append(f"money: chip-hours x ${price_usd:g}, as --price says")
    data = {"price_usd": price_usd, "runs": {one.name: as_data(one) for one in found}}
    emit(Report("Planned and happened", shown, notes=notes, data=data), args)
    return 0


def as_data(found: Comparison) -> dict[str, Any]:
    """All numbers of a comparison, for JSON."""
    return dataclasses.asdict(found) | {"attempts": [one._asdict() for one in found.attempts]}


def read_run(run: str, mfu: float | None, *, unfinished: bool) -> Comparison:
    """Compares a run by its folder. Errors: UserError where it holds no run, no log, or one that goes on."""
    from etils import epath

    from jaxlm.report.events import EVENTS, last_of_each_step
    from jaxlm.report.missing_run import missing_run
    from jaxlm.runconfig import load_config
    from jaxlm.workdir import CONFIG_FILE

    folder = epath.Path(run)
    if not (folder / CONFIG_FILE).is_file():
        raise missing_run(run)
    if not (folder / EVENTS).is_file():
        raise UserError(
            f"{run} has no {EVENTS}: nothing was trained there. It holds imported or merged weights, or a run that has "
            "not begun. Give the --workdir of a training."
        )
    num_steps = load_config(folder / CONFIG_FILE).train.num_steps
    events = list(read_log(folder / EVENTS))
    steps = last_of_each_step(events)
    found = compare(run, events, steps, num_steps=num_steps, mfu=mfu)
    if not found.is_finished and not unfinished:
        raise UserError(
            f"{run}: its log has no end: it has come to step {found.happened.steps:,} of {found.planned.steps:,}. "
            "Wait, continue it with the same command, or give --unfinished to compare as far as it is."
        )
    return found


def read_log(path: epath.Path) -> Iterator[dict[str, Any]]:
    """The events of a log, without what is not compared. Errors: UserError for what no run wrote."""
    from jaxlm.report.events import read_events

    for event in read_events(path):
        is_step = event.get("event") == "step"
        right = isinstance(event.get("event"), str) and is_number(event.get("time_s"))
        if not right or (is_step and not isinstance(event.get("step"), int)):
            raise UserError(
                f"{path} has a line that no run wrote ({str(event)[:80]}): every event has its name and time_s, a step "
                "its number. Remove that line."
            )
        yield needed_keys(event)
