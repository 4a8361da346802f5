"""All checks of `jaxlm doctor`, in order: what a check needs was found by those before it, else it is left out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaxlm import processes
from jaxlm.checkpoint_meta import Meta
from jaxlm.doctor import data, folder, machine, together
from jaxlm.doctor.check import FAIL, OK, Check, Result, one_line, run_check, run_here
from jaxlm.doctor.folder import Health
from jaxlm.doctor.machine import Devices
from jaxlm.parallel.distributed import Cluster
from jaxlm.paths import cache_root
from jaxlm.runconfig import RunConfig, load_config, parse, resolve
from jaxlm.types import UserError
from jaxlm.workdir import CONFIG_FILE

if TYPE_CHECKING:
    from jaxlm.data.tokenizer import Tokenizer

LIMIT_S = 30.0
"""Of a check that reads little."""
SLOW_LIMIT_S = 180.0
"""Of one that opens devices, or reads a whole checkpoint or text."""
TOGETHER_S = 600.0
"""How long the processes wait for each other: as long as the checks of the slowest may take in between."""


@dataclasses.dataclass
class Examination:
    """One call of `jaxlm doctor` in one process: what was asked, and what was found so far.

    Args:
      config_argv: its --config flags; empty: the config of the run in the workdir, where there is one.
      emit: gets every result as it comes.
    """

    config_argv: Sequence[str]
    workdir: str | None
    cluster: Cluster
    emit: Callable[[Result], Any]
    results: list[Result] = dataclasses.field(default_factory=list)
    cfg: RunConfig | None = None
    devices: Devices | None = None
    health: Health | None = None
    tokenizer: Tokenizer | None = None
    sources: dict[str, data.Found] = dataclasses.field(default_factory=dict)
    in_step: bool = True
    """Whether the processes still answer each other."""
    seen_by_all: list[str] = dataclasses.field(default_factory=list)
    """Names of the checks that were made together."""

    def check(self, name: str, check: Check, limit_s: float | None = None) -> bool:
        """Runs a check and tells of it; whether it found nothing wrong."""
        return self._tell(run_check(name, check, limit_s or LIMIT_S))

    def check_together(self, name: str, check: Check) -> bool:
        """A check that all processes make at the same time, and all see; left out when this is the only one."""
        if processes.is_alone() or not self.in_step:
            return True

        def in_step() -> str | None:
            began = time.monotonic()
            try:
                with processes.waiting_at_most(TOGETHER_S):
                    return check()
            except RuntimeError:  # of the store: a process is gone
                self.in_step = False
                raise
            finally:
                self.in_step = self.in_step and time.monotonic() - began < TOGETHER_S

        self.seen_by_all.append(name)
        return self._tell(run_here(name, in_step))

    def _tell(self, result: Result | None) -> bool:
        if result is not None:
            self.results.append(result)
            self.emit(result)
        return result is None or result.status != FAIL

    @property
    def latest(self) -> Meta | None:
        """Of the latest good checkpoint."""
        metas = {} if self.health is None else self.health.metas
        return metas[max(metas)] if metas else None

    @property
    def vocab_size(self) -> int | None:
        """Where it is known: of the tokenizer, else as the config wants it."""
        if self.tokenizer is not None:
            return self.tokenizer.vocab_size
        return None if self.cfg is None else self.cfg.tokenizer.vocab_size

    def run(self) -> list[Result]:
        """All checks."""
        self.check("versions", machine.versions)
        self.check("config", self._config)
        joined = self.check("coordinator", lambda: together.reach(self.cluster), self.cluster.timeout_s + 30)
        if joined:
            # Not on a thread: JAX would be connected, or not, behind the back of what follows.
            joined = self._tell(run_here("processes", lambda: together.join(self.cluster)))
        self.check_together("same run", lambda: together.same_run(self.cfg, self.workdir))
        self.check_together("clocks", together.same_time)
        fits = self._examine_devices(joined)
        if self.workdir is not None:
            self._examine_workdir(self.workdir)
        cache = self.cfg.data.cache_dir if self.cfg is not None else None
        self.check("cache", lambda: machine.check_writing(cache_root(cache)))
        if self.cfg is not None:
            self._examine_data(self.cfg)
        sha256 = None if self.tokenizer is None else self.tokenizer.sha256
        corpus = {name: found.content for name, found in self.sources.items()}
        # Also where this process has no config: the others would wait for it.
        self.check_together("same data", lambda: together.same_data(sha256, corpus))
        if self.cfg is not None:
            self._examine_room(self.cfg, self.devices if fits else None)
        return self.results

    def _examine_devices(self, joined: bool) -> bool:
        def find() -> str:
            self.devices = devices = machine.find_devices()
            return machine.check_platform(devices)

        self.check("devices", find, SLOW_LIMIT_S)
        cfg, devices = self.cfg, self.devices
        if cfg is None or devices is None or not joined:  # without the other processes, without their devices
            return False
        return self.check("mesh", lambda: machine.check_mesh(cfg, devices))

    def _config(self) -> str | None:
        if self.config_argv:
            self.cfg = resolve(parse(list(self.config_argv)), self.workdir)
            return f"{self.cfg.objective}, {self.cfg.train.num_steps:,} steps: every key is right"
        if self.workdir is None:
            return None
        saved = folder.reachable(self.workdir) / CONFIG_FILE
        if not saved.exists():
            return None
        self.cfg = load_config(saved)
        return f"that of the run in the workdir: {self.cfg.objective}, {self.cfg.train.num_steps:,} steps"

    def _examine_workdir(self, workdir: str) -> None:
        if not self.check("workdir", lambda: folder.check_folder(workdir)):
            return
        self.check("lock", lambda: folder.check_lock(workdir))
        if self.config_argv and self.cfg is not None:
            self.check("config of the run", lambda: folder.check_run_config(workdir, self.cfg))
        self.check("writing", lambda: machine.check_writing(workdir))

        def checkpoints() -> str:
            self.health = folder.examine_checkpoints(workdir)
            return folder.describe_health(self.health)

        self.check("checkpoints", checkpoints, SLOW_LIMIT_S)
        self.check("event log", lambda: folder.check_events(workdir), SLOW_LIMIT_S)

    def _examine_data(self, cfg: RunConfig) -> None:
        def tokenizer() -> str:
            self.tokenizer = data.open_tokenizer(cfg, self.workdir)
            wanted = "it is trained when the run starts"
            if cfg.init_from is not None:
                wanted = f"it comes with init_from={cfg.init_from}"
            return data.describe_tokenizer(self.tokenizer, self.latest, wanted)

        knows = self.check("tokenizer", tokenizer)
        sha256 = self.tokenizer.sha256 if knows and self.tokenizer is not None else None
        for name in cfg.data.sources:

            def source(name: str = name) -> str:
                self.sources[name] = found = data.find_source(name, cfg, sha256)
                comparable = cfg.objective == "pretrain" and sha256 is not None
                return data.describe_source(name, found, self.latest, comparable=comparable)

            self.check(f"source {name}", source, SLOW_LIMIT_S)

    def _examine_room(self, cfg: RunConfig, devices: Devices | None) -> None:
        vocab_size, workdir = self.vocab_size, self.workdir
        if vocab_size is None:
            return
        if devices is not None:
            self.check("memory", lambda: machine.check_memory(cfg, devices, vocab_size))
        if workdir is not None:
            self.check("disk", lambda: self._disk(cfg, workdir, vocab_size))

    def _disk(self, cfg: RunConfig, workdir: str, vocab_size: int) -> str | None:
        there = 0 if self.health is None else len(self.health.metas)
        last_bytes = 0 if self.health is None else self.health.last_bytes
        step_bytes = last_bytes or machine.state_bytes(cfg, vocab_size)
        kept = cfg.checkpoint.keep_last
        return machine.check_disk(workdir, step_bytes, max(1, kept + 1 - there), kept)

    def gather(self) -> list[Result]:
        """What the other processes found wrong, by their names. Called once, after `run`."""
        if processes.is_alone() or not self.in_step:
            return []
        bad = [r[:3] for r in self.results if r.status != OK and r.name not in self.seen_by_all]
        try:
            with processes.waiting_at_most(TOGETHER_S):
                found = processes.from_all(bad, "The end of jaxlm doctor")
        except (UserError, RuntimeError) as error:
            return [Result("processes", FAIL, one_line(error))]
        return [
            Result(f"{processes.name_of(index)}: {name}", status, text)
            for index in range(len(found))
            if index != processes.index()
            for name, status, text in found[index]
        ]
