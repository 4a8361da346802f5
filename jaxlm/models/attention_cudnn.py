"""Causal attention on GPUs of NVIDIA: cuDNN's flash attention, forward and backward, through `jax.nn`.

It never writes the [T, T] table of logits of each head. Documents of a packed row are told apart by a mask of zeros and
large negative numbers, [B, 1, T, T], which is added to the logits. cuDNN also takes offsets of documents and no mask,
but JAX 0.10 reads wrong keys with them where query heads share KV heads (github.com/jax-ml/jax/pull/39521), they want a
bound on the documents of a row, and they are for Hopper and later only.

What it takes: jax/_src/cudnn/fused_attention_stablehlo.py of JAX 0.10.2 and 0.11.1, read on 2026-11-26, and its tests.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.extend import backend

from jaxlm.models.config import ModelConfig
from jaxlm.models.layers import Spread, on_rows_and_heads
from jaxlm.models.masks import causal_mask

AMPERE = (8, 0)
"""Compute capability of the first GPUs that have the kernel: A100."""
HOPPER = 9
"""The major number of the only ones on which JAX tests heads of more than 128 channels: H100, H200."""


def capability() -> tuple[int, int] | None:
    """Compute capability of this process's GPUs; None where they are not NVIDIA's."""
    if "cuda" not in backend.get_backend().platform_version:
        return None
    major, minor = jax.local_devices()[0].compute_capability.split(".")
    return int(major), int(minor)


def why_not(config: ModelConfig, gpu: tuple[int, int] | None) -> str | None:
    """What keeps this model from cuDNN's attention on such a GPU; None: nothing.

    gpu: its compute capability; None: not NVIDIA's.
    """
    if gpu is None:
        return "this GPU is not NVIDIA's"
    if gpu < AMPERE:
        return f"compute capability {gpu[0]}.{gpu[1]} is below {AMPERE[0]}.{AMPERE[1]}"
    if config.dtype != "bfloat16":
        return f"it computes in bfloat16, and model.dtype={config.dtype!r}"
    if config.attention_softcap is not None:
        return f"it has no soft-cap, and model.attention_softcap={config.attention_softcap}"
    widest = 256 if gpu[0] == HOPPER else 128
    if config.head_width % 8 or config.head_width > widest:
        return f"it takes heads of a multiple of 8 channels up to {widest}, and model.head_dim={config.head_width}"
    return None


def attend_cudnn(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    *,
    segments_BT,
    window: int | None,
    softcap: float | None,
    scale: float,
    spread: Spread | None = None,
    implementation: str = "cudnn",
) -> jax.Array:
    """The same function as `attend_dense`; see there for the arguments. Its softmax is in float32.

    Args:
      softcap: None, see `why_not`.
      spread: the mesh whose devices hold rows and heads; the compiler cannot cut a kernel.
      implementation: `xla` computes the same in plain operations, for tests where there is no GPU.
    """
    assert softcap is None, softcap
    run = functools.partial(local, window=window, scale=scale, implementation=implementation)
    return on_rows_and_heads(spread, run, (q_BTNH, k_BSKH, v_BSKH), segments_BT)


def local(
    q_BTNH, k_BSKH, v_BSKH, segments_BT, *, window: int | None, scale: float, implementation
) -> jax.Array:
    """Of the rows and heads of one device."""
    attend = functools.partial(
        jax.nn.dot_product_attention, scale=scale, is_causal=True, implementation=implementation
    )
    if segments_BT is None:
        keys = None if window is None else (window - 1, 0)  # before its own, and after
        return attend(q_BTNH, k_BSKH, v_BSKH, local_window_size=keys)
    T = q_BTNH.shape[1]
    if T % 2:  # with a mask, the backward kernel wants an even length; the last query then sees itself alone
        q_BTNH, k_BSKH, v_BSKH = (
            jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q_BTNH, k_BSKH, v_BSKH)
        )
        segments_BT = jnp.pad(segments_BT, ((0, 0), (0, 1)), constant_values=-1)
    everything = slice(0, T + T % 2)
    # The window goes into the mask too: before 9.10.2, cuDNN refuses one of its own beside a mask.
    mask_BTS = causal_mask(segments_BT, window, everything, everything)
    return attend(q_BTNH, k_BSKH, v_BSKH, mask=mask_BTS[:, None])[:, :T]
