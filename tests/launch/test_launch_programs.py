"""Programs of platforms, run or missing: what they refuse is one line, with the way out and what was done before."""

import launch_standins
import pytest

from jaxlm.launch import programs
from jaxlm.types import UserError

JOB = ["--", "train", "--config=quickstart", "--workdir=gs://my-bucket/run"]
TPU = ["--accelerator=v5e-16", "--zone=us-west4-a", "--project=my-project", "--image=a/b:c", "--cluster=mine"]
PLATFORMS = {
    "gcloud": ["--on=gke", *TPU],
    "kubectl": ["--on=gke", *TPU[:4]],
    "xpk": ["--on=xpk", *TPU],
    "sky": ["--on=skypilot", "--accelerator=h100x8", "--package=jaxlm==0.1.0"],
    "sbatch": ["--on=slurm", "--accelerator=h100x8"],
    "ray": ["--on=ray", "--accelerator=h100x8", "--address=http://127.0.0.1:8265"],
}


@pytest.fixture
def bin_folder(tmp_path, monkeypatch):
    """Programs are looked for in this folder alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


@pytest.mark.parametrize("program", PLATFORMS)
def test_a_program_that_is_missing_is_named_with_how_to_install_it(jaxlm, bin_folder, program):
    code, out, err = jaxlm("launch", "--execute", *PLATFORMS[program], *JOB)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"jaxlm: error: {program} is not installed, or not on $PATH: ")
    assert programs.INSTALL[program] in err
    assert [path.name for path in bin_folder.iterdir()] == ["bin"]


SAYS = "import sys\nprint({said!r}, file=sys.stderr)\nsys.exit({code})\n"


@pytest.mark.parametrize(
    ("program", "said", "rule"),
    [
        (
            "kubectl",
            'error: no matches for kind "JobSet" in version "jobset.x-k8s.io/v1alpha2"',
            "the cluster has no JobSet",
        ),
        (
            "kubectl",
            "The connection to the server localhost:8080 was refused - connection refused",
            "no cluster that answers",
        ),
        (
            "kubectl",
            'Error from server (Forbidden): jobsets is forbidden: User "me" cannot create',
            "may not do that",
        ),
        ("sbatch", "sbatch: error: invalid partition specified: gpu", "`sinfo` lists them"),
        (
            "sbatch",
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination",
            "sacctmgr",
        ),
        ("xpk", "[XPK] Error: something new", "xpk said: [XPK] Error: something new."),
        ("ray", "", "it ended with code 1 and said nothing"),
    ],
)
def test_a_refusal_is_one_line(jaxlm, bin_folder, program, said, rule):
    launch_standins.install(bin_folder, program, SAYS.format(said=said, code=1))
    code, _, err = jaxlm("launch", "--execute", *PLATFORMS[program], *JOB)
    (line,) = [line for line in err.splitlines() if line.startswith("jaxlm: error:")]
    assert code == 2
    assert rule in line
    assert line.endswith("Nothing was started.")


def test_what_was_done_before_a_refusal_is_said(jaxlm, bin_folder):
    launch_standins.install(bin_folder, "gcloud", "")
    launch_standins.install(bin_folder, "kubectl", SAYS.format(said="error: no", code=1))
    code, _, err = jaxlm("launch", "--execute", *PLATFORMS["gcloud"], *JOB)
    assert code == 2
    assert "Before that: point kubectl to the cluster." in err


def test_what_is_printed_is_what_is_run(jaxlm, bin_folder):
    launch_standins.install(
        bin_folder, "sbatch", "import sys\nopen('seen', 'w').write(sys.stdin.read())\nprint(*sys.argv[1:])\n"
    )
    _, text, _ = jaxlm("launch", "--manifest", *PLATFORMS["sbatch"], *JOB)
    code, _, err = jaxlm("launch", "--execute", *PLATFORMS["sbatch"], *JOB)
    assert code == 0, err
    lines = text.splitlines()
    assert (bin_folder / "seen").read_text().splitlines() == [
        lines[0],
        *lines[2:],
    ]  # but for the command in its head


def test_a_file_of_ones_own_is_not_written_over(jaxlm, bin_folder):
    launch_standins.install(bin_folder, "sky", "")
    assert jaxlm("launch", "--execute", *PLATFORMS["sky"], *JOB)[0] == 0
    assert jaxlm("launch", "--execute", *PLATFORMS["sky"], *JOB)[0] == 0  # the same again
    path = bin_folder / "jaxlm.sky.yaml"
    path.write_text(f"{path.read_text()}# mine\n")
    code, _, err = jaxlm("launch", "--execute", *PLATFORMS["sky"], *JOB)
    assert code == 2
    assert "jaxlm.sky.yaml is there, with other content: move it away" in err
    assert path.read_text().endswith("# mine\n")


def test_the_code_of_what_is_watched_is_the_commands(jaxlm, bin_folder):
    launch_standins.install(bin_folder, "kubectl", "import sys\nprint(*sys.argv[1:])\nsys.exit(7)\n")
    code, _, err = jaxlm("launch", "--execute", "--on=gke", "--name=llama", "--logs")
    assert code == 7
    assert "show the log of the first pod" in err


def test_no_secret_of_the_environment_is_in_an_error(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "very-secret-value")
    error = programs.explain("It", ("gcloud",), 1, "ERROR: token very-secret-value was refused \x1b[2J")
    assert "very-secret-value" not in str(error)
    assert "\x1b" not in str(error)
    assert isinstance(error, UserError)


def test_ray_processes_are_told_who_they_are():
    from jaxlm.launch import ray_driver
    from jaxlm.parallel.distributed import Cluster

    args = ray_driver.arguments(["--hosts=2", "--resource=GPU:8", "--", "train", "--config=a", "--workdir=b"])
    assert args.job == ["train", "--config=a", "--workdir=b"]
    assert ray_driver.bundle(args.resource) == {"CPU": 1, "GPU": 8}
    values = ray_driver.variables("10.0.0.1:4242", args.hosts, 1, args.resource)
    assert Cluster().completed(values).given == ("10.0.0.1:4242", 2, 1)
    assert values["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3,4,5,6,7"
    assert ray_driver.variables("10.0.0.1:4242", 2, 1, "TPU:4") == {}  # JAX asks the TPU itself
    line = ray_driver.command(3, args.job)[2:]
    assert line == ["jaxlm", "launch", "--on=local", "--execute", "--max-restarts=3", "--", *args.job]
