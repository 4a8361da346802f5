"""The tables of jaxlm/report/names.py name what the code writes, and what a run has in its log."""

import ast
import re
from pathlib import Path

import pytest
from small_run import small, write_squares

from jaxlm import run
from jaxlm.report.events import EVENTS as FILE
from jaxlm.report.events import read_events
from jaxlm.report.names import EVENTS, METRICS

ROOT = Path(__file__).parents[2]
OWN = {"event", "time_s", "step", "nonfinite"}


def words_of_the_code():
    """First arguments of `.event(...)`, `.write_many([(...)])` and of notices."""
    for path in (ROOT / "jaxlm").rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                args = node.args[:1]
                if node.func.attr == "write_many":
                    args = [one.elts[0] for one in ast.walk(node) if isinstance(one, ast.Tuple)][:1]
                elif node.func.attr != "event":
                    continue
                yield from (
                    one.value for one in args if isinstance(one, ast.Constant) and isinstance(one.value, str)
                )


def test_every_event_that_the_code_writes_is_explained():
    found = set(words_of_the_code())
    assert {"start", "plan", "step", "eval", "save", "end", "failed", "bad_step", "rollback"} <= found
    assert found - set(EVENTS) == set()


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    run.train(small(write_squares(folder / "squares.txt")), folder / "run")
    return list(read_events(folder / "run" / FILE))


def test_every_event_and_metric_of_a_run_is_explained(events):
    assert (
        {"start", "plan", "step", "eval", "save", "end"}
        <= {event["event"] for event in events}
        <= set(EVENTS)
    )
    keys = {key for event in events if event["event"] in ("step", "eval") for key in event} - OWN
    named = {re.sub(r"^(data|eval)/mine/", r"\1/<source>/", key) for key in keys}
    assert named - set(METRICS) == set()
    assert {
        "train/loss",
        "perf/mfu",
        "perf/stall_share",
        "data/<source>/epochs",
        "eval/<source>/bits_per_byte",
    } - named == {
        "perf/mfu"  # of a CPU nobody knows the peak
    }
