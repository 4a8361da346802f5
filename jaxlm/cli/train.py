"""Train a model, or continue the run in a workdir.

jaxlm train --config=quickstart --workdir=runs/quickstart --config.train.num_steps=1000
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags beside --config."""
    parser.add_argument("--workdir", required=True, help="folder of the run: config, checkpoints, event log")


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Trains."""
    from jaxlm import run

    run.train(run.resolve(run.parse(config_argv)), args.workdir)
    return 0
