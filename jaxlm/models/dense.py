"""The matrix product of every layer, with the backward pass written out.

The mathematics is x @ w and its two gradients; what is decided here is how each product is put to the compiler.
On TPUs and GPUs: as one contraction, as it stands. On CPUs a weight gradient needs another form to run at full speed
(`make bench` measures it).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name


def product(a: jax.Array, b: jax.Array, a_dims: tuple[int, ...], b_dims: tuple[int, ...]) -> jax.Array:
    """Contracts a_dims of a with b_dims of b; accumulates and returns float32 (float64 where both are)."""
    accumulate = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
    return lax.dot_general(a, b, ((a_dims, b_dims), ((), ())), preferred_element_type=accumulate)


def _weight_grad(x: jax.Array, g: jax.Array) -> jax.Array:
    """Sum over all leading dims of x[..., I] (outer) g[..., O] -> [I, O]."""
    lead = tuple(range(x.ndim - 1))
    return product(x, g, lead, lead)


def _weight_grad_cpu(x: jax.Array, g: jax.Array) -> jax.Array:
    """The same on a CPU, with the rows as one dim: contracting two of them is slow there.

    Its bfloat16 kernels only take operands whose contracted dim is the last, so x is transposed in memory first: 400
    to 850 GFLOP/s with AVX-512. The barriers keep the transposition out of the product, and its detour through three
    dims gives it a row-major layout from the start, without which the product is silently computed in float32.
    """
    num_in, num_rows = x.shape[-1], x.size // x.shape[-1]
    x_RI, g_RO = x.reshape(num_rows, num_in), g.reshape(num_rows, -1)
    if x.dtype != jnp.bfloat16 or num_rows % 2:
        return product(x_RI, g_RO, (0,), (0,))
    x_IR = lax.optimization_barrier(x_RI.T.reshape(num_in, 2, num_rows // 2)).reshape(num_in, num_rows)
    # A barrier behind the product too: a transposition of the result would be folded into its operands.
    return lax.optimization_barrier(product(x_IR, g_RO, (1,), (0,)))


def _as_matrix(w: jax.Array, x: jax.Array) -> jax.Array:
    """The weights as [I, O], in the dtype of x. Made anew in each pass: what is kept between them is w itself."""
    return w.reshape(x.shape[-1], -1).astype(x.dtype)


def _forward(x: jax.Array, w: jax.Array, dtype: jnp.dtype) -> jax.Array:
    y = product(x, _as_matrix(w, x), (x.ndim - 1,), (0,)).astype(dtype)
    # remat "dots" goes by this name: a policy does not see the products inside a function with its own gradient.
    return checkpoint_name(y, "dense")


_dense = jax.custom_vjp(_forward, nondiff_argnums=(2,))


def _dense_fwd(x, w, dtype):
    return _forward(x, w, dtype), (x, w)


def _dense_bwd(dtype, saved, g):
    x, w = saved
    g = g.astype(x.dtype)
    dx = product(g, _as_matrix(w, x), (g.ndim - 1,), (1,)).astype(x.dtype)
    dw = lax.platform_dependent(x, g, cpu=_weight_grad_cpu, default=_weight_grad)
    return dx, dw.reshape(w.shape).astype(w.dtype)


_dense.defvjp(_dense_fwd, _dense_bwd)


def dense(x: jax.Array, w: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """x[..., I] @ w[I, O] -> [..., O] in x's dtype, accumulated in float32.

    Pass w as it is stored (float32): it is rounded to x's dtype for the products, while its gradient comes back in
    float32 without ever being rounded.

    Args:
      x: activations; its dtype is the one the products run in.
      w: weights; its leading dims multiply to I, the others, flattened, are O.
      dtype: of the result, where it should differ from x's (float32 logits of bfloat16 states).
    """
    return _dense(x, w, jnp.dtype(dtype or x.dtype))
