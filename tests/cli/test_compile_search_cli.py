"""Promises of `jaxlm compile --search`: mistakes answer at once, and a search that is stopped goes on."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from jaxlm.cli import compile as command

SMALL = (
    "--config=quickstart", "--config.model.num_layers=1", "--config.model.embed_dim=64", "--config.model.num_heads=2",
    "--config.tokenizer.vocab_size=512", "--config.data.seq_len=64",
)  # fmt: skip
SEARCH = (*SMALL, "--topology=cpu:2", "--search")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--topology=cpu:2", "--search-rows=2"), "--search-rows is a flag of --search"),
        (("--topology=cpu:2", "--num-processes=2"), "--num-processes is a flag of --search"),
        (("--topology=cpu:2", "--search-margin=0"), "--search-margin is a flag of --search"),
        ((*SEARCH, "--hlo=x"), "--hlo would be ignored by --search"),
        ((*SEARCH, "--commitment=3-year"), "--commitment would be ignored by --search"),
        ((*SEARCH, "--search-rows="), "--search-rows= must be rows of a device at a time"),
        ((*SEARCH, "--search-remat=fullx"), "did you mean 'full'?"),
        ((*SEARCH, "--search-mesh=fsdp:4"), "does not fill 2 devices"),
        ((*SEARCH, "--config.model.num_kv_heads=1", "--search-mesh=tensor:2"),
         "--search-mesh=tensor:2: model.num_kv_heads=1 must be a multiple of mesh.tensor=2"),
        ((*SEARCH, "--search-blocks=100x100x100"), "100 must be a multiple of 128"),
        ((*SEARCH, "--config.model.attention=dense", "--search-blocks=128x128x128"), "has nothing to try"),
        ((*SEARCH, "--search-trials=0"), "--search-trials=0 must be at least 1"),
        ((*SEARCH, "--num-processes=0"), "--num-processes=0 must be at least 1"),
        ((*SEARCH, "--search-margin=-0.1"), "--search-margin=-0.1 must be in [0, 10)"),
        ((*SEARCH, "--search-dir=/dev/null/none"), "--search-dir=/dev/null/none cannot be written"),
        ((*SEARCH, "--search-batch"), "did you mean --search-"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_compiled(jaxlm, monkeypatch, flags, said):
    monkeypatch.setattr(subprocess, "Popen", None)
    flags = flags if flags[0].startswith("--config") else (*SMALL, *flags)
    code, out, err = jaxlm("compile", *flags)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_search_ends_with_the_command_of_the_best_trial_and_takes_it_again(jaxlm, tmp_path):
    flags = [
        *SEARCH,
        "--search-rows=2",
        "--search-remat=full",
        "--search-mesh=fsdp:2",
        f"--search-dir={tmp_path}",
    ]
    code, out, err = jaxlm("compile", *flags)
    assert code == 0
    assert re.search(
        r"^1/1 rows 2, remat full, mesh fsdp:2: .* of its FLOPs are the model's \(\d+ s\)$", err, re.M
    )
    assert max(map(len, out.splitlines()[:-1])) <= 100
    best = out.splitlines()[-1]
    assert best.startswith(f"best: jaxlm compile {shlex.join(SMALL)} --config.data.global_batch_size=4 ")
    assert best.endswith("--config.mesh.tensor=1 --topology=cpu:2")

    code, out, err = jaxlm("compile", *flags, "--json")
    found = json.loads(out)
    assert (code, err.splitlines()[1].endswith("(kept)")) == (0, True)
    assert [one["is_new"] for one in found["fitting"]] == [False]
    assert best == f"best: {shlex.join(found['best'])}"


def test_a_search_that_is_stopped_says_how_to_go_on_and_does(tmp_path):
    """One trial fails at once, the other takes for ever, until it is asked for again."""
    fake = fake_compiler(tmp_path, f'case "$*" in *batch_size=2*) test -e {tmp_path}/fast || sleep 99;; esac')
    flags = [*SEARCH, "--search-rows=1,2", "--search-remat=full", "--search-mesh=fsdp:2", "--num-processes=2"]
    code = (
        f"import sys; from jaxlm.cli.main import main; sys.executable = {os.fspath(fake)!r}; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "compile", *flags, f"--search-dir={tmp_path}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == (
        f"jaxlm: interrupted. 1 of 2 trials are done, and kept in {tmp_path}: the same command goes on from there."
    )
    (tmp_path / "fast").touch()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 4
    said = done.stderr.splitlines()
    assert (said[1].endswith("(kept)"), said[2].endswith(" s)")) == (True, True)
    assert "2 trials, 1 of them compiled now" in done.stdout


def test_trials_beyond_the_most_promising_are_named(jaxlm, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "check_libtpu", lambda: None)
    monkeypatch.setattr(
        sys, "executable", os.fspath(fake_compiler(tmp_path))
    )  # which says what it was asked to compile
    flags = [
        *SMALL,
        "--topology=v5e:2x4",
        "--search",
        "--search-trials=3",
        f"--search-dir={tmp_path / 'kept'}",
    ]
    code, out, err = jaxlm("compile", *flags, "--json")
    found = json.loads(out)
    assert code == 4
    assert len(found["failed"]) == 3
    assert len({one["error"] for one in found["failed"]}) == 3
    for one in found["failed"]:
        assert f"--config.model.remat={one['remat']} " in one["error"]
        assert f"--config.data.global_batch_size={one['global_batch_size']} " in one["error"]
        assert one["error"].endswith("--topology=v5e:2x4 --json")
    assert {one["why"] for one in found["not_compiled"]} >= {"beyond --search-trials=3"}
    assert f"3 trials to compile, {len(found['not_compiled'])} left out" in err


def fake_compiler(folder, first=""):
    """In place of Python: fails, with its arguments for an error. first: lines of shell."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nshift 2\n{first}\necho "jaxlm: error: $*" >&2\nexit 2\n')
    path.chmod(0o755)
    return path


def test_blocks_of_attention_are_those_that_are_compiled_for_a_tpu(tmp_path):
    """In a process of its own, since this one may have no TPU compiler loaded beside others."""
    pytest.importorskip("libtpu")
    flags = [
        *SMALL,
        "--config.model.head_dim=128",
        "--config.data.seq_len=256",
        "--topology=v5e:2x2",
        "--json",
    ]
    flags += [
        "--search",
        "--search-rows=1",
        "--search-remat=full",
        "--search-mesh=fsdp:4",
        f"--search-dir={tmp_path}",
    ]
    argv = [sys.executable, "-m", "jaxlm", "compile", *flags, "--search-blocks=256x128x128"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (one,) = json.loads(done.stdout)["fitting"]
    assert one["kernels"] == {"attention": "flash", "attention blocks": "256,128,128"}
    assert one["attention_blocks"] == "256,128,128"
    assert [speed["basis"] for speed in one["speeds"]] == ["roofline", "hybrid", "cycles"]
    assert one["fits"]
