"""Add the adapters of a LoRA run to its weights.

jaxlm merge-lora --run=runs/tuned merged                      the latest step

DIR is then like a run that trained all its weights: --run=DIR for every command, init_from=DIR to train on from it. The
sum is made in float32, and checked: logits of merged and adapted weights agree to 1e-5, and are not those of the base.
(generate, predict, export-hf and so on take --run=runs/tuned as it is, too.)
"""

from __future__ import annotations

import argparse

from jaxlm.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("--run", required=True, help="workdir of a training with tune.train=lora")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the latest)")
    parser.add_argument("out", metavar="DIR", help="folder to make")


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Merges."""
    if config_argv:
        raise UserError(f"{config_argv[0]}: merge-lora takes its config from --run.")
    from jaxlm.run_lora import merge_lora

    merge_lora(args.run, args.out, step=args.step)
    return 0
