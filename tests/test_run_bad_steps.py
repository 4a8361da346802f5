"""Bad steps are explained, can be repeated, and can be left behind; a preempted evaluation is made up for."""

import functools
import json
import os
import re
import signal

import pytest
from slow import slow
from small_run import small, write_squares

from jaxlm import run
from jaxlm.checkpoint import Checkpoints
from jaxlm.cli.main import main
from jaxlm.data.pipeline import Rows
from jaxlm.report.events import last_of_each_step, read_events
from jaxlm.train.hooks import Evaluate, Stopped
from jaxlm.types import UserError


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("text") / "squares.txt")


def spoil(monkeypatch, *steps):
    """The batches of these steps have a weight that no loss can bear."""
    batch = Rows.batch

    def spoilt(rows, step, row_ids=None):
        found = batch(rows, step, row_ids)
        if step + 1 in steps:
            found["weights"][0, 3] = 3e38  # its loss overflows
        return found

    monkeypatch.setattr(Rows, "batch", spoilt)


def events(workdir, kind):
    return [event for event in read_events(workdir / "events.jsonl") if event["event"] == kind]


def losses(workdir):
    return {
        step: event["train/loss"]
        for step, event in last_of_each_step(read_events(workdir / "events.jsonl")).items()
    }


def test_a_bad_step_is_explained_and_replayed(text, tmp_path, monkeypatch, capsys):
    """Also when the checkpoint before it would be long gone, and good steps followed."""
    spoil(monkeypatch, 5)
    workdir = tmp_path / "run"
    run.train(small(text, train__num_steps=8, checkpoint__every_steps=2, checkpoint__keep_last=1), workdir)
    (bad,) = events(workdir, "bad_step")
    assert (bad["step"], bad["kind"]) == (5, "nonfinite")
    assert bad["rows"].keys() == {"mine"}
    assert len(bad["rows"]["mine"]) == 8
    assert bad["num_unsound_gradients"] > 5
    assert bad["unsound_gradients"][0] == "final_norm/scale"
    assert re.search(
        r"warning: Step 5 was bad and is skipped: loss inf.* 8 rows of mine", capsys.readouterr().out
    )
    assert run.load_run(workdir).step == 8
    assert main(["replay", bad["file"], "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["is_same"]
    assert re.search("from step [24]", result["start"])  # kept for this, though keep_last=1
    assert result["first_bad"].startswith("inf out of ")
    os.rename(workdir, tmp_path / "moved")
    moved = str(tmp_path / "moved" / "bad_steps" / "step-000005.json")
    assert main(["replay", moved]) == 2
    assert "--workdir says where" in capsys.readouterr().err
    assert main(["replay", moved, f"--workdir={tmp_path / 'moved'}"]) == 0
    assert "the same, bit for bit" in capsys.readouterr().out


def test_steps_on_the_way_are_taken_once_more(text, tmp_path, monkeypatch, capsys):
    """From the random weights of step 0, where nothing was saved yet."""
    spoil(monkeypatch, 4)
    run.train(small(text, train__num_steps=5, checkpoint__every_steps=5), tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "5").rename(tmp_path / "elsewhere")
    assert main(["replay", str(tmp_path / "run" / "bad_steps" / "step-000004.json")]) == 0
    said = capsys.readouterr()
    assert "3 steps on the way" in said.err
    assert "3 of 3 losses as in the event log" in said.out


def test_where_the_run_has_not_gone_on_the_operation_is_named_at_once(text, tmp_path, monkeypatch):
    spoil(monkeypatch, 3, 4)
    config = small(
        text, train__num_steps=6, train__max_bad_steps=2, train__log_every_steps=6, checkpoint__every_steps=9
    )
    spoil(monkeypatch, 3, 4, 5, 6)
    with pytest.raises(UserError, match=r"2 bad steps in a row up to step 4 \(loss inf.*`jaxlm replay`"):
        run.train(config, tmp_path / "run")
    first = events(tmp_path / "run", "bad_step")[0]
    assert first["first_bad"].startswith("inf out of ")
    assert ".py:" in first["first_bad"]


def test_a_spike_is_told_from_a_nan(text, tmp_path):
    config = small(text, train__num_steps=4, train__spike_factor=1.0001, train__max_bad_steps=9)
    run.train(config, tmp_path / "run")
    spikes = events(tmp_path / "run", "bad_step")
    assert spikes
    assert {(bad["kind"], bad["num_unsound_gradients"]) for bad in spikes} == {("spike", 0)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is damaged: Expecting property name"),
        ("[1]", "is damaged: "),
        ('{"format": 99}', "is damaged: "),
        (None, "There is no file"),
    ],
)
def test_a_file_that_is_no_bad_step_is_refused(tmp_path, content, said, capsys):
    path = tmp_path / "step.json"
    if content is not None:
        path.write_text(content)
    assert main(["replay", str(path)]) == 2
    assert said in capsys.readouterr().err


def test_replay_refuses_a_run_whose_data_changed(text, tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, 2)
    run.train(small(text, train__num_steps=3), tmp_path / "run")
    spoil(monkeypatch, 2, 1)
    batch = Rows.batch

    def other(rows, step, row_ids=None):
        found = batch(rows, step, row_ids)
        found["tokens"][0, 0] += 1
        return found

    monkeypatch.setattr(Rows, "batch", other)
    assert main(["replay", str(tmp_path / "run" / "bad_steps" / "step-000002.json")]) == 2
    assert "tokens differs" in capsys.readouterr().err


BACK = dict(
    train__num_steps=10, train__max_bad_steps=2, train__on_bad_steps="rollback", checkpoint__every_steps=2
)


@pytest.fixture(scope="module")
def rolled_back(text, tmp_path_factory):
    """log_every -> the workdir of a run whose steps 6 and 7 were bad."""

    @functools.cache
    def make(log_every):
        workdir = tmp_path_factory.mktemp("rolled_back") / "run"
        with pytest.MonkeyPatch.context() as patch:
            spoil(patch, 6, 7)
            run.train(small(text, **BACK, train__log_every_steps=log_every), workdir)
        return workdir

    return make


@pytest.mark.parametrize("log_every", [slow(1), 4])
def test_rolls_back_behind_bad_steps_with_the_weights_from_before(text, tmp_path, rolled_back, log_every):
    """However late they are noticed, the run goes on after the last of them, and reads what it would have read."""
    workdir = rolled_back(log_every)
    (back,) = events(workdir, "rollback")
    assert (back["step"], back["to"], back["count"]) == (7, 4, 1)
    found = losses(workdir)
    assert sorted(found) == list(range(1, 11))
    # The same weights, made to go on after step 7 by hand: those of step 4, with that step.
    run.train(small(text, train__num_steps=10, checkpoint__every_steps=2), tmp_path / "good")
    good = last_of_each_step(read_events(tmp_path / "good" / "events.jsonl"))
    hashes = last_of_each_step(read_events(workdir / "events.jsonl"))
    assert [hashes[s]["batch_hash"] for s in (8, 9, 10)] == [good[s]["batch_hash"] for s in (8, 9, 10)]
    assert found[8] != good[8]["train/loss"]
    meta = run.load_run(workdir).meta
    assert meta.extra["rolled_back"] == {"at": 7, "to": 4, "count": 1}


def test_a_run_killed_after_a_rollback_goes_on_as_if_not(text, tmp_path, rolled_back, monkeypatch):
    spoil(monkeypatch, 6, 7)
    config = small(text, **(BACK | dict(train__num_steps=8)))
    run.train(config, tmp_path / "cut")
    run.train(small(text, **BACK), tmp_path / "cut")
    assert losses(tmp_path / "cut") == losses(rolled_back(4))


def test_rolling_back_in_vain_ends(text, tmp_path, monkeypatch):
    spoil(monkeypatch, *range(4, 30))
    with pytest.raises(
        UserError, match="Rolled back 3 times in a row, in vain. 2 bad steps in a row up to step 11"
    ):
        run.train(
            small(text, **(BACK | dict(train__num_steps=20, checkpoint__every_steps=2))), tmp_path / "run"
        )


def test_without_a_checkpoint_there_is_nothing_to_roll_back_to(text, tmp_path, monkeypatch):
    spoil(monkeypatch, 1, 2)
    with pytest.raises(UserError, match="no checkpoint from before them to roll back to"):
        run.train(small(text, **BACK), tmp_path / "run")


def test_a_signal_while_the_last_save_is_written_does_not_lose_it(text, tmp_path, monkeypatch):
    wait, waits = Checkpoints.wait, []

    def interrupted(checkpoints):
        if not waits:
            os.kill(os.getpid(), signal.SIGTERM)
        waits.append(None)
        wait(checkpoints)

    monkeypatch.setattr(Checkpoints, "wait", interrupted)
    run.train(small(text), tmp_path / "run")
    assert run.load_run(tmp_path / "run").step == 2


@pytest.mark.parametrize("step", [slow(2), 4])
def test_an_evaluation_that_a_signal_cut_short_is_made_up_for(
    text, tmp_path, monkeypatch, step
):  # pain 21, 28
    """In the middle of a run, and after its last step; the second time it is done."""
    config = small(text, train__num_steps=4, train__eval_batches=3)
    run.train(config, tmp_path / "whole")
    scores, calls = Evaluate.scores, []

    def interrupted(evaluate, params):
        calls.append(None)
        if len(calls) == step // 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return scores(evaluate, params)

    monkeypatch.setattr(Evaluate, "scores", interrupted)
    with pytest.raises(Stopped, match=f"after step {step}, which is saved"):
        run.train(config, tmp_path / "run")
    assert [event["step"] for event in events(tmp_path / "run", "eval")] == list(range(2, step, 2))
    monkeypatch.undo()
    run.train(config, tmp_path / "run")
    run.train(config, tmp_path / "run")
    for kind in ("step", "eval"):
        whole, cut = (
            [
                {k: v for k, v in event.items() if not k.startswith(("time_s", "perf/"))}
                for event in events(folder, kind)
            ]
            for folder in (tmp_path / "whole", tmp_path / "run")
        )
        assert cut == whole
