"""Turn text files into shards of tokens."""

from __future__ import annotations

import argparse
from typing import Any

from jaxlm.cli.tokenizer import add_reading_arguments
from jaxlm.data.config import EVAL_SPLITS
from jaxlm.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `build` with its flags."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="{build}")
    build = actions.add_parser("build", help="tokenise text; run again to continue after an interruption")
    build.add_argument("--input", nargs="+", required=True, metavar="PATH",
                       help="files, folders, globs, or embedded:topics")  # fmt: skip
    build.add_argument("--output", required=True, metavar="DIR", help="an empty or new folder")
    build.add_argument("--tokenizer", required=True, metavar="PATH",
                       help=".model file, tokenizer.json, or a folder with either")  # fmt: skip
    add_reading_arguments(build)
    build.add_argument("--eval-fraction", type=float, default=0.0, metavar="X",
                       help="share held out for evaluation (default: 0)")  # fmt: skip
    build.add_argument("--eval-split", default="hash", choices=EVAL_SPLITS,
                       help="hold out whole documents, or the tail of each (default: hash)")  # fmt: skip
    build.add_argument("--shard-tokens", type=int, default=None, metavar="N",
                       help="about the size of a shard (default: 16777216)")  # fmt: skip
    build.add_argument(
        "--workers", type=int, default=None, metavar="N", help="processes (default: all processors)"
    )
    build.add_argument("--quiet", action="store_true", help="no progress")


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Runs `jaxlm corpus build`."""
    if config_argv:
        raise UserError(
            f"{config_argv[0]}: `jaxlm corpus` takes no --config; see `jaxlm corpus build --help`."
        )
    if not 0 <= args.eval_fraction < 1:
        raise UserError(f"--eval-fraction={args.eval_fraction} must be in [0, 1).")
    if args.shard_tokens is not None and args.shard_tokens < 1:
        raise UserError(f"--shard-tokens={args.shard_tokens} must be at least 1.")
    from jaxlm.corpus.build import SHARD_TOKENS, build_corpus
    from jaxlm.corpus.split import note_on_split
    from jaxlm.data.tokenizer import load_tokenizer

    manifest = build_corpus(
        args.input,
        args.output,
        load_tokenizer(args.tokenizer),
        text_key=args.text_key,
        document=args.document,
        eval_fraction=args.eval_fraction,
        eval_split=args.eval_split,
        invalid_utf8=args.invalid_utf8,
        shard_tokens=args.shard_tokens or SHARD_TOKENS,
        workers=args.workers,
        progress=False if args.quiet else None,
    )
    for line in summary(args.output, manifest):
        print(line)
    used = manifest["source"]["eval_split"]
    if note := note_on_split(", ".join(args.input), args.eval_split, used, args.eval_fraction):
        print(f"note: {note}")
    return 0


def summary(output: str, manifest: dict[str, Any]) -> list[str]:
    """What a manifest says, in a few lines."""
    lines = [f"{output}: corpus sha256 {manifest['sha256'][:16]}"]
    for name, split in manifest["splits"].items():
        if split["num_documents"]:
            lines.append(
                f"  {name}: {split['num_documents']:,} documents, {split['num_tokens']:,} tokens, "
                f"{split['num_bytes']:,} bytes, {len(split['shards'])} shards"
            )
    for word in ("dropped", "changed"):
        if counts := manifest[word]:
            lines.append(f"  {word}: " + ", ".join(f"{reason} {count:,}" for reason, count in counts.items()))
    return lines
