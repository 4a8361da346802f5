"""Promises of `jaxlm inspect`: says what a run holds and what is wrong with it, without a device."""

import json
import os
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest
from checkpoint_states import data_file, flip

from jaxlm.checkpoint import Checkpoints
from jaxlm.checkpoint_meta import Meta
from jaxlm.cli import main as cli
from jaxlm.report.events import EventLog
from jaxlm.train.config import CheckpointConfig

CONFIG = {
    "objective": "pretrain",
    "model": {"embed_dim": 8, "vocab_size": None},
    "data": {"seq_len": 4, "sources": {"topics": {"path": "embedded:topics", "weight_tokens": 1.0}}},
    "checkpoint": {"every_steps": 1, "keep_last": 2, "keep_every_steps": 4, "keep_best": True},
}
STATE = {
    "step": jnp.int32(0),
    "params": {"embed": jnp.zeros((16, 8)), "layers": {"q": jnp.zeros((2, 8, 8), jnp.bfloat16)}},
    "opt_state": {"mu": {"embed": jnp.zeros((16, 8))}, "count": jnp.int32(0)},
}


@pytest.fixture
def run(tmp_path):
    """Steps 3 (best), 4 (every 4th), 5 and 6 (last); 2 set aside, 7 interrupted."""
    folder = tmp_path / "run"
    with Checkpoints(folder / "checkpoints", CheckpointConfig(every_steps=1, keep_last=9)) as checkpoints:
        for step, loss in {3: 2.5, 4: 3.0, 5: 2.75, 6: None}.items():
            checkpoints.save(
                STATE,
                Meta(step, config=CONFIG, tokenizer_sha256="ab" * 32, corpus_sha256={"topics": "cd" * 32},
                     tokens=1000 * step, epochs={"topics": 0.25 * step}, wall_time_s=65, eval_loss=loss),
            )  # fmt: skip
        checkpoints.wait()
        checkpoints.mark(6, "eval")
    (folder / "checkpoints" / "2.damaged").mkdir()
    (folder / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    with EventLog(folder / "events.jsonl") as log:
        for step in range(1, 2000):
            log.write("step", step=step, **{"train/loss": float("nan") if step == 1999 else 1.0})
        log.write("end", seconds=65.0)
    return folder


def inspect(capsys, *argv):
    code = cli.main(["inspect", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_says_what_a_run_holds(run, capsys):
    code, out, _ = inspect(capsys, f"--run={run}")
    assert code == 0
    assert max(len(line) for line in out.splitlines()) <= 100
    rows = {line.split()[0]: line for line in out.splitlines() if line.endswith("complete")}
    assert list(rows) == ["3", "4", "5", "6"]
    assert "best" in rows["3"]
    assert "every 4" in rows["4"]
    assert "last" in rows["5"]
    assert "eval" in rows["6"]
    for text in (
        "2.damaged", "7.orbax-checkpoint-tmp", "step 6, 6,000 tokens", "topics 1.500", "ab" * 32, "cd" * 32, "1m 05s",
        "256, 768 B", "2 arrays, 516 B", "weight_tokens=1.0", "embed_dim=8", "seconds 65",
    ):  # fmt: skip
        assert text in out
    assert "params/layers/q" in out
    assert "2 x 8 x 8  bfloat16  256 B" in out
    assert "opt_state/mu/embed" not in out
    assert "opt_state/mu/embed" in inspect(capsys, f"--run={run}", "--all")[1]
    assert "vocab_size" not in out.split("config\n")[1]


def test_json_holds_everything_and_is_json(run, capsys):
    _, out, _ = inspect(capsys, f"--run={run}", "--step=4", "--json")
    facts = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert [one["kept"] for one in facts["steps"]] == [["best"], ["every 4"], ["last"], ["last"]]
    assert facts["best"] == 3
    assert facts["checkpoint"]["step"] == 4
    assert facts["checkpoint"]["num_params"] == 16 * 8 + 2 * 8 * 8
    assert {"path": "opt_state/mu/embed", "shape": [16, 8], "dtype": "float32", "bytes": 512} in facts[
        "checkpoint"
    ]["arrays"]
    assert facts["config"] == CONFIG
    assert [event["event"] for event in facts["events"]] == ["step"] * 4 + ["end"]
    assert facts["events"][-2]["train/loss"] == "nan"


def test_names_what_is_damaged(run, capsys):
    os.truncate(run / "checkpoints" / "6" / "state" / "manifest.ocdbt", 3)
    code, out, _ = inspect(capsys, f"--run={run}")
    assert code == 1
    assert "DAMAGED" in next(line for line in out.splitlines() if line.split()[:1] == ["6"])
    assert "state/manifest.ocdbt is truncated: 3 bytes instead of" in out
    assert "step 5, 5,000 tokens" in out  # the latest good one is described
    code, _, err = inspect(capsys, f"--run={run}", "--step=6")
    assert code == 2
    assert "--step=6" in err
    assert "Good steps: [3, 4, 5]" in err
    flip(data_file(run / "checkpoints" / "5"))
    assert "step 5, 5,000 tokens" in inspect(capsys, f"--run={run}")[1]
    code, out, _ = inspect(capsys, f"--run={run}", "--verify")
    assert code == 1
    assert "does not match its checksum" in out


def test_only_who_reads_every_byte_says_good(run, capsys):
    def health(*argv):
        out = inspect(capsys, f"--run={run}", *argv)[1]
        return {line.split()[-1] for line in out.splitlines() if line.split()[:1] in (["3"], ["6"])}

    assert health() == {"complete"}
    assert health("--verify") == {"good"}


def test_losses_come_first_in_an_event(run, capsys):
    """The values of a step are many, and the line is cut."""
    with EventLog(run / "events.jsonl") as log:
        log.write(
            "step",
            step=2000,
            batch_hash=123,
            **{f"train/a{i}": 0.5 for i in range(20)},
            **{"train/loss": 4.25},
        )
    out = inspect(capsys, f"--run={run}")[1]
    last = next(line for line in out.splitlines() if "2,000" in line)
    assert "train/loss 4.25" in last
    assert "batch_hash" not in last


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--run=nowhere"], "--run=nowhere holds no run"),
        (["--run={run}", "--step=99"], "--step=99 is not in"),
        (["--run={run}", "--config=quickstart"], "takes no --config"),
        (["--run={run}", "--stpe=3"], "did you mean --step"),
        ([], "--run"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run, capsys, argv, message):
    code, _, err = inspect(capsys, *(arg.format(run=run) for arg in argv))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_damaged_config_is_named(run, capsys):
    (run / "config.json").write_text('{"half')
    code, _, err = inspect(capsys, f"--run={run}")
    assert code == 2
    assert "config.json is no JSON" in err


def test_a_run_that_has_not_saved_yet(run, capsys):
    import shutil

    shutil.rmtree(run / "checkpoints")
    code, out, _ = inspect(capsys, f"--run={run}")
    assert code == 0
    assert "(none)" in out


def test_needs_no_jax_and_answers_at_once(run):
    code = (
        "import sys; from jaxlm.cli.main import main; main(['inspect', '--run', sys.argv[1]]);"
        "print([m for m in ('jax', 'orbax', 'numpy', 'rich') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", code, run], env=env, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"
    assert time.perf_counter() - start < 10
