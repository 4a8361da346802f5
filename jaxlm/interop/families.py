"""The families of Hugging Face checkpoints, each a table: our weight <-> its name and layout there. Imports no JAX.

A new family is a list of keys of config.json and a table of weights; the decoder is one for all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config import checked_leaf, from_config_dict, nearest, specs
from jaxlm.interop.hf_config import (
    Aspect,
    HFConfig,
    Key,
    gated_activation,
    llama_biases,
    only,
    plain_activation,
    qwen_experts,
    rope,
    shortest_pattern,
    window_by_pattern,
    window_from_layer_on,
    window_in_all_layers,
    with_defaults,
)
from jaxlm.limits import short
from jaxlm.models.config import ModelConfig
from jaxlm.models.sizes import RUN_FIELDS
from jaxlm.types import UserError

CLASSIFIER = "score.weight"
"""The head of a classifier, beside the model in every family."""

NO_MATHEMATICS = ("max_seq_len", "balance_loss", "router_z_loss")
"""Fields that say nothing about the logits of a model without a position table."""


class Row(NamedTuple):
    """One weight: where it stands in a checkpoint of the family, and how it is laid out there."""

    ours: str
    """Path in our params. Those of blocks are stacks [L, ...]; of experts [L, E, ...]."""
    theirs: str
    """Name of the tensor, one for each {layer} and {expert}."""
    layout: str = "same"
    """`same`: as ours. `flat`: as one dim. `linear`: [out, in], as torch.nn.Linear. `conv1d`: [in, out]."""
    num_in: int = 1
    """Dims of ours, after layers and experts, that are contracted with activations; the rest is `out`."""
    part: tuple[int, int] = (0, 1)
    """(i, n): ours is the i-th of n equal parts of theirs, side by side along `out`."""

    @property
    def num_stacked(self) -> int:
        """Leading dims of ours that are apart in theirs: layers, and experts."""
        return ("{layer}" in self.theirs) + ("{expert}" in self.theirs)

    def names(self, shape: tuple[int, ...]) -> np.ndarray:
        """Names of their tensors, an array shaped like the stacked dims of ours; shape: of ours, whole."""
        lead = shape[: self.num_stacked]
        found = np.empty(lead, object)
        for index in np.ndindex(*lead):
            places = dict(zip(("layer", "expert"), index))
            found[index] = self.theirs.format(**places)
        return found

    def their_shape(self, one: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of their whole tensor; one: shape of ours without the stacked dims."""
        num_in, num_out = math.prod(one[: self.num_in]), math.prod(one[self.num_in :]) * self.part[1]
        if self.layout == "same":
            return one
        if self.layout == "flat":
            return (math.prod(one) * self.part[1],)
        return (num_out, num_in) if self.layout == "linear" else (num_in, num_out)

    def to_ours(self, theirs: np.ndarray, one: tuple[int, ...]) -> np.ndarray:
        """A view of their tensor, cut and turned into ours of shape `one`; nothing is copied."""
        if self.layout == "same":
            return theirs
        axis = {"flat": 0, "linear": 0, "conv1d": 1}[self.layout]
        size = theirs.shape[axis] // self.part[1]
        mine = theirs[(slice(None),) * axis + (slice(self.part[0] * size, (self.part[0] + 1) * size),)]
        if self.layout != "linear":
            return mine.reshape(one)
        ins, outs = one[: self.num_in], one[self.num_in :]
        order = [*range(len(outs), len(one)), *range(len(outs))]
        return mine.reshape(outs + ins).transpose(order)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """The inverse, of one layer and expert; their part only, where there are several."""
        if self.layout == "same":
            return ours
        if self.layout == "flat":
            return ours.reshape(-1)
        matrix = ours.reshape(math.prod(ours.shape[: self.num_in]), -1)
        return matrix.T if self.layout == "linear" else matrix


