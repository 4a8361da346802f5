"""`--on=tpu`: Cloud TPU queued resources, over gcloud.

One queued resource holds all slices. Its machines get jaxlm, and each starts the run under its own supervisor, in a
session that outlives the connection: what is printed here can be stopped and started again, the run goes on. On a
machine everything is in ~/jaxlm-launch/NAME: the script, the log, the process ID, at the end the exit code.

tpu_run.py executes it.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import NamedTuple

from jaxlm.launch import machine
from jaxlm.launch.accelerators import Accelerator
from jaxlm.launch.job import Job, own_config_file, with_config
from jaxlm.launch.launches import Command, Launch, Wait, here_document
from jaxlm.launch.target import Target
from jaxlm.paths import cache_root
from jaxlm.types import UserError

POLL_S = 30
ENDED = ("FAILED", "SUSPENDING", "SUSPENDED", "DELETING")
"""States in which a queued resource never becomes active."""
_QR = ("gcloud", "compute", "tpus", "queued-resources")
_EXCLUDED = (".git", ".venv", "runs", "__pycache__", "*.pyc", ".*_cache", "node_modules")


class Pod(NamedTuple):
    """Commands for one queued resource."""

    target: Target
    machines: Accelerator

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def folder(self) -> str:
        """On a machine, below its home."""
        return f"jaxlm-launch/{self.name}"

    @property
    def place(self) -> tuple[str, ...]:
        return (f"--zone={self.target.zone}", f"--project={self.target.project}")

    def create(self) -> Command:
        """Asks for the slices; comes back at once."""
        target, machines = self.target, self.machines
        version = target.runtime_version or machines.names.runtime
        argv = [*_QR, "create", self.name, *self.place, f"--accelerator-type={machines.accelerator_type}",
                f"--runtime-version={version}"]  # fmt: skip
        if machines.num_slices > 1:
            argv += [f"--node-count={machines.num_slices}", f"--node-prefix={self.name}"]
        else:
            argv += [f"--node-id={self.name}"]
        argv += {"spot": ["--spot"], "reserved": ["--reserved"], "on-demand": []}[target.capacity]
        for key in ("service_account", "network", "subnetwork"):
            if (value := getattr(target, key)) is not None:
                argv.append(f"--{key.replace('_', '-')}={value}")
        if target.internal_ips:
            argv.append("--internal-ips")
        return Command("ask for the TPUs", (*argv, "--async", "--quiet"))

    def describe(self, *, as_json: bool = False) -> tuple[str, ...]:
        """Prints the state, or all of the resource."""
        form = "json" if as_json else "value(state.state)"
        return (*_QR, "describe", self.name, *self.place, f"--format={form}")

    def wait(self) -> Wait:
        return Wait("wait until they are there", self.describe(), "ACTIVE", ENDED, POLL_S)

    def delete(self) -> Command:
        """With its machines, whatever runs there."""
        return Command("delete the TPUs", (*_QR, "delete", self.name, *self.place, "--force", "--quiet"))

    def ssh(self, why: str, script: str, *, everywhere: bool = True, is_watch: bool = False) -> Command:
        """Runs a script on all machines, or on the first."""
        where = "all" if everywhere else "0"
        internal = ("--internal-ip",) if self.target.internal_ips else ()
        return Command(
            why,
            (*_QR, "ssh", self.name, *self.place, f"--node={where}", f"--worker={where}", *internal, "--quiet",
             f"--command={script}"),
            is_watch=is_watch,
        )  # fmt: skip

    def copy(self, why: str, path: str, name: str) -> Command:
        """Copies a file to all machines."""
        internal = ("--internal-ip",) if self.target.internal_ips else ()
        return Command(
            why, (*_QR, "scp", path, f"{self.name}:{self.folder}/{name}", *self.place, "--node=all", "--worker=all",
                  *internal, "--quiet"),
        )  # fmt: skip


def make_pod(target: Target) -> Pod:
    """Errors: UserError for what queued resources need and the target lacks."""
    target.need("tpu", "zone", "project")
    machines = target.machines("tpu")
    if not machines.is_tpu or machines.accelerator_type is None:
        where = "--on=gke, slurm, skypilot or ray" if not machines.is_tpu else "--on=gke or --on=xpk"
        raise UserError(
            f"accelerator={target.accelerator} is no accelerator of Cloud TPU queued resources: use {where}."
        )
    if machines.name.partition(":")[2]:
        usual = f"{machines.chip.name}-{machines.name_count}"
        raise UserError(
            f"accelerator={target.accelerator}: gcloud asks for slices by their number of chips, and "
            f"gives {usual} the usual "
            f"shape. Write {usual}, or use --on=gke for {machines.topology}."
        )
    if target.service_account is not None and "@" not in target.service_account:
        raise UserError(f"service_account={target.service_account} has to be an e-mail address for --on=tpu.")
    for name, store in target.secrets.items():
        if store is None or "/" in store:
            raise UserError(
                f"secrets.{name}: --on=tpu reads secrets from Secret Manager: write `{name}: NAME-OF-THE-SECRET`."
            )
    return Pod(target, machines)


def up(pod: Pod, job: Job) -> Launch:
    """From nothing to the log of a run."""
    return Launch(
        "tpu",
        (str(pod.machines),),
        commands=(pod.create(), pod.wait(), *prepare(pod, job), start(pod, job), follow(pod)),
    )


def prepare(pod: Pod, job: Job) -> list[Command]:
    """Brings jaxlm, and a config of the user's own, to every machine."""
    target = pod.target
    code = target.need_code("tpu", "wheel", "checkout", "package", "image")
    commands = [pod.ssh("make a folder on every machine", f"mkdir -p {pod.folder}")]
    source = str(target.package)
    if code == "wheel":
        _check_file("wheel", str(target.wheel))
        source = f"./{machine.wheel_name(target)}"
        commands.append(pod.copy("copy the wheel", str(target.wheel), machine.wheel_name(target)))
    elif code == "checkout":
        if not os.path.isfile(os.path.join(str(target.checkout), "pyproject.toml")):
            raise UserError(
                f"checkout={target.checkout} has no pyproject.toml: give the folder of jaxlm's source."
            )
        source, archive = "./checkout", os.path.join(cache_root(), "launch", f"{pod.name}.tar.gz")
        excluded = [f"--exclude={name}" for name in _EXCLUDED]
        commands += [
            Command("make room for the archive", ("mkdir", "-p", os.path.dirname(archive))),
            Command("pack the checkout", ("tar", "--create", "--gzip", f"--file={archive}", *excluded,
                                          f"--directory={target.checkout}", ".")),
            pod.copy("copy the checkout", archive, "checkout.tar.gz"),
        ]  # fmt: skip
    if (config := own_config_file(job)) is not None:
        commands.append(pod.copy("copy the config", config, os.path.basename(config)))
    return [*commands, pod.ssh("install jaxlm", _setup(pod, job, code, source))]


