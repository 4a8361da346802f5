"""The part of `jaxlm evaluate` that is about the answers of an instruction-tuned model."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from jaxlm.cli._evaluate_output import json_line, write_json, write_output
from jaxlm.cli.generate import show_progress, trained_columns
from jaxlm.types import UserError

if TYPE_CHECKING:
    from jaxlm.evaluate.instruction import InstructionReport
    from jaxlm.run_loading import LoadedRun

FLAGS = ("rules", "records", "template")


def add_answer_arguments(parser: argparse._ActionsContainer) -> None:
    """Flags for --data of an instruction-tuned run."""
    parser.add_argument(
        "--rules", metavar="FILE", help="YAML of rules that answers have to keep (extra: eval)"
    )
    parser.add_argument("--records", metavar="FILE", help="JSONL to write every answer and its scores to")
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, help="of an answer (default: 256); a longer one is cut"
    )
    parser.add_argument(
        "--template", help="for a run that has none stored, to compare with: alpaca, chat or a Jinja file"
    )


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
    if write_json(args.json, found):
        return 0
    print("\n".join(lines(report, f"{args.run}, step {loaded.step}, template {template.name}", dropped)))
    return 0


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
