"""`--on=slurm`: a batch script, one process for each node with all its GPUs, and the commands about the job.

Each process has its supervisor. At the time limit, or when Slurm wants the nodes for another job, the run saves its
step and ends with 143; the script then puts the job back into the queue, where the same script goes on with the run.
"""

from __future__ import annotations

import os
import shlex

from jaxlm.launch import machine
from jaxlm.launch.accelerators import Accelerator
from jaxlm.launch.job import Job, own_config_file, with_config
from jaxlm.launch.launches import Command, Launch
from jaxlm.launch.target import Target
from jaxlm.types import UserError

SIGNAL_S = 300
"""Before its time limit the job is told to stop."""


def make_machines(target: Target) -> Accelerator:
    """Errors: UserError for what Slurm has not, or the target lacks."""
    machines = target.machines("slurm")
    if machines.is_tpu:
        raise UserError(
            f"accelerator={target.accelerator}: Slurm is for GPUs here; use --on=tpu, gke or skypilot."
        )
    if target.code not in (None, "checkout"):
        raise UserError(
            f"{target.code} is given, but nodes of a Slurm cluster share a disk: give checkout, a folder "
            "there with its .venv, or "
            "nothing where jaxlm is on $PATH."
        )
    for name, store in target.secrets.items():
        if store is not None:
            raise UserError(
                f"secrets.{name}: Slurm has no store of secrets; a job has the environment of sbatch. "
                f"Export {name} there, and "
                f"write `secrets: [{name}]`."
            )
    return machines


def up(target: Target, job: Job, machines: Accelerator) -> Launch:
    text = script(target, job, machines)
    argv = ("sbatch", "/dev/stdin")
    return Launch(
        "slurm", (str(machines),), commands=(Command("submit the job", argv, stdin=text),), manifest=text
    )


def script(target: Target, job: Job, machines: Accelerator) -> str:
    """The batch script."""
    header = [
        f"--job-name={target.name}",
        f"--nodes={machines.num_hosts}",
        "--ntasks-per-node=1",
        f"--gpus-per-node={machines.chips_per_host}",
        *(
            f"--{key}={getattr(target, key)}"
            for key in ("partition", "account", "time")
            if getattr(target, key)
        ),
        f"--signal=TERM@{SIGNAL_S}",
        "--requeue",
        "--open-mode=append",
        f"--output={target.name}-%j.log",
    ]
    lines = [
        "#!/usr/bin/env bash",
        f"# {machines}. The same script goes on with the run.",
        *(f"#SBATCH {option}" for option in header),
        "set -euo pipefail",
    ]
    program = "jaxlm"
    if target.checkout is not None:
        lines.append(f"cd {shlex.quote(os.path.abspath(target.checkout))}")
        program = ".venv/bin/jaxlm"
    if (config := own_config_file(job)) is not None:
        job = with_config(job, os.path.abspath(config))
    lines += machine.sets_environment(target)
    for name in target.secrets:
        lines.append(f': "${{{name}:?has to be set where sbatch is called}}"')
    devices = ",".join(map(str, range(machines.chips_per_host)))
    lines += [
        "# JAX would give each task one GPU; here a task has all of its node.",
        f"export JAX_LOCAL_DEVICE_IDS={devices}",
        "code=0",
        f"srun --kill-on-bad-exit=1 {machine.supervised(job, program, target.restarts_in_a_row)} || code=$?",
        "# Told to stop, with the step saved: the job goes on when it has nodes again.",
        'if [ "$code" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def status(target: Target) -> Launch:
    argv = ("squeue", "--me", f"--name={target.name}")
    return Launch("slurm", (f"Jobs of the name {target.name}.",), commands=(Command("the jobs", argv),))


def logs(target: Target) -> Launch:
    script = (
        f"job=$(squeue --me --name={target.name} --noheader --format=%i | head -n 1); "
        f'exec tail --lines=+1 --follow=name --retry "{target.name}-${{job:?no such job in the queue}}.log"'
    )
    return Launch("slurm", (f"The log of {target.name}, in the folder where it was submitted.",), commands=(
        Command("show the log", ("bash", "-c", script), is_watch=True),
    ))  # fmt: skip


def delete(target: Target) -> Launch:
    argv = ("scancel", "--me", f"--name={target.name}")
    return Launch(
        "slurm",
        (f"Cancels the jobs of the name {target.name}.",),
        commands=(Command("cancel the jobs", argv),),
    )