class Family(NamedTuple):
    """What transformers calls a model type."""

    model_type: str
    architecture: str
    keys: tuple[Key, ...]
    fixed: Mapping[str, Any]
    """Fields of ModelConfig that all its models share."""
    aspects: tuple[Aspect, ...]
    rows: tuple[Row, ...]
    prefix: str = "model."
    """Of all tensors but the head; left out in checkpoints of the model without a head."""
    buffers: tuple[str, ...] = (".rotary_emb.inv_freq",)
    """Ends of the names of tensors that are no weights: old checkpoints hold them."""
    other_parts: tuple[str, ...] = ()
    """Beginnings of the names of what belongs to other modalities."""
    renamed: tuple[tuple[str, str], ...] = ()
    """(beginning, instead): other names of the same tensors."""
    aliases: tuple[str, ...] = ()
    """Other model types with the same config and weights."""
    classifier: str | None = None
    """Architecture with a head for classes, where its name does not follow from `architecture`."""

    def architecture_of(self, model: ModelConfig) -> str:
        """What transformers calls the model with its head."""
        if model.num_classes is None:
            return self.architecture
        plain = self.architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
        return self.classifier or f"{plain}ForSequenceClassification"

    @property
    def all_rows(self) -> tuple[Row, ...]:
        """With the head of a classifier."""
        return (*self.rows, Row("classifier", CLASSIFIER, "linear"))

    def read(self, hf: HFConfig) -> ModelConfig:
        """config.json -> ModelConfig. Errors: UserError for an option that jaxlm's decoder does not have."""
        fields: dict[str, Any] = dict(self.fixed)
        hf.must_be("quantization_config", None)
        fields["num_classes"] = num_labels(hf)
        for key in self.keys:
            fields[key.ours] = hf.get(key.theirs, key.default)
            checked_leaf(f"{hf.where}: {key.theirs}", fields[key.ours], specs(ModelConfig)[key.ours])
        try:
            for aspect in self.aspects:
                fields |= aspect.read(hf)
        except UserError:
            raise
        except (
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
        ) as error:  # a list for a number, and so on
            raise UserError(
                f"{hf.where} has an option of the wrong type ({str(error):.200}). Fetch it again."
            ) from None
        try:
            return from_config_dict(ModelConfig, fields, "model.")
        except UserError as error:
            raise UserError(f"{hf.where} describes no model that jaxlm can build: {error}") from None

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """ModelConfig -> the keys of config.json that say what the model is."""
        said, model = model, canonical(model)
        written: dict[str, Any] = {
            "architectures": [self.architecture_of(model)],
            "model_type": self.model_type,
        }
        if model.num_classes is not None:
            written |= labels_config([f"LABEL_{i}" for i in range(model.num_classes)])
        for key in self.keys:
            value = getattr(said if key.ours in NO_MATHEMATICS else model, key.ours)
            # transformers 5 checks types: query_pre_attn_scalar must be an int. `differences` finds a lost fraction.
            is_int = type(key.default) is int and isinstance(value, float)
            written[key.theirs] = int(value) if is_int else value
        for aspect in self.aspects:
            written |= aspect.write(model)
        return written

    def differences(self, model: ModelConfig) -> dict[str, Any]:
        """Fields of the model that this family cannot say; empty: it is one of its models."""
        try:
            again = dataclasses.asdict(canonical(self.read(HFConfig(self.write(model), "config.json"))))
        except UserError:
            again = {}
        wanted = dataclasses.asdict(canonical(model))
        return {name: value for name, value in wanted.items() if name not in again or again[name] != value}


def num_labels(hf: HFConfig) -> int | None:
    """Outputs of a classifier's head; None for a language model."""
    names = hf.get("architectures")
    if not (isinstance(names, list) and names and str(names[0]).endswith("ForSequenceClassification")):
        return None
    labels = hf.get("id2label")
    return len(labels) if isinstance(labels, dict) and labels else hf.get("num_labels", 2)


def labels_config(names: Sequence[str]) -> dict[str, Any]:
    """The keys of config.json that name the outputs of a classifier's head."""
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def canonical(model: ModelConfig) -> ModelConfig:
    """The same model with defaults filled in and how it is run left out: equal for equal mathematics."""
    plain = {name: getattr(ModelConfig(), name) for name in RUN_FIELDS}
    has_rope = model.positions == "rope"
    kinds = model.layer_kinds
    fields: dict[str, Any] = dict(
        num_kv_heads=model.kv_heads,
        head_dim=model.head_width,
        mlp_dim=model.mlp_width,
        query_scale_dim=float(model.query_scale_dim or model.head_width),
        layer_pattern=shortest_pattern(kinds),
        sliding_window=model.sliding_window if "l" in kinds else None,
        rope_theta=float(model.rope_theta) if has_rope else 10_000.0,
        rope_local_theta=model.rope_local_theta if has_rope and "l" in kinds else None,
    )
    if has_rope:
        fields |= dict(max_seq_len=None)
    else:
        fields |= dict(rope_scaling="none", rope_scaling_factor=1.0, rope_original_len=None)
    return dataclasses.replace(model, **(plain | fields))


