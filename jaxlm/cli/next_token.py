"""Show the distribution over the next token, and the probability of whole words.

jaxlm next-token --run=runs/quickstart --prompt="The lion is in the" --candidates=forest,zoo,wild --top=10
"""

from __future__ import annotations

import argparse
import json

from jaxlm.cli.generate import add_sampling_arguments
from jaxlm.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    add_sampling_arguments(parser)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--candidates", default="", help="words to compare, separated by commas")
    parser.add_argument("--top", type=int, default=10, help="tokens to list")
    parser.add_argument("--plot", help="also draw the distribution to this PNG (extra: plot)")


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Prints input tokens -> model -> distribution -> pick."""
    if config_argv:
        raise UserError(f"{config_argv[0]}: next-token takes its config from --run.")
    from jaxlm import run
    from jaxlm.infer.next_token import next_token_distribution

    loaded = run.load_run(args.run, args.step)
    words = [word.strip() for word in args.candidates.split(",") if word.strip()]
    found = next_token_distribution(
        loaded.lm,
        loaded.params,
        loaded.tokenizer,
        args.prompt,
        candidates=words,
        top=args.top,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        seed=args.seed,
    )
    if args.plot:
        draw(found, args.plot)
    if args.json:
        print(json.dumps(found.as_dict(), ensure_ascii=False))
        return 0
    print(f"input tokens  {' | '.join(found.pieces)}")
    print(f"model         {args.run}, step {loaded.step}")
    print(f"distribution  entropy {found.entropy_nats:.3f} nats, {found.entropy_bits:.3f} bits")
    peak = found.top[0].p
    for token in found.top:
        bar = "#" * max(round(40 * token.p / peak), 1)
        print(f"  {token.rank:>3}  {token.piece!r:<20} {token.p:8.4%}  sum {token.cumulative_p:8.4%}  {bar}")
    for word in found.candidates:
        print(
            f"  {word.word!r:<25} as a word {word.p_word:.3e}  as a prefix {word.p_prefix:.3e}  "
            f"among these {word.share:6.2%}"
        )
    print(f"pick          greedy {found.greedy.piece!r}, sampled {found.sampled.piece!r} (seed {args.seed})")
    return 0


def draw(found, path: str) -> None:
    """A bar chart of the most probable tokens, as a PNG. Errors: UserError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install 'jaxlm[plot]'.") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 0.4 * len(found.top) + 1.2))
    tokens = found.top[::-1]
    axes.barh([repr(token.piece) for token in tokens], [token.p for token in tokens], color="#3b6ea5")
    axes.set_xlabel("probability of the next token")
    axes.set_title(f"{found.prompt!r}: {found.entropy_bits:.2f} bits")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
