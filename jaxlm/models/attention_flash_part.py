"""The flash kernels on queries and keys that come from different places of a row: what `attention_sequence` merges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.models.attention_flash import Blocks, blocks_of, pick_tiling
from jaxlm.models.attention_flash_back import backward_others
from jaxlm.models.attention_flash_kernel import Tiling, forward
from jaxlm.models.attention_table import Seen


class FlashKernel(NamedTuple):
    """As `TableKernel`, in blocks of vector memory. Queries lie in two pieces, within which their keys ascend."""

    scale: float
    softcap: float | None
    head_dim: int
    blocks: Blocks
    interpret: bool

    def _prepare(self, q_BTX, k_BSY, seen: Seen, *, back: bool) -> tuple[Tiling, jax.Array | None, jax.Array]:
        """-> the tiling, the first key of each query, [B, T], and where each block of queries stands."""
        B, T, X = q_BTX.shape
        tiling = pick_tiling(
            jax.ShapeDtypeStruct((B, T, X // self.head_dim, self.head_dim), q_BTX.dtype),
            k_BSY.shape[2] // self.head_dim,
            self.blocks,
            back=back,
            num_others=k_BSY.shape[1],
            causal=seen.is_own,
            scale=self.scale,
            softcap=self.softcap,
            limited=seen.first_BT is not None,
            rotated=False,
            interpret=self.interpret,
        )
        first_BT = None if seen.first_BT is None else jnp.broadcast_to(seen.first_BT, (B, T))
        return tiling, first_BT, seen.end_T[:: tiling.q] - int(seen.is_own)

    def _by_block(self, lse_BNT: jax.Array, tiling: Tiling) -> jax.Array:
        B, N, T = lse_BNT.shape
        return lse_BNT.reshape(B, N // tiling.heads, tiling.heads, T)

    def ahead(
        self,
        q_BTX,
        k_BSY,
        v_BSY,
        seen: Seen,
        before: tuple[jax.Array, jax.Array] | None = None,
        dtype: Any = jnp.float32,
    ) -> tuple[jax.Array, jax.Array]:
        """-> o_BTX, lse_BNT."""
        tiling, first_BT, begins = self._prepare(q_BTX, k_BSY, seen, back=False)
        if before is not None:
            before = before[0], self._by_block(before[1], tiling)
        o_BTX, lse = forward(q_BTX, k_BSY, v_BSY, first_BT, None, tiling, None, begins, before, dtype)
        return o_BTX, lse.reshape(lse.shape[0], -1, lse.shape[3])

    def back(self, q_BTX, k_BSY, v_BSY, o_BTX, lse_BNT, do_BTX, seen: Seen, dq_BTX: jax.Array | None):
        """-> dq with the part of these keys added, dk and dv, all in float32."""
        tiling, first_BT, begins = self._prepare(q_BTX, k_BSY, seen, back=True)
        lse = self._by_block(lse_BNT, tiling)
        return backward_others(
            q_BTX, k_BSY, v_BSY, first_BT, o_BTX, lse, do_BTX, dq_BTX, tiling, None, begins
        )


def flash_kernel(
    scale: float,
    softcap: float | None,
    head_dim: int,
    device_kind: str,
    blocks: Sequence[Any] | None = None,
    *,
    interpret: bool = False,
) -> FlashKernel:
    """For a kind of chip, as `jax.Device.device_kind` calls it."""
    return FlashKernel(scale, softcap, head_dim, blocks_of(device_kind, blocks), interpret)
