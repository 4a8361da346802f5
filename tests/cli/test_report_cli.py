"""`jaxlm report` as a user has it: what it prints and writes, and one line for every mistake."""

import json
import multiprocessing
import shutil

import pytest
from small_log import write_log


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    return write_log(tmp_path_factory.mktemp("runs") / "mine", end={"seconds": 3.0})


@pytest.fixture
def mine(logged, tmp_path):
    shutil.copytree(logged, tmp_path / "mine")
    return tmp_path / "mine"


def test_a_page_is_written_into_the_run_and_said_so(jaxlm, mine):
    code, out, _ = jaxlm("report", mine)
    assert code == 0
    for line in ("finished: reached its last step", "120 of 120", "held-out loss     4.0000, best 4.0000 at step 60",
                 "1 warning(s), 1 bad step(s)", f"wrote {mine}/report.html"):  # fmt: skip
        assert line in out
    assert (mine / "report.html").read_bytes().startswith(b"<!doctype html>")


def test_goodput_and_json_are_for_terminals_and_programs_and_write_nothing(jaxlm, mine, tmp_path):
    other = write_log(tmp_path / "other")
    code, out, _ = jaxlm("report", mine, other, "--goodput")
    assert code == 0
    assert "mine: goodput" in out
    assert "all together" in out
    code, out, _ = jaxlm("report", mine, other, "--goodput", "--json")
    found = json.loads(out)
    assert abs(sum(found["total"]["shares"].values()) - 1) < 1e-9
    code, out, _ = jaxlm("report", mine, "--json")
    (one,) = json.loads(out)["runs"]
    assert (one["summary"]["step"], one["sources"][0]["tokens"]) == (120, 960)
    assert not (mine / "report.html").exists()


def test_several_runs_need_another_place(jaxlm, mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = write_log(tmp_path / "elsewhere" / "mine")
    assert jaxlm("report", mine, other)[0] == 0
    assert b"elsewhere/mine" in (tmp_path / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["{}/mina"], "there is no such folder. Did you mean"),
        (["{}"], "holds no run: config.json or events.jsonl is missing. Give"),
        (["{}/mine/events.jsonl"], "is a file. Give the folder of a run"),
        (["{}/mine", "{}/mine/"], "is given twice"),
        (["{}/mine", "--port=5"], "--port=5 is of --serve"),
        (["{}/mine", "--serve", "--port=70000"], "must be in [0, 65535]"),
        (["{}/mine", "--serve", "--json"], "--json is of no use beside --serve"),
        (["{}/mine", "--html={}/mine"], "is a folder"),
        (["{}/mine", "--html={}/no/such/page.html"], "cannot be written"),
        (["{}/mine", "--scores={}/mine/events.jsonl"], "that `jaxlm evaluate --data --json` wrote"),
        (["{}/mine", "--config=quickstart"], "each run has its own config"),
    ],
)
def test_a_mistake_is_one_line(jaxlm, mine, tmp_path, argv, said):
    code, out, err = jaxlm("report", *(arg.format(tmp_path) for arg in argv))
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_logs_that_are_empty_or_damaged(jaxlm, mine, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    assert "nothing was trained there yet" in jaxlm("report", tmp_path / "empty")[2]
    (tmp_path / "empty" / "events.jsonl").write_text("")
    assert "is empty" in jaxlm("report", tmp_path / "empty")[2]
    with (mine / "events.jsonl").open("a") as file:
        file.write('nonsense\n{"event": "message", "time_s": 1.0, "text": "on"}\n{"event": "torn')
    code, _, err = jaxlm("report", mine)
    assert code == 2
    assert f"{mine}/events.jsonl, line " in err
    code, out, _ = jaxlm("report", mine, "--lenient")
    assert code == 0
    assert "1 line(s) of the log" in out
    (mine / "config.json").write_text("[]")
    assert "is no JSON object" in jaxlm("report", mine, "--lenient")[2]


def test_a_config_of_another_version_is_shown_as_it_is(jaxlm, mine):
    (mine / "config.json").write_text('{"model": {"a_key_of_tomorrow": 3}}')
    code, out, _ = jaxlm("report", mine, "--json")
    assert code == 0
    assert json.loads(out)["runs"][0]["config"] == {"model.a_key_of_tomorrow": "3"}


def _write(folder, both_there):
    from jaxlm.cli.main import main

    both_there.wait(60)
    for _ in range(20):  # once, both would rarely be writing at the same moment
        assert main(["report", str(folder)]) == 0


def test_two_reports_at_once_leave_one_whole_page(mine):
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads of JAX may hang
    both_there = context.Barrier(2)
    both = [context.Process(target=_write, args=(mine, both_there)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [one.exitcode for one in both] == [0, 0]
    assert (mine / "report.html").read_bytes().endswith(b"</html>\n")
    assert not list(mine.glob("*.partial"))
