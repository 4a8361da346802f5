"""Promises of jaxlm/workdir.py: one config, one run at a time, and nothing of anybody else's is touched."""

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from jaxlm import run
from jaxlm.types import UserError
from jaxlm.workdir import CONFIG_FILE, LOCK_FILE, claim


@pytest.fixture
def cfg():
    config = run.default_config()
    config.data.sources.mine = {"path": "embedded:topics", "weight_tokens": 1.0}
    return run.resolve(config)


HOLD = """
    import sys, time
    from jaxlm import run
    from jaxlm.workdir import claim
    config = run.default_config()
    config.data.sources.mine = {"path": "embedded:topics", "weight_tokens": 1.0}
    with claim(sys.argv[1], run.resolve(config)):
        print("held", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds tmp_path / "run"."""
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_new_workdir_is_made_and_the_same_config_continues(tmp_path, cfg):
    for expected in (False, True, True):
        with claim(tmp_path / "a" / "run", cfg) as resuming:
            assert resuming is expected


def test_a_second_run_at_the_same_time_is_told_who_is_there(tmp_path, cfg, holder):
    for _ in range(2):  # an attempt does not break the lock
        with (
            pytest.raises(UserError, match=f"in use by process {holder.pid} on "),
            claim(tmp_path / "run", cfg),
        ):
            pass


def test_a_run_that_was_killed_leaves_no_lock(tmp_path, cfg, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with claim(tmp_path / "run", cfg) as resuming:
        assert resuming


def test_a_run_that_was_killed_while_it_began_can_begin_again(tmp_path, cfg):
    (tmp_path / LOCK_FILE).write_text("process 1 on host\n")
    (tmp_path / f"{CONFIG_FILE}.1a2b3c4d.partial").write_text("{")
    with claim(tmp_path, cfg) as resuming:
        assert not resuming
        assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG_FILE, LOCK_FILE]


def test_files_that_a_killed_run_was_writing_are_cleared_away_and_no_others(tmp_path, cfg):
    with claim(tmp_path, cfg):
        pass
    for name in ("tokenizer.model.0f1e2d3c.partial", "config.json.1a2b3c4d.partial", "mine.partial"):
        (tmp_path / name).touch()
    with claim(tmp_path, cfg):
        assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG_FILE, "mine.partial", LOCK_FILE]


def test_other_files_are_left_alone(tmp_path, cfg):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not empty \(letter.txt is in it\)"), claim(tmp_path, cfg):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_file_is_no_workdir(tmp_path, cfg):
    (tmp_path / "run").write_text("mine")
    for path in (tmp_path / "run", tmp_path / "run" / "inner"):
        with pytest.raises(UserError, match="run"), claim(path, cfg):
            pass
    assert (tmp_path / "run").read_text() == "mine"


@pytest.fixture(params=["checkpoint", "event"])
def trained(request, tmp_path, cfg):
    """A workdir in which a step was taken."""
    with claim(tmp_path, cfg):
        if request.param == "checkpoint":
            (tmp_path / "checkpoints" / "1").mkdir(parents=True)
        else:
            (tmp_path / "events.jsonl").write_text('{"event": "start"}\n{"event": "step", "step": 1}\n')
    return tmp_path


def test_where_nothing_was_trained_another_config_may_begin(tmp_path, cfg):
    with claim(tmp_path, cfg):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "events.jsonl").write_text('{"event": "start"}\n{"event": "failed"}\n')
    other = dataclasses.replace(cfg, seed=7)
    with claim(tmp_path, other):
        assert run.load_config(tmp_path / CONFIG_FILE) == other


def test_another_config_is_refused_and_the_saved_one_kept(trained, tmp_path, cfg):
    with claim(tmp_path, cfg):
        before = (tmp_path / CONFIG_FILE).read_text()
    config = run.default_config()
    config.data.sources.mine = {"path": "embedded:topics", "weight_tokens": 1.0}
    config.optimizer.b2 = 0.9
    with (
        pytest.raises(UserError, match="optimizer.b2 was 0.95, now 0.9"),
        claim(tmp_path, run.resolve(config)),
    ):
        pass
    assert (tmp_path / CONFIG_FILE).read_text() == before


def test_a_run_that_ends_in_an_error_lets_go_of_the_workdir(tmp_path, cfg):
    held = claim(tmp_path, cfg)
    held.__enter__()
    assert f"process {os.getpid()}" in (tmp_path / LOCK_FILE).read_text()
    assert not held.__exit__(ValueError, ValueError("it"), None)
    assert (tmp_path / LOCK_FILE).read_text() == ""
    with claim(tmp_path, cfg) as resuming:
        assert resuming
