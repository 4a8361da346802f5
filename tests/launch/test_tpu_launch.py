"""`jaxlm launch --on=tpu --execute`: gcloud stands in; it keeps machines in a folder, and runs there what is sent."""

import json
import os
import signal
import subprocess
import sys

import launch_standins
import pytest

from jaxlm.launch import tpu

JOB = ["--", "train", "--config=quickstart", "--workdir=gs://my-bucket/run"]
PRINTS = "import sys\nprint('step 1', *sys.argv[1:])\n"


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """cloud(jaxlm, hosts=...) -> folder of the stand-ins, with a wheel."""
    monkeypatch.setattr(tpu, "POLL_S", 0.02)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STANDIN", str(tmp_path))
    monkeypatch.setenv("PATH", launch_standins.path_with(tmp_path))
    (tmp_path / "jaxlm-1.0-py3-none-any.whl").write_text("wheel")

    def make(jaxlm=PRINTS, hosts=4):
        launch_standins.write_cloud(tmp_path, hosts=hosts, jaxlm=jaxlm)
        return tmp_path

    return make


def launch(jaxlm, *flags, job=JOB, accelerator="v5e-16", code="--wheel=jaxlm-1.0-py3-none-any.whl"):
    target = [f"--accelerator={accelerator}", "--zone=us-west4-a", "--project=my-project", "--name=pod", code]
    return jaxlm("launch", "--on=tpu", "--execute", *target, *flags, *job)


def verbs(folder):
    return [argv[3] if argv[0] == "compute" else "bucket" for argv in launch_standins.calls(folder)]


def test_it_asks_waits_installs_starts_shows_and_deletes(cloud, jaxlm):
    folder = cloud()
    code, out, err = launch(jaxlm, "--env=GREETING=it's $HOME")
    assert code == 0, err
    assert out.count("step 1 launch --on=local --execute --max-restarts=10 -- train --config=quickstart") == 1
    assert verbs(folder) == [
        "bucket", "describe", "create", "describe", "describe", "ssh", "scp", "ssh", "ssh", "ssh", "ssh", "delete"
    ]  # fmt: skip
    assert "pod is WAITING_FOR_RESOURCES" in err
    homes = sorted(folder.glob("gone-*-home-*"))
    assert len(homes) == 4
    for home in homes:
        run = home / "jaxlm-launch" / "pod"
        assert (run / "jaxlm-1.0-py3-none-any.whl").read_text() == "wheel"
        assert "export GREETING='it'\"'\"'s $HOME'" in (run / "run.sh").read_text()


def test_several_slices_are_one_queued_resource(cloud, jaxlm):
    folder = cloud(hosts=4)
    job = [*JOB, "--config.data.global_batch_size=32"]
    code, _, err = launch(jaxlm, "--slices=2", "--capacity=spot", "--keep", job=job)
    assert code == 0, err
    create = launch_standins.calls(folder)[2]
    assert {"--node-count=2", "--node-prefix=pod", "--spot", "--accelerator-type=v5litepod-16"} <= set(create)
    assert len([*folder.glob("home-*")]) == 8
    assert "`gcloud compute tpus queued-resources delete pod --zone=us-west4-a --project=my-project" in err


PREEMPTED = """
import os, sys, time
from pathlib import Path
here = Path(os.environ["STANDIN"])
print("on", "new" if (here / "once").exists() else "old", "machines", flush=True)
if not (here / "once").exists():
    (here / "once").touch()
    (here / "state").write_text("SUSPENDED")
    os.kill(os.getppid(), 9)  # the machine is gone
"""


def test_tpus_that_were_taken_away_are_asked_for_again(cloud, jaxlm):
    folder = cloud(PREEMPTED, hosts=1)
    code, out, err = launch(jaxlm, "--capacity=spot", accelerator="v5e-8")
    assert code == 0, err
    assert out.splitlines()[-1] == "on new machines"
    assert verbs(folder).count("create") == 2
    assert "the TPUs were taken away (restart 1 of 10)" in err
    assert verbs(folder)[-1] == "delete"


