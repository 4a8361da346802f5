"""`jaxlm compile --search`: many ways to run one config on one topology, compiled side by side."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jaxlm.cli._plan_output import emit
from jaxlm.plan import search, search_axes
from jaxlm.plan.search_report import Search, search_report
from jaxlm.plan.search_run import Progress, Stopped, make_folder, run_trials
from jaxlm.plan.topology import Topology
from jaxlm.processes import num_processors
from jaxlm.run import RunConfig, resolve_mesh
from jaxlm.types import UserError

NOTHING_FITS = 4
"""Exit code."""
TRIALS = 24
"""Compiled at most, by default."""
ALONE = ("hlo", "price", "prices", "provider")
"""Flags of a compile that a search has no use for."""


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of --search."""
    group = parser.add_argument_group("to compile many ways to run a config, and compare them")
    group.add_argument("--search", action="store_true", help="try rows x remat x mesh x attention blocks")
    group.add_argument("--search-rows", metavar="N,...", help="of a device at a time: 2,4,8")
    group.add_argument(
        "--search-remat",
        metavar="NAME,...",
        help="full,minimal,q+k+attention (+ joins the names of one list)",
    )
    group.add_argument("--search-mesh", metavar="AXIS:N/...,...", help="fsdp:256,fsdp:64/tensor:4")
    group.add_argument("--search-blocks", metavar="QxKxD,...", help="default,1024x512x256,512x256x128")
    group.add_argument(
        "--search-keep-batch",
        action="store_true",
        help="keep data.global_batch_size: fewer rows at a time are more microbatches (else a smaller batch)",
    )
    group.add_argument(
        "--search-margin",
        type=float,
        metavar="SHARE",
        help="skip what is predicted to need so much more memory than there is "
        f"({search.MARGIN:g}; of LoRA {search.LORA_MARGIN:g})",
    )
    group.add_argument(
        "--search-trials", type=int, metavar="N", help=f"compile the N most promising ones ({TRIALS})"
    )
    group.add_argument(
        "--search-dir", metavar="FOLDER", help="where results are kept ($JAXLM_CACHE or ~/.cache/jaxlm)"
    )
    group.add_argument("--search-retry", action="store_true", help="try again what failed")
    group.add_argument("--num-processes", type=int, metavar="N", help="compilers at a time (half the cores)")


def search_flags(args: argparse.Namespace) -> list[str]:
    """Flags of a search that are given, but for --search itself."""
    names = [name for name in vars(args) if name.startswith("search_") or name == "num_processes"]
    return [
        f"--{name.replace('_', '-')}"
        for name in names
        if getattr(args, name) is not None and getattr(args, name) is not False
    ]


def check_flags(args: argparse.Namespace) -> None:
    """Raises UserError for flags that do not go together."""
    given = search_flags(args)
    if not args.search and given:
        raise UserError(f"{given[0]} is a flag of --search: add --search, or leave it out.")
    if not args.search:
        return
    alone = [name for name in ALONE if getattr(args, name) is not None]
    alone += ["commitment"] if args.commitment != "on-demand" else []
    if alone:
        raise UserError(
            f"--{alone[0]} would be ignored by --search: give it to the command of a trial, which the search prints."
        )
    for flag, value in (("--search-trials", args.search_trials), ("--num-processes", args.num_processes)):
        if value is not None and value < 1:
            raise UserError(f"{flag}={value} must be at least 1.")
    if args.search_margin is not None and not 0 <= args.search_margin < 10:
        raise UserError(
            f"--search-margin={args.search_margin:g} must be in [0, 10): 0.25 is a quarter too much."
        )


