"""How a run scales: predicted speed of a chip from a few chips to thousands, and what then costs most.

jaxlm plan pods --config=pretrain_llama31_8b_v6e256                       weak and strong, 16 to 6,144 chips
jaxlm plan pods --config=pretrain_llama31_70b_v5p512 --chips=64..6144 --strong --plot=strong.png
jaxlm plan pods --config=pretrain_llama31_8b_v6e256 --chip=v5p --chips=64,512,4096 --rows-per-chip=4
"""

from __future__ import annotations

import argparse
import math
import re

from jaxlm.cli._plan_output import emit
from jaxlm.cli._plan_run import completed, config_name
from jaxlm.plan.hardware import Chip, chip_named
from jaxlm.plan.pods import MODES, chip_counts, scale, slices_of
from jaxlm.plan.pods_show import check_plot, plot, pods_report
from jaxlm.plan.run_plan import budget, critical_batch
from jaxlm.plan.topology import DIMS
from jaxlm.run import RunConfig, parse, resolve
from jaxlm.types import UserError

_NAMED = re.compile(rf"_({'|'.join(DIMS)})(\d+)$")
"""The end of a config's name: chip and number of chips."""

_RANGE = re.compile(r"([\d,_]+)\.\.([\d,_]+)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `jaxlm plan pods`."""
    parser.add_argument("--chip", help="a kind of TPU; default: that of the config's name (..._v6e256)")
    parser.add_argument(
        "--chips", default="16..6144", help="from..to, or numbers: 16,64,256 (default: %(default)s)"
    )
    parser.add_argument(
        "--weak", action="store_true", help="only weak scaling: the batch grows with the chips"
    )
    parser.add_argument("--strong", action="store_true", help="only strong scaling: the config's batch")
    parser.add_argument(
        "--rows-per-chip",
        type=float,
        metavar="R",
        help="of weak scaling; default: the config's, on its own chips",
    )
    parser.add_argument("--plot", metavar="FILE.png", help="also draw MFU over chips")


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Runs `jaxlm plan pods`."""
    if not config_argv:
        raise UserError("Give what to scale: jaxlm plan pods --config=NAME_OR_PATH.")
    if args.plot:
        check_plot(args.plot)
    cfg, notes = completed(resolve(parse(config_argv)))
    given = config_name(config_argv)
    chip = chip_of(args.chip, given)
    counts = counts_of(args.chips, chip)
    modes = [mode for mode in MODES if getattr(args, mode)] or [*MODES]
    planned = budget(cfg)
    each = rows_per_chip(args.rows_per_chip, cfg, given) if "weak" in modes else 1.0
    if "weak" in modes:
        notes = [*notes, f"Weak scaling: {each:g} rows of {cfg.data.seq_len:,} tokens a chip."]
    found = {
        mode: scale(cfg, chip, counts, each, mode=mode, flops_per_token=planned.per_token.total)
        for mode in modes
    }
    report = pods_report(given, chip, found, notes, critical_batch(planned))
    if args.plot:
        plot(report, found, args.plot)
    emit(report, args)
    return 0


def chip_of(name: str | None, config: str) -> Chip:
    """The chip that is asked for, or that the config's name ends with."""
    if name is None:
        match = _NAMED.search(config.removesuffix(".py"))
        if match is None:
            raise UserError(
                f"--config={config} does not say for which chip it is made: give --chip=, one of {', '.join(DIMS)}."
            )
        return chip_named(match[1])
    chip = chip_named(name)
    if chip.name not in DIMS:
        raise UserError(f"--chip={name} is no TPU: there are {', '.join(DIMS)}.")
    return chip


def counts_of(text: str, chip: Chip) -> list[int]:
    """Numbers of chips of --chips, ascending."""
    match = _RANGE.fullmatch(text)
    try:
        ends = [int(part.replace("_", "")) for part in ([*match.groups()] if match else text.split(","))]
    except ValueError:
        ends = []
    if not ends or min(ends) < 1 or ends != sorted(set(ends)):
        raise UserError(
            f"--chips={text} must be FROM..TO, such as 16..6144, or numbers that ascend: 16,64,256."
        )
    if match:
        return chip_counts(chip, *ends)
    for num in ends:
        slices_of(chip, num)
    return ends


def rows_per_chip(given: float | None, cfg: RunConfig, config: str) -> float:
    """Of --rows-per-chip, else the batch over the chips of the config's mesh or name."""
    if given is not None:
        if given <= 0:
            raise UserError(f"--rows-per-chip={given:g} must be positive: rows of the batch, a chip.")
        return given
    num = math.prod(cfg.mesh.sizes.values())
    match = _NAMED.search(config.removesuffix(".py"))
    if num < 1 and match is None:
        raise UserError(
            "--rows-per-chip=R is needed: the mesh of the config leaves open how many devices it is made for."
        )
    return cfg.data.global_batch_size / (num if num >= 1 or match is None else int(match[2]))
