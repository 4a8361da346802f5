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

from jaxlm.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags beside --config."""
    parser.add_argument("--workdir", required=True, help="folder of the run: config, checkpoints, event log")
    group = parser.add_argument_group("several processes (default: what the launcher says, else one)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0 [JAX_COORDINATOR_ADDRESS]")
    group.add_argument("--num-processes", type=int, help="of the whole run; 1: alone [JAX_NUM_PROCESSES]")
    group.add_argument("--process-id", type=int, help="which one this is, from 0 [JAX_PROCESS_ID]")
    group.add_argument(
        "--connect-timeout", type=float, default=300.0, metavar="SECONDS", help="wait for the others (300)"
    )


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Trains."""
    if not args.workdir:
        raise UserError("--workdir is empty: name a folder, such as runs/mine.")
    from jaxlm import processes, run
    from jaxlm.parallel import distributed

    cfg = run.resolve(run.parse(config_argv), args.workdir)
    cluster = distributed.Cluster(args.coordinator, args.num_processes, args.process_id, args.connect_timeout)
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
