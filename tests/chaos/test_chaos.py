"""A dozen faults: a run that is killed, damaged and moved ends as one that nobody touched. More: `make chaos`."""

import pytest
from chaos_plan import Start, Suite, make_plan
from chaos_runs import Layout
from damages import DAMAGES
from driver import run
from faults import ALONE, SEVERAL

pytestmark = pytest.mark.slow
ALL = {str(stroke): stroke for stroke in [*ALONE, *SEVERAL]}
ONE = Layout(1, 4)


def start(layout, *faults):
    """A planned start of named faults."""
    return Start(layout, tuple(ALL[f] for f in faults if f in ALL), tuple(f for f in faults if f in DAMAGES))


def test_a_dozen_faults_change_no_bit_of_a_run(tmp_path):
    exact = [
        start(ONE, "SIGKILL / corpus build", "stale lock"),
        start(ONE, "SIGKILL / save", "checkpoint: unfinished folder"),
        start(ONE, "SIGTERM / step", "checkpoint: a bit flipped"),
        start(ONE, "second run in the workdir / step", "SIGKILL / evaluation", "event log: torn line"),
    ]
    elastic = [
        start(Layout(2, 2), "SIGKILL of one process / step", "checkpoint: a file truncated"),
        start(Layout(1, 4, "fsdp=2 tensor=2"), "SIGINT / save"),
    ]
    plan = [Suite("exact", True, ONE, exact), Suite("elastic", False, ONE, elastic)]
    assert sum(suite.num_faults for suite in plan) == 12
    chaos = run(tmp_path, plan, seed=0, num_steps=48, words_bytes=1_000_000)
    assert not chaos.problems, "\n".join(chaos.problems)
    assert len(chaos.records) == 12
    assert chaos.num_runs >= 2


def test_a_plan_follows_from_its_seed_and_deals_every_kind():
    plan = make_plan(120, 5, small_disk=False)
    assert plan == make_plan(120, 5, small_disk=False) != make_plan(120, 6, small_disk=False)
    assert sum(suite.num_faults for suite in plan) == 120
    kinds = {stroke.name for suite in plan for s in suite.starts for stroke in s.strokes}
    assert kinds == {stroke.name for stroke in ALL.values()}
