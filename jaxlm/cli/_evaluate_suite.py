"""The part of `jaxlm evaluate` that is about the suite of questions, translations and summaries."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jaxlm.types import UserError

if TYPE_CHECKING:
    from jaxlm.evaluate.suite import SuiteResult
    from jaxlm.run_loading import LoadedRun

FLAGS = ("suite_tasks", "suite_items", "steps")
METRICS = ("bits_per_byte", "choice", "choice_per_byte", "exact_match", "token_f1", "chrf")


def add_suite_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags for --suite; --shots is shared with --baseline."""
    group = parser.add_argument_group("suite")
    group.add_argument(
        "--suite", action="store_true", help="questions, translations and summaries, of the package"
    )
    group.add_argument("--suite-tasks", metavar="NAME,...", help="some of its tasks (default: all)")
    group.add_argument("--suite-items", metavar="FILE", help="JSONL to write every answer and its scores to")
    group.add_argument("--steps", metavar="all|N,...", help="several checkpoints of each --run: a curve")


def read_shots(text: str | None) -> list[int]:
    """`0,3` -> numbers of examples."""
    if text is None:
        return [0]
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"--shots={text} is not a list of numbers. Try --shots=0,3.")
    return list(dict.fromkeys(map(int, parts)))


def steps_of(run: str, text: str | None, step: int | None) -> list[int | None]:
    """Which checkpoints of a run; None: the latest."""
    if text is None:
        return [step]
    if step is not None:
        raise UserError("--step and --steps both say which checkpoints: give one of them.")
    from jaxlm.checkpoint import Checkpoints
    from jaxlm.data.files import reachable
    from jaxlm.workdir import CHECKPOINTS

    there = Checkpoints(reachable(run) / CHECKPOINTS).all_steps()
    if text == "all":
        if not there:
            raise UserError(f"--run={run} has no checkpoint yet.")
        return list(there)
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"--steps={text} is neither `all` nor a list of numbers. Try --steps=all.")
    if missing := [part for part in parts if int(part) not in there]:
        raise UserError(
            f"--steps={text}: --run={run} has no checkpoint of step {missing[0]}; it has {list(there)}."
        )
    return [int(part) for part in parts]


def evaluate_suite(args: argparse.Namespace) -> int:
    """Runs the suite on every checkpoint, and prints or writes what came of it."""
    from jaxlm.cli._evaluate_output import json_line, write_json, write_output
    from jaxlm.evaluate.suite import pick_tasks, shown

    if args.batch_size < 1:
        raise UserError(f"--batch-size={args.batch_size} must be at least 1.")
    shots = read_shots(args.shots)
    names = [name.strip() for name in (args.suite_tasks or "").split(",") if name.strip()]
    for num in shots:  # mistakes are said before weights are read
        shown(pick_tasks(names)[0], num)
    checkpoints = [(run, step) for run in args.run for step in steps_of(run, args.steps, args.step)]
    curve, lines = [], []
    for run, step in checkpoints:
        loaded, found = run_suite(args, run, step, shots, names)
        about = {"run": run, "step": loaded.step, "tokens": loaded.meta.tokens}
        curve += [{**about, **result.as_dict()} for result in found]
        lines += [
            json_line({**about, "task": r.task, "shots": r.num_shots, **item})
            for r in found
            for item in r.items
        ]
        if args.json != "-":
            print("\n".join(report(f"{run}, step {loaded.step}", found)))
    if args.suite_items is not None:
        write_output("--suite-items", args.suite_items, "".join(lines))
    write_json(args.json, {"suite": "jaxlm", "results": curve})
    return 0


def run_suite(
    args: argparse.Namespace, run: str, step: int | None, shots: Sequence[int], names: Sequence[str]
) -> tuple[LoadedRun, list[SuiteResult]]:
    """One checkpoint."""
    from jaxlm.cli._evaluate_output import show_part
    from jaxlm.evaluate.loglikelihood import Scorer
    from jaxlm.evaluate.suite import evaluate_suite
    from jaxlm.run_evaluate import open_run

    loaded, placing = open_run(run, step, args.mesh)
    scorer = Scorer(loaded.lm, loaded.params, placing)
    max_length = min(loaded.context_tokens, scorer.max_tokens or loaded.context_tokens)
    found = []
    for num in shots:
        found += evaluate_suite(
            loaded.lm,
            loaded.params,
            loaded.tokenizer,
            scorer,
            max_length=max_length,
            num_shots=num,
            names=names,
            batch_size=args.batch_size,
            on_progress=show_part,
        )
    return loaded, found


def report(model: str, found: Sequence[SuiteResult]) -> Iterator[str]:
    """What is printed of a checkpoint."""
    from jaxlm.cli._evaluate_output import table, with_error

    def cell(result: SuiteResult, name: str) -> str:
        value: Any = result.values[name]
        digits = 1 if name == "chrf" else 3
        return "-" if value is None else with_error(value, result.errors[name], digits)

    yield model
    heads = [
        "task",
        "shots",
        "items",
        "bits per byte",
        "chance",
        "choice",
        "choice per byte",
        "exact match",
        "F1",
        "chrF",
    ]
    rows = [heads]
    for one in found:
        rows.append(
            [
                one.task,
                str(one.num_shots),
                str(one.num_items),
                cell(one, "bits_per_byte"),
                f"{one.chance:.3f}",
            ]
            + [cell(one, name) for name in METRICS[1:]]
        )
    yield table(rows, right=range(1, len(heads)))
    if cut := sum(one.num_truncated for one in found):
        yield f"{cut} prompts were longer than the model reads and lost their beginning"
    if any(one.values["chrf"] is None for one in found):
        yield "chrF is not computed: sacrebleu is missing (pip install 'jaxlm[eval]')"
