"""Promises of reading checkpoints: bits as they are, each device its own part, and all of a checkpoint or nothing."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from small_checkpoints import (
    abstract_params,
    assert_same_bits,
    load,
    random_params,
    tensors_of,
    write_checkpoint,
    write_tensors,
)

from jaxlm.checkpoint import named_arrays
from jaxlm.interop import hf_import
from jaxlm.interop.hf_import import mapping_table, open_source, read_params
from jaxlm.models import sizes
from jaxlm.models.build import build
from jaxlm.models.config import ModelConfig
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import param_shardings
from jaxlm.types import UserError

EXTRA = {
    "mistral": ModelConfig(
        vocab_size=320, embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=96, layer_pattern="l",
        sliding_window=8, tie_embeddings=False,
    ),
    "gemma": ModelConfig(
        vocab_size=320, embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=1, head_dim=16, mlp_dim=96,
        activation="geglu", norm="rmsnorm_plus_one", scale_embeddings=True,
    ),
    "llama with biases": ModelConfig(
        vocab_size=320, embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=96, bias="all",
    ),
    "untied gpt2": ModelConfig(
        vocab_size=320, embed_dim=32, num_layers=2, num_heads=4, activation="gelu_tanh", norm="layernorm", bias="all",
        positions="learned", max_seq_len=64, tie_embeddings=False,
    ),
}  # fmt: skip
MODELS = {name: sizes.size(name) for name in sizes.TINY_SIZES} | EXTRA


@pytest.mark.parametrize("name", MODELS)
def test_weights_go_out_and_come_back_bit_for_bit(name, tmp_path):
    params = random_params(MODELS[name])
    write_checkpoint(tmp_path, MODELS[name], params, max_shard_bytes=10_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert_same_bits(load(tmp_path), params)


# Layouts, by hand.


def test_one_fused_projection_of_gpt2_is_cut_into_query_key_and_value(tmp_path):
    """c_attn is [in, out], its columns q, k and v side by side, each head after head."""
    model = sizes.size("tiny-gpt")  # width 32: 4 heads of 8
    write_checkpoint(tmp_path, model)
    tensors = tensors_of(tmp_path)
    tensors["transformer.h.1.attn.c_attn.weight"] = np.arange(32 * 96, dtype=np.float32).reshape(32, 96)
    tensors["transformer.h.1.attn.c_attn.bias"] = np.arange(96, dtype=np.float32)
    tensors["transformer.h.1.attn.c_proj.weight"] = np.arange(32 * 32, dtype=np.float32).reshape(32, 32)
    tensors["transformer.h.1.mlp.c_fc.weight"] = np.arange(32 * 128, dtype=np.float32).reshape(32, 128)
    write_tensors(tmp_path, tensors)
    layers = load(tmp_path)["layers"]
    attention = layers["attention"]
    d, n, h = 5, 2, 3
    column = n * 8 + h
    for i, letter in enumerate("qkv"):
        assert attention[letter][1, d, n, h] == d * 96 + i * 32 + column
        assert attention[f"{letter}_bias"][1, n, h] == i * 32 + column
    assert attention["o"][1, n, h, d] == column * 32 + d
    assert layers["mlp"]["up"][1, d, 99] == d * 128 + 99


def test_linear_weights_are_turned(tmp_path):
    """torch.nn.Linear is [out, in]; out of q_proj is head after head, in of o_proj as well."""
    model = sizes.size("tiny-llama")  # width 32; 4 heads of 16, 2 of keys; MLP 96
    write_checkpoint(tmp_path, model)
    tensors = tensors_of(tmp_path)
    for name, shape in (
        ("self_attn.k_proj", (32, 32)),
        ("self_attn.o_proj", (32, 64)),
        ("mlp.down_proj", (32, 96)),
    ):
        tensors[f"model.layers.2.{name}.weight"] = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    write_tensors(tmp_path, tensors)
    layers = load(tmp_path)["layers"]
    d, n, h, f = 5, 1, 3, 77
    assert layers["attention"]["k"][2, d, n, h] == (n * 16 + h) * 32 + d
    assert layers["attention"]["o"][2, n, h, d] == d * 64 + n * 16 + h
    assert layers["mlp"]["down"][2, f, d] == d * 96 + f


def test_experts_are_stacked_in_their_order_with_w1_gate_w3_up_w2_down(tmp_path):
    write_checkpoint(tmp_path, sizes.size("tiny-mixtral"))
    tensors = tensors_of(tmp_path)
    moe = load(tmp_path)["layers"]["moe"]
    for ours, theirs in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        found = np.asarray(moe[ours][1, 5])
        assert np.array_equal(found, tensors[f"model.layers.1.block_sparse_moe.experts.5.{theirs}.weight"].T)
    assert np.array_equal(
        np.asarray(moe["router"][1]), tensors["model.layers.1.block_sparse_moe.gate.weight"].T
    )


# Dtypes.


def test_a_bfloat16_checkpoint_may_be_read_as_it_is_or_as_float32(tmp_path):
    params = random_params(sizes.size("tiny-qwen3"), "bfloat16")
    write_checkpoint(tmp_path, sizes.size("tiny-qwen3"), params)
    assert_same_bits(load(tmp_path, "bfloat16"), params)
    assert_same_bits(load(tmp_path), jax.tree.map(lambda x: x.astype("float32"), params))


def test_a_weight_of_tensors_of_several_dtypes_is_stored_in_float32(tmp_path):
    write_checkpoint(tmp_path, sizes.size("tiny-llama"), random_params(sizes.size("tiny-llama"), "bfloat16"))
    tensors = tensors_of(tmp_path)
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].astype(
        np.float16
    )
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float64)
    write_tensors(tmp_path, tensors)
    source = open_source(tmp_path)
    rows = hf_import.used_rows(source.family, hf_import.params_shapes(source.model))
    dtypes = {
        path: str(hf_import.stored_dtype(source, rows[path], shape))
        for path, shape in hf_import.params_shapes(source.model).items()
    }
    assert dtypes.pop("layers/mlp/up") == dtypes.pop("final_norm/scale") == "float32"
    assert set(dtypes.values()) == {"bfloat16"}
    assert "bfloat16, float16, float64" in source.describe()


# Devices.


@pytest.mark.parametrize(
    ("name", "axes"),
    [("tiny-gpt", {"fsdp": 8}), ("tiny-llama", {"fsdp": 4, "tensor": 2}), ("tiny-qwen3-moe", {"expert": 8}),
     ("tiny-mixtral", {"expert": 2, "tensor": 2, "fsdp": 2}), ("tiny-gemma3", {"data": 8})],
)  # fmt: skip
def test_each_device_reads_its_part_and_together_they_hold_the_same(name, axes, tmp_path, monkeypatch):
    model = sizes.size(name)
    params = random_params(model)
    write_checkpoint(tmp_path, model, params)
    mesh = make_mesh({axis: axes.get(axis, 1) for axis in ("data", "fsdp", "expert", "tensor")})
    shardings = param_shardings(build(model, 64).axes, mesh)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_params(model),
        shardings,
    )
    made = []
    fresh_memory = hf_import.fresh_memory

    def counted(shape, dtype):
        made.append(shape)
        return fresh_memory(shape, dtype)

    monkeypatch.setattr(hf_import, "fresh_memory", counted)
    found = read_params(open_source(tmp_path), abstract)
    assert_same_bits(found, params)
    parts = {tuple(shard.data.shape) for leaf in jax.tree.leaves(found) for shard in leaf.addressable_shards}
    assert set(made) == parts
    for path, leaf in named_arrays(found).items():
        want = named_arrays(shardings)[path]
        assert leaf.sharding.is_equivalent_to(want, leaf.ndim)
        assert {shard.data.shape for shard in leaf.addressable_shards} == {want.shard_shape(leaf.shape)}
    if axes.keys() != {"data"}:
        largest = max(jax.tree.leaves(found), key=lambda leaf: leaf.size)
        assert largest.addressable_shards[0].data.size * 8 == largest.size


# What is not the checkpoint of its config.


@pytest.fixture
def llama(tmp_path, monkeypatch):
    """llama(edit) -> the error of a tiny Llama whose tensors were edited; nothing may be read of it."""
    folder = write_checkpoint(tmp_path, sizes.size("tiny-llama"))

    def error_of(edit):
        tensors = tensors_of(folder)
        edit(tensors)
        write_tensors(folder, tensors)
        with monkeypatch.context() as patch:
            patch.setattr("jaxlm.interop.safetensors.TensorFile.read", lambda self, name: pytest.fail(name))
            with pytest.raises(UserError) as error:
                open_source(folder)
        return str(error.value)

    return error_of


NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(UP), f"{UP} [96, 32] is missing"),
        (lambda t: t.pop("lm_head.weight"), "lm_head.weight [320, 32] is missing"),
        (lambda t: t.update(extra=t[NORM]), "extra is unexpected"),
        (lambda t: t.update({"model.layers.3.mlp.up_proj.weight": t[UP]}), "model.layers.3.mlp.up_proj.weight is unex"),
        (lambda t: t.update({UP: t[UP].T}), f"{UP} has shape [32, 96] instead of [96, 32]"),
        (lambda t: t.update({UP: t[UP].reshape(-1)}), f"{UP} has shape [3072] instead of"),
        (lambda t: t.update({UP: t[UP].astype(np.int8)}), f"{UP} is int8, not a float: is the checkpoint quantised?"),
        (lambda t: t.update({UP: t[UP] > 0}), f"{UP} is bool, not a float"),
        (lambda t: (t.pop(UP), t.pop(NORM)), "(and 1 more differences)"),
        (lambda t: t.update({"model.layers.1.self_attn.q_proj.bias": t[NORM]}), "q_proj.bias is unexpected"),
    ],
    ids=range(10),
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named_before_anything_is_read(edit, message, llama):
    error = llama(edit)
    assert message in error
    assert "Nothing was loaded" in error


def test_a_float8_checkpoint_is_refused(llama):
    import ml_dtypes

    assert "not a float" in llama(lambda t: t.update({UP: t[UP].astype(ml_dtypes.float8_e4m3fn)}))


# Variants of names that are around.


@pytest.mark.parametrize("name", ["tiny-gpt", "tiny-qwen3", "tiny-gemma2"])
def test_names_without_their_prefix_and_old_buffers(name, tmp_path):
    model = sizes.size(name)
    params = random_params(model)
    write_checkpoint(tmp_path, model, params)
    prefix = "transformer." if name == "tiny-gpt" else "model."
    tensors = {key.removeprefix(prefix): array for key, array in tensors_of(tmp_path).items()}
    if name == "tiny-gpt":
        tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 64, 64), np.uint8))
        tensors["h.0.attn.masked_bias"] = np.float32(-1e4)
    else:
        tensors["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    write_tensors(tmp_path, tensors)
    assert_same_bits(load(tmp_path), params)


@pytest.mark.parametrize("prefixed", [True, False])
def test_a_tied_head_may_repeat_the_embedding_and_nothing_else(prefixed, tmp_path):
    model = sizes.size("tiny-gpt")
    params = random_params(model)
    write_checkpoint(tmp_path, model, params)
    tensors = tensors_of(tmp_path)
    if not prefixed:
        tensors = {key.removeprefix("transformer."): array for key, array in tensors.items()}
    embedding = next(array for key, array in tensors.items() if key.endswith("wte.weight"))
    write_tensors(tmp_path, tensors | {"lm_head.weight": embedding})
    assert_same_bits(load(tmp_path), params)
    other = embedding.copy()
    other[-1, -1] += 1
    for head in (other, embedding[:-1], embedding.reshape(-1), embedding.astype(np.float16), np.float32(1)):
        write_tensors(tmp_path, tensors | {"lm_head.weight": np.asarray(head)})
        with pytest.raises(
            UserError, match="says tie_word_embeddings, but lm_head.weight is not transformer.wte"
        ):
            open_source(tmp_path)


def test_a_large_head_is_compared_whole(monkeypatch):
    a = np.zeros((100, 7), np.float32)
    for at in (0, 350, 699):
        b = a.copy()
        b.reshape(-1)[at] = 1
        assert not hf_import._same_bytes(a, b, piece=64)
    assert hf_import._same_bytes(a, a.copy(), piece=64)


@pytest.mark.parametrize("era", ["old", "new"])
def test_the_language_model_of_a_multimodal_gemma(era, tmp_path):
    model = sizes.size("tiny-gemma3")
    params = random_params(model)
    write_checkpoint(tmp_path, model, params)
    text = json.loads((tmp_path / "config.json").read_text())
    del text["tie_word_embeddings"]
    whole = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 8}}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    begin, outer = {"old": ("language_model.model.", ""), "new": ("model.language_model.", "model.")}[era]
    tensors = {begin + key.removeprefix("model."): array for key, array in tensors_of(tmp_path).items()}
    vision = {
        f"{outer}vision_tower.vision_model.embeddings.position_embedding.weight": np.ones((4, 4), np.float32),
        f"{outer}multi_modal_projector.mm_input_projection_weight": np.ones((4, 4), np.float32),
    }
    write_tensors(tmp_path, vision | tensors)
    source = open_source(tmp_path)
    assert source.notes == (
        "only the language model is loaded, without the parts for other modalities.",
        f"2 tensors of other parts were left out ({min(vision)}, ...).",
    )
    assert_same_bits(load(tmp_path), params)
    some = next(iter(tensors))
    write_tensors(tmp_path, tensors | {some.replace(begin, "model."): tensors[some]})
    with pytest.raises(UserError, match="are the same tensor of gemma3_text: which is meant"):
        open_source(tmp_path)


def test_the_table_says_what_becomes_of_every_tensor(tmp_path):
    write_checkpoint(tmp_path, sizes.size("tiny-gpt"))
    source = open_source(tmp_path)
    table = mapping_table(source)
    assert len(table) == len(named_arrays(abstract_params(source.model)))
    assert (
        "layers/attention/k [3, 32, 4, 8] <- 3 x transformer.h.*.attn.c_attn.weight [32, 96], part 2 of 3"
        in table
    )


# Memory.

MEASURED = """
import os, sys, pathlib
import jax
os.environ.pop("XLA_FLAGS", None)
from jaxlm.checkpoint import named_arrays
from jaxlm.interop.hf_export import export_weights
from jaxlm.interop.hf_import import open_source, read_params
from jaxlm.models.build import build

