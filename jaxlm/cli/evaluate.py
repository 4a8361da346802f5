"""Judge a model: perplexity on text, scores on tasks, a suite of small examples, or answers to held-out records.

jaxlm evaluate --run=runs/mine --window=512 text.txt other.jsonl          perplexity and bits per byte
jaxlm evaluate --run=runs/mine --window=512 --stride=256 --set=heldout    of named sets; --list names them
jaxlm evaluate --run=runs/mine --suite --shots=0,3                        questions, translation, summaries
jaxlm evaluate --run=runs/mine --tasks=my_task --task-path=tasks/         lm-evaluation-harness, offline
jaxlm evaluate --run=runs/assistant --data=heldout.jsonl --rules=rules.yaml --json=report.json

A FILE is text, JSON Lines or Parquet (a column `text`, or --text-key), cut into windows. Without --stride they do not
overlap, and the first token of a window is only context; with --stride=S each window scores its last S tokens, so that
all but the first have window - S tokens before them. Standard errors are by document, and by 2,048 tokens of a longer
one.

--data of an instruction-tuned run: greedy answers beside those of the records. Exact match and token F1 (of texts
without case, punctuation and articles), ROUGE-L, chrF and BLEU (extra: eval), the loss per token of the wanted answers,
length, the share of answers that the model ended by itself; rules (the help of --rules); and, where records have a
`group`, how often rewordings of one question get one answer. --data of a classifier: accuracy, F1, calibration, ...

A file of rules (each is about all records, or those whose instruction matches `when`):

  rules:
    - {name: three lines, when: (?i)in three lines, max_lines: 3}
    - {name: Bengali, script: {name: Bengali, min_share: 0.8}, forbidden_words: [sorry]}
    - {name: JSON, json_schema: {type: object, required: [name]}}      # or the path of a schema
    - {name: one sentence, must_match: '[.!?]$', must_not_match: '[.!?].+[.!?]', max_words: 30, max_chars: 200}
"""

from __future__ import annotations

import argparse

from jaxlm.cli import (
    _evaluate_answers,
    _evaluate_classifier,
    _evaluate_suite,
    _evaluate_tasks,
    _evaluate_texts,
)
from jaxlm.types import UserError

PARTS = {
    "data": ("records", ("columns", "max_records", *_evaluate_answers.FLAGS, *_evaluate_classifier.FLAGS)),
    "tasks": ("tasks of lm-evaluation-harness", _evaluate_tasks.FLAGS),
    "suite": ("the suite", _evaluate_suite.FLAGS),
}
"""Flag that asks for something -> (what it is, flags that are about nothing else)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument(
        "--run", required=True, action="append", help="workdir of a training, or a folder of import-hf"
    )
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the latest)")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="print JSON, or write it to FILE"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="rows computed at once (default: 32)")
    parser.add_argument(
        "--mesh",
        metavar="AXIS:SIZE,...",
        help="spread weights and rows over all devices (default: one device)",
    )
    _evaluate_texts.add_text_arguments(parser)
    _evaluate_suite.add_suite_arguments(parser)
    _evaluate_tasks.add_task_arguments(parser)
    group = parser.add_argument_group("records")
    group.add_argument("--data", metavar="FILE", help="held-out records")
    group.add_argument("--columns", help="column map of --data (default: that of the training)")
    group.add_argument("--max-records", type=int, help="of --data, from its beginning (default: all)")
    _evaluate_answers.add_answer_arguments(group)
    _evaluate_classifier.add_classifier_arguments(group)


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Evaluates."""
    if config_argv:
        raise UserError(f"{config_argv[0]}: evaluate takes its config from --run.")
    asked = [part for part in PARTS if getattr(args, part)]
    if len(asked) > 1:
        raise UserError(
            f"--{asked[0]} and --{asked[1]}: give one of them, since each prints a report of its own."
        )
    for part, (what, flags) in PARTS.items():
        for flag in flags if part not in asked else ():
            if getattr(args, flag) not in (None, False):
                way_out = "give some (--data=FILE)" if part == "data" else f"give --{part}, or leave it out"
                raise UserError(f"--{flag.replace('_', '-')} is about {what}: {way_out}.")
    if args.shots is not None and asked not in (["data"], ["suite"]):
        raise UserError("--shots is about --suite, and about --baseline of --data: leave it out.")
    if asked:
        refuse_texts(args, asked[0])
    if asked == ["suite"]:
        return _evaluate_suite.evaluate_suite(args)
    if len(args.run) > 1:
        raise UserError(f"--run={args.run[1]}: only --suite compares several runs. Give one.")
    args.run = args.run[0]
    if asked == ["tasks"]:
        return _evaluate_tasks.evaluate_tasks(args)
    return evaluate_records(args) if asked else _evaluate_texts.evaluate_texts(args)


def refuse_texts(args: argparse.Namespace, part: str) -> None:
    """Errors: UserError for texts beside something else."""
    if args.text:
        what = "records (--data)" if part == "data" else f"--{part}"
        raise UserError(f"{args.text[0]}: give {what} or texts, not both.")
    for flag in _evaluate_texts.FLAGS:
        if getattr(args, flag) not in (None, False):
            raise UserError(
                f"--{flag.replace('_', '-')} is about texts: leave it out, or leave out --{part}."
            )


def evaluate_records(args: argparse.Namespace) -> int:
    """Answers to, or labels of, the records of --data."""
    for flag in ("max_records", "max_new_tokens", "batch_size"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')}={value} must be at least 1.")
    if args.mesh is not None:
        raise UserError("--mesh is about texts, tasks and the suite: records are answered on one device.")
    from jaxlm import run_loading

    loaded = run_loading.load_run(args.run, args.step)
    is_classifier = loaded.config.objective == "classify"
    for flag in _evaluate_answers.FLAGS if is_classifier else (*_evaluate_classifier.FLAGS, "shots"):
        if getattr(args, flag):
            raise UserError(
                f"--{flag.replace('_', '-')} is about {'answers' if is_classifier else 'labels'}, and --run={args.run} "
                f"has objective={loaded.config.objective}: leave it out."
            )
    if is_classifier:
        return _evaluate_classifier.evaluate_labels(args, loaded)
    return _evaluate_answers.evaluate_answers(args, loaded)
