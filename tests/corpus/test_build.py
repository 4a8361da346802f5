"""Promises of a build: the same bytes however it is run, nothing half-written, nothing lost in silence."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from corpora import TOPICS, documents, make, tokenizer, tree

from jaxlm.corpus import build, inputs, units, workers
from jaxlm.corpus.progress import Progress
from jaxlm.data import files
from jaxlm.data.manifest import is_corpus
from jaxlm.data.shards import TokenStore
from jaxlm.types import UserError


def test_a_corpus_holds_every_document_once(raw, tmp_path, small_units):
    manifest = make(raw, tmp_path / "out")
    train, held_out = documents(tmp_path / "out"), documents(tmp_path / "out", "eval")
    assert sorted(train + held_out) == sorted(TOPICS[:60])
    assert 2 <= len(held_out) <= 15
    for split, texts in (("train", train), ("eval", held_out)):
        entry = manifest["splits"][split]
        assert entry["num_documents"] == len(texts)
        assert entry["num_bytes"] == sum(len(text.encode()) for text in texts)
        assert entry["num_tokens"] == sum(len(tokenizer().document(text)) for text in texts)
    assert manifest["dropped"] == {"empty_file": 1}
    assert manifest["tokenizer_sha256"] == tokenizer().sha256
    assert manifest["source"]["num_files"] == 22
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == tokenizer().model_bytes
    assert [name for name in os.listdir(tmp_path / "out") if name.startswith(".")] == []


def test_the_result_is_the_same_to_the_byte_for_any_number_of_workers(raw, tmp_path, small_units):
    trees = []
    for count in (1, 2, 3):
        make(raw, tmp_path / str(count), workers=count)
        trees.append(tree(tmp_path / str(count)))
    assert trees[0] == trees[1] == trees[2]
    assert len(trees[0]) > 6


def test_shards_are_about_as_large_as_asked_and_few(raw, tmp_path, small_units):
    manifest = make(raw, tmp_path / "out")
    sizes = [shard["num_tokens"] for shard in manifest["splits"]["train"]["shards"]]
    assert len(sizes) >= 3
    assert all(10_000 <= size for size in sizes[:-1])
    assert sorted(sizes)[len(sizes) // 2] <= 30_000
    assert len(make(raw, tmp_path / "one", shard_tokens=10**9)["splits"]["train"]["shards"]) == 1


class Interrupt(Exception):
    """Stands for a crash."""


@pytest.mark.parametrize(
    ("module", "name"), [(units, "tokenise"), (build, "join_shards"), (build, "write_manifest")]
)
@pytest.mark.parametrize("survived", [0, 4])
def test_an_interrupted_build_goes_on_and_ends_the_same(
    raw, tmp_path, small_units, monkeypatch, module, name, survived
):
    make(raw, tmp_path / "whole")
    original = getattr(module, name)
    calls = itertools.count()

    def failing(*args, **kwargs):
        if next(calls) >= survived:
            raise Interrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing)
        if name != "write_manifest" or survived == 0:
            with pytest.raises(Interrupt):
                make(raw, tmp_path / "out")
            assert not is_corpus(tmp_path / "out")
            with pytest.raises(UserError, match="not a tokenised corpus"):
                TokenStore(tmp_path / "out", "train")
    done = []
    monkeypatch.setattr(
        units, "tokenise", lambda job, *args, do=units.tokenise: done.append(job) or do(job, *args)
    )
    make(raw, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    if name == "tokenise":
        total = len(
            inputs.plan_units(inputs.find_inputs([str(raw)], units.Tally()), units.ReadOptions(), 20_000)
        )
        assert len(done) == total - survived
    elif name == "join_shards":
        assert not done


KILLED = """
import sys, time
from jaxlm.corpus import build, inputs, units
build.plan_units = lambda files, options: inputs.plan_units(files, options, 20_000)
if {workers} == 1:
    work = units.tokenise
    units.tokenise = lambda *args: time.sleep(0.05) or work(*args)
from jaxlm.data.tokenizer import load_tokenizer
build.build_corpus([{raw!r}], {output!r}, load_tokenizer({model!r}), eval_fraction=0.1, shard_tokens=20_000,
                   workers={workers}, progress=False)
