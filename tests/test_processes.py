"""One run on several real processes: the same batches and losses, whoever shares the work, and no silent waiting."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from checkpoint_states import flip

import jaxlm
from jaxlm import checkpoint_integrity as integrity
from jaxlm.data.tokenizer import train_tokenizer
from jaxlm.report.events import last_of_each_step, read_events

NUM_DEVICES = 4
CONFIG = """
from jaxlm import run

def get_config():
    cfg = run.default_config()
    cfg.data.sources.texts = dict(path="embedded:licences", weight_tokens=0.7, on_exhausted="repeat")
    cfg.data.sources.more = dict(path="TEXT", on_exhausted="repeat")
    cfg.data.sources.more.weight_tokens = 0.3
    cfg.data.seq_len, cfg.data.global_batch_size = 32, 8
    cfg.data.eval_split, cfg.data.eval_fraction = "tail", 0.1
    cfg.tokenizer.kind = "char"
    cfg.model.embed_dim, cfg.model.num_layers, cfg.model.num_heads, cfg.model.num_kv_heads = 32, 2, 2, 2
    cfg.model.dropout = 0.1
    cfg.train.num_steps, cfg.train.eval_every_steps, cfg.train.eval_batches = 6, 3, 2
    cfg.checkpoint.every_steps = 2
    cfg.optimizer.warmup_steps, cfg.optimizer.schedule = 2, "constant"
    return cfg
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.with_suffix(".txt").write_text("".join(f"{n} squared is {n * n}.\n" for n in range(300)))
    path.write_text(CONFIG.replace("TEXT", str(path.with_suffix(".txt"))))
    return f"--config={path}"


def start(argv, num_devices, *, command="train", cwd=None, before=""):
    """One process of a run.

    Args:
      cwd: its current folder; where that holds a copy of jaxlm, this copy runs.
      before: Python that it runs first.
    """
    # Compiling takes most of the time of such a small run: 9 s of CPU with optimization, 5 s without.
    flags = f"--xla_force_host_platform_device_count={num_devices} --xla_backend_optimization_level=0"
    flags += " --xla_cpu_enable_concurrency_optimized_scheduler=false"  # see conftest.py
    environ = os.environ | {"XLA_FLAGS": flags}
    call = f"import sys\n{before}\nfrom jaxlm.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    line = [sys.executable, *(["-c", call] if before else ["-m", "jaxlm"]), command, *argv]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, env=environ, cwd=cwd, text=True, stdout=pipe, stderr=pipe)


