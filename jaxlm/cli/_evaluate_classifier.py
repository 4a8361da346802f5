"""The part of `jaxlm evaluate` that is about classifiers."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from jaxlm.cli._evaluate_output import write_json
from jaxlm.cli.generate import show_progress, trained_columns
from jaxlm.types import UserError

if TYPE_CHECKING:
    from jaxlm.run_loading import LoadedRun


def add_classifier_arguments(parser: argparse._ActionsContainer) -> None:
    """Flags for --data of a classifier."""
    parser.add_argument(
        "--calibrate-on",
        metavar="FILE",
        help="validation records: fit a temperature (for predict --temperature)",
    )
    parser.add_argument("--plots", metavar="FOLDER", help="PNGs: confusion, calibration, ROC (extra: plot)")
    parser.add_argument(
        "--baseline", metavar="RUN", help="a language model: how well would it name the label (label words)?"
    )
    parser.add_argument(
        "--baseline-template", help="of its prompt, with {text} in it; the label comes behind"
    )
    parser.add_argument(
        "--shots-from", metavar="FILE", help="labelled records to show the baseline as examples"
    )
    parser.add_argument(
        "--shots", metavar="N", help="how many of them (default: 4); with --suite a list, such as 0,3"
    )
    parser.add_argument(
        "--normalise-labels",
        action="store_true",
        help="baseline: divide a label's nats by its number of tokens",
    )


FLAGS = ("calibrate_on", "plots", "baseline", "baseline_template", "shots_from", "normalise_labels")


def check_classifier_arguments(args: argparse.Namespace) -> None:
    """Errors: UserError for flags that would be ignored, or cannot be honoured."""
    if args.plots:
        from jaxlm.evaluate.classifier_show import check_plots

        check_plots()
    for flag in ("baseline_template", "shots_from", "normalise_labels"):
        if getattr(args, flag) and args.baseline is None:
            raise UserError(f"--{flag.replace('_', '-')} is about --baseline=RUN: give one.")
    if args.shots is not None and args.shots_from is None:
        raise UserError("--shots needs records to take them from: --shots-from=FILE.")
    if args.shots is not None and (not args.shots.isdecimal() or int(args.shots) < 1):
        raise UserError(f"--shots={args.shots} must be at least 1; without --shots-from it is none.")
    if args.baseline_template is not None:
        from jaxlm.evaluate.label_words import check_template

        check_template(args.baseline_template)


def evaluate_labels(args: argparse.Namespace, loaded: LoadedRun) -> int:
    """Labels of the records of --data, against theirs."""
    from jaxlm import run_loading
    from jaxlm.evaluate.classifier import LabelWords, evaluate_classifier
    from jaxlm.evaluate.classifier_show import draw, print_report
    from jaxlm.evaluate.label_words import TEMPLATE

    check_classifier_arguments(args)
    label_words = None
    if args.baseline is not None:
        label_words = LabelWords(
            run_loading.load_run(args.baseline),
            args.baseline_template or TEMPLATE,
            args.shots_from,
            int(args.shots or 4),
            args.normalise_labels,
        )
    report = evaluate_classifier(
        loaded,
        args.data,
        args.columns or trained_columns(loaded.config.data),
        calibrate_on=args.calibrate_on,
        label_words=label_words,
        max_records=args.max_records,
        batch_size=args.batch_size,
        on_progress=show_progress,
    )
    found = {"run": args.run, "step": loaded.step, "data": args.data, **report.as_dict()}
    if args.plots:
        for path in draw(report, args.plots):
            print(f"wrote {path}", file=sys.stderr)
    if write_json(args.json, found):
        return 0
    print(f"{args.run}, step {loaded.step}: {args.data}")
    print_report(report, sys.stdout)
    return 0