def _check_file(key: str, path: str) -> None:
    if not os.path.isfile(path):
        raise UserError(f"{key}={path} is not there: build it (`python -m build --wheel`), or give another.")
    if key == "wheel" and not re.fullmatch(r"[A-Za-z0-9._+-]+\.whl", os.path.basename(path)):
        raise UserError(f"wheel={path} has to be a .whl file, under the name that it was built with.")


def _setup(pod: Pod, job: Job, code: str, source: str) -> str:
    lines = ["set -eu", f"cd {pod.folder}"]
    if code == "image":
        registry = str(pod.target.image).partition("/")[0]
        if registry.endswith(("-docker.pkg.dev", "gcr.io")):
            lines.append(f"sudo gcloud auth configure-docker {registry} --quiet")
        lines.append(f"sudo docker pull --quiet {pod.target.image}")
        return "\n".join(lines)
    if code == "checkout":
        lines += [
            "rm -rf checkout && mkdir checkout",
            "tar --extract --gzip --file=checkout.tar.gz --directory=checkout",
        ]
    lines += machine.install(machine.requirements(job, pod.target, pod.machines, source))
    return "\n".join(lines)


def run_script(pod: Pod, job: Job) -> str:
    """What runs on every machine, as the file run.sh."""
    target = pod.target
    config = own_config_file(job)
    # The shell waits for the supervisor to end after a SIGTERM, and then notes its exit code.
    lines = [
        "#!/usr/bin/env bash",
        "trap : TERM",
        'cd "$(dirname "$0")" || exit 1',
        *machine.sets_environment(target),
    ]
    for name, store in target.secrets.items():
        lines += [f"{name}=$(gcloud secrets versions access latest --secret={store} --project={target.project})",
                  f"export {name}"]  # fmt: skip
    if target.code == "image":
        passed = " ".join(f"--env={name}" for name in (*target.environment, *target.secrets))
        mount = '--volume="$PWD":/launch:ro' if config else ""
        if config:
            job = with_config(job, f"/launch/{os.path.basename(config)}")
        arguments = machine.supervised(job, "jaxlm", target.restarts_in_a_row).removeprefix("jaxlm ")
        # The device files of the chips belong to root.
        words = ["sudo --preserve-env docker run --rm --privileged --net=host --user=root"]
        words += [
            f"--name=jaxlm-{pod.name}",
            passed,
            mount,
            "--entrypoint=jaxlm",
            str(target.image),
            arguments,
        ]
        lines.append(" ".join(word for word in words if word))
    else:
        if config:
            job = with_config(job, f"./{os.path.basename(config)}")
        lines.append(machine.supervised(job, f"{machine.VENV}/bin/jaxlm", target.restarts_in_a_row))
    return "\n".join([*lines, "echo $? > exit_code"]) + "\n"


