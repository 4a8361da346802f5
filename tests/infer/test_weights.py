"""Promises of the weights that decoding reads: the same numbers, no copy of a stack, nothing left to cast."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import slow
from standin import history_lm, random_table

from jaxlm.infer.weights import decoding_weights
from jaxlm.models import sizes
from jaxlm.models.build import build
from jaxlm.models.config import ModelConfig

SHAPE = dict(
    vocab_size=64, embed_dim=32, num_layers=4, num_heads=4, mlp_dim=64, layer_pattern="gl", sliding_window=3
)

LEARNED = {"positions": "learned", "bias": "all", "norm": "layernorm", "qk_norm": True}


@functools.cache
def model(**style):
    lm = build(ModelConfig(**SHAPE, **style), 16)
    return lm, jax.jit(lm.init)(jax.random.key(0))


def extended(lm, params):
    """Logits and cache after a prefill of 6 tokens and one step, [B, 7, V]."""
    tokens_BT, positions_BT = jnp.arange(14).reshape(2, 7), jnp.broadcast_to(jnp.arange(7)[None], (2, 7))
    extend = jax.jit(lm.extend)
    x_BTD, cache = extend(params, tokens_BT[:, :6], positions_BT[:, :6], lm.init_cache(2, 8))
    x_B1D, cache = extend(params, tokens_BT[:, 6:], positions_BT[:, 6:], cache)
    return lm.head(params, jnp.concatenate([x_BTD, x_B1D], axis=1)), cache


@pytest.mark.parametrize(
    ("style", "atol"),
    [
        ({}, 1e-5),
        # Keys and values reach 2: a few roundings in the last of 8 bits, for scan and unrolled twin fuse differently.
        slow({**LEARNED, "dtype": "bfloat16"}, 0.03),
    ],
)
def test_decoding_weights_change_no_result(style, atol):
    lm, params = model(**style)
    ready = decoding_weights(lm, params)
    assert len(ready["layers"]) == SHAPE["num_layers"]
    for expected, got in zip(jax.tree.leaves(extended(lm, params)), jax.tree.leaves(extended(lm, ready))):
        np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(expected, np.float32), atol=atol)


def test_layers_stay_in_the_memory_of_their_stack():
    lm, params = model()
    stack = params["layers"]["mlp"]["up"]
    layers = decoding_weights(lm, params)["layers"]
    starts = [layer["mlp"]["up"].unsafe_buffer_pointer() - stack.unsafe_buffer_pointer() for layer in layers]
    assert starts == [i * stack.nbytes // len(layers) for i in range(len(layers))]


def test_matrices_come_in_the_compute_dtype_and_scales_as_they_are():
    lm, params = model(**LEARNED, dtype="bfloat16")
    ready = decoding_weights(lm, params)
    assert ready["embedding"].dtype == jnp.bfloat16
    for layer in ready["layers"]:
        assert layer["attention"]["q"].dtype == layer["mlp"]["down"].dtype == jnp.bfloat16
        assert layer["attention_norm"]["scale"].dtype == jnp.float32


def test_weights_on_several_devices_keep_their_stack_and_place():
    lm, params = model()
    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    split = jax.tree.map(lambda w: jax.device_put(w, jax.NamedSharding(mesh, jax.P())), params)
    ready = decoding_weights(lm, split)
    assert all(a is b for a, b in zip(jax.tree.leaves(ready), jax.tree.leaves(split), strict=True))


def test_a_model_without_layers_is_left_alone():
    lm, params = history_lm(random_table(5))
    assert decoding_weights(lm, params) == params


def test_routers_stay_in_float32_and_experts_do_not():
    """A router that is rounded sends tokens elsewhere."""
    lm = build(dataclasses.replace(sizes.size("tiny-mixtral"), dtype="bfloat16"), 16)
    first, *_ = decoding_weights(lm, jax.jit(lm.init)(jax.random.key(0)))["layers"]
    assert {name: str(w.dtype) for name, w in first["moe"].items()} == {
        "router": "float32", "up": "bfloat16", "gate": "bfloat16", "down": "bfloat16"
    }  # fmt: skip
