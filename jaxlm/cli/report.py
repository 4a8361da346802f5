"""The page of one or more runs: curves, goodput, samples, configs; one HTML file, or live.

jaxlm report runs/mine                        writes runs/mine/report.html, which needs no network and nothing beside it
jaxlm report runs/a runs/b --html=both.html   runs laid over each other, and what differs between their configs
jaxlm report runs/mine --serve                live, on http://127.0.0.1:PORT, while the run goes on; Ctrl-C ends it
jaxlm report runs/mine --goodput              what the time went to, on the terminal; no page is written
jaxlm report runs/mine --json                 everything but curves, for programs; no page unless --html

Classification tables and instruction scores are those that the run logged, and those that `jaxlm evaluate --data
--json=runs/mine/FILE.json` left in its folder (or in its evaluations/), or that --scores names.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxlm.types import UserError

if TYPE_CHECKING:
    from jaxlm.report.goodput import Goodput
    from jaxlm.report.run_folder import RunFolder

PAGE = "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the --workdir of a training; local or gs://")
    parser.add_argument(
        "--html", metavar="FILE", help=f"default: RUN/{PAGE}; of several runs, {PAGE} in this folder"
    )
    parser.add_argument("--serve", action="store_true", help="a live page on this machine, and no file")
    parser.add_argument("--port", type=int, help="of --serve (default: one that is free)")
    parser.add_argument("--goodput", action="store_true", help="print what the time went to")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--scores",
        action="append",
        default=[],
        metavar="FILE",
        help="JSON of `jaxlm evaluate`; may be repeated",
    )
    parser.add_argument(
        "--lenient", action="store_true", help="leave out lines of a log that are damaged, and say so"
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Errors: UserError for flags that would be ignored."""
    if args.port is not None and not args.serve:
        raise UserError(f"--port={args.port} is of --serve: add it.")
    if args.port is not None and not 0 <= args.port < 65536:
        raise UserError(f"--port={args.port} must be in [0, 65535]; leave it out for one that is free.")
    for flag in ("html", "json", "goodput"):
        if args.serve and getattr(args, flag):
            raise UserError(f"--{flag} is of no use beside --serve: leave one of them out.")


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Reports."""
    if config_argv:
        raise UserError(
            f"jaxlm report takes no {config_argv[0].partition('=')[0]}: each run has its own config."
        )
    check_arguments(args)
    from jaxlm.report.run_folder import open_runs
    from jaxlm.workdir import find_holder

    def is_held(path: str) -> bool:
        holder = find_holder(path)
        return holder is not None and holder.is_certain

    runs = open_runs(args.runs, is_held=is_held, lenient=args.lenient, may_be_empty=args.serve)
    if args.serve:
        return serve_page(runs, args)
    for run in runs:
        run.read()
    if args.html is not None or not (args.json or args.goodput):
        from jaxlm.report.page import plotly_js

        plotly_js()  # a missing package is said before the work
    written = None
    if args.html is not None or not (args.json or args.goodput):
        written = write_page(runs, args)
    if args.json:
        print(json.dumps(as_json(runs, args), ensure_ascii=False, indent=1))
        return 0
    if args.goodput:
        print("\n".join(goodput_lines(runs)))
    else:
        for run in runs:
            print("\n".join(summary_lines(run, len(runs) > 1)))
    if written is not None:
        print(f"wrote {written}: open it in a browser; it needs no network and nothing beside it")
    return 0


def defaults() -> dict[str, Any]:
    """Every key of a config with its default, flat."""
    from jaxlm.config import flatten
    from jaxlm.runconfig import RunConfig

    return flatten(RunConfig())


def write_page(runs: Sequence[RunFolder], args: argparse.Namespace) -> str:
    """Writes the file; whoever opens it meanwhile sees the old page, or the new one."""
    import os

    from jaxlm.data.files import reachable, write_atomic
    from jaxlm.report.page import page_html
    from jaxlm.report.page_data import page_data
    from jaxlm.types import UserError

    path = reachable(args.html) if args.html else runs[0].folder / PAGE if len(runs) == 1 else reachable(PAGE)
    if path.is_dir():
        raise UserError(f"--html={path} is a folder: give the name of a file in it.")
    content = page_html(page_data(runs, defaults=defaults(), score_files=args.scores))
    try:
        write_atomic(path, content)
    except UserError as error:
        raise UserError(f"{error} (--html=FILE)") from None
    return f"{os.fspath(path)} ({len(content) / 1e6:.1f} MB)"


def serve_page(runs: Sequence[RunFolder], args: argparse.Namespace) -> int:
    """Serves until Ctrl-C."""
    from jaxlm.report.page_data import page_data
    from jaxlm.report.serve import LivePage, PageServer, serve

    known = defaults()
    page = LivePage(runs, lambda of: page_data(of, live=True, defaults=known, score_files=args.scores))
    page.data()
    server = PageServer(page, args.port or 0)
    names = ", ".join(run.name for run in runs)
    print(f"{names}: {server.address} (only this machine can reach it; Ctrl-C ends it)", flush=True)
    serve(server)
    return 0


# For people.


def _digits(value: Any, digits: int = 4) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def summary_lines(run: RunFolder, named: bool) -> list[str]:
    """What the first screen of the page says."""
    from jaxlm.report.goodput import goodput
    from jaxlm.report.page_data import summary
    from jaxlm.report.progress import duration, start_screen

    found, account = summary(run.log), goodput(run.log)
    state, about = run.state()
    of = f" of {found['num_steps']:,}" if found["num_steps"] else ""
    step = "none yet" if found["step"] is None else f"{found['step']:,}{of}"
    best = (
        ""
        if found["best_step"] is None
        else f", best {found['best_held_out']:.4f} at step {found['best_step']:,}"
    )
    section = {
        "state": f"{state}: {about}",
        "steps": step,
        "training loss": _digits(found["loss"]) + ("" if found["loss_is_finite"] else "; not finite since"),
        "held-out loss": _digits(found["held_out"]) + best,
        "tokens": "-" if found["tokens"] is None else f"{found['tokens']:,.0f}",
        "time": f"{duration(account.wall_s)} in {account.num_starts} start(s), goodput "
        + ("-" if account.share is None else f"{account.share:.1%}"),
        "throughput": "-" if found["tokens_per_s"] is None else f"{found['tokens_per_s']:,.0f} tokens/s",
    }
    if found["mfu"] is not None:
        section["MFU"] = f"{found['mfu']:.1%}"
    marks = {kind: sum(one == kind for _, one, _, _ in run.log.marks) for kind in ("warning", "bad_step")}
    if any(marks.values()):
        section["look at"] = f"{marks['warning']:,} warning(s), {marks['bad_step']:,} bad step(s)"
    if run.log.texts:
        section["samples"] = f"{len(run.log.texts):,}"
    if run.bad_lines:
        section["left out"] = f"{len(run.bad_lines):,} line(s) of the log; the first: {run.bad_lines[0]}"
    return [start_screen({run.name: section}), *([""] if named else [])]


def goodput_lines(runs: Sequence[RunFolder]) -> list[str]:
    """A table of each run, and of all together."""
    from jaxlm.report.goodput import goodput, total

    accounts = [(run.name, goodput(run.log)) for run in runs]
    if len(accounts) > 1:
        accounts.append(("all together", total([account for _, account in accounts])))
    lines: list[str] = []
    for name, account in accounts:
        lines += [*([""] if lines else []), *account_lines(name, account)]
    return lines


def account_lines(name: str, account: Goodput) -> list[str]:
    """One account."""
    from jaxlm.report.goodput import PARTS
    from jaxlm.report.progress import duration, table

    share = "-" if account.share is None else f"{account.share:.1%}"
    head = f"{name}: goodput {share} of {duration(account.wall_s)} in {account.num_starts} start(s)"
    rows = []
    for part, words in PARTS.items():
        seconds = account.seconds[part]
        recorded = seconds is not None
        rows.append(
            {
                "part": words,
                "time": f"{seconds:,.2f} s" if recorded else "not recorded",
                "share": f"{seconds / account.wall_s:.2%}" if recorded and account.wall_s else "-",
            }
        )
    lines = [head, *table(rows)]
    if account.num_lost_steps:
        lines.append(f"  {account.num_lost_steps:,} step(s) were done again after a restart")
    return lines


def as_json(runs: Sequence[RunFolder], args: argparse.Namespace) -> dict[str, Any]:
    """For programs; NaN and infinities are null."""
    from jaxlm.report.goodput import goodput, total
    from jaxlm.report.page_data import page_data

    accounts = [goodput(run.log) for run in runs]
    everything = total(accounts).as_dict() if len(runs) > 1 else None
    if args.goodput:
        found = [
            {"name": run.name, "path": run.path, **account.as_dict()}
            for run, account in zip(runs, accounts, strict=True)
        ]
        return {"runs": found, "total": everything}
    left_out = ("series", "grid", "attempts")
    shown = page_data(runs, score_files=args.scores)["runs"]
    found = [{key: value for key, value in run.items() if key not in left_out} for run in shown]
    return _finite({"runs": found, "total": everything})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
