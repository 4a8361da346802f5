"""Train a tokenizer, or see how well one suits a text."""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jaxlm.data.config import DOCUMENTS, INVALID_UTF8, TOKENIZER_KINDS
from jaxlm.types import UserError

if TYPE_CHECKING:
    from jaxlm.corpus.tokenizer_report import Report, Stats

WIDTH = 100
_RATIOS = ("bytes\n/token", "tokens\n/word", "unknown", "in\nbytes", "pieces\nused")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `train` and `report` with their flags."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="{train,report}")
    train = actions.add_parser("train", help="learn a vocabulary from text")
    train.add_argument("--input", nargs="+", required=True, metavar="PATH",
                       help="files, folders, globs, or embedded:topics")  # fmt: skip
    train.add_argument("--output", required=True, metavar="FILE.model", help="where the model file goes")
    train.add_argument("--kind", default="bpe", choices=TOKENIZER_KINDS, help="default: bpe")
    train.add_argument("--vocab-size", type=int, default=8000, metavar="N",
                       help="pieces, 259 reserved ones included (default: 8000)")  # fmt: skip
    report = actions.add_parser(
        "report", help="bytes per token, unknown share, round trip, per file and script"
    )
    report.add_argument("--tokenizer", required=True, metavar="PATH",
                        help=".model file, tokenizer.json, or a folder with either")  # fmt: skip
    report.add_argument("input", nargs="+", metavar="PATH", help="files, folders, globs, or embedded:topics")
    report.add_argument("--json", action="store_true", help="print JSON instead of tables")
    for action in (train, report):
        add_reading_arguments(action)
        action.add_argument("--max-bytes", type=float, default=50e6, metavar="N",
                            help="read about this much, evenly from all files (default: 50e6)")  # fmt: skip


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that say how files become documents."""
    parser.add_argument("--text-key", default="text", metavar="KEY", help="key or column of the text")
    parser.add_argument("--document", default="file", choices=DOCUMENTS,
                        help="what one document of a .txt file is (default: file)")  # fmt: skip
    parser.add_argument("--invalid-utf8", default="strict", choices=INVALID_UTF8,
                        help="stop there, replace it, or skip the document (default: strict)")  # fmt: skip


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Runs `jaxlm tokenizer train` or `jaxlm tokenizer report`."""
    if config_argv:
        raise UserError(
            f"{config_argv[0]}: `jaxlm tokenizer` takes no --config; see `jaxlm tokenizer --help`."
        )
    if not args.max_bytes >= 1:
        raise UserError(f"--max-bytes={args.max_bytes:g} must be at least 1.")
    return _train(args) if args.action == "train" else _report(args)


def _texts(args: argparse.Namespace) -> Iterator[tuple[str, Iterator[str]]]:
    """(file, its documents), cut so that all files together give about --max-bytes."""
    from jaxlm.corpus.inputs import find_inputs, plan_units
    from jaxlm.corpus.readers import read_documents
    from jaxlm.corpus.text import ReadOptions, Tally

    options = ReadOptions(args.text_key, args.document, args.invalid_utf8)
    files = find_inputs(args.input, Tally())
    share = min(1.0, args.max_bytes / max(1, sum(file.num_bytes for file in files)))
    for file in files:
        parts = [part for unit in plan_units([file], options) for part in unit]
        quotas = [share * part.num_bytes if share < 1 else None for part in parts]
        documents = (_at_most(read_documents(p, options, Tally()), q) for p, q in zip(parts, quotas))
        yield file.name, itertools.chain.from_iterable(documents)


def _at_most(texts: Iterator[str], quota: float | None) -> Iterator[str]:
    for text in texts:
        if quota is None:
            yield text
            continue
        yield text[: max(1, int(quota))]
        quota -= len(text)
        if quota <= 0:
            return


def _train(args: argparse.Namespace) -> int:
    from jaxlm.data.files import make_folder, write_atomic
    from jaxlm.data.tokenizer import NUM_RESERVED, SentencePieceTokenizer
    from jaxlm.data.tokenizer_training import train_tokenizer
    from jaxlm.paths import is_local

    if args.kind != "char" and args.vocab_size <= NUM_RESERVED:
        raise UserError(
            f"--vocab-size={args.vocab_size} must be above {NUM_RESERVED}: 256 bytes, <unk>, <s> "
            "and </s> are in it."
        )
    if not args.output:
        raise UserError("--output is empty: name a file, such as my.model.")
    if os.path.isdir(args.output):
        raise UserError(f"--output={args.output} is a folder: name the file in it, such as my.model.")
    if is_local(args.output):  # a minute of training later would be late
        make_folder(os.path.dirname(args.output) or ".")
    texts = itertools.chain.from_iterable(texts for _, texts in _texts(args))
    model = train_tokenizer(texts, args.kind, args.vocab_size)
    write_atomic(args.output, model)
    tokenizer = SentencePieceTokenizer(model)
    print(f"{args.output}: {args.kind}, {tokenizer.vocab_size:,} pieces, sha256 {tokenizer.sha256}")
    return 0


def _report(args: argparse.Namespace) -> int:
    from jaxlm.corpus.tokenizer_report import Report
    from jaxlm.data.tokenizer import load_tokenizer

    report = Report(load_tokenizer(args.tokenizer))
    for name, texts in _texts(args):
        report.add(name, texts)
    if not report.total.documents:
        raise UserError(f"{', '.join(args.input)}: no document to report on.")
    if args.json:
        print(json.dumps(report.to_json(), indent=1, ensure_ascii=False))
    else:
        _print_tables(args.tokenizer, report)
    return 0


def _print_tables(path: str, report: Report) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    console = Console(width=min(WIDTH, console.width) if console.is_terminal else WIDTH)
    about = report.to_json()["tokenizer"]
    console.print(
        f"{escape(path)}\n{about['vocab_size']:,} pieces, normaliser {about['normalizer']}, "
        f"sha256 {about['sha256'][:16]}...",
        highlight=False,
    )
    files = _table("file", "docs", "MB", *_RATIOS)
    files.add_column("exact")
    rows = list(report.files.items())
    for name, stats in rows[:50] + ([("all", report.total)] if len(rows) > 1 else []):
        files.add_row(
            escape(name), f"{stats.documents:,}", *_cells(stats), "no" if stats.changed_documents else "yes"
        )
    console.print(files)
    console.print(f"Round trip, decode(encode(text)): {report.total.round_trip}.", highlight=False)
    scripts = _table("script", "words", "MB", *_RATIOS)
    for name, stats in report.scripts().items():
        scripts.add_row(name, f"{stats.words:,}", *_cells(stats))
    console.print(scripts)


def _table(first: str, *columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold", min_width=16, max_width=24)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _cells(stats: Stats) -> list[str]:
    row = stats.to_json()
    return [
        f"{row['bytes'] / 1e6:.2f}",
        f"{row['bytes_per_token']:.2f}",
        f"{row['tokens_per_word']:.2f}",
        *(f"{row[key]:.2%}" for key in ("unknown_share", "byte_fallback_share", "vocabulary_use")),
    ]