def peak_bytes():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

def reset():
    pathlib.Path("/proc/self/clear_refs").write_text("5")

folder, out = sys.argv[1:]
source = open_source(folder)
abstract = build(source.model, 64).shapes
jax.block_until_ready(jax.numpy.ones(3) + 1)
reset()
before = peak_bytes()
params = jax.block_until_ready(read_params(source, abstract))
read = peak_bytes() - before
reset()
before = peak_bytes()
os.makedirs(out)
export_weights(out, source.family, named_arrays(params), dtype="bfloat16")
leaves = jax.tree.leaves(params)
print(read, peak_bytes() - before, sum(leaf.nbytes for leaf in leaves))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="Linux tells peak memory")
def test_peak_memory_is_the_params_and_little_more_than_one_tensor(tmp_path):  # pain 19
    model = ModelConfig(
        vocab_size=16384, embed_dim=1024, num_layers=4, num_heads=8, mlp_dim=2048, tie_embeddings=True
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.random(s.shape, np.float32), abstract_params(model))
    write_checkpoint(tmp_path / "in", model, params)
    largest = 16384 * 1024 * 4
    environ = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path / "in"), str(tmp_path / "out")],
        env=environ, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    read, written, total = map(int, done.stdout.split())
    assert total > 200_000_000
    assert total <= read <= 1.3 * (total + largest)
    assert written <= 1.3 * 2 * largest  # as it is, and cast
