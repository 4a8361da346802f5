"""One run on several real processes: the same batches and losses, whoever shares the work.

How it starts, and whom it waits for: test_processes_start.py.
"""

import shutil
import signal
import time

import numpy as np
import psutil
import pytest
from checkpoint_states import flip
from real_processes import free_port, launch, start, wait_until, write_config

from jaxlm import checkpoint_integrity as integrity
from jaxlm.report.events import last_of_each_step, read_events


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config"))


def finished(config, workdir, num_processes, *flags):
    results = launch(config, workdir, num_processes, *flags)
    assert [code for code, _, _ in results] == [0] * num_processes, results
    return results


def curve(workdir):
    """[steps, 3] of batch hash, loss and gradient norm; and the held-out scores of every evaluation."""
    events = list(read_events(workdir / "events.jsonl"))
    keys = ("batch_hash", "train/loss", "train/grad_norm")
    steps = last_of_each_step(events)
    assert list(steps) == [1, 2, 3, 4, 5, 6]
    scores = [
        {key: value for key, value in event.items() if key.startswith("eval/")}
        for event in last_of_each_step(events, "eval").values()
    ]
    return np.array([[event[key] for key in keys] for event in steps.values()]), scores


def assert_same_run(workdir, expected):
    (steps, scores), (expected_steps, expected_scores) = curve(workdir), curve(expected)
    np.testing.assert_array_equal(steps[:, 0], expected_steps[:, 0])
    np.testing.assert_allclose(steps[:, 1:], expected_steps[:, 1:], rtol=1e-5)
    assert len(scores) == len(expected_scores) == 2
    for one, other in zip(scores, expected_scores):
        assert len(one) == 7
        assert one == pytest.approx(other, rel=1e-5)


def resumed(config, workdir, finished_run, step, num_processes):
    """The rest of a run after the checkpoint of `step`, in a copy of its workdir."""
    shutil.copytree(finished_run, workdir)
    for folder in (workdir / "checkpoints").iterdir():
        if int(folder.name) > step:
            shutil.rmtree(folder)
    results = finished(config, workdir, num_processes)
    assert f"resumed from step {step}" in results[0][1]
    return results


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """The workdir of the run on a single process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    finished(config, workdir, 1)
    return workdir


@pytest.fixture(scope="module")
def two(config, tmp_path_factory):
    """The same on two processes, and what they printed."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    return workdir, finished(config, workdir, 2)


@pytest.fixture(scope="module")
def four(config, two, tmp_path_factory):
    """On four, after two steps on two."""
    workdir = tmp_path_factory.mktemp("four") / "run"
    return workdir, resumed(config, workdir, two[0], 2, 4)


def test_two_processes_see_the_same_batches_losses_and_scores_as_one(alone, two):
    assert_same_run(two[0], alone)


def test_four_processes_continue_what_two_began(alone, four):  # pain 3
    assert_same_run(four[0], alone)


