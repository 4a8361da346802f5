"""Start a run on rented machines, or several processes here, and keep it going.

jaxlm launch --on=tpu --target=pod.yaml -- train --config=pretrain_llama2_7b_v5e256 --workdir=gs://BUCKET/RUN
jaxlm launch --on=local:2 --execute -- train --config=quickstart --workdir=runs/two

Prints what it would do, as a script that can be pasted; --execute does it. PLATFORM is one of

  tpu        Cloud TPU queued resources, one slice or several, over gcloud
  gke        a JobSet for GKE, over kubectl; xpk: the same over xpk
  skypilot   a task for SkyPilot, on any cloud
  slurm      a batch script for GPUs
  ray        a job for a Ray cluster
  local:N    N processes on this machine; local: one, which finds the others as the platform says

The target says which machines: accelerator (v5e-256, v5p-128, v5e:16x16, h100x16), zone, project, bucket, and where
jaxlm comes from: docs/launch.md lists its keys. Flags win over the file. The config is checked against the
machines before anything is rented. --status, --logs and --delete are for what was launched before.

Exit code: with --execute that of the run where it is waited for (tpu, local), else 0; 2 for a mistake.
"""

from __future__ import annotations

import argparse
import os
import shlex
from typing import TYPE_CHECKING, Any

from jaxlm.types import UserError

if TYPE_CHECKING:
    from jaxlm.launch.job import Job
    from jaxlm.launch.launches import Launch
    from jaxlm.launch.target import Target

