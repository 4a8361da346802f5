"""`--on=gke`: a JobSet, one Job for each slice and one pod for each machine. `--on=xpk`: the command of xpk.

All pods are started again together when one ends before its time (the JobSet's failure policy); not after exit codes
that mean a mistake (a pod failure policy). On TPUs, GKE tells every pod the names of the others, and of several slices
which one it is in (TPU_WORKER_HOSTNAMES, MEGASCALE_...); on GPUs the manifest says so itself, by the names that pods of
a JobSet have.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import Any

from jaxlm.launch.accelerators import Accelerator
from jaxlm.launch.job import Job, own_config_file, with_config
from jaxlm.launch.launches import Command, Launch
from jaxlm.launch.supervisor import FINAL
from jaxlm.launch.target import Target
from jaxlm.types import UserError

COORDINATOR_PORT = 8482
"""As JAX has it on TPUs."""
GRACE_S = 300
"""From SIGTERM to SIGKILL: for the step, and its checkpoint."""
MAX_RESTARTS = 100
"""Of a JobSet, in all: it cannot see whether a run gets on."""
_CONFIGS = "/etc/jaxlm"
_JOB = "slice"


def make_machines(target: Target, platform: str) -> Accelerator:
    """Errors: UserError for what the platform needs and the target lacks."""
    machines = target.machines(platform)
    if machines.names.gke is None:
        raise UserError(
            f"accelerator={target.accelerator} is not known on GKE; there are TPUs, a100-40gb, h100, h200 and b200."
        )
    if machines.is_tpu and machines.num_slices > 1 and machines.hosts_per_slice == 1:
        raise UserError(
            f"slices={machines.num_slices} of {machines.name}: GKE connects slices of several machines "
            "only. Take a larger slice, "
            f"such as {machines.chip.name}-{16 * machines.chip.num_cores}."
        )
    if target.capacity == "reserved" and target.reservation is None:
        raise UserError("capacity=reserved: --on=gke needs the name of the reservation: `reservation: NAME`.")
    return machines


def up(target: Target, job: Job, machines: Accelerator) -> Launch:
    """The manifest, and the commands that apply it."""
    target.need_code("gke", "image")
    documents = [manifest(target, job, machines)]
    if (config := _config_map(target, job)) is not None:
        documents.insert(0, config)
    text = yaml_text(documents)
    return Launch(
        "gke",
        (str(machines),),
        commands=(
            *credentials(target),
            Command("create the JobSet", (*_kubectl(target), "apply", "--filename=-"), stdin=text),
        ),
        manifest=text,
    )


def yaml_text(documents: Sequence[Any]) -> str:
    """YAML as people write it: keys in their order, no anchors, texts of several lines as they are."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            return super().increase_indent(flow, False)

    def represent(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, represent)
    return "---\n".join(
        yaml.dump(
            one, Dumper=Dumper, sort_keys=False, default_flow_style=False, width=4096, allow_unicode=True
        )
        for one in documents
    )


def credentials(target: Target) -> list[Command]:
    """Points kubectl to the cluster of the target; without one it keeps its own."""
    if target.cluster is None:
        return []
    target.need("gke", "zone", "project")
    argv = ("gcloud", "container", "clusters", "get-credentials", target.cluster, f"--zone={target.zone}",
            f"--project={target.project}")  # fmt: skip
    return [Command("point kubectl to the cluster", argv)]


def _kubectl(target: Target) -> tuple[str, ...]:
    return ("kubectl", *([f"--namespace={target.namespace}"] if target.namespace else []))


def status(target: Target) -> Launch:
    own = (*_kubectl(target), "get", "jobset", target.name)
    pods = (*_kubectl(target), "get", "pods", f"--selector={_selector(target)}", "--output=wide")
    return Launch("gke", (f"What there is of {target.name}.",), commands=(
        *credentials(target), Command("the JobSet", own), Command("its pods", pods),
    ))  # fmt: skip


def _selector(target: Target) -> str:
    return f"jobset.sigs.k8s.io/jobset-name={target.name}"


