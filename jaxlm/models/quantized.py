"""Matrices of frozen blocks in 8 or 4 bits, and the product with them. What they are is in the dict that holds them.

int8: {"values": int8, shaped like the matrix; "scale": float32, one for each output channel}.
nf4: {"values": uint8, two weights a byte, along the last input dim; "scale": float32, one a block along it}.

A matrix is [in dims, out dims]; a stack of them has a leading dim of layers.

Source of nf4: Dettmers et al. 2023, QLoRA, arXiv:2305.14314, section 3 and appendix E; its second quantisation, of the
scales, is left out (0.37 bits a weight). The package qwix comes to the same values, but holds each in a byte on CPUs.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxlm.models.dense import product
from jaxlm.types import UserError

Quantized = dict[str, jax.Array]

NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
"""The 16 quantiles of a normal distribution, zero among them: appendix E."""
BLOCK = 64
"""Weights that share a scale in nf4."""


def block_size(dim: int) -> int:
    """Of blocks along an input dim: 64, or the largest even divisor below. Errors: UserError for an odd dim."""
    if dim % 2:
        raise UserError(
            f"tune.quantize='nf4' packs two weights in a byte, but a matrix has {dim} rows. Try 'int8'."
        )
    return next(size for size in range(BLOCK, 0, -2) if dim % size == 0)


def quantize(w: jax.Array, num_in: int, kind: str, num_stacked: int = 1) -> Quantized:
    """A matrix in fewer bits.

    Args:
      num_in: input dims, after `num_stacked` dims of layers.
      kind: `int8` or `nf4`.
    """
    w, at = w.astype(jnp.float32), num_stacked + num_in - 1  # at: the last input dim
    if kind == "int8":
        peak = jnp.max(jnp.abs(w), axis=tuple(range(num_stacked, at + 1)), keepdims=True)
        scale = jnp.where(peak > 0, peak / 127.0, 1.0)
        values = jnp.round(w / scale).astype(jnp.int8)
        return {"values": values, "scale": scale.reshape(*w.shape[:num_stacked], *w.shape[at + 1 :])}
    lead, dim, out = w.shape[:at], w.shape[at], w.shape[at + 1 :]
    size = block_size(dim)
    blocks = w.reshape(*lead, dim // size, size, *out)
    scale = jnp.max(jnp.abs(blocks), axis=at + 1)
    level = blocks / jnp.where(scale > 0, scale, 1.0)[_at(at + 1)]
    # The nearest of 16 sorted levels: how many of the midpoints between them lie below.
    codes = sum((level > middle).astype(jnp.uint8) for middle in (NF4[1:] + NF4[:-1]) / 2)
    pairs = jnp.asarray(codes, jnp.uint8).reshape(*lead, dim // 2, 2, *out)
    low, high = (jnp.take(pairs, i, axis=at + 1) for i in (0, 1))
    return {"values": low | (high << 4), "scale": scale}


def _at(axis: int) -> tuple:
    """Indexes that insert a dim there."""
    return (slice(None),) * axis + (None,)


def dequantize(w: Quantized, num_in: int, num_stacked: int = 1) -> jax.Array:
    """The matrix again, float32; arguments as of `quantize`."""
    values, scale, at = w["values"], w["scale"], num_stacked + num_in - 1
    if values.dtype == jnp.int8:
        lead, out = scale.shape[:num_stacked], scale.shape[num_stacked:]
        return values.astype(jnp.float32) * scale.reshape(*lead, *(1,) * num_in, *out)
    lead, dim, out = values.shape[:at], 2 * values.shape[at], values.shape[at + 1 :]
    codes = jnp.stack([values & 15, values >> 4], axis=at + 1)
    blocks = jnp.take(jnp.asarray(NF4), codes.astype(jnp.int32), axis=0, mode="clip")
    blocks = blocks.reshape(*lead, scale.shape[at], dim // scale.shape[at], *out)
    return (blocks * scale[_at(at + 1)]).reshape(*lead, dim, *out)


def quantized_axes(axes: tuple[str, ...], num_in: int, kind: str) -> dict[str, tuple[str, ...]]:
    """Logical axes of a quantised stack; what is packed is not split, since its blocks might not divide."""
    outs = axes[1 + num_in :]
    if kind == "int8":
        return {"values": axes, "scale": (axes[0], *outs)}
    packed = (*axes[:num_in], "packed", *outs)
    return {"values": packed, "scale": packed}


def dense_quantized(x: jax.Array, w: Quantized, num_in: int, name: str = "dense") -> jax.Array:
    """x[..., I] @ w[I, O] -> [..., O] in x's dtype, of one layer; no gradient of w.

    The matrix is there in full only while it is used, in the backward pass once more: what is kept in between is w.

    Args:
      name: as of `dense`.
    """
    return checkpoint_name(_dense(x, w, num_in), name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(x: jax.Array, w: Quantized, num_in: int) -> jax.Array:
    return product(x, _matrix(w, num_in, x), (x.ndim - 1,), (0,)).astype(x.dtype)


def _matrix(w: Quantized, num_in: int, x: jax.Array) -> jax.Array:
    """[I, O] in the dtype of x."""
    return dequantize(w, num_in, 0).reshape(x.shape[-1], -1).astype(x.dtype)


def _forward(x, w, num_in):
    return _dense(x, w, num_in), (w, jnp.zeros((0, x.shape[-1]), x.dtype))


def _backward(num_in, saved, g):
    w, x = saved  # of x only what it looks like
    dx = product(g.astype(x.dtype), _matrix(w, num_in, x), (g.ndim - 1,), (1,))
    return dx.astype(x.dtype), None


_dense.defvjp(_forward, _backward)
