"""The flags of commands that several processes run together."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxlm.parallel.distributed import Cluster


def add_cluster_flags(parser: argparse.ArgumentParser, timeout_s: int) -> None:
    """Where the processes meet.

    Args:
      timeout_s: how long a process waits for the others where no flag says it.
    """
    group = parser.add_argument_group("several processes (default: what the launcher says, else one)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0 [JAX_COORDINATOR_ADDRESS]")
    group.add_argument("--num-processes", type=int, help="of the whole run; 1: alone [JAX_NUM_PROCESSES]")
    group.add_argument("--process-id", type=int, help="which one this is, from 0 [JAX_PROCESS_ID]")
    group.add_argument(
        "--connect-timeout", type=float, default=float(timeout_s), metavar="SECONDS",
        help=f"wait for the others ({timeout_s})",
    )  # fmt: skip


def cluster_of(args: argparse.Namespace) -> Cluster:
    """What those flags say. Errors: UserError."""
    from jaxlm.parallel.distributed import Cluster

    return Cluster(args.coordinator, args.num_processes, args.process_id, args.connect_timeout)
