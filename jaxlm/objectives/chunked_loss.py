"""Cross-entropy over a large vocabulary without ever holding [B, T, V] in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxlm.collective import Place, gather
from jaxlm.types import Params


def num_chunks(length: int, rows: int, chunk_tokens: int) -> int:
    """The smallest number of equal pieces of `length` positions such that rows x piece <= chunk_tokens."""
    for num in range(1, length + 1):
        if length % num == 0 and rows * (length // num) <= chunk_tokens:
            return num
    return length


def _chunked_loss(
    head: Callable[[Params, jax.Array], jax.Array],
    head_params: Params,
    x_BTD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    chunk_tokens: int,
    z_loss: float,
    place: Place | None = None,
) -> tuple[jax.Array, jax.Array]:
    """-> (loss to differentiate, cross-entropy alone), both sums over targets of weight x nats.

    Positions go through head and softmax a chunk at a time. When differentiated, each chunk's gradients are
    computed right after its loss, while its logits exist, and only d(x) and d(head weights) are kept: nothing is
    recomputed. Gradients flow to head_params and x_BTD, through the first result only.

    Args:
      head: head(params, x_XD) -> logits_XV in float32.
      weights_BT: float32; 0 leaves a target out.
      chunk_tokens: tokens per chunk, on each device.
      z_loss: adds z_loss * log(Z)^2 per target (PaLM, arXiv:2204.02311, section 5).
      place: the mesh. Each device collects the head's weights once, goes through its own rows, and hands on what they
        say of the gradient at the end.
    """
    return _on_devices(
        head, head_params, x_BTD, targets_BT, weights_BT, chunk_tokens, z_loss, place, with_grads=False
    )[0]


def _on_devices(
    head,
    head_params,
    x_BTD,
    targets_BT,
    weights_BT,
    chunk_tokens,
    z_loss,
    place: Place | None,
    *,
    with_grads: bool,
) -> tuple[Any, Any]:
    """`_loop` over the rows of each device."""
    if place is None:
        return _loop(
            head, head_params, x_BTD, targets_BT, weights_BT, chunk_tokens, z_loss, with_grads=with_grads
        )

    def local(head_params, x_BTD, targets_BT, weights_BT):
        whole = jax.tree.map(lambda w: gather(w, x_BTD.dtype, place.split), head_params)
        sums, grads = _loop(
            head, whole, x_BTD, targets_BT, weights_BT, chunk_tokens, z_loss, with_grads=with_grads
        )
        sums = jax.lax.psum(sums, place.axes)
        if grads is None:
            return sums
        d_params = jax.tree.map(lambda d, w: place.collect_grad(d).astype(w.dtype), grads[0], head_params)
        if place.split is None:
            return sums, (d_params, grads[1])
        # Scattered before the blocks' backward pass: else what each device says of the whole table waits until its
        # end, in float32, to be sent together with what the lookup says, or just late.
        return sums, jax.lax.optimization_barrier((d_params, grads[1]))

    rows, spec = place.batch_spec, place.weight_spec
    out = (PartitionSpec(), (spec, rows)) if with_grads else PartitionSpec()
    found = place.run(local, (spec, rows, rows, rows), out)(head_params, x_BTD, targets_BT, weights_BT)
    return found if with_grads else (found, None)


def _chunk(head, head_params, x_BCD, targets_BC, weights_BC, z_loss, with_grads: bool):
    # Rows and positions as one dim X: the head's weight gradient would else contract two, which is slow on CPUs.
    x_XD = x_BCD.reshape(-1, x_BCD.shape[-1])
    targets_X1, weights_X = targets_BC.reshape(-1, 1), weights_BC.reshape(-1)
    logits_XV, pull = jax.vjp(head, head_params, x_XD) if with_grads else (head(head_params, x_XD), None)
    peak_X1 = jax.lax.stop_gradient(logits_XV.max(axis=-1, keepdims=True))
    exp_XV = jnp.exp(logits_XV - peak_X1)
    total_X1 = exp_XV.sum(axis=-1, keepdims=True)
    log_z_X = (jnp.log(total_X1) + peak_X1)[:, 0]
    # A comparison with an iota fuses into the surrounding loop; a gather's gradient would scatter into [X, V].
    is_target_XV = jax.lax.broadcasted_iota(jnp.int32, logits_XV.shape, 1) == targets_X1
    target_logit_X = jnp.where(is_target_XV, logits_XV, 0.0).sum(axis=-1)
    cross_entropy = (weights_X * (log_z_X - target_logit_X)).sum()
    loss = cross_entropy
    if z_loss:
        loss = loss + z_loss * (weights_X * jnp.square(log_z_X)).sum()
    if pull is None:
        return (loss, cross_entropy), None
    slope_X1 = (weights_X * (1.0 + 2.0 * z_loss * log_z_X))[:, None] / total_X1
    dlogits_XV = exp_XV * slope_X1 - jnp.where(is_target_XV, weights_X[:, None], 0.0)
    d_params, d_x_XD = pull(dlogits_XV)
    return (loss, cross_entropy), (d_params, d_x_XD.reshape(x_BCD.shape))


def _loop(
    head, head_params, x_BTD, targets_BT, weights_BT, chunk_tokens, z_loss, *, with_grads: bool
) -> tuple[Any, Any]:
    B, T, D = x_BTD.shape
    num = num_chunks(T, B, chunk_tokens)
    C = T // num
    zero = (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
    if num == 1:
        return _chunk(head, head_params, x_BTD, targets_BT, weights_BT, z_loss, with_grads)

    def pieces(a):
        return jnp.swapaxes(a.reshape(B, num, C, *a.shape[2:]), 0, 1)

    def body(carry, xs):
        sums, d_params = carry
        x_BCD, targets_BC, weights_BC = xs
        more, grads = _chunk(head, head_params, x_BCD, targets_BC, weights_BC, z_loss, with_grads)
        sums = jax.tree.map(jnp.add, sums, more)
        if grads is None:
            return (sums, d_params), None
        return (sums, jax.tree.map(jnp.add, d_params, grads[0])), grads[1]

    # In float32, also where the weights come in the compute dtype.
    zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.promote_types(w.dtype, jnp.float32)), head_params)
    start = (zero, zeros if with_grads else None)
    d_x: Any
    (sums, d_params), d_x = jax.lax.scan(body, start, (pieces(x_BTD), pieces(targets_BT), pieces(weights_BT)))
    return sums, (d_params, jnp.swapaxes(d_x, 0, 1).reshape(B, T, D)) if with_grads else None


def _forward(head, head_params, x_BTD, targets_BT, weights_BT, chunk_tokens, z_loss, place):
    return _on_devices(
        head, head_params, x_BTD, targets_BT, weights_BT, chunk_tokens, z_loss, place, with_grads=True
    )


def _backward(head, chunk_tokens, z_loss, place, grads, cotangents):
    d_params, d_x = grads
    g = cotangents[0]
    return jax.tree.map(lambda d: (g * d).astype(d.dtype), d_params), (g * d_x).astype(d_x.dtype), None, None


chunked_loss = jax.custom_vjp(_chunked_loss, nondiff_argnums=(0, 5, 6, 7))
chunked_loss.defvjp(_forward, _backward)
