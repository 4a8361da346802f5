"""Train a model, or continue the run in a workdir.

jaxlm train --config=quickstart --workdir=runs/quickstart --config.train.num_steps=1000

One process per host, all with this command. On a TPU pod, GKE, Slurm and Open MPI they find each other; elsewhere:
jaxlm train --config=... --workdir=SHARED --coordinator=HOST:PORT --num-processes=2 --process-id=0   (and 1)

SIGTERM or Ctrl-C: the step is finished and saved, and the exit code is 143 or 130; the same command continues.
A run that no longer moves says so, with the stacks of its threads in WORKDIR/stacks; with train.step_timeout_s it also
ends, with exit code 75. `jaxlm doctor` checks beforehand what can be checked.
"""

from __future__ import annotations

import argparse

from jaxlm.cli._cluster import add_cluster_flags, cluster_of
from jaxlm.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags beside --config."""
    parser.add_argument("--workdir", required=True, help="folder of the run: config, checkpoints, event log")
    add_cluster_flags(parser, timeout_s=300)


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Trains."""
    if not args.workdir:
        raise UserError("--workdir is empty: name a folder, such as runs/mine.")
    from jaxlm import processes, run
    from jaxlm.parallel import distributed

    cfg = run.resolve(run.parse(config_argv), args.workdir)
    cluster = cluster_of(args)
    try:
        run.train(cfg, args.workdir, cluster)
    except BaseException as error:
        signal = getattr(error, "signal", None)  # of train.hooks.Stopped
        if signal is not None:
            return 128 + signal
        if distributed.is_abandoned() or not processes.is_alone():
            distributed.leave(error)
        raise
    return 0
