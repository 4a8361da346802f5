"""The weights as decoding reads them: all of them once for every token, so nothing may be redone on the way."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.models.build import LM, is_axes
from jaxlm.types import Params, PyTree


@functools.lru_cache(maxsize=8)
def compiled_cast(dtype: jnp.dtype) -> Callable[[list], list]:
    """Jits a list of weights -> the same in this dtype."""
    return jax.jit(lambda weights: [w.astype(dtype) for w in weights])


def decoding_weights(lm: LM, params: Params) -> Params:
    """Params for `lm.extend` and `lm.head` alone: matrices in the compute dtype; on one CPU, layers apart.

    - The model rounds every matrix to its compute dtype before use. Done once here instead of once a token, a
      bfloat16 model reads half the bytes; norms' scales and routers, used in float32, stay as they are.
    - XLA:CPU copies each layer out of its [L, ...] stack for every token. The layers handed over here are views
      of the stack, without a copy; accelerators slice for free and keep the one compiled layer.
    """
    ready = compute_weights(lm, params)
    if "layers" in ready and all(on_one_cpu(w) for w in jax.tree.leaves(ready)):
        ready = {**ready, "layers": layers_apart(ready["layers"])}
    return ready


def compute_weights(lm: LM, params: Params) -> Params:
    """The same model with the matrices in its compute dtype, to which it would round them at every use."""
    dtype = compute_dtype(lm, params)
    axes, treedef = jax.tree.flatten(lm.axes, is_leaf=is_axes)
    weights = treedef.flatten_up_to(params)
    is_matrix = [len(names) - ("layers" in names) > 1 and names[-1] != "experts" for names in axes]
    stale = [i for i, w in enumerate(weights) if is_matrix[i] and w.dtype != dtype]
    if stale:
        for i, w in zip(stale, compiled_cast(dtype)([weights[i] for i in stale]), strict=True):
            weights[i] = w
    return treedef.unflatten(weights)


def compute_dtype(lm: LM, params: Params) -> jnp.dtype:
    """The dtype of the model's activations. Traces the model without running it."""
    place_BT = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(lm.hidden, params, {"tokens": place_BT, "positions": place_BT}).dtype


def on_one_cpu(w: jax.Array) -> bool:
    """Whether an array is whole and in the host's memory."""
    return len(w.devices()) == 1 and next(iter(w.devices())).platform == "cpu"


def layers_apart(stack: PyTree) -> tuple[PyTree, ...]:
    """The layers of a [L, ...] stack on one CPU, one by one, in the stack's own memory."""
    leaves, treedef = jax.tree.flatten(stack)
    rows = [[jax.device_put(layer, w.device) for layer in np.asarray(w)] for w in leaves]
    return tuple(treedef.unflatten(layer) for layer in zip(*rows, strict=True))
