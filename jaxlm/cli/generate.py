"""Continue prompts with a trained model.

jaxlm generate --run=runs/quickstart --prompt="The function returns" --top-p=0.9 --max-new-tokens=100
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from jaxlm.types import UserError


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `generate` and `next-token` share."""
    parser.add_argument("--run", required=True, help="workdir of a training")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the latest)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 picks the most probable token")
    parser.add_argument("--top-k", type=int, help="keep the k most probable tokens")
    parser.add_argument("--top-p", type=float, help="keep the most probable tokens with this share")
    parser.add_argument("--min-p", type=float, help="keep tokens this many times as probable as the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    add_sampling_arguments(parser)
    parser.add_argument("--prompt", action="append", help="text to continue; may be repeated; - reads stdin")
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
    prompts = [sys.stdin.read() if text == "-" else text for text in args.prompt or [""]]
    from jaxlm import run
    from jaxlm.infer.config import SamplingConfig
    from jaxlm.infer.text import generate_text

    sampling = dict(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, min_p=args.min_p)
    SamplingConfig(**sampling)  # nonsense is refused before the model is loaded
    loaded = run.load_run(args.run, args.step)
    prompts = [prompt for prompt in prompts for _ in range(args.num_samples)]
    stream = len(prompts) == 1 and not args.no_stream and not args.json

    def show(row: int, text: str) -> None:
        print(text, end="", flush=True)

    if stream:
        print(prompts[0], end="", flush=True)
    found = generate_text(
        loaded.lm,
        loaded.params,
        loaded.tokenizer,
        prompts,
        max_new_tokens=args.max_new_tokens,
        stop=args.stop,
        on_text=show if stream else None,
        seed=args.seed,
        **sampling,
    )
    if stream:
        print()
    elif args.json:
        for one in found:
            print(json.dumps(dataclasses.asdict(one), ensure_ascii=False))
    else:
        print("\n\n".join(one.prompt + one.text for one in found))
    return 0
