"""`jaxlm plan compare`: of logs as runs write them, and of a run."""

import json

import pytest

from jaxlm.report.events import EventLog
from jaxlm.run import default_config, parse, resolve, save_config, train

PLAN = {
    "first_step": 0, "num_steps": 2, "num_processes": 1, "num_devices": 1, "num_chips": 1.0, "device_kind": "cpu",
    "peak_flops_per_s": None, "num_positions": 32, "flops_per_token": 10.0, "flops": 320.0, "device_bytes": 1e6,
    "sources": {"topics": {"tokens": 30, "epochs": 0.5}},
}  # fmt: skip


@pytest.fixture
def make_run(tmp_path):
    """make_run("a", steps=2, end=True) -> the folder of a run with such a log."""

    def make(name, steps=2, end=True, **changes):
        folder = tmp_path / name
        cfg = parse(["--config=quickstart", "--config.train.num_steps=2"])
        for key, value in changes.items():
            cfg[key] = value
        folder.mkdir()
        save_config(folder / "config.json", resolve(cfg))
        with EventLog(folder / "events.jsonl") as log:
            log.write("start")
            log.write("plan", **PLAN)
            for step in range(1, steps + 1):
                log.write(
                    "step", step=step, **{"train/num_tokens": 15.0, "train/num_inputs": 16, "train/loss": 1.0}
                )
            if end:
                log.write("end", seconds=1.0)
        return folder

    return make


def as_json(jaxlm, *argv):
    code, out, err = jaxlm("plan", "compare", *argv, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def refused(jaxlm, *argv):
    code, out, err = jaxlm("plan", "compare", *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    return err


def test_several_runs_have_a_table_each(jaxlm, make_run):
    a, b = make_run("a"), make_run("b", objective="pretrain", seed=3)
    code, out, _ = jaxlm("plan", "compare", a, b, "--price=2")
    assert code == 0
    assert out.count("tokens trained on") == 2
    assert "money: chip-hours x $2, as --price says" in out
    assert max(map(len, out.splitlines())) <= 100
    found = as_json(jaxlm, a, b)["runs"]
    assert [found[str(run)]["happened"]["tokens"] for run in (a, b)] == [30, 30]
    assert found[str(a)]["happened"]["flops"] == 320


def test_a_truncated_last_line_is_left_out(jaxlm, make_run):
    run = make_run("a")
    with (run / "events.jsonl").open("a") as file:
        file.write('{"event": "step", "st')
    assert as_json(jaxlm, run)["runs"][str(run)]["happened"]["steps"] == 2


def test_an_unfinished_run_is_refused_unless_asked_for(jaxlm, make_run):
    run = make_run("a", steps=1, end=False)
    err = refused(jaxlm, run)
    assert "its log has no end: it has come to step 1 of 2." in err
    assert "--unfinished" in err
    found = as_json(jaxlm, run, "--unfinished")["runs"][str(run)]
    assert (found["planned"]["steps"], found["happened"]["steps"]) == (2, 1)
    _, out, _ = jaxlm("plan", "compare", run, "--unfinished")
    assert "the run has not ended" in out


def test_a_fine_tuning_is_compared_without_what_it_started_from(jaxlm, make_run):
    run = make_run("tuned")
    cfg = json.loads((run / "config.json").read_text())
    cfg["init_from"], cfg["objective"] = "/no/longer/there", "instruct"
    (run / "config.json").write_text(json.dumps(cfg))
    assert as_json(jaxlm, run)["runs"][str(run)]["happened"]["steps"] == 2


def test_what_holds_no_training_is_named(jaxlm, make_run, tmp_path):
    run = make_run("a")
    assert "there is no such folder" in refused(jaxlm, tmp_path / "none")
    assert "is a file" in refused(jaxlm, run / "events.jsonl")
    (tmp_path / "empty").mkdir()
    assert "config.json is missing" in refused(jaxlm, tmp_path / "empty")
    assert "is given twice" in refused(jaxlm, run, run)
    log = (run / "events.jsonl").read_text().splitlines(keepends=True)
    (run / "events.jsonl").write_text("".join(log[:2]))
    assert "has no step yet" in refused(jaxlm, run)
    (run / "events.jsonl").write_text("{}\n" + "".join(log))
    assert "line 1 is no JSON object of this log (it has no event)" in refused(jaxlm, run)
    (run / "events.jsonl").write_text('{"event": "step", "time_s": 1.0}\n')
    assert "a line that no run wrote" in refused(jaxlm, run)
    (run / "events.jsonl").write_text("nonsense\n" + "".join(log))
    assert "line 1 is no JSON object" in refused(jaxlm, run)
    (run / "events.jsonl").write_text("[" * 100_000 + "\n" + "".join(log))
    assert "line 1 is no JSON object" in refused(jaxlm, run)
    (run / "events.jsonl").unlink()
    assert "nothing was trained there. It holds imported or merged weights" in refused(jaxlm, run)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mfu=40"], "--mfu=40 must be a share of the peak"),
        (["--mfu=0"], "--mfu='0' must be from"),
        (["--price=cheap"], "--price='cheap' must be a number"),
        (["--config=quickstart"], "jaxlm plan compare takes no --config"),
        (["--unfinish"], "did you mean --unfinished?"),
    ],
)
def test_wrong_flags_are_refused(jaxlm, make_run, flags, message):
    assert message in refused(jaxlm, make_run("a"), *flags)


def test_a_run_is_named(jaxlm):
    assert "RUN" in refused(jaxlm)


def test_a_run_does_what_it_logged_as_its_plan(jaxlm, tmp_path):
    """Of a real log, with a restart: the plan is of all steps, and what is read is what was planned."""
    text = tmp_path / "squares.txt"
    text.write_text("".join(f"{n} to the power 2 is {n**2}.\n" for n in range(300)))
    cfg = default_config()
    cfg.data.sources.mine = {"path": str(text), "on_exhausted": "repeat"}
    keys = {
        "data.seq_len": 16, "data.global_batch_size": 8, "data.eval_fraction": 0.0, "train.eval_batches": 0,
        "tokenizer.kind": "char", "model.embed_dim": 16, "model.num_layers": 1, "model.num_heads": 2,
        "model.num_kv_heads": 2, "train.num_steps": 2, "optimizer.warmup_steps": 1,
        "optimizer.schedule": "constant",
    }  # fmt: skip
    cfg.update_from_flattened_dict(keys)
    train(resolve(cfg), tmp_path / "run")
    cfg.train.num_steps = 3
    train(resolve(cfg), tmp_path / "run")
    code, out, _ = jaxlm("plan", "compare", tmp_path / "run", "--json")
    assert code == 0
    found = json.loads(out[out.index('{\n  "title"') :])["runs"][str(tmp_path / "run")]
    assert len(found["attempts"]) == 2
    assert found["planned"]["steps"] == found["happened"]["steps"] == 3
    assert found["planned"]["sources"] == found["happened"]["sources"]
    assert found["planned"]["flops"] == found["happened"]["flops"]
    assert found["happened"]["chip_hours"] == pytest.approx(
        8 * sum(a["seconds"] for a in found["attempts"]) / 3600
    )
