"""Several processes as one run: how they find each other, and how they end. What they agree on: `jaxlm/processes.py`.

One order: what flags and environment say; else what JAX detects, where there is something to detect; else a single
process, which pays nothing. `connect` comes before any device is touched.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from jaxlm import processes
from jaxlm.types import UserError

COORDINATOR, NUM_PROCESSES, PROCESS_ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
SKYPILOT = ("SKYPILOT_NODE_IPS", "SKYPILOT_NODE_RANK")
COORDINATOR_PORT = 8482
"""Where nobody says another (JAX_COORDINATOR_PORT): the one that JAX has on TPUs."""
_WAY_OUT = "--coordinator=HOST:PORT, --num-processes and --process-id (or their JAX_... variables)"

_abandoned: list[Any] = []


@dataclass(frozen=True)
class Cluster:
    """Where the processes of a run meet. What is None comes from the environment, or is detected."""

    coordinator: str | None = None
    """host:port, free on the machine of process 0 and reachable from all the others."""
    num_processes: int | None = None
    process_id: int | None = None
    timeout_s: float = 300.0
    """How long to wait for processes that have not come yet."""

    def __post_init__(self):
        count, index = self.num_processes, self.process_id
        if self.coordinator is not None and not self.coordinator.rpartition(":")[2].isdecimal():
            raise UserError(f"--coordinator={self.coordinator} must read HOST:PORT, such as 10.0.0.2:8476.")
        if count is not None and count < 1:
            raise UserError(f"--num-processes={count} must be at least 1.")
        if index is not None and not 0 <= index < (count or index + 1):
            raise UserError(f"--process-id={index} must be in [0, --num-processes={count}).")
        if self.timeout_s <= 0:
            raise UserError(f"--connect-timeout={self.timeout_s} must be positive.")

    def completed(self, environ: Mapping[str, str]) -> Cluster:
        """With the environment's values where there are none yet."""

        def number(name: str) -> int | None:
            text = environ.get(name)
            if text is not None and not text.isdecimal():
                raise UserError(f"{name}={text!r} must be a number.")
            return None if text is None else int(text)

        return replace(
            self,
            coordinator=self.coordinator or environ.get(COORDINATOR),
            num_processes=number(NUM_PROCESSES) if self.num_processes is None else self.num_processes,
            process_id=number(PROCESS_ID) if self.process_id is None else self.process_id,
        )

    @property
    def given(self) -> tuple[Any, Any, Any]:
        """What there is to know, None where it is not known."""
        return self.coordinator, self.num_processes, self.process_id


def detect(environ: Mapping[str, str]) -> str | None:
    """The launcher that started this process as one of several; None: there is none, or just this one process.

    JAX finds out the rest by itself. It is not asked where there is nothing to find: it would look for hosts that
    were never started (an interactive step of a Slurm job), or for metadata that nobody serves.
    """
    if "OMPI_MCA_orte_hnp_uri" in environ and environ.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        return "Open MPI"
    if all(name in environ for name in SLURM):
        tasks = environ.get("SLURM_STEP_NUM_TASKS", environ["SLURM_NTASKS"])
        if "1" not in (tasks, environ["SLURM_NTASKS"]):
            return "Slurm"
    platforms = environ.get("JAX_PLATFORMS", "")
    if (not platforms or "tpu" in platforms) and _has_tpu():
        hosts = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES"))
        if hosts is not None:
            several = "," in hosts or environ.get("MEGASCALE_NUM_SLICES", "1") != "1"
            return "GKE with TPUs" if several else None
        if "TPU_SKIP_MDS_QUERY" not in environ:
            return "Cloud TPU"
    if all(name in environ for name in SKYPILOT) and len(environ[SKYPILOT[0]].split()) > 1:
        return "SkyPilot"
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(environ):
        return "Kubernetes Job" if importlib.util.find_spec("kubernetes") else None
    return None


def _of_skypilot(cluster: Cluster, environ: Mapping[str, str]) -> Cluster:
    """With what SkyPilot tells every node: the addresses of all, the first of them process 0's, and its own place."""
    nodes, rank = environ[SKYPILOT[0]].split(), environ[SKYPILOT[1]]
    if not rank.isdecimal() or int(rank) >= len(nodes):
        raise UserError(
            f"{SKYPILOT[1]}={rank!r} must be a number below {len(nodes)}, the addresses in {SKYPILOT[0]}."
        )
    port = environ.get("JAX_COORDINATOR_PORT", str(COORDINATOR_PORT))
    return replace(
        cluster,
        coordinator=cluster.coordinator or f"{nodes[0]}:{port}",
        num_processes=len(nodes) if cluster.num_processes is None else cluster.num_processes,
        process_id=int(rank) if cluster.process_id is None else cluster.process_id,
    )


def tpu_chips() -> list[str]:
    """The devices by which Linux shows the TPU chips of this machine, whether JAX can use them or not."""
    return glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")


def _has_tpu() -> bool:
    return bool(tpu_chips()) and importlib.util.find_spec("libtpu") is not None


