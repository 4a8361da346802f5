"""`jaxlm config`."""

import json
import re
from pathlib import Path

import pytest

from jaxlm.cli.main import main
from jaxlm.config import key_names
from jaxlm.run import RunConfig, parse, resolve, save_config

SMALL = Path(__file__).parent.parent / "small_config.py"


def printed(capsys, *argv):
    assert main(["config", *argv]) == 0
    return capsys.readouterr().out


def test_prints_every_key_in_declared_order_and_marks_what_is_not_default(capsys):
    lines = printed(
        capsys, f"--config={SMALL}", "--config.seed=3", "--config.optimizer.clip_norm=None"
    ).splitlines()
    keys = [re.match(r"[ *] ([\w.]+) += ", line)[1] for line in lines]
    source = re.compile(r"data\.sources\.\w+\.")
    expected = list(key_names(RunConfig))
    assert [key for key in keys if not source.match(key)] == [key for key in expected if "<name>" not in key]
    assert sum(bool(source.match(key)) for key in keys) == 3 * sum("<name>" in key for key in expected)
    by_key = dict(zip(keys, lines))
    assert by_key["seed"].split(maxsplit=3) == ["*", "seed", "=", "3  (default 0)"]
    assert by_key["optimizer.clip_norm"].endswith("= None  (default 1.0)")
    assert by_key["data.sources.topics.weight_tokens"].endswith("= 0.5  (default 1.0)")
    assert by_key["model.norm"].startswith("  ")
    assert "default" not in by_key["model.norm"]


def test_json_is_the_config_that_a_run_would_save(capsys, tmp_path):
    out = printed(capsys, f"--config={SMALL}", "--json")
    save_config(tmp_path / "config.json", resolve(parse([f"--config={SMALL}"])))
    assert out == (tmp_path / "config.json").read_text()


def test_diff_prints_only_what_differs(capsys):
    out = printed(capsys, f"--config={SMALL}", "--config.seed=3", f"--diff={SMALL}")
    assert out == "seed = 3 -> 0\n"
    out = printed(capsys, f"--config={SMALL}", "--config.data.sources.topics=None", f"--diff={SMALL}")
    assert "data.sources.topics.path          = (absent) -> 'embedded:topics'\n" in out


def test_diff_reads_a_workdir(capsys, tmp_path):
    save_config(
        tmp_path / "config.json", resolve(parse([f"--config={SMALL}", "--config.model.norm=layernorm"]))
    )
    out = printed(capsys, f"--config={SMALL}", f"--diff={tmp_path}", "--json")
    assert json.loads(out) == {"model.norm": ["rmsnorm", "layernorm"]}


def test_no_difference_says_so_beside_an_empty_output(capsys):
    assert main(["config", f"--config={SMALL}", f"--diff={SMALL}"]) == 0
    assert capsys.readouterr() == ("", "No key differs.\n")


def test_keys_lists_every_key_with_type_default_and_meaning(capsys):
    out = printed(capsys, "--keys")
    heads = [line for line in out.splitlines() if not line.startswith(" ")]
    assert [head.partition(":")[0] for head in heads] == list(key_names(RunConfig))
    assert "optimizer.clip_norm: float | None = 1.0\n    Gradients are scaled down to this global norm" in out
    assert "report.writers: str = ''\n" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--config=NAME is needed"),
        (["--keys", f"--config={SMALL}"], "--keys lists what every config has"),
        (
            [f"--config={SMALL}", "--diff=quickstrat"],
            "--config=quickstrat: no such config. Did you mean quickstart?",
        ),
        ([f"--config={SMALL}", "--config.mesh.data=3"], "data.global_batch_size="),
    ],
)
def test_mistakes_exit_with_2(argv, message, capsys):
    assert main(["config", *argv]) == 2
    assert message in capsys.readouterr().err
