"""Compiles the trials of a search, each in a process of its own, and keeps what came of each: one JSON a trial.

A result is written whole or not at all, under the digest of all that decides it; so a search that was killed goes on
where it was, and another search that meets the same trial takes it. What a compiler refused is kept too, and not tried
again unless asked. What was killed from outside is not kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from jaxlm.limits import read_json
from jaxlm.plan.compile_report import gigabytes
from jaxlm.plan.report import count
from jaxlm.plan.search import Left, Trial
from jaxlm.types import JSON_ERRORS, UserError

POLL_S = 0.05
STOP_S = 5.0
"""How long a child may take to end before it is killed."""
DOES_NOT_FIT = 4
"""Exit code of `jaxlm compile`."""


class Result(NamedTuple):
    """What came of one trial."""

    trial: Trial
    numbers: dict[str, Any] | None
    """What `jaxlm compile --json` says; None where it failed."""
    error: str | None
    seconds: float
    """That the process took."""
    is_new: bool = True
    """Not taken from the folder."""

    @property
    def total_bytes(self) -> int | None:
        """Of a device."""
        return None if self.numbers is None else self.numbers["memory"]["total_bytes"]

    @property
    def fits(self) -> bool:
        """Whether it compiled, and nobody knows that it is too large: CPUs have no limit."""
        return self.numbers is not None and self.numbers["memory"]["fits"] is not False

    @property
    def speed(self) -> dict[str, Any] | None:
        """The most trusted of its estimates of time; None on CPUs, and where it does not fit."""
        return self.numbers["speeds"][-1] if self.numbers and self.numbers["speeds"] else None

    @property
    def useful_share(self) -> float:
        """Of the FLOPs that are executed, those that the model needs: what is compared where there are no times."""
        assert self.numbers is not None
        return 1.0 / self.numbers["step"]["executed_share"]

    @property
    def merit(self) -> float:
        """Tokens/s/chip, or without times the useful share: more is better."""
        return self.useful_share if self.speed is None else self.speed["tokens_per_s_per_chip"]

    @property
    def said(self) -> str:
        """In a few words."""
        if self.error is not None:
            return f"failed: {self.error}"
        assert self.numbers is not None
        size = gigabytes(self.numbers["memory"]["total_bytes"])
        if not self.fits:
            return f"does not fit, {size}"
        if self.speed is None:
            return f"{size}, {self.useful_share:.1%} of its FLOPs are the model's"
        return f"{count(self.merit)} tokens/s/chip, {size}"


class Stopped(Exception):
    """A signal ended the search; what it has is kept."""

    def __init__(self, number: int, num_done: int, num_trials: int):
        super().__init__(number)
        self.number, self.num_done, self.num_trials = number, num_done, num_trials


class Child(NamedTuple):
    """A compiler at work."""

    process: subprocess.Popen
    trial: Trial
    out: IO[bytes]
    err: IO[bytes]
    began: float


def read_result(folder: Path, key: str, trial: Trial) -> Result | None:
    """What is kept of a trial; None: nothing, or nothing that can be read."""
    try:
        found = read_json(folder / f"{key}.json")
        numbers, error = found["numbers"], found["error"]
        result = Result(trial, numbers, error, float(found["seconds"]), is_new=False)
        assert error is not None or (result.said, result.merit if result.fits else 0.0)
        return result
    except (OSError, KeyError, TypeError, AssertionError, *JSON_ERRORS):
        return None


def write_result(folder: Path, key: str, result: Result, command: Sequence[str]) -> None:
    """Keeps a result. Errors: UserError for a disk that is full."""
    from jaxlm.data.files import disk_error, write_atomic

    kept = {
        "trial": result.trial.choices,
        "command": [*command],
        "seconds": result.seconds,
        "error": result.error,
        "numbers": result.numbers,
    }
    path = folder / f"{key}.json"
    try:
        write_atomic(path, json.dumps(kept, indent=1).encode())
    except OSError as error:
        raise disk_error(path, error) or error from error


def run_trials(
    trials: Sequence[tuple[str, Trial]],
    folder: Path,
    command_of: Callable[[Trial], list[str]],
    *,
    num_processes: int,
    retry: bool,
    told: Callable[[Result | Left], None],
) -> tuple[list[Result], list[Left]]:
    """Compiles trials in this order, some at a time; those of which there are results are taken from the folder.

    A trial is left out once the same one with fewer rows turned out not to fit.

    Args:
      trials: (digest, trial).
      command_of: of the process that compiles a trial, and prints its numbers as JSON.
      retry: whether those that failed are tried again.
      told: is called with each result, and each trial that is left out, as it comes.

    Errors: Stopped, after a signal, once the children have ended.
    """
    results: list[Result] = []
    waiting: list[tuple[str, Trial]] = []
    left: list[Left] = []

    def add(result: Result) -> None:
        results.append(result)
        told(result)

    for key, trial in trials:
        found = read_result(folder, key, trial)
        if found is None or (found.error is not None and retry):
            waiting.append((key, trial))
        else:
            add(found)
    keys = {id(trial): key for key, trial in trials}
    running: list[Child] = []
    with stopping_children(running) as signals:
        while waiting or running:
            if signals:
                raise Stopped(signals[0], len(results), len(trials))
            while waiting and len(running) < num_processes:
                trial = waiting.pop(0)[1]
                smaller = next((r for r in results if not r.fits and too_small(r, trial)), None)
                if smaller is not None:
                    left.append(Left(trial, f"does not fit with {smaller.trial.rows} rows"))
                    told(left[-1])
                else:
                    running.append(start(trial, command_of(trial)))
            for child in [child for child in running if child.process.poll() is not None]:
                running.remove(child)
                result = finish(child)
                if child.process.returncode >= 0:
                    write_result(folder, keys[id(child.trial)], result, command_of(child.trial))
                add(result)
            time.sleep(POLL_S)
    return results, left


def too_small(result: Result, trial: Trial) -> bool:
    """Whether this result, of fewer rows, says that the trial does not fit."""
    return result.error is None and result.trial.has_fewer_rows(trial)


def start(trial: Trial, command: Sequence[str]) -> Child:
    """A process of its own group: Ctrl-C on the terminal is for the search, which then ends its children."""
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
    )
    return Child(process, trial, out, err, time.perf_counter())


def finish(child: Child) -> Result:
    """Reads what a process that ended has said."""
    seconds, code = time.perf_counter() - child.began, child.process.returncode
    texts = []
    for file in (child.out, child.err):
        file.seek(0)
        texts.append(file.read().decode(errors="replace"))
        file.close()
    if code in (0, DOES_NOT_FIT):
        try:
            return Result(child.trial, json.loads(texts[0]), None, seconds)
        except JSON_ERRORS as error:
            return Result(child.trial, None, f"its output is not JSON ({error})", seconds)
    if code < 0:
        why = f"killed by {signal.Signals(-code).name}"
        why += "; this machine may be short of memory: try fewer --num-processes" if code == -9 else ""
        return Result(child.trial, None, why, seconds)
    return Result(child.trial, None, reason(texts[1]) or f"exit code {code}", seconds)


def reason(stderr: str) -> str | None:
    """The error that a process ended with: the last line that names one, else the last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"(jaxlm: error|[\w.]+(Error|Exception)): ", line)]
    last = next(reversed(named or lines), None)
    return None if last is None else last.removeprefix("jaxlm: error: ")


