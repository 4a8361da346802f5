"""`jaxlm launch --on=local:N`: what processes get, and what is refused.

That a run survives SIGKILL: test_processes.py.
"""

import shutil
import subprocess

import pytest

from jaxlm.launch import local
from jaxlm.launch.job import Job
from jaxlm.launch.supervisor import Policy
from jaxlm.launch.target import Target


def test_a_mistake_of_the_command_is_said_once_and_not_tried_again(tmp_path, capfd):
    job = Job(("train", "--config=quickstart", f"--workdir={tmp_path}", "--config.nokey=1"))
    code = local.execute(job, None, Target(), Policy())
    err = capfd.readouterr().err
    assert code == 2
    assert err.count("Unknown config key nokey") == 1
    assert "restart" not in err


def test_dry_run_prints_the_processes_and_starts_none(jaxlm, tmp_path):
    code, out, _ = jaxlm(
        "launch",
        "--on=local:2",
        "--env=A=it's",
        "--",
        "train",
        "--config=quickstart",
        f"--workdir={tmp_path}/x",
    )
    assert code == 0
    subprocess.run(["bash", "-n"], input=out, text=True, check=True)
    lines = [line for line in out.splitlines() if "JAX_PROCESS_ID" in line]
    assert len(lines) == 2
    for index, line in enumerate(lines):
        assert "A='it'\"'\"'s' JAX_COORDINATOR_ADDRESS=127.0.0.1:" in line
        assert f"JAX_NUM_PROCESSES=2 JAX_PROCESS_ID={index} " in line
    assert out.count(" &\n") == 2
    assert out.endswith("wait\n")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("argv", "rule"),
    [
        (["--on=local:0"], "N processes from 1 to 64"),
        (["--on=local:two"], "N processes from 1 to 64"),
        (["--on=locl:2"], "did you mean local?"),
        (["--on=local:2", "--logs"], "take no command behind --"),
        (["--on=local:2", "--manifest"], "nothing but --execute"),
        (["--on=local:2", "--secret=NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE is not set in this environment"),
    ],
)
def test_what_local_does_not_know_is_one_line(jaxlm, argv, rule):
    code, out, err = jaxlm("launch", *argv, "--", "train", "--config=quickstart", "--workdir=x")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert rule in err


def test_gpus_are_shared_evenly():
    values = local.environments(2, 1, Target(), {"CUDA_VISIBLE_DEVICES": "0,1,6,7"}, 4)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in values] == ["0,1", "6,7"]
    assert "CUDA_VISIBLE_DEVICES" not in local.environments(2, 1, Target(), {}, 0)[0]
    assert local.environments(None, 0, Target(environment={"A": "b"}), {}, 8) == [{"A": "b"}]
    with pytest.raises(ValueError, match="8 GPUs of this machine cannot be shared evenly by 3"):
        local.check(3, {"JAX_PLATFORMS": "cuda"}, 8)


def test_the_newest_checkpoint_says_how_far_a_run_is(tmp_path, capsys):
    assert local.last_step(None) is None
    assert local.last_step(str(tmp_path)) == -1
    for name in ("2", "10", "12.orbax-checkpoint-tmp", "8-damaged"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert local.last_step(str(tmp_path)) == 10
    assert local.last_step("nosuch://bucket/run") is None
    assert "cannot be seen" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "checkpoints")
