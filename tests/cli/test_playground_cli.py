"""Promises of `jaxlm playground`: which checkpoints, who is let in, and one line for each mistake."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from small_classifier import make_run

from jaxlm.cli import playground as cli
from jaxlm.playground import serve
from jaxlm.types import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the runs `lion` and `labels`, and `empty`, a run without a checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "lion", None, objective="pretrain", num_layers=1)
    make_run(folder / "labels")
    shutil.copytree(folder / "lion", folder / "empty", ignore=shutil.ignore_patterns("checkpoints"))
    return folder


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--run=RUNS/loin"],
            "--run=RUNS/loin holds no run: there is no such folder. Did you mean RUNS/lion?",
        ),
        (["--run=RUNS/nothing_like_it"], "There are runs in RUNS: empty, labels, lion."),
        (["--run=RUNS/empty"], "has no checkpoint yet"),
        (["--run=RUNS/lion", "--step=9"], "9"),
        (["--run=RUNS/lion", "--run=RUNS/lion"], "is given twice"),
        (["--run=RUNS/lion", "--step=3", "--step=3"], "is given twice"),
        (["--run=RUNS/lion", "--run=RUNS/labels", "--step=1"], "1 times --step for 2 runs"),
        (["--run=RUNS/lion"] * 3, "3 times --run"),
        (
            ["--run=RUNS/lion", "--run=RUNS/labels"],
            "RUNS/labels is a classifier and --run=RUNS/lion a language model",
        ),
        (["--run=RUNS/lion", "--port=70000"], "--port=70000 must be from 0"),
        (["--run=RUNS/lion", "--host=no.such.host.example"], "--host=no.such.host.example is no name"),
        (["--run=RUNS/lion", "--host=192.0.2.1"], "cannot be used"),
        (["--run=RUNS/lion", "--ports=1"], "did you mean --port?"),
        (["--run=RUNS/lion", "--config.seed=1"], "playground takes its config from --run"),
    ],
)
def test_a_mistake_is_one_line(jaxlm, folder, monkeypatch, flags, words):
    def unknown(host, *args, **options):
        if host == "no.such.host.example":
            raise socket.gaierror(-2, "Name or service not known")
        return getaddrinfo(host, *args, **options)

    getaddrinfo = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    flags = [flag.replace("RUNS", str(folder)) for flag in ["--port=0", *flags]]
    code, _, err = jaxlm("playground", *flags)
    assert code == 2
    assert words.replace("RUNS", str(folder)) in err
    assert len(err.splitlines()) == 1


def test_a_port_in_use_is_said_before_anything_is_loaded(jaxlm, folder):
    with serve.bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        code, out, err = jaxlm("playground", f"--run={folder / 'lion'}", f"--port={port}")
    assert (code, out) == (2, "")
    assert (
        f"--port={port} on 127.0.0.1 cannot be used: address already in use. Choose another, or --port=0"
        in err
    )


def test_a_missing_extra_is_named(jaxlm, folder, monkeypatch):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else name)
    code, _, err = jaxlm("playground", f"--run={folder / 'lion'}")
    assert (code, err) == (
        2,
        "jaxlm: error: playground needs starlette and uvicorn: pip install 'jaxlm[playground]'.\n",
    )


def test_steps_belong_to_runs_in_their_order():
    assert cli.checkpoints_of(["a"], None) == [("a", None)]
    assert cli.checkpoints_of(["a"], [1, 2]) == [("a", 1), ("a", 2)]
    assert cli.checkpoints_of(["a", "b"], [1, 2]) == [("a", 1), ("b", 2)]
    assert cli.checkpoints_of(["a", "b"], None) == [("a", None), ("b", None)]
    with pytest.raises(UserError, match="is given twice"):
        cli.checkpoints_of(["a", "./a/"], None)


def test_an_address_beyond_this_machine_has_a_token_and_a_warning(jaxlm, folder, monkeypatch):
    asked = []
    monkeypatch.setattr(serve, "is_loopback", lambda sock: False)
    monkeypatch.setattr(
        serve, "CLOSING_S", 60.0
    )  # else this process would end, in the middle of a compilation
    monkeypatch.setattr(serve, "serve", lambda app, sock: asked.append(app._token))
    code, out, err = jaxlm("playground", f"--run={folder / 'lion'}", "--port=0")
    assert code == 0
    [token] = asked
    assert len(token) >= 32
    assert out.splitlines()[-1].endswith(f"/?token={token}  (Ctrl-C ends)")
    assert err.startswith("jaxlm: warning: --host=127.0.0.1 lets other machines use these models")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(("host", "loopback"), [("127.0.0.1", True), ("localhost", True)])
def test_this_machine_needs_no_token(host, loopback):
    with serve.bind(host, 0) as sock:
        assert serve.is_loopback(sock) is loopback
        assert serve.address_of(sock, None) in (
            f"http://{h}:{sock.getsockname()[1]}/" for h in ("127.0.0.1", "[::1]")
        )


def test_ctrl_c_ends_the_server_at_once_without_a_traceback(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxlm", "playground", f"--run={folder / 'lion'}", "--port=0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = []
        while not lines or not lines[-1].startswith("playground: "):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        url = lines[-1].split()[1]
        with urllib.request.urlopen(url, timeout=60) as page:
            assert b"jaxlm playground" in page.read()
        process.send_signal(signal.SIGINT)  # the model is still compiling
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert err == "jaxlm: interrupted.\n"
    finally:
        process.kill()
