"""Whole runs whose data fails under them: each ends with one line, or trains on exactly what it would have."""

import errno
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from slow import slow

from jaxlm.data import notices as noticing
from jaxlm.data import shard_reader
from jaxlm.data.manifest import read_manifest
from jaxlm.data.shards import TokenStore, write_corpus
from jaxlm.data.tokenizer_training import train_tokenizer
from jaxlm.report.events import last_of_each_step, read_events

CONFIG = """
from jaxlm import run

def get_config():
    cfg = run.default_config()
    cfg.data.sources.mine = dict(path="{text}", on_exhausted="repeat")
    cfg.data.seq_len, cfg.data.global_batch_size, cfg.data.eval_fraction = 16, 8, 0.0
    cfg.data.cache_dir = "{cache}"
    cfg.tokenizer.kind = "char"
    cfg.model.embed_dim, cfg.model.num_layers, cfg.model.num_heads, cfg.model.num_kv_heads = 16, 1, 2, 2
    cfg.train.num_steps, cfg.train.eval_batches, cfg.train.log_every_steps = 20, 0, 5
    cfg.checkpoint.every_steps = 10
    cfg.optimizer.warmup_steps, cfg.optimizer.schedule = 1, "constant"
    return cfg
"""


@pytest.fixture
def config(tmp_path):
    text = tmp_path / "squares.txt"
    text.write_text("".join(f"{n} squared is {n * n}.\n" for n in range(4000)))
    path = tmp_path / "small.py"
    path.write_text(CONFIG.format(text=text, cache=tmp_path / "cache"))
    return f"--config={path}"


def read_from_disk(monkeypatch):
    """Small corpora are read record by record, like large ones."""
    monkeypatch.setitem(TokenStore.__init__.__kwdefaults__, "resident_bytes", 0)


def at_read(monkeypatch, number, happens):
    """Calls `happens` in place of, or before, that read of a record of the process."""

    class Reader(shard_reader.ArrayRecordReader):
        num_reads = 0

        def read(self, *args):
            Reader.num_reads += 1
            if Reader.num_reads == number:
                happens()
            return super().read(*args)

    monkeypatch.setattr(shard_reader, "ArrayRecordReader", Reader)


def overwrite_with_other_tokens(corpus):
    """In place, and valid: what somebody's own build script may do to a folder in use."""
    manifest, store = read_manifest(corpus), TokenStore(corpus, "train")
    tokens = store.read(0, store.num_tokens)[::-1]
    documents = np.split(tokens, store.document_ends[:-1])
    write_corpus(
        corpus / "other", {"train": [(ids, 1) for ids in documents], "eval": []},
        tokenizer_sha256=manifest["tokenizer_sha256"], vocab_size=manifest["vocab_size"],
    )  # fmt: skip
    with open(corpus / "train-00000.arrayrecord", "r+b") as file:
        file.write((corpus / "other" / "train-00000.arrayrecord").read_bytes())
    shutil.rmtree(corpus / "other")


def cached_corpus(tmp_path):
    (folder,) = (tmp_path / "cache" / "corpora").iterdir()
    return folder


def batch_hashes(workdir):
    events = last_of_each_step(read_events(workdir / "events.jsonl"))
    return {step: event["batch_hash"] for step, event in events.items()}


def test_a_run_whose_shard_changes_under_it_ends_at_once_and_the_same_command_mends_it_and_goes_on(
    config, monkeypatch, jaxlm, tmp_path
):
    assert jaxlm("train", config, f"--workdir={tmp_path / 'undisturbed'}")[0] == 0
    with monkeypatch.context() as patch:
        read_from_disk(patch)
        at_read(patch, 120, lambda: overwrite_with_other_tokens(cached_corpus(tmp_path)))
        code, _, err = jaxlm("train", config, f"--workdir={tmp_path / 'run'}")
    assert code == 2
    assert "train-00000.arrayrecord is missing or damaged (record " in err.splitlines()[-1]
    last = list(read_events(tmp_path / "run" / "events.jsonl"))[-1]
    assert last["event"] == "failed"
    assert "train-00000.arrayrecord" in last["error"]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["10"]

    code, out, err = jaxlm("train", config, f"--workdir={tmp_path / 'run'}")
    assert code == 0, err
    assert f"warning: {cached_corpus(tmp_path)} was damaged" in err
    assert "resumed from step 10" in out
    assert batch_hashes(tmp_path / "run") == batch_hashes(tmp_path / "undisturbed")


def test_a_run_tries_a_failed_read_again_counts_it_and_trains_on_the_same_batches(
    config, monkeypatch, jaxlm, tmp_path
):
    assert jaxlm("train", config, f"--workdir={tmp_path / 'undisturbed'}")[0] == 0
    read_from_disk(monkeypatch)
    monkeypatch.setattr(noticing, "RETRY_WAITS_S", (0.01, 0.01))

    def fail():
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    at_read(monkeypatch, 60, fail)
    assert jaxlm("train", config, f"--workdir={tmp_path / 'run'}")[0] == 0
    events = list(read_events(tmp_path / "run" / "events.jsonl"))
    (retry,) = [event for event in events if event["event"] == "data_retry"]
    assert retry["file"].endswith("train-00000.arrayrecord")
    assert (retry["attempt"], retry["wait_s"], retry["error"]) == (1, 0.01, "[Errno 5] Input/output error")
    assert 0 < retry["step"] < 20
    assert last_of_each_step(events)[20]["data/num_retries"] == 1.0
    assert batch_hashes(tmp_path / "run") == batch_hashes(tmp_path / "undisturbed")


SHARED_MEMORY = """
mount -t tmpfs -o size=4k none /dev/shm || exit 77
if [ "$1" = full ]; then head -c 8192 /dev/zero > /dev/shm/filled; else mount -o remount,ro /dev/shm || exit 77; fi
shift
exec "$@"
"""


@pytest.mark.parametrize("state", [slow("full"), "read-only"])
def test_a_run_and_the_build_of_its_corpus_need_no_shared_memory(config, tmp_path, state):  # pain 20
    """In a namespace of its own, which needs no rights on most Linux systems."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare(1) is missing")

    def without_memory(*command):
        inside = ["sh", "-c", SHARED_MEMORY, "sh", state, sys.executable, "-m", "jaxlm", *command]
        done = subprocess.run(["unshare", "-Urm", *inside], capture_output=True, text=True, timeout=240)
        if done.returncode == 77 or "unshare" in done.stderr:
            pytest.skip(f"no mounts here: {done.stderr}")
        assert done.returncode == 0, done.stderr
        return done.stderr

    if state == "full":
        without_memory("train", config, f"--workdir={tmp_path / 'run'}")
        assert max(batch_hashes(tmp_path / "run")) == 20
    tokenizer = tmp_path / "tokenizer.model"
    tokenizer.write_bytes(train_tokenizer(["a number of many"], "char", 100))
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"{number} is a number of many.\n" * 50_000)
    said = without_memory(
        "corpus", "build", f"--input={tmp_path}/?.txt", f"--output={tmp_path / 'built'}",
        f"--tokenizer={tokenizer}", "--workers=2",
    )  # fmt: skip
    assert "/dev/shm is full or missing" in said
    assert read_manifest(tmp_path / "built")["splits"]["train"]["num_documents"] == 3
