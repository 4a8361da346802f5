"""The processes of a search: what is kept, taken again, tried again or not, and that a signal leaves none behind."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from jaxlm.plan import search_run, topology
from jaxlm.plan.search import Left, Trial
from jaxlm.plan.search_report import Search, search_report
from jaxlm.plan.search_run import Stopped, run_trials

GIB = 2**30


def trial(rows, remat="full", predicted=0):
    return Trial(
        rows,
        remat,
        {"data": 1, "fsdp": 8, "expert": 1, "sequence": 1, "tensor": 1},
        None,
        Run(),
        predicted,
        0.0,
    )


class Run:
    """Of a RunConfig, what a trial says of it."""

    class data:
        global_batch_size = 8

    class train:
        num_microbatches = 1


def numbers(tokens=1000.0, total=GIB, fits=True):
    """What `jaxlm compile --json` prints, as far as a search reads it."""
    speeds = [{"basis": "roofline", "tokens_per_s_per_chip": 2 * tokens, "mfu": 0.9}]
    speeds.append({"basis": "cycles", "tokens_per_s_per_chip": tokens, "mfu": 0.5})
    return {
        "kernels": {"attention": "flash", "attention blocks": "512,256,128"},
        "memory": {"total_bytes": total, "fits": fits},
        "step": {"executed_share": 1.25} if fits else None,
        "speeds": speeds if fits else [],
    }


def says(text="", code=0, log=None, stderr=""):
    """A process that prints this and ends so, and notes that it ran."""
    note = "" if log is None else f"open({str(log)!r}, 'a').write('x');"
    lines = f"import sys; {note} print({text!r}); print({stderr!r}, file=sys.stderr); sys.exit({code})"
    return [sys.executable, "-S", "-c", lines]


def run(folder, commands, *, retry=False, num_processes=2, told=lambda one: None):
    """commands: (trial, command)"""
    trials = [(f"{one.rows}-{one.remat}", one) for one, _ in commands]
    by_id = {id(one): command for one, command in commands}
    return run_trials(
        trials, folder, lambda one: by_id[id(one)], num_processes=num_processes, retry=retry, told=told
    )


def test_what_is_kept_is_not_compiled_again(tmp_path):
    log = tmp_path / "log"
    one = trial(2), says(json.dumps(numbers()), log=log)
    (first,), _ = run(tmp_path, [one])
    (again,), _ = run(tmp_path, [one])
    assert (first.is_new, again.is_new) == (True, False)
    assert first[:4] == again[:4]
    assert first.merit == 1000.0
    assert log.read_text() == "x"
    kept = json.loads((tmp_path / "2-full.json").read_text())
    assert kept["trial"] == one[0].choices
    assert kept["command"] == one[1]


@pytest.mark.parametrize(
    "half", ["", "{", '{"numbers": {}, "error": null, "seconds": 1}', "[]", '{"error": null}']
)
def test_a_file_that_is_no_result_is_compiled_anew(tmp_path, half):
    (tmp_path / "2-full.json").write_text(half)
    (result,), _ = run(tmp_path, [(trial(2), says(json.dumps(numbers())))])
    assert result.is_new
    assert result.fits


def test_a_failure_is_kept_with_its_error_and_tried_again_only_when_asked(tmp_path):
    log = tmp_path / "log"
    trace = (
        "Traceback:\n  line\njaxlib.xla_extension.XlaRuntimeError: INTERNAL: no\n----\nFor simplicity, ..."
    )
    failing = [
        (trial(2), says(code=2, stderr="jaxlm: error: The compiler refuses this step: x", log=log)),
        (trial(2, "none"), says(code=1, stderr=trace, log=log)),
        (trial(3), says("no JSON", log=log)),
    ]
    errors = {
        "The compiler refuses this step: x",
        "jaxlib.xla_extension.XlaRuntimeError: INTERNAL: no",
        "its output is not JSON (Expecting value: line 1 column 1 (char 0))",
    }
    for retry, runs in ((False, 3), (False, 3), (True, 6)):
        results, _ = run(tmp_path, failing, retry=retry)
        assert {one.error for one in results} == errors
        assert len(log.read_text()) == runs
    assert json.loads((tmp_path / "2-full.json").read_text())["error"] in errors


def test_a_process_that_was_killed_did_not_fail_to_compile(tmp_path):
    killed = [sys.executable, "-S", "-c", "import os; os.kill(os.getpid(), 9)"]
    (result,), _ = run(tmp_path, [(trial(2), killed)])
    assert result.error.startswith("killed by SIGKILL; this machine may be short of memory")
    assert not list(tmp_path.glob("*.json"))
    (result,), _ = run(tmp_path, [(trial(2), says(json.dumps(numbers())))])
    assert result.fits


def test_more_rows_than_do_not_fit_are_left_out(tmp_path):
    too_large = says(json.dumps(numbers(total=99 * GIB, fits=False)), code=4)
    told = []
    results, left = run(
        tmp_path,
        [(trial(2), too_large), (trial(4), says()), (trial(4, "none"), too_large), (trial(1), too_large)],
        num_processes=1,
        told=told.append,
    )
    assert [one.trial.name.partition(", mesh")[0] for one in results] == [
        "rows 2, remat full",
        "rows 4, remat none",
        "rows 1, remat full",
    ]
    assert not any(one.fits for one in results)
    assert [(one.trial.rows, one.why) for one in left] == [(4, "does not fit with 2 rows")]
    assert [type(one).__name__ for one in told] == ["Result", "Left", "Result", "Result"]


def test_as_many_run_at_a_time_as_asked_for(tmp_path):
    wait = [sys.executable, "-S", "-c", f"import time; time.sleep(0.4); print({json.dumps(numbers())!r})"]
    began = time.monotonic()
    run(tmp_path, [(trial(rows), wait) for rows in range(1, 5)], num_processes=4)
    together = time.monotonic() - began
    began = time.monotonic()
    run(tmp_path, [(trial(rows), wait) for rows in range(5, 9)], num_processes=1)
    assert together < 1.6 <= time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_children_and_theirs_and_keeps_what_is_done(tmp_path, number):
    pids = tmp_path / "pids"
    child = f"import os, time; open({str(pids)!r}, 'a').write(f'{{os.getpid()}} '); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {child!r}])"
    waits = [sys.executable, "-S", "-c", parent]

    def send():
        while not pids.exists() or len(pids.read_text().split()) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=send, daemon=True).start()
    done = says(json.dumps(numbers()))
    with pytest.raises(Stopped) as caught:
        run(tmp_path, [(trial(1), done), (trial(2), waits), (trial(3), waits), (trial(4), done)])
    assert (caught.value.number, caught.value.num_trials) == (number, 4)
    assert caught.value.num_done == 1
    assert signal.getsignal(number) is before
    assert [path.name for path in tmp_path.glob("*.json")] == ["1-full.json"]
    for pid in map(int, pids.read_text().split()):
        deadline = time.monotonic() + 5
        while is_running(pid):
            assert time.monotonic() < deadline, f"{pid} still runs"
            time.sleep(0.02)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def searched(results, left=()):
    on = topology.parse("v5e:2x4")
    return Search("mine", on, results, left, "folder", {"jax": "1"})


def result(one, error=None, **said):
    return search_run.Result(one, None if error else numbers(**said), error, 12.0)


def test_the_report_says_which_trial_beats_which_and_why_the_others_are_not_there():
    fast, small, worse = trial(8, "none"), trial(2), trial(4, "minimal")
    large, broken, skipped = trial(16, "none"), trial(9), trial(64, "none", predicted=50 * GIB)
    found = searched(
        [
            result(small, tokens=500.0, total=2 * GIB),
            result(worse, tokens=900.0, total=9 * GIB),
            result(fast, tokens=1000.0, total=8 * GIB),
            result(large, total=20 * GIB, fits=False),
            result(broken, error="Mosaic failed"),
        ],
        [Left(skipped, "predicted to be more than 25% too large"), Left(trial(32, "none"), "the same")],
    )
    commands = {one.trial.name: ["jaxlm", "compile", str(one.trial.rows)] for one in found.results}
    report = search_report(found, commands)
    fitting, too_large, failed, left = report.tables
    assert fitting.columns == ["#", "rows", "remat", "tokens/s/chip", "MFU", "memory", "of it", "beaten by"]
    assert [(*row[:4], row[-1]) for row in fitting.rows] == [
        ("1", "8", "none", "1,000", "Pareto"),
        ("2", "4", "minimal", "900", "#1"),
        ("3", "2", "full", "500", "Pareto"),
    ]
    assert "In all of them: mesh fsdp:8, blocks 512,256,128." in fitting.notes[0]
    assert too_large.rows[0][0] == "rows 16, remat none, mesh fsdp:8"
    assert failed.rows == [("rows 9, remat full, mesh fsdp:8", "Mosaic failed")]
    assert (
        "rows 64, remat none, mesh fsdp:8",
        "predicted to be more than 25% too large",
        "53.7 GB",
    ) in left.rows
    assert report.data["best"] == ["jaxlm", "compile", "8"]
    assert [len(report.data[key]) for key in ("fitting", "too_large", "failed", "not_compiled")] == [
        3,
        1,
        1,
        2,
    ]
    json.dumps(report.data, allow_nan=False)


def test_a_search_in_which_nothing_fits_has_no_best():
    one = result(trial(16), total=20 * GIB, fits=False)
    report = search_report(searched([one]), {one.trial.name: ["x"]})
    assert report.data["best"] is None
    assert report.warnings == ["nothing that was tried fits."]


def test_a_long_table_says_how_much_of_it_is_not_shown():
    left = [Left(trial(rows, remat="full"), f"why {rows:03}") for rows in range(1, 36)]
    table = search_report(searched([], left), {}).tables[0]
    assert len(table.rows) == 30
    assert table.notes[-1] == "And 5 more lines, which --json lists."


def test_a_line_for_each_trial_where_nobody_watches(capsys):
    with search_run.Progress(3) as progress:
        progress.told(result(trial(2)))
        progress.told(result(trial(4), error="no")._replace(is_new=False))
        progress.told(Left(trial(8), "does not fit with 4 rows"))
    assert capsys.readouterr().err.splitlines() == [
        "1/3 rows 2, remat full, mesh fsdp:8: 1,000 tokens/s/chip, 1.07 GB (12 s)",
        "2/3 rows 4, remat full, mesh fsdp:8: failed: no (kept)",
        "3/3 rows 8, remat full, mesh fsdp:8: skipped: does not fit with 4 rows",
    ]
