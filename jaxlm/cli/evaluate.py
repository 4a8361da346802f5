"""Perplexity and bits per byte of a model on text files.

jaxlm evaluate --run=runs/mine --window=512 text.txt other.txt
jaxlm evaluate --run=runs/mine --window=512 --max-tokens=2048 --json text.txt

Each file is one text, cut into windows that do not overlap; the first token of a window is only context.
"""

from __future__ import annotations

import argparse
import json

from jaxlm.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("--run", required=True, help="workdir of a training, or a folder of import-hf")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the latest)")
    parser.add_argument("--window", type=int, default=512, help="tokens of context at most (default: 512)")
    parser.add_argument("--max-tokens", type=int, help="of each text, from its beginning (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("text", nargs="+", metavar="FILE", help="UTF-8 text")


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
