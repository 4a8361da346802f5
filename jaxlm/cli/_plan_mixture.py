"""Tokens, shares and epochs of a mixture of sources, for a budget of tokens.

jaxlm plan mixture gpt3                                  GPT-3's table 2.2, recomputed
jaxlm plan mixture gpt3 --max-epochs=2                   weights that read no source more than twice
jaxlm plan mixture gpt3 --max-epochs=WebText2=2,Wikipedia=2
jaxlm plan mixture gpt3 --tokens=1e12 --need             tokens each source must have to be read once
jaxlm plan mixture mine.yaml --weights=web=60,books=40   your own table; see jaxlm/plan/mixture_file.py
jaxlm plan mixture --config=quickstart --source-tokens=topics=116e3,comments=223e3
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxlm.cli._plan_output import emit
from jaxlm.config import check_choice
from jaxlm.paths import is_local
from jaxlm.plan.mixture import MixtureTable, Source
from jaxlm.plan.mixture_file import names, number, read_mixture
from jaxlm.plan.mixture_report import mixture_report
from jaxlm.types import UserError

if TYPE_CHECKING:
    from jaxlm.run import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `jaxlm plan mixture`."""
    parser.add_argument(
        "mixture", nargs="?", help=f"{', '.join(names())}, or a .yaml file; or give --config=NAME_OR_PATH"
    )
    parser.add_argument(
        "--tokens",
        metavar="N",
        help="budget: tokens to train on, such as 300e9 (default: that of the config or file)",
    )
    parser.add_argument(
        "--max-epochs",
        metavar="N|SOURCE=N,...",
        help="read no source, or these, more often, and print the weights that follow",
    )
    parser.add_argument("--weights", metavar="SOURCE=W,...", help="other weights for these sources")
    parser.add_argument("--source-tokens", metavar="SOURCE=N,...", help="tokens that these sources have")
    parser.add_argument(
        "--need",
        action="store_true",
        help="tokens each source must have to be read --max-epochs times (default: once)",
    )


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Runs `jaxlm plan mixture`."""
    if bool(config_argv) == (args.mixture is not None):
        raise UserError(
            f"Give one mixture: {', '.join(names())}, a .yaml file, or --config=NAME_OR_PATH"
            f"{', not two of them' if config_argv else ''}."
        )
    budget_tokens = None if args.tokens is None else number("--tokens", args.tokens)
    reads_text, notes = True, []
    if config_argv:
        from jaxlm.run import parse, resolve

        cfg = resolve(parse(config_argv))
        reads_text = cfg.objective == "pretrain"
        table, notes = config_mixture(cfg, budget_tokens)
    else:
        table = read_mixture(args.mixture, budget_tokens)
    if args.weights is not None:
        table = table.with_weights(pairs("--weights", args.weights, table.names, zero=True))
    if args.source_tokens is not None:
        table = table.with_tokens(pairs("--source-tokens", args.source_tokens, table.names))
    is_what_if = bool(config_argv or args.max_epochs or args.need) or table != read_mixture(args.mixture)
    report = mixture_report(
        table,
        max_epochs=None if args.max_epochs is None else max_epochs(args.max_epochs, table.names),
        need=args.need,
        check_published=not is_what_if,
        notes=[*notes, *unknown_sizes(table, reads_text)],
    )
    emit(report, args)
    return 0


def pairs(flag: str, text: str, known: Sequence[str], *, zero: bool = False) -> dict[str, float]:
    """`a=60,b=40` -> {"a": 60.0, "b": 40.0}. Errors: UserError for an unknown source, a source twice, no number."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        name = name.strip()
        if not equals:
            raise UserError(f"{flag}={text}: {part!r} is not SOURCE=NUMBER. Try {flag}={known[0]}=1.")
        check_choice(f"{flag}: source", name, known)
        if name in found:
            raise UserError(f"{flag}={text} names {name} twice. Give each source once.")
        found[name] = number(f"{flag}: {name}", value, zero=zero)
    return found


def max_epochs(text: str, known: Sequence[str]) -> dict[str, float]:
    """`--max-epochs`: one number for all sources, or a number for some."""
    if "=" in text:
        return pairs("--max-epochs", text, known)
    return dict.fromkeys(known, number("--max-epochs", text))


def config_mixture(cfg: RunConfig, budget_tokens: float | None) -> tuple[MixtureTable, list[str]]:
    """The mixture of a config, and where its budget and sizes come from: manifests of tokenised corpora."""
    B, T, steps = cfg.data.global_batch_size, cfg.data.seq_len, cfg.train.num_steps
    notes = []
    if budget_tokens is None:
        budget_tokens = number("train.num_steps x data.global_batch_size x data.seq_len", steps * B * T)
        at_most = ", at most: rows are padded" if cfg.data.packing == "pad" else ""
        notes.append(f"Budget: {steps:,} steps of {B:,} x {T:,} tokens{at_most}.")
    sources = []
    for name, source in cfg.data.sources.items():
        weight = number(f"data.sources.{name}.weight_tokens", source.weight_tokens, zero=True)
        tokens = corpus_tokens(source.path) if cfg.objective == "pretrain" else None
        sources.append(Source(name, weight, tokens))
    if any(source.tokens is not None for source in sources):
        notes.append(
            "Tokens of corpora are those of their training splits; a run counts those it can predict, a few less."
        )
    return MixtureTable("data.sources", tuple(sources), budget_tokens), notes


def corpus_tokens(path: str) -> float | None:
    """Training tokens of a folder made by `jaxlm corpus build`; None for all other sources."""
    if not is_local(path) or not Path(path).is_dir():
        return None  # and no NumPy is imported for it
    from jaxlm.data.manifest import MANIFEST, is_corpus, read_manifest

    if not is_corpus(path):
        return None
    try:
        tokens = read_manifest(path)["splits"]["train"]["num_tokens"]
    except (KeyError, TypeError):
        raise UserError(
            f"{path}/{MANIFEST} is damaged: it does not say how many tokens its training split has. Copy it again, or "
            "delete the folder and build it again with `jaxlm corpus build`."
        ) from None
    return number(f"{path}: training tokens", tokens)


def unknown_sizes(table: MixtureTable, reads_text: bool) -> list[str]:
    """The way out where nobody has counted a source's tokens."""
    missing = [source.name for source in table.sources if source.tokens is None]
    if not missing:
        return []
    flag = ",".join(f"{name}=NUMBER" for name in missing)
    build = (
        "build them with `jaxlm corpus build` and give its folders as their paths, or " if reads_text else ""
    )
    return [f"Not counted: {', '.join(missing)}. To know their epochs, {build}say --source-tokens={flag}."]
