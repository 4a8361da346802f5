"""The flash kernels on queries and keys that come from different places of a row: what `attention_sequence` merges."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.models.attention_flash import DEFAULT_BLOCKS, Blocks, pick_tiling, with_memory
from jaxlm.models.attention_flash_back import backward_others
from jaxlm.models.attention_flash_kernel import Tiling, forward
from jaxlm.models.attention_table import Seen


class FlashKernel(NamedTuple):
    """As `TableKernel`, in blocks of vector memory. Queries lie in two pieces, within which their keys ascend."""

    scale: float
    softcap: float | None
    blocks: Blocks
    interpret: bool

    def _prepare(
        self, q_BTNH, k_BSKH, seen: Seen, *, back: bool
    ) -> tuple[Tiling, jax.Array | None, jax.Array]:
        """-> the tiling, the first key of each query, [B, T], and where each block of queries stands."""
        B, T, _, _ = q_BTNH.shape
        tiling = pick_tiling(
            q_BTNH,
            k_BSKH.shape[2],
            self.blocks,
            back=back,
            num_others=k_BSKH.shape[1],
            causal=seen.is_own,
            scale=self.scale,
            softcap=self.softcap,
            limited=seen.first_BT is not None,
            rotated=False,
            interpret=self.interpret,
        )
        first_BT = None if seen.first_BT is None else jnp.broadcast_to(seen.first_BT, (B, T))
        return tiling, first_BT, seen.end_T[:: tiling.q] - int(seen.is_own)

    def ahead(self, q_BTNH, k_BSKH, v_BSKH, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """-> o_BTNH in float32, lse_BNT."""
        B, T, N, _ = q_BTNH.shape
        tiling, first_BT, begins = self._prepare(q_BTNH, k_BSKH, seen, back=False)
        q, k, v = (flat(x) for x in (q_BTNH, k_BSKH, v_BSKH))
        o_BTX, lse = forward(q, k, v, first_BT, None, tiling, None, begins)
        return o_BTX.reshape(q_BTNH.shape), lse.reshape(B, N, T)

    def back(self, q_BTNH, k_BSKH, v_BSKH, o_BTNH, lse_BNT, do_BTNH, seen: Seen, dq_BTNH):
        """-> dq with the part of these keys added, dk and dv, all in float32."""
        B, T, N, _ = q_BTNH.shape
        tiling, first_BT, begins = self._prepare(q_BTNH, k_BSKH, seen, back=True)
        lse = lse_BNT.reshape(B, N // tiling.heads, tiling.heads, T)
        dq = None if dq_BTNH is None else flat(dq_BTNH)
        q, k, v, o, do = (flat(x) for x in (q_BTNH, k_BSKH, v_BSKH, o_BTNH, do_BTNH))
        dq, *dkv = backward_others(q, k, v, first_BT, o, lse, do, dq, tiling, None, begins)
        return dq.reshape(q_BTNH.shape), *(dx.reshape(k_BSKH.shape) for dx in dkv)


def flat(x: jax.Array) -> jax.Array:
    """Heads side by side in the lanes."""
    return x.reshape(*x.shape[:2], -1)


def flash_kernel(
    scale: float,
    softcap: float | None,
    device_kind: str,
    blocks: Blocks | None = None,
    *,
    interpret: bool = False,
) -> FlashKernel:
    """For a kind of chip, as `jax.Device.device_kind` calls it."""
    return FlashKernel(scale, softcap, with_memory(blocks or DEFAULT_BLOCKS, device_kind), interpret)