def _llama_rows(norms: Mapping[str, str], experts: Mapping[str, str] | None = None) -> tuple[Row, ...]:
    """Llama's table and that of all who took it over.

    Args:
      norms: ours -> theirs, within a block.
      experts: the same, of a mixture of experts that stands for the MLP.
    """
    block = "model.layers.{layer}."
    rows = [Row("embedding", "model.embed_tokens.weight")]
    rows += [Row(f"layers/{ours}/scale", f"{block}{theirs}.weight") for ours, theirs in norms.items()]
    for letter in "qkv":
        rows.append(Row(f"layers/attention/{letter}", f"{block}self_attn.{letter}_proj.weight", "linear"))
        rows.append(Row(f"layers/attention/{letter}_bias", f"{block}self_attn.{letter}_proj.bias", "flat"))
    rows += [
        Row("layers/attention/o", f"{block}self_attn.o_proj.weight", "linear", num_in=2),
        Row("layers/attention/o_bias", f"{block}self_attn.o_proj.bias"),
    ]
    for name in ("q_norm", "k_norm"):
        rows.append(Row(f"layers/attention/{name}/scale", f"{block}self_attn.{name}.weight"))
    for ours, theirs in (experts or {}).items():
        rows.append(Row(f"layers/moe/{ours}", f"{block}{theirs}.weight", "linear"))
    for name in () if experts else ("gate", "up", "down"):
        rows.append(Row(f"layers/mlp/{name}", f"{block}mlp.{name}_proj.weight", "linear"))
        rows.append(Row(f"layers/mlp/{name}_bias", f"{block}mlp.{name}_proj.bias"))
    return (*rows, Row("final_norm/scale", "model.norm.weight"), Row("head", "lm_head.weight"))


_LLAMA_NORMS = dict(attention_norm="input_layernorm", mlp_norm="post_attention_layernorm")
_LLAMA_ROWS = _llama_rows(_LLAMA_NORMS)
_MIXTRAL_ROWS = _llama_rows(
    _LLAMA_NORMS,
    dict(
        router="block_sparse_moe.gate",
        gate="block_sparse_moe.experts.{expert}.w1",
        down="block_sparse_moe.experts.{expert}.w2",
        up="block_sparse_moe.experts.{expert}.w3",
    ),
)
_QWEN3_MOE_ROWS = _llama_rows(
    _LLAMA_NORMS,
    dict(router="mlp.gate")
    | {name: f"mlp.experts.{{expert}}.{name}_proj" for name in ("gate", "up", "down")},
)
_GEMMA2_ROWS = _llama_rows(
    dict(
        attention_norm="input_layernorm",
        attention_post_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    )
)


