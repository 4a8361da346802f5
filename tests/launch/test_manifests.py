"""What is written for each platform is valid there, says what the target said, and stands in launch/ as printed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import launch_standins
import pytest
import yaml
from jobset_schema import JOBSET

from jaxlm.launch.launches import here_document
from jaxlm.parallel import distributed
from jaxlm.parallel.distributed import Cluster, detect

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
EXAMPLES = [*SCRIPTS, *sorted((ROOT / "launch").glob("*.yaml"))]
IMAGE = "--image=us-docker.pkg.dev/my-project/jaxlm/jaxlm:0.1.0"
JOB = ["train", "--config=quickstart", "--workdir=gs://my-bucket/run", "--config.data.global_batch_size=512"]
TPU = ["--accelerator=v5e-16", "--zone=us-west4-a", "--project=my-project"]
GKE = ["--on=gke", IMAGE]
ENV = ['--env=GREETING=it\'s $(HOME) "x"', "--secret=TOKEN=keys/token"]
DRY_RUNS = {
    "tpu": ["--on=tpu", *TPU, "--package=jaxlm==0.1.0", ENV[0], "--secret=TOKEN=token", "--slices=2"],
    "tpu image": ["--on=tpu", *TPU, IMAGE, ENV[0], "--secret=TOKEN=token"],
    "gke": [*GKE, *TPU, "--cluster=mine", "--namespace=team", *ENV],
    "gke gpu": [*GKE, "--accelerator=h100x16", *ENV],
    "xpk": ["--on=xpk", *TPU, IMAGE, "--cluster=mine", ENV[0]],
    "skypilot": [
        "--on=skypilot",
        "--accelerator=h100x16",
        "--package=jaxlm==0.1.0",
        ENV[0],
        "--secret=TOKEN",
    ],
    "slurm": ["--on=slurm", "--accelerator=h100x16", "--checkout=/shared/jax lm", ENV[0], "--secret=TOKEN"],
    "ray": [
        "--on=ray",
        "--accelerator=h100x16",
        "--address=http://127.0.0.1:8265",
        "--package=jaxlm==0.1.0",
        ENV[0],
    ],
}
DRY_RUNS |= {
    f"{name} {action}": [flag for flag in DRY_RUNS[name] if not flag.startswith("--env")] + [f"--{action}"]
    for name in ("tpu", "gke", "skypilot", "slurm", "ray") for action in ("status", "logs", "delete")
}  # fmt: skip


def shellcheck(text):
    program = Path(sys.executable).parent / "shellcheck"
    # SC2016: what stands in single quotes is for the other machine to expand.
    done = subprocess.run(
        [program, "--shell=bash", "--exclude=SC2016", "-"], input=text, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", DRY_RUNS)
def test_every_dry_run_is_a_script_without_a_fault(jaxlm, name):
    flags = DRY_RUNS[name]
    is_about = flags[-1] in ("--status", "--logs", "--delete")
    code, out, err = jaxlm("launch", *flags, *([] if is_about else ["--", *JOB]))
    assert code == 0, err
    subprocess.run(["bash", "-n"], input=out, text=True, check=True)
    shellcheck(out)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_of_the_examples_have_no_fault(path):
    shellcheck(path.read_text())


@pytest.mark.parametrize("name", ["tpu", "tpu image", "slurm", "skypilot"])
def test_the_scripts_inside_the_scripts_have_no_fault_either(jaxlm, name):
    """What runs on the machines: the commands over ssh, run.sh, the batch script, setup and run of a task."""
    _, out, _ = jaxlm("launch", *DRY_RUNS[name], "--", *JOB)
    if name.startswith("tpu"):
        words = shlex.split(out, comments=True)
        inner = [word.removeprefix("--command=") for word in words if word.startswith("--command=")]
        assert len(inner) >= 4
        for text in inner:
            shellcheck(text)
            if "run.sh" in text:
                shellcheck(text.split("JAXLM_END'\n")[1].split("\nJAXLM_END")[0])
    elif name == "slurm":
        shellcheck(out.split("JAXLM_END'\n")[1].split("\nJAXLM_END")[0])
    else:
        task = yaml.safe_load(out.split("JAXLM_END'\n")[1].split("\nJAXLM_END")[0])
        shellcheck(task["setup"])
        shellcheck(task["run"])


def manifest(jaxlm, *flags, job=JOB):
    code, out, err = jaxlm("launch", *flags, "--manifest", "--", *job)
    assert code == 0, err
    return out


def check_jobset(document):
    """Errors: those of the schemas."""
    import kubernetes_validate

    jsonschema.validate(document, JOBSET)
    for one in document["spec"]["replicatedJobs"]:
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": one["name"]},
            "spec": one["template"]["spec"],
        }
        kubernetes_validate.validate(job, "1.31", strict=True)


@pytest.mark.parametrize(
    ("flags", "jobs", "hosts", "limit", "selector"),
    [
        (TPU, 1, 4, {"google.com/tpu": 4}, ("tpu-v5-lite-podslice", "4x4")),
        ([*TPU, "--slices=2"], 2, 4, {"google.com/tpu": 4}, ("tpu-v5-lite-podslice", "4x4")),
        ([*TPU[1:], "--accelerator=v5p:4x4x12"], 1, 48, {"google.com/tpu": 4}, ("tpu-v5p-slice", "4x4x12")),
        ([*TPU[1:], "--accelerator=v6e-8"], 1, 1, {"google.com/tpu": 8}, ("tpu-v6e-slice", "2x4")),
        ([*TPU[1:], "--accelerator=h100x16"], 1, 2, {"nvidia.com/gpu": 8}, ("nvidia-h100-80gb", None)),
    ],
    ids=["slice", "two slices", "cubes", "one machine", "gpus"],
)
def test_a_jobset_has_a_job_for_each_slice_and_a_pod_for_each_machine(
    jaxlm, flags, jobs, hosts, limit, selector
):
    job = [*JOB[:-1], "--config.data.global_batch_size=768", "--config.tokenizer.path=$(HOME)/a"]
    document = yaml.safe_load(manifest(jaxlm, *GKE, *flags, "--queue=lq", "--capacity=spot", *ENV, job=job))
    check_jobset(document)
    (replicated,) = document["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert (replicated["replicas"], spec["parallelism"], spec["completions"]) == (jobs, hosts, hosts)
    assert container["resources"]["limits"] == limit
    labels = pod["nodeSelector"]
    kind = labels.get("cloud.google.com/gke-tpu-accelerator") or labels["cloud.google.com/gke-accelerator"]
    assert (kind, labels.get("cloud.google.com/gke-tpu-topology")) == selector
    assert labels["cloud.google.com/gke-spot"] == "true"
    several = hosts > 1 and "google.com/tpu" in limit
    assert ("annotations" in document["metadata"]) == several
    # kubelet would replace $(HOME), and reads $$ as $
    assert "--config.tokenizer.path=$$(HOME)/a" in container["args"]
    assert {"name": "GREETING", "value": 'it\'s $$(HOME) "x"'} in container["env"]
    assert {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "token"}}} in container[
        "env"
    ]


def test_mistakes_end_a_jobset_and_all_else_starts_it_again(jaxlm):
    spec = yaml.safe_load(manifest(jaxlm, *GKE, *TPU))["spec"]
    (rule,) = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2, 3, 4, 5, 130, 141]
    assert spec["failurePolicy"]["maxRestarts"] == 100
    assert (
        yaml.safe_load(manifest(jaxlm, *GKE, *TPU, "--max-restarts=3"))["spec"]["failurePolicy"][
            "maxRestarts"
        ]
        == 3
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["spec"].update(replicateJobs=[]),
        lambda d: d["spec"]["failurePolicy"].update(maxRestart=1),
        lambda d: d["spec"]["replicatedJobs"][0].update(replicas="1"),
        lambda d: d["spec"]["replicatedJobs"][0]["template"]["spec"].update(parallelisms=4),
        lambda d: d["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][
            0
        ].update(img="a"),
        lambda d: d["metadata"].update(name="Upper"),
    ],
)
def test_the_schemas_would_see_a_mistake(jaxlm, change):
    import kubernetes_validate

    document = yaml.safe_load(manifest(jaxlm, *GKE, *TPU))
    change(document)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check_jobset(document)


def test_pods_with_gpus_find_each_other_by_what_the_manifest_says(jaxlm):
    document = yaml.safe_load(manifest(jaxlm, *GKE, "--accelerator=h100x16", "--name=llama"))
    container = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    environ = {
        one["name"]: one.get("value", "1" if one.get("valueFrom") == index else None)
        for one in container["env"]
    }
    cluster = Cluster().completed(environ)
    assert cluster.given == ("llama-slice-0-0.llama:8482", 2, 1)


@pytest.mark.parametrize(
    ("environ", "has_tpu", "expected"),
    [
        (
            {"TPU_WORKER_HOSTNAMES": "gpt2-slice-0-0.gpt2,gpt2-slice-0-1.gpt2", "TPU_WORKER_ID": "1"},
            True,
            "GKE with TPUs",
        ),
        (
            {"TPU_WORKER_HOSTNAMES": "a,b", "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"},
            True,
            "GKE with TPUs",
        ),
        ({}, True, "Cloud TPU"),
        ({"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1"}, True, "Cloud TPU"),
        ({"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1"}, False, "SkyPilot"),
        ({"SKYPILOT_NODE_IPS": "10.0.0.1", "SKYPILOT_NODE_RANK": "0"}, False, None),
    ],
)
def test_processes_on_each_platform_are_detected(monkeypatch, environ, has_tpu, expected):
    monkeypatch.setattr(distributed, "_has_tpu", lambda: has_tpu)
    assert detect(environ) == expected


def test_a_config_of_ones_own_comes_as_a_config_map(jaxlm, tmp_path):
    import kubernetes_validate

    config = tmp_path / "mine.py"
    config.write_text(
        "from jaxlm.run import default_config\n\ndef get_config():\n    return default_config()\n"
    )
    job = ["train", f"--config={config}", "--workdir=gs://my-bucket/run"]
    first, second = yaml.safe_load_all(manifest(jaxlm, *GKE, *TPU, "--skip-config-check", job=job))
    kubernetes_validate.validate(first, "1.31", strict=True)
    check_jobset(second)
    assert first["data"] == {"mine.py": config.read_text()}
    pod = second["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["volumes"] == [{"name": "config", "configMap": {"name": first["metadata"]["name"]}}]
    assert "--config=/etc/jaxlm/mine.py" in pod["containers"][0]["args"]


SKYPILOT = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "setup", "run"}
SKYPILOT_RESOURCES = {"infra", "accelerators", "accelerator_args", "use_spot", "job_recovery", "image_id"}


def test_a_task_of_skypilot_has_the_documented_fields_alone(jaxlm, tmp_path):
    """https://docs.skypilot.co/en/latest/reference/yaml-spec.html, read 2026-11-26."""
    wheel = tmp_path / "jaxlm-1-py3-none-any.whl"
    wheel.touch()
    flags = [f"--wheel={wheel}", "--capacity=spot", ENV[0], "--secret=TOKEN"]
    for accelerator, count in (("h100x16", "H100:8"), ("v5e-16", "tpu-v5litepod-16")):
        task = yaml.safe_load(manifest(jaxlm, "--on=skypilot", f"--accelerator={accelerator}", *flags))
        assert set(task) <= SKYPILOT
        assert set(task["resources"]) <= SKYPILOT_RESOURCES
        assert task["resources"]["accelerators"] == count
        assert task["num_nodes"] == (2 if accelerator == "h100x16" else 1)
        assert task["secrets"] == {"TOKEN": None}
        assert task["file_mounts"] == {f"~/jaxlm-launch/{wheel.name}": str(wheel)}