def logs(target: Target) -> Launch:
    first = f"{_selector(target)},jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    argv = (*_kubectl(target), "logs", "--follow", "--tail=-1", f"--selector={first}", "--container=jaxlm",
            "--pod-running-timeout=1h")  # fmt: skip
    return Launch("gke", (f"The log of the first pod of {target.name}.",), commands=(
        *credentials(target), Command("show the log of the first pod", argv, is_watch=True),
    ))  # fmt: skip


def delete(target: Target) -> Launch:
    argv = (*_kubectl(target), "delete", "jobset", target.name)
    return Launch("gke", (f"Deletes the JobSet {target.name}. What is in the bucket stays.",), commands=(
        *credentials(target), Command("delete the JobSet", argv),
    ))  # fmt: skip


def manifest(target: Target, job: Job, machines: Accelerator) -> dict[str, Any]:
    """The JobSet, as plain types."""
    metadata: dict[str, Any] = {"name": target.name}
    if target.namespace:
        metadata["namespace"] = target.namespace
    if target.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": target.queue}
    if machines.is_tpu and machines.hosts_per_slice > 1:
        # All pods of a slice on the machines of one slice, and no other slice's pods there.
        metadata["annotations"] = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
    mistakes = sorted(FINAL - {0})
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": _max_restarts(target),
                "rules": [
                    {"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
                ],
            },
            "replicatedJobs": [
                {
                    "name": _JOB,
                    "replicas": machines.num_slices,
                    "template": {
                        "spec": {
                            "parallelism": machines.hosts_per_slice,
                            "completions": machines.hosts_per_slice,
                            "completionMode": "Indexed",
                            "backoffLimit": 0,
                            "podFailurePolicy": {
                                "rules": [
                                    {
                                        "action": "FailJob",
                                        "onExitCodes": {
                                            "containerName": "jaxlm",
                                            "operator": "In",
                                            "values": mistakes,
                                        },
                                    }
                                ]
                            },
                            "template": {"spec": _pod(target, job, machines)},
                        }
                    },
                }
            ],
        },
    }


def _max_restarts(target: Target) -> int:
    return MAX_RESTARTS if target.max_restarts is None else target.max_restarts


def _pod(target: Target, job: Job, machines: Accelerator) -> dict[str, Any]:
    spec: dict[str, Any] = {"restartPolicy": "Never", "terminationGracePeriodSeconds": GRACE_S}
    if target.service_account:
        if "@" in target.service_account:
            raise UserError(
                f"service_account={target.service_account}: on GKE pods have Kubernetes service accounts; "
                "give the name of the one "
                "that is bound to it (Workload Identity Federation)."
            )
        spec["serviceAccountName"] = target.service_account
    resource = "google.com/tpu" if machines.is_tpu else "nvidia.com/gpu"
    selector = (
        {
            "cloud.google.com/gke-tpu-accelerator": machines.names.gke,
            "cloud.google.com/gke-tpu-topology": machines.topology,
        }
        if machines.is_tpu
        else {"cloud.google.com/gke-accelerator": machines.names.gke}
    )
    if target.capacity == "spot":
        selector["cloud.google.com/gke-spot"] = "true"
    if target.capacity == "reserved":
        selector["cloud.google.com/reservation-name"] = str(target.reservation)
    config = own_config_file(job)
    if config is not None:
        job = with_config(job, f"{_CONFIGS}/{os.path.basename(config)}")
    container: dict[str, Any] = {
        "name": "jaxlm",
        "image": target.image,
        "command": ["jaxlm", job.command],
        # kubelet replaces $(NAME) in arguments, and $$ stands for a $.
        "args": [arg.replace("$(", "$$(") for arg in job.argv[1:]],
    }
    if variables := _environment(target, machines):
        container["env"] = variables
    container["ports"] = [{"containerPort": COORDINATOR_PORT}]
    count = machines.chips_per_host
    container["resources"] = {"limits": {resource: count}}
    if machines.is_tpu:
        container["securityContext"] = {"runAsUser": 0}  # the device files of TPUs belong to root
    if config is not None:
        container["volumeMounts"] = [{"name": "config", "mountPath": _CONFIGS, "readOnly": True}]
        spec["volumes"] = [{"name": "config", "configMap": {"name": f"{target.name}-config"}}]
    return {**spec, "nodeSelector": selector, "containers": [container]}


