"""Stages over processes: each task once, a killed worker is an error and no hang, Ctrl-C leaves no process."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("datatrove")

from datatrove.pipeline.base import PipelineStep

from jaxlm.corpus.raw import executors
from jaxlm.corpus.raw.config import ExecutorConfig
from jaxlm.corpus.raw.executors import Stage, run_stages
from jaxlm.types import UserError


class Mark(PipelineStep):
    """Task r writes FOLDER/NAME-r; what `fate` says befalls the process of task 1."""

    type = "TEST"

    def __init__(self, folder, name, fate=""):
        self.name = name
        super().__init__()
        self.folder, self.fate = folder, fate

    def path(self, rank):
        return Path(self.folder, f"{self.name}-{rank}")

    def run(self, data=None, rank=0, world_size=1):
        if rank == 1 and self.fate == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 1 and self.fate == "mistaken":
            raise UserError("a.wet, offset 7: broken")
        if self.fate == "slow":
            self.path(f"{rank}-begun").write_text(str(os.getpid()))
            time.sleep(60)
        self.stat_update("tasks")
        self.path(rank).write_text(str(os.getpid()))


def stage(folder, name, count=4, fate=""):
    step = Mark(str(folder), name, fate)
    return Stage(name, [step], [1] * count, lambda: [r for r in range(count) if not step.path(r).exists()])


def run(waves, folder, workers=2):
    return run_stages(waves, ExecutorConfig(workers=workers), str(folder / "logs"), False)


def ends_in(seconds, call):
    """The call, which must not hang; one that does is left to a thread that ends with the tests."""
    result = concurrent.futures.Future()

    def answer():
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=answer, daemon=True).start()
    return result.result(seconds)


@pytest.mark.parametrize("workers", [1, 2])
def test_stages_run_in_waves_and_only_what_is_not_done(tmp_path, workers):
    first, second, third = (stage(tmp_path, name) for name in ("a", "b", "c"))
    (tmp_path / "a-2").write_text("done before")
    assert run([[first, second], [third]], tmp_path, workers)
    assert (tmp_path / "a-2").read_text() == "done before"
    names = sorted(path.name for path in tmp_path.glob("[abc]-*"))
    assert names == [f"{name}-{rank}" for name in "abc" for rank in range(4)]
    assert max(p.stat().st_mtime_ns for p in tmp_path.glob("[ab]-*")) <= min(
        p.stat().st_mtime_ns for p in tmp_path.glob("c-*")
    )
    processes = {path.read_text() for path in tmp_path.glob("[bc]-*")}
    assert (str(os.getpid()) in processes) == (workers == 1)
    (counted,) = json.loads((tmp_path / "logs/c/stats/00003.json").read_text())
    assert counted["stats"]["tasks"] == 1  # its own, not those of the tasks before it too


def test_a_killed_worker_is_an_error_that_says_what_to_do(tmp_path):
    call = lambda: run([[stage(tmp_path, "a", fate="killed")]], tmp_path)  # noqa: E731
    with pytest.raises(
        UserError, match=r"A worker process was killed, .*run the same command again, with fewer"
    ):
        ends_in(90, call)
    assert run([[stage(tmp_path, "a")]], tmp_path, 1)
    assert len(list(tmp_path.glob("a-*"))) == 4


def test_an_error_of_a_task_stops_the_others(tmp_path):
    with pytest.raises(UserError, match="a.wet, offset 7: broken"):
        ends_in(90, lambda: run([[stage(tmp_path, "a", 40, fate="mistaken")]], tmp_path))


SLOW = """
import sys
sys.path[:0] = {path!r}
from test_executors import Mark, run, stage
from pathlib import Path
if __name__ == "__main__":
    run([[stage(Path({folder!r}), "a", fate="slow")]], Path({folder!r}))
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_leaves_no_process(tmp_path, sent):
    script = tmp_path / "slow.py"
    script.write_text(SLOW.format(path=[str(Path(__file__).parent), *sys.path], folder=str(tmp_path)))
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while len(begun := list(tmp_path.glob("a-*-begun"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    pids = [int(path.read_text()) for path in begun]
    assert len(pids) == 2
    process.send_signal(sent)
    assert process.wait(30) != 0
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_a_task_reaches_a_worker_as_a_name_and_a_number(tmp_path, monkeypatch):
    """A stage holds the units of a whole crawl: pickled for each of 90,000 tasks, it would be the work."""
    sent, sizes = [], []

    def open_pool(workers, initializer, initargs):
        sizes.append(workers)
        return FakePool(sent), None

    monkeypatch.setattr(executors.worker_pool, "open_pool", open_pool)
    monkeypatch.setattr(concurrent.futures, "as_completed", list)
    run([[stage(tmp_path, "a", 3)]], tmp_path, workers=100_000)
    assert sent == [("a", 0), ("a", 1), ("a", 2)]
    assert sizes == [3]  # a pool starts all its processes at its first task


class FakePool:
    def __init__(self, sent):
        self.sent = sent

    def submit(self, function, *args):
        self.sent.append(args)
        future = concurrent.futures.Future()
        future.set_result(None)
        return future

    def shutdown(self, **options):
        pass


def test_no_processes_can_be_had(tmp_path, monkeypatch):
    monkeypatch.setattr(executors.worker_pool, "open_pool", lambda *args: None)
    assert run([[stage(tmp_path, "a")]], tmp_path)
    assert len(list(tmp_path.glob("a-*"))) == 4
