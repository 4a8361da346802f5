"""What the processes of a run tell each other; with a single process, plain calls.

Through the key-value store of JAX's coordination service, not through a collective: that needs no device, so a wrong
config is refused before one is touched, and a process may wait here for the hour that the first one spends tokenising.
Every process calls these functions in the same order, from its main thread. `parallel/distributed.py` connects them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxlm.config import diff
from jaxlm.types import UserError

LONGEST_WAIT_S = 7 * 86400
"""For the first process to read and tokenise the text. One that dies is noticed by its missing heartbeat."""

_rounds = itertools.count()


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


def from_first(make: Callable[[], Any]) -> Any:
    """What the first process makes, a JSON value, on all of them; so is its error."""
    if is_alone():
        return make()
    key = f"jaxlm/{next(_rounds)}"
    if is_first():
        with _told(key):
            value = make()
            client().key_value_set(f"{key}/value", json.dumps({"value": value}))
            return value
    answer = _wait_for(f"{key}/value")
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["value"]


def from_all(mine: Any) -> list[Any]:
    """What every process brings, a JSON value, by their order."""
    if is_alone():
        return [mine]
    key = f"jaxlm/{next(_rounds)}"
    if not is_first():
        client().key_value_set(f"{key}/{index()}", json.dumps(mine))
    return from_first(lambda: [mine, *(_wait_for(f"{key}/{other}") for other in range(1, count()))])


def _wait_for(key: str) -> Any:
    return json.loads(client().blocking_key_value_get(key, LONGEST_WAIT_S * 1000))


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
def together() -> Iterator[None]:
    """A block that all processes run: when it fails on one, it fails on all with that error, and none waits."""
    mine: Exception | None = None
    try:
        yield
    except Exception as error:
        mine = error
    problems = from_all(_describe(mine) if mine else "")
    if mine is not None:
        raise mine
    if problem := next(filter(None, problems), ""):
        raise UserError(problem)


def check_same(what: str, facts: Mapping[str, Any]) -> None:
    """Errors: UserError on all processes that names the first key whose value is not that of the first process."""
    if is_alone():
        return
    mine = json.loads(json.dumps(facts))
    theirs = from_first(lambda: mine)
    with together():
        if differences := diff(theirs, mine):
            key, first, here = differences[0][:3]
            more = f" and {len(differences) - 1} more" if len(differences) > 1 else ""
            raise UserError(
                f"{what} differs between processes: {key} is {here!r} here and {first!r} in the first{more}. Start "
                "all processes with the same command, files and versions."
            )
