"""Promises of written checkpoints: the bits of the run, in the order and shards of their layers, never half of one."""

import jax
import ml_dtypes
import numpy as np
import pytest
from slow import slow
from small_checkpoints import load, random_params, tensors_of, write_checkpoint

from jaxlm.checkpoint import named_arrays
from jaxlm.interop.families import family_for
from jaxlm.interop.hf_export import DTYPES, export_weights
from jaxlm.interop.safetensors import INDEX_FILE, TensorFile, Tensors
from jaxlm.models import sizes
from jaxlm.types import UserError


def export(folder, model, params, **options):
    folder.mkdir()
    return export_weights(folder, family_for(model), named_arrays(params), **options)


def num_bytes(arrays, dtype):
    return sum(array.size * DTYPES[dtype].itemsize for array in arrays.values())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype) if dtype == "float32" or name in ("tiny-gpt", "tiny-mixtral") else slow(name, dtype)
        for name in sizes.TINY_SIZES
        for dtype in ("float32", "bfloat16")
    ],
)
def test_what_was_exported_and_imported_is_exported_to_the_same_bytes(name, dtype, tmp_path):
    model = sizes.size(name)
    write_checkpoint(
        tmp_path / "one", model, random_params(model, dtype), tokenizer=False, max_shard_bytes=10_000
    )
    export(tmp_path / "two", model, load(tmp_path / "one", dtype), max_shard_bytes=10_000)
    one = contents(tmp_path / "one")
    del one["config.json"]
    assert contents(tmp_path / "two") == one
    assert {str(spec.dtype) for spec in Tensors(tmp_path / "two").specs.values()} == {dtype}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_all_tensors_have_the_dtype_that_was_asked_for(dtype, tmp_path):
    model = sizes.size("tiny-gpt")
    params = random_params(model)
    export(tmp_path / "out", model, params, dtype=dtype)
    found = tensors_of(tmp_path / "out")
    wanted = {"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype)
    assert {array.dtype for array in found.values()} == {np.dtype(wanted)}
    embedding = np.asarray(params["embedding"]).astype(wanted)
    assert found["transformer.wte.weight"].tobytes() == embedding.tobytes()
    assert sum(array.nbytes for array in found.values()) == num_bytes(named_arrays(params), dtype)


def test_float16_refuses_what_it_cannot_hold_and_keeps_what_is_infinite_already(tmp_path):
    model = sizes.size("tiny-llama")
    params = random_params(model)
    params["layers"]["mlp"]["up"] = params["layers"]["mlp"]["up"].at[1, 2, 3].set(70000.0)
    with pytest.raises(
        UserError, match="model.layers.1.mlp.up_proj.weight holds 7e.04, beyond float16's 65504.*bfloat16"
    ):
        export(tmp_path / "out", model, params, dtype="float16")
    assert not list((tmp_path / "out").iterdir())
    params["layers"]["mlp"]["up"] = params["layers"]["mlp"]["up"].at[1, 2, 3].set(np.inf)
    export(tmp_path / "inf", model, params, dtype="float16")
    assert np.isposinf(tensors_of(tmp_path / "inf")["model.layers.1.mlp.up_proj.weight"][3, 2])


def test_files_follow_each_other_as_the_layers_do_and_tensors_by_name(tmp_path):
    model = sizes.size("tiny-qwen3-moe")
    hashes = export(tmp_path / "out", model, random_params(model), max_shard_bytes=30_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert list(hashes) == [*files, "model.safetensors.index.json"]
    inside = [list(TensorFile(tmp_path / "out" / name).specs) for name in files]
    assert len(files) > 3
    assert all(names == sorted(names) for names in inside)  # as the reference implementation puts them
    assert "model.embed_tokens.weight" in inside[0]
    assert "lm_head.weight" in inside[-1]
    layers = [[int(name.split(".")[2]) for name in names if ".layers." in name] for names in inside]
    spans = [(min(found), max(found)) for found in layers if found]
    assert spans == sorted(spans)


def test_the_limit_of_a_shard_holds(tmp_path):
    model = sizes.size("tiny-gemma3")
    hashes = export(tmp_path / "out", model, random_params(model), max_shard_bytes=20_000)
    files = [TensorFile(path) for path in (tmp_path / "out").glob("*.safetensors")]
    for file in files:
        assert sum(spec.num_bytes for spec in file.specs.values()) <= 20_000 or len(file.specs) == 1
    assert set(hashes) == {file.path.name for file in files} | {INDEX_FILE}


def test_weights_on_several_devices_are_written_like_those_on_one(tmp_path):
    model = sizes.size("tiny-mixtral")
    params = random_params(model)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def spread(array):
        axis = next((i for i, size in enumerate(array.shape) if size % 8 == 0), None)
        spec = [None] * array.ndim if axis is None else [*[None] * axis, "x"]
        return jax.device_put(array, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)))

    assert export(tmp_path / "many", model, jax.tree.map(spread, params)) == export(
        tmp_path / "one", model, params
    )
