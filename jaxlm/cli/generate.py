"""Continue prompts, or answer instructions, with a trained model.

jaxlm generate --run=runs/quickstart --prompt="The function returns" --top-p=0.9 --max-new-tokens=100
jaxlm generate --run=runs/assistant --chat --prompt="Name three lions."
jaxlm generate --run=runs/assistant --input=questions.jsonl --output=answers.jsonl --temperature=0

A --prompt is continued as it is; with --chat it is a message, put into the template the run was trained with.
--input has records as they are trained on (an answer may be missing), and is always put into that template. --output
has a line for each record, in order: its fields, response, finish_reason (eos, stop: ended by the model; length: cut)
and num_tokens; or error, for a line that could not be read. The same command continues a run that was killed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from typing import Any

from jaxlm.data.config import DataConfig
from jaxlm.infer.config import SamplingConfig, check_seed
from jaxlm.types import UserError

NUM_ERRORS = 10


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `generate`, `chat` and `next-token` share."""
    parser.add_argument("--run", required=True, help="workdir of a training")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the latest)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 picks the most probable token")
    parser.add_argument("--top-k", type=int, help="keep the k most probable tokens")
    parser.add_argument("--top-p", type=float, help="keep the most probable tokens with this share")
    parser.add_argument("--min-p", type=float, help="keep tokens this many times as probable as the first")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text")


def sampling_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """These flags by the names the functions in infer/ have for them; nonsense is refused before JAX starts."""
    sampling = dict(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, min_p=args.min_p)
    SamplingConfig(**sampling)
    check_seed(args.seed)
    return {**sampling, "seed": args.seed}


def warn_beyond_training(num_tokens: int, context_tokens: int) -> None:
    """Says on stderr that a text is longer than any the model has seen. Learned positions refuse such a text."""
    if num_tokens > context_tokens:
        print(
            f"jaxlm: note: the text has {num_tokens} tokens; the model was trained on {context_tokens} at a "
            "time, and what comes after them is less reliable.",
            file=sys.stderr,
        )


def read_prompt(text: str) -> str:
    """The prompt itself, or stdin for -, without the newline that ends its last line."""
    return sys.stdin.read().removesuffix("\n") if text == "-" else text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    add_sampling_arguments(parser)
    parser.add_argument(
        "--prompt",
        action="append",
        help="text to continue; may be repeated; - reads stdin (default: from nothing)",
    )
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--num-samples", type=int, default=1, help="continuations of each prompt")
    parser.add_argument("--stop", action="append", default=[], help="end before this text; may be repeated")
    parser.add_argument("--no-stream", action="store_true", help="print when all is done")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--chat", action="store_true", help="each prompt is a message, for the run's template"
    )
    parser.add_argument("--system", help="what the model is told before each message")
    parser.add_argument("--input", help="records to answer (.jsonl, .json, .parquet)")
    parser.add_argument("--output", help="JSONL file to write the answers to")
    parser.add_argument("--columns", help="column map of --input (default: that of the training)")
    parser.add_argument("--batch-size", type=int, default=32, help="records answered at once (default: 32)")


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UserError for flags that would be ignored."""
    if (args.input is None) != (args.output is None):
        raise UserError("--input and --output go together: the records, and where their answers are written.")
    if args.input is not None:
        for flag in ("prompt", "json", "no_stream", "chat"):
            if getattr(args, flag):
                raise UserError(f"--{flag.replace('_', '-')} is of no use beside --input: leave it out.")
        if args.num_samples != 1:
            raise UserError(f"--num-samples={args.num_samples}: --input gives one answer to each record.")
    elif args.chat and not args.prompt:
        raise UserError("--chat needs a message: --prompt=...")
    elif args.system is not None and not args.chat:
        raise UserError("--system is part of a dialogue: add --chat.")
    if args.num_samples < 1:
        raise UserError(f"--num-samples={args.num_samples} must be at least 1.")
    if args.batch_size < 1:
        raise UserError(f"--batch-size={args.batch_size} must be at least 1.")


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Generates."""
    if config_argv:
        raise UserError(f"{config_argv[0]}: generate takes its config from --run.")
    check_arguments(args)
    sampling = sampling_arguments(args)
    if args.input is not None:
        return answer_file(args, sampling)
    prompts = [read_prompt(text) for text in args.prompt or [""] for _ in range(args.num_samples)]
    from jaxlm import run_loading
    from jaxlm.infer.text import continue_ids, encode_prompt, generate_text

    loaded = run_loading.load_run(args.run, args.step)
    stream = len(prompts) == 1 and not args.no_stream and not args.json
    # A text is printed with what continues it; a message is no part of its answer.
    starts = [""] * len(prompts) if args.chat else prompts
    unprinted = [starts[0]]  # until there is something to follow it, or an error instead

    def show(row: int, text: str) -> None:
        print(*unprinted, text, sep="", end="", flush=True)
        unprinted.clear()

    model = loaded.lm, loaded.params, loaded.tokenizer
    options = dict(
        max_new_tokens=args.max_new_tokens, stop=args.stop, on_text=show if stream else None,
        batch_size=args.batch_size, **sampling,
    )  # fmt: skip
    if args.chat:
        from jaxlm.infer.chat import message_ids, run_template

        template = run_template(args.run, loaded.tokenizer, loaded.config.objective)
        prompt_ids = [message_ids(template, prompt, args.system) for prompt in prompts]
        found = continue_ids(*model, prompt_ids, stop_ids=template.stop_ids, **options)
        found = [dataclasses.replace(one, prompt=prompt) for one, prompt in zip(found, prompts, strict=True)]
    else:
        prompt_ids = [encode_prompt(loaded.tokenizer, prompt) for prompt in prompts]
        found = generate_text(*model, prompts, **options)
    if stream:
        print(*unprinted, sep="")
    elif args.json:
        for one in found:
            print(json.dumps(dataclasses.asdict(one), ensure_ascii=False))
    else:
        print("\n\n".join(start + one.text for start, one in zip(starts, found, strict=True)))
    longest = max(len(ids) + len(one.tokens) for ids, one in zip(prompt_ids, found, strict=True))
    warn_beyond_training(longest, loaded.context_tokens)
    return 0