"""


@pytest.mark.parametrize("count", [1, 2])
def test_kill_9_leaves_no_corpus_and_the_next_run_ends_the_same(raw, tmp_path, small_units, count):
    make(raw, tmp_path / "whole")
    (tmp_path / "a.model").write_bytes(tokenizer().model_bytes)
    code = KILLED.format(
        raw=str(raw), output=str(tmp_path / "out"), model=str(tmp_path / "a.model"), workers=count
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "out").glob(".build/unit-*/unit.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not is_corpus(tmp_path / "out")
    make(raw, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_building_again_finds_it_finished_and_other_options_are_refused(raw, tmp_path, monkeypatch):
    manifest = make(raw, tmp_path / "out")
    before = tree(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(units, "tokenise", lambda *args: pytest.fail("built again"))
        assert make(raw, tmp_path / "out") == manifest
        with pytest.raises(UserError, match="other input, tokenizer or options"):
            make(raw, tmp_path / "out", eval_fraction=0.2)
    assert tree(tmp_path / "out") == before


def test_an_unfinished_build_of_other_options_is_started_over(raw, tmp_path, small_units, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(build, "write_manifest", lambda *args: (_ for _ in ()).throw(Interrupt()))
        with pytest.raises(Interrupt):
            make(raw, tmp_path / "out", shard_tokens=1)
    make(raw, tmp_path / "out")
    make(raw, tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_build_killed_while_it_clears_another_leaves_nothing_to_go_on_with(
    raw, tmp_path, small_units, monkeypatch
):
    options = {"shard_tokens": 20_000}
    make(raw, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr(build, "write_manifest", lambda *args: (_ for _ in ()).throw(Interrupt()))
        with pytest.raises(Interrupt):
            make(raw, tmp_path / "out", **options)
        remove, calls = os.unlink, itertools.count()

        def killed(*args, **kwargs):
            if next(calls) == 2:
                raise Interrupt
            remove(*args, **kwargs)

        patch.setattr(build.os, "unlink", killed)
        with pytest.raises(Interrupt):
            make(raw, tmp_path / "out", shard_tokens=1)
    make(raw, tmp_path / "out", **options)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_what_a_killed_build_was_writing_is_removed(raw, tmp_path, small_units, monkeypatch):
    make(raw, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(build, "write_manifest", lambda *args: (_ for _ in ()).throw(Interrupt()))
        with pytest.raises(Interrupt):
            make(raw, tmp_path / "out")
    (tmp_path / "out" / "train-00003.0297ef03.partial").write_text("half a shard")
    make(raw, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_file_name_that_is_not_unicode_is_spelt_out(tmp_path):
    (tmp_path / "in").mkdir()
    name = os.fsdecode(b"a\xff.txt")
    try:
        (tmp_path / "in" / name).write_text("the lion")
    except OSError:
        pytest.skip("this file system has Unicode names only")
    for path in (tmp_path / "in", tmp_path / "in" / name):
        make(path, tmp_path / "out", eval_fraction=0.0)
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        assert manifest["source"]["files"][0]["name"] == "a\\xff.txt"
        assert documents(tmp_path / "out") == ["the lion"]
        shutil.rmtree(tmp_path / "out")


def test_a_full_disk_is_named_and_the_build_goes_on_when_there_is_space(
    raw, tmp_path, small_units, monkeypatch
):
    make(raw, tmp_path / "whole")
    replace, calls = os.replace, itertools.count()

    def full(*args):
        if next(calls) > 12:
            raise OSError(28, "No space left on device")
        replace(*args)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        with pytest.raises(UserError, match="the disk is full"):
            make(raw, tmp_path / "out")
    left = [name for name in tree(tmp_path / "out") if "partial" in name]
    assert left == []
    assert not is_corpus(tmp_path / "out")
    make(raw, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_two_builds_at_once_make_one_corpus(raw, tmp_path, small_units):
    make(raw, tmp_path / "whole")
    manifests = []
    threads = [
        threading.Thread(target=lambda: manifests.append(make(raw, tmp_path / "out"))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(manifests) == 3
    assert manifests[0] == manifests[1] == manifests[2]
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_building_imports_no_jax():
    code = "import sys; import jaxlm.corpus.build; print('jax' in sys.modules, 'flax' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert run.stdout == "False False\n"


def test_a_killed_worker_is_explained(raw, tmp_path, small_units, monkeypatch):
    monkeypatch.setattr(workers, "_work", _die)
    with pytest.raises(UserError, match="worker process was killed"):
        make(raw, tmp_path / "out", workers=2)


def _die(job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_progress_in_a_log_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr("jaxlm.corpus.progress.LINE_EVERY_S", 0.0)
    with Progress("tokenising books", 100) as bar:
        bar.add(50, 2_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("tokenising books: 50%, 2.0 M tokens")
    with Progress("x", 100, show=False) as bar:
        bar.add(50, 1)
    assert capsys.readouterr().err == ""


def test_a_remote_output_is_built_in_the_cache_and_uploaded_manifest_last(
    raw, tmp_path, small_units, monkeypatch
):
    make(raw, tmp_path / "whole")
    monkeypatch.setattr(build, "is_local", lambda path: "remote" not in str(path))
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path / "cache"))
    written = []
    write = build.write_manifest

    def write_manifest(folder, manifest):
        written.extend(os.listdir(folder))
        write(folder, manifest)

    monkeypatch.setattr(build, "write_manifest", write_manifest)
    make(raw, tmp_path / "remote")
    assert tree(tmp_path / "remote") == tree(tmp_path / "whole")
    assert set(written) == set(tree(tmp_path / "whole")) - {"manifest.json"}
    assert tree(tmp_path / "cache") == {}
