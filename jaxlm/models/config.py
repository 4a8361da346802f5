"""ModelConfig: one decoder for GPT-2/3, Llama, Mixtral, Qwen and Gemma, chosen by fields. Imports no JAX."""

from __future__ import annotations

from dataclasses import dataclass, fields

from jaxlm.config import check_choice, divisors
from jaxlm.types import UserError

ACTIVATIONS = ("swiglu", "geglu", "gelu_tanh", "gelu", "relu")
"""Gated: `swiglu` (SiLU gate; Llama), `geglu` (tanh-GELU gate; Gemma). Plain: `gelu_tanh` (GPT-2), `gelu`, `relu`."""
NORMS = ("rmsnorm", "layernorm", "rmsnorm_plus_one")
"""`rmsnorm_plus_one` multiplies by 1 + scale, as Gemma stores it."""
BIASES = ("none", "qkv", "all")
"""`qkv`: query, key and value projections only (Qwen 2). `all`: every projection and LayerNorm (GPT-2)."""
POSITIONS = ("rope", "learned", "none")
ROPE_SCALINGS = ("none", "linear", "llama3", "yarn")
KEPT = ("q", "k", "v", "attention", "o", "gate", "up", "down", "router", "lora")
"""What a block can keep for its backward pass: the products with its weights, and attention's result."""
REMATS = {
    "none": None,
    "minimal": KEPT,
    "save_dots": tuple(name for name in KEPT if name != "attention"),
    "save_attention": ("attention",),
    "full": (),
}
"""Name of `model.remat` -> what is kept beside a block's input; None: all that the backward pass reads."""
ON_HOST = "@host"
"""After a name in `model.remat`: kept in the memory of the host. `input`, the block's input, can only be kept there."""
HOST_MEMORY = "pinned_host"
"""JAX's name of it; TPUs, GPUs and CPUs have one."""
ATTENTIONS = ("auto", "dense", "chunked", "splash", "flash", "cudnn")
BLOCK_UNIT = 128
"""Positions: blocks of attention are multiples of the lanes of a TPU."""
DTYPES = ("float32", "bfloat16")
MAX_LAYERS = 10_000
MAX_DIM = 2**31 - 1
"""Of a dim: XLA counts in 32 bits where it can."""


