"""Promises of the safetensors reader and writer: bits as the reference has them, and no damage goes unnoticed."""

import contextlib
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import numpy as reference

from jaxlm.interop import safetensors
from jaxlm.interop.safetensors import DTYPES, INDEX_FILE, NAMES, SINGLE_FILE, Spec, TensorFile, Tensors
from jaxlm.types import UserError

BEYOND_NUMPY = ("BF16", "F8_E4M3", "F8_E5M2")
"""The reference's bindings for numpy write these from their raw bytes only."""


def arrays(dtype="F32"):
    """Tensors of every rank, one of them empty, with random bits; their names are not in alphabetical order."""
    rng = np.random.default_rng(0)
    shapes = {"z": (3, 5), "a.weight": (2, 3, 4), "scalar": (), "empty": (0, 7), "b": (1,)}
    size = DTYPES[dtype].itemsize
    made = {}
    for name, shape in shapes.items():
        bits = rng.integers(0, 2 if dtype == "BOOL" else 256, (*shape, size), np.uint8)
        made[name] = bits.reshape(-1).view(DTYPES[dtype]).reshape(shape)
    return made


def write(folder, made, **options):
    specs = {name: Spec(array.dtype, array.shape) for name, array in made.items()}
    return safetensors.write_folder(folder, specs, made.__getitem__, **options)


