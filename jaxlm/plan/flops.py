"""Parameters and FLOPs of a model, by arithmetic on its config alone: no arrays, no devices, no JAX.

`weights(model)` lists every weight with its shape and logical axes, as `jaxlm.models` makes them; counts,
FLOPs and (in `plan/memory.py`) bytes on a mesh are sums over that list.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from jaxlm.models.config import ModelConfig
from jaxlm.types import UserError


class Weight(NamedTuple):
    """One weight of the model; weights of blocks are stacks with a leading `layers` dim."""

    part: str
    """`embedding`, `positions`, `attention`, `mlp`, `experts`, `norms` or `head`."""
    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]

    @property
    def num_params(self) -> int:
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether tokens are multiplied by it: not norms, biases, position tables."""
        return self.part not in ("norms", "positions") and not self.name.endswith("bias")

    @property
    def is_expert(self) -> bool:
        """Whether it is one of several, of which a token meets `num_experts_per_token`."""
        return "experts" in self.axes and self.name != "router"

    def active_params(self, model: ModelConfig) -> int:
        """Parameters that a token meets."""
        if not self.is_expert or model.num_experts is None:
            return self.num_params
        return self.num_params // model.num_experts * model.num_experts_per_token


class ParamCount(NamedTuple):
    """Number of parameters by part. Biases count with their projection, QK-norms with the norms."""

    embedding: int
    positions: int
    attention: int
    mlp: int
    norms: int
    head: int
    """0 where the head is tied to the embedding."""
    experts: int
    """Routers, and as many experts as a token meets."""
    idle_experts: int
    """All other experts."""

    @property
    def total(self) -> int:
        return sum(self)

    @property
    def active(self) -> int:
        """What one token meets: all but the experts it is not sent to."""
        return self.total - self.idle_experts

    @property
    def non_embedding(self) -> int:
        """Without token and position embeddings and the head: Kaplan's N (arXiv:2001.08361, section 2.1)."""
        return self.attention + self.mlp + self.experts + self.idle_experts + self.norms


class FlopsPerToken(NamedTuple):
    """Floating-point operations per token; a multiplication and an addition are two."""

    weights: float
    """Products with weight matrices, the head among them."""
    attention: float
    """Products of queries with keys, and of probabilities with values."""
    formula: str

    @property
    def total(self) -> float:
        return self.weights + self.attention


def _block_weights(model: ModelConfig) -> list[Weight]:
    """Weights of one block, without the `layers` dim."""
    D, N, K, H = model.embed_dim, model.num_heads, model.kv_heads, model.head_width
    out: list[Weight] = []

    def norm(name: str, dim: int = D, axis: str = "width") -> None:
        out.append(Weight("norms", f"{name}.scale", (dim,), (axis,)))
        if model.norm == "layernorm" and model.bias == "all":
            out.append(Weight("norms", f"{name}.bias", (dim,), (axis,)))

    norm("attention_norm")
    for name, heads, axis in (("q", N, "heads"), ("k", K, "kv_heads"), ("v", K, "kv_heads")):
        out.append(Weight("attention", name, (D, heads, H), ("embed", axis, "head_dim")))
        if model.bias in ("qkv", "all"):
            out.append(Weight("attention", f"{name}_bias", (heads, H), (axis, "head_dim")))
    if model.qk_norm:
        norm("q_norm", H, "head_dim")
        norm("k_norm", H, "head_dim")
    out.append(Weight("attention", "o", (N, H, D), ("heads", "head_dim", "embed")))
    if model.bias == "all":
        out.append(Weight("attention", "o_bias", (D,), ("width",)))
    if model.post_norm:
        norm("attention_post_norm")
    norm("mlp_norm")
    out.extend(
        _mlp_weights(model) if model.num_experts is None else _expert_weights(model, model.num_experts)
    )
    if model.post_norm:
        norm("mlp_post_norm")
    return out


def _mlp_weights(model: ModelConfig) -> list[Weight]:
    D, F, out = model.embed_dim, model.mlp_width, []
    for name in ("up", "gate") if model.gated else ("up",):
        out.append(Weight("mlp", name, (D, F), ("embed", "mlp")))
        if model.bias == "all":
            out.append(Weight("mlp", f"{name}_bias", (F,), ("mlp",)))
    out.append(Weight("mlp", "down", (F, D), ("mlp", "embed")))
    if model.bias == "all":
        out.append(Weight("mlp", "down_bias", (D,), ("width",)))
    return out


def _expert_weights(model: ModelConfig, E: int) -> list[Weight]:
    D, F = model.embed_dim, model.mlp_width
    return [
        Weight("experts", "router", (D, E), ("embed", "experts")),
        *(
            Weight("experts", name, (E, D, F), ("experts", "embed", "mlp"))
            for name in (("up", "gate") if model.gated else ("up",))
        ),
        Weight("experts", "down", (E, F, D), ("experts", "mlp", "embed")),
    ]