def _environment(target: Target, machines: Accelerator) -> list[dict[str, Any]]:
    """Variables of the container."""
    found: list[dict[str, Any]] = [
        {"name": name, "value": value.replace("$(", "$$(")} for name, value in target.environment.items()
    ]
    for name, store in target.secrets.items():
        secret, _, key = str(store or "").partition("/")
        if not secret or not key:
            raise UserError(
                f"secrets.{name}: --on=gke reads Kubernetes secrets: write `{name}: SECRET/KEY` "
                f"(`kubectl create secret generic SECRET --from-literal=KEY=...` makes one)."
            )
        found.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    if not machines.is_tpu and machines.num_hosts > 1:
        index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        found += [
            {"name": "JAX_COORDINATOR_ADDRESS",
             "value": f"{target.name}-{_JOB}-0-0.{target.name}:{COORDINATOR_PORT}"},
            {"name": "JAX_NUM_PROCESSES", "value": str(machines.num_hosts)},
            {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        ]  # fmt: skip
    return found


def _config_map(target: Target, job: Job) -> dict[str, Any] | None:
    """The user's own config file, for the pods to read."""
    path = own_config_file(job)
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        content = file.read(1 << 20)
    metadata = {"name": f"{target.name}-config"} | (
        {"namespace": target.namespace} if target.namespace else {}
    )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {os.path.basename(path): content},
    }


def xpk(target: Target, job: Job, machines: Accelerator) -> Launch:
    """The command that has xpk make a JobSet of its own."""
    target.need("xpk", "cluster", "zone", "project")
    target.need_code("xpk", "image")
    if own_config_file(job) is not None:
        raise UserError(
            f"--config={job.config} is a file of this machine, and xpk takes none along: put it into the image."
        )
    if target.secrets:
        raise UserError("secrets: xpk has no way to name them; use --on=gke, which reads Kubernetes secrets.")
    argv = ["xpk", "workload", "create", f"--cluster={target.cluster}", f"--workload={target.name}",
            f"--zone={target.zone}", f"--project={target.project}"]  # fmt: skip
    if machines.is_tpu:
        kind = machines.accelerator_type or f"{machines.chip.name}-{machines.topology}"
        argv += [f"--tpu-type={kind}", f"--num-slices={machines.num_slices}"]
    elif machines.names.xpk is None or machines.chips_per_host not in machines.names.machines:
        raise UserError(f"accelerator={target.accelerator} is not known to xpk.")
    else:
        argv += [
            f"--device-type={machines.names.xpk}-{machines.chips_per_host}",
            f"--num-nodes={machines.num_hosts}",
        ]
    argv += [f"--docker-image={target.image}", f"--max-restarts={_max_restarts(target)}",
             # Besides 42 and 127 to 255: a traceback, and a run that stood still.
             "--restart-on-exit-codes=1,75", f"--termination-grace-period-seconds={GRACE_S}"]  # fmt: skip
    argv += {"spot": ["--spot"], "reserved": [f"--reservation={target.reservation}"], "on-demand": []}[
        target.capacity
    ]
    argv += [f"--env={name}={value}" for name, value in target.environment.items()]
    argv.append(f"--command={shlex.join(['jaxlm', *job.argv])}")
    return Launch("xpk", (str(machines),), commands=(Command("create the workload", tuple(argv)),))


def xpk_delete(target: Target) -> Launch:
    target.need("xpk", "cluster", "zone", "project")
    place = (f"--zone={target.zone}", f"--project={target.project}")
    argv = ("xpk", "workload", "delete", f"--cluster={target.cluster}", f"--workload={target.name}", *place)
    return Launch("xpk", (f"Deletes {target.name}.",), commands=(Command("delete the workload", argv),))