PLATFORMS = ("tpu", "gke", "xpk", "skypilot", "slurm", "ray", "local")
_TEXTS = {
    "accelerator": "v5e-256, v5p-128, v5e:16x16, h100x16",
    "topology": "shape of a slice, where the accelerator's name leaves several",
    "name": "of what is made (jaxlm)",
    "zone": "of Google Cloud",
    "project": "of Google Cloud",
    "capacity": "on-demand, spot or reserved (on-demand)",
    "reservation": "its name, on GKE",
    "bucket": "folder for runs: without a --workdir behind --, it is BUCKET/NAME",
    "image": "container image with jaxlm",
    "wheel": "wheel of jaxlm on this machine",
    "checkout": "source of jaxlm on this machine; on Slurm and Ray, on the shared disk",
    "package": "jaxlm on a package index, jaxlm==0.1.0",
    "service-account": "of the machines",
    "network": "of the machines",
    "subnetwork": "of the machines",
    "runtime-version": "software of TPU VMs",
    "cluster": "of GKE",
    "namespace": "of Kubernetes",
    "queue": "of Kueue",
    "partition": "of Slurm",
    "account": "of Slurm",
    "time": "limit of a Slurm job",
    "address": "of a Ray cluster",
    "infra": "of SkyPilot",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags beside those of the command behind --."""
    parser.add_argument(
        "--on", required=True, metavar="PLATFORM", help="tpu, gke, xpk, skypilot, slurm, ray, local:N"
    )
    parser.add_argument("--target", metavar="FILE", help="YAML file that describes the machines")
    parser.add_argument(
        "--execute", action="store_true", help="do it, instead of printing what would be done"
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--status", action="store_true", help="say what there is")
    action.add_argument("--logs", action="store_true", help="show the log of the first machine")
    action.add_argument("--delete", action="store_true", help="delete what was launched; the bucket stays")
    action.add_argument(
        "--manifest", action="store_true", help="print the manifest alone (gke, skypilot, slurm)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the TPUs when the run is done")
    parser.add_argument("--skip-config-check", action="store_true",
                        help="of a config that can be resolved on the machines alone")  # fmt: skip
    group = parser.add_argument_group("the target (each also a key of its file)")
    for name, text in _TEXTS.items():
        group.add_argument(f"--{name}", metavar=name.upper().replace("-", "_"), help=text)
    group.add_argument("--slices", type=int, metavar="N", help="of TPUs, over the data-center network (1)")
    group.add_argument(
        "--max-restarts", type=int, metavar="N", help="in a row, without a new checkpoint (10)"
    )
    group.add_argument("--internal-ips", action="store_true", default=None, help="no external addresses")
    group.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="environment; may be repeated"
    )
    group.add_argument("--secret", action="append", default=[], metavar="NAME[=STORED]",
                       help="variable, and the secret's name in the platform's store; may be repeated")  # fmt: skip
    parser.add_argument(
        "job", nargs="*", metavar="COMMAND", help="behind --: a command of jaxlm with its flags"
    )


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Prints, or executes."""
    from jaxlm.launch import local
    from jaxlm.launch.target import read_target

    platform = _platform(args.on)
    if config_argv:
        raise UserError(
            f"{config_argv[0]} stands before --: flags of the command go behind it, `-- train {config_argv[0]} ...`."
        )
    target = read_target(args.target, _changes(args))
    is_about = args.status or args.logs or args.delete
    if is_about and args.job:
        raise UserError("--status, --logs and --delete take no command behind --.")
    if platform == "local":
        if is_about or args.manifest:
            raise UserError("--on=local has nothing but --execute: the run is there while the command runs.")
        return _local(args, target, local.num_processes(args.on))
    if is_about:
        from jaxlm.launch import programs

        launch = _about(platform, args, target)
        return programs.execute(launch) if args.execute else _print(launch, args)
    return _up(platform, args, target)


def _platform(text: str) -> str:
    from jaxlm.config import nearest

    if text.startswith("local:") or text in PLATFORMS:
        return text.partition(":")[0]
    match = nearest(text, PLATFORMS)
    hint = f"; did you mean {match}?" if match else ""
    raise UserError(f"--on={text} is not one of {', '.join(PLATFORMS[:-1])}, local or local:N{hint}")


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    """The keys of the target that flags give."""
    names = [*_TEXTS, "slices", "max-restarts", "internal-ips"]
    found = {name.replace("-", "_"): getattr(args, name.replace("-", "_")) for name in names}
    changes = {key: value for key, value in found.items() if value is not None}
    environment = {}
    for text in args.env:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--env={text!r} must read NAME=VALUE.")
        environment[name] = value
    secrets = {name: stored or None for name, _, stored in (text.partition("=") for text in args.secret)}
    return (
        changes
        | ({"environment": environment} if environment else {})
        | ({"secrets": secrets} if secrets else {})
    )


def _job(args: argparse.Namespace, target: Target) -> Job:
    from jaxlm.cli.main import commands
    from jaxlm.launch.job import make_job

    return make_job(args.job, commands(), target)


def _local(args: argparse.Namespace, target: Target, num: int | None) -> int:
    from jaxlm.launch import local
    from jaxlm.launch.job import check_together
    from jaxlm.launch.supervisor import Policy

    job = _job(args, target)
    check_together(job, num or 1)
    local.check(num, os.environ, local.count_gpus(os.environ))
    if target.secrets:
        missing = [name for name in target.secrets if name not in os.environ]
        if missing:
            raise UserError(f"secrets: {', '.join(missing)} is not set in this environment.")
    if not args.execute:
        print(local.render(job, num, target, os.environ), end="")
        return 0
    return local.execute(job, num, target, Policy(max_restarts=target.restarts_in_a_row))


def _up(platform: str, args: argparse.Namespace, target: Target) -> int:
    from jaxlm.launch import gke, programs, ray_jobs, skypilot, slurm, tpu
    from jaxlm.launch.job import check_config, check_together, check_workdir

    job = _job(args, target)
    pod = tpu.make_pod(target) if platform == "tpu" else None
    if pod is not None:
        machines = pod.machines
    elif platform in ("gke", "xpk"):
        machines = gke.make_machines(target, platform)
    else:
        machines = {"skypilot": skypilot, "slurm": slurm, "ray": ray_jobs}[platform].make_machines(target)
    check_together(job, machines.num_hosts)
    check_workdir(job, machines.num_hosts, shared_disk=platform in ("slurm", "ray", "skypilot"))
    if not args.skip_config_check:
        check_config(job, machines)
    if pod is not None:
        launch = tpu.up(pod, job)
    elif platform == "gke":
        launch = gke.up(target, job, machines)
    elif platform == "xpk":
        launch = gke.xpk(target, job, machines)
    else:
        launch = {"skypilot": skypilot, "slurm": slurm, "ray": ray_jobs}[platform].up(target, job, machines)
    if args.manifest:
        if launch.manifest is None:
            raise UserError(f"--on={platform} has no manifest: it is gke, skypilot and slurm that have.")
        first, rest = launch.manifest.split("\n", 1)
        made = f"# {' '.join(_own_command(args).split())}"
        print("\n".join([first, made, rest] if first.startswith("#!") else [made, first, rest]), end="")
        return 0
    if not args.execute:
        return _print(launch, args)
    if pod is not None:
        from jaxlm.launch.tpu_run import Controller

        return Controller(pod, job, _own_command(args, execute=True), keep=args.keep).up()
    return programs.execute(launch)


def _about(platform: str, args: argparse.Namespace, target: Target) -> Launch:
    """What says, shows or deletes what was launched before."""
    from jaxlm.launch import gke, ray_jobs, skypilot, slurm, tpu

    action = "status" if args.status else "logs" if args.logs else "delete"
    if platform == "tpu":
        return getattr(tpu, action)(tpu.make_pod(target))
    if platform == "xpk":
        if action == "delete":
            return gke.xpk_delete(target)
        platform = "gke"  # what xpk makes is a JobSet
    return getattr({"gke": gke, "skypilot": skypilot, "slurm": slurm, "ray": ray_jobs}[platform], action)(
        target
    )


def _print(launch: Launch, args: argparse.Namespace) -> int:
    from jaxlm.launch.launches import render

    about = (f"{_own_command(args)}", *launch.about, "Printed, not run: --execute runs it.")
    print(render(launch._replace(about=about)), end="")
    return 0


def _own_command(args: argparse.Namespace, *, execute: bool = False) -> str:
    """This command line as one can paste it, without --manifest."""
    argv = [f"--on={args.on}", *([f"--target={args.target}"] if args.target else [])]
    for name in (*_TEXTS, "slices", "max-restarts"):
        if (value := getattr(args, name.replace("-", "_"))) is not None:
            argv.append(f"--{name}={value}")
    for name in ("internal-ips", "keep", "skip-config-check", "status", "logs", "delete"):
        if getattr(args, name.replace("-", "_")):
            argv.append(f"--{name}")
    argv += ["--execute"] if execute else []
    argv += [f"--env={text}" for text in args.env] + [f"--secret={text}" for text in args.secret]
    return shlex.join(["jaxlm", "launch", *argv, *(["--", *args.job] if args.job else [])])