def _gpt2_rows() -> tuple[Row, ...]:
    block = "transformer.h.{layer}."
    rows = [Row("embedding", "transformer.wte.weight"), Row("positions", "transformer.wpe.weight")]
    for ours, theirs in (("layers/attention_norm", f"{block}ln_1"), ("layers/mlp_norm", f"{block}ln_2")):
        rows += [Row(f"{ours}/scale", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias")]
    for i, letter in enumerate("qkv"):
        name = f"layers/attention/{letter}"
        rows += [
            Row(name, f"{block}attn.c_attn.weight", "conv1d", part=(i, 3)),
            Row(f"{name}_bias", f"{block}attn.c_attn.bias", "flat", part=(i, 3)),
        ]
    rows += [
        Row("layers/attention/o", f"{block}attn.c_proj.weight", "conv1d", num_in=2),
        Row("layers/attention/o_bias", f"{block}attn.c_proj.bias"),
        Row("layers/mlp/up", f"{block}mlp.c_fc.weight", "conv1d"),
        Row("layers/mlp/up_bias", f"{block}mlp.c_fc.bias"),
        Row("layers/mlp/down", f"{block}mlp.c_proj.weight", "conv1d"),
        Row("layers/mlp/down_bias", f"{block}mlp.c_proj.bias"),
        Row("final_norm/scale", "transformer.ln_f.weight"),
        Row("final_norm/bias", "transformer.ln_f.bias"),
        Row("head", "lm_head.weight"),
    ]
    return tuple(rows)


_LLAMA_KEYS = (
    Key("vocab_size", "vocab_size", 32000),
    Key("embed_dim", "hidden_size", 4096),
    Key("num_layers", "num_hidden_layers", 32),
    Key("num_heads", "num_attention_heads", 32),
    Key("num_kv_heads", "num_key_value_heads", None),
    Key("head_dim", "head_dim", None),
    Key("mlp_dim", "intermediate_size", 11008),
    Key("norm_eps", "rms_norm_eps", 1e-6),
    Key("tie_embeddings", "tie_word_embeddings", False),
    Key("max_seq_len", "max_position_embeddings", 2048),
)
"""With what transformers assumes for a key that config.json leaves out (LlamaConfig, and so on)."""
_GEMMA2_KEYS = (
    *with_defaults(
        _LLAMA_KEYS, vocab_size=256_000, embed_dim=2304, num_layers=26, num_heads=8, num_kv_heads=4,
        head_dim=256, mlp_dim=9216, tie_embeddings=True, max_seq_len=8192,
    ),
    Key("query_scale_dim", "query_pre_attn_scalar", 256),
    Key("attention_softcap", "attn_logit_softcapping", 50.0),
    Key("logits_softcap", "final_logit_softcapping", 30.0),
)  # fmt: skip

_RMS: dict[str, Any] = dict(positions="rope", norm="rmsnorm", bias="none")
_GEMMA: dict[str, Any] = _RMS | dict(norm="rmsnorm_plus_one", scale_embeddings=True)
_CAUSAL = only(attention_bias=(False,), use_bidirectional_attention=(False, None))

FAMILIES: tuple[Family, ...] = (
    Family(
        "gpt2",
        "GPT2LMHeadModel",
        keys=(
            Key("vocab_size", "vocab_size", 50257),
            Key("embed_dim", "n_embd", 768),
            Key("num_layers", "n_layer", 12),
            Key("num_heads", "n_head", 12),
            Key("mlp_dim", "n_inner", None),
            Key("norm_eps", "layer_norm_epsilon", 1e-5),
            Key("tie_embeddings", "tie_word_embeddings", True),
            Key("max_seq_len", "n_positions", 1024),
        ),
        fixed=dict(positions="learned", norm="layernorm", bias="all"),
        aspects=(
            plain_activation("activation_function", "gelu_new"),
            only(scale_attn_weights=(True,), scale_attn_by_inverse_layer_idx=(False,), add_cross_attention=(False,)),
        ),
        rows=_gpt2_rows(),
        prefix="transformer.",
        buffers=(".attn.bias", ".attn.masked_bias"),
    ),
    Family(
        "llama",
        "LlamaForCausalLM",
        keys=_LLAMA_KEYS,
        fixed=dict(positions="rope", norm="rmsnorm"),
        aspects=(rope(), gated_activation(), llama_biases()),
        rows=_LLAMA_ROWS,
    ),
    Family(
        "mistral",
        "MistralForCausalLM",
        keys=with_defaults(_LLAMA_KEYS, mlp_dim=14336, num_kv_heads=8, max_seq_len=131072),
        fixed=_RMS,
        aspects=(rope(), gated_activation(), window_in_all_layers(4096)),
        rows=_LLAMA_ROWS,
    ),
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        keys=with_defaults(_LLAMA_KEYS, vocab_size=151936, mlp_dim=22016, num_kv_heads=32, max_seq_len=32768),
        fixed=_RMS | dict(bias="qkv"),
        aspects=(rope(), gated_activation(), window_from_layer_on()),
        rows=_LLAMA_ROWS,
    ),
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        keys=with_defaults(
            _LLAMA_KEYS, vocab_size=151936, mlp_dim=22016, num_kv_heads=32, head_dim=128, max_seq_len=32768
        ),
        fixed=_RMS | dict(qk_norm=True),
        aspects=(rope(), gated_activation(), window_from_layer_on(), only(attention_bias=(False,))),
        rows=_LLAMA_ROWS,
    ),
    Family(
        "gemma",
        "GemmaForCausalLM",
        keys=with_defaults(
            _LLAMA_KEYS, vocab_size=256_000, embed_dim=3072, num_layers=28, num_heads=16, num_kv_heads=16,
            head_dim=256, mlp_dim=24576, tie_embeddings=True, max_seq_len=8192,
        ),
        fixed=_GEMMA | dict(activation="geglu"),
        # The first configs said "gelu"; the weights were trained with its tanh form, which transformers uses.
        aspects=(
            rope(),
            _CAUSAL,
            only(
                hidden_act=("gelu_pytorch_tanh", "gelu", "gelu_new"),
                hidden_activation=("gelu_pytorch_tanh", "gelu", None),
            ),
        ),
        rows=_LLAMA_ROWS,
    ),
    Family(
        "gemma2",
        "Gemma2ForCausalLM",
        keys=_GEMMA2_KEYS,
        fixed=_GEMMA | dict(post_norm=True, activation="geglu"),
        aspects=(
            rope(),
            window_by_pattern(4096, 2),
            _CAUSAL,
            only(hidden_activation=("gelu_pytorch_tanh",), hidden_act=("gelu_pytorch_tanh",)),
        ),
        rows=_GEMMA2_ROWS,
    ),
    Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        keys=with_defaults(
            tuple(key for key in _GEMMA2_KEYS if key.ours != "attention_softcap"),
            vocab_size=262_208, max_seq_len=131_072, logits_softcap=None,
        ),
        fixed=_GEMMA | dict(post_norm=True, qk_norm=True, activation="geglu"),
        aspects=(
            rope(1_000_000.0, 10_000.0),
            window_by_pattern(4096, 6),
            _CAUSAL,
            # Its config has a cap on attention's logits, too, which transformers does not apply.
            only(hidden_activation=("gelu_pytorch_tanh",), attn_logit_softcapping=(None,)),
        ),
        rows=_GEMMA2_ROWS,
        # From 4B on the checkpoints hold a vision tower, too; its names changed with transformers 4.52.
        other_parts=("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
        renamed=(
            ("language_model.model.", "model."),
            ("language_model.lm_head.", "lm_head."),
            ("model.language_model.", "model."),
        ),
        aliases=("gemma3",),
        classifier="Gemma3TextForSequenceClassification",
    ),
    Family(
        "mixtral",
        "MixtralForCausalLM",
        keys=(
            *with_defaults(_LLAMA_KEYS, mlp_dim=14336, num_kv_heads=8, max_seq_len=131_072, norm_eps=1e-5),
            Key("num_experts", "num_local_experts", 8),
            Key("num_experts_per_token", "num_experts_per_tok", 2),
            Key("balance_loss", "router_aux_loss_coef", 0.001),
        ),
        fixed=_RMS | dict(normalize_expert_weights=True),
        aspects=(rope(1_000_000.0), gated_activation(), window_in_all_layers(None)),
        rows=_MIXTRAL_ROWS,
    ),
    Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        keys=(
            *with_defaults(
                _LLAMA_KEYS, vocab_size=151936, embed_dim=2048, num_layers=24, num_kv_heads=4, max_seq_len=32768
            ),
            Key("num_experts_per_token", "num_experts_per_tok", 8),
            Key("normalize_expert_weights", "norm_topk_prob", False),
            Key("balance_loss", "router_aux_loss_coef", 0.001),
        ),
        fixed=_RMS | dict(qk_norm=True),
        aspects=(
            rope(),
            gated_activation(),
            window_in_all_layers(4096, "use_sliding_window"),
            qwen_experts(),
            only(attention_bias=(False,), decoder_sparse_step=(1,), mlp_only_layers=([], None)),
        ),
        rows=_QWEN3_MOE_ROWS,
    ),
)  # fmt: skip
"""In the order in which a family is looked for that can say a model trained here: the most widely read first."""


