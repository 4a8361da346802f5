"""Promises of the resumable output: whole chunks are kept, another setting begins anew, nothing is overwritten."""

import json

import pytest

from jaxlm.infer.resumable import resumable
from jaxlm.types import UserError


def write(path, numbers, settings=None, *, die_after=None, torn=b"", chunk=2):
    """Writes {"n": number} in chunks; returns how many were there already."""
    with resumable(path, settings or {"seed": 1}, chunk) as output:
        for first in range(len(output.done), len(numbers), chunk):
            if die_after is not None and first >= die_after:
                output._file.write(torn)
                raise KeyboardInterrupt
            output.write([{"n": n} for n in numbers[first : first + chunk]])
        return len(output.done)


@pytest.mark.parametrize("torn", [b"", b'{"n": 4', b'{"n": 4}\n', b'{"n": 4}\n{"n"'])
def test_after_a_kill_whole_chunks_are_kept_and_the_file_is_the_same(tmp_path, torn):
    numbers = list(range(7))
    write(tmp_path / "whole", numbers)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "killed", numbers, die_after=4, torn=torn)
    assert not (tmp_path / "killed").exists()
    assert write(tmp_path / "killed", numbers) == 4
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert [json.loads(line)["n"] for line in (tmp_path / "killed").open()] == numbers
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "killed"}


def test_other_settings_begin_anew(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", list(range(7)), die_after=4)
    assert write(tmp_path / "out", list(range(7)), {"seed": 2}) == 0


def test_what_exists_is_not_overwritten_and_two_do_not_write_at_once(tmp_path):
    write(tmp_path / "out", [1])
    with pytest.raises(UserError, match=r"out exists: it is complete"):
        write(tmp_path / "out", [1])
    with resumable(tmp_path / "two", {}) as output:
        with pytest.raises(UserError, match="by another process"), resumable(tmp_path / "two", {}):
            pass
        output.write([{"n": 1}])
    assert (tmp_path / "two").read_text() == '{"n": 1}\n'
    with pytest.raises(UserError, match="cannot be written"), resumable(tmp_path / "no" / "x", {}):
        pass
