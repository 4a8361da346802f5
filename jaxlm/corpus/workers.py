"""Units of work over processes. Importing this module imports no JAX: workers start in half a second."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from jaxlm.corpus import units
from jaxlm.corpus.progress import Progress
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.processes import num_processors
from jaxlm.types import UserError

SINGLE_PROCESS_BYTES = 8 << 20
"""Below this, starting worker processes takes longer than the work."""


def run(jobs: Sequence[units.Job], tokenizer: Tokenizer, workers: int | None, bar: Progress) -> None:
    """Completes every unit that is not complete yet."""
    with bar:
        waiting = []
        for job in jobs:
            if units.finished(job.folder):
                bar.add(job.num_bytes, 0)
            else:
                waiting.append(job)
        if workers is None:
            enough = sum(job.num_bytes for job in waiting) >= SINGLE_PROCESS_BYTES
            workers = num_processors() if enough else 1
        if workers < 1:
            raise UserError(f"workers={workers} must be at least 1.")
        pool = None
        if min(workers, len(waiting)) > 1:
            pool = open_pool(min(workers, len(waiting)), _start_worker, (tokenizer,))
        if pool is not None:
            _run_parallel(waiting, *pool, bar)
            return
        for job in waiting:
            units.tokenise(job, tokenizer, lambda tokens: bar.add(0, tokens))
            bar.add(job.num_bytes, 0)


def open_pool(
    workers: int, initializer: Callable[..., None], initargs: tuple[Any, ...]
) -> tuple[concurrent.futures.ProcessPoolExecutor, Any] | None:
    """(worker processes, the event that stops them); None where this machine lets no processes share a semaphore.

    Nothing else of jaxlm needs /dev/shm: it may be full, or, in a container, not there at all.

    Args:
      initializer: called in each worker with `initargs` and the event; should call `start_worker`.
    """
    # Spawned, not forked: the parent may hold JAX's threads, which a fork would break.
    context = multiprocessing.get_context("spawn")
    try:
        stop = context.Event()
        pool = concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=context, initializer=initializer, initargs=(*initargs, stop)
        )
    except (OSError, ImportError) as error:  # ImportError: Python was built without semaphores
        reason = getattr(error, "strerror", None) or error
        print(
            f"jaxlm: warning: worker processes cannot share anything, since /dev/shm is full or missing ({reason}): "
            "the text is read by one process, which takes longer and gives the same tokens.",
            file=sys.stderr,
        )
        return None
    return pool, stop


def _run_parallel(
    jobs: Sequence[units.Job], pool: concurrent.futures.ProcessPoolExecutor, stop: Any, bar: Progress
) -> None:
    with pool:
        futures = {pool.submit(_work, job): job for job in jobs}
        try:
            for future in concurrent.futures.as_completed(futures):
                bar.add(futures[future].num_bytes, future.result())
        except concurrent.futures.BrokenExecutor:
            raise UserError(
                "A worker process was killed, perhaps for lack of memory. What is done is kept: run the same "
                "command again, with fewer --workers."
            ) from None
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


_worker: dict[str, Any] = {}


def _start_worker(tokenizer: Tokenizer, stop: Any) -> None:
    start_worker()
    _worker.update(tokenizer=tokenizer, stop=stop)


def start_worker() -> None:
    """What every worker process does first."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the parent, which sets the event of `open_pool`
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's idle worker would wait for ever for the next job of a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(job: units.Job) -> int:
    tokens = 0

    def heartbeat(count: int) -> None:
        nonlocal tokens
        tokens += count
        if _worker["stop"].is_set():
            raise units.Cancelled

    units.tokenise(job, _worker["tokenizer"], heartbeat)
    return tokens
