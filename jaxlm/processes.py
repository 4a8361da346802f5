"""What the processes of a run tell each other; with a single process, plain calls.

Through the key-value store of JAX's coordination service, not through a collective: that needs no device, so a wrong
config is refused before one is touched, and a process may wait here for the hour that the first one spends tokenising.
Every process calls these functions in the same order, from its main thread. `parallel/distributed.py` connects them.

No wait is silent or endless: after half a minute it names on stderr whom it waits for, and what for, again every
minute, and in the end it is an error.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxlm.config import diff
from jaxlm.types import UserError

FIRST_WORD_S, WORD_EVERY_S = 30.0, 60.0
"""Who waits longer than the first says for whom, and again every so often."""
LONGEST_WAIT_S = 2 * 3600.0
"""Then a wait ends in an error. A process that dies is noticed sooner, by its missing heartbeat (100 s)."""
LONGEST_BUILD_S = 7 * 86400.0
"""The same where a process may be reading and tokenising the text."""
ANSWER_S = 5.0
"""The store answers in a millisecond; where its process is stopped, never."""
NUM_SPEAKERS, NUM_NAMED = 3, 8
"""Of the processes that wait so many speak (one of them may be the one that is stuck), and name so many others."""

_rounds = itertools.count()
_longest_wait_s = LONGEST_WAIT_S


def num_processors() -> int:
    """Processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def state() -> Any:
    """JAX's own record of how this process is connected."""
    # Not public; jax.process_index() would answer too, but opens the devices, and the store has no other door.
    from jax._src import distributed

    return distributed.global_state


def client() -> Any:
    """The door to the store; None for a process that is connected to no other."""
    return state().client if "jax" in sys.modules else None


def index() -> int:
    """Of this process, from 0."""
    return 0 if client() is None else state().process_id


def count() -> int:
    """How many processes the run has."""
    return 1 if client() is None else state().num_processes


def is_first() -> bool:
    """Whether this process writes what is written once: logs, config, the final name of a checkpoint."""
    return index() == 0


def is_alone() -> bool:
    """Whether this process is the whole run."""
    return count() == 1


def host() -> str:
    """The name of this machine."""
    return socket.gethostname()


def introduce() -> None:
    """Tells the others on which machine this process is, for `name_of`; once they are connected."""
    if not is_alone():
        client().key_value_set(f"jaxlm/host/{index()}", host(), allow_overwrite=True)


class Asked:
    """A call of the store on a thread: it may never return, and Ctrl-C does not reach it."""

    def __init__(self, call: Callable[[], Any]):
        self._done = threading.Event()
        self._outcome: tuple[Any, Exception | None] = (None, None)
        threading.Thread(target=self._run, args=(call,), name="asked", daemon=True).start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._outcome = (call(), None)
        except Exception as error:
            self._outcome = (None, error)
        self._done.set()

    def wait(self, seconds: float) -> bool:
        """Whether there is an answer by then."""
        return self._done.wait(seconds)

    def answer(self) -> Any:
        """After `wait`. Errors: those of the call."""
        value, error = self._outcome
        if error is not None:
            raise error
        return value


def listed(folder: str) -> dict[int, str] | None:
    """Process -> what it has put in a folder of the store; None when the store does not answer.

    Errors: RuntimeError of JAX when it has ended.
    """
    asked = Asked(lambda: client().key_value_dir_get(f"{folder}/"))
    if not asked.wait(ANSWER_S):
        return None
    named = ((key.rpartition("/")[2], value) for key, value in asked.answer())
    return {int(name): value for name, value in named if name.isdecimal()}


def name_of(*others: int) -> str:
    """`process 3 (host x)`, for people; of many, the first few."""
    hosts = {index(): host()}
    if {*others} - {*hosts}:
        hosts = {0: str(state().coordinator_address)} | (listed("jaxlm/host") or {}) | hosts
    names = [f"process {i}" + (f" ({hosts[i]})" if i in hosts else "") for i in others[:NUM_NAMED]]
    more = [f"{len(others) - NUM_NAMED} more"] if len(others) > NUM_NAMED else []
    return ", ".join([*names, *more])


@contextlib.contextmanager
def waiting_at_most(seconds: float) -> Iterator[None]:
    """Another limit than LONGEST_WAIT_S inside the block; the same on all processes."""
    global _longest_wait_s
    before, _longest_wait_s = _longest_wait_s, seconds
    try:
        yield
    finally:
        _longest_wait_s = before


