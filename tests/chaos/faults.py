"""What the chaos driver does to runs: strokes at running processes, at chosen moments, and damage to what they left.

A stroke returns words about itself, and says which exit codes may follow. A damage returns a Wound: what was harmed,
and how a person would mend it where the next start refuses to go on and names it; None where there was nothing to harm.
"""

import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from chaos_runs import Launch

START_UP_S = 3.0
"""About what a start takes to its first line, on an idle machine."""

# Moments: each returns False when the launch ended before it came.


def start_up(launch: Launch, rng: Random) -> bool:
    """While modules are imported, data opened, steps compiled."""
    launch.wait_until(lambda: False, rng.uniform(0.0, START_UP_S))
    return launch.is_alive


def first_step(launch: Launch, rng: Random) -> bool:
    """Between the first screen and the first step."""
    found = launch.wait_until(lambda: any(e["event"] == "start" for e in launch.poll()))
    time.sleep(rng.uniform(0.0, 1.0))
    return found


def step(launch: Launch, rng: Random) -> bool:
    """After a few steps."""
    count = rng.randint(1, 10)
    found = launch.wait_until(lambda: len(launch.steps()) >= count)
    time.sleep(rng.uniform(0.0, 0.03))
    return found


def evaluation(launch: Launch, rng: Random) -> bool:
    """Once a step that is to be evaluated was logged, and before its scores were."""
    found = launch.wait_until(launch.evaluating)
    time.sleep(rng.uniform(0.0, 0.05))
    return found


def save(launch: Launch, rng: Random) -> bool:
    """While a checkpoint has its temporary name."""
    found = launch.wait_until(lambda: launch.saving)
    time.sleep(rng.choice([0.0, rng.uniform(0.0, 0.1)]))
    return found


def commit(launch: Launch, rng: Random) -> bool:
    """When a checkpoint has just got its name, and an old one may be going."""
    found = launch.wait_until(lambda: set(launch.steps_on_disk()) - set(launch.steps_before))
    time.sleep(rng.choice([0.0, rng.uniform(0.0, 0.01)]))
    return found


def corpus_build(launch: Launch, rng: Random) -> bool:
    """While text is tokenised into a cache that has none."""
    found = launch.wait_until(lambda: launch.building)
    time.sleep(rng.uniform(0.0, 2.0))
    return found


def last_step(launch: Launch, rng: Random) -> bool:
    """After the last step of the run, while the last save is written."""
    found = launch.wait_until(lambda: launch.is_done)
    time.sleep(rng.uniform(0.0, 0.3))
    return found


MOMENTS: dict[str, Callable[[Launch, Random], bool]] = {
    "start-up": start_up, "first step": first_step, "step": step, "evaluation": evaluation, "save": save,
    "commit": commit, "corpus build": corpus_build, "last step": last_step,
}  # fmt: skip

# Strokes.

SIGNAL_CODES = {signal.SIGKILL: {-9}, signal.SIGTERM: {143}, signal.SIGINT: {130}}
BEFORE_HANDLERS = {signal.SIGTERM: {-15}, signal.SIGINT: {-2}}
"""Also allowed while no step was made: the shell shows them as the same 143 and 130."""
OTHERS_END_S = 150.0
"""Within this the processes that are left must notice that one is gone: by a broken connection, or a heartbeat."""


ABORTED = -6
GONE = ("another process of the run", "processes came", "have not come", "nothing answers there", "does not answer",
        "JAX distributed service detected fatal errors")  # fmt: skip
"""What the others say, by when they notice. The last is JAX's own: without its process 0, or a heartbeat, it logs that
line with a stack of C++ and aborts, whatever the main thread is about to say; of Python it takes no other way (a
`missed_heartbeat_callback` ends in std::bad_cast; jaxlib 0.10.2)."""


class Blow(NamedTuple):
    """What a stroke did."""

    words: str
    codes: list[set[int]]
    """Allowed exit codes of each process."""
    says: tuple[str, ...] = ()
    """One of these is said by each process that ends with code 2."""
    ends: bool = True
    """Whether the launch ends by it; else it goes on as if nothing had been."""
    saves: bool = True
    """Whether exit codes 143 and 130 promise that the last step is saved."""


def send(number: signal.Signals) -> Callable[[Launch, Random], Blow]:
    """A signal to all processes."""

    def strike(launch: Launch, rng: Random) -> Blow:
        codes = set(SIGNAL_CODES[number])
        if not launch.steps():
            codes |= BEFORE_HANDLERS.get(number, set())
        if launch.is_done and number != signal.SIGKILL:
            codes |= {0} | BEFORE_HANDLERS[number]
        launch.signal(number)
        return Blow("", [codes] * len(launch.processes))

    return strike


def terminate_then_kill(launch: Launch, rng: Random) -> Blow:
    """What a cluster does whose patience ends while the step is being saved."""
    launch.signal(signal.SIGTERM)
    patience_s = rng.uniform(0.0, 0.5)
    launch.wait_until(lambda: False, patience_s)
    launch.signal(signal.SIGKILL)
    return Blow(f"{patience_s:.2f} s between", [{-9, 143, -15, 0}] * len(launch.processes), saves=False)


def two_interrupts(launch: Launch, rng: Random) -> Blow:
    """An impatient Ctrl-C, twice."""
    launch.signal(signal.SIGINT)
    time.sleep(rng.uniform(0.05, 0.3))
    launch.signal(signal.SIGINT)
    return Blow("", [{130, -2, 0}] * len(launch.processes), saves=False)