def weights(model: ModelConfig, seq_len: int | None = None) -> list[Weight]:
    """Every weight of the model.

    Args:
      model: with vocab_size filled in.
      seq_len: rows of a learned position table where model.max_seq_len is unset.
    """
    if model.vocab_size is None:
        raise UserError(
            "model.vocab_size is unset, so parameters cannot be counted: set it, or give a tokenizer."
        )
    V, D = model.vocab_size, model.embed_dim
    out = [Weight("embedding", "embedding", (V, D), ("vocab", "embed"))]
    if model.positions == "learned":
        num_positions = model.max_seq_len or seq_len
        if num_positions is None:
            raise UserError(
                "model.max_seq_len is unset, so the learned position table has no length yet: set it, or "
                "data.seq_len."
            )
        out.append(Weight("positions", "positions", (num_positions, D), ("positions", "embed")))
    for w in _block_weights(model):
        out.append(w._replace(shape=(model.num_layers, *w.shape), axes=("layers", *w.axes)))
    out.append(Weight("norms", "final_norm.scale", (D,), ("width",)))
    if model.norm == "layernorm" and model.bias == "all":
        out.append(Weight("norms", "final_norm.bias", (D,), ("width",)))
    if model.num_classes is not None:
        out.append(Weight("head", "classifier", (D, model.num_classes), ("embed", "classes")))
    elif not model.tie_embeddings:
        out.append(Weight("head", "head", (V, D), ("vocab", "embed")))
    return out


def count_params(model: ModelConfig, seq_len: int | None = None) -> ParamCount:
    """Number of parameters by part, equal to the built model's; seq_len as in `weights`."""
    counts = dict.fromkeys(ParamCount._fields, 0)
    for w in weights(model, seq_len):
        counts[w.part] += w.active_params(model)
        counts["idle_experts"] += w.num_params - w.active_params(model)
    return ParamCount(**counts)


def matmul_params(model: ModelConfig) -> int:
    """Parameters a token is multiplied by: matrices of the blocks and the head, once, whether tied or not.

    Of the experts, those that a token is sent to. Looking up an embedding is no product; norms and biases are too
    small to count.
    """
    everything = [w for w in weights(model, seq_len=1) if w.is_matrix]
    of_tokens = {"attention", "mlp", "experts"}
    if model.num_classes is None:  # else the head is of a text, not of a token
        of_tokens |= {"embedding" if model.tie_embeddings else "head"}
    return sum(w.active_params(model) for w in everything if w.part in of_tokens)


def mean_keys(kind: str, seq_len: int, window: int | None, *, causal_halved: bool) -> float:
    """Keys a query is multiplied with, averaged over the positions of a full row of one document.

    Global layers (kind `g`): T, or T / 2 halved. Local layers see W = min(window, T): W, or W - W^2 / (2 T)
    halved (the first W queries see fewer), which is T / 2 where the window spans the row.
    """
    T = seq_len
    W = min(window or T, T) if kind == "l" else T
    return W - W * W / (2 * T) if causal_halved else float(W)


def flops_per_token(
    model: ModelConfig, seq_len: int, *, causal_halved: bool = True, backward: bool = True
) -> FlopsPerToken:
    """Model FLOPs per token of training (or of a forward pass alone).

    Training: 6 M + 12 N H S summed over layers, where M are the parameters of `matmul_params` and S is
    `mean_keys`: a multiply-add is 2, and the backward pass costs twice the forward pass. What
    rematerialisation computes again is not counted (model FLOPs, as for MFU; not hardware FLOPs), nor
    softmax, norms and the embedding lookup.

    Args:
      causal_halved: count only the half of the [T, T] table that causal attention needs. False counts all of
        it, as PaLM does: 12 L T N H.
      backward: False leaves 2 M + 4 N H S.

    Sources: Kaplan et al. 2020, arXiv:2001.08361, section 2.1; Chowdhery et al. 2022 (PaLM),
    arXiv:2204.02311, appendix B; Hoffmann et al. 2022 (Chinchilla), arXiv:2203.15556, appendix F.
    """
    M, N, H = matmul_params(model), model.num_heads, model.head_width
    window = model.sliding_window
    keys = sum(mean_keys(kind, seq_len, window, causal_halved=causal_halved) for kind in model.layer_kinds)
    passes = 3 if backward else 1
    formula = (
        f"{2 * passes} M + {4 * passes} N H keys; M = {M:,} parameters in products (a tied head once, the "
        f"embedding lookup not), N = {N} heads, H = {H}, keys = {keys:,.0f} in {model.num_layers} layers "
        f"at T = {seq_len} ({'the causal half' if causal_halved else 'the whole table, not the causal half'})"
    )
    return FlopsPerToken(2.0 * passes * M, 4.0 * passes * N * H * keys, formula)


def training_flops(num_params: float, num_tokens: float) -> float:
    """C = 6 N D, the rule of thumb: 3.15e23 for GPT-3's 175B parameters and 300B tokens.

    Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1.
    """
    return 6.0 * num_params * num_tokens


def mfu(tokens_per_s: float, flops: FlopsPerToken, peak_flops_per_s: float) -> float:
    """Model FLOP utilisation: the share of the peak of all devices together that the model's FLOPs use.

    A figure means nothing without what it counts. What a run logs as `perf/mfu` takes `flops_per_token` as it is by
    default: products with weights and attention, of attention only the half of the table below the diagonal, nothing
    twice that remat computes twice; and the dense peak of `plan/hardware.py`. PaLM and MaxText before its PR 1988
    count the whole table (`causal_halved=False`), and so report more for the same speed.

    Source: PaLM, arXiv:2204.02311, appendix B.
    """
    return tokens_per_s * flops.total / peak_flops_per_s
