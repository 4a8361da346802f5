"""Promises of `jaxlm compile`: what a step needs on a slice that is not there, and clear mistakes before JAX starts."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.cli import compile as command
from jaxlm.cli._plan_run import completed
from jaxlm.run import parse, resolve

GOLDEN = Path(__file__).parent / "golden"
SMALL = (
    "--config=quickstart", "--config.model.num_layers=2", "--config.model.embed_dim=64", "--config.model.num_heads=2",
    "--config.tokenizer.vocab_size=512", "--config.data.seq_len=64", "--config.mesh.data=2", "--config.mesh.fsdp=4",
)  # fmt: skip


def shown(out):
    """Lines without what differs from run to run and from one version to the next."""
    out = re.sub(r"import [\d.]+ s, lower [\d.]+ s, compile [\d.]+ s", "import, lower, compile", out)
    out = re.sub(r"(all-reduce +once +)[56] ", r"\g<1>N ", out)  # jax 0.12 makes two of one
    return [re.sub(r"jax \d[\d.]*", "jax", line).rstrip() for line in out.splitlines()]


def test_the_report_of_a_small_run_is_this_one(jaxlm, tmp_path):
    """Renew: the command of SMALL with --topology=cpu:8, its seconds and versions taken out as in `shown`."""
    page, program = tmp_path / "page.html", tmp_path / "step.hlo"
    code, out, err = jaxlm("compile", *SMALL, "--topology=cpu:8", f"--html={page}", f"--hlo={program}")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    assert shown(out) == (GOLDEN / "compile_small.txt").read_text(encoding="utf-8").splitlines()
    assert "collectives of a device and step" in page.read_text()
    assert program.read_text().startswith("HloModule jit_step")


def test_a_process_of_its_own_makes_its_fake_devices(tmp_path):
    """And imports no library of data or checkpoints, and takes no flag of the environment away."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_"))}
    code = (
        "import sys; from jaxlm.cli.main import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "heavy = {'grain', 'orbax', 'array_record', 'pyarrow', 'tensorstore', 'sentencepiece'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "compile",
            *SMALL,
            "--topology=cpu:16",
            "--config.mesh.data=4",
            "--json",
        ],
        capture_output=True,
        text=True,
        env=environment | {"XLA_FLAGS": "--xla_cpu_enable_fast_math=false"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["topology"]["num_devices"] == 16
    assert found["mesh"] == {"data": 4, "fsdp": 4, "expert": 1, "sequence": 1, "tensor": 1}
    assert found["time"] is None
    assert found["memory"]["fits"] is None
    assert {row["kind"] for row in found["step"]["collectives"]} >= {"all-gather", "all-reduce"}
    assert found["step"]["flops"] > 0.9 * found["step"]["model_flops"]
    assert set(found["seconds"]) == {"import", "lower", "compile"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "--topology=CHIP:SHAPE is needed"),
        (("--topology=v5e:16x17",), "no such slice of v5e; nearest: v5e:16x16"),
        (("--topology=v5e-256",), "v5e:16x16 (256 chips)"),
        (("--topology=v7:2x2",), "Did you mean tpu7x:2x2x1?"),
        (("--topology=v5e:2x4", "--num-slices=0"), "--num-slices=0 must be in [1, 256]"),
        (("--topology=cpu:8", "--num-slices=2"), "fake CPU devices have no slices"),
        (("--topology=v5e:4x4",), "mesh.data=2 x mesh.fsdp=4 x mesh.expert=1 x mesh.sequence=1 x mesh.tensor=1 must"),
        (("--topology=v5e:2x4", "--config.data.global_batch_size=12"), "data.global_batch_size=12"),
        (("--topology=cpu:8", "--hlo=/absent/step"), "cannot be written: there is no folder /absent"),
        (("--topology=cpu:8", "--html=/"), "--html=/ cannot be written: it is a folder"),
        (("--topology=cpu:8", "--config.tokenizer.kind=char"), "model.vocab_size is unset"),
        (("--topolgy=cpu:8",), "did you mean --topology?"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_jax_starts(flags, said):
    code = (
        "import sys; from jaxlm.cli.main import main\n"
        "code = main(sys.argv[1:]); assert 'jax' not in sys.modules; raise SystemExit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "compile", *SMALL, *flags], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_the_compiler_of_tpus_the_package_to_install_is_named(jaxlm, monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    code, out, err = jaxlm("compile", *SMALL, "--topology=v5e:2x4")
    assert (code, out) == (2, "")
    assert re.search(r"pip install 'libtpu==0\.0\.\d+\.\*' \(what jax \d[\d.]* is made for", err)
    assert len(err.splitlines()) == 1


def test_a_price_that_there_is_not_is_refused_before_anything_is_compiled(jaxlm, monkeypatch):
    monkeypatch.setattr(command, "check_libtpu", lambda: None)
    code, _, err = jaxlm("compile", *SMALL, "--topology=v5e:2x4", "--commitment=leased")
    assert (code, "--commitment='leased' is not one of on-demand" in err) == (2, True)


def test_a_regression_has_one_output():
    argv = ["--config=quickstart", "--config.objective=classify", "--config.classify.task=regression"]
    assert completed(resolve(parse(argv)))[0].model.num_classes == 1


def test_the_environment_is_set_for_this_process_alone(monkeypatch):
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    for name in ("JAX_PLATFORMS", "XLA_FLAGS"):
        monkeypatch.setenv(name, "was")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "0")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "")
    command.set_environment(command.topology.parse("cpu:4"))
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    assert os.environ["XLA_FLAGS"] == "was --xla_force_host_platform_device_count=4"
    assert os.environ["TPU_SKIP_MDS_QUERY"] == "0"


def test_a_tpu_step_fits_and_has_times():
    """In a process of its own, since this one may have no TPU compiler loaded beside others."""
    pytest.importorskip("libtpu")
    argv = ["compile", *SMALL, "--topology=v5e:2x4", "--json", "--price=1"]
    done = subprocess.run([sys.executable, "-m", "jaxlm", *argv], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["memory"]["fits"]
    assert found["memory"]["is_reported"]
    assert [one["basis"] for one in found["speeds"]] == ["roofline", "hybrid", "cycles"]
    fast, slow = (found["run"][end] for end in ("fast", "slow"))
    assert 0 < fast["compute_usd"] == fast["chip_hours"] < slow["chip_hours"]