def test_a_batch_script_says_nodes_and_gpus_before_its_first_command(jaxlm):
    flags = ["--accelerator=h100x16", "--partition=gpu", "--account=me", "--time=7-00:00:00"]
    job = ["train", "--config=quickstart", "--workdir=/shared/run"]
    text = manifest(jaxlm, "--on=slurm", *flags, job=job)
    lines = text.splitlines()
    header = [line for line in lines if line.startswith("#SBATCH ")]
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=[A-Za-z0-9%@:._-]+)?", line) for line in header)
    options = {line.split("--", 1)[1] for line in header}
    assert {"nodes=2", "ntasks-per-node=1", "gpus-per-node=8", "partition=gpu", "account=me"} <= options
    assert {"time=7-00:00:00", "requeue", "signal=TERM@300"} <= options
    assert lines.index(header[-1]) < min(
        i for i, line in enumerate(lines) if line and not line.startswith("#")
    )


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (143, True)])
def test_a_batch_job_that_was_told_to_stop_goes_back_into_the_queue(jaxlm, tmp_path, code, requeued):
    (tmp_path / "shared").mkdir()
    text = manifest(jaxlm, "--on=slurm", "--accelerator=h100x16", f"--checkout={tmp_path}/shared", ENV[0],
                    job=["train", "--config=quickstart", "--workdir=/shared/run"])  # fmt: skip
    launch_standins.install(
        tmp_path, "srun", f"import sys, os\nprint(os.environ['GREETING'], *sys.argv[1:])\nsys.exit({code})"
    )
    launch_standins.install(tmp_path, "scontrol", "import sys\nprint('scontrol', *sys.argv[1:])")
    environ = {"PATH": launch_standins.path_with(tmp_path), "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash"], input=text, env=environ, text=True, capture_output=True)
    assert done.returncode == code, done.stderr
    assert 'it\'s $(HOME) "x" --kill-on-bad-exit=1 .venv/bin/jaxlm launch --on=local --execute' in done.stdout
    assert ("scontrol requeue 7" in done.stdout) == requeued


