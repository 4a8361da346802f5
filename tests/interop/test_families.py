"""Promises of config.json in and out: published configs are the published models, and nothing is guessed at."""

import dataclasses
import json

import pytest

from jaxlm.interop.families import FAMILIES, canonical, family_for, family_of
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.hf_export import hf_config
from jaxlm.interop.hf_import import read_hf_config
from jaxlm.models import sizes
from jaxlm.models.config import ModelConfig
from jaxlm.types import UserError

# config.json as on the hub, less what is about generation, training and versions.

LLAMA2 = dict(
    architectures=["LlamaForCausalLM"], bos_token_id=1, eos_token_id=2, hidden_act="silu", hidden_size=4096,
    initializer_range=0.02, intermediate_size=11008, max_position_embeddings=4096, model_type="llama",
    num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32, pretraining_tp=1, rms_norm_eps=1e-05,
    rope_scaling=None, tie_word_embeddings=False, torch_dtype="float16", transformers_version="4.31.0.dev0",
    use_cache=True, vocab_size=32000,
)  # fmt: skip
LLAMA31 = dict(
    LLAMA2, attention_bias=False, attention_dropout=0.0, bos_token_id=128000, eos_token_id=128001,
    intermediate_size=14336, max_position_embeddings=131072, mlp_bias=False, num_key_value_heads=8,
    rope_scaling=dict(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192, rope_type="llama3"
    ),
    rope_theta=500000.0, vocab_size=128256,
)  # fmt: skip
SMOLLM2 = dict(
    LLAMA2, attention_bias=False, attention_dropout=0.0, bos_token_id=0, eos_token_id=0, hidden_size=576,
    initializer_range=0.041666666666666664, intermediate_size=1536, is_llama_config=True, max_position_embeddings=8192,
    num_attention_heads=9, num_hidden_layers=30, num_key_value_heads=3, rope_interleaved=False, rope_theta=100000,
    tie_word_embeddings=True, vocab_size=49152,
)  # fmt: skip
MISTRAL = dict(
    architectures=["MistralForCausalLM"], bos_token_id=1, eos_token_id=2, hidden_act="silu", hidden_size=4096,
    initializer_range=0.02, intermediate_size=14336, max_position_embeddings=32768, model_type="mistral",
    num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8, rms_norm_eps=1e-05, rope_theta=10000.0,
    sliding_window=4096, tie_word_embeddings=False, torch_dtype="bfloat16", use_cache=True, vocab_size=32000,
)  # fmt: skip
MISTRAL3 = dict(
    MISTRAL, attention_dropout=0.0, rope_theta=1000000.0, sliding_window=None, vocab_size=32768
)  # fmt: skip
GPT2 = dict(
    activation_function="gelu_new", architectures=["GPT2LMHeadModel"], attn_pdrop=0.1, bos_token_id=50256,
    embd_pdrop=0.1, eos_token_id=50256, initializer_range=0.02, layer_norm_epsilon=1e-05, model_type="gpt2",
    n_ctx=1024, n_embd=768, n_head=12, n_layer=12, n_positions=1024, resid_pdrop=0.1, summary_activation=None,
    summary_first_dropout=0.1, summary_proj_to_labels=True, summary_type="cls_index", summary_use_proj=True,
    task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}}, vocab_size=50257,
)  # fmt: skip
QWEN25 = dict(
    architectures=["Qwen2ForCausalLM"], attention_dropout=0.0, bos_token_id=151643, eos_token_id=151643,
    hidden_act="silu", hidden_size=896, initializer_range=0.02, intermediate_size=4864, max_position_embeddings=32768,
    max_window_layers=24, model_type="qwen2", num_attention_heads=14, num_hidden_layers=24, num_key_value_heads=2,
    rms_norm_eps=1e-06, rope_theta=1000000.0, sliding_window=32768, tie_word_embeddings=True, torch_dtype="bfloat16",
    use_cache=True, use_mrope=False, use_sliding_window=False, vocab_size=151936,
)  # fmt: skip
QWEN3 = dict(
    architectures=["Qwen3ForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=151643,
    eos_token_id=151645, head_dim=128, hidden_act="silu", hidden_size=1024, initializer_range=0.02,
    intermediate_size=3072, max_position_embeddings=40960, max_window_layers=28, model_type="qwen3",
    num_attention_heads=16, num_hidden_layers=28, num_key_value_heads=8, rms_norm_eps=1e-06, rope_scaling=None,
    rope_theta=1000000, sliding_window=None, tie_word_embeddings=True, torch_dtype="bfloat16", use_cache=True,
    use_sliding_window=False, vocab_size=151936,
)  # fmt: skip
GEMMA = dict(
    architectures=["GemmaForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=2, eos_token_id=1,
    head_dim=256, hidden_act="gelu", hidden_activation=None, hidden_size=2048, initializer_range=0.02,
    intermediate_size=16384, max_position_embeddings=8192, model_type="gemma", num_attention_heads=8,
    num_hidden_layers=18, num_key_value_heads=1, pad_token_id=0, rms_norm_eps=1e-06, rope_scaling=None,
    rope_theta=10000.0, torch_dtype="bfloat16", use_cache=True, vocab_size=256000,
)  # fmt: skip
GEMMA2 = dict(
    architectures=["Gemma2ForCausalLM"], attention_bias=False, attention_dropout=0.0, attn_logit_softcapping=50.0,
    bos_token_id=2, cache_implementation="hybrid", eos_token_id=1, final_logit_softcapping=30.0, head_dim=256,
    hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", hidden_size=2304, initializer_range=0.02,
    intermediate_size=9216, max_position_embeddings=8192, model_type="gemma2", num_attention_heads=8,
    num_hidden_layers=26, num_key_value_heads=4, pad_token_id=0, query_pre_attn_scalar=256, rms_norm_eps=1e-06,
    rope_theta=10000.0, sliding_window=4096, torch_dtype="float32", use_cache=True, vocab_size=256000,
)  # fmt: skip
GEMMA3 = dict(
    _sliding_window_pattern=6, architectures=["Gemma3ForCausalLM"], attention_bias=False, attention_dropout=0.0,
    attn_logit_softcapping=None, bos_token_id=2, eos_token_id=1, final_logit_softcapping=None, head_dim=256,
    hidden_activation="gelu_pytorch_tanh", hidden_size=640, initializer_range=0.02, intermediate_size=2048,
    layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 3, max_position_embeddings=32768,
    model_type="gemma3_text", num_attention_heads=4, num_hidden_layers=18, num_key_value_heads=1, pad_token_id=0,
    query_pre_attn_scalar=256, rms_norm_eps=1e-06, rope_local_base_freq=10000.0, rope_scaling=None,
    rope_theta=1000000.0, sliding_window=512, torch_dtype="bfloat16", use_bidirectional_attention=False,
    use_cache=True, vocab_size=262144,
)  # fmt: skip
GEMMA3_4B = dict(
    architectures=["Gemma3ForConditionalGeneration"], boi_token_index=255999, eoi_token_index=256000,
    eos_token_id=[1, 106], image_token_index=262144, initializer_range=0.02, mm_tokens_per_image=256,
    model_type="gemma3", torch_dtype="bfloat16", transformers_version="4.50.0.dev0",
    text_config=dict(
        hidden_size=2560, intermediate_size=10240, model_type="gemma3_text", num_hidden_layers=34,
        rope_scaling=dict(factor=8.0, rope_type="linear"), sliding_window=1024,
    ),
    vision_config=dict(hidden_size=1152, image_size=896, model_type="siglip_vision_model", num_hidden_layers=27),
)  # fmt: skip
MIXTRAL = dict(
    MISTRAL, architectures=["MixtralForCausalLM"], attention_dropout=0.0, model_type="mixtral", num_experts_per_tok=2,
    num_local_experts=8, output_router_logits=False, rope_theta=1000000.0, router_aux_loss_coef=0.02,
    sliding_window=None,
)  # fmt: skip
QWEN3_MOE = dict(
    QWEN3, architectures=["Qwen3MoeForCausalLM"], decoder_sparse_step=1, hidden_size=2048, intermediate_size=6144,
    max_window_layers=48, mlp_only_layers=[], model_type="qwen3_moe", moe_intermediate_size=768, norm_topk_prob=True,
    num_attention_heads=32, num_experts=128, num_experts_per_tok=8, num_hidden_layers=48, num_key_value_heads=4,
    output_router_logits=False, router_aux_loss_coef=0.001, tie_word_embeddings=False,
)  # fmt: skip
GEMMA_2B = ModelConfig(
    vocab_size=256_000, embed_dim=2048, num_layers=18, num_heads=8, num_kv_heads=1, head_dim=256, mlp_dim=16384,
    activation="geglu", norm="rmsnorm_plus_one", norm_eps=1e-6, tie_embeddings=True, scale_embeddings=True,
)  # fmt: skip
MISTRAL_V3 = ModelConfig(
    vocab_size=32768, embed_dim=4096, num_layers=32, num_heads=32, num_kv_heads=8, mlp_dim=14336, norm_eps=1e-5,
    rope_theta=1e6, tie_embeddings=False,
)  # fmt: skip
PUBLISHED = {
    "gpt2-124m": GPT2, "llama2-7b": LLAMA2, "llama3.1-8b": LLAMA31, "smollm2-135m": SMOLLM2, "mistral-7b": MISTRAL,
    "qwen2.5-0.5b": QWEN25, "qwen3-0.6b": QWEN3, "gemma2-2b": GEMMA2, "gemma3-270m": GEMMA3, "gemma3-4b": GEMMA3_4B,
    "mixtral-8x7b": MIXTRAL, "qwen3-30b-a3b": QWEN3_MOE,
}  # fmt: skip
TYPES = {
    "gpt2": "gpt2", "gpt3": "gpt2", "llama2": "llama", "llama3": "llama", "smollm2": "llama", "mistral": "mistral",
    "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3": "gemma3_text", "mixtral": "mixtral",
}  # fmt: skip


@pytest.fixture
def read(tmp_path):
    """read(dict(...)) -> (family, model, notes) of a folder with this config.json, and of just that."""

    def from_file(values):
        (tmp_path / "config.json").write_text(json.dumps(values))
        return read_hf_config(tmp_path)

    return from_file


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_the_sizes_of_their_names(name, read):
    _, model, notes = read(PUBLISHED[name])
    assert canonical(model) == canonical(sizes.size(name))
    known = {"smollm2-135m": ["is_llama_config"], "gemma3-4b": ["only the language model"]}
    assert [note for note in notes if not any(word in note for word in known.get(name, []))] == []


def test_published_configs_of_models_that_are_no_size(read):
    assert canonical(read(GEMMA)[1]) == canonical(GEMMA_2B)
    assert canonical(read(MISTRAL3)[1]) == canonical(MISTRAL_V3)


def test_the_context_is_read_though_it_is_not_part_of_a_size(read):
    for values, context in ((GPT2, 1024), (LLAMA31, 131072), (GEMMA3_4B, 131072), (QWEN3, 40960)):
        assert read(values)[1].max_seq_len == context


@pytest.mark.parametrize("name", sizes.SIZES)
def test_every_size_goes_out_and_comes_back(name, read):
    model = sizes.size(name)
    family = family_for(model)
    is_moe, stem = model.num_experts is not None, name.removeprefix("tiny-").split("-")[0].split(".")[0]
    expected = {"qwen3": "qwen3_moe"}.get(stem) if is_moe else {"gpt": "gpt2", "llama": "llama"}.get(stem)
    assert family.model_type == (expected or TYPES[stem])
    written = hf_config(
        family, model, dtype="bfloat16", context_tokens=64, bos_id=None, eos_ids=[1, 2], pad_id=None
    )
    again, model_again, notes = read(written)
    assert (again, canonical(model_again), notes) == (family, canonical(model), ())


def test_a_context_longer_than_that_of_the_origin_is_written():
    model = ModelConfig(vocab_size=8, max_seq_len=2048, tie_embeddings=False)
    options = dict(dtype="float32", bos_id=1, eos_ids=[2], pad_id=None)
    for trained, written in ((8192, 8192), (512, 2048)):
        config = hf_config(family_of("llama", ""), model, context_tokens=trained, **options)
        assert config["max_position_embeddings"] == written
        assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


def new_spelling(values):
    """As transformers 5 writes it: rope_parameters, for Gemma 3 one for each kind of layer."""
    changed = {k: v for k, v in values.items() if not k.startswith("rope_")} | {
        "dtype": values.get("torch_dtype")
    }
    top = {"rope_theta": values.get("rope_theta", 1e6 if "local" in str(values) else 1e4)}
    top |= values.get("rope_scaling") or {"rope_type": "default"}
    if values["model_type"] == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": values["rope_local_base_freq"]}
        return changed | {"rope_parameters": {"full_attention": top, "sliding_attention": local}}
    return changed | {"rope_parameters": top}


SCALED_GEMMA = GEMMA3 | {
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "rope_local_base_freq": 20000.0,
}
YARN = QWEN3 | {
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
}


@pytest.mark.parametrize(
    "values",
    [LLAMA2, LLAMA31, SMOLLM2, MISTRAL, QWEN25, QWEN3, YARN, GEMMA, GEMMA2, GEMMA3, SCALED_GEMMA, MIXTRAL, QWEN3_MOE],
    ids=lambda values: values["architectures"][0],
)  # fmt: skip
def test_old_and_new_spelling_of_rope_are_the_same_model(values, read):
    assert read(new_spelling(values))[1:] == read(values)[1:]
    if values.get("rope_scaling"):
        older = values["rope_scaling"] | {"type": values["rope_scaling"]["rope_type"]}
        del older["rope_type"]
        assert read(values | {"rope_scaling": older})[1:] == read(values)[1:]


def test_yarn_without_its_original_context_takes_the_model_s(read):
    scaling = {"type": "yarn", "factor": 4.0}
    model = read(QWEN3 | {"rope_scaling": scaling})[1]
    assert (model.rope_scaling, model.rope_scaling_factor, model.rope_original_len) == ("yarn", 4.0, 40960)


def test_kinds_of_layers_by_period_and_one_by_one_are_the_same_model(read):
    plain = {k: v for k, v in GEMMA3.items() if k != "layer_types"}
    assert read(plain | {"sliding_window_pattern": 6})[1] == read(plain)[1] == read(GEMMA3)[1]
    first_global = read(QWEN3 | {"use_sliding_window": True, "sliding_window": 99, "max_window_layers": 27})[
        1
    ]
    assert first_global.layer_kinds == "g" * 27 + "l"
    types = ["full_attention"] * 27 + ["sliding_attention"]
    listed = QWEN3 | {"use_sliding_window": True, "sliding_window": 99, "layer_types": types}
    assert canonical(read(listed)[1]) == canonical(first_global)


REFUSED = {
    "dynamic": (LLAMA31, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
    "longrope": (LLAMA31, {"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope_type='longrope'"),
    "no factor": (LLAMA2, {"rope_scaling": {"type": "linear"}}, "linear needs a factor"),
    "other band": (
        LLAMA31, {"rope_scaling": LLAMA31["rope_scaling"] | {"low_freq_factor": 2.0}},
        "rope_scaling.low_freq_factor=2.0",
    ),
    "other yarn": (QWEN3, {"rope_scaling": YARN["rope_scaling"] | {"beta_fast": 16}}, "rope_scaling.beta_fast=16"),
    "scaled local layers": (
        GEMMA3, {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}}, "sliding_attention",
    ),
    "partial rotary": (LLAMA2, {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    "partial rotary, new": (
        LLAMA2, {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "rope_parameters.partial_rotary_factor=0.5",
    ),
    "interleaved": (SMOLLM2, {"rope_interleaved": True}, "rope_interleaved=True"),
    "relu": (LLAMA2, {"hidden_act": "relu2"}, "hidden_act='relu2'"),
    "exact gelu": (LLAMA2, {"hidden_act": "gelu"}, "hidden_act='gelu'"),
    "gpt2 silu": (GPT2, {"activation_function": "silu"}, "activation_function='silu'"),
    "gemma silu": (GEMMA2, {"hidden_activation": "silu"}, "hidden_activation='silu'"),
    "gemma3 silu": (GEMMA3, {"hidden_activation": "silu"}, "hidden_activation='silu'"),
    "attention_bias": (LLAMA2, {"attention_bias": True}, "attention_bias=True"),
    "mlp_bias": (LLAMA2, {"mlp_bias": True}, "mlp_bias=True"),
    "qwen3 bias": (QWEN3, {"attention_bias": True}, "attention_bias=True"),
    "gemma bias": (GEMMA, {"attention_bias": True}, "attention_bias=True"),
    "quantised": (LLAMA2, {"quantization_config": {"quant_method": "awq"}}, r"quantization_config (awq)"),
    "quantised, unnamed": (LLAMA2, {"quantization_config": {"bits": 4}}, "quantization_config ({'bits': 4})"),
    "quantised, empty": (LLAMA2, {"quantization_config": {}}, "quantization_config={}"),
    "quantised inside": (
        GEMMA3_4B, {"text_config": GEMMA3_4B["text_config"] | {"quantization_config": {"bits": 4}}},
        "quantization_config",
    ),
    "layer types": (QWEN3, {"layer_types": ["full_attention"] * 27 + ["linear_attention"]}, "'linear_attention'"),
    "too few layer types": (QWEN3, {"layer_types": ["full_attention"]}, "one entry for each of the 28 layers"),
    "window that is off": (
        QWEN3, {"layer_types": ["sliding_attention"] * 28, "sliding_window": 8}, "use_sliding_window is false",
    ),
    "a cap that transformers reads and does not apply": (
        GEMMA3, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0",
    ),
    "bidirectional": (GEMMA3, {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
    "every second layer has experts": (QWEN3_MOE, {"decoder_sparse_step": 2}, "decoder_sparse_step=2"),
    "some layers have none": (QWEN3_MOE, {"mlp_only_layers": [0]}, "mlp_only_layers=[0]"),
    "cross attention": (GPT2, {"add_cross_attention": True}, "add_cross_attention=True"),
    "scaled by layer": (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    "not scaled": (GPT2, {"scale_attn_weights": False}, "scale_attn_weights=False"),
    "no heads": (LLAMA2, {"num_attention_heads": 7}, "num_kv_heads"),
    "a word for a number": (LLAMA2, {"hidden_size": "4096"}, "hidden_size='4096' must be"),
    "a fraction for a number": (LLAMA2, {"num_hidden_layers": 2.5}, "num_hidden_layers=2.5 must be"),
    "true for a number": (LLAMA2, {"vocab_size": True}, "vocab_size=True must be"),
    "null for a number": (LLAMA2, {"hidden_size": None}, "hidden_size=None must be"),
    "not a number": (LLAMA2, {"rms_norm_eps": float("nan")}, "rms_norm_eps=nan must be"),
    "a window in words": (MISTRAL, {"sliding_window": "4096"}, "sliding_window='4096' must be"),
    "rope in words": (LLAMA2, {"rope_scaling": "linear"}, "wrong type"),
    "a base in words": (LLAMA2, {"rope_theta": "big"}, "wrong type"),
    "an endless factor": (LLAMA31, {"rope_scaling": YARN["rope_scaling"] | {"factor": float("inf")}}, "be a finite"),
    "a number of layer types": (GEMMA3, {"layer_types": 18}, "wrong type"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_change_the_mathematics_is_refused_by_name(what, read):
    values, change, message = REFUSED[what]
    with pytest.raises(UserError) as error:
        read(values | change)
    assert message in str(error.value)
    assert "config.json" in str(error.value)


@pytest.mark.parametrize(
    ("model_type", "hint"),
    [("lama", "Did you mean llama?"), ("gpt_2", "Did you mean gpt2?"), ("mamba2", "jaxlm reads gpt2, llama"),
     (None, "model_type=None"), (["llama"], r"model_type=['llama']"), ({}, "model_type={}")],
)  # fmt: skip
def test_an_unknown_family_suggests_the_nearest(model_type, hint, read):
    with pytest.raises(UserError) as error:
        read(LLAMA2 | {"model_type": model_type})
    assert hint in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is not JSON"), (b"{", "is not JSON"), (b"[]", "it is no JSON object"), (b"\xff\xff", "is not JSON"),
     (b"{}", "has no model_type"), (b"[" * 100_000, "is not JSON")],
)  # fmt: skip
def test_a_config_that_is_none_is_refused(content, message, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_hf_config(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="config.json does not exist"):
        read_hf_config(tmp_path)


def test_unknown_keys_and_code_are_noted_and_not_followed(read):
    plain = read(LLAMA2)
    family, model, notes = read(
        LLAMA2 | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}, "rope_warp": 3, "x": None, "y": False}
    )
    assert (family, model) == plain[:2]
    assert notes == (
        "auto_map is ignored: no code of a checkpoint is ever run.",
        "keys of config.json that jaxlm does not know were not used: rope_warp=3",
    )


@pytest.mark.parametrize(
    ("fields", "lacks"),
    [
        (dict(activation="relu"), "model.activation='relu'"),
        (
            dict(norm="layernorm", positions="learned", bias="all"),
            "gpt2, the closest, has no model.activation='swiglu'.",
        ),
        (dict(positions="none"), "model.positions='none'"),
        (dict(post_norm=True, qk_norm=True), "qwen3, the closest, has no model.post_norm=True."),
        (dict(layer_pattern="lg", sliding_window=8, bias="all"), "model.bias='all'"),
        (dict(logits_softcap=5.0), "model.logits_softcap=5.0"),
        (
            dict(
                norm="rmsnorm_plus_one",
                activation="geglu",
                scale_embeddings=True,
                post_norm=True,
                qk_norm=True,
                attention_softcap=50.0,
                tie_embeddings=True,
            ),
            "gemma2, the closest, has no model.qk_norm=True",
        ),
        (
            dict(
                norm="rmsnorm_plus_one",
                activation="geglu",
                scale_embeddings=True,
                post_norm=True,
                query_scale_dim=7.5,
            ),
            "gemma2, the closest, has no model.query_scale_dim=7.5",
        ),
    ],
)
def test_a_model_no_family_has_names_what_the_closest_lacks(fields, lacks):
    with pytest.raises(UserError, match="No architecture of Hugging Face is this model") as error:
        family_for(ModelConfig(vocab_size=320, **fields))
    assert lacks in str(error.value)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_activations_of_gpt2_go_out_and_come_back(activation):
    model = dataclasses.replace(sizes.size("tiny-gpt"), activation=activation)
    assert family_for(model).model_type == "gpt2"


def test_a_window_of_the_last_layers_is_written_for_old_readers_and_new():
    model = dataclasses.replace(sizes.size("tiny-qwen2"), layer_pattern="ggl", sliding_window=8)
    written = family_for(model).write(model)
    assert (written["use_sliding_window"], written["sliding_window"], written["max_window_layers"]) == (
        True,
        8,
        2,
    )
    assert written["layer_types"] == ["full_attention"] * 2 + ["sliding_attention"]


def test_caps_of_gemma2_that_are_not_said_are_there(read):
    bare = {k: v for k, v in GEMMA2.items() if "softcapping" not in k and k != "query_pre_attn_scalar"}
    assert read(bare)[1] == read(GEMMA2)[1]


def test_mathematically_equal_models_have_one_form_and_others_do_not():
    model = sizes.size("tiny-llama")
    spelled = ModelConfig(
        **{**vars(model), "query_scale_dim": 16.0, "dtype": "bfloat16", "layer_pattern": "ggg"}
    )
    assert canonical(spelled) == canonical(model)
    for field, value in (
        ("rope_theta", 1e4),
        ("norm_eps", 1e-6),
        ("qk_norm", True),
        ("rope_scaling_factor", 4.0),
    ):
        assert canonical(ModelConfig(**{**vars(model), field: value})) != canonical(model)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_a_config_of_nothing_but_its_type_is_what_transformers_assumes(family):
    """The defaults of each family make a model, and are written back as themselves."""
    model = family.read(HFConfig({"model_type": family.model_type}, "config.json"))
    assert family.differences(model) == {}
