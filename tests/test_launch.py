"""What starts jaxlm elsewhere is valid where it can be checked: shell syntax, YAML, names of configs and flags."""

import argparse
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from jaxlm.cli import train

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
MANIFESTS = sorted((ROOT / "launch").glob("*.yaml"))


def test_there_is_one_for_each_kind_of_cluster():
    assert [path.name for path in SCRIPTS + MANIFESTS] == [
        "slurm.sh", "tpu_pod.sh", "tpu_vm.sh", "gke_jobset.yaml"
    ]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_shell(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_valid_yaml(manifest):
    job = yaml.safe_load(manifest.read_text())
    assert job["kind"] == "JobSet"
    spec = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"]


@pytest.mark.parametrize("path", SCRIPTS + MANIFESTS, ids=lambda path: path.name)
def test_they_say_what_to_fill_in_and_name_what_exists(path):
    text = path.read_text()
    assert "# Fill in:" in text
    for name in re.findall(r"(?:--config=|CONFIG:-)(\w+)", text):
        assert (ROOT / "configs" / f"{name}.py").exists()
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    known = {"--config", *(flag for action in parser._actions for flag in action.option_strings)}
    command = text[text.index("args:") if path.suffix == ".yaml" else text.index("jaxlm train --") :]
    assert set(re.findall(r"--[a-z][a-z-]*", command)) <= known


def run_with(script, tmp_path, program, *args):
    """What the script calls `program` with."""
    fake = tmp_path / "bin" / program
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nfor arg; do echo "$arg"; done\n')
    fake.chmod(0o755)
    environ = {"PATH": f"{fake.parent}:/usr/bin:/bin", "WORKDIR": "gs://b/r", "CONFIG": "quickstart"}
    done = subprocess.run(["bash", script, *args], env=environ, text=True, capture_output=True, check=True)
    return done.stdout.splitlines()


def test_the_pod_script_gives_every_host_the_whole_command(tmp_path):
    args = run_with(ROOT / "launch" / "tpu_pod.sh", tmp_path, "gcloud", "--config.seed=3")
    assert "--worker=all" in args
    assert args[-1] == (
        "--command=cd 'jaxlm' && .venv/bin/jaxlm train --config='quickstart' --workdir='gs://b/r' --config.seed=3"
    )


def test_the_slurm_script_starts_one_process_per_node(tmp_path):
    script = ROOT / "launch" / "slurm.sh"
    assert "#SBATCH --ntasks-per-node=1" in script.read_text()
    args = run_with(script, tmp_path, "srun", "--config.seed=3")
    assert args[1:] == [
        ".venv/bin/jaxlm", "train", "--config=quickstart", "--workdir=gs://b/r", "--config.seed=3"
    ]  # fmt: skip
