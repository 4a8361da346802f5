"""The matrix product of every layer, with the backward pass written out.

The mathematics is x @ w and its two gradients; what is decided here is how each product is put to the compiler.
On TPUs and GPUs: as one contraction, as it stands. On CPUs a weight gradient needs another form to run at full speed
(`make bench` measures it).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxlm.collective import Place, Split, gather


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


def _matmul(x: jax.Array, w: jax.Array, split: Split | None, dtype: jnp.dtype) -> jax.Array:
    return product(x, gather(w, x.dtype, split), (x.ndim - 1,), (0,)).astype(dtype)


def _matmul_back(x, w, g, split: Split | None) -> tuple[jax.Array, jax.Array]:
    """-> dx, and what these rows say of dw."""
    dx = product(g, gather(w, x.dtype, split), (g.ndim - 1,), (1,)).astype(x.dtype)
    return dx, lax.platform_dependent(x, g, cpu=_weight_grad_cpu, default=_weight_grad)


def _forward(x: jax.Array, w: jax.Array, dtype: jnp.dtype, place: Place | None) -> jax.Array:
    if place is None:
        return _matmul(x, w, None, dtype)
    specs = place.batch_spec, place.weight_spec
    return place.run(lambda x, w: _matmul(x, w, place.split, dtype), specs, place.batch_spec)(x, w)


_dense = jax.custom_vjp(_forward, nondiff_argnums=(2, 3))


def _dense_fwd(x, w, dtype, place):
    return _forward(x, w, dtype, place), (x, w)


def _dense_bwd(dtype, place: Place | None, saved, g):
    x, w = saved
    g = g.astype(x.dtype)
    if place is None:
        dx, dw = _matmul_back(x, w, g, None)
        return dx, dw.astype(w.dtype)

    def local(x, w, g):
        dx, dw = _matmul_back(x, w, g, place.split)
        return dx, place.collect_grad(dw).astype(w.dtype)

    rows, spec = place.batch_spec, place.weight_spec
    return place.run(local, (rows, spec, rows), (rows, spec))(x, w, g)


_dense.defvjp(_dense_fwd, _dense_bwd)


def dense(
    x: jax.Array,
    w: jax.Array,
    dtype: jnp.dtype | None = None,
    *,
    place: Place | None = None,
    name: str = "dense",
) -> jax.Array:
    """x[..., I] @ w[I, O] -> [..., O] in x's dtype, accumulated in float32.

    Pass w as it is stored (float32): it is rounded to x's dtype for the products, while its gradient comes back in
    float32 without ever being rounded (but for the sum over devices, where `place` says so).

    Args:
      x: activations; its dtype is the one the products run in.
      w: weights; its leading dims multiply to I, the others, flattened, are O.
      dtype: of the result, where it should differ from x's (float32 logits of bfloat16 states).
      place: the mesh over which [I, O] is split; None: whole, or left to the compiler.
      name: what `model.remat` calls the result. Named out here: a policy does not see what is inside a function with
        its own gradient.
    """
    y = _dense(x, w.reshape(x.shape[-1], -1), jnp.dtype(dtype or x.dtype), place)
    return checkpoint_name(y, name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def lookup(table_VD: jax.Array, tokens_BT: jax.Array, dtype: jnp.dtype, place: Place) -> jax.Array:
    """The rows of a table for each token, x_BTD, on a mesh: the table is collected whole, and not its rows.

    The gradient is added up by each device for its own tokens, in float32, and then over the devices.
    """

    def local(table_VD, tokens_BT):
        return jnp.take(gather(table_VD, dtype, place.split), tokens_BT, axis=0)

    return place.run(local, (place.weight_spec, place.batch_spec), place.batch_spec)(table_VD, tokens_BT)


def _lookup_fwd(table_VD, tokens_BT, dtype, place):
    return lookup(table_VD, tokens_BT, dtype, place), (table_VD, tokens_BT)


def _lookup_bwd(dtype, place: Place, saved, g_BTD):
    table_VD, tokens_BT = saved

    def local(tokens_BT, g_BTD):
        whole_VD = jnp.zeros((table_VD.shape[0], g_BTD.shape[-1]), jnp.float32)
        return place.collect_grad(whole_VD.at[tokens_BT].add(g_BTD.astype(jnp.float32))).astype(
            table_VD.dtype
        )

    rows = place.batch_spec
    return place.run(local, (rows, rows), place.weight_spec)(tokens_BT, g_BTD), None


lookup.defvjp(_lookup_fwd, _lookup_bwd)
