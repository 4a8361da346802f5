"""Promises of jaxlm/report/progress.py: plain lines in a pipe, one redrawn line on a terminal, 100 columns."""

import io
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.report import progress
from jaxlm.report.progress import Progress, duration, eval_lines, quantity, start_screen, step_line

VALUES = {
    "train/loss": 3.14159, "train/learning_rate": 3e-4, "train/grad_norm": 0.5, "perf/tokens_per_s": 1523.4,
    "perf/flops_per_s": 9.82e10, "perf/mfu": 0.512,
}  # fmt: skip


def test_start_screen_shows_every_section_within_100_columns():
    screen = start_screen(
        {
            "run": {
                "workdir": "runs/a",
                "weights": "fresh " * 40,
                "a label that is longer than its column": "value",
            },
            "sources": [
                {"source": "topics", "planned tokens": "1,200,000", "epochs": "1.42", "path": "x" * 200},
                {"source": "licences", "planned tokens": "80", "epochs": "12.00", "path": "short"},
            ],
            "data": "source     share\ntopics    60.00%\n" + "word " * 50,
            "attention": "dense, chosen for cpu",
        }
    )
    lines = screen.splitlines()
    assert max(map(len, lines)) <= 100
    for text in (
        "workdir",
        "runs/a",
        "topics    60.00%",
        "dense, chosen for cpu",
        "longer than its column",
        "…",
    ):
        assert text in screen
    assert screen.count("fresh") == 40
    header = next(line for line in lines if "planned tokens" in line)
    row = next(line for line in lines if "licences" in line)
    assert row.index("80") + 2 == header.index("planned tokens") + len(
        "planned tokens"
    )  # numbers to the right


@given(
    st.dictionaries(
        st.text(max_size=40).filter(str.isprintable),
        st.one_of(
            st.text(max_size=300).filter(str.isprintable),
            st.dictionaries(
                st.text(max_size=60).filter(str.isprintable), st.integers() | st.text(max_size=300)
            ),
            st.lists(st.fixed_dictionaries({"a": st.text(max_size=90), "b": st.integers()}), max_size=3),
        ),
        max_size=3,
    )
)
def test_no_content_breaks_the_width(sections):
    assert all(len(line) <= 100 for line in start_screen(sections).split("\n"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0s"), (59.4, "59s"), (185, "3m 05s"), (7620, "2h 07m"), (273_600, "3d 04h"), (math.nan, "?")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 FLOP/s"), (999.4, "999 FLOP/s"), (999.6, "1 kFLOP/s"), (9.82e10, "98.2 GFLOP/s"), (math.inf, "inf FLOP/s"),
     (2.5e15, "2.5 PFLOP/s"), (7e18, "7,000 PFLOP/s")],
)  # fmt: skip
def test_quantities(value, text):
    assert quantity(value, "FLOP/s") == text


def test_step_line_shows_what_there_is():
    assert step_line(VALUES) == (
        "loss 3.1416  lr 3.00e-04  grad norm 0.50  1,523 tokens/s  98.2 GFLOP/s  MFU 51.2%"
    )
    assert step_line({"train/loss": math.nan}) == "loss nan"


def test_evaluation_has_a_line_per_source():
    scores = {"eval/loss": 3.0}
    for source in ("topics", "books/old"):
        scores |= {
            f"eval/{source}/loss": 3.0,
            f"eval/{source}/perplexity": 20.0855,
            f"eval/{source}/bits_per_byte": 1,
        }
    lines = eval_lines(scores)
    assert [line.split()[0] for line in lines] == ["topics", "books/old"]
    assert lines[0].endswith("loss 3.0000  perplexity 20.09  bits/byte 1.0000")


def test_a_pipe_gets_plain_lines_without_control_codes():
    file = io.StringIO()
    report = Progress(100, file=file)
    report.step(1, VALUES)
    report.evaluation(1, {"eval/topics/loss": 3.0})
    report.print("[bold]text[/bold]")
    report.close()
    lines = file.getvalue().splitlines()
    assert lines[0].startswith("step 1/100  loss 3.1416")
    assert lines[1:] == ["step 1  held out", "  topics           loss 3.0000", "[bold]text[/bold]"]
    assert "\x1b" not in file.getvalue()


def test_a_terminal_gets_one_line_redrawn_and_what_is_printed_above_it(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    file = io.StringIO()
    report = Progress(100, file=file, interactive=True)
    report.print("first screen [not markup]")
    for step in (50, 51):
        report.step(step, VALUES)
    report.evaluation(51, {"eval/loss": 2.5, "eval/topics/loss": 2.5})
    report.step(52, VALUES)
    report.close()
    text = file.getvalue()
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "first screen [not markup]" in plain
    assert "━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌ step 50/100" in plain
    assert "step 51  held out" in plain
    assert plain.count("\n") < 12


def test_on_a_narrow_terminal_the_numbers_come_first(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    file = io.StringIO()
    report = Progress(100, file=file, interactive=True)
    report.step(50, VALUES)
    report.close()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    line = plain.splitlines()[0].strip("\r")
    assert len(line) <= 79
    assert line.strip().startswith("step 50/100  loss 3.1416")
    assert "━" not in line


def test_the_time_left_follows_the_recent_speed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    report = Progress(1000, file=io.StringIO())
    assert math.isnan(report.remaining_s())
    report.step(100, VALUES)
    assert math.isnan(report.remaining_s())
    for step in range(101, 200):
        now[0] += 1.0
        report.step(step, VALUES)
    assert report.remaining_s() == pytest.approx(801.0)
    for step in range(200, 400):  # four times as fast
        now[0] += 0.25
        report.step(step, VALUES)
    assert report.remaining_s() == pytest.approx(601 / 4, rel=0.01)
