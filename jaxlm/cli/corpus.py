"""Turn raw files (web archives, dumps, books) or text into shards of tokens, and account for them.

jaxlm corpus build --input=notes/ --tokenizer=my.model --output=corpora/notes
jaxlm corpus build --config=corpus_gpt3_like --config.root=data --output=corpora
jaxlm corpus report corpora
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from jaxlm.cli.tokenizer import add_reading_arguments
from jaxlm.data.config import EVAL_SPLITS
from jaxlm.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `build` and `report` with their flags."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="{build,report}")
    build = actions.add_parser(
        "build", help="make shards of text, or of raw files by a config; again to continue"
    )
    build.add_argument("--input", nargs="+", metavar="PATH",
                       help="without --config: files, folders, globs, or embedded:topics")  # fmt: skip
    build.add_argument("--output", required=True, metavar="DIR", help="an empty or new folder")
    build.add_argument("--tokenizer", metavar="PATH",
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
    show = actions.add_parser(
        "report", help="what became of the raw files of a corpus that was built by a config"
    )
    show.add_argument("output", metavar="DIR")
    show.add_argument("--json", action="store_true", help="the whole report, with examples")


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Runs `jaxlm corpus build` or `jaxlm corpus report`."""
    if args.action == "report":
        if config_argv:
            raise UserError(f"{config_argv[0]}: `jaxlm corpus report` takes a folder and no --config.")
        return _report(args)
    if config_argv:
        return _build_raw(args, config_argv)
    if not args.input or not args.tokenizer:
        raise UserError(
            "`jaxlm corpus build` needs --input and --tokenizer (text), or --config=NAME (raw files, such as "
            "--config=corpus_gpt3_like). See `jaxlm corpus build --help`."
        )
    return _build_text(args)


def _report(args: argparse.Namespace) -> int:
    from jaxlm.corpus.raw import report

    found = report.read_report(args.output)
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return 0
    for line in report.lines(found):
        print(line)
    print(f"{args.output}/{report.PAGE} shows it with plots and examples.")
    return 0


def _build_raw(args: argparse.Namespace, config_argv: list[str]) -> int:
    flags = {"--input": args.input, "--tokenizer": args.tokenizer, "--shard-tokens": args.shard_tokens}
    for flag, value in {**flags, "--eval-fraction": args.eval_fraction}.items():
        if value:
            raise UserError(
                f"{flag} does not go with --config: the config has a key for it (`jaxlm corpus --help`)."
            )
    from jaxlm.corpus.raw import config, report

    argv = list(config_argv)
    if args.workers is not None:
        argv.append(f"--config.executor.workers={args.workers}")
    cfg = config.resolve(config.parse(argv))
    try:
        from jaxlm.corpus.raw import pipeline
    except ImportError as error:
        raise UserError(
            f"Raw files need a package that is not installed ({error.name}): pip install 'jaxlm[corpus]'."
        ) from None
    found = pipeline.build(cfg, args.output, progress=False if args.quiet else None)
    if found is not None:
        for line in report.lines(found):
            print(line)
        print(
            f"{args.output}: {len(found['sources'])} corpora; {args.output}/{report.PAGE} shows what became of all."
        )
    return 0


def _build_text(args: argparse.Namespace) -> int:
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
