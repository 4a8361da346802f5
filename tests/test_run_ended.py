"""A run that is ended by its supervisor: what it leaves on disk stays, what it started is gone."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
from fast_xla import xla_flags
from small_tokenizers import level

from jaxlm.data.tokenizer_hf import HFTokenizer

CONFIG = """
from jaxlm import run

def get_config():
    cfg = run.default_config()
    cfg.objective = "instruct"
    cfg.tokenizer.path = "FOLDER/tokenizer"
    cfg.data.sources.qa = dict(path="FOLDER/qa.jsonl", on_exhausted="repeat")
    cfg.data.seq_len, cfg.data.global_batch_size, cfg.data.eval_fraction = 128, 4, 0.0
    cfg.model.embed_dim, cfg.model.num_layers, cfg.model.num_heads, cfg.model.num_kv_heads = 16, 1, 2, 2
    cfg.train.num_steps, cfg.train.eval_batches, cfg.train.log_every_steps = 100_000, 0, 1
    return cfg
"""
CHILDREN_S, START_S, END_S = 0.05, 120, 60


def test_after_sigterm_no_process_is_left_and_the_next_start_finds_its_programs(tmp_path):  # pain 20, 22
    """A chat template has a process of its own, also while its run trains."""
    rows = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(40)]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tokenizer").mkdir()
    HFTokenizer(level()).save(tmp_path / "tokenizer")
    (tmp_path / "small.py").write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    command = [
        sys.executable,
        "-m",
        "jaxlm",
        "train",
        f"--config={tmp_path}/small.py",
        f"--workdir={tmp_path}/run",
    ]
    environ = os.environ | {
        "XLA_FLAGS": xla_flags(1),
        "JAXLM_CACHE": str(tmp_path / "cache"),
    }
    process = subprocess.Popen(
        command, env=environ, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    events, started, end = tmp_path / "run" / "events.jsonl", set(), time.monotonic() + START_S
    try:
        while not (events.exists() and '"event": "step"' in events.read_text()):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            started |= set(psutil.Process(process.pid).children(recursive=True))
            time.sleep(CHILDREN_S)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=END_S)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, err
    assert started
    assert psutil.wait_procs(started, timeout=5)[1] == []
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
    assert any("jit_step" in path.name for path in (tmp_path / "cache" / "compiled").iterdir())
