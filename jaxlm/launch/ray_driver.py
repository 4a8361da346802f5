"""Runs inside a Ray job: one supervised process on each of several machines, which find each other by its word.

    python -m jaxlm.launch.ray_driver --hosts=2 --resource=GPU:8 -- train --config=... --workdir=...

A machine is a bundle of a placement group that has all its accelerators; no two lie on one node. The first says where
the processes meet. Ray starts nothing again: supervisors do, and a machine that is lost ends the job.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from jaxlm.launch.local import COORDINATOR, NUM_PROCESSES, PROCESS_ID


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What the job's entry point is called with."""
    parser = argparse.ArgumentParser(prog="jaxlm.launch.ray_driver", description=__doc__)
    parser.add_argument("--hosts", type=int, required=True, help="machines")
    parser.add_argument(
        "--resource", required=True, metavar="NAME:COUNT", help="of each machine: GPU:8, TPU:4, CPU:1"
    )
    parser.add_argument("--max-restarts", type=int, default=10, help="in a row, without a new checkpoint")
    parser.add_argument("job", nargs="+", help="command of jaxlm and its flags")
    return parser.parse_args(argv)


def bundle(resource: str) -> dict[str, float]:
    """What Ray is asked for on each machine: GPU:8 -> {"GPU": 8, "CPU": 1}."""
    name, _, count = resource.partition(":")
    return {"CPU": 1.0} | {name: float(count or 1)}


def variables(address: str, hosts: int, index: int, resource: str) -> dict[str, str]:
    """What one process has in its environment.

    Of a TPU, JAX asks the machines themselves who is who; Ray would hide the chips from a process otherwise.
    """
    if resource.startswith("TPU") or hosts == 1:
        return {}
    found = {COORDINATOR: address, NUM_PROCESSES: str(hosts), PROCESS_ID: str(index)}
    if resource.startswith("GPU"):
        count = int(float(resource.partition(":")[2] or 1))
        found["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, range(count)))
    return found


def command(max_restarts: int, job: Sequence[str]) -> list[str]:
    """The supervisor's command line on a machine."""
    return [
        sys.executable,
        "-m",
        "jaxlm",
        "launch",
        "--on=local",
        "--execute",
        f"--max-restarts={max_restarts}",
        "--",
        *job,
    ]


def meeting_point() -> str:
    """Address of this machine, and a port that is free on it."""
    import ray  # pyright: ignore[reportMissingImports]

    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"


def run(argv: Sequence[str], values: dict[str, str]) -> int:
    """Runs a supervisor on this machine to its end; returns its exit code."""
    return subprocess.run(argv, env={**os.environ, **values}, check=False).returncode


def main(argv: Sequence[str]) -> int:
    """Returns the first exit code that is not 0, of the machine with the lowest number."""
    import ray  # pyright: ignore[reportMissingImports]
    from ray.util.placement_group import placement_group  # pyright: ignore[reportMissingImports]
    from ray.util.scheduling_strategies import (  # pyright: ignore[reportMissingImports]
        PlacementGroupSchedulingStrategy,
    )

    args = arguments(argv)
    ray.init()  # of a job, $RAY_ADDRESS names the cluster
    wanted = bundle(args.resource)
    group = placement_group([wanted] * args.hosts, strategy="STRICT_SPREAD" if args.hosts > 1 else "PACK")
    print(f"Waiting for {args.hosts} machines with {args.resource} each.", flush=True)
    ray.get(group.ready())

    def on(index: int, function):
        strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=index)
        kind, count = next(((k, v) for k, v in wanted.items() if k != "CPU"), ("CPU", 1.0))
        own = {"num_gpus": count} if kind == "GPU" else {"resources": {kind: count}} if kind != "CPU" else {}
        return ray.remote(num_cpus=1, max_retries=0, scheduling_strategy=strategy, **own)(function)

    address = ray.get(on(0, meeting_point).remote())
    line = command(args.max_restarts, args.job)
    runs = [
        on(index, run).remote(line, variables(address, args.hosts, index, args.resource))
        for index in range(args.hosts)
    ]
    codes = ray.get(runs)
    print(f"The machines ended with {codes}.", flush=True)
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
