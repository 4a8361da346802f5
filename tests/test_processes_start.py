"""How a run of several real processes starts and stands still: whoever is missing, other or stuck is named in time."""

import re
import shutil
from pathlib import Path

import pytest
from real_processes import CONFIG, free_port, launch, start, wait_until, write_config
from slow import slow

import jaxlm
from jaxlm.data.tokenizer_training import train_tokenizer
from jaxlm.report.events import read_events


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config"))


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
import os, signal, time
from jaxlm import processes, run_data
processes.FIRST_WORD_S, processes.ANSWER_S = 1.0, 1.0
def stop(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGSTOP)
if sys.argv[-1] == "--process-id=STOPPED":
    run_data.open_data = stop
LATE = processes.from_all
def late(*args):
    time.sleep(3)
    return LATE(*args)
if ARE_LATE:
    processes.from_all = late
"""


@pytest.mark.parametrize(("stopped", "are_late"), [slow(0, False), slow(0, True), (1, False), slow(2, False)])
def test_a_process_that_is_stopped_is_named_by_those_that_wait(
    config, tmp_path, stopped, are_late
):  # pain 17
    """Stopped as a whole when it would read the data: it closes no connection, and answers nothing.

    Late are those who come to the store when the first process no longer answers.
    """
    argv = [config, f"--workdir={tmp_path / 'run'}", f"--coordinator=127.0.0.1:{free_port()}"]
    before = STOP.replace("STOPPED", str(stopped)).replace("ARE_LATE", str(are_late))
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
        wait_until(warnings)
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


@pytest.mark.slow
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
