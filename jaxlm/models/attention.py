"""Grouped-query attention: RoPE, masks, the choice of kernel, and the KV cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlm.models import attention_cudnn
from jaxlm.models.angles import cos_sin
from jaxlm.models.attention_chunked import attend_chunked
from jaxlm.models.config import BLOCK_UNIT, ModelConfig
from jaxlm.models.layers import (
    Constrain,
    Norm,
    Spread,
    matrix,
    normal,
    place_of,
    project,
    residual_stddev,
    softcap,
)
from jaxlm.models.masks import NEG_INF, causal_mask, is_seen
from jaxlm.types import UserError


class Rotation(NamedTuple):
    """Cosine and sine of RoPE's angles, [B, T, 1, H // 2], float32; shared by all layers of a kind."""

    cos: jax.Array
    sin: jax.Array


def rope_frequencies(config: ModelConfig, *, local: bool) -> tuple[jax.Array, float]:
    """Angle per position of each channel pair [H // 2], and a factor on cos and sin (1 except for YaRN).

    Sources: RoFormer, arXiv:2104.09864, section 3.4; linear: arXiv:2306.15595; llama3: the Llama 3.1 release's
    smooth band between wavelengths of original_len / 4 and original_len / 1; YaRN: arXiv:2309.00071, sections 3.2
    and 3.4 (beta 32 and 1). Local layers with a base of their own are never scaled (Gemma 3, arXiv:2503.19786).
    """
    H = config.head_width
    own_base = local and config.rope_local_theta is not None
    theta = config.rope_local_theta if local and config.rope_local_theta is not None else config.rope_theta
    exponents = jnp.arange(0, H, 2, dtype=jnp.float32) / H
    freqs = theta**-exponents
    factor, original = config.rope_scaling_factor, config.rope_original_len or 0
    if own_base or config.rope_scaling == "none":
        return freqs, 1.0
    if config.rope_scaling == "linear":
        return freqs / factor, 1.0
    if config.rope_scaling == "llama3":
        low, high = 1.0, 4.0
        turns = original * freqs / (2 * math.pi)  # rotations within the original context
        smooth = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
        return freqs * smooth + freqs / factor * (1.0 - smooth), 1.0

    def channel(num_turns: float) -> float:  # the (fractional) channel that turns this often in original_len
        return H * math.log(original / (num_turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = max(math.floor(channel(32.0)), 0), min(math.ceil(channel(1.0)), H - 1)
    ramp = jnp.clip((jnp.arange(H // 2, dtype=jnp.float32) - first) / max(last - first, 1e-3), 0.0, 1.0)
    return freqs / factor * ramp + freqs * (1.0 - ramp), 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def rotation(config: ModelConfig, positions_BT: jax.Array, *, local: bool) -> Rotation:
    """RoPE's angles at these positions, in float32: bfloat16 cannot tell position 256 from 257."""
    freqs, factor = rope_frequencies(config, local=local)
    angles = positions_BT.astype(jnp.float32)[:, :, None, None] * freqs[None, None, None, :]
    cos, sin = cos_sin(angles)
    return Rotation(cos * factor, sin * factor)


def rope(x_BTNH: jax.Array, turn: Rotation, *, by_product: bool = False) -> jax.Array:
    """Rotates pairs of channels by an angle that grows with position.

    Channel i pairs with i + H // 2 (not with i + 1), as in Llama checkpoints of Hugging Face layout. Positions
    restart at 0 in each packed document. Source: Su et al. 2021, RoFormer, arXiv:2104.09864, section 3.4.

    by_product: leave the exchange of the halves to the matrix unit. On TPUs halves of 128 lanes cannot be put together
    inside the product before: it costs three passes over memory, a sixth of all that attention takes at width 4096.
    """
    if by_product:
        cos, sin = (jnp.concatenate((half, half), axis=-1) for half in turn)
        return (x_BTNH.astype(jnp.float32) * cos + half_turn(x_BTNH) * sin).astype(x_BTNH.dtype)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = (first * turn.cos - second * turn.sin, second * turn.cos + first * turn.sin)
    return jnp.concatenate(turned, axis=-1).astype(x_BTNH.dtype)


def half_turn(x_BTNH: jax.Array) -> jax.Array:
    """(first half, second half) of the channels -> (-second, first), float32, as a product with ones: exact."""
    H = x_BTNH.shape[-1]
    turn_HH = jnp.concatenate((jnp.eye(H, k=H // 2)[: H // 2], -jnp.eye(H, k=-(H // 2))[H // 2 :]))
    return jax.lax.dot_general(
        x_BTNH,
        turn_HH.astype(x_BTNH.dtype),
        (((3,), (0,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if x_BTNH.dtype == jnp.float32 else None,
        preferred_element_type=jnp.promote_types(x_BTNH.dtype, jnp.float32),
    )


def attend_masked(q_BTNH, k_BSKH, v_BSKH, mask_BTS, *, scale: float, cap: float | None = None) -> jax.Array:
    """Textbook attention under any mask: every KV head serves G = N // K query heads. -> o_BTNH.

    The reference for the kernels, and what decoding with a cache runs. Softmax in float32.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = (q_BTNH * jnp.asarray(scale, q_BTNH.dtype)).reshape(B, T, K, N // K, H)
    logits_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    logits_BKGTS = jnp.where(mask_BTS[:, None, None], softcap(logits_BKGTS, cap), NEG_INF)
    probs_BKGTS = jax.nn.softmax(logits_BKGTS, axis=-1).astype(v_BSKH.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", probs_BKGTS, v_BSKH).reshape(B, T, N, H)


def attend_dense(
    q_BTNH, k_BSKH, v_BSKH, *, segments_BT, window: int | None, softcap: float | None, scale: float
) -> jax.Array:
    """Causal attention with the whole [T, T] table of logits; the twin that every other kernel is tested against.

    segments_BT: documents of a packed row never see each other; None: one document. window: keys a query sees, its
    own included; None: all before it.
    """
    T = q_BTNH.shape[1]
    mask_BTS = causal_mask(segments_BT, window, slice(0, T), slice(0, T))
    return attend_masked(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale=scale, cap=softcap)


def pick_attention(
    config: ModelConfig, platform: str, num_parts: int = 1, *, cuts_length: bool = False
) -> str:
    """What `model.attention` stands for on this platform.

    `auto`: on TPUs `flash`, and `splash` for the widths of heads that it cannot cut out; on GPUs `cudnn` where it takes
    such a model, else `dense`; on CPUs `chunked`: on two cores, chunks of queries halve the time and the memory of the
    [T, T] table (`make bench` measures it).

    Args:
      num_parts: devices that the heads are split over.
      cuts_length: whether rows are cut over devices, as mesh.sequence says.

    Errors: UserError for a kernel that the platform does not have, or that does not take such heads.
    """
    name = config.attention
    N, K = config.num_heads // num_parts, config.kv_heads // num_parts
    fits = supports(config.head_width, N, K)
    if name in ("splash", "flash") and platform != "tpu":
        raise UserError(
            f"model.attention={name!r} is a kernel of TPUs, and this is a {platform}. Try attention='auto'."
        )
    if name == "cudnn" and platform != "gpu":
        raise UserError(
            f"model.attention='cudnn' is a kernel of GPUs, and this is a {platform}. Try attention='auto'."
        )
    if name == "cudnn" and (why := attention_cudnn.why_not(config, attention_cudnn.capability())):
        raise UserError(f"model.attention='cudnn' cannot be used: {why}. Try attention='dense'.")
    if name == "flash" and not fits:
        raise UserError(
            f"model.attention='flash' takes heads of 128 channels or a multiple, or pairs of 64, but model.head_dim="
            f"{config.head_width}, with {N} heads and {K} KV heads on a device. Try attention='splash'."
        )
    if name == "auto" and platform == "tpu":
        name = "flash" if fits else "splash"
    if name == "splash" and cuts_length:
        raise UserError(
            f"mesh.sequence cuts rows, which on TPUs only attention='flash' can follow, but model.head_dim="
            f"{config.head_width}, with {N} heads and {K} KV heads on a device, are for 'splash'. Try mesh.sequence=1, "
            "or attention='dense', which takes memory for a table of all queries and keys."
        )
    if name != "auto":
        return name
    if platform == "gpu" and attention_cudnn.why_not(config, attention_cudnn.capability()) is None:
        return "cudnn"
    return "chunked" if platform == "cpu" else "dense"


def describe_attention(config: ModelConfig, platform: str, num_parts: int = 1) -> str:
    """What `pick_attention` picks, in words: of `auto`, also why it is not the fastest that the platform has."""
    name = pick_attention(config, platform, num_parts)
    if config.attention != "auto":
        return name
    why = None
    if platform == "gpu":
        why = attention_cudnn.why_not(config, attention_cudnn.capability())
    if why is not None:
        return f"{name} (auto; not cudnn: {why})"
    if name == "splash":
        heads = f"{config.num_heads // num_parts} and {config.kv_heads // num_parts} heads"
        return f"splash (auto; not flash: {config.head_width} channels a head, {heads})"
    return f"{name} (auto)"


def picked_blocks(
    config: ModelConfig, kernel: str, seq_len: int, device_kind: str, num_parts: int = 1
) -> str | None:
    """What `model.attention_blocks` stands for in a kernel; None for one that has no blocks.

    As that key is written, but where length or memory make blocks shorter, and without the diagonal, of which splash
    has none: queries, keys, and the same of the backward pass, if it is unlike the forward pass.
    """
    if kernel == "flash":
        from jaxlm.models.attention_flash import picked_blocks as of_flash

        sizes = of_flash(config, seq_len, device_kind, num_parts)
    elif kernel == "splash":
        from jaxlm.models.attention_splash import picked_sizes

        sizes = picked_sizes(-(-seq_len // BLOCK_UNIT) * BLOCK_UNIT, config.block_sizes)
    else:
        return None
    half = len(sizes) // 2
    return ",".join(map(str, sizes[:half] if sizes[:half] == sizes[half:] else sizes))


def supports(head_dim: int, num_heads: int, kv_heads: int) -> bool:
    """Whether `flash` can cut one head, or two, out of the lanes of a TPU; the numbers of heads are one device's."""
    if num_heads % max(kv_heads, 1):
        return False
    if head_dim == 64:
        return num_heads % 2 == 0 and kv_heads % 2 == 0
    return head_dim % 128 == 0


def attend(
    kernel: str,
    spread: Spread | None,
    q_BTNH,
    k_BSKH,
    v_BSKH,
    turn: Rotation | None,
    *,
    blocks: Sequence[int] | None = None,
    begins_BT: jax.Array | None = None,
    **how,
) -> jax.Array:
    """Causal attention by one of the kernels, all of which compute `attend_dense`; `how`: its keywords.

    Args:
      turn: by which queries and keys are turned first.
      blocks: `ModelConfig.block_sizes`, for the kernels of TPUs.
      begins_BT: of `arrange`, where the length is cut over devices.
    """
    if spread is not None and spread.length is not None:
        from jaxlm.models.attention_sequence import attend_sequence

        if turn is not None:
            q_BTNH, k_BSKH = (rope(x, turn, by_product=kernel == "flash") for x in (q_BTNH, k_BSKH))
        how = {name: value for name, value in how.items() if name != "segments_BT"}
        if kernel == "flash" and blocks is not None:
            how["blocks"] = blocks
        return attend_sequence(kernel, spread, q_BTNH, k_BSKH, v_BSKH, begins_BT=begins_BT, **how)
    if kernel == "flash":
        from jaxlm.models.attention_flash import attend_flash  # Pallas: half a second, on TPUs only

        return attend_flash(q_BTNH, k_BSKH, v_BSKH, rotation=turn, spread=spread, blocks=blocks, **how)
    if turn is not None:
        by_product = kernel == "splash"
        q_BTNH, k_BSKH = (rope(x, turn, by_product=by_product) for x in (q_BTNH, k_BSKH))
    if kernel == "splash":
        from jaxlm.models.attention_splash import attend_splash

        return attend_splash(q_BTNH, k_BSKH, v_BSKH, spread=spread, blocks=blocks, **how)
    if kernel == "cudnn":
        how["spread"] = spread
    kernels = {"dense": attend_dense, "chunked": attend_chunked, "cudnn": attention_cudnn.attend_cudnn}
    o_BTNH = kernels[kernel](q_BTNH, k_BSKH, v_BSKH, **how)
    return checkpoint_name(o_BTNH, "attention")


class Cache(NamedTuple):
    """Keys and values of all layers, [L, B, S, K, H]; slot s holds the token at position s of its row."""

    k_LBSKH: jax.Array
    v_LBSKH: jax.Array


def init_cache(config: ModelConfig, batch_size: int, max_len: int) -> Cache:
    """An empty cache for `batch_size` rows of up to `max_len` positions, in the compute dtype."""
    shape = (config.num_layers, batch_size, max_len, config.kv_heads, config.head_width)
    return Cache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))


class Places(NamedTuple):
    """Where the tokens of a batch stand: what all layers share. With a cache, slots and layer say where to write."""

    positions_BT: jax.Array
    segments_BT: jax.Array | None
    turns: dict[str, Rotation]
    """Layer kind (`g`, `l`) -> RoPE angles; empty for models without RoPE."""
    begins_BT: jax.Array | None = None
    """Where each token's document begins in its row, where rows are cut over devices and packed."""


def attend_cached(q_BTNH, k_BTKH, v_BTKH, cache: Cache, layer, places: Places, *, window, cap, scale):
    """Writes the new keys and values at slot = position, then attends to the slots up to the query's position.

    Slots after a row's own length may hold padding of a shorter prompt: they are masked until decoding reaches and
    overwrites them. layer: index into the cache, static or traced. -> (o_BTNH, cache).
    """
    positions_BT, B = places.positions_BT, q_BTNH.shape[0]
    rows_B1 = jnp.arange(B)[:, None]
    k_LBSKH = cache.k_LBSKH.at[layer, rows_B1, positions_BT].set(k_BTKH.astype(cache.k_LBSKH.dtype))
    v_LBSKH = cache.v_LBSKH.at[layer, rows_B1, positions_BT].set(v_BTKH.astype(cache.v_LBSKH.dtype))
    k_BSKH = jax.lax.dynamic_index_in_dim(k_LBSKH, layer, 0, keepdims=False)
    v_BSKH = jax.lax.dynamic_index_in_dim(v_LBSKH, layer, 0, keepdims=False)
    slot_11S = jnp.arange(k_BSKH.shape[1])[None, None, :]
    mask_BTS = is_seen(positions_BT[:, :, None], slot_11S, window)
    return attend_masked(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale=scale, cap=cap), Cache(k_LBSKH, v_LBSKH)


class Attention(nn.Module):
    """Multi-head, grouped-query or multi-query attention (arXiv:1706.03762, 2305.13245, 1911.02150)."""

    config: ModelConfig
    kind: str
    kernel: str
    constrain: Constrain
    spread: Spread | None = None
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BTD, places: Places, cache: Cache | None = None, layer=0):
        config = self.config
        D, N, K, H = config.embed_dim, config.num_heads, config.kv_heads, config.head_width
        heads = {"q": (N, "heads"), "k": (K, "kv_heads"), "v": (K, "kv_heads")}
        with_qkv: dict[str, Any] = {
            "has_bias": config.bias in ("qkv", "all"),
            "lora_dropout": self.lora_dropout,
        }
        matrices = {
            name: matrix(self, name, (D, num, H), ("embed", axis, "head_dim"), normal(), **with_qkv)
            for name, (num, axis) in heads.items()
        }
        qkv = project(x_BTD, matrices, place=place_of(self.spread, ("embed", "heads", "head_dim"), x_BTD))
        q_BTNH, k_BTKH, v_BTKH = (
            self.constrain(qkv[name], "batch", "length", axis, "head_dim")
            for name, (_, axis) in heads.items()
        )
        if config.qk_norm:
            q_BTNH = Norm(config, axis="head_dim", name="q_norm")(q_BTNH)
            k_BTKH = Norm(config, axis="head_dim", name="k_norm")(k_BTKH)
        turn = places.turns.get(self.kind)
        scale = (config.query_scale_dim or H) ** -0.5
        window = config.sliding_window if self.kind == "l" else None
        cap = config.attention_softcap
        if cache is not None:
            if turn is not None:
                q_BTNH, k_BTKH = rope(q_BTNH, turn), rope(k_BTKH, turn)
            o_BTNH, cache = attend_cached(
                q_BTNH, k_BTKH, v_BTKH, cache, layer, places, window=window, cap=cap, scale=scale
            )
        else:
            how: dict[str, Any] = {"segments_BT": places.segments_BT, "begins_BT": places.begins_BT}
            how |= {"window": window, "softcap": cap, "scale": scale}
            how["blocks"] = config.block_sizes
            o_BTNH = attend(self.kernel, self.spread, q_BTNH, k_BTKH, v_BTKH, turn, **how)
        o_BTNH = self.constrain(o_BTNH, "batch", "length", "heads", "head_dim")
        axes = ("heads", "head_dim", "embed")
        o = matrix(
            self, "o", (N, H, D), axes, normal(residual_stddev(config)),
            num_in=2, has_bias=config.bias == "all", lora_dropout=self.lora_dropout,
        )  # fmt: skip
        return project(o_BTNH, {"o": o}, num_in=2, place=place_of(self.spread, axes, x_BTD))["o"], cache
