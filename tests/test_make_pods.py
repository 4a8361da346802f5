"""bench/pods.py, which `make pods` runs: a step that does not fit or does not compile fails it, and so CI."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
NAME = "pretrain_llama2_7b_v5e256"


@pytest.fixture
def pods():
    spec = importlib.util.spec_from_file_location("pods", ROOT / "bench" / "pods.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


def compiled(fits):
    """What of `jaxlm compile --json` the table shows."""
    return {
        "memory": {"total_bytes": 12 * 2**30, "limit_bytes": 15.75 * 2**30, "fits": fits},
        "topology": {"name": "v5e:16x16", "num_slices": 1},
        "step": {"collectives": [{"wire_bytes": 3e9}, {"wire_bytes": 4e9}]},
        "time": {"roofline_s": 1.0, "hybrid_s": 1.25, "cycles_s": 1.5, "bound": "compute"},
        "speeds": [{"basis": "roofline", "mfu": 0.7}, {"basis": "cycles", "mfu": 0.5}],
    }


@pytest.mark.parametrize(
    ("stdout", "stderr", "code", "said"),
    [
        (json.dumps(compiled(True)), "", 0, r"v5e:16x16 +12\.0 +15\.8 +1\.000 +1\.250 +1\.500 +50\.0% +7\.0 +compute"),
        (json.dumps(compiled(False)), "", 1, r"NO FIT"),
        (json.dumps(compiled(False) | {"step": None}), "", 1, r"no fit"),
        ("", "Traceback\nJaxRuntimeError: INTERNAL", 1, rf"{NAME}: JaxRuntimeError: INTERNAL"),
        ("", "", 1, rf"{NAME}: no output"),
    ],
    ids=["fits", "too-large", "refused", "fails", "killed"],
)  # fmt: skip
def test_the_exit_code_says_whether_every_step_fits(pods, monkeypatch, capsys, stdout, stderr, code, said):
    asked = []

    def run(command, **_):
        asked.append(command[1:])
        return SimpleNamespace(stdout=stdout, stderr=stderr)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["pods.py", NAME])
    assert pods.main() == code
    assert asked == [["-m", "jaxlm", "compile", f"--config={NAME}", "--topology=v5e:16x16", "--json"]]
    assert re.search(said, "".join(capsys.readouterr()))


def test_an_unknown_config_is_named_with_those_there_are(pods, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pods.py", "pretrain_absent"])
    with pytest.raises(SystemExit):
        pods.main()
    assert re.search(
        rf"pretrain_absent is no config that names a topology: .*{NAME}", capsys.readouterr().err
    )


def test_ci_compiles_configs_of_both_kinds_on_different_topologies(pods):
    said = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    names = re.findall(r'^pods="(.*)"$', said, re.MULTILINE)[0].split()
    known = pods.commands()
    topologies = {next(word for word in known[name] if word.startswith("--topology=")) for name in names}
    assert len(names) == len(topologies) == 3
    assert {name.partition("_")[0] for name in names} == {"instruct", "pretrain"}
