"""Goodput adds up to the wall time, and says what it does not know."""

import pytest

from jaxlm.report.goodput import goodput, total
from jaxlm.report.run_log import RunLog


def step(time_s, number, **fields):
    return {"event": "step", "time_s": time_s, "step": number, "train/num_bad_in_row": 0, **fields}


def process(at, first, last, *, restore_s=0.0, step_s=2.0, stall_share=0.25, compile_s=1.0):
    """Started at `at`, it takes 10 s to begin, and then 2 s for each step; every two are measured together."""
    yield {"event": "start", "time_s": at + 10}
    yield {"event": "plan", "time_s": at + 10, "first_step": first, "num_steps": 10}
    yield {
        "event": "startup",
        "time_s": at + 10,
        "seconds": 10.0,
        "restore_s": restore_s,
        "compile_s": compile_s,
    }
    for number in range(first + 1, last + 1):
        extra = {"perf/step_time_s": step_s, "perf/stall_share": stall_share} if number % 2 == 0 else {}
        yield step(at + 10 + step_s * (number - first), number, **extra)


def account(*events, **options):
    log = RunLog()
    log.add_all(event for part in events for event in (part if not isinstance(part, dict) else [part]))
    return goodput(log, **options)


def test_every_second_of_a_killed_and_resumed_run_has_its_place():
    found = account(
        process(100.0, 0, 6),  # killed after step 6, at 122
        {"event": "eval", "time_s": 124.0, "step": 6},
        {"event": "span", "time_s": 124.0, "step": 6, "kind": "evaluation", "seconds": 2.0, "compile_s": 0.5},
        process(150.0, 4, 8, restore_s=3.0),  # 5 and 6 again; 160 to 168
        {"event": "span", "time_s": 169.0, "kind": "checkpoint", "seconds": 1.0, "compile_s": 0.0},
        {"event": "end", "time_s": 170.0},
    )
    assert found.wall_s == pytest.approx(70.0)
    assert found.seconds == pytest.approx(
        {
            "productive": (4 + 4) * 2 * 0.75,
            "lost_steps": 2 * 2 * 0.75,
            "data_stall": 10 * 2 * 0.25,
            "compile": 2 * 1.0 + 0.5,
            "startup": 9.0 + 6.0,
            "restore": 3.0,
            "evaluation": 1.5,
            "checkpoint": 1.0,
            "down": 26.0,
            "other": 1.0,
        }
    )
    assert sum(found.seconds.values()) == pytest.approx(found.wall_s)
    assert found.share == pytest.approx(12 / 70)
    assert (found.num_starts, found.num_lost_steps) == (2, 2)
    both = total([found, found])
    assert both.share == pytest.approx(found.share)
    assert sum(both.as_dict()["shares"].values()) == pytest.approx(1.0)


def test_the_pause_after_a_run_that_had_finished_is_nobodys():
    found = account(
        process(100.0, 0, 4),
        {"event": "end", "time_s": 120.0},
        process(9e5, 4, 8),
        {"event": "end", "time_s": 9e5 + 20},
    )
    assert found.wall_s == pytest.approx(40.0)
    assert found.seconds["down"] == 0
    assert found.seconds["lost_steps"] == 0


def test_a_run_that_goes_on_ends_now():
    assert account(process(100.0, 0, 4), now_s=130.0).wall_s == pytest.approx(30.0)
    assert account(process(100.0, 0, 4)).wall_s == pytest.approx(18.0)


def test_a_log_of_an_older_version_says_what_it_has_not():
    events = [event for event in process(100.0, 0, 4) if event["event"] != "startup"]
    found = account(events)
    assert found.wall_s == pytest.approx(8.0)
    assert [name for name, value in found.seconds.items() if value is None] == [
        "compile", "checkpoint", "restore", "evaluation", "startup",
    ]  # fmt: skip
    assert found.seconds["productive"] == pytest.approx(6.0)
    assert total([found, account(process(100.0, 0, 4))]).seconds["startup"] == pytest.approx(9.0)


def test_steps_that_are_skipped_or_rolled_back_do_not_count():
    events = list(process(100.0, 0, 8, stall_share=0.0))
    for event in events:
        if event.get("step") in (7, 8):
            event["train/num_bad_in_row"] = event["step"] - 6
    assert account(events).seconds["lost_steps"] == pytest.approx(4.0)
    found = account(events, {"event": "rollback", "time_s": 127.0, "step": 8, "to": 4})
    assert found.seconds["lost_steps"] == pytest.approx(8.0)
    assert found.seconds["productive"] == pytest.approx(8.0)


def test_a_clock_that_was_set_back_makes_no_share_above_one():
    events = list(process(100.0, 0, 8))
    events[-1]["time_s"] = 50.0
    found = account(events, process(60.0, 8, 10))
    assert max(value for value in found.as_dict()["shares"].values()) <= 1.0


def test_nothing_logged_is_no_division_by_zero():
    assert account().share is None
    assert account({"event": "message", "text": "hello"}).as_dict()["goodput"] is None