def start(pod: Pod, job: Job) -> Command:
    """Starts the run on every machine, unless it runs there."""
    lines = [
        "set -eu",
        f"cd {pod.folder}",
        'if [ -f pid ] && kill -0 "$(cat pid)" 2> /dev/null; then echo "It is running already."; exit 0; fi',
        "rm -f exit_code",
        *here_document("cat > run.sh", run_script(pod, job)),
        "nohup setsid bash ./run.sh >> log 2>&1 < /dev/null &",
        "echo $! > pid",
    ]
    return pod.ssh("start the run on every machine", "\n".join(lines))


def follow(pod: Pod, skip_bytes: int = 0) -> Command:
    """Shows the log of the first machine while the run lasts."""
    script = f'cd {pod.folder} && tail --bytes=+{skip_bytes + 1} --follow --pid="$(cat pid)" log'
    return pod.ssh(
        "show the log of the first machine, until the run ends", script, everywhere=False, is_watch=True
    )


def code_of(pod: Pod) -> Command:
    """Prints the exit code of the run on the first machine, `running`, or `lost` (the machine was started anew)."""
    script = (
        f"cd {pod.folder} && if [ -f exit_code ]; then cat exit_code; "
        'elif kill -0 "$(cat pid)" 2> /dev/null; then echo running; else echo lost; fi'
    )
    return pod.ssh("how the run ended", script, everywhere=False)


def stop(pod: Pod) -> Command:
    """Tells the run to save its step and end, on every machine where it still runs."""
    # run.sh leads a session, so that the signal reaches all of it.
    return pod.ssh(
        "stop what is left on the other machines",
        f'cd {pod.folder} && if kill -0 "$(cat pid)" 2> /dev/null; then kill -TERM -- "-$(cat pid)"; fi',
    )


def status(pod: Pod) -> Launch:
    """What there is."""
    return Launch("tpu", (f"What there is of {pod.name}.",), commands=(
        Command("the queued resource", (*_QR, "describe", pod.name, *pod.place,
                "--format=yaml(name,state,tpu.nodeSpec[].nodeId)"), is_watch=True),
    ))  # fmt: skip


def logs(pod: Pod) -> Launch:
    return Launch("tpu", (f"The log of {pod.name}.",), commands=(follow(pod),))


def delete(pod: Pod) -> Launch:
    return Launch(
        "tpu",
        (f"Deletes {pod.name} and its machines. What is in the bucket stays.",),
        commands=(pod.delete(),),
    )


def shell(words: tuple[str, ...]) -> str:
    """A command to be named in a message."""
    return shlex.join(words)