def make_axes(
    cfg: RunConfig, on: Topology, args: argparse.Namespace, check: Callable[[RunConfig], Any]
) -> search_axes.Axes:
    """What is tried. Errors: UserError for a flag that no trial can follow."""
    blocks = search_axes.default_blocks(cfg.model)
    if args.search_blocks is not None:
        if cfg.model.attention in ("dense", "chunked"):
            raise UserError(
                f"--search-blocks={args.search_blocks} has nothing to try: model.attention={cfg.model.attention!r} has "
                "no blocks. Try attention='auto'."
            )
        blocks = search_axes.parse_blocks(args.search_blocks)
    remats = search_axes.default_remats(cfg.model)
    if args.search_remat is not None:
        remats = search_axes.parse_remats(args.search_remat, cfg.model)
    meshes = search_axes.default_meshes(cfg, on)
    if args.search_mesh is not None:
        meshes = search_axes.parse_meshes(args.search_mesh, on)
    flag = None if args.search_mesh is None else f"--search-mesh={args.search_mesh}"
    meshes = search_axes.usable_meshes(cfg, meshes, check, flag)
    rows = search_axes.default_rows(cfg, meshes[0])
    if args.search_rows is not None:
        rows = search_axes.parse_rows(args.search_rows)
    return search_axes.Axes(rows, remats, meshes, blocks)


def search_main(
    args: argparse.Namespace,
    cfg: RunConfig,
    on: Topology,
    config_argv: Sequence[str],
    name: str,
    versions: dict[str, str],
    notes: Sequence[str],
) -> int:
    """Compiles trials, and says which are worth it."""
    check = functools.partial(resolve_mesh, num_devices=on.num_devices)
    grid = search.make_grid(
        cfg,
        on,
        make_axes(cfg, on, args, check),
        margin=margin_of(args, cfg),
        keeps_batch=args.search_keep_batch,
        check=check,
    )
    most = args.search_trials or TRIALS
    trials = [(search.digest(trial, on, versions), trial) for trial in grid.trials[:most]]
    left = [search.Left(trial, f"beyond --search-trials={most}") for trial in grid.trials[most:]]
    folder = make_folder(args.search_dir or default_folder())
    num_processes = min(args.num_processes or default_processes(), max(len(trials), 1))
    print(
        f"search: {len(trials)} trials to compile, {len(grid.left) + len(left)} left out, {num_processes} at a time, "
        f"kept in {folder}",
        file=sys.stderr,
        flush=True,
    )

    def command_of(trial: search.Trial) -> list[str]:
        slices = [f"--num-slices={on.num_slices}"] if on.num_slices > 1 else []
        return ["compile", *config_argv, *trial.flags, f"--topology={on.slice_name}", *slices]

    try:
        with Progress(len(trials)) as progress:
            results, skipped = run_trials(
                trials,
                folder,
                lambda trial: [sys.executable, "-m", "jaxlm", *command_of(trial), "--json"],
                num_processes=num_processes,
                retry=args.search_retry,
                told=progress.told,
            )
    except Stopped as stopped:
        print(
            f"jaxlm: interrupted. {stopped.num_done} of {stopped.num_trials} trials are done, and kept in {folder}: "
            "the same command goes on from there.",
            file=sys.stderr,
        )
        return 128 + stopped.number
    commands = {trial.name: ["jaxlm", *command_of(trial)] for _, trial in trials}
    found = Search(name, on, results, [*skipped, *left, *grid.left], str(folder), versions)
    report = search_report(found, commands)
    emit(dataclasses.replace(report, notes=[*notes, *report.notes]), args)
    best = report.data["best"]
    if best is not None and not args.json:
        print(f"best: {shlex.join(best)}")
    return NOTHING_FITS if best is None else 0


def margin_of(args: argparse.Namespace, cfg: RunConfig) -> float:
    """As given, or as far as predictions may be off."""
    if args.search_margin is not None:
        return args.search_margin
    return search.LORA_MARGIN if cfg.tune.train == "lora" else search.MARGIN


def default_folder() -> str:
    """Of results: shared by all searches, since a digest tells them apart."""
    from jaxlm.paths import cache_root

    return os.path.join(cache_root(None), "search")


def default_processes() -> int:
    """Half the cores: a compiler keeps more than one busy, and takes gigabytes."""
    return max(num_processors() // 2, 1)
