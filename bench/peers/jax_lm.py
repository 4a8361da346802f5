"""The peer in JAX: the same models as a textbook has them, jitted whole, with optax's AdamW.

    python bench/peers/jax_lm.py S float32 [--seconds=10]

Einsums, a [T, T] table of attention, optax's cross-entropy over all logits: nothing is arranged for any compiler.
"""

from __future__ import annotations

import argparse
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from shapes import BETAS, CLIP_NORM, LEARNING_RATE, SHAPES, WEIGHT_DECAY, Shape, hand_over, measure  # noqa: E402


def init(s: Shape, key):
    """Normal weights, one dict per block."""
    H = s.width // s.num_heads
    shapes = {
        "q": (s.width, s.num_heads, H), "k": (s.width, s.num_kv_heads, H), "v": (s.width, s.num_kv_heads, H),
        "o": (s.num_heads, H, s.width), "up": (s.width, s.mlp), "down": (s.mlp, s.width),
    } | ({"gate": (s.width, s.mlp)} if s.llama else {})  # fmt: skip
    keys = iter(jax.random.split(key, 2 + s.num_layers * len(shapes)))
    normal = lambda shape: 0.02 * jax.random.normal(next(keys), shape)  # noqa: E731
    blocks = [
        {name: normal(shape) for name, shape in shapes.items()}
        | {"norm1": jnp.ones(s.width), "norm2": jnp.ones(s.width)}
        for _ in range(s.num_layers)
    ]
    ends = {"embedding": normal((s.vocab_size, s.width)), "norm": jnp.ones(s.width), "blocks": blocks}
    return ends if s.llama else ends | {"positions": normal((s.seq_len, s.width))}


def norm(s: Shape, x, scale):
    """RMSNorm or LayerNorm in float32."""
    y = x.astype(jnp.float32)
    if not s.llama:
        y = y - y.mean(-1, keepdims=True)
    return (y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-6) * scale).astype(x.dtype)


def rope(x):
    """Rotates channel i with i + H // 2; x is [B, T, N, H]."""
    T, H = x.shape[1], x.shape[-1]
    angles = jnp.arange(T)[:, None] * 10_000.0 ** -(jnp.arange(0, H, 2) / H)
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)


def loss_fn(s: Shape, dtype, params, tokens, targets):
    """Mean cross-entropy."""
    cast = jax.tree.map(lambda w: w.astype(dtype), params)
    x = cast["embedding"][tokens]
    if not s.llama:
        x = x + cast["positions"]
    mask = jnp.tril(jnp.ones((s.seq_len, s.seq_len), bool))
    for w in cast["blocks"]:
        y = norm(s, x, w["norm1"])
        q, k, v = (jnp.einsum("btd,dnh->btnh", y, w[name]) for name in "qkv")
        if s.llama:
            q, k = rope(q), rope(k)
        k, v = (jnp.repeat(a, s.num_heads // s.num_kv_heads, axis=2) for a in (k, v))
        logits = jnp.einsum("btnh,bsnh->bnts", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
        probs = jax.nn.softmax(jnp.where(mask, logits, -1e30), -1).astype(dtype)
        x = x + jnp.einsum("btnh,nhd->btd", jnp.einsum("bnts,bsnh->btnh", probs, v), w["o"])
        y = norm(s, x, w["norm2"])
        h = jnp.einsum("btd,df->btf", y, w["up"])
        h = jax.nn.silu(jnp.einsum("btd,df->btf", y, w["gate"])) * h if s.llama else jax.nn.gelu(h)
        x = x + jnp.einsum("btf,fd->btd", h, w["down"])
    logits = jnp.einsum("btd,vd->btv", norm(s, x, cast["norm"]), cast["embedding"]).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def main() -> None:
    """Prints one measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    s = SHAPES[args.shape]
    params = jax.jit(init, static_argnums=0)(s, jax.random.key(0))
    tx = optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        optax.adamw(LEARNING_RATE, *BETAS, weight_decay=WEIGHT_DECAY),
    )
    state, rng = tx.init(params), np.random.default_rng(0)

    def update(params, state, tokens, targets):
        loss, grads = jax.value_and_grad(lambda p: loss_fn(s, jnp.dtype(args.dtype), p, tokens, targets))(
            params
        )
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    train = jax.jit(update, donate_argnums=(0, 1))

    def step() -> float:
        nonlocal params, state
        rows = rng.integers(0, s.vocab_size, (s.batch_size, s.seq_len + 1)).astype(np.int32)
        params, state, loss = train(params, state, rows[:, :-1], rows[:, 1:])
        return float(loss)

    hand_over(measure(s, step, args.seconds))


if __name__ == "__main__":
    main()
