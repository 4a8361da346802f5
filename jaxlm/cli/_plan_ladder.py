"""Write the configs of a scaling ladder: small runs that differ in size and tokens, for `jaxlm plan scaling`.

jaxlm plan ladder --config=quickstart --flops=1e14,3e14,1e15 --output=ladder
jaxlm plan ladder --config=my.py --sizes=2e6,5e6,12e6 --tokens-per-param=5,20,80 --output=ladder --flops-per-s=1e12
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from jaxlm.cli._plan_output import emit
from jaxlm.config_flags import find_config
from jaxlm.plan.ladder import Base, ladder_report, make_ladder, settings, write_ladder
from jaxlm.runconfig import RunConfig, parse, resolve
from jaxlm.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `jaxlm plan ladder`."""
    parser.add_argument(
        "--flops", metavar="C,C,...", help="budgets: each is spent at every --tokens-per-param"
    )
    parser.add_argument("--sizes", metavar="N,N,...", help="parameters, in place of --flops")
    parser.add_argument(
        "--tokens-per-param", default="5,20,80", metavar="R,R,...", help="tokens for each parameter (5,20,80)"
    )
    parser.add_argument("--output", metavar="FOLDER", help="new or empty; gets the configs and run.sh")
    parser.add_argument(
        "--flops-per-s", type=float, metavar="F", help="that a run reaches: adds the time it takes"
    )


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Runs `jaxlm plan ladder`."""
    if not config_argv:
        raise UserError("Give the config that the ladder varies: --config=NAME_OR_PATH.")
    if not args.output:
        raise UserError("Give a folder for the configs: --output=FOLDER.")
    if (args.flops is None) == (args.sizes is None):
        raise UserError("Give --flops=C,C,... or --sizes=N,N,...: either budgets or sizes make the rungs.")
    if args.flops_per_s is not None and not 0 < args.flops_per_s < float("inf"):
        raise UserError(f"--flops-per-s={args.flops_per_s:g} must be positive and finite.")
    base = _base(config_argv)
    rungs = make_ladder(
        base,
        flops=_numbers("--flops", args.flops),
        sizes=_numbers("--sizes", args.sizes),
        ratios=_numbers("--tokens-per-param", args.tokens_per_param),
    )
    for rung in rungs:
        flags = [f"--config.{key}={value}" for key, value in settings(base, rung).items()]
        try:
            resolve(parse([*base.argv, *flags]))
        except UserError as error:
            raise UserError(f"rung {rung.name}: {error}") from None
    folder = Path(args.output)
    write_ladder(base, rungs, folder)
    emit(ladder_report(base, rungs, folder, args.flops_per_s), args)
    return 0


def _numbers(flag: str, text: str | None) -> list[float]:
    """`1e15,2e15` -> numbers. Errors: UserError for what is none, is not positive, or is there twice."""
    if text is None:
        return []
    found = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            raise UserError(
                f"{flag}={text}: {part.strip()!r} is no number. Write {flag}=1e15,2e15."
            ) from None
        if not 0 < value < float("inf"):
            raise UserError(f"{flag}={text}: {part.strip()} must be positive and finite.")
        if value in found:
            raise UserError(f"{flag}={text}: {part.strip()} is there twice.")
        found.append(value)
    return found


def _base(config_argv: list[str]) -> Base:
    """Reads the base config, as a run would."""
    cfg = resolve(parse(config_argv))
    if cfg.objective != "pretrain":
        raise UserError(
            f"objective={cfg.objective!r}: the law is of pretraining. Give a config that pretrains."
        )
    if cfg.init_from is not None:
        raise UserError(
            f"init_from={cfg.init_from}: runs of a ladder start from random weights. Leave it unset."
        )
    if not cfg.train.eval_batches:
        raise UserError(
            "train.eval_batches=0: the law is of held-out losses. Try --config.train.eval_batches=8."
        )
    argv = [_absolute(flag) for flag in config_argv]
    if cfg.train.profile_steps is not None:  # may lie beyond the end of a short rung
        argv.append("--config.train.profile_steps=None")
    return Base(
        argv=tuple(argv),
        model=replace(cfg.model, vocab_size=_vocab_size(cfg)),
        optimizer=cfg.optimizer,
        batch_size=cfg.data.global_batch_size,
        seq_len=cfg.data.seq_len,
        num_steps=cfg.train.num_steps,
    )


def _vocab_size(cfg: RunConfig) -> int:
    """That of the config, else of the tokenizer it trains."""
    if cfg.model.vocab_size is not None:
        return cfg.model.vocab_size
    if cfg.tokenizer.path is not None or cfg.tokenizer.kind == "char":
        raise UserError(
            "model.vocab_size is unset and not known before the tokenizer is read, so parameters cannot be counted. "
            "Give --config.model.vocab_size=..., at least as many as it has ids."
        )
    return cfg.tokenizer.vocab_size


def _absolute(flag: str) -> str:
    """`--config=PATH` with the whole path, so that a rung finds it from any folder; a name stays a name."""
    name = flag.removeprefix("--config=")
    if name == flag:
        return flag
    path, colon, arg = name.partition(":")
    found = find_config(path)
    is_path = "/" in path or path.endswith((".py", ".json"))
    return f"--config={found.resolve()}{colon}{arg}" if is_path and Path(path).exists() else flag
