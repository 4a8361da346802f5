"""Real training processes for the chaos driver: where they work, how they are started, what they are doing just now."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
from fast_xla import xla_flags

from jaxlm import checkpoint_integrity as integrity
from jaxlm.report.events import EVENTS

REPOSITORY = Path(__file__).resolve().parents[2]
EVAL_EVERY, SAVE_EVERY, KEEP_LAST = 6, 4, 3
CONFIG = f"""
from jaxlm import run

def get_config():
    cfg = run.default_config()
    again = dict(on_exhausted="repeat")
    cfg.data.sources.licences = dict(path="embedded:licences", weight_tokens=0.5, **again)
    cfg.data.sources.squares = dict(path="FOLDER/squares.txt", weight_tokens=0.3, document="line", **again)
    cfg.data.sources.words = dict(path="FOLDER/words.txt", weight_tokens=0.2, document="line", **again)
    cfg.data.seq_len, cfg.data.global_batch_size, cfg.data.packing = 32, 8, "best_fit"
    cfg.data.eval_split, cfg.data.eval_fraction = "tail", 0.1
    cfg.tokenizer.kind = "char"
    cfg.model.vocab_size = 512  # each version of Python ships texts of other characters
    cfg.model.embed_dim, cfg.model.num_layers, cfg.model.num_heads, cfg.model.num_kv_heads = 32, 2, 2, 2
    cfg.model.dropout = 0.1
    cfg.train.num_steps, cfg.train.log_every_steps = NUM_STEPS, 1
    cfg.train.eval_every_steps, cfg.train.eval_batches = {EVAL_EVERY}, 2
    cfg.checkpoint.every_steps, cfg.checkpoint.keep_last = {SAVE_EVERY}, {KEEP_LAST}
    cfg.optimizer.warmup_steps, cfg.optimizer.schedule = 2, "constant"
    return cfg
