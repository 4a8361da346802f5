"""Weights with logical axes, norms, the gated MLP and dropout: the pieces every block is made of."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxlm.collective import Place, Split
from jaxlm.models.config import ModelConfig
from jaxlm.models.dense import dense, dense_each
from jaxlm.models.quantized import dense_quantized

INIT_STDDEV = 0.02
"""Of every weight matrix (GPT-2); projections back into the residual stream are smaller, see `residual_stddev`."""


class Constrain(Protocol):
    """Tells the compiler how an activation is sharded, by the logical names of its dimensions."""

    def __call__(self, x: jax.Array, *axes: str) -> jax.Array: ...


class Spread(Protocol):
    """How a mesh spreads a model: the names of its axes, and where products run."""

    @property
    def mesh(self) -> Mesh: ...
    @property
    def batch(self) -> tuple[str, ...]:
        """Axes that split the rows of a batch, `experts` among them."""
        ...

    @property
    def experts(self) -> str:
        """Splits the experts."""
        ...

    @property
    def embed(self) -> str:
        """Splits the weights of every matrix, which are gathered for use."""
        ...

    @property
    def heads(self) -> str:
        """Splits the heads."""
        ...

    @property
    def mlp(self) -> str:
        """Splits the width of every MLP."""
        ...

    @property
    def length(self) -> str | None:
        """Splits the length of every row; None: rows are whole."""
        ...

    @property
    def sequence_attention(self) -> str:
        """`gather` or `ring`: how queries meet the keys of other parts of the length."""
        ...

    @property
    def length_split(self) -> Split | None:
        """How the devices along `length` hold the second dim of [B, T, ...]; None: rows are whole."""
        ...

    def place(self, axes: tuple[str, ...], length: int) -> Place | None:
        """Where x[B, length, ...] is multiplied by a matrix of these logical axes; None: the compiler's choice."""
        ...

    def ends(self) -> Place:
        """Where tokens are looked up and predicted: the tables are [V, embed]."""
        ...

    def split(self, dim: int) -> Split | None:
        """How a weight is held whose dim `dim` is `embed`; None: it is whole."""
        ...


def weight(module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...], init) -> Any:
    """Makes or fetches a float32 weight; the only door, so that no weight can lack its logical axes.

    A matrix that is kept in fewer bits (collection `quantized`) comes as it is kept; only `project` knows it.
    """
    if len(shape) != len(axes):
        raise AssertionError(f"{name}: {len(shape)} dims but {len(axes)} logical axes")
    if module.has_variable("quantized", name):
        return module.get_variable("quantized", name)
    return cast(jax.Array, module.param(name, nn.with_partitioning(init, axes), shape, jnp.float32))


def normal(stddev: float = INIT_STDDEV):
    """Initialiser: normal around zero."""
    return nn.initializers.normal(stddev)


