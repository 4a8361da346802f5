"""Fit a scaling law to finished runs, and predict the loss of a larger one.

jaxlm plan scaling runs/ladder/*                               held-out loss over parameters and tokens of these runs
jaxlm plan scaling --csv=points.csv --flops=1e21               the best model and data for a budget of compute
jaxlm plan scaling --csv=chinchilla --params=70e9 --tokens=1.4e12 --plot=law.png
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from jaxlm.cli._plan_output import emit
from jaxlm.config import check_choice, diff
from jaxlm.data.files import reachable
from jaxlm.plan.flops import count_params
from jaxlm.plan.scaling import fit_law
from jaxlm.plan.scaling_points import Points, check_points, find_csv, read_csv, without_highest
from jaxlm.plan.scaling_show import Budget, check_plot, plot, scaling_report
from jaxlm.report.events import EVENTS, last_of_each_step, read_events
from jaxlm.report.missing_run import missing_run
from jaxlm.run_data import with_vocabulary
from jaxlm.runconfig import RunConfig, load_config
from jaxlm.types import UserError
from jaxlm.workdir import CONFIG_FILE

COUNTS = {
    "total": "all parameters, embeddings among them (as in Chinchilla)",
    "non_embedding": "parameters without embeddings and head (as in Kaplan et al., arXiv:2001.08361)",
}

_HELD_OUT = ("sources", "seq_len", "eval_split", "eval_fraction")
"""Keys of `data` that say what is held out, and how much of it a token can see."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `jaxlm plan scaling`."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="workdir of a finished run")
    parser.add_argument(
        "--csv", metavar="FILE", help="params,tokens,loss (or flops for tokens) with a header; or chinchilla"
    )
    parser.add_argument("--flops", type=float, metavar="C", help="predict the best use of this compute")
    parser.add_argument(
        "--params", type=float, metavar="N", help="with --tokens: predict the loss of this model"
    )
    parser.add_argument("--tokens", type=float, metavar="D", help="with --params")
    parser.add_argument("--plot", metavar="FILE.png", help="also draw loss against compute")
    parser.add_argument("--bootstrap", type=int, default=200, metavar="R", help="replicates (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (0)")
    parser.add_argument(
        "--count", default="total", metavar="N", help=f"what N of a run counts: {' or '.join(COUNTS)} (total)"
    )
    parser.add_argument(
        "--drop-highest",
        type=int,
        metavar="K",
        help="leave out the K points with the highest loss (0; 5 for chinchilla, as published)",
    )


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Runs `jaxlm plan scaling`."""
    if config_argv:
        raise UserError(
            f"{config_argv[0]} is not for `jaxlm plan scaling`: give workdirs of runs, or --csv=FILE."
        )
    if bool(args.runs) == bool(args.csv):
        what = "both" if args.runs else "neither"
        raise UserError(
            f"Give RUN... or --csv=FILE ({what} is given): the points come from one or the other."
        )
    check_choice("--count", args.count, COUNTS)
    budget = None
    if any(value is not None for value in (args.flops, args.params, args.tokens)):
        budget = Budget(args.flops, args.params, args.tokens)
    if args.plot:
        check_plot()
    points, warnings = _points(args)
    started = time.perf_counter()
    fit = fit_law(points, args.bootstrap, args.seed)
    seconds = time.perf_counter() - started
    count = COUNTS[args.count] if args.runs else "params of the file"
    report = scaling_report(fit, budget, count=count, seconds=seconds)
    if args.plot:
        plot(fit, budget, args.plot)
    emit(replace(report, warnings=[*warnings, *report.warnings]), args)
    return 0


def _points(args: argparse.Namespace) -> tuple[Points, list[str]]:
    """The points of the command line, and what to warn of."""
    drop, warnings = 0, []
    if args.csv:
        if args.count != "total":
            raise UserError(f"--count={args.count} is of runs: a CSV file says itself what its params count.")
        path, drop = find_csv(args.csv)
        origin = "the published points of Chinchilla's figure 4 (Besiroglu et al., arXiv:2404.10102)"
        points = read_csv(path, origin if args.csv == "chinchilla" else str(path))
    else:
        points, warnings = _points_of_runs(args.runs, args.count)
    drop = drop if args.drop_highest is None else args.drop_highest
    points = without_highest(points, drop)
    check_points(points)
    return points, warnings


def _points_of_runs(runs: list[str], count: str) -> tuple[Points, list[str]]:
    """One point for each run."""
    double = next((run for index, run in enumerate(runs) if run in runs[:index]), None)
    if double:
        raise UserError(f"{double} is given twice: it would count as two runs.")
    params, tokens, losses, configs = [], [], [], []
    for run in runs:
        cfg, N, D, L = _point_of_run(run, count)
        configs.append(cfg)
        params.append(N)
        tokens.append(D)
        losses.append(L)
    points = Points(tuple(runs), tuple(params), tuple(tokens), tuple(losses), f"{len(runs)} runs")
    return points, _differences(runs, configs)


def _point_of_run(run: str, count: str) -> tuple[RunConfig, float, float, float]:
    """(config, N, D, held-out loss) of a workdir. Errors: UserError where it holds no finished, evaluated run."""
    folder = reachable(run)
    if not (folder / CONFIG_FILE).exists():
        raise missing_run(run)
    cfg = load_config(folder / CONFIG_FILE)
    if cfg.objective != "pretrain":
        raise UserError(f"{run} has objective={cfg.objective!r}: the law is of pretraining. Leave it out.")
    if cfg.init_from is not None:
        raise UserError(
            f"{run} started from init_from={cfg.init_from}: its tokens are not all it has learned from."
        )
    if cfg.model.num_experts is not None:
        raise UserError(
            f"{run} has model.num_experts={cfg.model.num_experts}: the law is of dense models, whose every parameter "
            "meets every token. Leave it out."
        )
    events = list(read_events(folder / EVENTS))
    steps = last_of_each_step(events)
    last = max(steps, default=0)
    ended = any(event["event"] == "end" for event in events)
    if not ended or last < cfg.train.num_steps:
        raise UserError(
            f"{run} is not finished: its log ends at step {last} of {cfg.train.num_steps}. A loss before the learning "
            "rate has fallen is no point of the law. Finish it, or leave it out."
        )
    evaluations = last_of_each_step(events, "eval")
    loss = evaluations.get(last, {}).get("eval/loss")
    if loss is None:
        raise UserError(
            f"{run} has no held-out loss (eval/loss) at its last step {last}: the training loss does not stand in for "
            "it. Train with train.eval_batches above 0, and text held out (data.eval_fraction)."
        )
    if not 0 < loss < float("inf"):
        raise UserError(f"{run} has eval/loss={loss} at its last step: it must be positive and finite.")
    N = getattr(count_params(_with_run_vocabulary(run, cfg).model, cfg.data.seq_len), count)
    D = sum(event["train/num_tokens"] for event in steps.values())
    return cfg, float(N), float(D), float(loss)


def _with_run_vocabulary(run: str, cfg: RunConfig) -> RunConfig:
    """The config, with the size of the run's own tokenizer where it leaves the vocabulary to that."""
    if cfg.model.vocab_size is not None:
        return cfg
    from jaxlm.run_loading import run_tokenizer

    tokenizer = run_tokenizer(run)
    if tokenizer is None:
        raise UserError(f"{run} has no tokenizer, and its model.vocab_size is unset: N cannot be counted.")
    return with_vocabulary(cfg, tokenizer)


def _differences(runs: list[str], configs: list[RunConfig]) -> list[str]:
    """What makes losses of two runs incomparable: another tokenizer, other text held out, another context."""
    first, said = configs[0], []
    for run, cfg in zip(runs[1:], configs[1:], strict=True):
        keys = [f"tokenizer.{each.key}" for each in diff(first.tokenizer, cfg.tokenizer)]
        keys += [f"data.{name}" for name in _HELD_OUT if getattr(first.data, name) != getattr(cfg.data, name)]
        if keys:
            said.append(
                f"{run} differs from {runs[0]} in {', '.join(keys)}: losses of other tokens or texts do not compare."
            )
    return said