@pytest.mark.slow
def test_four_processes_share_the_weights_of_each_layer_as_one_does(config, alone, tmp_path):
    """Heads and MLPs of a layer are in two processes each, and so are the rows of its matrices."""
    finished(config, tmp_path / "run", 4, "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
    assert_same_run(tmp_path / "run", alone)


EXPERTS = ("--config.model.num_experts=4", "--config.model.mlp_dim=16", "--config.model.balance_loss=0.01")


@pytest.mark.slow
def test_experts_in_several_processes_train_as_in_one(config, tmp_path):
    finished(config, tmp_path / "one", 1, *EXPERTS)
    finished(config, tmp_path / "four", 4, *EXPERTS, "--config.mesh.expert=2", "--config.mesh.tensor=2")
    assert_same_run(tmp_path / "four", tmp_path / "one")


@pytest.mark.slow  # four continue what two began in `make test`
def test_one_process_continues_what_four_saved(config, alone, four, tmp_path):
    resumed(config, tmp_path / "run", four[0], 4, 1)
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.slow
def test_two_processes_continue_what_one_saved(config, alone, tmp_path):
    resumed(config, tmp_path / "run", alone, 4, 2)
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.slow
def test_two_processes_share_the_length_of_rows(config, tmp_path):
    whole = "--config.model.dropout=0.0"  # which says of each place of a batch what is left out
    finished(config, tmp_path / "one", 1, whole)
    parts = ("--config.mesh.sequence=4", "--config.mesh.sequence_attention=ring")
    finished(config, tmp_path / "two", 2, whole, *parts)
    assert_same_run(tmp_path / "two", tmp_path / "one")


def seen_by_the_second_only(folder):
    """Flips one byte of a checkpoint, in a part that the second of two processes reads."""
    for path in sorted(path for path in (folder / "state").rglob("*") if path.is_file()):
        flip(path)
        try:
            integrity.verify(folder, part=0, num_parts=2)
        except integrity.DamagedCheckpoint:
            flip(path)  # back
        else:
            return
    raise AssertionError("the first process reads everything")


@pytest.mark.slow
def test_damage_that_one_process_finds_is_avoided_by_all(config, alone, two, tmp_path):
    shutil.copytree(two[0], tmp_path / "run")
    seen_by_the_second_only(tmp_path / "run" / "checkpoints" / "6")
    (_, out, _), _ = finished(config, tmp_path / "run", 2)
    assert "Using step 4 instead" in out
    assert "resumed from step 4" in out
    assert_same_run(tmp_path / "run", alone)


def test_doctor_of_two_processes_with_a_good_run_has_only_ok_lines(config, two):
    results = launch(config, two[0], 2, command="doctor")
    for code, out, err in results:
        assert code == 0, out + err
        assert all(line.startswith("ok ") for line in out.splitlines()), out
        for said in ("processes: 2, as given", "same run: code, versions, config and workdir of 2 processes",
                     "clocks: 2 clocks within 0.", "same data: tokenizer and 2 source(s) of 2 processes",
                     "cpu, 2 x cpu here, 4 in all, in 2 processes", "every checksum of step 6 is right"):  # fmt: skip
            assert said in out
    assert "coordinator: 127.0.0.1:" in results[1][1]


def test_only_the_first_process_writes(two):
    workdir, ((_, out, _), (_, other, _)) = two
    assert "2, as given; coordinator 127.0.0.1:" in out
    # Gloo's threads write at once: a line may come without its beginning, and its last number on a line of its own.
    gloo = ("Gloo", "peer ranks")
    lines = (line for line in other.splitlines() if line and not line.isdigit())
    assert [line for line in lines if not any(word in line for word in gloo)] == []
    events = [event["event"] for event in read_events(workdir / "events.jsonl")]
    assert [events.count(name) for name in ("start", "step", "eval", "save", "end")] == [1, 6, 2, 3, 1]


def test_an_error_of_the_first_process_ends_all(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("mine")
    for code, _, err in launch(config, tmp_path / "run", 2):
        assert code == 2
        assert "letter.txt is in it" in err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["letter.txt"]


def test_sigterm_to_one_process_stops_all_after_the_same_saved_step(config, tmp_path):
    flags = [config, f"--workdir={tmp_path / 'run'}", "--config.train.num_steps=100000"]
    flags += ["--config.checkpoint.every_steps=100000"]
    cluster = [f"--coordinator=127.0.0.1:{free_port()}", "--num-processes=2"]
    processes = [start([*flags, *cluster, f"--process-id={index}"], 2) for index in range(2)]
    try:
        events = tmp_path / "run" / "events.jsonl"
        wait_until(lambda: events.exists() and '"event": "step"' in events.read_text())
        processes[1].send_signal(signal.SIGTERM)
        for process in processes:
            _, err = process.communicate(timeout=30)
            assert process.returncode == 143, err
    finally:
        for process in processes:
            process.kill()
    last = max(last_of_each_step(read_events(events)))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [str(last)]


@pytest.mark.slow
def test_two_processes_roll_back_as_one_does(config, tmp_path):
    """A large learning rate makes spikes: all processes see it, and go back together."""
    flags = [
        "--config.train.spike_factor=1.0001",
        "--config.train.max_bad_steps=1",
        "--config.optimizer.warmup_steps=0",
    ]
    flags += ["--config.train.on_bad_steps=rollback", "--config.optimizer.learning_rate=1.0"]
    flags += ["--config.checkpoint.every_steps=1"]
    told = []
    for num in (1, 2):
        launch(config, tmp_path / str(num), num, *flags)
        events = list(read_events(tmp_path / str(num) / "events.jsonl"))
        told.append([(e["event"], e["step"]) for e in events if e["event"] in ("bad_step", "rollback")])
    assert told[0] == told[1]
    assert "rollback" in {name for name, _ in told[0]}


@pytest.mark.slow  # what the supervisor itself does is in launch/test_supervisor.py
def test_a_supervisor_starts_a_run_again_whose_process_was_killed_and_it_ends_the_same(two, config, tmp_path):
    """`jaxlm launch --on=local:2`, which runs on every machine of a pod as well."""
    workdir = tmp_path / "run"
    argv = ["--on=local:2", "--execute", "--", "train", config, f"--workdir={workdir}"]
    supervisor = start(argv, 2, command="launch")
    try:
        events = workdir / "events.jsonl"
        end = time.monotonic() + 240
        while not (events.exists() and '"event": "save"' in events.read_text()):
            assert time.monotonic() < end
            time.sleep(0.005)
        children = psutil.Process(supervisor.pid).children()
        victim = next(child for child in children if child.environ()["JAX_PROCESS_ID"] == "1")
        victim.kill()
        _, err = supervisor.communicate(timeout=240)
    finally:
        supervisor.kill()
        supervisor.communicate()
    assert supervisor.returncode == 0, err
    assert "jaxlm launch: process 1 was ended by SIGKILL; restart 1 of 10 in 1 s." in err
    assert [event["event"] for event in read_events(events)].count("start") == 2
    (steps, scores), (expected_steps, expected_scores) = curve(workdir), curve(two[0])
    np.testing.assert_array_equal(steps, expected_steps)
    assert scores == expected_scores
