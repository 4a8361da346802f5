"""`--on=ray`: a job for a Ray cluster that is there already; ray_driver.py places one process on each machine."""

from __future__ import annotations

import json
import os

from jaxlm.launch import machine
from jaxlm.launch.accelerators import Accelerator
from jaxlm.launch.job import Job, own_config_file, with_config
from jaxlm.launch.launches import Command, Launch
from jaxlm.launch.target import Target
from jaxlm.types import UserError


def make_machines(target: Target) -> Accelerator:
    """Errors: UserError for what a Ray cluster has not, or the target lacks."""
    target.need("ray", "address")
    machines = target.machines("ray")
    if machines.num_slices > 1:
        raise UserError(
            f"slices={machines.num_slices}: --on=ray runs on one slice. Use --on=tpu or --on=gke."
        )
    if target.code not in (None, "checkout", "package"):
        raise UserError(
            f"{target.code} is given, but --on=ray takes jaxlm from a package, from a checkout on a disk "
            "that all machines share "
            "(with its .venv), or from the machines themselves (none given)."
        )
    if target.secrets:
        raise UserError(
            f"secrets.{next(iter(target.secrets))}: a Ray job would store it in plain text. Export it "
            "where `ray start` is called "
            "on the machines: processes have that environment."
        )
    return machines


def up(target: Target, job: Job, machines: Accelerator) -> Launch:
    runtime: dict[str, object] = {}
    if target.environment:
        runtime["env_vars"] = dict(target.environment)
    python = "python"
    if target.code == "package":
        runtime["pip"] = machine.requirements(job, target, machines, str(target.package))
    elif target.checkout is not None:
        python = os.path.join(os.path.abspath(target.checkout), ".venv", "bin", "python")
    if (config := own_config_file(job)) is not None:
        job = with_config(job, os.path.abspath(config))
    argv = [
        "ray",
        "job",
        "submit",
        f"--address={target.address}",
        f"--submission-id={target.name}",
        "--no-wait",
    ]
    if runtime:
        argv.append(f"--runtime-env-json={json.dumps(runtime)}")
    resource = "TPU" if machines.is_tpu else "GPU"
    argv += ["--", python, "-m", "jaxlm.launch.ray_driver", f"--hosts={machines.num_hosts}"]
    argv += [f"--resource={resource}:{machines.chips_per_host}", f"--max-restarts={target.restarts_in_a_row}"]
    argv += ["--", *job.argv]
    return Launch("ray", (str(machines),), commands=(Command("submit the job", tuple(argv)),))


def _about(target: Target, *words: str, why: str, is_watch: bool = False) -> Launch:
    target.need("ray", "address")
    argv = ("ray", "job", *words, f"--address={target.address}", target.name)
    return Launch("ray", (f"About {target.name}.",), commands=(Command(why, argv, is_watch=is_watch),))


def status(target: Target) -> Launch:
    return _about(target, "status", why="how the job is")


def logs(target: Target) -> Launch:
    return _about(target, "logs", "--follow", why="show the log", is_watch=True)


def delete(target: Target) -> Launch:
    return _about(target, "stop", why="stop the job")
