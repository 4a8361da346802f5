"""Judge a model: perplexity on text, or its answers to held-out records.

jaxlm evaluate --run=runs/mine --window=512 text.txt other.txt
jaxlm evaluate --run=runs/mine --window=512 --max-tokens=2048 --json text.txt
jaxlm evaluate --run=runs/assistant --data=heldout.jsonl --rules=rules.yaml --json=report.json

A FILE is one text, cut into windows that do not overlap; the first token of a window is only context.

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
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jaxlm.cli._evaluate_classifier import FLAGS, add_classifier_arguments, evaluate_labels
from jaxlm.cli.generate import show_progress, trained_columns
from jaxlm.types import UserError

if TYPE_CHECKING:
    from jaxlm.evaluate.instruction import InstructionReport
    from jaxlm.run import LoadedRun

OF_ANSWERS = ("rules", "records", "template")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("--run", required=True, help="workdir of a training, or a folder of import-hf")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the latest)")
    parser.add_argument("--window", type=int, default=512, help="tokens of context at most (default: 512)")
    parser.add_argument("--max-tokens", type=int, help="of each text, from its beginning (default: all)")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="print JSON; with --data: or write it to FILE"
    )
    parser.add_argument("--data", metavar="FILE", help="held-out records")
    parser.add_argument("--columns", help="column map of --data (default: that of the training)")
    parser.add_argument("--max-records", type=int, help="of --data, from its beginning (default: all)")
    parser.add_argument(
        "--rules", metavar="FILE", help="YAML of rules that answers have to keep (extra: eval)"
    )
    parser.add_argument("--records", metavar="FILE", help="JSONL to write every answer and its scores to")
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, help="of an answer (default: 256); a longer one is cut"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="records answered at once (default: 32)")
    parser.add_argument(
        "--template", help="for a run that has none stored, to compare with: alpaca, chat or a Jinja file"
    )
    add_classifier_arguments(parser)
    parser.add_argument("text", nargs="*", metavar="FILE", help="UTF-8 text")


def read_text(path: str) -> str:
    """The text of a file. Errors: UserError that names the file and the byte where it is not UTF-8."""
    from jaxlm.data.files import read_file

    try:
        return read_file(path, "a text file").decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 at byte {error.start:,}: convert it first (iconv -t UTF-8)."
        ) from None


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Evaluates."""
    if config_argv:
        raise UserError(f"{config_argv[0]}: evaluate takes its config from --run.")
    if args.data is not None:
        return evaluate_records(args)
    for flag in ("columns", "max_records", *OF_ANSWERS, *FLAGS):
        if getattr(args, flag):
            raise UserError(f"--{flag.replace('_', '-')} is about records: give some (--data=FILE).")
    if args.json not in (None, "-"):  # of `--json text.txt`
        args.text.insert(0, args.json)
    if not args.text:
        raise UserError("Nothing to evaluate: give text files, or records (--data=FILE).")
    return evaluate_texts(args)


def evaluate_texts(args: argparse.Namespace) -> int:
    """Perplexity of each text."""
    if args.max_tokens is not None and args.max_tokens < 2:
        raise UserError(f"--max-tokens={args.max_tokens} must be at least 2.")
    texts = {path: read_text(path) for path in args.text}
    from jaxlm import run
    from jaxlm.evaluate.perplexity import text_perplexity

    loaded = run.load_run(args.run, args.step)
    model = loaded.config.model
    learned = (model.max_seq_len or loaded.config.data.seq_len) if model.positions == "learned" else None
    if learned is not None and args.window - 1 > learned:
        raise UserError(
            f"--window={args.window} is beyond the {learned} positions of the model. Try --window={learned}."
        )
    for path, text in texts.items():
        found = text_perplexity(
            loaded.lm, loaded.params, loaded.tokenizer, text, window=args.window, max_tokens=args.max_tokens
        )
        if args.json:
            print(json.dumps({"file": path, **found.as_dict()}))
        else:
            print(
                f"{path}: perplexity {found.perplexity:.4g}, loss {found.loss:.4f} nats, {found.bits_per_byte:.4f} "
                f"bits per byte; {found.num_tokens:,} tokens in windows of {args.window}"
            )
    return 0


