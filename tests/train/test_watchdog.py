"""Promises of jaxlm/train/watchdog.py: who stands still is found, nobody else is; of several, who is behind."""

import json
import subprocess
import sys
import threading
import time

import pytest
from real_processes import wait_until

from jaxlm import processes
from jaxlm.train import hooks
from jaxlm.train import watchdog as module
from jaxlm.train.watchdog import FIRST_LIMIT_S, LEAST_LIMIT_S, Place, Watchdog, describe_behind


class Report:
    def __init__(self):
        self.lines = []

    def warning(self, line):
        self.lines.append(line)


class LogSteps:
    """Takes its time after a step, as the hook of that name does when the devices are slow.

    Args:
      seconds: step -> seconds, or a condition that it waits for.
    """

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, step, state, metrics):
        long = self.seconds.get(step, 0.0)
        wait_until(long, poll_s=0.005) if callable(long) else time.sleep(long)


class Evaluate(LogSteps):
    pass


@pytest.fixture
def fast(monkeypatch):
    """A second becomes ten milliseconds."""
    monkeypatch.setattr(module, "POLL_S", 0.01)
    monkeypatch.setattr(module, "LEAST_LIMIT_S", 0.1)
    monkeypatch.setattr(module, "FIRST_LIMIT_S", 0.6)


def loop(watchdog, its_hooks, num_steps=4, first_step=0, step_s=0.0):
    with watchdog:
        watched = watchdog.watch(its_hooks, first_step)
        for step in range(first_step + 1, num_steps + 1):
            time.sleep(step_s)
            for hook in watched:
                hook(step, None, None)


def test_a_step_that_stands_still_is_told_with_the_stacks_of_all_threads(fast, tmp_path):  # pain 17
    report = Report()
    loop(Watchdog(tmp_path, report), [LogSteps({3: lambda: report.lines})])
    (line,) = report.lines
    assert line.startswith(
        "LogSteps after step 3 (which waits for the devices) has taken 0 s (limit 0 s); stacks in "
    )
    (file,) = (tmp_path / "stacks").iterdir()
    assert str(file) in line
    assert file.name.startswith("0-")
    stacks = file.read_text()
    assert "in __call__" in stacks  # where the loop is
    assert stacks.count("hread 0x") >= 2
    assert "test_watchdog.py" in stacks


def test_a_loop_that_goes_on_is_left_in_peace(fast, tmp_path, monkeypatch):
    report = Report()
    monkeypatch.setattr(module, "LEAST_LIMIT_S", 0.5)
    loop(Watchdog(tmp_path, report), [LogSteps({})], num_steps=15, step_s=0.04)
    assert report.lines == []
    assert not (tmp_path / "stacks").exists()


def test_compiling_evaluating_and_saving_have_an_hour_until_they_are_known(fast, tmp_path):
    report = Report()
    loop(Watchdog(tmp_path, report), [LogSteps({}), Evaluate({2: 0.3})], step_s=0.0)
    assert report.lines == []
    loop(Watchdog(tmp_path, report), [LogSteps({})], num_steps=1, step_s=0.3)  # the first step compiles
    assert report.lines == []
    loop(Watchdog(tmp_path, report), [Evaluate({2: lambda: report.lines})])
    assert len(report.lines) == 1
    assert report.lines[0].startswith("Evaluate after step 2 has taken ")


def test_a_resumed_run_compiles_in_its_first_step_too(fast, tmp_path):
    report = Report()
    loop(Watchdog(tmp_path, report), [LogSteps({})], num_steps=21, first_step=20, step_s=0.3)
    assert report.lines == []


def test_until_the_devices_were_waited_for_once_another_process_may_be_compiling():
    one = Watchdog("unused", Report(), settle_steps=10, timeout_s=60.0)
    one.watch([], 25)
    for place, settles in (((26, "LogSteps"), True), ((34, "step"), True), ((35, "LogSteps"), True),
                           ((35, "step"), False), ((36, "LogSteps"), False)):  # fmt: skip
        assert (one.limit_s(Place(*place)) == FIRST_LIMIT_S) is settles
        assert (one.end_s(Place(*place)) == FIRST_LIMIT_S) is settles


def test_words_come_at_growing_intervals(fast, tmp_path):
    report, begin = Report(), time.monotonic()
    loop(Watchdog(tmp_path, report), [LogSteps({3: lambda: len(report.lines) == 3})])
    assert len(report.lines) == 3
    assert time.monotonic() - begin >= 0.4  # after 0.1, 0.2 and 0.4 s


def test_the_hook_that_waits_for_the_devices_is_known_by_its_name():
    assert hooks.LogSteps.__name__ in module.EVERY_STEP


