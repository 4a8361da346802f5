"""Promises of jaxlm/report/run_report.py: one call reaches log, terminal and writers; none of them ends a run."""

import io
import math

import pytest

from jaxlm.report import run_report
from jaxlm.report.events import last_of_each_step, read_events
from jaxlm.report.progress import Progress
from jaxlm.report.run_report import RunReport
from jaxlm.types import UserError


class FakeWriter:
    def __init__(self, fail_at=None):
        self.calls, self.closed, self.fail_at = [], False, fail_at

    def scalars(self, step, values):
        if self.fail_at is not None and step >= self.fail_at:
            raise ConnectionError("https://host?key=secret")
        self.calls.append((step, dict(values)))

    def text(self, step, name, value):
        self.calls.append((step, name, value))

    def close(self):
        self.closed = True


@pytest.fixture
def screen():
    return io.StringIO()


@pytest.fixture
def opened(monkeypatch):
    """The writers that reports of this test open, and with what."""
    found = {"writers": [FakeWriter(), FakeWriter(fail_at=3)], "settings": None}

    def open_writers(names, workdir, **settings):
        found["settings"] = settings
        return list(found["writers"]) if names else []

    monkeypatch.setattr(run_report, "open_writers", open_writers)
    monkeypatch.setattr(run_report, "check_installed", lambda names: None)
    return found


def make_report(tmp_path, screen, writers=("wandb", "mlflow")):
    return RunReport(
        tmp_path / "r", writers, num_steps=10, config={"seed": 1}, progress=Progress(10, file=screen)
    )


def rows(*steps):
    return [
        {"step": s, "loss": 5.0 - s, "grad_norm": 1.0, "learning_rate": 1e-3, "batch_hash": 7 * s}
        for s in steps
    ]


def test_a_call_reaches_log_terminal_and_writers(tmp_path, screen, opened):
    with make_report(tmp_path, screen) as report:
        report.start({"mesh": "fsdp 8", "weights": "fresh"}, ["source  share", "topics  100%"])
        report.steps(rows(1, 2), {"perf/tokens_per_s": 1000.0})
        report.evaluation(2, {"eval/loss": 3.0, "eval/topics/loss": 3.0})
        report.text(2, "sample", "Once upon")
        report.end({"eval/topics/loss": 3.0}, seconds=61)
    events = list(read_events(tmp_path / "r" / "events.jsonl"))
    assert [e["event"] for e in events] == ["start", "step", "step", "eval", "text", "end"]
    assert events[0]["mesh"] == "fsdp 8"
    assert (events[1]["step"], events[1]["train/loss"], events[1]["batch_hash"]) == (1, 4.0, 7)
    assert "perf/tokens_per_s" not in events[1]
    assert events[2]["perf/tokens_per_s"] == 1000.0
    text = screen.getvalue()
    for shown in (
        "mesh              fsdp 8",
        "topics  100%",
        "step 2/10  loss 3.0000",
        "Once upon",
        "done in 1m 01s",
    ):
        assert shown in text
    assert "step 1/10" not in text
    first = opened["writers"][0]
    assert [call[0] for call in first.calls] == [1, 2, 2, 2]
    assert first.calls[0][1] == {"train/loss": 4.0, "train/grad_norm": 1.0, "train/learning_rate": 1e-3}
    assert first.calls[1][1]["perf/tokens_per_s"] == 1000.0
    assert first.closed


def test_writers_learn_from_which_step_a_resumed_run_goes_on(tmp_path, screen, opened):
    with make_report(tmp_path, screen) as report:
        report.steps(rows(41), {})
    assert opened["settings"]["start_step"] == 40
    assert opened["settings"]["run_name"] == "r"


def test_a_writer_that_fails_is_named_once_and_left_out(tmp_path, screen, opened):
    with make_report(tmp_path, screen) as report:
        for step in range(1, 6):
            report.steps(rows(step), {})
    good, bad = opened["writers"]
    assert len(good.calls) == 5
    assert len(bad.calls) == 2
    assert screen.getvalue().count("FakeWriter failed (ConnectionError)") == 1
    log = (tmp_path / "r" / "events.jsonl").read_text()
    assert log.count("FakeWriter failed") == 1
    assert "secret" not in log + screen.getvalue()


def test_a_missing_package_stops_the_run_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setitem(run_report.check_installed.__globals__["PACKAGES"], "wandb", "a_package_nobody_has")
    with pytest.raises(UserError, match=r"pip install 'jaxlm\[wandb\]'"):
        RunReport(tmp_path, ["wandb"], num_steps=1, config={})


def test_a_loss_that_is_not_finite_is_logged_and_read_back(tmp_path, screen, opened):
    with make_report(tmp_path, screen, ()) as report:
        report.steps([{"step": 1, "loss": math.nan, "grad_norm": math.inf}], {})
    event = last_of_each_step(read_events(tmp_path / "r" / "events.jsonl"))[1]
    assert math.isnan(event["train/loss"])
    assert event["train/grad_norm"] == math.inf


def test_an_error_that_ends_the_run_is_in_the_log(tmp_path, screen, opened):
    def fail():
        with make_report(tmp_path, screen, ()):
            raise ValueError("bad")

    pytest.raises(ValueError, fail)
    assert [e["error"] for e in read_events(tmp_path / "r" / "events.jsonl")] == ["ValueError: bad"]


def test_other_processes_than_the_first_say_and_write_nothing(tmp_path, screen, opened, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with make_report(tmp_path, screen) as report:
        report.start({"mesh": "fsdp 8"})
        report.say("hello")
        report.warning("oh")
        report.steps(rows(1), {})
        report.evaluation(1, {"eval/loss": 3.0})
        report.end({}, seconds=1)
    assert screen.getvalue() == ""
    assert not (tmp_path / "r").exists()
    assert opened["writers"][0].calls == []


def test_the_first_process_warns_on_its_screen(tmp_path, screen, capsys):
    with make_report(tmp_path, screen, writers=()) as report:
        report.warning("the disk is slow")
    assert screen.getvalue() == "warning: the disk is slow\n"
    assert capsys.readouterr().err == ""


def test_another_process_than_the_first_only_warns(tmp_path, screen, monkeypatch, capsys):
    monkeypatch.setattr("jax.process_index", lambda: 3)
    with make_report(tmp_path, screen) as report:
        report.start({"a": 1})
        report.steps(rows(1), {})
        report.evaluation(1, {"eval/loss": 1.0})
        report.warning("the disk is slow")
        report.end({}, seconds=1.0)
    assert screen.getvalue() == ""
    assert not (tmp_path / "r").exists()
    assert capsys.readouterr().err == "jaxlm: warning of process 3: the disk is slow\n"
