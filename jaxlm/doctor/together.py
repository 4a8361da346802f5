"""Checks that the processes of a run make together: do all come, are they the same, do their clocks agree."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from importlib.metadata import version

from jaxlm import processes
from jaxlm.config import flatten
from jaxlm.doctor.check import Doubt
from jaxlm.parallel import distributed
from jaxlm.parallel.distributed import Cluster
from jaxlm.runconfig import RunConfig
from jaxlm.source_hash import check_same_code
from jaxlm.types import UserError

CLOCK_S = 3.0
"""Clocks may differ this much: what object stores and certificates refuse, and event logs mix up, is minutes."""
RETRY_S = 0.5


def reach(cluster: Cluster) -> str | None:
    """A TCP connection to the coordinator, retried until the time limit; None where this process does not need one."""
    cluster = cluster.completed(os.environ)
    if cluster.coordinator is None or not cluster.process_id or cluster.num_processes == 1:
        return None
    host, _, port = cluster.coordinator.rpartition(":")
    began = time.monotonic()
    while True:
        at = time.monotonic()
        try:
            socket.create_connection(
                (host.strip("[]"), int(port)), timeout=min(5.0, cluster.timeout_s)
            ).close()
            return f"{cluster.coordinator} answers in {1000 * (time.monotonic() - at):.0f} ms"
        except (OSError, OverflowError) as error:
            if at - began + RETRY_S > cluster.timeout_s:
                raise UserError(
                    f"nothing answers at {cluster.coordinator} ({error}) after {at - began:.0f} s. Run this on "
                    "process 0 too, at the same time; if it runs there, let a firewall pass that port, and check "
                    "that the name means that machine here."
                ) from None
        time.sleep(RETRY_S)


def join(cluster: Cluster) -> str:
    """Whether all processes come: as a training does it."""
    return distributed.connect(cluster)


def same_run(cfg: RunConfig | None, workdir: str | None) -> str:
    """Code, versions, config and workdir of all processes against those of the first."""
    check_same_code()
    facts = {"jax": version("jax"), "--workdir": workdir, "--config": cfg is not None}
    processes.check_same("The run", facts | (flatten(cfg) if cfg is not None else {}))
    return (
        f"code, versions{', config' if cfg is not None else ''} and workdir of {processes.count()} processes"
    )


def same_data(tokenizer_sha256: str | None, corpus_sha256: dict[str, str]) -> str:
    """Hashes of the tokenizer and the sources on all processes against those of the first."""
    facts = {"tokenizer_sha256": tokenizer_sha256, "corpus_sha256": corpus_sha256}
    processes.check_same("The data", facts)
    return f"tokenizer and {len(corpus_sha256)} source(s) of {processes.count()} processes"


def same_time() -> str:
    """The clocks of all processes, read when the last has come."""
    processes.from_all(None, "Reading the clocks")
    return compare_clocks(processes.from_all(time.time(), "Reading the clocks"))


def compare_clocks(times: Sequence[float]) -> str:
    """Doubt for a clock that is not that of the first process.

    Args:
      times: Unix time of each process at about the same moment (within the milliseconds that a message takes).
    """
    worst = max(range(len(times)), key=lambda index: abs(times[index] - times[0]))
    ahead_s = times[worst] - times[0]
    if abs(ahead_s) > CLOCK_S:
        raise Doubt(
            f"the clock of {processes.name_of(worst)} is {abs(ahead_s):.1f} s "
            f"{'ahead of' if ahead_s > 0 else 'behind'} that of {processes.name_of(0)}: turn on time synchronisation "
            "(chrony, systemd-timesyncd), or stores refuse its requests and logs mix up what came first."
        )
    return f"{len(times)} clocks within {max(times) - min(times):.2f} s"
