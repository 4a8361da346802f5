"""A dozen faults: a run that is killed, damaged and moved ends as one that nobody touched. More: `make chaos`."""

import math

import pytest
from chaos_plan import Start, Suite, make_plan
from chaos_runs import Layout
from damages import DAMAGES
from driver import run
from faults import ALONE, SEVERAL
from verdict import Differences, Outcome, leftovers

from jaxlm.checkpoint_meta import Meta

ALL = {str(stroke): stroke for stroke in [*ALONE, *SEVERAL]}
ONE = Layout(1, 4)


def start(layout, *faults):
    """A planned start of named faults."""
    strokes = tuple(ALL[fault] for fault in faults if fault not in DAMAGES)
    return Start(layout, strokes, tuple(fault for fault in faults if fault in DAMAGES))


@pytest.mark.slow
def test_a_dozen_faults_change_no_bit_of_a_run(tmp_path):
    exact = [
        start(ONE, "SIGKILL / corpus build", "stale lock"),
        start(ONE, "SIGTERM / step", "checkpoint: unfinished folder"),
        start(ONE, "SIGKILL / commit", "checkpoint: a bit flipped"),
        start(ONE, "second run in the workdir / step", "SIGKILL / evaluation", "event log: torn line"),
    ]
    elastic = [
        start(Layout(1, 4, "fsdp=2 tensor=2"), "SIGTERM / commit"),
        start(Layout(2, 2), "SIGKILL of one process / commit", "checkpoint: a file truncated"),
    ]
    plan = [Suite("exact", True, ONE, exact), Suite("elastic", False, ONE, elastic)]
    assert sum(suite.num_faults for suite in plan) == 12
    chaos = run(tmp_path, plan, seed=0, num_steps=40, words_bytes=1_000_000)
    assert not chaos.problems, "\n".join(chaos.problems)
    assert len(chaos.records) == 12
    assert chaos.num_runs >= 2


def test_a_plan_follows_from_its_seed_and_deals_every_kind():
    plan = make_plan(120, 5, small_disk=False)
    assert plan == make_plan(120, 5, small_disk=False) != make_plan(120, 6, small_disk=False)
    assert sum(suite.num_faults for suite in plan) == 120
    kinds = {stroke.name for suite in plan for s in suite.starts for stroke in s.strokes}
    assert kinds == {stroke.name for stroke in ALL.values()}


STEP = {
    "event": "step",
    "time_s": 1.0,
    "step": 1,
    "batch_hash": 7,
    "train/loss": 2.0,
    "perf/step_time_s": 0.1,
}


@pytest.mark.parametrize(
    ("exact", "changed", "noticed"),
    [
        (True, {}, False),
        (True, {"time_s": 5.0, "perf/step_time_s": 9.0}, False),
        (True, {"train/loss": math.nextafter(2.0, 3.0)}, True),
        (True, {"batch_hash": 8}, True),
        (True, {"step": 2}, True),
        (True, {"train/more": 1.0}, True),
        (False, {"train/loss": 2.0 * (1 + 5e-6)}, False),
        (False, {"train/loss": 2.0 * (1 + 2e-5)}, True),
        (False, {"train/loss": math.nan}, True),
        (False, {"batch_hash": 8}, True),
    ],
)
def test_a_verdict_notices_what_differs(exact, changed, noticed):
    undisturbed = Outcome({1: STEP}, {}, {}, Meta(1))
    found = Differences(undisturbed, exact=exact).of_events([STEP | changed])
    assert bool(found) == noticed


def test_a_verdict_notices_what_is_left_lying_about(tmp_path):
    for name in ("4", "8", "12", "12.damaged"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "config.json").touch()
    assert leftovers(tmp_path) == []
    (tmp_path / "checkpoints" / "16").mkdir()
    (tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "config.json.1234.partial").touch()
    assert len(leftovers(tmp_path)) == 3
