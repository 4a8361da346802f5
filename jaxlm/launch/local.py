"""`--on=local`: processes on this machine, supervised.

`local:N` are N processes that find each other through jax.distributed. `local` is one process that finds its peers as
the platform says; it is what `jaxlm launch` starts on each machine of a TPU pod, a Slurm job or a Ray cluster.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping

from jaxlm.launch.job import Job
from jaxlm.launch.launches import shell_line
from jaxlm.launch.supervisor import Policy, Supervisor
from jaxlm.launch.target import Target
from jaxlm.paths import is_local
from jaxlm.types import UserError

MOST_PROCESSES = 64
COORDINATOR, NUM_PROCESSES, PROCESS_ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_GPUS = "CUDA_VISIBLE_DEVICES"


def num_processes(platform: str) -> int | None:
    """N of local:N; None for `local`. Errors: UserError for another N."""
    if platform == "local":
        return None
    text = platform.removeprefix("local:")
    if not re.fullmatch(r"[0-9]{1,3}", text, re.ASCII) or not 1 <= int(text) <= MOST_PROCESSES:
        raise UserError(
            f"--on={platform} must be local, or local:N with N processes from 1 to {MOST_PROCESSES}."
        )
    return int(text)


def argv_of(job: Job) -> list[str]:
    """Of one process: this Python, this jaxlm."""
    return [sys.executable, "-m", "jaxlm", *job.argv]


def environments(
    num: int | None, port: int, target: Target, environ: Mapping[str, str], num_gpus: int
) -> list[dict[str, str]]:
    """What each process has in its environment beside this one's.

    Args:
      num: processes; None: one, which asks the platform who else there is.
      num_gpus: of this machine.
    """
    own = dict(target.environment)
    if num is None:
        return [own]
    if num == 1:
        return [own | {NUM_PROCESSES: "1"}]
    share = num_gpus // num
    visible = [name for name in environ.get(_GPUS, "").split(",") if name] or [
        str(n) for n in range(num_gpus)
    ]
    found = []
    for index in range(num):
        values = {COORDINATOR: f"127.0.0.1:{port}", NUM_PROCESSES: str(num), PROCESS_ID: str(index)}
        if share:
            values[_GPUS] = ",".join(visible[index * share : (index + 1) * share])
        found.append(own | values)
    return found


def count_gpus(environ: Mapping[str, str]) -> int:
    """GPUs that a process with this environment could see."""
    if "cpu" in environ.get("JAX_PLATFORMS", "").split(","):
        return 0
    if environ.get(_GPUS) is not None:
        return len([name for name in environ[_GPUS].split(",") if name])
    return len(glob.glob("/dev/nvidia[0-9]*"))


def free_port() -> int:
    """One of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check(num: int | None, environ: Mapping[str, str], num_gpus: int) -> None:
    """UserError for what the processes could not share."""
    tpu_wanted = not environ.get("JAX_PLATFORMS") or "tpu" in environ["JAX_PLATFORMS"].split(",")
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    if num is not None and num > 1 and chips and tpu_wanted:
        raise UserError(
            f"--on=local:{num}: the TPU of a machine belongs to one process. Use --on=local, or JAX_PLATFORMS=cpu."
        )
    if num is not None and num_gpus % num:
        raise UserError(
            f"--on=local:{num}: the {num_gpus} GPUs of this machine cannot be shared evenly by {num} processes."
        )


def render(job: Job, num: int | None, target: Target, environ: Mapping[str, str]) -> str:
    """A script that starts the same processes once, without their supervisor."""
    several = "1 process" if num in (None, 1) else f"{num} processes"
    lines = [
        "#!/usr/bin/env bash",
        f"# {several} on this machine. With --execute a supervisor starts what is below, and again after a crash.",
    ]
    values = environments(num, free_port(), target, environ, count_gpus(environ))
    for variables in values:
        assigned = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
        lines.append(f"{assigned} {shell_line(argv_of(job))}".strip() + (" &" if len(values) > 1 else ""))
    if len(values) > 1:
        lines.append("wait")
    return "\n".join(lines) + "\n"


def execute(job: Job, num: int | None, target: Target, policy: Policy) -> int:
    """Starts and supervises the processes; returns the exit code of the run."""
    num_gpus = count_gpus(os.environ)

    def start() -> list[subprocess.Popen]:
        port = free_port() if num is not None and num > 1 else 0
        started: list[subprocess.Popen] = []
        try:
            for values in environments(num, port, target, os.environ, num_gpus):
                # A session of its own: Ctrl-C in a terminal reaches the supervisor alone, which passes it on once.
                started.append(
                    subprocess.Popen(argv_of(job), env={**os.environ, **values}, start_new_session=True)
                )
        except BaseException:
            for process in started:
                process.kill()
            raise
        return started

    return Supervisor(start, lambda: last_step(job.workdir), policy).run()


def last_step(workdir: str | None) -> int | None:
    """Step of the newest checkpoint, -1 where there is none yet; None where that cannot be seen from here."""
    if not workdir:
        return None
    from jaxlm.data.files import reachable

    try:
        folder = reachable(workdir) / "checkpoints"
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
    except (OSError, UserError) as error:
        where = workdir if is_local(workdir) else "the bucket"
        reason = " ".join(str(error).split())[:200]
        print(
            f"jaxlm launch: the checkpoints in {where} cannot be seen ({reason}): a run that lasts ten minutes counts "
            "as progress.",
            file=sys.stderr,
        )
        return None
    return max((int(name) for name in names if name.isdecimal()), default=-1)