def raw(header, data=b""):
    """A file with this header, an object or bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def same(found, wanted):
    return found.dtype == wanted.dtype and found.shape == wanted.shape and found.tobytes() == wanted.tobytes()


# What is written is what is read, by us and by the reference.


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_reads_what_is_written(dtype, tmp_path):
    made = arrays(dtype)
    write(tmp_path, made)
    if dtype in BEYOND_NUMPY:
        import safetensors as package

        content = (tmp_path / SINGLE_FILE).read_bytes()
        found = {
            name: np.frombuffer(bytes(parts["data"]), DTYPES[dtype]).reshape(parts["shape"])
            for name, parts in package.deserialize(content)
            if parts["dtype"] == dtype
        }
    else:
        found = reference.load_file(tmp_path / SINGLE_FILE)
    assert found.keys() == made.keys()
    assert all(same(found[name], made[name]) for name in made)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_the_reference_writes_is_read(dtype, tmp_path):
    made = arrays(dtype)
    if dtype in BEYOND_NUMPY:  # as integers; then the header gets the dtype's name
        bits = {name: array.view(f"u{array.itemsize}") for name, array in made.items()}
        content = reference.save(bits)
        wrong = NAMES[bits["z"].dtype].encode()
        length = int.from_bytes(content[:8], "little")
        header = content[8 : 8 + length].rstrip().replace(b'"%s"' % wrong, b'"%s"' % dtype.encode())
        (tmp_path / SINGLE_FILE).write_bytes(raw(header, content[8 + length :]))
    else:
        reference.save_file(made, tmp_path / SINGLE_FILE, metadata={"format": "pt"})
    found = Tensors(tmp_path)
    assert found.specs.keys() == made.keys()
    assert all(same(found.read(name), made[name]) for name in made)


def test_shards_are_cut_at_the_limit_and_the_index_says_where_everything_is(tmp_path):
    made = {str(i): np.full((10,), i, np.float32) for i in range(7)}  # 40 bytes each
    made["large"] = np.arange(50, dtype=np.float32)  # 200 bytes: larger than a shard, so in one of its own
    hashes = write(tmp_path, made, max_shard_bytes=85)
    names = [f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)]
    assert sorted(hashes) == sorted(path.name for path in tmp_path.iterdir()) == [*names, INDEX_FILE]
    index = json.loads((tmp_path / INDEX_FILE).read_bytes())
    assert index["metadata"] == {"total_size": 7 * 40 + 200}
    held = {name: set(reference.load_file(tmp_path / name)) for name in names}
    assert list(held.values()) == [{"0", "1"}, {"2", "3"}, {"4", "5"}, {"6"}, {"large"}]
    assert index["weight_map"] == {tensor: name for name, tensors in held.items() for tensor in tensors}
    found = Tensors(tmp_path)
    assert all(same(found.read(name), made[name]) for name in made)


def test_tensors_begin_at_a_multiple_of_8_bytes(tmp_path):
    write(tmp_path, {"odd name": np.zeros(3)})
    length = int.from_bytes((tmp_path / SINGLE_FILE).read_bytes()[:8], "little")
    assert length % 8 == 0


def test_pages_given_back_are_read_again(tmp_path):
    made = {"x": np.arange(100_000, dtype=np.float32), "y": np.ones(3, np.float32)}
    write(tmp_path, made)
    found = Tensors(tmp_path)
    for name in ("x", "y", "x"):
        assert same(found.read(name), made[name])
        found.forget(name)


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    def full(name):
        if name == "b":
            raise OSError(28, "No space left on device")
        return arrays()[name]

    specs = {name: Spec(array.dtype, array.shape) for name, array in arrays().items()}
    with pytest.raises(UserError, match="the disk is full"):
        safetensors.write_folder(tmp_path, specs, full)
    assert not list(tmp_path.iterdir())


# Files that are not what they should be.

ONE = {"x": entry([2], 0, 8)}
DAMAGED = {
    "an empty file": (b"", "it has 0 bytes, fewer than the 8"),
    "cut in its length": (b"\x10\0\0", "it has 3 bytes"),
    "cut in its header": (raw(ONE)[:20], "cut short: 20 bytes, of which"),
    "cut in its data": (raw(ONE, b"1234567"), "cut short: x ends at byte"),
    "trailing bytes": (raw(ONE, b"123456789"), "1 bytes at its end belong to no tensor"),
    "a huge header": ((2**63).to_bytes(8, "little") + b"{}", "its header would have 9,223,372,036,854,775,808 bytes"),
    "a long header": ((100_000_001).to_bytes(8, "little") + b"{}", "its header would have 100,000,001 bytes"),
    "no JSON": (raw(b"torch"), "its header is not JSON"),
    "no text": (raw(b'{"\xff": 1}'), "its header is not JSON"),
    "deep JSON": (raw(b"[" * 100_000), "its header is not JSON"),
    "a list": (raw([1]), "its header is not a JSON object"),
    "a name twice": (
        raw(b'{"x":%s,"x":%s}' % ((json.dumps(ONE["x"]).encode(),) * 2), b"12345678"), "a name stands in it twice",
    ),
    "a gap": (raw({"x": entry([2], 0, 8), "y": entry([1], 12, 16)}, b"0" * 16), "y begins at byte"),
    "a gap in front": (raw({"x": entry([2], 4, 12)}, b"0" * 12), "x begins at byte"),
    "an overlap": (raw({"x": entry([2], 0, 8), "y": entry([2], 4, 12)}, b"0" * 12), "y begins at byte"),
    "the same bytes twice": (raw({"x": entry([2], 0, 8), "y": entry([2], 0, 8)}, b"0" * 8), "y begins at byte"),
    "a wrong size": (raw({"x": entry([3], 0, 8)}, b"0" * 8), "x is F32 [3], 12 bytes, but has 8"),
    "end before start": (raw({"x": entry([2], 8, 0)}, b"0" * 8), "x is F32 [2], 8 bytes, but has -8"),
    "a negative size": (raw({"x": entry([-2], 0, 8)}, b"0" * 8), "the entry of 'x' in its header is malformed"),
    "a negative place": (raw({"x": entry([2], -8, 0)}, b"0" * 8), "the entry of 'x'"),
    "a fraction": (raw({"x": entry([2.0], 0, 8)}, b"0" * 8), "the entry of 'x'"),
    "true for 1": (raw({"x": entry([True], 0, 4)}, b"0" * 4), "the entry of 'x'"),
    "a huge size of nothing": (raw({"x": entry([0, 2**60], 0, 0)}), "the entry of 'x'"),
    "too many dims": (raw({"x": entry([1] * 100, 0, 4)}, b"0" * 4), "the entry of 'x'"),
    "three offsets": (raw({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}}, b"0" * 8), "entry of 'x'"),
    "no shape": (raw({"x": {"dtype": "F32", "data_offsets": [0, 8]}}, b"0" * 8), "the entry of 'x'"),
    "no entry": (raw({"x": None}), "the entry of 'x'"),
    "a name that writes on the screen": (raw({"\x1b[2J": entry([2], 0, 8)}, b"0" * 8), r"the entry of '\x1b[2J'"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_file_is_refused_by_name_and_reason(what, tmp_path):
    content, reason = DAMAGED[what]
    path = tmp_path / SINGLE_FILE
    path.write_bytes(content)
    for opened in (lambda: TensorFile(path), lambda: Tensors(tmp_path)):
        with pytest.raises(UserError) as error:
            opened()
        assert str(error.value).startswith(f"{path} is damaged or no safetensors file: ")
        assert reason in str(error.value)
        assert len(str(error.value)) < 400 + len(str(path))


@pytest.mark.parametrize("dtype", ["F4", "I4", "", "f32", "F8_E8M0"])
def test_an_unknown_dtype_is_refused_by_name(dtype, tmp_path):
    (tmp_path / SINGLE_FILE).write_bytes(raw({"x": entry([2], 0, 8, dtype)}, b"0" * 8))
    with pytest.raises(UserError, match=f"x has dtype {dtype}, which cannot be read.*quantised"):
        Tensors(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / SINGLE_FILE)
    with pytest.raises(UserError, match="it is a pipe or device"):
        Tensors(tmp_path)


def small_file():
    content = reference.save({"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.ones(2, np.int8)})
    return content, {name: content for name, content in reference.load(content).items()}


@settings(max_examples=400)
@given(data=st.data())
def test_any_damage_is_an_error_or_changes_values_only(data, tmp_path_factory):
    """Content alone has no checksum: a byte flipped in it is read, in a tensor of the same name, shape and dtype."""
    content, wanted = small_file()
    begin = 8 + int.from_bytes(content[:8], "little")
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = bytes(damaged)[
        : data.draw(st.sampled_from([len(content), data.draw(st.integers(0, len(content)))]))
    ]
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(damaged)
    file = None
    with contextlib.suppress(UserError):
        file = TensorFile(path)
    if file is None:
        assert damaged != content
        return
    read = {name: file.read(name) for name in file.specs}
    assert sum(array.nbytes for array in read.values()) == len(damaged) - begin
    if damaged[:begin] == content[:begin]:
        assert len(damaged) == len(content)
        assert {name: (array.shape, array.dtype) for name, array in read.items()} == {
            name: (array.shape, array.dtype) for name, array in wanted.items()
        }
    if damaged == content:
        assert all(same(read[name], wanted[name]) for name in wanted)


# Folders.


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint in two files, and a function that changes its index."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    made = {name: np.full((4,), i, np.float32) for i, name in enumerate("abc")}
    write(folder, made, max_shard_bytes=32)

    def change(edit):
        index = json.loads((folder / INDEX_FILE).read_bytes())
        edit(index["weight_map"])
        (folder / INDEX_FILE).write_text(json.dumps(index))
        return folder

    return change


ONE_OF_2, TWO_OF_2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "sub/x", "..", ".", "", "a\0b", "x\n", "a" * 5000])
def test_an_index_leads_nowhere_but_into_its_folder(name, sharded, tmp_path):
    folder = sharded(lambda weights: weights.update(c=name))
    (tmp_path / "x").write_bytes((folder / TWO_OF_2).read_bytes())
    (folder / "sub").mkdir()
    (folder / "sub" / "x").write_bytes((folder / TWO_OF_2).read_bytes())
    reason = "is missing" if len(name) > 1000 else "only names of files in the folder itself are followed"
    with pytest.raises(UserError, match=reason):
        Tensors(folder)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_link_that_leads_out_of_the_folder_is_not_followed(indexed, sharded, tmp_path):
    folder = sharded(lambda weights: None)
    outside = tmp_path / "outside.safetensors"
    os.replace(folder / TWO_OF_2, outside)
    (folder / TWO_OF_2).symlink_to(outside)
    if not indexed:
        (folder / INDEX_FILE).unlink()
        (folder / ONE_OF_2).unlink()
    with pytest.raises(UserError, match=f"{TWO_OF_2} is a link to {outside}, outside of the folder"):
        Tensors(folder)


def test_a_link_inside_the_folder_and_a_folder_that_is_a_link_are_followed(sharded, tmp_path):
    folder = sharded(lambda weights: None)
    os.replace(folder / TWO_OF_2, folder / "content")
    (folder / TWO_OF_2).symlink_to("content")
    (tmp_path / "link").symlink_to(folder)
    assert sorted(Tensors(tmp_path / "link").specs) == ["a", "b", "c"]


@pytest.mark.parametrize("indexed", [True, False])
def test_the_layout_of_the_hubs_cache_is_read(indexed, sharded, tmp_path):
    folder = sharded(lambda weights: None)
    if not indexed:
        (folder / INDEX_FILE).unlink()
        (folder / TWO_OF_2).unlink()
    snapshot = tmp_path / "models--o--m" / "snapshots" / "1234"
    blobs = tmp_path / "models--o--m" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        os.replace(path, blobs / f"hash{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/hash{path.name}")
    assert sorted(Tensors(snapshot).specs) == (["a", "b", "c"] if indexed else ["a", "b"])


def test_files_and_index_that_contradict_each_other_are_refused(sharded):
    def without(weights):
        del weights["b"]

    def elsewhere(weights):
        weights["b"] = TWO_OF_2

    def more(weights):
        weights["d"] = TWO_OF_2

    for edit, message in (
        (without, f"{ONE_OF_2} holds b, which {INDEX_FILE} places in no file"),
        (elsewhere, f"{ONE_OF_2} holds b, which {INDEX_FILE} places in {TWO_OF_2}"),
        (lambda weights: weights.update(b=ONE_OF_2) or more(weights), f"{TWO_OF_2} lacks d"),
    ):
        with pytest.raises(UserError, match=message):
            Tensors(sharded(edit))


def test_a_missing_file_is_named(sharded):
    folder = sharded(lambda weights: None)
    (folder / TWO_OF_2).unlink()
    with pytest.raises(UserError, match=f"{TWO_OF_2} is missing, though {INDEX_FILE} names it"):
        Tensors(folder)
    (folder / INDEX_FILE).unlink()
    (folder / ONE_OF_2).unlink()
    (folder / SINGLE_FILE).symlink_to("nowhere")
    with pytest.raises(UserError, match=f"{SINGLE_FILE} is missing, though there is a link of that name"):
        Tensors(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"weight_map": 3}', b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}', b"\xff",
     b'{"weight_map": {"a": "x", "a": "y"}}', b"[" * 100_000],
)  # fmt: skip
def test_an_index_that_is_none_is_refused(content, tmp_path):
    (tmp_path / INDEX_FILE).write_bytes(content)
    with pytest.raises(UserError, match=f"{INDEX_FILE} is no index of a checkpoint"):
        Tensors(tmp_path)


def test_several_files_need_an_index(sharded):
    folder = sharded(lambda weights: None)
    (folder / INDEX_FILE).unlink()
    with pytest.raises(UserError, match="holds 2 safetensors files .* but no model.safetensors.index.json"):
        Tensors(folder)


def test_a_single_file_may_have_any_name_and_goes_before_an_index_as_in_transformers(sharded):
    folder = sharded(lambda weights: None)
    write(folder, {"other": np.ones(2, np.float32)})
    (folder / "consolidated.safetensors").write_bytes(b"")
    assert list(Tensors(folder).specs) == ["other"]
    for path in folder.iterdir():
        if path.name != ONE_OF_2:
            path.unlink()
    assert sorted(Tensors(folder).specs) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", "pytorch_model.bin is a pickle, which can run any code.*save_pretrained"),
        ("pytorch_model-00001-of-00002.bin", "is a pickle"),
        ("consolidated.00.pth", "is a pickle"),
        ("model-q4.gguf", "model-q4.gguf holds quantised weights: take the original"),
        ("readme.txt", "holds no safetensors file. Give the folder of a Hugging Face checkpoint"),
    ],
)
def test_other_formats_are_refused_with_the_way_out(name, message, tmp_path):
    (tmp_path / name).write_bytes(b"\x80\x02c__builtin__\nexec\n.")
    with pytest.raises(UserError, match=message):
        Tensors(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "bits", "value"),
    [("BF16", 0x7F7F, 3.3895e38), ("F16", 0x7BFF, 65504), ("F8_E4M3", 0x7E, 448), ("F8_E5M2", 0x7B, 57344)],
)
def test_narrow_floats_are_those_of_the_format(dtype, bits, value):
    """Each by its largest number; float8 has cousins that share the name."""
    found = np.array([bits], f"u{DTYPES[dtype].itemsize}").view(DTYPES[dtype])
    assert float(found[0]) == pytest.approx(value, rel=1e-4)