def connect(cluster: Cluster = Cluster()) -> str:
    """Joins the other processes of the run; says in words what was decided. Before any device is touched.

    Errors: UserError when what was given is incomplete, or when not all processes came in `timeout_s`.
    """
    if processes.client() is not None:
        processes.introduce()
        return f"{processes.state().num_processes}, connected before"
    cluster = cluster.completed(os.environ)
    if cluster.num_processes == 1:
        return "1, as asked"
    found = None
    if None in cluster.given:
        found = detect(os.environ)
        if found is None and cluster.given == (None, None, None):
            return "1"
        if found is None:
            flags = ("--coordinator", "--num-processes", "--process-id")
            missing = [flag for flag, value in zip(flags, cluster.given) if value is None]
            raise UserError(
                f"{' and '.join(missing)} must be given too: no launcher was detected that would tell. "
                f"Give {_WAY_OUT}; for a single process, none of them."
            )
    if found == "SkyPilot":
        cluster = _of_skypilot(cluster, os.environ)
    if cluster.process_id == 0 and cluster.coordinator is not None:
        _check_free(cluster.coordinator)
    problem = _initialize(cluster)
    if isinstance(problem, ValueError) and "should be defined" in str(problem) and found:
        return f"1 ({found} knows of no others)"
    if problem is not None:
        _forget()
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        if found:
            reason = f"{found} was detected, but did not tell of the other processes: {reason}"
        raise UserError(
            f"The processes could not be connected: {reason}. Give {_WAY_OUT}, or --num-processes=1."
        )
    processes.introduce()
    state = processes.state()
    return (
        f"{state.num_processes}, {f'found by {found}' if found else 'as given'}; coordinator "
        f"{state.coordinator_address}"
    )


def _initialize(cluster: Cluster) -> BaseException | None:
    """jax.distributed.initialize on a thread: past its own time limit it would abort the process, unexplained."""
    import jax

    outcome: list[BaseException | None] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(*cluster.given, initialization_timeout=int(cluster.timeout_s) + 60)
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=initialize, daemon=True)
    thread.start()
    thread.join(cluster.timeout_s)
    if outcome:
        return outcome[0]
    message = _who_is_missing(cluster)
    _forget()
    raise UserError(message)


def _check_free(coordinator: str) -> None:
    """UserError for a port that is taken, on which JAX would crash without a word."""
    port = int(coordinator.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"Process 0 cannot listen at --coordinator={coordinator} ({error.strerror}): another run may be "
                "using that port. Choose another, for all processes."
            ) from None


def _who_is_missing(cluster: Cluster) -> str:
    state = processes.state()
    address, index = state.coordinator_address or cluster.coordinator, state.process_id
    count = cluster.num_processes or state.num_processes
    host, _, port = str(address).rpartition(":")
    where = f"process {index} of {count} waited {cluster.timeout_s:.0f} s at the coordinator {address}"
    if index == 0:
        came = _connected_to(int(port)) if port.isdecimal() else []
        hosts = f" (from {', '.join(sorted(set(came)))})" if came else ""
        reason = f"{1 + len(came)} of {count} processes came{hosts}"
        hint = "Start the others with the same --coordinator and --num-processes"
    else:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            reason = "it answers, but other processes have not come to it"
            hint = f"Start all {count} processes, --process-id 0 to {count - 1}"
        except (OSError, ValueError) as error:
            reason = f"nothing answers there ({error})"
            hint = "Start process 0 on that machine, and let the others reach that port"
    return f"{where}: {reason}. {hint}; --connect-timeout waits longer, --num-processes=1 trains alone."


def _connected_to(port: int) -> list[str]:
    """Addresses of the processes that are connected to a port of this one, but for its own."""
    import psutil

    connections = psutil.Process().net_connections("tcp")
    own = {(c.raddr.ip.removeprefix("::ffff:"), c.laddr.port) for c in connections if c.raddr}
    return [
        c.raddr.ip.removeprefix("::ffff:")
        for c in connections
        if c.raddr and c.laddr.port == port
        if (c.laddr.ip.removeprefix("::ffff:"), c.raddr.port) not in own
    ]


def _forget() -> None:
    """Lets go of a connection that never came about: JAX would wait for it once more at exit."""
    state = processes.state()
    _abandoned.append((state.client, state.service))  # their destructors wait as well
    state.client = state.service = state.preemption_sync_manager = None


def is_abandoned() -> bool:
    """Whether `connect` gave up, which leaves a thread behind that would delay the end of this process."""
    return bool(_abandoned)


def leave(error: BaseException) -> NoReturn:
    """Ends this process of several because of an error, with one line or, for a bug, its traceback.

    At once: JAX's exit waits for the other processes, which may be waiting for this one in a collective. They
    notice that it is gone, and end too, with exit code 75: a supervisor that sees only one of them starts it again.
    """
    state = processes.state()
    name = f"process {state.process_id} of {state.num_processes}"
    code = 2
    if is_abandoned() and isinstance(error, UserError):
        print(f"jaxlm: error: {error}", file=sys.stderr, flush=True)
        os._exit(code)
    if isinstance(error, UserError):
        print(f"jaxlm: error: {name}: {' '.join(str(error).splitlines())}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        print(f"jaxlm: {name}: interrupted.", file=sys.stderr)
        code = 130
    elif _lost_another(error):
        code = 75
        print(
            f"jaxlm: error: {name}: another process of the run ended or cannot be reached "
            f"({(str(error).splitlines() or [''])[0][:200]}). See what it said; the same command continues from the "
            "last checkpoint.",
            file=sys.stderr,
        )
    else:
        traceback.print_exception(error)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if not state.process_id:
        time.sleep(0.5)  # the store ends with this process: others may be about to read the reason
    os._exit(code)


def _lost_another(error: BaseException) -> bool:
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Gloo", "heartbeat timeout",
             "coordination service", "Socket closed")  # fmt: skip
    return any(word in str(error) for word in words)
