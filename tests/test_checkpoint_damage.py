"""Promises of jaxlm/checkpoint.py under kills, full disks and damage: the last good step is found and used."""

import contextlib
import errno
import logging
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import pytest
from checkpoint_states import KEEP_ALL, abstract, assert_same_bits, data_file, flip, make_state, save_steps
from slow import slow

from jaxlm import checkpoint_integrity as integrity
from jaxlm.checkpoint import Checkpoints
from jaxlm.checkpoint_integrity import DamagedCheckpoint
from jaxlm.checkpoint_meta import Meta
from jaxlm.train.config import CheckpointConfig
from jaxlm.types import UserError


@pytest.fixture
def warnings():
    return []


# Damage.


DAMAGES = {
    "truncated": (lambda f: os.truncate(data_file(f), 1000), r"is truncated: 1,000 bytes instead of [\d,]+"),
    "missing": (lambda f: data_file(f).unlink(), "is missing"),
    "a flipped bit": (lambda f: flip(data_file(f)), "does not match its checksum"),
    "longer": (lambda f: data_file(f).write_bytes(data_file(f).read_bytes() + b"x"), "is longer than"),
    "unfinished": (
        lambda f: (f / integrity.SEAL).unlink(),
        "integrity.json is missing: the save was not finished",
    ),
    "half a seal": (lambda f: os.truncate(f / integrity.SEAL, 50), "integrity.json cannot be parsed"),
    "an edited seal": (
        lambda f: flip(f / integrity.SEAL, 60),
        "integrity.json (does not match|cannot be parsed)",
    ),
    "meta": (lambda f: flip(f / integrity.META), "meta/metadata does not match its checksum"),
    "an empty folder": (lambda f: (shutil.rmtree(f), f.mkdir()), "the save was not finished"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_latest_step_is_named_and_the_one_before_it_used(tmp_path, damage, warnings):
    states = save_steps(tmp_path, [1, 2, 3])
    harm, reason = DAMAGES[damage]
    name = str(data_file(tmp_path / "3").relative_to(tmp_path / "3"))
    harm(tmp_path / "3")
    with Checkpoints(tmp_path, KEEP_ALL, warn=warnings.append) as checkpoints:
        restored = checkpoints.restore(abstract(states[2]))
        assert checkpoints.latest_step() == 2
        assert [p.name for p in checkpoints.damaged()] == ["3.damaged"]
    assert restored.meta.step == 2
    assert_same_bits(restored.state, states[2])
    (warning,) = warnings
    assert "Checkpoint 3" in warning
    assert "Using step 2 instead" in warning
    assert re.search(reason, warning)
    assert damage not in ("truncated", "missing", "a flipped bit", "longer") or name in warning


@pytest.mark.parametrize("block_bytes", [integrity.BLOCK_BYTES, 1 << 12])
def test_no_flipped_byte_anywhere_goes_unnoticed(tmp_path, block_bytes, monkeypatch):
    """Orbax itself returns wrong weights for most of these. A large file has a checksum for each block."""
    monkeypatch.setattr(integrity, "BLOCK_BYTES", block_bytes)
    states = save_steps(tmp_path, [1])
    rng = random.Random(0)
    checkpoints = Checkpoints(tmp_path / "copy")
    files = [str(p.relative_to(tmp_path / "1")) for p in (tmp_path / "1").rglob("*") if p.is_file()]
    assert len(files) > 8
    assert any((tmp_path / "1" / name).stat().st_size > 1 << 12 for name in files)
    for name in files:
        for _ in range(3):
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            shutil.copytree(tmp_path / "1", tmp_path / "copy" / "1")
            path = tmp_path / "copy" / "1" / name
            flip(path, rng.randrange(path.stat().st_size), rng.randrange(8))
            if name in integrity.UNSEALED:
                assert_same_bits(checkpoints.restore(abstract(states[1])).state, states[1])
            else:
                with pytest.raises(UserError, match="No good checkpoint is left"):
                    checkpoints.restore(abstract(states[1]))
    checkpoints.close()


def test_when_none_is_good_nothing_is_touched_and_the_error_stays(tmp_path):
    """Setting the last ones aside would let the next start train from scratch without a word."""
    states = save_steps(tmp_path, [1, 2])
    flip(data_file(tmp_path / "1"))
    (tmp_path / "2" / integrity.SEAL).unlink()
    for _ in range(2):
        with Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
            assert checkpoints.latest_step() == 2
            with pytest.raises(
                UserError, match=r"No good checkpoint is left.*2: integrity.json.*1: state/.*"
            ) as e:
                checkpoints.restore(abstract(states[1]))
            assert "\n" not in str(e.value)
            assert checkpoints.damaged() == []
    with (
        Checkpoints(tmp_path / "none") as checkpoints,
        pytest.raises(UserError, match="There is no checkpoint in"),
    ):
        checkpoints.restore(abstract(states[1]))


def test_a_reader_renames_nothing(tmp_path, warnings):
    states = save_steps(tmp_path, [1, 2])
    flip(data_file(tmp_path / "2"))
    with Checkpoints(tmp_path, warn=warnings.append) as checkpoints:
        assert checkpoints.restore_params(abstract(states[1].params)).meta.step == 1
        assert checkpoints.all_steps() == [1, 2]
        with pytest.raises(UserError, match=r"2: .*does not match its checksum.*Try one of the steps \[1\]"):
            checkpoints.restore_params(abstract(states[1].params), step=2)
        with pytest.raises(UserError, match=r"no checkpoint of step 7.*\[1, 2\]"):
            checkpoints.restore_params(abstract(states[1].params), step=7)
    assert "left where it is" in warnings[0]


def test_a_second_damaged_copy_of_a_step_gets_another_name(tmp_path):
    for expected in ("5.damaged", "5.damaged-2", "5.damaged-3"):
        (tmp_path / "5").mkdir()
        assert integrity.set_aside(tmp_path / "5").name == expected


def test_hosts_that_share_the_checking_see_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(integrity, "BLOCK_BYTES", 1 << 10)
    save_steps(tmp_path, [1])
    flip(data_file(tmp_path / "1"))
    noticed = 0
    for part in range(3):
        try:
            integrity.verify(tmp_path / "1", part=part, num_parts=3)
        except DamagedCheckpoint:
            noticed += 1
    assert noticed == 1


# Kills and full disks.


def run_python(code, **kwargs):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    prelude = """
        import os, sys, signal
        import jax, jax.numpy as jnp
        from jaxlm import checkpoint_integrity as integrity
        from jaxlm.checkpoint import Checkpoints
        from jaxlm.checkpoint_meta import Meta
        from jaxlm.train.config import CheckpointConfig
    """
    code = textwrap.dedent(prelude) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, **kwargs)


@pytest.mark.parametrize(
    ("moment", "left", "warned"),
    [
        ("seal", ["1", "2.orbax-checkpoint-tmp"], True),
        ("reasons_kept", ["1", "2"], False),
        slow("rmtree", ["1.deleting", "2"], False),
    ],
)
def test_killed_during_a_save_leaves_only_good_steps(tmp_path, moment, left, warned, warnings):
    """Before the commit, between the commit and the deletion of the old step, and during that deletion."""
    result = run_python(
        f"""
        state = {{"params": {{"w": jnp.arange(1000.0)}}}}
        checkpoints = Checkpoints({str(tmp_path)!r}, CheckpointConfig(every_steps=1, keep_last=1))
        checkpoints.save(state, Meta(1))
        checkpoints.wait()
        def kill(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGKILL)
        owner = type(checkpoints.directory) if {moment!r} == "rmtree" else integrity
        setattr(owner, {moment!r}, kill)
        checkpoints.save(jax.tree.map(lambda x: x + 1, state), Meta(2))
        checkpoints.wait()
        """
    )
    assert result.returncode == -9, result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == left
    step = 1 if warned else 2
    state = {"params": {"w": jnp.arange(1000.0) + step - 1}}
    with Checkpoints(tmp_path, CheckpointConfig(keep_last=1), warn=warnings.append) as checkpoints:
        restored = checkpoints.restore(abstract(state))
        assert restored.meta.step == step
        assert_same_bits(restored.state, state)
        assert [("interrupted" in w and "2.orbax-checkpoint-tmp" in w) for w in warnings] == [True] * warned
        checkpoints.save(state, Meta(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3"]


@pytest.fixture
def file_size_limit():
    """A disk that takes no more: the kernel refuses to let any file grow past the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_spares_training_and_earlier_steps(tmp_path, file_size_limit, warnings):
    state = {"params": {"w": jnp.arange(1 << 20, dtype=jnp.float32)}}
    checkpoints = Checkpoints(tmp_path, KEEP_ALL, warn=warnings.append)
    checkpoints.save(state, Meta(1))
    checkpoints.wait()
    file_size_limit(1 << 20)
    checkpoints.save(state, Meta(2))
    with pytest.raises(
        UserError, match=r"Checkpoint 2 could not be saved.*File too large.*steps \[1\]"
    ) as error:
        checkpoints.wait()
    assert "\n" not in str(error.value)
    checkpoints.save(state, Meta(3))
    assert checkpoints.save(state, Meta(4))
    assert "Checkpoint 3 could not be saved" in warnings[0]
    assert "Training goes on" in warnings[0]
    checkpoints._join()
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    file_size_limit(resource.RLIM_INFINITY)
    state = jax.tree.map(lambda x: x + 1, state)
    assert checkpoints.save(state, Meta(5))
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "5"]
    with Checkpoints(tmp_path) as reader:
        assert_same_bits(reader.restore(abstract(state)).state, state)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_save_that_fails_leaves_no_tracebacks_of_its_other_arrays(tmp_path, file_size_limit, capfd, caplog):
    state = {f"w{i}": jnp.full((1 << 16,), i, jnp.float32) for i in range(40)}
    checkpoints = Checkpoints(tmp_path, KEEP_ALL)
    file_size_limit(1 << 20)
    checkpoints.save({"params": state}, Meta(1))
    with pytest.raises(UserError, match="File too large"):
        checkpoints.wait()
    # Of these asyncio tells when they are collected, which is seldom now.
    lost = "{} exception was never retrieved\nfuture: <{}>"
    task = "Task finished defined at {}/serialization.py"
    logging.getLogger("asyncio").error(lost.format("Task", task.format("site-packages/orbax")))
    for name in ("Future", "_GatheringFuture"):  # of the chunks of one array
        future = f"{name} finished exception=ValueError('... {tmp_path}/1.orbax-checkpoint-tmp/state: File too large')"
        logging.getLogger("asyncio").error(lost.format(name, future))
    try:
        exec(
            compile(
                "raise OSError(28, 'No space left on device')", "site-packages/orbax/async_path.py", "exec"
            )
        )
    except OSError as error:  # told of by its traceback alone
        logging.getLogger("asyncio").error(lost.format("Future", error), exc_info=error)
    assert capfd.readouterr().err == ""
    assert caplog.text == ""
    logging.getLogger("asyncio").error(lost.format("Task", task.format("mine")))
    assert "mine" in caplog.text


@pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small file system needs root"
)
def test_a_full_disk(tmp_path, warnings):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk]).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        state = {"params": {"w": jnp.arange(1 << 20, dtype=jnp.float32)}}
        with Checkpoints(disk, KEEP_ALL, warn=warnings.append) as checkpoints:
            checkpoints.save(state, Meta(1))
            checkpoints.wait()
            checkpoints.save(state, Meta(2))
            with pytest.raises(
                UserError, match=r"Checkpoint 2.*No space left.*on disk are steps \[1\].*Free some"
            ):
                checkpoints.wait()
            assert [p.name for p in disk.iterdir()] == ["1"]
            shutil.rmtree(disk / "1")
            checkpoints.save(state, Meta(3))
            checkpoints.wait()
            assert_same_bits(checkpoints.restore(abstract(state)).state, state)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_save_that_failed_is_deleted_though_its_threads_still_write(tmp_path, warnings):
    checkpoints = Checkpoints(tmp_path, KEEP_ALL, warn=warnings.append)
    folder = tmp_path / f"1{integrity.UNFINISHED}" / "state"
    writing = threading.Event()

    def write():
        for number in range(3000):
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / str(number)).write_text("x")
            writing.set()

    thread = threading.Thread(target=write)
    thread.start()
    writing.wait()
    checkpoints._fail(1, OSError(errno.ENOSPC, "No space left on device"))
    thread.join()
    checkpoints.save(make_state(), Meta(2))
    checkpoints.close()
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
    assert "Checkpoint 1 could not be saved" in warnings[0]


def test_a_bug_while_saving_is_raised_and_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, KEEP_ALL)

    def bug(folder):
        raise KeyError("a bug")

    monkeypatch.setattr(integrity, "seal", bug)
    checkpoints.save(make_state(), Meta(1))
    with pytest.raises(KeyError, match="a bug"):
        checkpoints.wait()
    assert list(tmp_path.iterdir()) == []