def test_the_limit_follows_what_is_usual():
    one = Watchdog("unused", Report())
    assert one.limit_s(Place(0, "step")) == one.limit_s(Place(1, "LogSteps")) == FIRST_LIMIT_S
    assert one.limit_s(Place(1, "step")) == LEAST_LIMIT_S
    assert one.limit_s(Place(0, "Save")) == one.limit_s(Place(9, "Save")) == FIRST_LIMIT_S
    one._learn(Place(0, "step"), 900.0)  # compiled
    assert one.limit_s(Place(1, "step")) == LEAST_LIMIT_S
    one._learn(Place(1, "step"), 200.0)
    one._learn(Place(2, "step"), 100.0)
    assert one.limit_s(Place(3, "step")) == 600.0
    one._learn(Place(3, "step"), 5000.0)  # stood still, and went on: that is no habit
    assert one.limit_s(Place(4, "step")) == 600.0
    one._learn(Place(4, "Evaluate"), 60.0)
    assert one.limit_s(Place(8, "Evaluate")) == LEAST_LIMIT_S


def test_time_in_which_the_process_itself_was_stopped_does_not_count(fast, tmp_path, monkeypatch):
    report, looks = Report(), []

    def leap():
        looks.append(None)
        return 0.01 * len(looks) + (5000.0 if len(looks) > 3 else 0.0)

    monkeypatch.setattr(module.time, "monotonic", leap)
    with Watchdog(tmp_path, report) as watchdog:
        watchdog.watch([], 0)
        threading.Event().wait(0.1)
    assert len(looks) > 4
    assert report.lines == []


def test_without_a_timeout_nothing_is_ended_and_with_one_the_exit_code_says_try_again(fast, tmp_path):
    ends = []
    loop(Watchdog(tmp_path, Report(), end=ends.append), [LogSteps({3: 0.3})])
    assert ends == []
    report = Report()
    loop(Watchdog(tmp_path, report, timeout_s=0.15, end=ends.append), [LogSteps({3: lambda: ends})])
    assert ends == [75]
    assert "train.step_timeout_s=0.15" in report.lines[-1]
    assert report.lines[-1].endswith("ends with exit code 75; the same command continues")


def test_a_timeout_leaves_the_first_step_and_evaluations_their_hour():
    one = Watchdog("unused", Report(), timeout_s=120.0)
    assert one.end_s(Place(5, "step")) == one.end_s(Place(5, "LogSteps")) == 120.0
    assert one.end_s(Place(0, "step")) == one.end_s(Place(5, "Save")) == FIRST_LIMIT_S


def test_a_disk_that_refuses_the_stacks_does_not_silence_the_word(fast, tmp_path, capsys):
    (tmp_path / "stacks").write_text("a file")
    report = Report()
    loop(Watchdog(tmp_path, report), [LogSteps({3: lambda: report.lines})])
    assert "stacks are on stderr, since" in report.lines[0]
    assert "in __call__" in capsys.readouterr().err


def test_a_report_that_fails_does_not_silence_the_word(fast, tmp_path, capsys):
    tried = []

    class Closed:
        def warning(self, line):
            tried.append(line)
            raise ValueError("events.jsonl was closed")

    loop(Watchdog(tmp_path, Closed()), [LogSteps({3: lambda: tried})])
    assert "LogSteps after step 3" in (err := capsys.readouterr().err)
    assert "events.jsonl was closed" in err


def test_the_slowest_process_and_the_silent_one_are_named(monkeypatch):  # pain 17
    monkeypatch.setattr(processes, "name_of", lambda *others: f"process {'+'.join(map(str, others))}")
    late = {0: Place(120, "step"), 2: Place(120, "step"), 3: Place(119, "Evaluate")}
    assert describe_behind(late, 4) == (
        ". Slowest first: process 3 at Evaluate after step 119; process 0+2 at step 121; nothing from process 1: "
        "stopped, or not late"
    )
    late = dict.fromkeys(range(4), Place(7, "LogSteps"))
    assert describe_behind(late, 4) == (
        ". At the same place: process 0+1+2+3 at LogSteps after step 7 (which waits for the devices)"
    )


def test_a_run_whose_step_hangs_ends_with_the_documented_code(tmp_path):
    """A real process, whose main thread never comes back to Python's signal handlers or to the loop."""
    code = """
import json, sys, threading
from jaxlm.train import watchdog
watchdog.POLL_S = 0.02
class LogSteps:
    def __call__(self, step, state, metrics):
        if step == 2:
            threading.Lock().acquire(); lock = threading.Lock(); lock.acquire(); lock.acquire()
class Report:
    def warning(self, line):
        print(json.dumps(line), flush=True)
with watchdog.Watchdog(sys.argv[1], Report(), timeout_s=0.1) as dog:
    hooks = dog.watch([LogSteps()], 0)
    for step in (1, 2):
        for hook in hooks:
            hook(step, None, None)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 75, done.stderr
    assert "LogSteps after step 2" in json.loads(done.stdout)
