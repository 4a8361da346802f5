"""The flags of `jaxlm plan --config=...` itself, and what it prints."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from collections.abc import Sequence

from jaxlm.cli._plan_mixture import config_mixture, pairs, unknown_sizes
from jaxlm.cli._plan_output import emit
from jaxlm.plan import cost, prices
from jaxlm.plan.mixture_report import mixture_report
from jaxlm.plan.report import Report
from jaxlm.plan.run_plan import ATTENTION_FLOPS, plan_run
from jaxlm.plan.slices import DEFAULT_CHIPS, RunPlan
from jaxlm.run import RunConfig, parse, resolve
from jaxlm.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `jaxlm plan` itself."""
    parser.add_argument(
        "--chip", default=",".join(DEFAULT_CHIPS), help="kinds of chips, the first first (%(default)s)"
    )
    parser.add_argument(
        "--num-chips", type=int, help="how many of each; default: the smallest slice that it fits on"
    )
    parser.add_argument(
        "--days", type=float, default=30.0, help="how many chips are done in so many (default: %(default)g)"
    )
    parser.add_argument(
        "--mfu", help="share of the peak that is reached: low,high; default: as predicted, 0.3,0.5 on GPUs"
    )
    parser.add_argument(
        "--attention-flops",
        default="half",
        metavar="HOW",
        help="; ".join(f"{name}: {what}" for name, what in ATTENTION_FLOPS.items()) + " (default: half)",
    )
    parser.add_argument("--source-tokens", metavar="SOURCE=N,...", help="tokens that these sources have")
    add_price_arguments(parser)
    parser.add_argument(
        "--pue", type=float, default=1.0, help="power drawn by the data centre per watt of its chips"
    )


def add_price_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that say which price of a chip-hour is taken."""
    parser.add_argument("--commitment", default="on-demand", help=f"one of {', '.join(prices.COMMITMENTS)}")
    parser.add_argument("--provider", help="take the prices of this one")
    parser.add_argument(
        "--price", type=float, metavar="USD", help="dollars per chip-hour, in place of the tables'"
    )
    parser.add_argument("--prices", metavar="FILE", help="prices of your own, in the YAML of hardware.yaml")


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Plans the run of a config."""
    if not config_argv:
        raise UserError("Give what to plan: --config=NAME_OR_PATH, or a command; see `jaxlm plan --help`.")
    cfg, notes = completed(resolve(parse(config_argv)))
    given = config_name(config_argv)
    wanted = RunPlan(
        chips=tuple(name.strip() for name in args.chip.split(",")),
        num_chips=None if args.num_chips is None else cost.check_num_chips(args.num_chips),
        mfus=None if args.mfu is None else mfus(args.mfu),
        attention_flops=args.attention_flops,
        prices=prices.load(args.prices),
        price_usd=args.price,
        commitment=args.commitment,
        provider=args.provider,
        within_days=cost.positive("--days", args.days),
        pue=cost.Extras(pue=args.pue).pue,
        today=datetime.date.today(),
    )
    report = plan_run(cfg, given, wanted)
    mixture = sources(cfg, args.source_tokens)
    emit(
        dataclasses.replace(
            report,
            tables=[*report.tables[:2], *mixture.tables, *report.tables[2:]],
            warnings=[*report.warnings, *mixture.warnings],
            notes=[*notes, *report.notes, *mixture.notes],
            data={**report.data, "mixture": mixture.data},
        ),
        args,
    )
    return 0


def sources(cfg: RunConfig, tokens: str | None) -> Report:
    """Shares and epochs of the sources; tokens: of --source-tokens."""
    table, _ = config_mixture(cfg, None)
    if tokens is not None:
        table = table.with_tokens(pairs("--source-tokens", tokens, table.names))
    notes = unknown_sizes(table, cfg.objective == "pretrain")
    return mixture_report(table, max_epochs=None, need=False, check_published=False, notes=notes)


def mfus(text: str) -> tuple[float, float]:
    """(low, high) of --mfu; one number is both."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not 1 <= len(found) <= 2 or found != sorted(found):
        raise UserError(f"--mfu={text} has to be low,high, such as 0.3,0.5, or one number.")
    for mfu in found:
        cost.check_mfu(mfu)
    return found[0], found[-1]


def config_name(config_argv: Sequence[str]) -> str:
    """As --config= gives it."""
    return next(arg.partition("=")[2] for arg in config_argv if arg.startswith("--config="))


def completed(cfg: RunConfig) -> tuple[RunConfig, list[str]]:
    """The config with sizes that its data would bring filled in, and what was assumed for them.

    Errors: UserError where the vocabulary cannot be known before the data is read.
    """
    notes, model = [], cfg.model
    if model.vocab_size is None:
        if cfg.tokenizer.path is not None or cfg.tokenizer.kind == "char":
            raise UserError(
                "model.vocab_size is unset, and the tokenizer's is known only once it is read: give it, for example "
                "--config.model.vocab_size=32000."
            )
        model = dataclasses.replace(model, vocab_size=cfg.tokenizer.vocab_size)
        notes.append(f"Vocabulary: tokenizer.vocab_size={cfg.tokenizer.vocab_size:,}.")
    if cfg.objective == "classify" and model.num_classes is None:
        num, said = 2, "Labels: 2, assumed."
        if cfg.classify.task == "regression":
            num, said = 1, "Labels: one number, of a regression."
        elif cfg.classify.labels:
            num = len(cfg.classify.labels.split(","))
            said = f"Labels: {num} of classify.labels."
        model = dataclasses.replace(model, num_classes=num)
        notes.append(said)
    if cfg.data.packing == "pad":
        notes.append(
            "Rows are counted at their full width: with padding, tokens and FLOPs are at most these."
        )
    return dataclasses.replace(cfg, model=model), notes
