"""The matrix product of every projection, with the gradient in the form each platform computes fastest."""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def dense(x: jax.Array, w_DF: jax.Array) -> jax.Array:
    """x[..., D] @ w[D, F], accumulated in float32, in x's type.

    The leading dims are flattened, so that the weight's gradient contracts one axis: on a CPU a two-axis
    contraction ran at 60% of the speed of the flat product.
    """
    return _forward(x, w_DF)[0]


def _forward(x, w_DF):
    x_XD = x.reshape(-1, x.shape[-1])
    y_XF = jnp.matmul(x_XD, w_DF, preferred_element_type=jnp.float32).astype(x.dtype)
    return y_XF.reshape(*x.shape[:-1], w_DF.shape[1]), (x, w_DF)


def _backward(residuals, g):
    x, w_DF = residuals
    x_XD, g_XF = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    dx_XD = jnp.matmul(g_XF, w_DF.T, preferred_element_type=jnp.float32).astype(x.dtype)
    # XLA:CPU only takes its fast path when the transposed operand is a materialised array.
    dw_DF = jax.lax.platform_dependent(
        x_XD,
        g_XF,
        cpu=lambda x, g: _product_f32(jax.lax.optimization_barrier(x.T), g),
        default=lambda x, g: _product_f32(x.T, g),
    )
    return dx_XD.reshape(x.shape), dw_DF.astype(w_DF.dtype)


def _product_f32(a, b):
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


dense.defvjp(_forward, _backward)
