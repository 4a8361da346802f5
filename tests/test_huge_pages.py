"""Memory in huge pages: asked for where it helps, once, and nothing else of the environment touched."""

import os
import sys

import pytest

from jaxlm import huge_pages
from jaxlm.cli import main as cli
from jaxlm.huge_pages import TUNABLES, environment

ON_REQUEST = "always [madvise] never"


def test_the_tunable_is_added_to_what_the_user_has_set():
    assert environment({"A": "b"}, mode=ON_REQUEST, libc="glibc 2.36") == {
        "A": "b",
        TUNABLES: "glibc.malloc.hugetlb=1",
    }
    mine = {TUNABLES: "glibc.malloc.check=1"}
    assert environment(mine, mode=ON_REQUEST, libc="glibc 2.36") == {
        TUNABLES: "glibc.malloc.check=1:glibc.malloc.hugetlb=1"
    }


@pytest.mark.parametrize(
    ("env", "mode", "libc"),
    [
        ({TUNABLES: "glibc.malloc.hugetlb=0"}, ON_REQUEST, "glibc 2.36"),  # the user's choice
        ({}, "[always] madvise never", "glibc 2.36"),
        ({}, "always madvise [never]", "glibc 2.36"),
        ({}, ON_REQUEST, "glibc 2.31"),
        ({}, ON_REQUEST, "musl 1.2"),
        ({}, ON_REQUEST, ""),
    ],
)
def test_nothing_is_started_again_where_it_would_not_help(env, mode, libc):
    assert environment(env, mode=mode, libc=libc) is None


@pytest.fixture
def replaced(monkeypatch, tmp_path):
    """What the process would be replaced by."""
    calls = []
    (tmp_path / "enabled").write_text(ON_REQUEST)
    monkeypatch.setattr(huge_pages, "_MODE", tmp_path / "enabled")
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "jaxlm", "train", "--nope"])
    monkeypatch.setattr(sys, "argv", ["jaxlm", "train", "--nope"])
    monkeypatch.delenv(TUNABLES, raising=False)
    return calls


def test_train_starts_again_with_its_own_command_line_once(replaced, monkeypatch, capsys):
    cli.start()
    [(program, argv, env)] = replaced
    assert program == sys.executable
    assert argv == ["python", "-m", "jaxlm", "train", "--nope"]
    monkeypatch.setenv(TUNABLES, env[TUNABLES])
    assert cli.start() == 2
    assert len(replaced) == 1
    assert "Unknown flag --nope" in capsys.readouterr().err


def test_other_commands_and_kernels_without_huge_pages_go_on_as_they_are(
    replaced, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(sys, "argv", ["jaxlm", "--version"])
    assert cli.start() == 0
    monkeypatch.setattr(sys, "argv", ["jaxlm", "train", "--nope"])
    monkeypatch.setattr(huge_pages, "_MODE", tmp_path / "none")
    assert cli.start() == 2
    assert not replaced
