"""Promises of jaxlm/report/events.py: every number comes back, whatever kills or races the writer."""

import json
import os
import resource
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.report import events
from jaxlm.report.events import EventLog, last_of_each_step, read_events
from jaxlm.types import UserError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


@given(
    st.dictionaries(
        st.text(min_size=1).filter(lambda k: k not in ("event", "time_s", "step", "nonfinite") and "\t" not in k),
        st.one_of(st.floats(), st.floats(width=32).map(np.float32), st.integers(), st.text(), st.none(),
                  st.lists(st.floats(), max_size=3), st.dictionaries(st.sampled_from("ab"), st.floats())),
        max_size=5,
    )
)  # fmt: skip
def test_every_value_comes_back_exactly(fields):
    line = events.encode_event("step", 1.0, 3, fields)
    assert "\n" not in line
    json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    read = events._restore_nonfinite(json.loads(line))
    for key, value in fields.items():
        np.testing.assert_equal(read[key], float(value) if isinstance(value, np.floating) else value)


def test_writes_numbers_of_numpy_and_jax(path):
    loss = np.float32(2.3456789)
    with EventLog(path) as log:
        log.write(
            "step", step=np.int64(10), **{"train/loss": loss, "x": jnp.float32(np.nan), "y": jnp.arange(2)}
        )
    (event,) = read_events(path)
    assert np.float32(event["train/loss"]) == loss
    assert event["x"] != event["x"]
    assert (event["event"], event["step"], event["y"]) == ("step", 10, [0, 1])
    assert '"x": null' in path.read_text()


def test_appends_and_cuts_off_what_a_killed_process_left(path):
    with EventLog(path) as log:
        log.write("step", step=1)
    for torn in ('{"event": "step", "st', "x" * 200_000):
        with open(path, "a") as file:
            file.write(torn)
        assert [e["step"] for e in read_events(path)][-1] != torn
        with EventLog(path) as log:
            log.write("step", step=2)
    assert [e["step"] for e in read_events(path)] == [1, 2, 2]
    path.write_text("half a line, and no other")
    with EventLog(path) as log:
        log.write("step", step=5)
    assert [e["step"] for e in read_events(path)] == [5]


def test_a_line_is_in_the_file_as_soon_as_it_is_written(path):
    log = EventLog(path)
    log.write("step", step=1)
    assert len(list(read_events(path))) == 1
    log.close()
    log.close()


def test_two_processes_do_not_interleave_lines(path):
    code = textwrap.dedent("""
        import sys
        from jaxlm.report.events import EventLog
        with EventLog(sys.argv[1]) as log:
            for i in range(150):
                log.write("step", step=i, who=sys.argv[2], text=sys.argv[2] * 5000)
    """)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    runs = [subprocess.Popen([sys.executable, "-c", code, path, who], env=env) for who in "ab"]
    assert [run.wait() for run in runs] == [0, 0]
    read = list(read_events(path))
    assert all(e["text"] == e["who"] * 5000 for e in read)
    for who in "ab":
        assert [e["step"] for e in read if e["who"] == who] == list(range(150))


def test_after_a_resume_the_later_line_wins_and_steps_beyond_are_taken_back(path):
    with EventLog(path) as log:
        for step in (10, 20, 30, 40):
            log.write("step", step=step, loss=1.0 * step)
        log.write("eval", step=40, loss=0.0)
        log.write("step", step=25, loss=-25.0)
        log.write("step", step=30, loss=-30.0)
        log.write("eval", step=30, loss=0.0)
    by_step = last_of_each_step(read_events(path))
    assert {step: event["loss"] for step, event in by_step.items()} == {
        10: 10.0,
        20: 20.0,
        25: -25.0,
        30: -30.0,
    }
    assert list(last_of_each_step(read_events(path), "eval")) == [30]


def test_reads_lazily_and_names_a_damaged_line(path):
    path.write_text('{"event": "start", "time_s": 0}\nnot json\n{"event": "end", "time_s": 0}\n')
    reader = read_events(path)
    assert next(reader)["event"] == "start"
    with pytest.raises(UserError, match=r"events.jsonl, line 2 is no JSON object"):
        next(reader)
    with pytest.raises(UserError, match="There is no event log"):
        list(read_events(path.parent / "other.jsonl"))


def test_a_full_disk_leaves_whole_lines_only(path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with EventLog(path) as log:
        log.write("step", step=1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, limits[1]))
        try:
            with pytest.raises((UserError, OSError)):
                log.write("text", step=2, text="x" * 5000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes().endswith(b"\n")
        log.write("step", step=3)
    assert [e["step"] for e in read_events(path)] == [1, 3]


def test_disabled_it_writes_nothing(path):
    with EventLog(path, enabled=False) as log:
        log.write("step", step=1)
    assert not path.exists()


def test_a_place_for_the_log_that_cannot_be_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"events.jsonl cannot be written"):
        EventLog(tmp_path / "file" / "events.jsonl")


def test_on_an_object_store_the_object_is_replaced_and_a_resume_keeps_it(path, monkeypatch):
    monkeypatch.setattr(events, "is_local", lambda path: False)
    with EventLog(path) as log:
        log.write("step", step=1)
        assert path.exists()
        log.write("step", step=2)
        assert len(list(read_events(path))) == 1
    with EventLog(path) as log:
        log.write("step", step=3)
    assert [e["step"] for e in read_events(path)] == [1, 2, 3]


def test_an_evaluation_written_before_the_row_of_its_step_belongs_to_the_process_that_wrote_it():
    rows = [
        ("start", None), ("step", 1), ("step", 2), ("eval", 3), ("step", 3), ("eval", 6), ("step", 6),
        ("start", None), ("eval", 3), ("step", 3), ("step", 4),
    ]  # fmt: skip
    log = [
        {"event": event, "number": n} | ({} if step is None else {"step": step})
        for n, (event, step) in enumerate(rows)
    ]
    assert {s: e["number"] for s, e in last_of_each_step(log, "eval").items()} == {3: 8}
    assert {s: e["number"] for s, e in last_of_each_step(log).items()} == {1: 1, 2: 2, 3: 9, 4: 10}
