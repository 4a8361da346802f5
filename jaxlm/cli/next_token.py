"""Show the distribution over the next token, and the probability of whole words.

jaxlm next-token --run=runs/quickstart --prompt="The lion is in the" --candidates=forest,zoo,wild --top=10
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jaxlm.cli.generate import (
    add_sampling_arguments,
    read_prompt,
    sampling_arguments,
    warn_beyond_training,
)
from jaxlm.types import UserError

if TYPE_CHECKING:
    from jaxlm.infer.next_token import NextToken


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    add_sampling_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--prompt", required=True, help="text before the token; - reads stdin")
    parser.add_argument("--candidates", help="words to compare, separated by commas")
    parser.add_argument("--top", type=int, default=10, help="tokens to list")
    parser.add_argument("--plot", help="also draw the distribution to this PNG (extra: plot)")


def split_candidates(text: str | None) -> list[str]:
    """The words of --candidates. Errors: UserError for an empty one."""
    words = [] if text is None else [word.strip() for word in text.split(",")]
    if "" in words:
        raise UserError(
            f"--candidates={text!r} holds an empty word, which has no probability: give words separated by single "
            "commas, such as forest,zoo,wild, or leave the flag out."
        )
    return words


def check_plot(path: str) -> None:
    """Raises UserError where no PNG can be drawn, before the model is loaded."""
    if not path.lower().endswith(".png"):
        raise UserError(f"--plot={path} must end in .png: that is what is drawn. Try --plot={path}.png.")
    if not Path(path).parent.is_dir():
        raise UserError(f"--plot={path}: there is no folder {Path(path).parent}. Make it, or choose another.")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install 'jaxlm[plot]'.") from None


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Prints input tokens -> model -> distribution -> pick."""
    if config_argv:
        raise UserError(f"{config_argv[0]}: next-token takes its config from --run.")
    words, sampling = split_candidates(args.candidates), sampling_arguments(args)
    if args.plot:
        check_plot(args.plot)
    from jaxlm import run_loading
    from jaxlm.infer.next_token import next_token_distribution

    loaded = run_loading.load_run(args.run, args.step)
    prompt = read_prompt(args.prompt)
    found = next_token_distribution(
        loaded.lm, loaded.params, loaded.tokenizer, prompt, candidates=words, top=args.top, **sampling
    )
    if args.plot:
        draw(found, args.plot)
    if args.json:
        print(json.dumps(found.as_dict(), ensure_ascii=False))
    else:
        print("\n".join(lines(found, f"{args.run}, step {loaded.step}", args.seed)))
    warn_beyond_training(len(found.ids), loaded.context_tokens)
    return 0


def lines(found: NextToken, model: str, seed: int) -> Iterator[str]:
    """What is printed: input tokens, the model, the distribution, whole words and the pick."""
    yield f"input tokens  {' | '.join(found.pieces)}"
    yield f"model         {model}"
    yield f"distribution  entropy {found.entropy_nats:.3f} nats, {found.entropy_bits:.3f} bits"
    for token in found.top:
        bar = "#" * max(round(40 * token.p / found.top[0].p), 1)
        yield f"  {token.rank:>3}  {token.piece!r:<20} {token.p:8.4%}  sum {token.cumulative_p:8.4%}  {bar}"
    if found.candidates:
        yield "whole words   the product of p(token | all before it), and of p(the word ends there)"
    for word in found.candidates:
        factors = [f"{piece!r} {p:.2e}" for piece, p in zip(word.pieces, word.token_ps, strict=True)]
        merged = "  (merged with the prompt's last token)" if word.merged else ""
        yield (
            f"  {word.word!r:<25} {word.p_word:.3e}  {word.share:7.2%} among these  "
            f"= {' x '.join([*factors, f'end {word.p_end:.2e}'])}{merged}"
        )
    yield f"sampled from  {found.num_kept} tokens, entropy {found.sampled_entropy_bits:.3f} bits"
    yield f"pick          greedy {found.greedy.piece!r}, sampled {found.sampled.piece!r} (seed {seed})"


def draw(found: NextToken, path: str) -> None:
    """A bar chart of the most probable tokens, as a PNG."""
    import warnings

    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    # A token may hold a $, and letters the font lacks: those are drawn as boxes.
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure, axes = pyplot.subplots(figsize=(7, 0.4 * len(found.top) + 1.2))
        places = range(len(found.top), 0, -1)  # not the pieces: two tokens may look the same
        axes.barh(places, [token.p for token in found.top], color="#3b6ea5")
        axes.set_yticks(places, [repr(token.piece) for token in found.top])
        axes.set_xlabel("probability of the next token")
        axes.set_title(f"{found.prompt!r}: {found.entropy_bits:.2f} bits")
        figure.tight_layout()
        try:
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise UserError(
                f"--plot={path} cannot be written: {error.strerror}. Choose another place."
            ) from None
        finally:
            pyplot.close(figure)