@contextlib.contextmanager
def stopping_children(running: list[Child]) -> Iterator[list[int]]:
    """Ends the children however the block ends; yields the list of the signals that meanwhile ask it to end.

    They interrupt nothing, so that no child is lost between its start and its place in the list.
    """
    signals: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: signals.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield signals
    finally:
        end(running)
        for number, handler in before.items():
            signal.signal(number, handler)


def end(running: list[Child]) -> None:
    """Asks processes and theirs to end, and after a while makes them."""
    for number, patience_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
        for child in running:
            if child.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.process.pid, number)
        began = time.monotonic()
        while (
            any(child.process.poll() is None for child in running) and time.monotonic() - began < patience_s
        ):
            time.sleep(POLL_S)
    running.clear()


class Progress:
    """A bar on a terminal, and a line for each trial, on stderr."""

    def __init__(self, num_trials: int):
        self._num_trials, self._num_done = num_trials, 0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as Bar

            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
            self._bar = Bar(TextColumn("search"), *columns, console=console, transient=True)
            self._task = self._bar.add_task("search", total=self._num_trials)
            self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def told(self, one: Result | Left) -> None:
        """One more is done."""
        self._num_done += 1
        said = f"skipped: {one.why}" if isinstance(one, Left) else one.said
        if isinstance(one, Result):
            said += f" ({one.seconds:.0f} s)" if one.is_new else " (kept)"
        line = f"{self._num_done}/{self._num_trials} {one.trial.name}: {said}"
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
            return
        self._bar.console.print(line)
        self._bar.update(self._task, completed=self._num_done)


def make_folder(path: str | os.PathLike) -> Path:
    """The folder of results. Errors: UserError where it cannot be made or written to."""
    folder = Path(path)
    why = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
    if why is None and not os.access(folder, os.W_OK):
        why = "permission denied"
    if why is not None:
        raise UserError(f"--search-dir={path} cannot be written: {why}. Choose another place.")
    return folder
