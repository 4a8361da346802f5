"""Promises of jaxlm/parallel/distributed.py that need no second process; the others are in test_processes.py."""

import jax
import numpy as np
import pytest

from jaxlm import processes
from jaxlm.parallel import distributed, sharding
from jaxlm.parallel.distributed import Cluster, connect, detect
from jaxlm.parallel.mesh import make_mesh
from jaxlm.types import UserError

SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-4]", "SLURM_NTASKS": "4", "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}  # fmt: skip
OMPI = {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}
POD = {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "1"}


@pytest.mark.parametrize(
    ("environ", "has_tpu", "expected"),
    [
        ({}, False, None),
        (SLURM, False, "Slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, False, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, False, None),  # an interactive step of a job of four
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, False, None),  # sbatch without srun
        (OMPI, False, "Open MPI"),
        (OMPI | {"OMPI_COMM_WORLD_SIZE": "1"}, False, None),
        (POD, True, "GKE with TPUs"),
        (POD, False, None),
        (POD | {"JAX_PLATFORMS": "cpu"}, True, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, True, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, True, "GKE with TPUs"),
        ({}, True, "Cloud TPU"),
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False, None),  # any pod, such as a notebook's
    ],
)
def test_jax_is_asked_only_where_there_are_others(monkeypatch, environ, has_tpu, expected):
    monkeypatch.setattr(distributed, "_has_tpu", lambda: has_tpu)
    assert detect(environ) == expected


@pytest.fixture
def environ(monkeypatch):
    """No process and no launcher of the machine that tests run on, and a JAX that notes how it is called."""
    for name in (distributed.COORDINATOR, distributed.NUM_PROCESSES, distributed.PROCESS_ID, *SLURM, *OMPI):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed, "_has_tpu", lambda: False)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: calls.append(args))
    return calls


def test_a_single_process_asks_nobody(environ):
    assert connect() == "1"
    assert connect(Cluster(num_processes=1)) == "1, as asked"
    assert environ == []


def test_flags_win_over_the_environment_and_both_over_detection(environ, monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    connect()
    monkeypatch.setenv(distributed.COORDINATOR, "10.0.0.1:80")
    connect()
    monkeypatch.setenv(distributed.NUM_PROCESSES, "3")
    monkeypatch.setenv(distributed.PROCESS_ID, "2")
    connect()
    connect(Cluster("10.0.0.9:90", process_id=1))
    assert environ == [
        (None, None, None), ("10.0.0.1:80", None, None), ("10.0.0.1:80", 3, 2), ("10.0.0.9:90", 3, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        (Cluster("h:1"), "--num-processes and --process-id must be given too"),
        (Cluster(None, 2, 0), "--coordinator must be given too"),
    ],
)
def test_half_of_the_flags_is_refused(environ, cluster, said):
    with pytest.raises(UserError, match=said):
        connect(cluster)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Cluster("host"), "--coordinator=host must read HOST:PORT"),
        (lambda: Cluster("h:1", 0, 0), "--num-processes=0"),
        (lambda: Cluster("h:1", 2, 2), r"--process-id=2 must be in \[0, --num-processes=2\)"),
        (
            lambda: Cluster().completed({distributed.PROCESS_ID: "one"}),
            "JAX_PROCESS_ID='one' must be a number",
        ),
    ],
)
def test_a_wrong_value_is_named(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_a_failing_detection_says_how_to_do_without(environ, monkeypatch):
    def initialize(*_, **__):
        raise RuntimeError("no metadata")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(distributed, "_forget", lambda: None)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"Slurm was detected.*no metadata.*--num-processes=1"):
        connect()


def test_alone_agreements_are_plain_calls():
    assert processes.from_first(lambda: {"a": 1}) == {"a": 1}
    assert processes.from_all("mine") == ["mine"]
    processes.check_same("it", {"a": object()})
    with pytest.raises(ZeroDivisionError), processes.together():
        _ = 1 / 0


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 1, 8), (2, 1, 1, 4)])
def test_rows_of_a_process_land_where_the_mesh_wants_them(monkeypatch, shape):
    """As of several processes: place_batch then makes every part by itself."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    mesh = make_mesh(dict(zip(("data", "fsdp", "tensor", "sequence"), shape)))
    value = np.arange(16 * 3, dtype=np.uint32).reshape(16, 3)
    placed = sharding.place_batch({"x": value, "y": value[:, 0]}, mesh, 16)
    np.testing.assert_array_equal(placed["x"], value)
    np.testing.assert_array_equal(placed["y"], value[:, 0])
    assert placed["x"].sharding == sharding.batch_sharding(mesh)


def test_nodes_of_skypilot_meet_at_the_first_of_them(environ, monkeypatch):
    monkeypatch.setenv("SKYPILOT_NODE_IPS", "10.0.0.1\n10.0.0.2\n")
    monkeypatch.setenv("SKYPILOT_NODE_RANK", "1")
    assert "found by SkyPilot" in connect()
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "99")
    connect(Cluster(process_id=0))
    assert environ == [("10.0.0.1:8482", 2, 1), ("10.0.0.1:99", 2, 0)]
    monkeypatch.setenv("SKYPILOT_NODE_RANK", "2")
    with pytest.raises(UserError, match="SKYPILOT_NODE_RANK='2' must be a number below 2"):
        connect()


def test_a_process_that_lost_another_asks_to_be_started_again(monkeypatch, capsys):
    class Left(Exception):
        pass

    def leave(code):
        raise Left(code)

    monkeypatch.setattr(distributed.os, "_exit", leave)
    monkeypatch.setattr(distributed.time, "sleep", lambda _: None)
    for error, code in (
        (RuntimeError("Gloo: Connection closed by peer"), 75),
        (UserError("no such key"), 2),
        (KeyError(), 1),
    ):
        with pytest.raises(Left) as raised:
            distributed.leave(error)
        assert raised.value.args == (code,)
    capsys.readouterr()