def answer_file(args: argparse.Namespace, sampling: dict[str, Any]) -> int:
    """Answers the records of --input into --output."""
    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens={args.max_new_tokens} must be at least 1.")
    if "" in args.stop:
        raise UserError("a stop string is empty, which would stop before the first token: leave it out.")
    from jaxlm import run_loading
    from jaxlm.infer.chat import run_template
    from jaxlm.infer.instructions import answer_questions, read_questions

    loaded = run_loading.load_run(args.run, args.step)
    questions = read_questions(args.input, args.columns or trained_columns(loaded.config.data))
    summary = answer_questions(
        loaded.lm,
        loaded.params,
        loaded.tokenizer,
        run_template(args.run, loaded.tokenizer, loaded.config.objective),
        questions,
        args.output,
        settings={"run": os.path.abspath(args.run), "step": loaded.step},
        system=args.system,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
        stop=args.stop,
        on_progress=show_progress,
        **sampling,
    )
    for error in summary.errors[:NUM_ERRORS]:
        print(f"jaxlm: {error}", file=sys.stderr)
    more = len(summary.errors) - NUM_ERRORS
    if more > 0:
        print(f"jaxlm: and {more:,} more.", file=sys.stderr)
    without = f", {len(summary.errors):,} lines without one" if summary.errors else ""
    print(
        f"{args.output}: {summary.num_answers:,} answers{without}; {summary.stop_rate:.1%} ended by the model."
    )
    warn_beyond_training(summary.longest, loaded.context_tokens)
    return 0


def trained_columns(data: DataConfig) -> str:
    """The column map of a run's sources, where they have one in common."""
    maps = {source.columns for source in data.sources.values()}
    return maps.pop() if len(maps) == 1 else "auto"


def show_progress(num_done: int, num_all: int) -> None:
    """A line that is overwritten, at a terminal."""
    if sys.stderr.isatty():
        print(f"\r{num_done:,} of {num_all:,} answered", end="", file=sys.stderr, flush=True)
        if num_done == num_all:
            print(file=sys.stderr)
