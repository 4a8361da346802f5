"""A supervisor starts again what a preemption or a crash ended, and nothing else; signals reach the run."""

import os
import signal
import subprocess
import threading
import time

import pytest

from jaxlm.launch.supervisor import FINAL, End, Policy, Supervisor, cause, describe, exit_code

QUICK = Policy(
    max_restarts=3, first_pause_s=0.01, longest_pause_s=0.02, settle_s=0.2, saving_s=5, stopping_s=1
)


def shell(script):
    return subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True)


class Runs:
    """Each start takes the next list of shell scripts, one for each process; the last list for good."""

    def __init__(self, *rounds, steps=()):
        self.rounds, self.steps = list(rounds), list(steps)
        self.said, self.started = [], 0
        self.processes = []

    def start(self):
        self.started += 1
        scripts = self.rounds.pop(0) if len(self.rounds) > 1 else self.rounds[0]
        self.processes = [shell(script) for script in scripts]
        return self.processes

    def progress(self):
        return (self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]) if self.steps else 7

    def supervise(self, policy=QUICK):
        return Supervisor(self.start, self.progress, policy, self.said.append).run()


@pytest.mark.parametrize("code", sorted(FINAL))
def test_what_a_restart_would_not_mend_is_not_restarted(code):
    runs = Runs([f"exit {code}", f"exit {code}"])
    assert (runs.supervise(), runs.started, runs.said) == (code, 1, [])


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 143", "process 1 was told to stop (143), its step saved"),
        ("exit 75", "process 1 stood still, or lost another process (75)"),
        ("exit 1", "process 1 ended with code 1"),
        ("kill -9 $$", "process 1 was ended by SIGKILL"),
        ("kill -SEGV $$", "process 1 was ended by SIGSEGV"),
    ],
)
def test_a_preemption_a_standstill_and_a_crash_are(script, said):
    runs = Runs(["sleep 0.5; exit 143" if "143" in script else "sleep 60", script], ["exit 0", "exit 0"])
    assert runs.supervise() == 0
    assert runs.started == 2
    assert runs.said == [f"{said}; restart 1 of 3 in 0.01 s."]


def test_the_others_are_stopped_and_all_start_again_together(tmp_path):
    stubborn = f"trap '' TERM; echo $$ >> {tmp_path}/pids; sleep 60 & wait; wait"
    runs = Runs([stubborn, "sleep 0.3; kill -9 $$"], ["exit 0", "exit 0"])
    began = time.monotonic()
    assert runs.supervise() == 0
    assert time.monotonic() - began < 10
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pids").read_text()), 0)


def test_one_that_is_told_to_stop_waits_for_the_others_to_save(tmp_path):
    runs = Runs(["exit 143", f"sleep 0.7; touch {tmp_path}/saved; exit 143"], ["exit 0", "exit 0"])
    assert runs.supervise() == 0
    assert (tmp_path / "saved").exists()


def test_a_mistake_of_one_process_ends_all_though_the_others_crash_of_it():
    runs = Runs(["sleep 60", "exit 2"])
    assert (runs.supervise(), runs.started) == (2, 1)


def test_a_killed_process_is_the_cause_though_another_says_first_that_it_is_lost():
    """The code of a process that lost another is 75, 2 or SIGABRT; whoever was killed did not follow anybody."""
    assert cause([End(0, 2), End(1, -9)]) == End(1, -9)
    assert cause([End(0, 75), End(1, -6), End(2, 1)]) == End(2, 1)
    assert cause([End(1, 2), End(0, 75)]) == End(1, 2)
    assert cause([End(0, 0), End(1, 0)]) == End(0, 0)
    assert cause([End(0, 0), End(1, -9)]) == End(1, -9)


def test_restarts_without_progress_end(capfd):
    runs = Runs(["exit 1"])
    assert (runs.supervise(), runs.started) == (1, 4)
    assert [line.split("; ")[-1] for line in runs.said[:3]] == [
        "restart 1 of 3 in 0.01 s.", "restart 2 of 3 in 0.02 s.", "restart 3 of 3 in 0.02 s."
    ]  # fmt: skip
    assert "3 restarts in a row brought no new checkpoint: given up." in runs.said[-1]


def test_each_new_checkpoint_gives_all_restarts_back():
    runs = Runs(*[["kill -9 $$"]] * 8, ["exit 0"], steps=range(100))
    assert (runs.supervise(), runs.started) == (0, 9)
    assert all("restart 1 of 3" in line for line in runs.said)


def test_where_checkpoints_cannot_be_seen_a_run_that_lasted_counts_as_progress():
    steady = Policy(max_restarts=1, first_pause_s=0.01, settle_s=0.05, steady_s=0.0)
    runs = Runs(*[["exit 1"]] * 4, ["exit 0"], steps=[None])
    assert (runs.supervise(steady), runs.started) == (0, 5)
    hasty = Policy(max_restarts=1, first_pause_s=0.01, settle_s=0.05, steady_s=60)
    runs = Runs(*[["exit 1"]] * 4, ["exit 0"], steps=[None])
    assert (runs.supervise(hasty), runs.started) == (1, 2)


def later(seconds, number):
    threading.Timer(seconds, lambda: os.kill(os.getpid(), number)).start()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_passed_on_and_the_code_of_the_run_is_returned(number, code, tmp_path):
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo {name} >> {tmp_path}/seen; exit {code}' {name}; while :; do sleep 0.05; done"
    runs = Runs([script, script])
    before = signal.getsignal(number)
    later(0.4, number)
    assert (runs.supervise(), runs.started) == (code, 1)
    assert (tmp_path / "seen").read_text().split() == [name, name]
    assert signal.getsignal(number) == before


def test_a_run_that_is_done_in_spite_of_a_signal_is_done():
    later(0.3, signal.SIGTERM)
    assert Runs(["trap 'exit 0' TERM; while :; do sleep 0.05; done"]).supervise() == 0


def test_a_signal_between_two_starts_ends_the_wait():
    patient = Policy(first_pause_s=60, settle_s=0.05)
    later(0.5, signal.SIGTERM)
    began = time.monotonic()
    assert Runs(["exit 1"]).supervise(patient) == 143
    assert time.monotonic() - began < 10


def test_a_program_that_is_not_there_is_one_line():
    def start():
        return [subprocess.Popen(["/nowhere/python"])]

    from jaxlm.types import UserError

    with pytest.raises(UserError, match="cannot be started"):
        Supervisor(start, lambda: 0, QUICK).run()


def test_codes_read_as_a_shell_says_them():
    assert [exit_code(code) for code in (0, 2, -9, -15, 143)] == [0, 2, 137, 143, 143]
    assert describe(End(3, 0)) == "process 3 is done (0)"
