"""Plan a run before anything is bought: memory, chips, days and money; no device is touched.

jaxlm plan --config=pretrain_llama2_7b_v5e256                 parameters, FLOPs, memory, slices, days, cost
jaxlm plan --config=quickstart --chip=v5e --num-chips=8       on chips that you have
jaxlm plan cost --scenarios=gpt3                              where $0.5M to $4.6M for GPT-3 come from
jaxlm plan pods --config=pretrain_llama31_8b_v6e256           speed of a chip from 16 to 6,144 of them, and its bound
jaxlm plan mixture gpt3 --max-epochs=2                        epochs of each source, and the weights under a cap
jaxlm plan scaling --csv=chinchilla --flops=1e24              the loss of a budget, and its best model
"""

from __future__ import annotations

import argparse
import importlib

from jaxlm.cli import _plan_run
from jaxlm.cli._plan_output import add_output_arguments

COMMANDS: dict[str, str] = {
    "cost": "chip-hours, days, energy and money of a training, over chips and MFUs",
    "compare": "what was planned against what happened, from the logs of runs",
    "pods": "predicted speed from a few chips to thousands, weak and strong, and what bounds it",
    "mixture": "tokens, shares and epochs of each source; caps on epochs",
    "scaling": "fit L(N, D) to finished runs or a CSV; predict the loss of a budget, and its best N and D",
    "ladder": "write the configs of small runs that a scaling law can be fitted to",
}
"""`jaxlm plan COMMAND` -> its line of help; its module is cli/_plan_COMMAND.py, made like a command's own."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `jaxlm plan`, and those of each of its commands."""
    _plan_run.add_arguments(parser)
    add_output_arguments(parser)
    inner = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, line in COMMANDS.items():
        module = importlib.import_module(f"jaxlm.cli._plan_{name}")
        made = inner.add_parser(
            name, help=line, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(made)
        add_output_arguments(made)


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Runs `jaxlm plan` or the command after it."""
    module = importlib.import_module(f"jaxlm.cli._plan_{args.command or 'run'}")
    return module.main(args, config_argv)
