"""Runs stages: here in processes, on Slurm as arrays of jobs, on a Ray cluster; by datatrove's executors.

A stage is a datatrove pipeline and a number of tasks; a task does nothing where its result is there already, so a stage
may be run again, anywhere. On one machine the executor is our own, a PipelineExecutor as datatrove's is: its
LocalPipelineExecutor waits for ever for a worker that the kernel killed for memory, and prints a log instead of how far
it is.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from datatrove.utils.stats import PipelineStats, Stats

from jaxlm.corpus import workers as worker_pool
from jaxlm.corpus.progress import Progress
from jaxlm.corpus.raw.config import ExecutorConfig
from jaxlm.data.files import disk_error
from jaxlm.processes import num_processors
from jaxlm.types import UserError

SINGLE_PROCESS_BYTES = 4 << 20
"""Below this, starting worker processes takes longer than the work."""


@dataclass
class Stage:
    """A part of the work that needs all of the stage before it."""

    name: str
    pipeline: list[Any]
    sizes: Sequence[int]
    """Bytes of work of each task."""
    waiting: Callable[[], list[int]] = field(default=lambda: [])
    """The tasks that are not done yet, asked when the stages before are done."""

    @property
    def num_tasks(self) -> int:
        """All tasks, done or not."""
        return len(self.sizes)


class TaskExecutor(PipelineExecutor):
    """Runs single tasks of a stage in this process, without a log on stderr."""

    def __init__(self, stage: Stage, logs: str):
        super().__init__(stage.pipeline, os.path.join(logs, stage.name), skip_completed=False)
        self.num_tasks = stage.num_tasks

    def run(self) -> None:
        """All tasks, one after the other."""
        for rank in range(self.num_tasks):
            self.run_task(rank)

    def run_task(self, rank: int) -> None:
        """Pipes the steps into each other; their counts and times go to LOGS/STAGE/stats/RANK.json."""
        data = None
        for step in self.pipeline:
            step.stats = Stats(str(step))  # pyright: ignore  # else with those of the task before
            data = step(data, rank, self.world_size)
        if data is not None:
            deque(data, maxlen=0)
        try:
            with self.logging_dir.open(f"stats/{rank:05d}.json", "w") as file:
                PipelineStats(self.pipeline).save_to_disk(file)
        except OSError as error:
            raise (disk_error(self.logging_dir.path, error) or error) from None

    @property
    def world_size(self) -> int:
        return self.num_tasks

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        return DistributedEnvVars(
            datatrove_node_ips="localhost",
            datatrove_cpus_per_task="1",
            datatrove_mem_per_cpu="-1",
            datatrove_gpus_on_node="0",
            datatrove_executor="LOCAL",
        )


def run_stages(
    waves: Sequence[Sequence[Stage]], config: ExecutorConfig, logs: str, progress: bool | None
) -> bool:
    """Runs the stages of each wave, which need not wait for each other, then those of the next.

    Returns False where the work goes on after this call: on Slurm.
    """
    if config.kind == "slurm":
        _submit(waves, config, logs)
        return False
    if config.kind == "ray":
        _run_on_ray(waves, config, logs)
        return True
    _run_here(waves, config, logs, progress)
    return True


def _run_here(
    waves: Sequence[Sequence[Stage]], config: ExecutorConfig, logs: str, progress: bool | None
) -> None:
    executors = {stage.name: TaskExecutor(stage, logs) for wave in waves for stage in wave}
    most = max((sum(stage.num_tasks for stage in wave) for wave in waves), default=1)
    pool: tuple[concurrent.futures.ProcessPoolExecutor, Connection] | None = None
    try:
        for wave in waves:
            tasks = [(stage, rank) for stage in wave for rank in stage.waiting()]
            if not tasks:
                continue
            size = sum(stage.sizes[rank] for stage, rank in tasks)
            workers = config.workers or (num_processors() if size >= SINGLE_PROCESS_BYTES else 1)
            label = " and ".join(dict.fromkeys(stage.name.partition(":")[0] for stage in wave))
            # The largest first: none of them is then alone at the end.
            tasks.sort(key=lambda task: (-task[0].sizes[task[1]], task[0].name, task[1]))
            with Progress(label, size, progress, unit="tasks") as bar:
                if min(workers, len(tasks)) > 1 and pool is None:
                    pool = _open_pool(min(workers, most), executors)  # all are started at once
                if pool is not None and len(tasks) > 1:
                    _run_parallel(tasks, pool[0], bar)
                    continue
                for stage, rank in tasks:
                    executors[stage.name].run_task(rank)
                    bar.add(stage.sizes[rank], 1)
    except BaseException:
        if pool is not None:
            pool[1].close()  # the workers leave their tasks, which the next call does again
        raise
    finally:
        if pool is not None:
            pool[0].shutdown(cancel_futures=True)


def _run_parallel(
    tasks: Sequence[tuple[Stage, int]], pool: concurrent.futures.ProcessPoolExecutor, bar: Progress
) -> None:
    try:
        futures = {pool.submit(_work, stage.name, rank): (stage, rank) for stage, rank in tasks}
        for future in concurrent.futures.as_completed(futures):
            stage, rank = futures[future]
            future.result()
            bar.add(stage.sizes[rank], 1)
    except concurrent.futures.BrokenExecutor:
        raise UserError(
            "A worker process was killed, perhaps for lack of memory. What is done is kept: run the same command "
            "again, with fewer --workers."
        ) from None


def _open_pool(
    workers: int, executors: dict[str, TaskExecutor]
) -> tuple[concurrent.futures.ProcessPoolExecutor, Connection] | None:
    """(worker processes that know all stages, the end of a pipe that they live as long as); None: none can be had.

    Each gets the stages once: they hold the units of a whole crawl, a task is a name and a number. And a pipe, where
    `worker_pool` has an event: setting that one waits for ever for the answer of a worker that was killed.
    """
    reader, writer = multiprocessing.Pipe(duplex=False)
    found = worker_pool.open_pool(workers, _start, (executors, reader))
    return None if found is None else (found[0], writer)


_executors: dict[str, TaskExecutor] = {}
"""Of a worker process."""


def _start(executors: dict[str, TaskExecutor], alive: Connection, _stop: Any) -> None:
    worker_pool.start_worker()
    _executors.update(executors)
    threading.Thread(target=_leave, args=(alive,), daemon=True).start()


def _leave(alive: Connection) -> None:
    alive.poll(None)  # nothing is ever sent: it ends when the other end is closed
    os._exit(1)


def _work(stage: str, rank: int) -> None:
    _executors[stage].run_task(rank)


def _quiet() -> None:
    """datatrove tells of all it does, and of the whole pipeline for each task."""
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="ERROR")


def _submit(waves: Sequence[Sequence[Stage]], config: ExecutorConfig, logs: str) -> None:
    """One array of jobs for each stage, behind the one before; a task whose result is there does nothing."""
    import shutil

    from datatrove.executor import SlurmPipelineExecutor

    if shutil.which("sbatch") is None:
        raise UserError(
            "executor.kind=slurm needs the command sbatch, which is not here: run it on a login node of the cluster."
        )
    _quiet()
    before = None
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for wave in waves:
        for stage in wave:
            before = SlurmPipelineExecutor(
                stage.pipeline,
                tasks=stage.num_tasks,
                time=config.time_limit,
                partition=config.partition,
                mem_per_cpu_gb=config.memory_gib,
                workers=config.workers or -1,
                job_name=f"jaxlm-{stage.name}",
                qos="",
                env_command=config.setup or None,  # pyright: ignore[reportArgumentType]
                # A folder of its own each time: what is done says the task itself.
                logging_dir=os.path.join(logs, f"{stage.name}-{stamp}"),
                depends=before,  # pyright: ignore[reportArgumentType]
            )
    if before is not None:
        before.run()
        print(
            f"submitted: {sum(map(len, waves))} stages, the last as job {before.job_id}. When it is done, `jaxlm "
            "corpus report` shows the result; the same command goes on where one failed.",
            file=sys.stderr,
        )


def _run_on_ray(waves: Sequence[Sequence[Stage]], config: ExecutorConfig, logs: str) -> None:
    try:
        import ray  # noqa: F401  # pyright: ignore[reportMissingImports]
        from datatrove.executor import RayPipelineExecutor
    except ImportError:
        raise UserError(
            "executor.kind=ray needs a package that is not installed: pip install 'jaxlm[ray]'."
        ) from None
    _quiet()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for wave in waves:
        for stage in wave:
            waiting = stage.waiting()
            if not waiting:
                continue
            executor = RayPipelineExecutor(
                stage.pipeline,
                tasks=stage.num_tasks,
                workers=config.workers or -1,
                mem_per_cpu_gb=config.memory_gib,
                logging_dir=os.path.join(logs, f"{stage.name}-{stamp}"),
            )
            executor.run()
            if failed := executor.get_incomplete_ranks(skip_completed=True):
                raise UserError(
                    f"{len(failed)} of {stage.num_tasks} tasks of the stage {stage.name} failed; their logs are in "
                    f"{os.path.join(logs, f'{stage.name}-{stamp}')}. What is done is kept: run the same command again."
                )
