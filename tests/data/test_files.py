"""Promises of files.py: what a user names is read or refused in one line; nothing but a file is ever replaced."""

import os
import threading

import pytest

from jaxlm.data import files
from jaxlm.types import UserError


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist: give a list."),
        ("folder", "is a folder: give a list in it."),
        ("null", "is no file but a pipe or device: give a list."),
        ("ring", r"cannot be read \(Too many levels of symbolic links\): give a list."),
        ("missing/inner", "does not exist: give a list."),
        ("file/inner", r"cannot be read \(Not a directory\): give a list."),
    ],
)
def test_what_cannot_be_read_is_named_without_waiting(tmp_path, kind, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    (tmp_path / "null").symlink_to("/dev/null")  # a pipe would keep a broken reader waiting
    with pytest.raises(UserError, match=f"^{tmp_path}/{kind} {message}$"):
        files.read_file(tmp_path / kind, "a list")


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "null"):
        with pytest.raises(UserError, match=f"{name} is no file but a pipe or device: choose another place"):
            files.write_atomic(tmp_path / name, b"x")
    assert sorted(os.listdir(tmp_path)) == ["null", "pipe"]
    assert files.is_pipe(tmp_path / "pipe")


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file is a file, and has to be a folder: choose another path"):
        files.make_folder(tmp_path / "file")


def test_a_lock_is_had_though_its_last_holder_took_the_folder_away(tmp_path):
    """As a refused build does, while another one waits for it."""
    path = tmp_path / "out" / ".lock"
    got = threading.Event()

    def wait():
        with files.exclusive(path):
            got.set()

    path.parent.mkdir()
    with files.exclusive(path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not got.wait(0.2)
        path.unlink()
        path.parent.rmdir()
    waiting.join(10)
    assert got.is_set()
    assert list(path.parent.iterdir()) == []
