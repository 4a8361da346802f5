"""Continue prompts with a trained model.

jaxlm generate --run=runs/quickstart --prompt="The function returns" --top-p=0.9 --max-new-tokens=100
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

from jaxlm.infer.config import SamplingConfig, check_seed
from jaxlm.types import UserError


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `generate` and `next-token` share."""
    parser.add_argument("--run", required=True, help="workdir of a training")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the latest)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 picks the most probable token")
    parser.add_argument("--top-k", type=int, help="keep the k most probable tokens")
    parser.add_argument("--top-p", type=float, help="keep the most probable tokens with this share")
    parser.add_argument("--min-p", type=float, help="keep tokens this many times as probable as the first")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text")
    parser.add_argument("--json", action="store_true", help="print JSON")


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


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Generates."""
    if config_argv:
        raise UserError(f"{config_argv[0]}: generate takes its config from --run.")
    if args.num_samples < 1:
        raise UserError(f"--num-samples={args.num_samples} must be at least 1.")
    prompts = [read_prompt(text) for text in args.prompt or [""] for _ in range(args.num_samples)]
    sampling = sampling_arguments(args)
    from jaxlm import run
    from jaxlm.infer.text import encode_prompt, generate_text

    loaded = run.load_run(args.run, args.step)
    stream = len(prompts) == 1 and not args.no_stream and not args.json
    unprinted = [prompts[0]]  # until there is something to follow it, or an error instead

    def show(row: int, text: str) -> None:
        print(*unprinted, text, sep="", end="", flush=True)
        unprinted.clear()

    found = generate_text(
        loaded.lm,
        loaded.params,
        loaded.tokenizer,
        prompts,
        max_new_tokens=args.max_new_tokens,
        stop=args.stop,
        on_text=show if stream else None,
        **sampling,
    )
    if stream:
        print(*unprinted, sep="")
    elif args.json:
        for one in found:
            print(json.dumps(dataclasses.asdict(one), ensure_ascii=False))
    else:
        print("\n\n".join(one.prompt + one.text for one in found))
    longest = max(len(encode_prompt(loaded.tokenizer, one.prompt)) + len(one.tokens) for one in found)
    warn_beyond_training(longest, loaded.context_tokens)
    return 0
