"""`--on=skypilot`: a task for `sky jobs launch`, which finds machines, and others after a preemption.

On every machine the run has its own supervisor; SkyPilot itself starts the job anew when machines are lost, and where a
supervisor was told to stop or gave up on a standstill (exit codes 143 and 75).
"""

from __future__ import annotations

import os
from typing import Any

from jaxlm.launch import machine
from jaxlm.launch.accelerators import Accelerator
from jaxlm.launch.gke import yaml_text
from jaxlm.launch.job import Job, own_config_file, with_config
from jaxlm.launch.launches import Command, File, Launch
from jaxlm.launch.target import Target
from jaxlm.types import UserError

_REMOTE = "~/jaxlm-launch"


def make_machines(target: Target) -> Accelerator:
    """Errors: UserError for what SkyPilot has not, or the target lacks."""
    machines = target.machines("skypilot")
    if machines.names.skypilot is None:
        raise UserError(
            f"accelerator={target.accelerator} is not known to SkyPilot: `sky show-gpus -a` lists what is."
        )
    if machines.num_slices > 1:
        raise UserError(
            f"slices={machines.num_slices}: SkyPilot does not connect slices of TPUs. Use --on=tpu or --on=gke."
        )
    kinds = ("wheel", "checkout", "package") if machines.is_tpu else ("wheel", "checkout", "package", "image")
    target.need_code("skypilot", *kinds)
    if target.capacity == "reserved":
        raise UserError(
            "capacity=reserved: reservations are configured in ~/.sky/config.yaml; use on-demand or spot here."
        )
    for name, store in target.secrets.items():
        if store is not None:
            raise UserError(
                f"secrets.{name}: SkyPilot takes it from the environment of `sky`: write `secrets: [{name}]`."
            )
    return machines


def up(target: Target, job: Job, machines: Accelerator) -> Launch:
    text = yaml_text([task(target, job, machines)])
    path = f"{target.name}.sky.yaml"
    secrets = tuple(word for name in target.secrets for word in ("--secret", name))
    argv = ("sky", "jobs", "launch", f"--name={target.name}", "--yes", "--detach-run", *secrets, path)
    return Launch(
        "skypilot", (str(machines),), (File(path, text),), (Command("start the job", argv),), manifest=text
    )  # fmt: skip


def task(target: Target, job: Job, machines: Accelerator) -> dict[str, Any]:
    """The task, as plain types."""
    resources: dict[str, Any] = {}
    if (infra := target.infra or _infra(target)) is not None:
        resources["infra"] = infra
    if machines.is_tpu:
        resources["accelerators"] = f"{machines.names.skypilot}-{machines.name_count}"
        resources["accelerator_args"] = {"runtime_version": target.runtime_version or machines.names.runtime}
    else:
        resources["accelerators"] = f"{machines.names.skypilot}:{machines.chips_per_host}"
    if target.capacity == "spot":
        resources["use_spot"] = True
    resources["job_recovery"] = {"max_restarts_on_errors": 0, "recover_on_exit_codes": [75, 143]}
    found: dict[str, Any] = {"name": target.name, "resources": resources}
    found["num_nodes"] = 1 if machines.is_tpu else machines.num_hosts
    mounts: dict[str, str] = {}
    source, program = str(target.package), f"{_REMOTE}/{machine.VENV}/bin/jaxlm"
    if target.code == "wheel":
        source = f"{_REMOTE}/{machine.wheel_name(target)}".replace("~", "$HOME")
        mounts[f"{_REMOTE}/{machine.wheel_name(target)}"] = os.path.abspath(str(target.wheel))
    elif target.code == "checkout":
        found["workdir"] = os.path.abspath(str(target.checkout))
        source = "."
    elif target.code == "image":
        resources["image_id"] = f"docker:{target.image}"
        program = "jaxlm"
    if (config := own_config_file(job)) is not None:
        mounts[f"{_REMOTE}/{os.path.basename(config)}"] = os.path.abspath(config)
        job = with_config(job, os.path.basename(config))
    if target.environment:
        found["envs"] = dict(target.environment)
    if target.secrets:
        found["secrets"] = dict.fromkeys(target.secrets)
    if mounts:
        found["file_mounts"] = mounts
    if target.code != "image":
        packages = machine.requirements(job, target, machines, source)
        lines = ["set -eu", f"mkdir -p {_REMOTE}", *machine.install(packages, folder=f"{_REMOTE}/")]
        found["setup"] = "\n".join(lines).replace("'$HOME/", '"$HOME"\'/') + "\n"
    run = [f"cd {_REMOTE}"] if config is not None else []
    found["run"] = "\n".join([*run, machine.supervised(job, program, target.restarts_in_a_row)]) + "\n"
    return found


def _infra(target: Target) -> str | None:
    """Google Cloud in the zone of the target, where it has one."""
    return None if target.zone is None else f"gcp/{target.zone.rpartition('-')[0]}/{target.zone}"


def status(target: Target) -> Launch:
    return Launch(
        "skypilot", ("Jobs that SkyPilot knows.",), commands=(Command("the jobs", ("sky", "jobs", "queue")),)
    )


def logs(target: Target) -> Launch:
    argv = ("sky", "jobs", "logs", f"--name={target.name}")
    return Launch(
        "skypilot", (f"The log of {target.name}.",), commands=(Command("show the log", argv, is_watch=True),)
    )


def delete(target: Target) -> Launch:
    argv = ("sky", "jobs", "cancel", f"--name={target.name}", "--yes")
    return Launch("skypilot", (f"Cancels {target.name}.",), commands=(Command("cancel the job", argv),))
