"""Attention and RoPE against independent NumPy, formula by formula."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.models import sizes
from jaxlm.models.attention import attend_dense, pick_attention, rope, rope_frequencies, rotation
from jaxlm.models.attention_chunked import attend_chunked
from jaxlm.models.config import ModelConfig, attention_chunk
from jaxlm.types import UserError

KERNELS = {"dense": attend_dense, "chunked": attend_chunked}


def reference_attention(q, k, v, *, segments, window, softcap, scale):
    """One query at a time, in float64: a list of the keys it sees, a softmax over them."""
    B, T, N, H = q.shape
    group = N // k.shape[2]
    out = np.zeros((B, T, N, H))
    for b in range(B):
        for t in range(T):
            first = 0 if window is None else max(0, t + 1 - window)
            seen = [s for s in range(first, t + 1) if segments is None or segments[b, s] == segments[b, t]]
            for n in range(N):
                logits = scale * k[b, seen, n // group].astype(np.float64) @ q[b, t, n]
                if softcap is not None:
                    logits = softcap * np.tanh(logits / softcap)
                weights = np.exp(logits - logits.max())
                out[b, t, n] = weights / weights.sum() @ v[b, seen, n // group]
    return out


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("T", "N", "K", "window", "softcap", "packed"),
    [
        (1, 2, 2, None, None, False),
        (37, 4, 4, None, None, True),  # multi-head
        (37, 4, 1, None, 1.5, True),  # multi-query, soft-capped
        (64, 4, 2, 5, None, True),  # exactly one chunk of queries
        (65, 2, 1, 1, None, False),  # every query sees itself alone
        (300, 2, 1, 64, None, True),  # window as long as a chunk
        (300, 2, 2, 200, 2.0, True),  # window longer than a chunk
        (140, 2, 1, 1000, None, False),  # window longer than the row
        (1100, 2, 1, 300, None, True),  # chunks of 128
    ],
)
def test_kernels_compute_textbook_attention(kernel, T, N, K, window, softcap, packed):
    rng = np.random.default_rng(0)
    B, H = 2, 8
    q = rng.normal(size=(B, T, N, H)).astype(np.float32)
    k, v = rng.normal(size=(2, B, T, K, H)).astype(np.float32)
    segments = np.sort(rng.integers(0, 4, (B, T))).astype(np.int32) if packed else None
    kwargs = dict(window=window, softcap=softcap, scale=0.7)
    expected = reference_attention(q, k, v, segments=segments, **kwargs)
    attend = jax.jit(functools.partial(KERNELS[kernel], segments_BT=segments, **kwargs))
    actual = attend(q, k, v)
    np.testing.assert_allclose(actual, expected, atol=2e-6 * math.sqrt(T) + 2e-6)


@pytest.mark.parametrize(
    ("T", "N", "K", "window", "softcap", "packed"),
    [
        (200, 4, 2, None, None, True),
        (200, 4, 2, 40, 1.5, True),
        (200, 2, 2, 100, None, False),  # keys of a chunk begin in the middle of another
        (200, 3, 1, 1, None, True),
        (64, 2, 1, None, 2.0, False),  # exactly one chunk
        (1100, 2, 1, None, None, True),  # chunks of 128
        (1, 2, 2, None, None, False),
    ],
)
def test_kernels_have_the_same_gradients(T, N, K, window, softcap, packed):
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(2, T, N, 8)), jnp.float32)
    k, v = jnp.asarray(rng.normal(size=(2, 2, T, K, 8)), jnp.float32)
    segments = np.sort(rng.integers(0, 3, (2, T))).astype(np.int32) if packed else None
    mix = jnp.asarray(rng.normal(size=q.shape), jnp.float32)
    kwargs = dict(segments_BT=segments, window=window, softcap=softcap, scale=0.7)

    def grads(kernel):
        loss = jax.grad(lambda q, k, v: (KERNELS[kernel](q, k, v, **kwargs) * mix).sum(), argnums=(0, 1, 2))
        return jax.jit(loss)(q, k, v)

    for dense, chunked in zip(grads("dense"), grads("chunked"), strict=True):
        np.testing.assert_allclose(chunked, dense, atol=2e-5)


def test_long_rows_go_in_long_chunks():
    chunks = [attention_chunk(seq_len) for seq_len in (1, 64, 256, 512, 1023, 1024, 1100, 2048, 4096, 32768)]
    assert chunks == [64, 64, 64, 64, 64, 128, 128, 256, 256, 256]


def test_attention_in_chunks_rounds_bfloat16_only_at_its_ends():
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(3, 1, 150, 2, 16)), jnp.bfloat16)
    mix = jnp.asarray(rng.normal(size=(1, 150, 2, 16)), jnp.float32)

    def grads(attend, inputs):
        def loss(inputs):
            o_BTNH = attend(*inputs, segments_BT=None, window=None, softcap=None, scale=0.25)
            assert o_BTNH.dtype == inputs.dtype
            return (o_BTNH * mix).sum()

        return jax.jit(jax.grad(loss))(inputs)

    exact = grads(attend_dense, inputs.astype(jnp.float32))
    got = grads(attend_chunked, inputs)
    assert got.dtype == jnp.bfloat16
    # Rounding to bfloat16 is an error of 0.0017 of a normal value; here it happens twice: to the incoming gradient too.
    error = jnp.sqrt(jnp.mean((got.astype(jnp.float32) - exact) ** 2) / jnp.mean(exact**2))
    assert error < 0.003


def test_auto_picks_by_platform():
    model = ModelConfig(embed_dim=512, num_heads=4, num_kv_heads=2)
    assert pick_attention(model, "cpu") == "chunked"
    assert pick_attention(model, "gpu") == "dense"
    assert pick_attention(model, "tpu") == "flash"
    narrow = dataclasses.replace(model, head_dim=64)
    assert pick_attention(narrow, "tpu") == "flash"
    assert (
        pick_attention(narrow, "tpu", num_parts=2) == "splash"
    )  # one KV head of 64 on a device: half a lane
    assert pick_attention(dataclasses.replace(model, head_dim=96), "tpu") == "splash"
    assert pick_attention(dataclasses.replace(model, attention="dense"), "cpu") == "dense"


@pytest.mark.parametrize(
    ("attention", "platform", "head_dim", "said"),
    [
        ("splash", "cpu", 128, "this is a cpu"),
        ("flash", "gpu", 128, "this is a gpu"),
        ("flash", "tpu", 96, "head_dim=96"),
    ],
)
def test_a_kernel_that_is_not_there_is_refused(attention, platform, head_dim, said):
    model = ModelConfig(embed_dim=512, num_heads=4, head_dim=head_dim, attention=attention)
    with pytest.raises(UserError, match=said):
        pick_attention(model, platform)


@functools.cache
def turn(config, local):
    return jax.jit(lambda x_BTNH, positions_BT: rope(x_BTNH, rotation(config, positions_BT, local=local)))


def turned(x_H, position, config, *, local=False):
    return np.asarray(turn(config, local)(x_H[None, None, None], np.full((1, 1), position)))[0, 0, 0]


@pytest.mark.parametrize("name", ["llama2-7b", "llama3.1-8b", "gemma3-4b"])
def test_rope_sees_distances_only(name):
    config = dataclasses.replace(sizes.size(name), head_dim=32)
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(2, 32)).astype(np.float32)
    for distance in (0, 1, 50):
        products = [turned(q, p + distance, config) @ turned(k, p, config) for p in (0, 3, 200, 1000)]
        np.testing.assert_allclose(products, products[0], atol=2e-3)
    assert (
        abs(turned(q, 9, config) @ turned(k, 0, config) - turned(q, 5, config) @ turned(k, 0, config)) > 0.1
    )


def test_rope_pairs_channel_i_with_i_plus_half():
    """By hand: H = 4, theta = 100, position 2 turns pair (0, 2) by 2 and pair (1, 3) by 2 / 10."""
    config = ModelConfig(embed_dim=8, num_heads=2, head_dim=4, rope_theta=100.0)
    c0, s0, c1, s1 = math.cos(2.0), math.sin(2.0), math.cos(0.2), math.sin(0.2)
    #          channel:  0      1     2     3
    x = np.array([1.0, 10.0, 3.0, 30.0], np.float32)
    expected = [c0 - 3 * s0, 10 * c1 - 30 * s1, 3 * c0 + s0, 30 * c1 + 10 * s1]
    np.testing.assert_allclose(turned(x, 2, config), expected, rtol=1e-6)
    np.testing.assert_array_equal(turned(x, 0, config), x)


def llama3_by_wavelength(theta, H, factor, original, low=1.0, high=4.0):
    """Hugging Face's modeling_rope_utils._compute_llama3_parameters, one channel at a time."""
    out = []
    for i in range(0, H, 2):
        freq = theta ** (-i / H)
        wavelength = 2 * math.pi / freq
        if wavelength < original / high:
            out.append(freq)
        elif wavelength > original / low:
            out.append(freq / factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            out.append((1 - smooth) * freq / factor + smooth * freq)
    return out


def yarn_by_rotations(theta, H, factor, original, fast=32.0, slow=1.0):
    """YaRN, arXiv:2309.00071, section 3.2, with the channel range rounded outwards as implementations do."""
    low, high = (
        H * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (fast, slow)
    )
    low, high = max(math.floor(low), 0), min(math.ceil(high), H - 1)
    out = []
    for i in range(H // 2):
        freq = theta ** (-2 * i / H)
        interpolated = min(max((i - low) / (high - low), 0.0), 1.0)
        out.append(interpolated * freq / factor + (1 - interpolated) * freq)
    return out


def scaled(kind, theta, H, factor, original):
    return ModelConfig(
        embed_dim=64,
        num_heads=2,
        head_dim=H,
        rope_theta=theta,
        rope_scaling=kind,
        rope_scaling_factor=factor,
        rope_original_len=original,
    )


# The last column: transformers 5.23.0, ROPE_INIT_FUNCTIONS[kind], channels 1, H / 4, H / 2 - 1.
@pytest.mark.parametrize(
    ("kind", "formula", "theta", "H", "factor", "original", "channels"),
    [
        ("llama3", llama3_by_wavelength, 5e5, 128, 8.0, 8192, [0.8146172, 0.000524846, 3.068926e-07]),
        ("llama3", llama3_by_wavelength, 5e5, 64, 32.0, 8192, [0.6636013, 0.0004295567, 9.418306e-08]),
        ("yarn", yarn_by_rotations, 1e6, 128, 4.0, 32768, [0.8058422, 0.0006029411, 3.102344e-07]),
        ("yarn", yarn_by_rotations, 1e4, 64, 16.0, 4096, [0.7498942, 0.005673077, 8.334509e-06]),
    ],
)
def test_rope_scaling_follows_its_formula(kind, formula, theta, H, factor, original, channels):
    freqs, magnitude = rope_frequencies(scaled(kind, theta, H, factor, original), local=False)
    np.testing.assert_allclose(freqs, formula(theta, H, factor, original), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(freqs)[[1, H // 4, H // 2 - 1]], channels, rtol=1e-5)
    assert magnitude == pytest.approx(0.1 * math.log(factor) + 1 if kind == "yarn" else 1.0)


def test_linear_scaling_divides_positions():
    config = scaled("linear", 1e6, 256, 8.0, None)
    plain = scaled("none", 1e6, 256, 1.0, None)
    x = np.random.default_rng(2).normal(size=256).astype(np.float32)
    np.testing.assert_allclose(turned(x, 80, config), turned(x, 10, plain), atol=1e-5)


def test_yarn_scales_queries_and_keys_by_its_magnitude():
    config = scaled("yarn", 1e4, 64, 16.0, 4096)
    x = np.random.default_rng(2).normal(size=64).astype(np.float32)
    grown = np.linalg.norm(turned(x, 12, config)) / np.linalg.norm(x)
    assert grown == pytest.approx(1.2772588722239782, rel=1e-5)  # transformers' attention_factor


def test_local_layers_have_their_own_base_and_no_scaling():
    config = dataclasses.replace(sizes.size("gemma3-4b"), head_dim=64)
    exponents = np.arange(0, 64, 2) / 64
    local, _ = rope_frequencies(config, local=True)
    np.testing.assert_allclose(local, 1e4**-exponents, rtol=1e-5)
    everywhere, _ = rope_frequencies(config, local=False)
    np.testing.assert_allclose(everywhere, 1e6**-exponents / 8, rtol=1e-5)
    one_base = dataclasses.replace(config, rope_local_theta=None)
    np.testing.assert_array_equal(rope_frequencies(one_base, local=True)[0], everywhere)