class _Wait:
    """The wait of this process in one round: says for whom, and gives up in the end.

    Args:
      key: of the round in the store; under it lie the processes that have come, by their index.
      what: the round is about, for people.
      for_all: whether all processes are awaited, or only the first.
    """

    def __init__(self, key: str, what: str, *, for_all: bool):
        self._key, self._what, self._for_all = key, what, for_all
        self._began = time.monotonic()
        self._next_word_s = FIRST_WORD_S

    def get(self, name: str | int) -> Any:
        """The JSON value under the key of the round.

        Errors: UserError that names who has not come by the time limit.
        """
        limit_ms = int(1000 * (_longest_wait_s + 60))
        return json.loads(
            self._until(lambda: client().blocking_key_value_get(f"{self._key}/{name}", limit_ms))
        )

    def put(self, name: str | int, value: Any) -> None:
        """A JSON value under the key of the round: where the first process was stopped, this waits, too."""
        self._until(lambda: client().key_value_set(f"{self._key}/{name}", json.dumps(value)))

    def _until(self, call: Callable[[], Any]) -> Any:
        asked = Asked(call)
        while not asked.wait(max(0.0, min(_longest_wait_s, self._next_word_s) - self._waited_s)):
            self._look()
        return asked.answer()

    @property
    def _waited_s(self) -> float:
        return time.monotonic() - self._began

    def _look(self) -> None:
        """After each while in which nothing came."""
        if self._waited_s >= _longest_wait_s:
            raise UserError(
                f"Waited {self._waited_s:.0f} s for {self._missing()[0]} at: {self._what!r}. Look at what becomes of "
                "it there (its log, or py-spy dump); then stop the run, and start it again without what is broken."
            )
        if not self._for_all and self._next_word_s == FIRST_WORD_S:
            Asked(lambda: client().key_value_set(f"{self._key}/{index()}", "null"))
        self._next_word_s += WORD_EVERY_S
        missing, speaks = self._missing()
        if speaks:
            print(
                f"jaxlm: {name_of(index())}: waiting {self._waited_s:.0f} s for {missing} at: {self._what!r}",
                file=sys.stderr,
                flush=True,
            )

    def _missing(self) -> tuple[str, bool]:
        """Who is awaited: those that have not come; where all have, the first. And whether this process says so."""
        came = listed(self._key)
        if came is None:
            return f"process 0, which does not answer at {state().coordinator_address},", True
        speaks = sum(i < index() for i in came) < NUM_SPEAKERS
        missing = sorted({*range(count())} - {*came}) if self._for_all else [0]
        return name_of(*(missing or [0])), speaks


def from_first(make: Callable[[], Any], what: str = "what the first decides") -> Any:
    """What the first process makes, a JSON value, on all of them; so is its error.

    Args:
      what: it is, to be named when it is long in coming.
    """
    if is_alone():
        return make()
    key = f"jaxlm/{next(_rounds)}"
    return _published(key, make, _Wait(key, what, for_all=False))


def from_all(mine: Any, what: str = "what each has") -> list[Any]:
    """What every process brings, a JSON value, by their order."""
    if is_alone():
        return [mine]
    key = f"jaxlm/{next(_rounds)}"
    wait = _Wait(key, what, for_all=True)
    wait.put(index(), mine)
    return _published(key, lambda: [mine, *(wait.get(other) for other in range(1, count()))], wait)


def _published(key: str, make: Callable[[], Any], wait: _Wait) -> Any:
    """The value that the first process makes and puts under the key of a round."""
    if is_first():
        with _told(key):
            value = make()
            client().key_value_set(f"{key}/value", json.dumps({"value": value}))
            return value
    answer = wait.get("value")
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["value"]


@contextlib.contextmanager
def _told(key: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        client().key_value_set(f"{key}/value", json.dumps({"error": _describe(error)}))
        raise


def _describe(error: Exception) -> str:
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return text if is_first() else f"process {index()} of {count()}: {text}"


@contextlib.contextmanager
def together(what: str = "the end of what all do") -> Iterator[None]:
    """A block that all processes run: when it fails on one, it fails on all with that error, and none waits.

    Args:
      what: they do, to be named when one is long in doing it.
    """
    mine: Exception | None = None
    try:
        yield
    except Exception as error:
        mine = error
    problems = from_all(_describe(mine) if mine else "", what)
    if mine is not None:
        raise mine
    if problem := next(filter(None, problems), ""):
        raise UserError(problem)


def check_same(what: str, facts: Mapping[str, Any]) -> None:
    """Errors: UserError on all processes that names the first key whose value is not that of the first process."""
    if is_alone():
        return
    mine = json.loads(json.dumps(facts))
    theirs = from_first(lambda: mine, what)
    with together(what):
        if differences := diff(theirs, mine):
            key, first, here = differences[0][:3]
            more = f" and {len(differences) - 1} more" if len(differences) > 1 else ""
            raise UserError(
                f"{what} differs between processes: {key} is {here!r} here and {first!r} in the first{more}. Start "
                "all processes with the same command, files and versions."
            )
