"""Label texts with a classifier: a file of records, or a single text.

jaxlm predict --run=runs/spam --input=messages.jsonl --output=labelled.jsonl
jaxlm predict --run=runs/spam --text="You have won a prize" --temperature=report.json

--input is read by the column map of the training; a label that is there already is a field like others. - is stdin
(JSONL), and without --output lines go to stdout. Every line is a record with its fields, `predicted` and
`probabilities`; of a regression `predicted` alone. A record without a text gets null and an `error`, and the exit code
is then 3. A run that was killed goes on where its output ends.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from typing import TYPE_CHECKING, Any

from jaxlm.cli.generate import read_prompt, show_progress, trained_columns
from jaxlm.types import UserError

if TYPE_CHECKING:
    from jaxlm.infer.predict import Classifier, Summary

NUM_ERRORS = 20
BAD_RECORDS = 3
"""The exit code where some records had no text."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("--run", required=True, help="workdir of a training with objective=classify")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the latest)")
    parser.add_argument("--input", help="records to label (.jsonl, .json, .csv, .parquet), or - for stdin")
    parser.add_argument("--output", help="JSONL file to write (default: stdout)")
    parser.add_argument("--text", action="append", help="a text to label; may be repeated; - reads stdin")
    parser.add_argument("--json", action="store_true", help="of --text, print JSON")
    parser.add_argument("--columns", help="column map of --input (default: that of the training)")
    parser.add_argument("--batch-size", type=int, default=32, help="texts labelled at once (default: 32)")
    parser.add_argument(
        "--temperature",
        default="1",
        help="divides the logits: a number, or the report of `jaxlm evaluate --json=FILE`, which has fitted one",
    )


def read_temperature(text: str) -> float:
    """The number, or that in a report. Errors: UserError where it is none, or not positive."""
    try:
        value = float(text)
    except ValueError:
        from jaxlm.data.files import read_file
        from jaxlm.limits import parse_json
        from jaxlm.types import JSON_ERRORS

        content = read_file(text, "a positive number, or the report of `jaxlm evaluate --json=FILE`")
        try:
            value = parse_json(content).get("temperature")
        except (*JSON_ERRORS, AttributeError):
            raise UserError(f"--temperature={text} is no report of `jaxlm evaluate --json=FILE`.") from None
        if value is None:
            raise UserError(
                f"--temperature={text}: the report has no temperature. Evaluate with --calibrate-on=VALIDATION_FILE."
            ) from None
    if not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise UserError(f"--temperature={text} must be a positive number: logits are divided by it.")
    return float(value)


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Labels."""
    if config_argv:
        raise UserError(f"{config_argv[0]}: predict takes its config from --run.")
    if (args.input is None) == (args.text is None):
        raise UserError("Give either records (--input=FILE) or a text (--text=...).")
    for flag, other in (("output", "input"), ("columns", "input"), ("json", "text")):
        if getattr(args, flag) and getattr(args, other) is None:
            raise UserError(f"--{flag} goes with --{other}.")
    if args.batch_size < 1:
        raise UserError(f"--batch-size={args.batch_size} must be at least 1.")
    temperature = read_temperature(args.temperature)
    from jaxlm import run_loading
    from jaxlm.infer.predict import classifier_of

    loaded = run_loading.load_run(args.run, args.step)
    classifier = classifier_of(loaded)
    if args.text is not None:
        return label_texts(args, classifier, temperature)
    return label_file(args, classifier, temperature, trained_columns(loaded.config.data), loaded.step)


def label_texts(args: argparse.Namespace, classifier: Classifier, temperature: float) -> int:
    """Labels the texts of --text."""
    from jaxlm.infer.predict import Text, predict_texts

    texts = [Text({"text": text}, text, "--text") for text in map(read_prompt, args.text)]
    found: list[dict[str, Any]] = []
    summary = predict_texts(classifier, texts, found.extend, temperature=temperature)
    if summary.errors:
        raise UserError(summary.errors[0])
    for line in found:
        print(json.dumps(line, ensure_ascii=False) if args.json else "\n".join(shown(line, len(found) > 1)))
    return 0


def shown(line: dict[str, Any], with_text: bool) -> list[str]:
    """What is printed of a text: what is predicted, and every label with its probability, most probable first."""
    predicted = line["predicted"]
    said = ", ".join(predicted) or "(no label)" if isinstance(predicted, list) else str(predicted)
    lines = [f"{line['text']!r}: {said}" if with_text else said]
    probabilities = line.get("probabilities", {})
    width = max(map(len, probabilities), default=0)
    for name, p in sorted(probabilities.items(), key=lambda item: -item[1]):
        lines.append(f"  {name:<{width}}  {p:8.4%}  {'#' * round(40 * p)}".rstrip())
    return lines


def label_file(
    args: argparse.Namespace, classifier: Classifier, temperature: float, columns: str, step: int
) -> int:
    """Labels the records of --input."""
    from jaxlm.infer.predict import predict_file, predict_texts, read_texts

    texts = read_texts(args.input, args.columns or columns)
    options: dict[str, Any] = {"temperature": temperature, "batch_size": args.batch_size}
    if args.output is None:

        def write(lines: list[dict[str, Any]]) -> None:
            print(*(json.dumps(line, ensure_ascii=False) for line in lines), sep="\n", flush=True)

        summary = predict_texts(classifier, texts, write, **options)
    else:
        settings = {"run": os.path.abspath(args.run), "step": step}
        summary = predict_file(
            classifier, texts, args.output, settings=settings, on_progress=show_progress, **options
        )
    report(summary, args.output or "stdout", classifier.max_tokens)
    return BAD_RECORDS if summary.errors else 0


def report(summary: Summary, where: str, max_tokens: int) -> None:
    """Says on stderr what was done, and what was not."""
    for error in summary.errors[:NUM_ERRORS]:
        print(f"jaxlm: {error}", file=sys.stderr)
    if (more := len(summary.errors) - NUM_ERRORS) > 0:
        print(f"jaxlm: and {more:,} more.", file=sys.stderr)
    counts = "".join(f", {num:,} {name}" for name, num in sorted(summary.counts.items()))
    without = f"; {len(summary.errors):,} records without a text" if summary.errors else ""
    cut = f"; {summary.num_truncated:,} cut to {max_tokens} tokens" if summary.num_truncated else ""
    print(f"{where}: {summary.num_texts:,} texts{counts}{without}{cut}", file=sys.stderr)
