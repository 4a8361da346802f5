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
from jax.sharding import PartitionSpec

from jaxlm.models.collective import Place, Split, gather, scatter_sum


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


def _matmul_back(x, w, g, split: Split | None, others: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """-> (dx, dw); others: mesh axes that hold copies of w, and other rows of x."""
    dx = product(g, gather(w, x.dtype, split), (g.ndim - 1,), (1,)).astype(x.dtype)
    dw = lax.platform_dependent(x, g, cpu=_weight_grad_cpu, default=_weight_grad)
    if split is not None:
        dw = scatter_sum(dw, split)
        dw = lax.psum(dw, others) if others else dw
    return dx, dw.astype(w.dtype)


def _forward(x: jax.Array, w: jax.Array, dtype: jnp.dtype, place: Place | None) -> jax.Array:
    if place is None:
        return _matmul(x, w, None, dtype)
    rows = PartitionSpec(place.rows)
    return jax.shard_map(
        lambda x, w: _matmul(x, w, place.split, dtype),
        mesh=place.mesh, in_specs=(rows, place.spec(2)), out_specs=rows, axis_names=set(place.rows), check_vma=False,
    )(x, w)  # fmt: skip


_dense = jax.custom_vjp(_forward, nondiff_argnums=(2, 3))


def _dense_fwd(x, w, dtype, place):
    return _forward(x, w, dtype, place), (x, w)


def _dense_bwd(dtype, place: Place | None, saved, g):
    x, w = saved
    g = g.astype(x.dtype)
    if place is None:
        return _matmul_back(x, w, g, None, ())
    rows, spec = PartitionSpec(place.rows), place.spec(2)
    others = tuple(axis for axis in place.rows if axis != place.split.axis and place.mesh.shape[axis] > 1)
    return jax.shard_map(
        lambda x, w, g: _matmul_back(x, w, g, place.split, others),
        mesh=place.mesh, in_specs=(rows, spec, rows), out_specs=(rows, spec), axis_names=set(place.rows),
        check_vma=False,
    )(x, w, g)  # fmt: skip


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