"""
"""Float32, dropout, three sources in whole documents; `squares` is read several times over."""
LONGEST_RUN_S = 240
CONNECT_S = 45
"""How long processes wait for one that has not come."""
POLL_S = 0.002


@dataclass(frozen=True)
class Layout:
    """How many processes, how many fake devices each, and the flags of the mesh, such as "tensor=2"."""

    num_processes: int
    devices_each: int
    mesh: str = ""

    def __str__(self) -> str:
        return f"{self.num_processes}x{self.devices_each}{' ' if self.mesh else ''}{self.mesh}"

    @property
    def flags(self) -> list[str]:
        """For the command line."""
        return [f"--config.mesh.{part}" for part in self.mesh.split()]


class Site:
    """A folder for the runs of one chaos: config, texts, one cache, a workdir for each run, all that was printed.

    Args:
      words_bytes: size of the largest text; 5 MB take two processors about three seconds to tokenise.
      disk: where the workdirs are; None: in the folder too.
    """

    def __init__(self, folder: Path, *, num_steps: int, words_bytes: int, disk: Path | None = None):
        self.folder, self.num_steps, self.disk = folder, num_steps, disk
        for name in ("logs", "reference", "failed"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.cache = folder / "cache"
        self.config = folder / "config.py"
        self.config.write_text(CONFIG.replace("FOLDER", str(folder)).replace("NUM_STEPS", str(num_steps)))
        (folder / "squares.txt").write_text("".join(f"{n} squared is {n * n}.\n" for n in range(150)))
        (folder / "words.txt").write_text(words(words_bytes))
        long_ago = time.time() - 3600  # what changed a moment ago is read again at every start
        for name in ("squares.txt", "words.txt"):
            os.utime(folder / name, (long_ago, long_ago))
        self._names = itertools.count(1)
        self.launches = itertools.count(1)

    def new_workdir(self) -> Path:
        """A path at which nothing is yet."""
        return (self.disk or self.folder) / f"run-{next(self._names):03d}"

    def forget_corpora(self) -> None:
        """The next start tokenises anew; what is compiled stays."""
        for name in ("corpora", "tokenizers", "packing"):
            shutil.rmtree(self.cache / name, ignore_errors=True)

    def forget_cache(self) -> None:
        """All of it, when nobody knows any more what is in it."""
        shutil.rmtree(self.cache, ignore_errors=True)


def words(num_bytes: int) -> str:
    """Lines of words, the same for the same size; one generator without `random`, whose draws may change."""
    vocabulary = "the of and to in is that for it as was with be by on not his but at are this have from or had".split()
    lines, size, state = [], 0, 1
    while size < num_bytes:
        line = []
        for _ in range(5 + state % 36):
            state = (1103515245 * state + 12345) % 2**31
            line.append(vocabulary[(state >> 16) % len(vocabulary)])
        lines.append(f"{' '.join(line)}.\n")
        size += len(lines[-1])
    return "".join(lines)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Launch:
    """One start of a run: its processes, and the events that they have written since."""

    def __init__(self, site: Site, workdir: Path, layout: Layout):
        self.site, self.workdir, self.layout = site, workdir, layout
        self.log = workdir / EVENTS
        self.events: list[dict] = []
        self.began = time.monotonic()
        before = self.log.read_bytes() if self.log.exists() else b""
        self._read = before.rfind(b"\n") + 1  # a torn line is cut off by the next who writes
        self.steps_before = self.steps_on_disk()
        self.unfinished_before = self.folders(integrity.UNFINISHED)
        self._descendants: dict[int, psutil.Process] = {}
        self._copies: list[threading.Thread] = []
        port = free_port()
        number = next(site.launches)
        self._files = [
            site.folder / "logs" / f"{number:03d}-{index}" for index in range(layout.num_processes)
        ]
        self.processes = [self._start(index, port) for index in range(layout.num_processes)]

    def _start(self, index: int, port: int) -> subprocess.Popen:
        environ = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAXLM_CACHE": str(self.site.cache),
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "XLA_FLAGS": xla_flags(self.layout.devices_each),
        }
        argv = [
            sys.executable,
            "-m",
            "jaxlm",
            "train",
            f"--config={self.site.config}",
            f"--workdir={self.workdir}",
        ]
        argv += self.layout.flags
        if self.layout.num_processes > 1:
            argv += [f"--coordinator=127.0.0.1:{port}", f"--num-processes={self.layout.num_processes}"]
            argv += [f"--process-id={index}", f"--connect-timeout={CONNECT_S}"]
        # Through pipes: a limit on the size of files would strike what is printed, too.
        process = subprocess.Popen(
            argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.site.folder
        )
        for stream, suffix in ((process.stdout, "out"), (process.stderr, "err")):
            thread = threading.Thread(
                target=_copy, args=(stream, Path(f"{self._files[index]}.{suffix}")), daemon=True
            )
            thread.start()
            self._copies.append(thread)
        return process

    # What is going on.

    def poll(self) -> list[dict]:
        """All events since the start."""
        if self.log.exists():
            with open(self.log, "rb") as file:
                file.seek(self._read)
                content = file.read()
            content = content[: content.rfind(b"\n") + 1]
            self._read += len(content)
            self.events += [json.loads(line) for line in content.splitlines()]
        return self.events

    def steps(self) -> list[int]:
        """Those that this launch has logged so far."""
        return [event["step"] for event in self.poll() if event["event"] == "step"]

    def folders(self, suffix: str) -> set[str]:
        """Beside the steps, by suffix."""
        with contextlib.suppress(OSError):  # renamed while it is looked at
            return {path.name for path in integrity.list_leftovers(self.workdir / "checkpoints", suffix)}
        return set()

    def steps_on_disk(self) -> list[int]:
        """Of checkpoints."""
        return integrity.list_steps(self.workdir / "checkpoints")

    @property
    def saving(self) -> bool:
        """Whether a save of this launch is being written."""
        return bool(self.folders(integrity.UNFINISHED) - self.unfinished_before)

    @property
    def building(self) -> bool:
        """Whether text is being tokenised."""
        return any(self.site.cache.glob("corpora/*/.build"))

    def evaluating(self) -> bool:
        """Whether an evaluation is due and has not been logged."""
        marks = [e for e in self.poll() if e["event"] in ("step", "eval")]
        return bool(marks) and marks[-1]["event"] == "step" and marks[-1]["step"] % EVAL_EVERY == 0

    def phase(self) -> str:
        """What the run is doing, as far as its files tell."""
        names = {event["event"] for event in self.poll()}
        if "start" not in names:
            return "tokenising" if self.building else "start-up"
        if "step" not in names:
            return "before the first step"
        if self.is_done:
            return "after the last step"
        if self.folders(integrity.DELETING):
            return "deleting a step"
        if self.saving:
            return "saving"
        return "evaluating" if self.evaluating() else "stepping"

    @property
    def is_done(self) -> bool:
        """Whether the last step of the run was logged."""
        return self.site.num_steps in self.steps()

    @property
    def is_alive(self) -> bool:
        """Whether any process goes on."""
        return any(process.poll() is None for process in self.processes)

    def wait_until(self, condition, limit_s: float = LONGEST_RUN_S) -> bool:
        """False when the launch ends first."""
        end = time.monotonic() + limit_s
        while not condition():
            if not self.is_alive or time.monotonic() > end:
                return False
            time.sleep(POLL_S)
        return self.is_alive

    # Its end.

    def signal(self, number: int, index: int | None = None) -> None:
        """To all processes, or to one."""
        for process in self.processes if index is None else [self.processes[index]]:
            with contextlib.suppress(ProcessLookupError):
                self._note_descendants(process)
                process.send_signal(number)

    def _note_descendants(self, process: subprocess.Popen) -> None:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                self._descendants[child.pid] = child

    def wait(self, limit_s: float = LONGEST_RUN_S) -> list[int | None]:
        """Exit codes; None for a process that had to be killed because it did not end in time."""
        end = time.monotonic() + limit_s
        codes: list[int | None] = []
        for process in self.processes:
            try:
                codes.append(process.wait(max(0.0, end - time.monotonic())))
            except subprocess.TimeoutExpired:
                codes.append(None)
        self.signal(signal.SIGKILL)
        for process in self.processes:
            process.wait()
        for thread in self._copies:
            thread.join(5.0)  # a child that lives on would hold its pipe open
        self.poll()
        return codes

    def printed(self) -> str:
        """By all processes, on both streams."""
        return "".join(self.errors(index) + self.output(index) for index in range(len(self.processes)))

    def errors(self, index: int) -> str:
        """What one process printed on stderr."""
        return Path(f"{self._files[index]}.err").read_text(errors="replace")

    def output(self, index: int) -> str:
        """What one process printed on stdout."""
        return Path(f"{self._files[index]}.out").read_text(errors="replace")

    def left_running(self, patience_s: float = 10.0) -> list[str]:
        """Processes that this launch started and that outlive it, after some patience; they are killed."""
        end = time.monotonic() + patience_s
        while (left := [p for p in self._descendants.values() if _runs(p)]) and time.monotonic() < end:
            time.sleep(0.05)
        names = []
        for process in left:
            with contextlib.suppress(psutil.Error):
                names.append(" ".join(process.cmdline())[:120])
                process.kill()
        return names


def _copy(stream: IO[bytes], path: Path) -> None:
    with stream, open(path, "wb") as file:
        while content := stream.read1(1 << 16):
            file.write(content)
            file.flush()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
