"""Promises of a build that is refused: its reason and place in one line, and nothing left behind for nothing."""

import json
import os
import shutil

import pytest
from corpora import TOPICS, documents, make, tree

from jaxlm.corpus import build, inputs, units
from jaxlm.data import files
from jaxlm.data.manifest import is_corpus
from jaxlm.types import UserError


def test_a_file_that_changes_while_it_is_read_is_named_and_nothing_is_kept_of_it(tmp_path, monkeypatch):
    path = tmp_path / "in" / "a.jsonl"
    path.parent.mkdir()
    before = "".join(json.dumps({"text": text}) + "\n" for text in TOPICS[:5])
    path.write_text(before)
    tokenise = units.tokenise

    def meanwhile(*args):
        with open(path, "a") as file:
            file.write('{"text": "more"}\n')
        return tokenise(*args)

    with monkeypatch.context() as patch:
        patch.setattr(units, "tokenise", meanwhile)
        with pytest.raises(UserError, match=r"a\.jsonl changed while it was read"):
            make(path, tmp_path / "out", eval_fraction=0.0)
    assert not is_corpus(tmp_path / "out")
    path.write_text(before)  # back to what the units of the refused build were planned for
    done = []
    monkeypatch.setattr(units, "tokenise", lambda *args: done.append(args) or tokenise(*args))
    make(path, tmp_path / "out", eval_fraction=0.0)
    assert done
    assert documents(tmp_path / "out") == list(TOPICS[:5])


def test_a_file_that_disappears_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("the lion")
    monkeypatch.setattr(build, "plan_units", lambda *args: os.unlink(tmp_path / "a.txt") or plan(*args))
    plan = inputs.plan_units
    with pytest.raises(UserError, match=r"a\.txt: No such file"):
        make(tmp_path / "a.txt", tmp_path / "out", eval_fraction=0.0)


def test_an_output_inside_its_input_is_refused(raw, tmp_path):
    before = tree(raw)
    (tmp_path / "link").symlink_to(raw, target_is_directory=True)
    for output in (raw / "out", raw / "deep" / "out", tmp_path / "link" / "out"):
        with pytest.raises(UserError, match="lies inside the input"):
            make(raw, output)
    assert tree(raw) == before
    make(raw, tmp_path / f"{raw.name}-tokens")


def test_a_file_larger_than_allowed_is_named(raw, tmp_path, monkeypatch):
    def too_large(*args):
        raise OSError(27, "File too large")

    monkeypatch.setattr(files.os, "fsync", too_large)
    with pytest.raises(UserError, match="a file grew larger than this disk or account allows"):
        make(raw, tmp_path / "out")


def test_a_folder_with_other_files_is_left_alone(raw, tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="thesis.txt is in it"):
        make(raw, tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_bad_row_stops_the_build_with_its_place_and_no_corpus(tmp_path, small_units, count):
    folder = tmp_path / "in"
    folder.mkdir()
    rows = [json.dumps({"text": text}) for text in TOPICS[:30]]
    (folder / "a.jsonl").write_text("\n".join([*rows, '{"body": "x"}', *rows]))
    for fraction in (0.0, 0.1):
        with pytest.raises(UserError, match=r"a\.jsonl:31: no key 'text'") as caught:
            make(folder, tmp_path / "out", workers=count, eval_fraction=fraction)
        assert "\n" not in str(caught.value)
        assert not is_corpus(tmp_path / "out")


def test_an_input_without_a_document_is_an_error_that_says_what_was_dropped(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("")
    (tmp_path / "in" / "b.txt").write_text(" \n")
    for fraction in (0.0, 0.1):
        with pytest.raises(UserError, match=r"holds no document.*1 empty, 1 empty_file"):
            make(tmp_path / "in", tmp_path / "out", eval_fraction=fraction)
    assert not is_corpus(tmp_path / "out")


def test_a_folder_that_may_not_be_written_to_is_named(raw, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be a folder|not allowed"):
        make(raw, tmp_path / "file" / "out")


def test_a_refused_build_leaves_nothing_behind(tmp_path, small_units):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.jsonl"
    bad = '{"body": "x"}\n'
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TOPICS[:30])
    cases = {
        "while planning the split": (bad + rows, {"eval_fraction": 0.1}, "no key 'text'"),
        "in the first unit": (bad + rows, {"eval_fraction": 0.0}, "no key 'text'"),
        "when all is read": ('{"text": null}\n', {}, "holds no document"),
        "before any work": (rows, {"workers": 0}, "workers=0 must be at least 1"),
    }
    for when, (content, options, message) in cases.items():
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            make(path, tmp_path / "new" / "out", **options)
        assert os.listdir(tmp_path) == ["in"], when
        (tmp_path / "out").mkdir()  # a folder that was there stays
        with pytest.raises(UserError, match=message):
            make(path, tmp_path / "out", **options)
        assert os.listdir(tmp_path / "out") == [], when
        (tmp_path / "out").rmdir()


def test_a_refused_build_keeps_finished_units_and_those_of_others(tmp_path, small_units, monkeypatch):
    path = tmp_path / "a.jsonl"
    rows = [json.dumps({"text": text}) + "\n" for text in TOPICS[:30]]
    path.write_text("".join([*rows, '{"body": "x"}\n']))
    with pytest.raises(UserError, match="no key 'text'"):
        make(path, tmp_path / "out", eval_fraction=0.0)
    kept = tree(tmp_path / "out")
    assert sum(name.endswith("unit.json") for name in kept) >= 2
    other = tmp_path / "b.jsonl"
    other.write_text('{"body": "x"}\n')
    with pytest.raises(UserError, match="no key 'text'"):
        make(other, tmp_path / "out")  # refused while planning: what is there is not yet touched
    assert tree(tmp_path / "out") == kept
    monkeypatch.setattr(units, "tokenise", lambda *args: pytest.fail("built again"))
    with pytest.raises(pytest.fail.Exception):  # only the last unit is left to do
        make(path, tmp_path / "out", eval_fraction=0.0)
    assert tree(tmp_path / "out") == kept


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_plan_or_unit_is_made_again(tmp_path, monkeypatch, content):
    (tmp_path / "a.jsonl").write_text('{"text": "the lion"}\n')
    options = {"eval_fraction": 0.0}
    make(tmp_path / "a.jsonl", tmp_path / "whole", **options)
    for name in ("plan.json", "unit-000000/unit.json"):
        with monkeypatch.context() as patch:
            patch.setattr(build, "write_manifest", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                make(tmp_path / "a.jsonl", tmp_path / "out", **options)
        (tmp_path / "out" / ".build" / name).write_text(content)
        make(tmp_path / "a.jsonl", tmp_path / "out", **options)
        assert tree(tmp_path / "out") == tree(tmp_path / "whole")
        shutil.rmtree(tmp_path / "out")