def launch(config, workdir, num_processes, *flags, absent=(), each=None, command="train", cwds=None):
    """(exit code, stdout, stderr) of every process of one run, in the order of their ids.

    Args:
      absent: ids that are not started.
      each: id -> flags of this process alone.
      cwds: id -> its current folder.
    """
    port = free_port()
    processes = []
    for index in set(range(num_processes)) - set(absent):
        argv = [config, f"--workdir={workdir}", *flags, *(each or {}).get(index, ())]
        if num_processes > 1:
            argv += [f"--coordinator=127.0.0.1:{port}", f"--num-processes={num_processes}"]
            argv += [f"--process-id={index}"]
        cwd = (cwds or {}).get(index)
        processes.append(start(argv, NUM_DEVICES // num_processes, command=command, cwd=cwd))
    try:
        return [(p.wait(), out, err) for p in processes for out, err in [p.communicate(timeout=240)]]
    finally:
        for process in processes:
            process.kill()


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


def test_four_processes_share_the_weights_of_each_layer_as_one_does(config, alone, tmp_path):
    """Heads and MLPs of a layer are in two processes each, and so are the rows of its matrices."""
    finished(config, tmp_path / "run", 4, "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
    assert_same_run(tmp_path / "run", alone)


EXPERTS = ("--config.model.num_experts=4", "--config.model.mlp_dim=16", "--config.model.balance_loss=0.01")


@pytest.fixture(scope="module")
def experts_alone(config, tmp_path_factory):
    """The workdir of a run of a mixture of experts on a single process."""
    workdir = tmp_path_factory.mktemp("experts") / "run"
    finished(config, workdir, 1, *EXPERTS)
    return workdir


@pytest.mark.parametrize(
    ("num_processes", "mesh"), [(2, {"data": 2, "fsdp": 1, "expert": 2}), (4, {"expert": 2, "tensor": 2})]
)
def test_experts_in_several_processes_train_as_in_one(config, experts_alone, tmp_path, num_processes, mesh):
    flags = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
    finished(config, tmp_path / "run", num_processes, *EXPERTS, *flags)
    assert_same_run(tmp_path / "run", experts_alone)


def test_one_process_continues_what_four_saved(config, alone, four, tmp_path):
    resumed(config, tmp_path / "run", four[0], 4, 1)
    assert_same_run(tmp_path / "run", alone)


def test_two_processes_continue_what_one_saved(config, alone, tmp_path):
    resumed(config, tmp_path / "run", alone, 4, 2)
    assert_same_run(tmp_path / "run", alone)


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


def test_damage_that_one_process_finds_is_avoided_by_all(config, alone, two, tmp_path):
    shutil.copytree(two[0], tmp_path / "run")
    seen_by_the_second_only(tmp_path / "run" / "checkpoints" / "6")
    (_, out, _), _ = finished(config, tmp_path / "run", 2)
    assert "Using step 4 instead" in out
    assert "resumed from step 4" in out
    assert_same_run(tmp_path / "run", alone)


def test_only_the_first_process_writes(two):
    workdir, ((_, out, _), (_, other, _)) = two
    assert "2, as given; coordinator 127.0.0.1:" in out
    # Gloo's threads write at once, and one line may come without its beginning.
    gloo = ("Gloo", "peer ranks")
    assert [line for line in other.splitlines() if line and not any(word in line for word in gloo)] == []
    events = [event["event"] for event in read_events(workdir / "events.jsonl")]
    assert [events.count(name) for name in ("start", "step", "eval", "save", "end")] == [1, 6, 2, 3, 1]


@pytest.mark.parametrize("absent", [0, 1])
def test_a_process_that_does_not_come_is_named(config, tmp_path, absent):
    ((code, out, err),) = launch(config, tmp_path / "run", 2, "--connect-timeout=2", absent=[absent])
    said = {0: "nothing answers there", 1: "1 of 2 processes came"}[absent]
    assert code == 2, err
    assert f"process {1 - absent} of 2 waited 2 s at the coordinator 127.0.0.1:" in err
    assert said in err
    assert "--num-processes=1 trains alone" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_config_that_differs_between_processes_is_named_by_all(config, tmp_path):
    results = launch(config, tmp_path / "run", 2, each={1: ["--config.optimizer.b2=0.9"]})
    for code, _, err in results:
        assert code == 2
        assert "optimizer.b2 is 0.9 here and 0.95 in the first" in err
    assert not (tmp_path / "run").exists()


def test_a_process_with_other_code_is_named_with_its_file(config, tmp_path):  # pain 17
    package = Path(jaxlm.__file__).parent
    shutil.copytree(package, tmp_path / "jaxlm", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "jaxlm" / "train" / "loop.py").open("a") as file:
        file.write("# another version\n")
    cwds = {0: package.parent, 1: tmp_path}
    for code, _, err in launch(config, tmp_path / "run", 2, cwds=cwds):
        assert code == 2, err
        assert "The code of jaxlm differs between processes: jaxlm/train/loop.py is " in err
        assert " and " not in err.split("in the first")[1].split(".")[0]  # it alone
    assert not (tmp_path / "run").exists()


@pytest.fixture
def texts_that_differ(tmp_path, tokenizer_file):
    """A config of a relative path, and folders in which two processes find other text there."""
    cwds = {index: tmp_path / str(index) for index in range(2)}
    for index, cwd in cwds.items():
        cwd.mkdir()
        (cwd / "text.txt").write_text(
            "".join(f"{n} to the {2 + index} is {n ** (2 + index)}.\n" for n in range(300))
        )
        (cwd / "jaxlm").symlink_to(Path(jaxlm.__file__).parent)
    path = tmp_path / "differs.py"
    path.write_text(CONFIG.replace("embedded:licences", "text.txt").replace("TEXT", "embedded:licences"))
    return f"--config={path}", f"--config.tokenizer.path={tokenizer_file}", cwds


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    path.write_bytes(train_tokenizer([f"{n} to the 2 is {n * n}. " for n in range(300)], "bpe", 300))
    return path


def test_a_process_with_other_text_is_named_with_the_source(texts_that_differ, tmp_path):  # pain 17
    config, tokenizer, cwds = texts_that_differ
    for code, _, err in launch(config, tmp_path / "run", 2, tokenizer, cwds=cwds):
        assert code == 2, err
        assert "The data differs between processes: corpus_sha256.texts is " in err


def test_doctor_finds_other_text_before_the_run_does(texts_that_differ, tmp_path):
    config, tokenizer, cwds = texts_that_differ
    for code, out, err in launch(config, tmp_path / "run", 2, tokenizer, command="doctor", cwds=cwds):
        assert code == 2, err
        failed = [line for line in out.splitlines() if not line.startswith("ok ")]
        assert len(failed) == 1, out
        assert failed[0].startswith("FAIL  same data: ")
        assert "The data differs between processes: corpus_sha256.texts is " in failed[0]
    assert not (tmp_path / "run").exists()


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


def test_doctor_of_two_processes_names_what_differs_and_what_another_one_found(config, tmp_path):
    (tmp_path / "file").write_text("")
    each = {1: ["--config.optimizer.b2=0.9", f"--config.data.cache_dir={tmp_path / 'file'}"]}
    first, second = launch(config, tmp_path / "run", 2, command="doctor", each=each)
    assert first[0] == second[0] == 2
    for _, out, _ in (first, second):
        assert re.search(
            "FAIL  same run: .*differs between processes: data.cache_dir is .* and 1 more", out
        ), out
    assert re.search(r"FAIL  process 1 \(.*\): cache: .*is a file, and has to be a folder", first[1])
    assert "FAIL  cache: " in second[1]


def test_doctor_names_a_process_that_does_not_come(config, tmp_path):  # pain 17
    ((code, out, err),) = launch(
        config, tmp_path / "run", 2, "--connect-timeout=2", absent=[0], command="doctor"
    )
    assert code == 2, err
    (line,) = [line for line in out.splitlines() if not line.startswith("ok ")]
    assert line.startswith("FAIL  coordinator: nothing answers at 127.0.0.1:")


STOP = """
import os, signal
from jaxlm import processes, run_data
processes.FIRST_WORD_S, processes.ANSWER_S = 1.0, 1.0
def stop(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGSTOP)
if sys.argv[-1] == "--process-id=STOPPED":
    run_data.open_data = stop
"""


@pytest.mark.parametrize("stopped", [0, 1, 2])
def test_a_process_that_is_stopped_is_named_by_those_that_wait(config, tmp_path, stopped):  # pain 17
    """Stopped as a whole when it would read the data: it closes no connection, and answers nothing."""
    argv = [config, f"--workdir={tmp_path / 'run'}", f"--coordinator=127.0.0.1:{free_port()}"]
    before = STOP.replace("STOPPED", str(stopped))
    processes = [
        start([*argv, "--num-processes=3", f"--process-id={index}"], 1, before=before) for index in range(3)
    ]
    waiting = [process for index, process in enumerate(processes) if index != stopped]
    try:
        for process in waiting:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            said = next(line for line in lines if line.startswith("jaxlm: process") and ": waiting " in line)
            assert re.search(rf"waiting \d+ s for process {stopped}\b", said), said
            assert "at: 'The " in said
    finally:
        for process in processes:
            process.kill()
            process.communicate()


HANGS = """
import time
from jaxlm.train import hooks, watchdog
watchdog.POLL_S, watchdog.LEAST_LIMIT_S, watchdog.OTHERS_S = 0.1, 1.0, 1.0
if sys.argv[-1] == "--process-id=1":
    watchdog.Watchdog.end_s = lambda self, place: float("inf")
    log = hooks.LogSteps.__call__
    hooks.LogSteps.__call__ = lambda *a: time.sleep(600 if a[1] == HANG else 0) or log(*a)
"""


def hanging(config, workdir, step, *flags):
    """What process 0 of two exits with, and its warnings, when the other hangs after a step."""
    argv = [
        config,
        f"--workdir={workdir}",
        f"--coordinator=127.0.0.1:{free_port()}",
        "--num-processes=2",
        *flags,
    ]
    argv += ["--config.train.log_every_steps=1"]
    before = HANGS.replace("HANG", str(step))
    processes = [start([*argv, f"--process-id={index}"], 2, before=before) for index in range(2)]

    def warnings():
        log = workdir / "events.jsonl"
        events = list(read_events(log)) if log.exists() else []
        return [event["text"] for event in events if event["event"] == "warning"]

    try:
        if flags:
            _, err = processes[0].communicate(timeout=120)
            assert processes[0].returncode == 75, err
        wait_until(warnings, 120)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return warnings()


def test_a_process_that_hangs_in_a_step_is_named_and_ends_the_run_where_that_is_asked(
    config, tmp_path
):  # pain 17
    warnings = hanging(config, tmp_path / "run", 5, "--config.train.step_timeout_s=2.5")
    assert len(warnings) >= 2
    for text in warnings[-2:]:
        assert re.search(r"Slowest first: process 1 \(.*\) at LogSteps after step 5 ", text), text
    assert warnings[-1].endswith("This process ends with exit code 75; the same command continues")
    stacks = [path.read_text() for path in (tmp_path / "run" / "stacks").glob("1-*.txt")]
    assert stacks
    assert all("in <lambda>" in text for text in stacks)


def test_a_process_that_hangs_while_the_first_evaluates_is_named_too(config, tmp_path):
    """An evaluation has an hour until it is known; the other process is late long before."""
    warnings = hanging(config, tmp_path / "run", 3)
    assert re.match(
        r"Evaluate after step 3 has taken \d+ s \(another process is late\); stacks in ", warnings[0]
    )
    assert re.search(r"process 1 \(.*\) at LogSteps after step 3", warnings[0])


GIVE_UP = """
import time
from jaxlm import processes, run_data
processes.LONGEST_BUILD_S = 2.0
if sys.argv[-1] == "--process-id=1":
    run_data.open_data = lambda *args, **kwargs: time.sleep(600)
"""


def test_a_wait_ends_in_an_error_that_names_who_did_not_come(config, tmp_path):  # pain 17
    """The other one lives, and its heart beats; it only never comes."""
    argv = [config, f"--workdir={tmp_path / 'run'}", f"--coordinator=127.0.0.1:{free_port()}"]
    processes = [
        start([*argv, "--num-processes=2", f"--process-id={index}"], 2, before=GIVE_UP) for index in range(2)
    ]
    try:
        _, err = processes[0].communicate(timeout=120)
        assert processes[0].returncode == 2, err
        assert re.search(r"Waited 2 s for process 1 \(.*\) at: 'The data'", err), err
        assert "Traceback" not in err
    finally:
        for process in processes:
            process.kill()
            process.communicate()


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


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


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
