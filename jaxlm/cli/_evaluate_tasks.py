"""The part of `jaxlm evaluate` that is about tasks of lm-evaluation-harness."""

from __future__ import annotations

import argparse
import json
from typing import Any

from jaxlm.types import UserError

FLAGS = (
    "task_path", "num_fewshot", "limit", "samples", "apply_chat_template", "gen_kwargs", "max_length", "add_bos_token",
    "prefix_token_id", "allow_download", "trust_task_code",
)  # fmt: skip


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags for --tasks."""
    group = parser.add_argument_group("tasks of lm-evaluation-harness (extra: eval)")
    group.add_argument(
        "--tasks", metavar="NAME,...", help="tasks, groups or tags; * is wild; `list` lists them"
    )
    group.add_argument("--task-path", metavar="FOLDER", help="of YAML files of your own tasks")
    group.add_argument(
        "--num-fewshot", type=int, metavar="N", help="examples shown (default: as the task says)"
    )
    group.add_argument("--limit", type=int, metavar="N", help="questions of each task, from its beginning")
    group.add_argument("--samples", metavar="FILE", help="JSONL to write every question, answer and score to")
    group.add_argument("--apply-chat-template", action="store_true", help="ask as in a dialogue")
    group.add_argument(
        "--gen-kwargs", metavar="KEY=VALUE,...", help="laid over those of the tasks, such as max_gen_toks=64"
    )
    group.add_argument(
        "--max-length", type=int, metavar="TOKENS", help="read at once (default: all that the model can)"
    )
    group.add_argument(
        "--add-bos-token",
        action="store_true",
        help="BOS before every text (default: if the tokenizer wants it)",
    )
    group.add_argument(
        "--prefix-token-id", type=int, metavar="ID", help="for an empty context (default: BOS, else EOS)"
    )
    group.add_argument("--allow-download", action="store_true", help="of data that is not on this machine")
    group.add_argument("--trust-task-code", action="store_true", help="run the Python that task files name, and "
                       "programs that the model writes for tasks about code")  # fmt: skip


def check(args: argparse.Namespace) -> None:
    """Errors: UserError for numbers that are none."""
    for flag in ("limit", "batch_size", "max_length"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')}={value} must be at least 1.")
    if args.num_fewshot is not None and args.num_fewshot < 0:
        raise UserError(f"--num-fewshot={args.num_fewshot} must be 0 or more: the number of examples shown.")


def read_gen_kwargs(text: str | None) -> dict[str, Any] | None:
    """`temperature=0.8,do_sample=true` -> values of JSON, or texts."""
    if text is None:
        return None
    found: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise UserError(
                f"--gen-kwargs={text}: {part!r} is not KEY=VALUE. Try --gen-kwargs=max_gen_toks=64."
            )
        try:
            found[key.strip()] = json.loads(value)
        except ValueError:
            found[key.strip()] = value
    return found


def evaluate_tasks(args: argparse.Namespace) -> int:
    """Scores the run on tasks, and prints lm-eval's numbers."""
    check(args)
    from jaxlm.evaluate import harness

    harness.require()
    if args.tasks == "list":
        print("\n".join(harness.list_tasks(args.task_path)))
        return 0
    options = harness.TaskOptions(
        names=[name.strip() for name in args.tasks.split(",") if name.strip()],
        task_path=args.task_path,
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        apply_chat_template=args.apply_chat_template,
        gen_kwargs=read_gen_kwargs(args.gen_kwargs),
        allow_download=args.allow_download,
        trust_task_code=args.trust_task_code,
    )
    if not options.names:
        raise UserError("--tasks is empty: name tasks, or `--tasks=list` to see what there is.")
    harness.set_offline(not options.allow_download)
    from jaxlm.cli._evaluate_output import show_part
    from jaxlm.run_lm_eval import RunLM

    with harness.opened_tasks(options):
        pass  # what is wrong with the tasks is said before the weights are read
    lm = RunLM(
        args.run,
        step=args.step,
        mesh=args.mesh,
        max_length=args.max_length,
        batch_size=args.batch_size,
        add_bos_token=True if args.add_bos_token else None,
        prefix_token_id=args.prefix_token_id,
        on_progress=show_part,
    )
    results = harness.evaluate_tasks(lm, options)
    write_and_print(args, results, lm)
    return 0


def write_and_print(args: argparse.Namespace, results: dict[str, Any], lm: Any) -> None:
    """The samples, the JSON, and a table."""
    from jaxlm.cli._evaluate_output import json_line, number, table, write_json, write_output
    from jaxlm.evaluate.harness import rows_of

    samples = results.pop("samples", {})
    if args.samples is not None:
        lines = (json_line({"task": task, **one}) for task, found in samples.items() for one in found)
        write_output("--samples", args.samples, "".join(lines))
    found = {"run": args.run, "step": lm.step, **results}
    if write_json(args.json, found):
        return
    print(
        f"{args.run}, step {lm.step}; lm-eval {results.get('lm_eval_version')}, batch size {args.batch_size}"
    )
    rows = [["task", "shots", "filter", "metric", "value", "standard error"]]
    for task, shots, rule, metric, value, error in rows_of(results):
        shown = "-" if shots is None else str(shots)
        rows.append([task, shown, rule, metric, number(value), "-" if error is None else number(error)])
    print(table(rows, right=(1, 4, 5)))
    if lm.num_truncated:
        print(
            f"{lm.num_truncated:,} requests were longer than {lm.max_length:,} tokens and lost their beginning"
        )