def made_by(path):
    """The command line in the head of an example."""
    line = next(line for line in path.read_text().splitlines() if line.startswith("# jaxlm launch "))
    return shlex.split(line.removeprefix("# jaxlm "))


@pytest.mark.parametrize("name", ["gke_jobset.yaml", "skypilot.yaml", "slurm.sh", "tpu_pod.sh"])
def test_the_examples_are_what_the_command_in_their_head_prints(jaxlm, monkeypatch, name):
    monkeypatch.chdir(ROOT)
    argv = made_by(ROOT / "launch" / name)
    if name != "tpu_pod.sh":
        argv.insert(argv.index("--"), "--manifest")
    code, out, err = jaxlm(*argv)
    assert code == 0, err
    assert out == (ROOT / "launch" / name).read_text()


def test_what_is_to_be_filled_in_is_said():
    for name in ("v5e-16.yaml", "h100x16.yaml", "tpu_vm.sh"):
        assert "# Fill in:" in (ROOT / "launch" / name).read_text()


def test_the_image_is_made_of_what_is_there_and_runs_as_nobody():
    text = (ROOT / "launch" / "Dockerfile").read_text()
    sources = [
        word for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.M) for word in line.split()[:-1]
    ]
    assert sources
    assert all((ROOT / source).exists() for source in sources)
    ignored = (ROOT / "launch" / "Dockerfile.dockerignore").read_text().split()
    assert {f"!{source}" for source in sources} <= set(ignored)
    assert re.search(r"^USER [1-9]\d*$", text, re.M)
    assert "ARG ACCELERATOR=tpu" in text
    for block in re.findall(r"^RUN ((?:.*\\\n)*.*)$", text, re.M):
        subprocess.run(["sh", "-n"], input=block, text=True, check=True)


def test_a_document_that_holds_the_end_mark_is_whole():
    content = "a\nJAXLM_END\n$(b) `c`\n"
    script = "\n".join(here_document("cat", content))
    assert (
        subprocess.run(["bash"], input=script, text=True, capture_output=True, check=True).stdout == content
    )
