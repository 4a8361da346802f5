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

Matrices = tuple[jax.Array, ...]


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


def _forward(x: jax.Array, ws: Matrices, dtype: jnp.dtype, place: Place | None) -> Matrices:
    def products(x: jax.Array, ws: Matrices, split: Split | None) -> Matrices:
        return tuple(product(x, gather(w, x.dtype, split), (x.ndim - 1,), (0,)).astype(dtype) for w in ws)

    if place is None:
        return products(x, ws, None)
    of_x, of_y = place.sides()

    def local(x: jax.Array, ws: Matrices) -> Matrices:
        return tuple(map(of_y.scatter, products(of_x.collect(x), ws, place.split)))

    return place.run(local, (of_x.spec, place.weight_spec), of_y.spec)(x, ws)


_dense = jax.custom_vjp(_forward, nondiff_argnums=(2, 3))


def _dense_fwd(x, ws, dtype, place):
    return _forward(x, ws, dtype, place), (x, ws)


def _dense_bwd(dtype, place: Place | None, saved, gs):
    x, ws = saved
    gs = tuple(g.astype(x.dtype) for g in gs)

    def products(x: jax.Array, ws: Matrices, gs: Matrices, split: Split | None) -> tuple[jax.Array, Matrices]:
        """-> dx, and what these rows say of each dw."""
        back = [
            product(g, gather(w, x.dtype, split), (g.ndim - 1,), (1,)).astype(x.dtype)
            for w, g in zip(ws, gs, strict=True)
        ]
        dws = tuple(lax.platform_dependent(x, g, cpu=_weight_grad_cpu, default=_weight_grad) for g in gs)
        return functools.reduce(jnp.add, back), dws

    if place is None:
        dx, dws = products(x, ws, gs, None)
        return dx, tuple(dw.astype(w.dtype) for w, dw in zip(ws, dws, strict=True))
    of_x, of_y = place.sides()

    def local(x: jax.Array, ws: Matrices, gs: Matrices) -> tuple[jax.Array, Matrices]:
        dx, dws = products(of_x.collect(x), ws, tuple(map(of_y.collect, gs)), place.split)
        grads = tuple(place.collect_grad(dw).astype(w.dtype) for w, dw in zip(ws, dws, strict=True))
        return of_x.scatter(dx), grads

    specs = of_x.spec, place.weight_spec
    return place.run(local, (*specs, of_y.spec), specs)(x, ws, gs)


_dense.defvjp(_dense_fwd, _dense_bwd)


def dense(
    x: jax.Array,
    w: jax.Array,
    dtype: jnp.dtype | None = None,
    *,
    place: Place | None = None,
    name: str = "dense",
) -> jax.Array:
    """`dense_each` with one matrix."""
    return dense_each(x, {name: w}, dtype, place=place)[name]


def dense_each(
    x: jax.Array, ws: dict[str, jax.Array], dtype: jnp.dtype | None = None, *, place: Place | None = None
) -> dict[str, jax.Array]:
    """x[..., I] @ w[I, O] -> [..., O] in x's dtype, accumulated in float32, for each w.

    Pass w as it is stored (float32): it is rounded to x's dtype for the products, while its gradient comes back in
    float32 without ever being rounded (but for the sum over devices, where `place` says so). Matrices that share x go
    together, so that what devices have to tell each other of it, or of its gradient, they tell once.

    Args:
      x: activations; its dtype is the one the products run in.
      ws: weights by what `model.remat` calls the results. Their leading dims multiply to I, the others, flattened, are
        O. (Named out here: a policy does not see what is inside a function with its own gradient.)
      dtype: of the results, where it should differ from x's (float32 logits of bfloat16 states).
      place: the mesh over which [I, O] is split; None: whole, or left to the compiler.
    """
    flat = tuple(w.reshape(x.shape[-1], -1) for w in ws.values())
    ys = _dense(x, flat, jnp.dtype(dtype or x.dtype), place)
    return {name: checkpoint_name(y, name) for name, y in zip(ws, ys, strict=True)}


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