def evaluate_records(args: argparse.Namespace) -> int:
    """Answers to, or labels of, the records of --data."""
    if args.text:
        raise UserError(f"{args.text[0]}: give records (--data) or texts, not both.")
    for flag in ("max_records", "max_new_tokens", "batch_size"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')}={value} must be at least 1.")
    from jaxlm import run

    loaded = run.load_run(args.run, args.step)
    is_classifier = loaded.config.objective == "classify"
    for flag in OF_ANSWERS if is_classifier else FLAGS:
        if getattr(args, flag):
            raise UserError(
                f"--{flag.replace('_', '-')} is about {'answers' if is_classifier else 'labels'}, and --run={args.run} "
                f"has objective={loaded.config.objective}: leave it out."
            )
    return evaluate_labels(args, loaded) if is_classifier else evaluate_answers(args, loaded)


def evaluate_answers(args: argparse.Namespace, loaded: LoadedRun) -> int:
    """Of an instruction-tuned model."""
    from jaxlm.data.chat import open_template, saved_chat
    from jaxlm.evaluate.instruction import evaluate_instructions
    from jaxlm.evaluate.rules import read_rules
    from jaxlm.infer.chat import run_template
    from jaxlm.infer.instructions import read_answered

    rules = [] if args.rules is None else read_rules(args.rules)
    if args.template is not None and saved_chat(args.run, loaded.tokenizer) is None:
        template = open_template(loaded.tokenizer, args.template)
    elif args.template is not None:
        raise UserError(
            f"--template={args.template}: --run={args.run} has a template of its own, and with another it would be "
            "judged for what it has not learnt. Leave the flag out."
        )
    else:
        template = run_template(args.run, loaded.tokenizer, loaded.config.objective)
    questions, dropped = read_answered(
        args.data, args.columns or trained_columns(loaded.config.data), args.max_records
    )
    report = evaluate_instructions(
        loaded.lm,
        loaded.params,
        loaded.tokenizer,
        template,
        questions,
        rules=rules,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        train_on=loaded.config.instruct.train_on,
        on_progress=show_progress,
    )
    if args.records is not None:
        write_output("--records", args.records, "".join(map(json_line, report.records)))
    about = {"run": args.run, "step": loaded.step, "data": args.data, "template": template.name}
    found = {**about, "dropped": dict(dropped), **report.as_dict()}
    if args.json == "-":
        print(json_line(found), end="")
        return 0
    if args.json is not None:
        write_output("--json", args.json, json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    print("\n".join(lines(report, f"{args.run}, step {loaded.step}, template {template.name}", dropped)))
    return 0


def json_line(value: Mapping[str, Any]) -> str:
    """One line of JSONL."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def write_output(flag: str, path: str, content: str) -> None:
    """Writes a file that a flag names."""
    from jaxlm.data.files import write_atomic

    try:
        write_atomic(path, content.encode("utf-8", "replace"))
    except UserError as error:
        raise UserError(f"{flag}: {error}") from None


def short(text: str, width: int = 100) -> str:
    """One line of a text, for a terminal."""
    return repr(text if len(text) <= width else text[: width - 3] + "...")


def lines(report: InstructionReport, model: str, dropped: Mapping[str, int]) -> Iterator[str]:
    """What is printed."""
    yield f"model               {model}"
    left_out = [f"{number:,} dropped: {reason.replace('_', ' ')}" for reason, number in dropped.items()]
    if report.too_long:
        left_out.append(
            f"{len(report.too_long):,} longer than the model's positions, first {report.too_long[0]}"
        )
    yield "; ".join([f"records             {report.num_records:,}", *left_out])
    yield f"exact match         {report.exact_match:.4f}"
    yield f"token F1            {report.token_f1:.4f}"
    yield f"ROUGE-L             {report.rouge_l:.4f}"
    if report.corpus is None:
        yield "chrF, BLEU          not computed: sacrebleu is missing (pip install 'jaxlm[eval]')"
    else:
        yield f"chrF                {report.corpus['chrf']:.2f}  ({report.corpus['chrf_signature']})"
        yield f"BLEU                {report.corpus['bleu']:.2f}  ({report.corpus['bleu_signature']})"
    loss = report.as_dict()
    yield (
        f"answer loss         {loss['answer_loss']:.4f} nats per token, perplexity {loss['answer_perplexity']:.4g} "
        f"({loss['num_answer_tokens']:,} tokens of answers)"
    )
    yield (
        f"length              {report.mean_tokens:.1f} tokens, {report.mean_reference_tokens:.1f} of the answers wanted"
    )
    yield f"stopped by itself   {report.stop_rate:.1%} within {report.max_new_tokens} tokens"
    for rule in report.rules:
        if rule.pass_rate is None:
            yield f"rule                {rule.name}: about no record"
            continue
        yield f"rule                {rule.name}: {rule.num_passed:,} of {rule.num_records:,} ({rule.pass_rate:.1%})"
        for example in rule.examples:
            reasons = "; ".join(example["reasons"])
            yield f"  {short(example['instruction'], 60)} -> {short(example['answer'])}: {reasons}"
    if (same := report.consistency) is not None:
        found = same.as_dict()
        yield (
            f"consistency         {same.num_agreeing:,} of {same.num_groups:,} groups of rewordings get one answer "
            f"({found['agreement']:.1%}); {found['pairwise_agreement']:.1%} of their pairs"
        )
