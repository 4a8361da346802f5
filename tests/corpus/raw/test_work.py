"""Units of work: which files are read together, and folders that are whole or not there."""

import errno
import os

import pytest

from jaxlm.corpus.raw.config import CorpusConfig
from jaxlm.corpus.raw.files import RawFile
from jaxlm.corpus.raw.work import keep_only, made_aside, plan_units, result_of, write_result
from jaxlm.types import UserError

CONFIG = CorpusConfig(unit_mib=1)


def small_files(names, stamp="1"):
    return [RawFile(f"/in/{name}", name, "text", "", 40_000, stamp) for name in sorted(names)]


def plan(files, rules="rules"):
    return plan_units(CONFIG, "books", files, rules)


NAMES = [f"pg{number}.txt" for number in range(400)]


def test_small_files_are_gathered_and_each_is_read_once():
    units = plan(small_files(NAMES))
    assert [part.file.name for unit in units for part in unit.parts] == sorted(NAMES)
    assert 8 < len(units) < 40  # 16 MB in units of about one
    assert max(unit.num_bytes for unit in units) <= (4 << 20) + 40_000


@pytest.mark.parametrize("new", ["a.txt", "pg2000.txt", "zz.txt"])
def test_one_new_small_file_changes_one_group(new):
    before, after = plan(small_files(NAMES)), plan(small_files([*NAMES, new]))
    changed = {unit.key for unit in after} - {unit.key for unit in before}
    gone = {unit.key for unit in before} - {unit.key for unit in after}
    assert 1 <= len(changed) <= 2  # 2 where it ends a group itself
    assert len(gone) <= 1


def test_a_key_has_all_that_decides_the_content():
    (one,) = plan(small_files(["a.txt"]))
    assert plan(small_files(["a.txt"]))[0].key == one.key
    others = [
        plan(small_files(["b.txt"])),
        plan(small_files(["a.txt"], stamp="2")),
        plan(small_files(["a.txt"]), "other rules"),
        plan_units(CONFIG, "essays", small_files(["a.txt"]), "rules"),
        plan([RawFile("/in/a.txt", "a.txt", "text", "", 40_001, "1")]),
    ]
    assert len({one.key, *(units[0].key for units in others)}) == 6
    moved = plan([RawFile("/elsewhere/a.txt", "a.txt", "text", "", 40_000, "1")])
    assert moved[0].key == one.key


def test_a_folder_is_there_when_it_is_whole(tmp_path):
    folder = str(tmp_path / "unit")

    def interrupted():
        with made_aside(folder) as aside:
            write_result(aside, {"n": 1})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []
    with made_aside(folder) as aside:
        assert not os.path.exists(folder)
        write_result(aside, {"n": 1})
    assert result_of(folder) == {"n": 1}
    assert os.listdir(tmp_path) == ["unit"]


def test_of_two_tasks_that_do_the_same_the_first_one_stays(tmp_path):
    folder = str(tmp_path / "unit")
    with made_aside(folder) as slow:
        with made_aside(folder) as fast:
            write_result(fast, {"n": "fast"})
        write_result(slow, {"n": "slow"})
    assert result_of(folder) == {"n": "fast"}
    assert os.listdir(tmp_path) == ["unit"]


def test_what_a_killed_task_left_is_replaced(tmp_path):
    (tmp_path / "unit").mkdir()
    (tmp_path / "unit" / "half").write_text("x")
    with made_aside(str(tmp_path / "unit")) as aside:
        write_result(aside, {"n": 1})
    assert os.listdir(tmp_path / "unit") == ["unit.json"]


@pytest.mark.parametrize(
    ("code", "said"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "not allowed to write here")]
)
def test_a_disk_that_takes_nothing_is_a_line_and_leaves_nothing(tmp_path, code, said):
    with pytest.raises(UserError, match=said), made_aside(str(tmp_path / "unit")):
        raise OSError(code, os.strerror(code))
    assert os.listdir(tmp_path) == []


def test_only_what_is_named_is_kept(tmp_path):
    for name in ("a", "b", "b.1234.partial"):
        (tmp_path / name).mkdir()
    keep_only(str(tmp_path), {"a", "none"})
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_below_a_named_folder_is_watched(tmp_path):
    from jaxlm.corpus.raw.pipeline import _stamp

    (tmp_path / "lists" / "old").mkdir(parents=True)
    (tmp_path / "lists" / "old" / "a.jsonl").write_text('{"url": "a.org"}\n')
    before = _stamp(str(tmp_path / "lists"))
    assert _stamp(str(tmp_path / "lists")) == before
    (tmp_path / "lists" / "old" / "a.jsonl").write_text('{"url": "a.org/b"}\n')
    assert _stamp(str(tmp_path / "lists")) != before
