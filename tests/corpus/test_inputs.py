"""Promises of find_inputs beyond those of the readers: nothing is left out because it could not be looked at."""

import os

import pytest

from jaxlm.corpus.inputs import find_inputs, printable
from jaxlm.corpus.text import Tally
from jaxlm.types import UserError


@pytest.fixture
def folder(tmp_path):
    for name in ("a.txt", "open/b.txt", "locked/c.txt", "locked/deep/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("the lion")
    return tmp_path


@pytest.fixture
def lock(folder, monkeypatch):
    """Makes a path unreadable, for whoever runs the tests."""

    def lock(name):
        path = os.path.join(folder, name)
        access, scandir = os.access, os.scandir

        def no_access(where, mode):
            return os.path.normpath(where) != path and access(where, mode)

        def no_scandir(where="."):
            if os.path.normpath(where) == path:
                raise PermissionError(13, "Permission denied", os.fspath(where))
            return scandir(where)

        monkeypatch.setattr(os, "access", no_access)
        monkeypatch.setattr(os, "scandir", no_scandir)

    return lock


@pytest.mark.parametrize("path", ["", "**/*.txt", "*/*.txt", "*/deep/*.txt", "locked/*.txt", "locked"])
def test_a_folder_that_may_not_be_read_is_named(folder, lock, path):
    lock("locked")
    with pytest.raises(
        UserError, match=r"/locked/? cannot be read \(Permission denied\): allow it, or remove"
    ):
        find_inputs([os.path.join(folder, path)], Tally())


@pytest.mark.parametrize("path", ["*.txt", "open", "op*/*.txt"])
def test_a_folder_that_is_not_asked_for_may_be_locked(folder, lock, path):
    lock("locked")
    assert len(find_inputs([os.path.join(folder, path)], Tally())) == 1


@pytest.mark.parametrize("path", ["", "*.txt", "a.txt"])
def test_a_file_that_may_not_be_read_is_named_before_anything_is_read(folder, lock, path):
    lock("a.txt")
    with pytest.raises(UserError, match=r"a\.txt cannot be read \(Permission denied\): allow it, or remove"):
        find_inputs([os.path.join(folder, path)], Tally())


def test_a_path_below_a_folder_that_may_not_be_searched_is_not_called_missing(folder, monkeypatch):
    stat = os.stat

    def no_stat(path, **options):
        if os.fspath(path).startswith(os.path.join(folder, "locked", "")):
            raise PermissionError(13, "Permission denied", path)
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", no_stat)
    with pytest.raises(UserError, match=r"c\.txt cannot be read \(Permission denied\)"):
        find_inputs([str(folder / "locked" / "c.txt")], Tally())


def test_a_link_to_nothing_is_called_that(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "ring.txt").symlink_to(tmp_path / "ring.txt")
    for name in ("a.txt", "ring.txt"):
        with pytest.raises(UserError, match=f"{name} is a link to nothing"):
            find_inputs([str(tmp_path / name)], Tally())


def test_the_home_folder_is_not_expanded_and_that_is_said():
    with pytest.raises(UserError, match=r"^~/no-such\.txt does not exist \(~ is a matter of the shell"):
        find_inputs(["~/no-such.txt"], Tally())


@pytest.mark.parametrize("path", ["train-00000.arrayrecord", "*.arrayrecord"])
def test_the_tokens_of_a_corpus_are_not_taken_for_text(tmp_path, path):
    (tmp_path / "train-00000.arrayrecord").write_text("tokens")
    (tmp_path / "manifest.json").write_text('{"tokenizer_sha256": "x"}')
    with pytest.raises(UserError, match="is a corpus of tokens already"):
        find_inputs([str(tmp_path / path)], Tally())


def test_a_name_is_printed_on_one_line():
    assert printable("a\nb\x1b[31m\x7f.txt") == "a\\x0ab\\x1b[31m\\x7f.txt"
    assert printable("ক্‌ষ é.txt") == "ক্‌ষ é.txt"
