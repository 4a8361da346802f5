"""config.json of Hugging Face <-> ModelConfig: what the families share. Imports no JAX.

A family is a list of `Key`s, which are copied, and of `Aspect`s, which need a thought; each can read and write.
Whatever a config.json says that would change the mathematics and that jaxlm does not do is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxlm.limits import short
from jaxlm.models.config import MAX_LAYERS, ModelConfig
from jaxlm.types import UserError

HARMLESS = frozenset(
    """
    architectures attention_dropout attn_pdrop
    bos_token_id cache_implementation chunk_size_feed_forward dtype embd_pdrop eos_token_id finetuning_task
    gradient_checkpointing id2label image_token_index initializer_range is_decoder
    is_encoder_decoder label2id max_length max_window_layers model_type n_ctx name_or_path num_labels output_attentions
    output_hidden_states output_router_logits pad_token_id pretraining_tp problem_type reorder_and_upcast_attn
    resid_pdrop return_dict router_jitter_noise summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj task_specific_params tokenizer_class torch_dtype
    transformers_version transformers.js_config unk_token_id unsloth_fixed unsloth_version use_cache
    boi_token_index eoi_token_index eoa_token_index mm_tokens_per_image vision_config text_config
    """.split()
)
"""Keys that say nothing about the mathematics of the decoder (dropout is a choice of the training here)."""


class HFConfig:
    """A config.json that remembers which of its keys were looked at."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values = values
        self.where = where
        self._seen: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or the default where the key is missing."""
        self._seen.add(key)
        return self.values.get(key, default)

    def refuse(self, key: str, value: Any, why: str) -> UserError:
        """The error for an option that cannot be honoured."""
        return UserError(f"{self.where} has {key}={short(value)}: {why}.")

    def must_be(self, key: str, *allowed: Any) -> None:
        """Errors: UserError where the key is there with another value than these."""
        value = self.get(key, allowed[0])
        if value not in allowed:
            raise self.refuse(key, value, f"jaxlm reads only {' or '.join(map(repr, allowed))}")

    @property
    def unknown(self) -> dict[str, Any]:
        """What nobody looked at, and is not known to be harmless."""
        return {
            key: value
            for key, value in self.values.items()
            if key not in self._seen and key not in HARMLESS and key[0] != "_" and value not in (None, False)
        }


class Key(NamedTuple):
    """A field of ModelConfig that config.json has under another name."""

    ours: str
    theirs: str
    default: Any
    """What transformers assumes where the key is missing."""


class Aspect(NamedTuple):
    """Fields of ModelConfig that config.json says in its own way."""

    read: Callable[[HFConfig], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]


def with_defaults(keys: tuple[Key, ...], **defaults: Any) -> tuple[Key, ...]:
    """The same keys with other defaults, by the name of our field."""
    unknown = set(defaults) - {key.ours for key in keys}
    assert not unknown, unknown
    return tuple(key._replace(default=defaults.get(key.ours, key.default)) for key in keys)


# RoPE.

_LLAMA3_BAND = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_YARN_DEFAULTS = {
    "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": None, "mscale": None, "mscale_all_dim": None,
    "truncate": True,
}  # fmt: skip


def rope(default_theta: float = 10_000.0, default_local_theta: float | None = None) -> Aspect:
    """Base and scaling of RoPE: `rope_theta` and `rope_scaling`, or `rope_parameters` since transformers 5.

    Args:
      default_local_theta: where local layers have a base of their own (Gemma 3).
    """

    def read(hf: HFConfig) -> dict[str, Any]:
        scaling, parameters = hf.get("rope_scaling") or {}, hf.get("rope_parameters") or {}
        top, local = hf.get("rope_theta", default_theta), hf.get("rope_local_base_freq", default_local_theta)
        if "full_attention" in parameters or "sliding_attention" in parameters:
            local_parameters = parameters.get("sliding_attention") or {}
            parameters = parameters.get("full_attention") or {}
            kind = local_parameters.get("rope_type", "default")
            if default_local_theta is None or kind != "default":
                raise hf.refuse(
                    "rope_parameters.sliding_attention", local_parameters, "local layers have no scaling"
                )
            local = local_parameters.get("rope_theta", local)
        hf.must_be("partial_rotary_factor", 1.0, None)
        hf.must_be("rope_interleaved", False, None)
        parameters = {**parameters, **scaling}
        fields: dict[str, Any] = {"rope_theta": float(parameters.pop("rope_theta", top))}
        if default_local_theta is not None:
            fields["rope_local_theta"] = float(local)
        return fields | _read_scaling(hf, parameters)

    def write(model: ModelConfig) -> dict[str, Any]:
        written: dict[str, Any] = {"rope_theta": model.rope_theta}
        if default_local_theta is not None:
            written["rope_local_base_freq"] = model.rope_local_theta or model.rope_theta
        if model.rope_scaling != "none":
            scaling: dict[str, Any] = {"rope_type": model.rope_scaling, "factor": model.rope_scaling_factor}
            if model.rope_scaling == "llama3":
                scaling |= _LLAMA3_BAND
            if model.rope_scaling in ("llama3", "yarn"):
                scaling["original_max_position_embeddings"] = model.rope_original_len
            written["rope_scaling"] = scaling
        return written

    return Aspect(read, write)


def _read_scaling(hf: HFConfig, scaling: dict[str, Any]) -> dict[str, Any]:
    kind = scaling.pop("rope_type", None) or scaling.get("type") or "default"
    scaling.pop("type", None)
    partial = scaling.pop("partial_rotary_factor", None)
    if partial not in (None, 1.0):
        raise hf.refuse(
            "rope_parameters.partial_rotary_factor", partial, "RoPE turns all channels of a head here"
        )
    if kind == "default":
        return {}
    if kind not in ("linear", "llama3", "yarn"):
        raise hf.refuse("rope_scaling.rope_type", kind, "jaxlm has default, linear, llama3 and yarn")
    if "factor" not in scaling:
        raise hf.refuse("rope_scaling", scaling, f"{kind} needs a factor")
    fields: dict[str, Any] = {"rope_scaling": kind, "rope_scaling_factor": float(scaling.pop("factor"))}
    original = scaling.pop("original_max_position_embeddings", None)
    if kind in ("llama3", "yarn"):
        original = original or hf.get("original_max_position_embeddings") or hf.get("max_position_embeddings")
        fields["rope_original_len"] = int(original)
    fixed = {"linear": {}, "llama3": _LLAMA3_BAND, "yarn": _YARN_DEFAULTS}[kind]
    for key, value in scaling.items():
        if key not in fixed or (value != fixed[key] and value is not None):
            raise hf.refuse(
                f"rope_scaling.{key}", value, f"{kind} is done with {fixed.get(key, 'no such option')} here"
            )
    return fields


# Which layers are local.

_LETTERS = {"full_attention": "g", "sliding_attention": "l"}
_KINDS = {letter: kind for kind, letter in _LETTERS.items()}


def shortest_pattern(kinds: str) -> str:
    """The shortest pattern that, repeated and cut off, gives these kinds of layers."""
    L = len(kinds)
    return next(kinds[:p] for p in range(1, L + 1) if (kinds[:p] * -(-L // p))[:L] == kinds)


def _num_layers(hf: HFConfig, default: int) -> int:
    """Checked before anything is written out for each of them."""
    value = hf.get("num_hidden_layers", default)
    if type(value) is not int or not 0 < value <= MAX_LAYERS:
        raise hf.refuse("num_hidden_layers", value, f"a model has 1 to {MAX_LAYERS:,} layers")
    return value


def _read_layer_types(hf: HFConfig, num_layers: int) -> str | None:
    types = hf.get("layer_types")
    if types is None:
        return None
    if len(types) != num_layers:
        raise hf.refuse("layer_types", types, f"it must have one entry for each of the {num_layers} layers")
    for kind in types:
        if kind not in _LETTERS:
            raise hf.refuse("layer_types", kind, "jaxlm has full_attention and sliding_attention")
    return "".join(_LETTERS[kind] for kind in types)


def _layers(kinds: str, window: int | None) -> dict[str, Any]:
    if "l" not in kinds:
        return {"layer_pattern": "g"}
    return {"layer_pattern": shortest_pattern(kinds), "sliding_window": window}


def window_in_all_layers(default: int | None, switch: str | None = None) -> Aspect:
    """`sliding_window` of every layer, or of none where it is null (Mistral), or switched off (Qwen 3 MoE)."""

    def read(hf: HFConfig) -> dict[str, Any]:
        window = hf.get("sliding_window", default)
        if switch is not None and not hf.get(switch, False):
            window = None
        return _layers("l" if window is not None else "g", window)

    def write(model: ModelConfig) -> dict[str, Any]:
        written = {"sliding_window": model.sliding_window}
        return written if switch is None else written | {switch: model.sliding_window is not None}

    return Aspect(read, write)


def window_from_layer_on() -> Aspect:
    """Qwen 2 and 3: from layer `max_window_layers` on, if `use_sliding_window`; or as `layer_types` says."""

    def read(hf: HFConfig) -> dict[str, Any]:
        L = _num_layers(hf, 32)
        window, first = hf.get("sliding_window", 4096), hf.get("max_window_layers", 28)
        kinds = _read_layer_types(hf, L)
        if not hf.get("use_sliding_window", False):
            window = None
        if kinds is None:
            kinds = "".join("l" if window is not None and i >= first else "g" for i in range(L))
        if window is None and "l" in kinds:
            raise hf.refuse("layer_types", "sliding_attention", "use_sliding_window is false")
        return _layers(kinds, window)

    def write(model: ModelConfig) -> dict[str, Any]:
        kinds = model.layer_kinds
        if "l" not in kinds:
            return {"use_sliding_window": False}
        types = [_KINDS[kind] for kind in kinds]
        return {
            "use_sliding_window": True,
            "sliding_window": model.sliding_window,
            "max_window_layers": kinds.index("l"),
            "layer_types": types,
        }

    return Aspect(read, write)


def window_by_pattern(default_window: int, default_period: int) -> Aspect:
    """Gemma 2 and 3: every `default_period`-th layer is global, or as `layer_types` says."""

    def read(hf: HFConfig) -> dict[str, Any]:
        L = _num_layers(hf, 26)
        period = hf.get("sliding_window_pattern", default_period) or default_period
        kinds = _read_layer_types(hf, L)
        if kinds is None:
            kinds = "".join("l" if (i + 1) % period else "g" for i in range(L))
        return _layers(kinds, hf.get("sliding_window", default_window))

    def write(model: ModelConfig) -> dict[str, Any]:
        kinds = model.layer_kinds
        written: dict[str, Any] = {"layer_types": [_KINDS[kind] for kind in kinds]}
        if "l" in kinds:
            written["sliding_window"] = model.sliding_window
        pattern = shortest_pattern(kinds)
        if pattern == "l" * (len(pattern) - 1) + "g":
            written["sliding_window_pattern"] = len(pattern)
        return written

    return Aspect(read, write)


# Activation, biases.

_SILU = ("silu", "swish")
_TANH_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate")


def gated_activation(key: str = "hidden_act", default: str = "silu") -> Aspect:
    """The activation of a gated MLP."""

    def read(hf: HFConfig) -> dict[str, Any]:
        name = hf.get(key, default) or default
        if name in _SILU:
            return {"activation": "swiglu"}
        if name in _TANH_GELU:
            return {"activation": "geglu"}
        raise hf.refuse(key, name, "a gated MLP has silu or gelu_pytorch_tanh in jaxlm")

    def write(model: ModelConfig) -> dict[str, Any]:
        return {key: {"swiglu": "silu", "geglu": "gelu_pytorch_tanh"}.get(model.activation)}

    return Aspect(read, write)


def plain_activation(key: str, default: str) -> Aspect:
    """The activation of a plain MLP (GPT-2)."""

    def read(hf: HFConfig) -> dict[str, Any]:
        name = hf.get(key, default)
        ours = "gelu_tanh" if name in _TANH_GELU else name
        if ours not in ("gelu_tanh", "gelu", "relu"):
            raise hf.refuse(key, name, "a plain MLP has gelu_new, gelu or relu in jaxlm")
        return {"activation": ours}

    def write(model: ModelConfig) -> dict[str, Any]:
        return {key: {"gelu": "gelu", "relu": "relu"}.get(model.activation, "gelu_new")}

    return Aspect(read, write)


def llama_biases() -> Aspect:
    """`attention_bias` and `mlp_bias`: both or none."""

    def read(hf: HFConfig) -> dict[str, Any]:
        attention, mlp = bool(hf.get("attention_bias", False)), bool(hf.get("mlp_bias", False))
        if attention != mlp:
            name = "attention_bias" if attention else "mlp_bias"
            raise hf.refuse(
                name, True, "jaxlm's decoder has biases in all projections, in q, k and v, or in none"
            )
        return {"bias": "all" if attention else "none"}

    def write(model: ModelConfig) -> dict[str, Any]:
        return {"attention_bias": model.bias == "all", "mlp_bias": model.bias == "all"}

    return Aspect(read, write)


def qwen_experts() -> Aspect:
    """Number and width of the experts; `intermediate_size` is that of dense layers, of which there are none."""

    def read(hf: HFConfig) -> dict[str, Any]:
        count = hf.get(
            "num_experts", hf.get("num_local_experts", 128)
        )  # the name changed with transformers 5
        return {"num_experts": count, "mlp_dim": hf.get("moe_intermediate_size", 768)}

    def write(model: ModelConfig) -> dict[str, Any]:
        return {"num_experts": model.num_experts, "moe_intermediate_size": model.mlp_width}

    return Aspect(read, write)


def only(**allowed: tuple[Any, ...]) -> Aspect:
    """Options that jaxlm has in one form: refused in any other, written as the first."""

    def read(hf: HFConfig) -> dict[str, Any]:
        for key, values in allowed.items():
            hf.must_be(key, *values)
        return {}

    return Aspect(read, lambda model: {key: values[0] for key, values in allowed.items()})