def test_a_connection_that_is_cut_is_taken_up_again(cloud, jaxlm):
    folder = cloud(
        "import time\ntime.sleep(1.5)\nprint('the end of the log, in many words, longer than what was shown')\n",
        hosts=1,
    )
    (folder / "cut").touch()
    code, out, err = launch(jaxlm, accelerator="v5e-8")
    assert code == 0, err
    assert out.startswith("what was shown before the connection was cut\n")
    assert out.endswith(" was shown\n")  # from the byte on where it was left
    assert verbs(folder).count("create") == 1
    assert "started anew" not in err


def test_a_run_that_fails_keeps_its_machines_and_its_code(cloud, jaxlm):
    folder = cloud("import sys\nprint('jaxlm: error: no such key')\nsys.exit(2)\n", hosts=1)
    code, out, err = launch(jaxlm, accelerator="v5e-8")
    assert code == 2
    assert "no such key" in out
    assert "pod is kept, and costs money" in err
    assert "delete" not in verbs(folder)
    assert (folder / "home-0" / "jaxlm-launch" / "pod" / "exit_code").read_text() == "2\n"


def test_the_same_command_comes_back_to_what_is_there(cloud, jaxlm):
    folder = cloud(hosts=1)
    (folder / "state").write_text("ACTIVE")
    (folder / "kind").write_text("v5litepod-8")
    (folder / "nodes").write_text("1")
    code, _, err = launch(jaxlm, accelerator="v5e-8")
    assert code == 0, err
    assert "pod is there already, ACTIVE" in err
    assert "create" not in verbs(folder)


def test_the_wait_can_be_interrupted_and_says_what_goes_on(cloud, tmp_path):
    folder = cloud(hosts=1)
    (folder / "rounds").write_text('[["WAITING_FOR_RESOURCES"]]')
    argv = ["--on=tpu", "--execute", "--accelerator=v5e-8", "--zone=us-west4-a", "--project=my-project", "--name=pod",
            "--wheel=jaxlm-1.0-py3-none-any.whl", *JOB]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxlm", "launch", *argv], env=os.environ, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "pod is WAITING_FOR_RESOURCES" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "left alone: what was started goes on" in err
    assert "queued-resources delete pod" in err


QR = "gcloud.compute.tpus.queued-resources"
GONE = "Nothing is left behind."


def refuse(folder, verb, text):
    (folder / f"refuse-{verb}").write_text(text)


@pytest.mark.parametrize(
    ("verb", "text", "rule", "left"),
    [
        ("create", f"ERROR: ({QR}.create) RESOURCE_EXHAUSTED: Quota limit 'TPUV5s' has been exceeded.",
         "the project's quota does not allow it", GONE),
        ("create", "ERROR: (gcloud) PERMISSION_DENIED: Permission 'tpu.nodes.create' denied",
         "needs the role TPU Admin", GONE),
        ("describe", "ERROR: (gcloud) NOT_FOUND: Project 'my-project' was not found.",
         "no such project for this account", ""),
        ("describe", f"ERROR: ({QR}) You do not currently have an active account selected.", "gcloud auth login", ""),
        ("storage buckets describe", "ERROR: (gcloud.storage) gs://my-bucket not found: 404.",
         "the bucket is not there, or may not be used", ""),
        ("storage buckets describe", "ERROR: me@x.y does not have permission to access instance [my-bucket] (or it may "
         "not exist): storage.buckets.get access", "the bucket is not there, or may not be used", ""),
        ("scp", "ERROR: (gcloud.scp) [/usr/bin/scp] exited with return code [1].", "Copy the wheel failed",
         "What exists: the queued resource pod, ACTIVE with pod. `gcloud compute tpus queued-resources delete pod"),
    ],
    ids=["quota", "permission", "project", "login", "bucket missing", "bucket forbidden", "half made"],
)  # fmt: skip
def test_a_refusal_is_one_line_with_the_way_out_and_what_is_left(cloud, jaxlm, verb, text, rule, left):
    folder = cloud(hosts=1)
    refuse(folder, verb, text)
    code, _, err = launch(jaxlm, accelerator="v5e-8")
    (line,) = [line for line in err.splitlines() if line.startswith("jaxlm: error: ")]
    assert code == 2
    assert rule in line
    assert left in line


