"""The command that is to run, and what can be known of it before a machine is rented."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxlm.config_flags import find_config, split_config_flags
from jaxlm.data.files import refuse_secret
from jaxlm.launch.accelerators import Accelerator
from jaxlm.launch.target import Target
from jaxlm.paths import is_local
from jaxlm.plan.topology import usual_shapes
from jaxlm.redact import redact
from jaxlm.types import UserError

TOGETHER = ("train", "doctor", "import-hf")
"""Commands that several processes run together; all others are for one."""
_CLUSTER = ("--coordinator", "--num-processes", "--process-id")


class Job(NamedTuple):
    """A command line of jaxlm."""

    argv: tuple[str, ...]
    """The command, then its flags."""

    @property
    def command(self) -> str:
        return self.argv[0]

    @property
    def config_argv(self) -> list[str]:
        """Its --config flags."""
        return split_config_flags(list(self.argv[1:]))[0]

    @property
    def config(self) -> str | None:
        """The NAME_OR_PATH of --config, without its argument."""
        given = [arg.partition("=")[2] for arg in self.config_argv if arg.startswith("--config=")]
        return given[-1].partition(":")[0] if given else None

    def flag(self, name: str) -> str | None:
        """The value of a flag, written with = or behind a blank; None: it is not there."""
        found = None
        for position, arg in enumerate(self.argv):
            if arg == name and position + 1 < len(self.argv):
                found = self.argv[position + 1]
            elif arg.startswith(f"{name}="):
                found = arg.partition("=")[2]
        return found

    @property
    def workdir(self) -> str | None:
        return self.flag("--workdir")


def make_job(argv: Sequence[str], commands: Iterable[str], target: Target) -> Job:
    """The job of a command line. A missing --workdir is BUCKET/NAME of the target.

    Args:
      commands: of jaxlm.

    Errors: UserError for no command, an unknown one, or flags that are not the user's to give.
    """
    from jaxlm.config import check_choice

    if not argv:
        raise UserError(
            "No command is given: write it behind --, such as `-- train --config=quickstart --workdir=...`."
        )
    known = [name for name in commands if name != "launch"]
    check_choice("The command behind --", argv[0], known)
    for arg in argv:
        if not all(c.isprintable() for c in arg):
            raise UserError(
                f"{redact(arg)!r}: a control character cannot be sent to other machines. Remove it."
            )
        if redact(arg) != arg:
            raise UserError(
                f"{redact(arg)} holds a secret, and what is launched is printed and stored. Name it under "
                "`secrets` in the "
                "target: the command finds it in its environment."
            )
    job = Job(tuple(argv))
    for name in _CLUSTER:
        if job.flag(name) is not None:
            raise UserError(
                f"{name} behind --: `jaxlm launch` and the platform say who is who. Leave it out."
            )
    if job.command == "train" and job.workdir is None and target.bucket is not None:
        job = Job((*job.argv, f"--workdir={target.bucket.rstrip('/')}/{target.name}"))
    return job


def check_together(job: Job, num_processes: int) -> None:
    """UserError for a command that one process does, on machines that would start several."""
    if num_processes > 1 and job.command not in TOGETHER:
        raise UserError(
            f"{job.command} is done by one process, and {num_processes} would be started. Together they "
            f"do {', '.join(TOGETHER)}; "
            "for anything else name one machine."
        )


def check_workdir(job: Job, num_hosts: int, *, shared_disk: bool) -> None:
    """UserError for a workdir that the machines would not share, or that is lost with them.

    Args:
      shared_disk: whether machines of this platform usually have one: then any absolute path is believed.
    """
    if job.workdir is None:
        if job.command == "train":
            raise UserError("--workdir is missing behind --: give it, or `bucket` in the target.")
        return
    if not job.workdir:
        raise UserError("--workdir is empty: name a folder on gs://.")
    if not is_local(job.workdir):
        refuse_secret(job.workdir)
        if not re.match(r"(gs|s3)://[^/]+/.+", job.workdir):
            raise UserError(f"--workdir={job.workdir} has to be a folder in a bucket: gs://BUCKET/RUN.")
        return
    if shared_disk and os.path.isabs(job.workdir):
        return
    if shared_disk:
        raise UserError(
            f"--workdir={job.workdir} is relative, and machines start in folders of their own: give its "
            "whole path on the "
            "disk that all of them share."
        )
    who = (
        f"{num_hosts} machines write to it"
        if num_hosts > 1
        else "it has to outlive the machine, which may be preempted"
    )
    raise UserError(
        f"--workdir={job.workdir} is a folder of one machine, but {who}: give gs://BUCKET/RUN, or "
        "`bucket` in the target."
    )


def check_config(job: Job, machines: Accelerator, config_file: str | None = None) -> None:
    """Resolves the training's config, and divides its batch and model among the devices. No device, no JAX.

    Errors: UserError that names the key and the rule; where the machines do not fit the mesh, those nearby that do.
    """
    if job.command not in ("train", "doctor") or job.config is None:
        return
    from jaxlm import runconfig

    cfg = runconfig.resolve(runconfig.parse(job.config_argv))
    try:
        runconfig.resolve_mesh(cfg, machines.num_devices)
    except UserError as error:
        nearby = [name for name, num_devices in _others(machines) if _divides(cfg, num_devices)][:3]
        hint = (
            f"With this config, {', '.join(nearby)} would do."
            if nearby
            else "No other number of these chips would do."
        )
        raise UserError(f"{machines} does not fit the config: {error} {hint}") from None


def _others(machines: Accelerator) -> list[tuple[str, int]]:
    """(name, JAX devices) of other numbers of the same chip, the nearest number first; slices stay."""
    chip, slices = machines.chip, machines.num_slices
    if machines.is_tpu:
        counts = sorted({math.prod(shape) for shape in usual_shapes(chip.name)})
        named = [(f"{chip.name}-{count * chip.num_cores}", count) for count in counts]
    else:
        named = [
            (f"{chip.name}x{count}", count) for count in [*chip.slices.counts, *(8 * n for n in range(2, 65))]
        ]
    far = sorted(named, key=lambda pair: abs(math.log(pair[1] / machines.chips_per_slice)))
    return [(name, count * slices * chip.devices_per_chip) for name, count in far]


def _divides(cfg: object, num_devices: int) -> bool:
    from jaxlm import runconfig

    try:
        runconfig.resolve_mesh(cfg, num_devices)  # pyright: ignore[reportArgumentType]
    except UserError:
        return False
    return True


def own_config_file(job: Job) -> str | None:
    ""
    """The file of --config where it is the user's own, and has to be sent along; None: it comes with jaxlm.

    Errors: UserError for a config that does not exist.
    """
    if job.config is None or "://" in job.config:
        return None
    path = find_config(job.config)
    from jaxlm.config_flags import config_names

    named = job.config.removeprefix("configs/").removesuffix(".py")
    return None if named in config_names() and not os.path.isfile(job.config) else os.fspath(path)


def with_config(job: Job, path: str) -> Job:
    """The same command, with its --config read from `path`; the argument behind a colon stays."""
    argv, seen = [], False
    for position, arg in enumerate(job.argv):
        if seen:
            seen = False
            continue
        if arg == "--config" and position + 1 < len(job.argv):
            value, seen = job.argv[position + 1], True
        elif arg.startswith("--config="):
            value = arg.partition("=")[2]
        else:
            argv.append(arg)
            continue
        colon = value.partition(":")
        argv.append(f"--config={path}{colon[1]}{colon[2]}")
    return Job(tuple(argv))