def family_of(model_type: Any, where: str) -> Family:
    """The family of a config.json's model_type. Errors: UserError for one that is not known."""
    known = {name: family for family in FAMILIES for name in (family.model_type, *family.aliases)}
    if isinstance(model_type, str) and model_type in known:
        return known[model_type]
    match = nearest(short(model_type), known)
    hint = f" Did you mean {match}?" if match else ""
    raise UserError(
        f"{where} has model_type={short(model_type)}; jaxlm reads {', '.join(known)}.{hint} A family with the same "
        "blocks is a table in jaxlm/interop/families.py."
    )


def family_for(model: ModelConfig) -> Family:
    """The first family that can say this model. Errors: UserError that names what the closest one lacks."""
    found = [(family, family.differences(model)) for family in FAMILIES]
    for family, differences in found:
        if not differences:
            return family
    family, differences = min(found, key=lambda pair: len(pair[1]))
    fields = ", ".join(f"model.{name}={value!r}" for name, value in differences.items())
    raise UserError(
        f"No architecture of Hugging Face is this model: {family.model_type}, the closest, has no {fields}. Train with "
        f"a model that has one, such as Llama's (rmsnorm, swiglu, rope) or GPT-2's (layernorm, gelu_tanh, learned "
        "positions, bias=all)."
    )