def pause(launch: Launch, rng: Random) -> Blow:
    """SIGSTOP, later SIGCONT: nothing happens."""
    pause_s = rng.uniform(0.2, 2.0)
    launch.signal(signal.SIGSTOP)
    time.sleep(pause_s)
    launch.signal(signal.SIGCONT)
    return Blow(f"{pause_s:.1f} s", [], ends=False)


def second_run(launch: Launch, rng: Random) -> Blow:
    """The same command once more beside the first: refused, the first unharmed."""
    other = Launch(launch.site, launch.workdir, launch.layout)
    codes = other.wait(120)
    text = other.printed()
    if any(code != 2 for code in codes) or "is in use by" not in text:
        return Blow(f"NOT REFUSED: exit codes {codes}: {text[-500:]}", [], ends=False)
    return Blow("the second was refused", [], ends=False)


def file_size_limit(launch: Launch, rng: Random) -> Blow:
    """From now on the kernel lets no file grow past a limit."""
    limit = launch.log.stat().st_size + rng.choice([0, 2_000, 50_000])
    for process in launch.processes:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    return Blow(
        f"{limit:,} bytes", [{0, 2}] * len(launch.processes), ("a file grew larger", "File too large")
    )


BALLAST = "ballast"


def full_disk(launch: Launch, rng: Random) -> Blow:
    """The small file system of the workdirs is filled up, but for a little."""
    spare = rng.choice([0, 0, 50_000, 500_000])
    free = shutil.disk_usage(launch.workdir).free
    with open(launch.workdir.parent / BALLAST, "wb", buffering=0) as file:
        try:
            while free > spare:
                free -= file.write(bytes(min(free - spare, 1 << 20)))
        except OSError:
            pass
    return Blow(
        f"{spare:,} bytes left", [{0, 2}] * len(launch.processes), ("the disk is full", "No space left")
    )


def kill_one(launch: Launch, rng: Random) -> Blow:
    """SIGKILL to one of several: the others say so and end by themselves."""
    return _one_gone(launch, rng, pause_s=0.0)


def pause_and_kill_one(launch: Launch, rng: Random) -> Blow:
    """One of several hangs, then dies."""
    return _one_gone(launch, rng, pause_s=rng.uniform(0.5, 3.0))


def _one_gone(launch: Launch, rng: Random, *, pause_s: float) -> Blow:
    victim = rng.randrange(len(launch.processes))
    if pause_s:
        launch.signal(signal.SIGSTOP, victim)
        launch.wait_until(lambda: False, pause_s)
    launch.signal(signal.SIGKILL, victim)
    codes = [{2, 75, ABORTED}] * len(launch.processes)  # 2: it had not met the others yet
    codes[victim] = {-9}
    return Blow(f"process {victim}", codes, GONE)


def terminate_one(launch: Launch, rng: Random) -> Blow:
    """SIGTERM to one of several, as when one machine is taken away: all save the same step and end."""
    victim = rng.randrange(len(launch.processes))
    codes = [{143}] * len(launch.processes)
    if not launch.steps():  # it may be gone before anybody listens
        codes = [{143, 2, ABORTED}] * len(launch.processes)
        codes[victim] = {143, -15}
    if launch.is_done:
        codes = [{0, 143, -15, 2, ABORTED}] * len(launch.processes)
    launch.signal(signal.SIGTERM, victim)
    return Blow(f"process {victim}", codes, GONE)


@dataclass(frozen=True)
class Stroke:
    """A blow at a moment."""

    name: str
    moment: str
    strike: Callable[[Launch, Random], Blow]

    def __str__(self) -> str:
        return f"{self.name} / {self.moment}"


def _strokes(name: str, strike: Callable[[Launch, Random], Blow], *moments: str) -> list[Stroke]:
    return [Stroke(name, moment, strike) for moment in moments]


ALONE = [
    *_strokes("SIGKILL", send(signal.SIGKILL), *MOMENTS, "save", "commit", "corpus build"),
    *_strokes("SIGTERM", send(signal.SIGTERM), *MOMENTS),
    *_strokes(
        "SIGINT", send(signal.SIGINT), "start-up", "start-up", "first step", "step", "save", "corpus build"
    ),
    *_strokes("SIGTERM, then SIGKILL", terminate_then_kill, "start-up", "step", "save"),
    *_strokes("SIGINT twice", two_interrupts, "step", "save"),
    *_strokes("SIGSTOP, then SIGCONT", pause, "start-up", "step", "save"),
    *_strokes("second run in the workdir", second_run, "first step", "step"),
    *(_strokes("file size limit", file_size_limit, "step", "save") if hasattr(resource, "prlimit") else []),
]
ON_SMALL_DISK = _strokes("full disk", full_disk, "step", "save", "save")
SEVERAL = [
    *_strokes(
        "SIGKILL of one process", kill_one, "start-up", "first step", "step", "evaluation", "save", "commit"
    ),
    *_strokes("SIGSTOP of one, then SIGKILL", pause_and_kill_one, "step", "save"),
    *_strokes("SIGTERM of one process", terminate_one, "first step", "step", "save"),
    *_strokes("SIGTERM", send(signal.SIGTERM), "step", "save"),
    *_strokes("SIGKILL", send(signal.SIGKILL), "step", "save", "commit"),
    *_strokes("SIGSTOP, then SIGCONT", pause, "step"),
    *_strokes("second run in the workdir", second_run, "step"),
]
