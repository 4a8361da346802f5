"""Runs of several real processes, for tests: a small config, and what starts the processes."""

import os
import socket
import subprocess
import sys
import time

from fast_xla import xla_flags

NUM_DEVICES = 4
CONFIG = """
from jaxlm import run

def get_config():
    cfg = run.default_config()
    cfg.data.sources.texts = dict(path="embedded:licences", weight_tokens=0.7, on_exhausted="repeat")
    cfg.data.sources.more = dict(path="TEXT", on_exhausted="repeat")
    cfg.data.sources.more.weight_tokens = 0.3
    cfg.data.seq_len, cfg.data.global_batch_size = 32, 8
    cfg.data.eval_split, cfg.data.eval_fraction = "tail", 0.1
    cfg.tokenizer.kind = "char"
    cfg.model.vocab_size = 512  # each version of Python ships texts of other characters
    cfg.model.embed_dim, cfg.model.num_layers, cfg.model.num_heads, cfg.model.num_kv_heads = 32, 2, 2, 2
    cfg.model.dropout = 0.1
    cfg.train.num_steps, cfg.train.eval_every_steps, cfg.train.eval_batches = 6, 3, 2
    cfg.checkpoint.every_steps = 2
    cfg.optimizer.warmup_steps, cfg.optimizer.schedule = 2, "constant"
    return cfg
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_config(folder):
    """The flag of a config file that reads two texts, written into the folder."""
    path = folder / "small.py"
    path.with_suffix(".txt").write_text("".join(f"{n} squared is {n * n}.\n" for n in range(300)))
    path.write_text(CONFIG.replace("TEXT", str(path.with_suffix(".txt"))))
    return f"--config={path}"


def start(argv, num_devices, *, command="train", cwd=None, before=""):
    """One process of a run.

    Args:
      cwd: its current folder; where that holds a copy of jaxlm, this copy runs.
      before: Python that it runs first.
    """
    environ = os.environ | {"XLA_FLAGS": xla_flags(num_devices)}
    call = f"import sys\n{before}\nfrom jaxlm.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    line = [sys.executable, *(["-c", call] if before else ["-m", "jaxlm"]), command, *argv]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, env=environ, cwd=cwd, text=True, stdout=pipe, stderr=pipe)


def launch(config, workdir, num_processes, *flags, absent=(), each=None, command="train", cwds=None):
    """(exit code, stdout, stderr) of every process of one run, in the order of their ids.

    Args:
      absent: ids that are not started.
      each: id -> flags of this process alone.
      cwds: id -> its current folder.
    """
    port = free_port()
    processes = []
    for index in set(range(num_processes)) - set(absent):
        argv = [config, f"--workdir={workdir}", *flags, *(each or {}).get(index, ())]
        if num_processes > 1:
            argv += [f"--coordinator=127.0.0.1:{port}", f"--num-processes={num_processes}"]
            argv += [f"--process-id={index}"]
        cwd = (cwds or {}).get(index)
        processes.append(start(argv, NUM_DEVICES // num_processes, command=command, cwd=cwd))
    try:
        return [(p.wait(), out, err) for p in processes for out, err in [p.communicate(timeout=240)]]
    finally:
        for process in processes:
            process.kill()


def wait_until(condition, seconds=120, poll_s=0.1):
    """However busy the machine is."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(poll_s)