def attention_chunk(seq_len: int) -> int:
    """Queries at a time of `chunked`: an eighth of all, so that little is computed for nothing; 64, 128, 192 or 256."""
    return max(64, min(256, seq_len // 512 * 64))


def check_blocks(key: str, text: str) -> tuple[int, ...]:
    """Queries, keys, queries on the diagonal; the same of the backward pass. Errors: UserError that names the rule."""
    words = [word.strip() for word in text.split(",")]
    sizes = [int(word) if word.isdecimal() and len(word) < 7 else 0 for word in words]
    if len(sizes) not in (3, 6):
        raise UserError(
            f"{key}={text} must be three numbers, QUERIES,KEYS,DIAGONAL, such as 1024,512,256; or six, the last three "
            "of the backward pass."
        )
    for word, size in zip(words, sizes, strict=True):
        if size < BLOCK_UNIT or size % BLOCK_UNIT:
            near = max(round(size / BLOCK_UNIT), 1) * BLOCK_UNIT
            raise UserError(
                f"{key}={text}: {word} must be a multiple of {BLOCK_UNIT}, the lanes of a TPU. Try {near}."
            )
    for queries, *parts in (sizes[:3], sizes[-3:]):
        for size in parts:
            if queries % size:
                fit = [d * BLOCK_UNIT for d in divisors(queries // BLOCK_UNIT)]
                raise UserError(
                    f"{key}={text}: {size} must divide the {queries} queries of a block. Try one of "
                    f"{', '.join(map(str, fit))}."
                )
    return (*sizes[:3], *sizes[-3:])


@dataclass(frozen=True)
class ModelConfig:
    """Shape and style of a decoder-only transformer. Every field is a config key, `model.<field>`."""

    vocab_size: int | None = None
    """Rows of the embedding; unset: the tokenizer's vocabulary. May be larger (padding), never smaller."""
    num_classes: int | None = None
    """Outputs of a classifier's head, which stands in place of the language head. Unset: the labels of the data, where
    the objective is to classify; else a language model."""
    embed_dim: int = 256
    """Width of the residual stream."""
    num_layers: int = 4
    """Blocks of attention and MLP."""
    num_heads: int = 4
    """Query heads of each layer."""
    num_kv_heads: int | None = None
    """Unset: num_heads (multi-head attention). Fewer: grouped-query attention; 1: multi-query."""
    head_dim: int | None = None
    """Unset: embed_dim // num_heads."""
    mlp_dim: int | None = None
    """Unset: 4 x embed_dim, or 8/3 of it rounded up to a multiple of 64 where the MLP is gated (equal parameters).
    With experts: the width of each."""
    num_experts: int | None = None
    """MLPs of each layer, of which every token meets a few (mixture of experts). Unset: one MLP for all tokens."""
    num_experts_per_token: int = 2
    """Experts that each token meets, those with the highest logits of the router."""
    normalize_expert_weights: bool = True
    """Let the weights of a token's experts sum to 1 (Mixtral, Qwen 3), not to their share of all experts' softmax."""
    balance_loss: float = 0.0
    """Weight of the load-balancing loss of each layer's router (Switch: 0.01): how evenly each row spreads."""
    router_z_loss: float = 0.0
    """Weight of the squared logsumexp of each router's logits (ST-MoE: 0.001)."""
    activation: str = "swiglu"
    """Of the MLP: `swiglu` and `geglu` are gated, `gelu_tanh` (GPT-2), `gelu` and `relu` are not."""
    norm: str = "rmsnorm"
    """`rmsnorm`, `layernorm`, or `rmsnorm_plus_one`, which scales by 1 + weight (Gemma)."""
    norm_eps: float = 1e-6
    """Added to the mean square (rmsnorm) or variance (layernorm) before the root."""
    post_norm: bool = False
    """Also normalise what attention and MLP return, before it is added back (Gemma 2 and 3)."""
    bias: str = "none"
    """Which products add a bias: `none`, `qkv` (Qwen 2), or `all` (GPT-2)."""
    qk_norm: bool = False
    """RMSNorm over head_dim on queries and keys, before RoPE (Qwen 3, Gemma 3)."""
    positions: str = "rope"
    """`rope` turns queries and keys, `learned` adds a table to the embedding (GPT-2), `none` does neither."""
    max_seq_len: int | None = None
    """Rows of the learned position table; unset: data.seq_len. Sampling cannot go beyond it. With RoPE: the context
    that the model is made for, which an export says and nothing enforces."""
    rope_theta: float = 10_000.0
    """Base of RoPE's series of wavelengths: larger for longer contexts."""
    rope_local_theta: float | None = None
    """Base for local layers (Gemma 3: 10,000 beside a global 1,000,000). Unset: rope_theta; unscaled where set."""
    rope_scaling: str = "none"
    """How RoPE is stretched to longer contexts: `linear`, `llama3`, `yarn`, or `none`."""
    rope_scaling_factor: float = 1.0
    """By how much."""
    rope_original_len: int | None = None
    """Context length before scaling: needed by `llama3` and `yarn`."""
    layer_pattern: str = "g"
    """Repeated over the layers: `g` global, `l` local (sliding window). Gemma 2: `lg`; Gemma 3: `lllllg`."""
    sliding_window: int | None = None
    """Keys a local layer sees, its own position included."""
    attention_softcap: float | None = None
    """Logits of attention are squeezed to +-this by tanh (Gemma 2: 50); unset: not."""
    logits_softcap: float | None = None
    """The same of the head's logits (Gemma 2: 30)."""
    query_scale_dim: float | None = None
    """Queries are scaled by this to the power -1/2; unset: head_dim."""
    tie_embeddings: bool = True
    """Let the head use the weights of the embedding."""
    scale_embeddings: bool = False
    """Multiply embeddings by sqrt(embed_dim) (Gemma)."""
    dropout: float = 0.0
    """After the embedding and on both residual branches; keyed by step."""
    dtype: str = "float32"
    """Of activations and matrix products; parameters stay float32."""
    remat: str = "none"
    """What the backward pass does not compute again: all (none), products with weights and attention (minimal), those
    products (save_dots), attention (save_attention), nothing (full). Or a list of what is kept: `q,k,v,attention` of
    q, k, v, attention, o, gate, up, down; with @host, in the memory of the host: `attention,input@host` (on a CPU it is
    the same memory: nothing is gained)."""
    scan_layers: bool = True
    """One compiled layer in a loop (deep models), or unrolled (faster for small ones). Checkpoints are the same."""
    attention: str = "auto"
    """How attention is computed; `auto` picks by platform and says what it picked."""
    attention_blocks: str | None = None
    """Positions at a time in the kernels of TPUs (flash, splash): queries, keys, queries on the diagonal (flash), such
    as `1024,512,256`; or six numbers, the last three of the backward pass. Fewer where they do not divide the length.
    Unset: the default of the chip."""

    def __post_init__(self):
        for name in ("embed_dim", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}={getattr(self, name)} must be at least 1.")
        if self.num_layers > MAX_LAYERS:
            raise UserError(f"model.num_layers={self.num_layers} must be at most {MAX_LAYERS:,}.")
        for field in fields(self):
            if type(value := getattr(self, field.name)) is int and value > MAX_DIM:
                raise UserError(f"model.{field.name}={value} must be at most {MAX_DIM:,}.")
        for name in (
            "vocab_size", "num_classes", "num_kv_heads", "head_dim", "mlp_dim", "num_experts", "max_seq_len",
            "sliding_window", "rope_original_len", "attention_softcap", "logits_softcap", "query_scale_dim",
            "rope_local_theta",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(
                    f"model.{name}={value} must be positive; leave it unset (None) for the default."
                )
        check_choice("model.activation", self.activation, ACTIVATIONS)
        check_choice("model.norm", self.norm, NORMS)
        check_choice("model.bias", self.bias, BIASES)
        check_choice("model.positions", self.positions, POSITIONS)
        check_choice("model.rope_scaling", self.rope_scaling, ROPE_SCALINGS)
        self._check_remat()
        check_choice("model.attention", self.attention, ATTENTIONS)
        self._check_attention_blocks()
        check_choice("model.dtype", self.dtype, DTYPES)
        if self.num_heads % self.kv_heads:
            raise UserError(
                f"model.num_heads={self.num_heads} must be a multiple of model.num_kv_heads={self.kv_heads}: each KV "
                f"head serves an equal group of query heads. Try num_kv_heads in {divisors(self.num_heads)}."
            )
        if self.head_dim is None and self.embed_dim % self.num_heads:
            raise UserError(
                f"model.embed_dim={self.embed_dim} must be a multiple of model.num_heads={self.num_heads} when "
                f"model.head_dim is unset. Try num_heads in {divisors(self.embed_dim)}, or set head_dim."
            )
        if self.positions == "rope" and self.head_width % 2:
            raise UserError(f"model.head_dim={self.head_width} must be even: RoPE rotates pairs of channels.")
        if not self.layer_pattern or set(self.layer_pattern) - set("gl"):
            raise UserError(
                f"model.layer_pattern={self.layer_pattern!r} must be letters g (global) and l (local), for example "
                "'lllllg'."
            )
        if "l" in self.layer_pattern and self.sliding_window is None:
            raise UserError(
                f"model.layer_pattern={self.layer_pattern!r} has local layers, so model.sliding_window must be set: "
                "the number of keys such a layer sees."
            )
        if "l" not in self.layer_pattern and self.sliding_window is not None:
            raise UserError(
                f"model.sliding_window={self.sliding_window} would be ignored: model.layer_pattern="
                f"{self.layer_pattern!r} has no local layer. Try layer_pattern='l', or unset sliding_window."
            )
        if self.rope_scaling in ("llama3", "yarn") and self.rope_original_len is None:
            raise UserError(
                f"model.rope_scaling={self.rope_scaling!r} needs model.rope_original_len: the context length before "
                "scaling (8192 for Llama 3.1)."
            )
        if self.rope_scaling == "none" and self.rope_scaling_factor != 1.0:
            raise UserError(
                f"model.rope_scaling_factor={self.rope_scaling_factor} would be ignored: model.rope_scaling is "
                "'none'. Try rope_scaling='linear'."
            )
        if self.rope_scaling_factor < 1.0:
            raise UserError(f"model.rope_scaling_factor={self.rope_scaling_factor} must be at least 1.")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"model.dropout={self.dropout} must be in [0, 1).")
        if self.norm_eps <= 0:
            raise UserError(f"model.norm_eps={self.norm_eps} must be positive.")
        self._check_experts()

    def _check_remat(self) -> None:
        names = [name.strip() for name in self.remat.split(",")]
        usable = (*KEPT, *(name + ON_HOST for name in (*KEPT, "input")))
        for name in names:
            check_choice("model.remat", name, usable if len(names) > 1 else (*REMATS, *usable))

    def _check_attention_blocks(self) -> None:
        if self.attention_blocks is None:
            return
        check_blocks("model.attention_blocks", self.attention_blocks)
        if self.attention in ("dense", "chunked", "cudnn"):
            raise UserError(
                f"model.attention_blocks={self.attention_blocks} would be ignored: model.attention={self.attention!r} "
                "has no such blocks. Try attention='auto', or unset attention_blocks."
            )

    def _check_experts(self) -> None:
        """The fields of a mixture of experts, which only make sense together."""
        E, k = self.num_experts, self.num_experts_per_token
        if E is None:
            for name in (
                "num_experts_per_token",
                "normalize_expert_weights",
                "balance_loss",
                "router_z_loss",
            ):
                value = getattr(self, name)
                if value != type(self).__dataclass_fields__[name].default:
                    raise UserError(
                        f"model.{name}={value} would be ignored: model.num_experts is unset, so every layer has one "
                        "MLP. Try num_experts=8."
                    )
            return
        if not 1 <= k <= E:
            raise UserError(
                f"model.num_experts_per_token={k} must be in [1, model.num_experts={E}]: a token meets each of its "
                f"experts once. Try num_experts_per_token={min(max(k, 1), E)}."
            )
        for name in ("balance_loss", "router_z_loss"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"model.{name}={getattr(self, name)} must not be negative: it would be rewarded. Try 0.0 (none)."
                )
        if self.bias == "all":
            raise UserError(
                f"model.bias='all' is not supported with model.num_experts={E}: experts have no biases. Try "
                "bias='qkv' or bias='none'."
            )

    @property
    def kept(self) -> tuple[str, ...]:
        """What of `KEPT` a block keeps on the device under `remat`; empty for `none`, under which no policy asks."""
        if self.remat in REMATS:
            return REMATS[self.remat] or ()
        names = (name.strip() for name in self.remat.split(","))
        return tuple(name for name in names if not name.endswith(ON_HOST))

    @property
    def kept_on_host(self) -> tuple[str, ...]:
        """What a block keeps in the memory of the host."""
        if self.remat in REMATS:
            return ()
        names = (name.strip() for name in self.remat.split(","))
        return tuple(name.removesuffix(ON_HOST) for name in names if name.endswith(ON_HOST))

    @property
    def block_sizes(self) -> tuple[int, ...] | None:
        """The six numbers of attention_blocks; None where it is unset."""
        return None if self.attention_blocks is None else check_blocks("", self.attention_blocks)

    @property
    def kv_heads(self) -> int:
        """num_kv_heads with its default filled in."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_width(self) -> int:
        """head_dim with its default filled in."""
        return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies two projections (SwiGLU, GeGLU; Shazeer 2020, arXiv:2002.05202)."""
        return self.activation in ("swiglu", "geglu")

    @property
    def mlp_width(self) -> int:
        """mlp_dim with its default filled in."""
        if self.mlp_dim is not None:
            return self.mlp_dim
        return 64 * -(-8 * self.embed_dim // (3 * 64)) if self.gated else 4 * self.embed_dim

    @property
    def layer_kinds(self) -> str:
        """The pattern written out: one letter a layer."""
        repeats = -(-self.num_layers // len(self.layer_pattern))
        return (self.layer_pattern * repeats)[: self.num_layers]
