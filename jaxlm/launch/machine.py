"""Scripts for the machines: how jaxlm gets there, and how the run is started under its supervisor."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable

from jaxlm.launch.accelerators import Accelerator
from jaxlm.launch.job import Job
from jaxlm.launch.launches import exports
from jaxlm.launch.target import Target

VENV = "venv"


def extras(machines: Accelerator | None) -> str:
    """Of the installation: jax for these chips."""
    if machines is None:
        return ""
    return "[tpu]" if machines.is_tpu else "[cuda]"


def storage_packages(job: Job, target: Target) -> list[str]:
    """What Python needs to reach the buckets of the command line."""
    text = " ".join([*job.argv, target.bucket or ""])
    return [package for scheme, package in (("gs://", "gcsfs"), ("s3://", "s3fs")) if scheme in text]


def requirements(job: Job, target: Target, machines: Accelerator | None, source: str) -> list[str]:
    """Arguments of `pip install`.

    Args:
      source: where the code lies on the machine: a wheel, a folder; of a package its name.
    """
    if target.code == "package":
        name, _, version = (
            source.partition("jaxlm")[2].partition("]") if "[" in source else ("", "", source[5:])
        )
        given = [part for part in name.removeprefix("[").split(",") if part]
        wanted = extras(machines).strip("[]")
        listed = ",".join(dict.fromkeys([*given, *([wanted] if wanted else [])]))
        first = f"jaxlm[{listed}]{version}" if listed else f"jaxlm{version}"
    else:
        first = f"{source}{extras(machines)}"
    return [first, *storage_packages(job, target)]


def install(packages: Iterable[str], *, folder: str = "") -> list[str]:
    """Lines that make a virtual environment and install into it, with a Python that is new enough.

    TPU VMs come with Ubuntu 22.04 and its Python 3.10; uv fetches a newer one where there is none.
    """
    venv = f"{folder}{VENV}"
    words = " ".join(shlex.quote(package) for package in packages)
    return [
        'export PATH="$HOME/.local/bin:$PATH"',
        "command -v uv > /dev/null || python3 -m pip install --quiet --user uv",
        f"test -x {venv}/bin/python || uv venv --quiet --python '>=3.11' {venv}",
        f"uv pip install --quiet --python {venv}/bin/python {words}",
    ]


def supervised(job: Job, program: str, max_restarts: int) -> str:
    """The command line of the supervisor on a machine."""
    own = [program, "launch", "--on=local", "--execute", f"--max-restarts={max_restarts}", "--"]
    return " ".join(shlex.quote(word) if word != program else word for word in [*own, *job.argv])


def sets_environment(target: Target) -> list[str]:
    """Lines that export the variables of the target."""
    return exports(target.environment.items())


def wheel_name(target: Target) -> str:
    """File name of the wheel, which pip reads the version from."""
    return os.path.basename(str(target.wheel))
