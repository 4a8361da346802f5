"""Promises of the readers of a log: read quickly, incrementally or at once, it says the same."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.report import events as events_lib
from jaxlm.report.events import EventLog, EventReader, encode_event, last_of_each_step, read_events
from jaxlm.report.run_log import RunLog
from jaxlm.types import UserError

EVENT = st.one_of(
    st.just(("start", None)),
    st.tuples(st.sampled_from(["step", "step", "step", "eval", "text"]), st.integers(1, 9)),
)


@settings(max_examples=200)
@given(st.lists(EVENT, max_size=40))
def test_columns_hold_the_last_of_each_step(kinds):
    events = [
        {"event": kind, "time_s": float(i)} | ({} if step is None else {"step": step, "train/loss": float(i)})
        for i, (kind, step) in enumerate(kinds)
    ]
    for event in events:
        if event["event"] == "text":
            event |= {"name": "a", "text": "b"}
    log = RunLog()
    log.add_all(events)
    wanted = last_of_each_step(events)
    steps, losses = log.column("train/loss")
    assert dict(zip(steps.tolist(), losses.tolist())) == {s: e["train/loss"] for s, e in wanted.items()}
    assert log.column("time_s")[0].tolist() == list(wanted)
    assert dict(sorted(log.evals.items())) == last_of_each_step(events, "eval")
    assert {step for step, _ in log.texts} == set(last_of_each_step(events, "text"))


LINES = [
    encode_event("step", 1.5, 3, {"train/loss": 0.1, "batch_hash": 7, "name": "a\u2028<b>"}),
    encode_event("step", 1.5, 3, {"train/loss": math.nan, "train/grad_norm": -math.inf}),
    encode_event("plan", 1.5, None, {"sources": {"a": {"tokens": 3}}, "list": [1, math.nan]}),
    '{"event": "step"}', '{"event": "step", "time_s": 5, "step": 1}', '{"event": "step", "time_s": true}',
    '{"event": "step", "step": -1}', '{"event": "step", "step": 1.0}', '{"event": "step", "step": 9223372036854775808}',
    '{"event": 3}', '{"events": "step"}', "[]", "3", "", "{", '{"event": "a"} x', '{"event": "a", "x": NaN}',
    '{"event": "a", "time_s": NaN}', '{"event": "a", "time_s": 1e999}', '{"event": "a", "nonfinite": 3}',
    '{"event": "a", "x": ' + "9" * 400 + "}", '{"event": "a", "x": ' + "9" * 5000 + "}",
    '{"event": "a", "x": "' + "[" * 500 + '"}', '{"event": "a", "x": ' + "[" * 500 + "]" * 500 + "}",
    '{"event": "a", "event": 3}',
]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_the_quick_way_to_read_a_line_says_what_the_careful_one_does(line, monkeypatch):
    def outcome():
        try:
            return repr(events_lib._parse_event(line.encode()))
        except ValueError as error:
            return type(error)

    quick = outcome()
    monkeypatch.setattr(events_lib, "MAX_FLAT_BYTES", 0)
    assert quick == outcome()


def test_a_growing_log_is_read_once_and_a_torn_line_waits(tmp_path):
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.write("start")
        reader = EventReader(path)
        assert [e["event"] for e in reader.new_events()] == ["start"]
        assert list(reader.new_events()) == []
        log.write("step", step=1)
    with path.open("ab") as file:
        file.write(b'{"event": "step", "st')
    assert [e["step"] for e in reader.new_events()] == [1]
    with path.open("ab") as file:
        file.write(b'ep": 2}\n')
    assert [e["step"] for e in reader.new_events()] == [2]
    path.write_text("")
    with pytest.raises(UserError, match="became shorter"):
        list(reader.new_events())


def test_a_damaged_line_is_an_error_or_is_told_of(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "start"}\nnonsense\n{"event": "end"}\n')
    with pytest.raises(UserError, match=r"events\.jsonl, line 2 is no JSON object"):
        list(read_events(path))
    told = []
    assert [e["event"] for e in EventReader(path, on_bad_line=told.append).new_events()] == ["start", "end"]
    assert len(told) == 1
    assert "line 2" in told[0]


def test_values_of_the_wrong_kind_do_not_end_a_report():
    log = RunLog()
    log.add_all(
        [
            {"event": "start", "time_s": 1.0},
            {"event": "plan", "sources": 3, "num_steps": "x", "first_step": None},
            {"event": "step", "step": "x", "train/loss": 1.0},
            {
                "event": "step",
                "step": 1,
                "train/loss": "x",
                "train/grad_norm": None,
                "perf/step_time_s": 10**400,
            },
            {"event": "eval", "step": 1, "eval/a/loss": {}},
            {"event": "span", "kind": 3, "seconds": "x", "time_s": 2.0},
            {"event": "text", "step": 1, "text": 3},
            {"event": "rollback", "to": "x"},
            {"event": "memory", "peak_process_bytes": []},
        ]
    )
    json.dumps(log.eval_column("eval/a/loss")[1].tolist())
    assert list(log.columns) == []
    assert np.array_equal(log.column("train/loss")[0], [])