def residual_stddev(config: ModelConfig) -> float:
    """Keeps the residual stream's variance independent of depth. Source: GPT-2 report, section 2.3."""
    return INIT_STDDEV / (2 * config.num_layers) ** 0.5


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last dim, in float32.

    Sources: Zhang & Sennrich 2019, arXiv:1910.07467; Ba et al. 2016, arXiv:1607.06450. `rmsnorm_plus_one` stores
    scale - 1, as Gemma checkpoints do, so that weight decay (were it applied) pulls towards the identity.
    """

    config: ModelConfig
    axis: str = "width"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, dim = self.config, x.shape[-1]
        plus_one = config.norm == "rmsnorm_plus_one"
        init = nn.initializers.zeros if plus_one else nn.initializers.ones
        scale = weight(self, "scale", (dim,), (self.axis,), init)
        scale = scale + 1.0 if plus_one else scale
        y = x.astype(jnp.float32)
        if config.norm == "layernorm":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + config.norm_eps)
        y = y * scale.reshape((1,) * (x.ndim - 1) + (dim,))
        if config.norm == "layernorm" and config.bias == "all":
            bias = weight(self, "bias", (dim,), (self.axis,), nn.initializers.zeros)
            y = y + bias.reshape((1,) * (x.ndim - 1) + (dim,))
        return y.astype(x.dtype)


class Adapter(NamedTuple):
    """A low-rank addition to a matrix w: x w + (x a) b. Source: Hu et al. 2021, LoRA, arXiv:2106.09685."""

    a: jax.Array
    """[in dims, rank]"""
    b: jax.Array
    """[rank, out dims]; scaled already."""
    dropout: float
    key: jax.Array | None


def adapter(module: nn.Module, name: str, dropout: float) -> Adapter | None:
    """The adapter of a matrix (collection `lora`), where it has one; its dropout is keyed by the rng `lora`."""
    if not module.has_variable("lora", name):
        return None
    key = module.make_rng("lora") if dropout and module.has_rng("lora") else None
    return Adapter(**module.get_variable("lora", name), dropout=dropout, key=key)


class Matrix(NamedTuple):
    """What `project` multiplies by: w[in dims, out dims] (+ bias[out dims])."""

    w: Any
    """A matrix, or one that is kept in fewer bits; see `weight`."""
    bias: jax.Array | None = None
    lora: Adapter | None = None


def matrix(
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    init,
    *,
    num_in: int = 1,
    has_bias: bool,
    lora_dropout: float,
) -> Matrix:
    """A weight of [in dims, out dims] with all that belongs to it. num_in: how many dims are in dims."""
    w, bias = weight(module, name, shape, axes, init), None
    if has_bias:
        out = tuple("width" if axis == "embed" else axis for axis in axes[num_in:])  # of a vector: whole
        bias = weight(module, f"{name}_bias", shape[num_in:], out, nn.initializers.zeros)
    return Matrix(w, bias, adapter(module, name, lora_dropout))


def project(
    x: jax.Array, matrices: dict[str, Matrix], num_in: int = 1, place: Place | None = None
) -> dict[str, jax.Array]:
    """x times each of the matrices: contracts the last `num_in` dims of x.

    Args:
      matrices: by the name of the result, as of `dense_each`.
      place: as of `dense_each`.
    """
    lead = x.shape[: x.ndim - num_in]
    x_XI = x.reshape(*lead, math.prod(x.shape[x.ndim - num_in :]))
    whole = {name: matrix.w for name, matrix in matrices.items() if not isinstance(matrix.w, Mapping)}
    ys = dense_each(x_XI, whole, place=place) if whole else {}

    def finish(name: str, matrix: Matrix) -> jax.Array:
        w: Any = matrix.w
        if name in ys:
            y, out_shape = ys[name], w.shape[num_in:]
        else:
            y, out_shape = dense_quantized(x_XI, dict(w), num_in, name), w["values"].shape[num_in:]
        if matrix.lora is not None:
            a, b, rate, key = matrix.lora
            y = y + dense(dense(dropout(x_XI, rate, key), a, name="lora"), b, name="lora")
        y = y.reshape(*lead, *out_shape)
        if matrix.bias is None:
            return y
        return y + matrix.bias.astype(y.dtype).reshape((1,) * len(lead) + out_shape)

    return {name: finish(name, matrix) for name, matrix in matrices.items()}


def nonlinearity(name: str, x: jax.Array) -> jax.Array:
    """That of `model.activation`, without the product of a gated one. In float32, in which it is returned too.

    In bfloat16 every step of a tanh would be rounded: less exact, and on CPUs, which convert both ways each time, slow.
    """
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if name == "swiglu":
        return jax.nn.silu(y)
    if name in ("geglu", "gelu_tanh"):
        return jax.nn.gelu(y, approximate=True)
    if name == "gelu":
        return jax.nn.gelu(y, approximate=False)
    return jax.nn.relu(y)


@functools.partial(jax.checkpoint, static_argnums=0)
def activate(name: str, x: jax.Array) -> jax.Array:
    """The nonlinearity of the MLP; of its gate, where it is gated. Returned in x's dtype.

    Only x is kept for the backward pass: computing a tanh again is cheaper than writing it to memory and back.
    """
    return nonlinearity(name, x).astype(x.dtype)


class MLP(nn.Module):
    """Plain or gated feed-forward block. Source: Shazeer 2020, GLU variants, arXiv:2002.05202."""

    config: ModelConfig
    constrain: Constrain
    spread: Spread | None = None
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        config, D, F = self.config, self.config.embed_dim, self.config.mlp_width
        into, out_of = ("embed", "mlp"), ("mlp", "embed")
        how: dict[str, Any] = {"has_bias": config.bias == "all", "lora_dropout": self.lora_dropout}
        names = ("up", "gate") if config.gated else ("up",)
        matrices = {name: matrix(self, name, (D, F), into, normal(), **how) for name in names}
        h = project(x_BTD, matrices, place=place_of(self.spread, into, x_BTD))
        h_BTF = (
            activate(config.activation, h["gate"]) * h["up"]
            if config.gated
            else activate(config.activation, h["up"])
        )
        h_BTF = self.constrain(h_BTF, "batch", "length", "mlp")
        down = matrix(self, "down", (F, D), out_of, normal(residual_stddev(config)), **how)
        return project(h_BTF, {"down": down}, place=place_of(self.spread, out_of, x_BTD))["down"]


def on_rows_and_heads(
    spread: Spread | None, attend: Callable, qkv: Sequence[jax.Array], *by_row: Any
) -> jax.Array:
    """attend(q, k, v, *by_row) on what each device has of rows and heads: the compiler cannot cut a kernel.

    Args:
      spread: None: all of it is here.
      by_row: arrays [B, T, ...] whose heads, if any, all devices need; or None.
    """
    if spread is None:
        return attend(*qkv, *by_row)
    rows, heads = PartitionSpec(spread.batch), PartitionSpec(spread.batch, None, spread.heads)
    specs = (*[heads] * len(qkv), *[rows] * len(by_row))
    run = jax.shard_map(attend, mesh=spread.mesh, in_specs=specs, out_specs=heads, check_vma=False)
    return run(*qkv, *by_row)


def place_of(spread: Spread | None, axes: tuple[str, ...], x_BTX: jax.Array) -> Place | None:
    """Where the product of activations with a matrix of these logical axes runs; None: the compiler's choice."""
    return None if spread is None else spread.place(axes, x_BTX.shape[1])


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of x and scales up the rest; no key (evaluation, sampling) means the identity."""
    if rate == 0.0 or key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(x / cap), or x itself. Source: Gemma 2, arXiv:2408.00118, section 2."""
    return x if cap is None else cap * jnp.tanh(x / cap)