def test_a_request_that_failed_says_why_and_how_to_be_rid_of_it(cloud, jaxlm):
    folder = cloud(hosts=1)
    (folder / "rounds").write_text('[["WAITING_FOR_RESOURCES", "PROVISIONING", "FAILED"]]')
    (folder / "failure").write_text(
        'There is no more capacity in the zone "us-west4-a"; you can try in another zone'
    )
    code, _, err = launch(jaxlm, accelerator="v5e-8")
    (line,) = [line for line in err.splitlines() if line.startswith("jaxlm: error: ")]
    assert code == 2
    assert "became FAILED: the zone has no such machines free now" in line
    assert "What exists: the queued resource pod, FAILED with pod." in line
    assert "` goes on with it." in line
    assert " --execute -- train " in line
    code, _, err = launch(jaxlm, accelerator="v5e-8")
    assert "The queued resource pod is FAILED" in err


def test_another_resource_of_that_name_is_left_alone(cloud, jaxlm):
    folder = cloud(hosts=1)
    for name, text in (("state", "ACTIVE"), ("kind", "v5litepod-256"), ("nodes", "1")):
        (folder / name).write_text(text)
    code, _, err = launch(jaxlm, accelerator="v5e-8")
    assert code == 2
    assert "is there already, with v5litepod-256 and not v5litepod-8: give another `name`" in err
    assert "ssh" not in verbs(folder)


def test_without_gcloud_it_says_how_to_install_it(cloud, jaxlm, monkeypatch, tmp_path):
    cloud()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    code, _, err = launch(jaxlm)
    assert (code, err.count("\n")) == (2, 1)
    assert "gcloud is not installed" in err
    assert "https://cloud.google.com/sdk/docs/install" in err


@pytest.mark.parametrize("action", ["--status", "--logs", "--delete"])
def test_what_was_launched_can_be_asked_about(cloud, jaxlm, action):
    folder = cloud(hosts=1)
    assert launch(jaxlm, "--keep", accelerator="v5e-8")[0] == 0
    target = ["--accelerator=v5e-8", "--zone=us-west4-a", "--project=my-project", "--name=pod"]
    code, out, _ = jaxlm("launch", "--on=tpu", action, *target)
    assert code == 0
    assert "queued-resources" in out
    assert (folder / "state").exists()
    if action == "--logs":
        (folder / "home-0" / "jaxlm-launch" / "pod" / "pid").write_text("999999999")
    code, _, err = jaxlm("launch", "--on=tpu", "--execute", action, *target)
    assert code == 0, err
    assert (folder / "state").exists() == (action != "--delete")


def test_a_checkout_and_a_config_of_ones_own_go_along(cloud, jaxlm, monkeypatch):
    folder = cloud(hosts=1)
    monkeypatch.setenv("JAXLM_CACHE", str(folder / "cache"))
    source = folder / "source"
    (source / ".git").mkdir(parents=True)
    (source / "pyproject.toml").write_text("[project]")
    (folder / "mine.py").write_text(
        "from jaxlm.run import default_config\n\ndef get_config(n):\n    return default_config()\n"
    )
    job = ["--", "train", "--config", "./mine.py:3", "--workdir=gs://my-bucket/run"]
    code, out, err = launch(
        jaxlm, "--keep", "--skip-config-check", job=job, accelerator="v5e-8", code=f"--checkout={source}"
    )
    assert code == 0, err
    run = folder / "home-0" / "jaxlm-launch" / "pod"
    assert sorted(path.name for path in (run / "checkout").iterdir()) == ["pyproject.toml"]
    assert (run / "mine.py").read_text() == (folder / "mine.py").read_text()
    assert "--config=./mine.py:3" in out


def test_the_script_that_is_printed_does_the_same(cloud, jaxlm):
    """Pasted into a shell, it runs to the log of the first machine."""
    folder = cloud(hosts=2)
    argv = [
        "--accelerator=v5e-8",
        "--zone=us-west4-a",
        "--project=my-project",
        "--name=pod",
        "--package=jaxlm==0.1.0",
    ]
    code, script, _ = jaxlm("launch", "--on=tpu", *argv, *JOB)
    assert code == 0
    assert launch_standins.calls(folder) == []
    done = subprocess.run(
        ["bash"], input=script.replace("sleep 30", "sleep 0.02"), text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert "step 1 launch --on=local" in done.stdout
    assert json.dumps(launch_standins.calls(folder)).count("create") == 1
