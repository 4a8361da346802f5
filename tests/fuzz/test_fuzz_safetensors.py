"""Safetensors files and their index from anybody."""

import json
import math

import numpy as np
import pytest
from hostile import NAMES, VALUES, child, damaged_bytes, damaged_json, dumps, fuzz, refused
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.interop.safetensors import INDEX_FILE, Spec, TensorFile, Tensors, write_folder
from jaxlm.types import UserError

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.weight": np.ones((4,), np.int8),
    "empty": np.zeros((0, 3), np.float32),
}


def good(folder, **options):
    specs = {name: Spec(array.dtype, array.shape) for name, array in ARRAYS.items()}
    write_folder(folder, specs, ARRAYS.__getitem__, **options)
    return folder


def read_all_of(tensors):
    for name, spec in tensors.specs.items():
        found = tensors.read(name)
        assert (found.dtype, found.shape) == (spec.dtype, spec.shape)
        assert math.prod(found.shape) < 1000
        tensors.forget(name)


def split(content):
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header, data, length=None):
    text = dumps(header)
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return (good(tmp_path_factory.mktemp("good")) / "model.safetensors").read_bytes()


def test_a_file_with_a_header_of_any_values_is_read_or_refused(content, tmp_path):
    header, data = split(content)
    path = tmp_path / "model.safetensors"

    @fuzz(200)
    @given(value=damaged_json(header), rest=st.just(data) | damaged_bytes(data))
    def check(value, rest):
        path.write_bytes(join(value, rest))
        with refused():
            read_all_of(TensorFile(path))

    check()


def test_a_file_with_any_bytes_damaged_is_read_or_refused(content, tmp_path):
    path = tmp_path / "model.safetensors"

    @fuzz(200)
    @given(damaged=damaged_bytes(content))
    def check(damaged):
        path.write_bytes(damaged)
        with refused():
            read_all_of(Tensors(tmp_path))

    check()


def test_an_index_of_any_values_is_read_or_refused_and_leads_nowhere(tmp_path):
    good(tmp_path, max_shard_bytes=20)
    index = tmp_path / INDEX_FILE
    base = json.loads(index.read_bytes())

    @fuzz(150)
    @given(
        value=damaged_json(base)
        | st.builds(lambda n: {"weight_map": {"a": n}}, st.sampled_from(NAMES) | VALUES)
    )
    def check(value):
        index.write_bytes(dumps(value))
        with refused():
            tensors = Tensors(tmp_path)
            assert all(file.path.parent == tmp_path for file in tensors._file_of.values())
            read_all_of(tensors)

    check()


def huge(kind):
    """Headers of some 100 MB, the most that is read, and of more."""
    if kind == "lists":
        return b'{"a":[' + b"[]," * 30_000_000 + b"[]]}"
    if kind == "names":
        return b"{" + b",".join(b'"%d":{}' % i for i in range(4_000_000)) + b"}"
    if kind == "brackets":
        return b"[" * 90_000_000
    return b" " * 100_000_001


@pytest.mark.parametrize("kind", ["lists", "names", "brackets", "blanks"])
def test_a_huge_header_is_refused_in_bounded_memory(kind, tmp_path):
    path = tmp_path / "model.safetensors"
    text = huge(kind)
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    code, output = child(
        f"""
        from jaxlm.interop.safetensors import TensorFile
        try:
            TensorFile({str(path)!r})
        except UserError as error:
            print("refused:", error)
        """,
        memory_mb=2000,
    )
    assert code == 0, output[-1000:]
    assert "refused:" in output


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 0, 1, 10**8])
def test_a_header_of_another_length_is_refused(length, content, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + content[8:])
    with pytest.raises(UserError, match="is damaged or no safetensors file"):
        TensorFile(path)
