"""The matrix product of experts: rows sorted by group, each times the weights of its own group; and its gradients.

On TPUs kernels of our own run it (`grouped_kernel`), on GPUs one `lax.ragged_dot`. Its lowering for CPUs multiplies
every row with the weights of every group and masks what is not asked for: with 8 experts, 8 times the work and as many
copies of the rows. There the same product runs over blocks of rows of one group, as many as there are: hardly more work
than there are rows, and weights of groups without rows are not even read. On two cores, 4 to 17 times as fast
(docs/design/0004).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxlm.collective import Split, scatter_sum

LARGEST_BLOCK = 128
"""Rows of a block on CPUs: each copies its group's weights, which many rows have to make up for."""
SMALLEST_BLOCK = 4
"""Fewer rows cost the same: reading the weights takes longer than the product."""


class Kernel(NamedTuple):
    """The TPU whose kernels run these products."""

    vmem_bytes: int
    """Vector memory of a core."""
    rows_here: float = 1.0
    """Share of the rows that belong to a group, where all groups get as many: what the compiler is told to expect."""
    interpret: bool = False
    """On a CPU, for tests."""


class Blocks(NamedTuple):
    """Blocks of rows, in the order of the rows; those beyond `num` are unused."""

    num: jax.Array
    group: jax.Array
    start: jax.Array
    """First row of the block."""
    stop: jax.Array
    """End of the group's rows: the block's last rows may lie beyond, in the next group."""


def block_rows(num_rows: int, num_groups: int) -> int:
    """Rows of a block: one where hardly two rows will share a group (decoding), else about those of a group."""
    if num_rows <= num_groups:
        return 1
    mean = num_rows // num_groups
    return min(max(1 << (mean - 1).bit_length(), SMALLEST_BLOCK), LARGEST_BLOCK)


def cut(sizes_E: jax.Array, num_rows: int, block: int) -> Blocks:
    """Cuts the rows of each group into blocks."""
    E = sizes_E.shape[0]
    num_E = -(-sizes_E // block)
    ends_E, row_ends_E = jnp.cumsum(num_E), jnp.cumsum(sizes_E)
    index = jnp.arange(num_rows // block + min(E, num_rows))  # the most there can be
    group = jnp.minimum(jnp.searchsorted(ends_E, index, side="right"), E - 1)
    within = index - (ends_E - num_E)[group]
    return Blocks(ends_E[-1], group, (row_ends_E - sizes_E)[group] + within * block, row_ends_E[group])


def _accumulate(a: jax.Array, b: jax.Array) -> jnp.dtype:
    """float32; float64 where both are."""
    return jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)


def _ragged(a, b, sizes_E, contract: tuple[int, int], groups: list[int], dtype: jnp.dtype) -> jax.Array:
    """Contracts one dim of each; a's rows are ragged, and b has a dim of groups, or none.

    dtype: of the result. XLA:TPU's kernel is on its own: a conversion afterwards would be another pass over memory.
    """
    dims = lax.RaggedDotDimensionNumbers((([contract[0]], [contract[1]]), ([], [])), [0], groups)
    return lax.ragged_dot_general(a, b, sizes_E, dims, preferred_element_type=dtype)


def _rows(x_MI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """x_MI @ w_EIO[group of the row] -> y_MO."""
    return _ragged(x_MI, w_EIO, sizes_E, (1, 1), [0], x_MI.dtype)


def _rows_back(g_MO: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """g_MO @ w_EIO[group of the row] transposed -> dx_MI."""
    return _ragged(g_MO, w_EIO, sizes_E, (1, 2), [0], g_MO.dtype)


def _weight_grad(x_MI: jax.Array, g_MO: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Sum over the rows of each group of x (outer) g -> dw_EIO."""
    return _ragged(x_MI, g_MO, sizes_E, (0, 0), [], _accumulate(x_MI, g_MO))


def _over_blocks(a_MX: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array, contract: int) -> jax.Array:
    """a_MX times the weights of each row's group, of which it contracts dim 0 or 1.

    A block that reaches beyond its group writes nonsense there, which the next group's first block overwrites.
    """
    M, num_out = a_MX.shape[0], w_EIO.shape[2 - contract]
    block = block_rows(M, w_EIO.shape[0])
    blocks = cut(sizes_E, M, block)
    a_MX = jnp.pad(a_MX, ((0, block - 1), (0, 0)))

    def one(i, y_MY):
        rows = lax.dynamic_slice_in_dim(a_MX, blocks.start[i], block)
        w = lax.dynamic_index_in_dim(w_EIO, blocks.group[i], keepdims=False)
        dims = (((1,), (contract,)), ((), ()))
        y = lax.dot_general(rows, w, dims, preferred_element_type=_accumulate(rows, w)).astype(a_MX.dtype)
        return lax.dynamic_update_slice_in_dim(y_MY, y, blocks.start[i], 0)

    y_MY = jnp.zeros((M + block - 1, num_out), a_MX.dtype)
    return lax.fori_loop(0, blocks.num, one, y_MY)[:M]


def _rows_cpu(x_MI, w_EIO, sizes_E) -> jax.Array:
    return _over_blocks(x_MI, w_EIO, sizes_E, 0)


def _rows_back_cpu(g_MO, w_EIO, sizes_E) -> jax.Array:
    return _over_blocks(g_MO, w_EIO, sizes_E, 1)


def _weight_grad_cpu(x_MI: jax.Array, g_MO: jax.Array, sizes_E: jax.Array) -> jax.Array:
    M, block = x_MI.shape[0], block_rows(x_MI.shape[0], sizes_E.shape[0])
    blocks = cut(sizes_E, M, block)
    x_MI, g_MO = (jnp.pad(a, ((0, block - 1), (0, 0))) for a in (x_MI, g_MO))

    def one(i, dw_EIO):
        start, group = blocks.start[i], blocks.group[i]
        own = start + jnp.arange(block)[:, None] < blocks.stop[i]
        x = jnp.where(own, lax.dynamic_slice_in_dim(x_MI, start, block), 0)
        g = jnp.where(own, lax.dynamic_slice_in_dim(g_MO, start, block), 0)
        dw = lax.dot_general(x, g, (((0,), (0,)), ((), ())), preferred_element_type=dw_EIO.dtype)
        dw = dw + lax.dynamic_index_in_dim(dw_EIO, group, keepdims=False)
        return lax.dynamic_update_index_in_dim(dw_EIO, dw, group, 0)

    shape = (sizes_E.shape[0], x_MI.shape[1], g_MO.shape[1])
    return lax.fori_loop(0, blocks.num, one, jnp.zeros(shape, _accumulate(x_MI, g_MO)))


def _collect(w_EIO: jax.Array, dtype: jnp.dtype, split: Split | None) -> jax.Array:
    """The whole of the weights in the compute dtype, in parts: [S, E, r, C], one of each device that has one.

    What is split are the R = S r rows; where that is the last dim (`_is_turned`), of the transposes. So the parts lie
    side by side as they arrive: [E, R, C] would be another pass over them.
    """
    w = w_EIO.astype(dtype)
    if split is None:
        return w[None]
    return lax.all_gather(jnp.swapaxes(w, 1, 2) if _is_turned(split) else w, split.axis)


def _is_turned(split: Split | None) -> bool:
    return split is not None and split.dim == 2


def _kernels(num_rows: int, w_SErC: jax.Array) -> Any:
    """The module of the kernels, where they take these shapes. Pallas: a tenth of a second, on TPUs only."""
    from jaxlm.models import grouped_kernel

    return grouped_kernel if grouped_kernel.supports(num_rows, w_SErC) else None


def _multiply(
    a: jax.Array,
    w_SErC: jax.Array,
    sizes_E: jax.Array,
    contract: int,
    kernel: Kernel | None,
    onto: jax.Array | None = None,
) -> jax.Array:
    """Rows of a times their group's weights, of which it contracts the rows (1) or the columns (2), plus `onto`."""
    if kernel is not None and (kernels := _kernels(a.shape[0], w_SErC)) is not None:
        return kernels.multiply(a, w_SErC, sizes_E, kernel, contract_columns=contract == 2, onto=onto)
    w_ERC = jnp.moveaxis(w_SErC, 0, 1).reshape(w_SErC.shape[1], -1, w_SErC.shape[3])
    cpu, default = (_rows_cpu, _rows) if contract == 1 else (_rows_back_cpu, _rows_back)
    y = lax.platform_dependent(a, w_ERC, sizes_E, cpu=cpu, default=default)
    return y if onto is None else onto + y


def _grad_in_parts(
    a_MR, b_MC, sizes_E, like_SErC: jax.Array, dtype: jnp.dtype, kernel: Kernel | None
) -> jax.Array:
    """Sum over the rows of each group of a (outer) b, in the parts of the weights; dtype: if a kernel writes it."""
    S, E, r, C = like_SErC.shape
    if kernel is not None and (kernels := _kernels(a_MR.shape[0], like_SErC)) is not None:
        return kernels.weight_grad(a_MR, b_MC, sizes_E, S, dtype, kernel)
    dw_ERC = lax.platform_dependent(a_MR, b_MC, sizes_E, cpu=_weight_grad_cpu, default=_weight_grad)
    return jnp.moveaxis(dw_ERC.reshape(E, S, r, C), 1, 0)


Splits = tuple[Split | None, ...]


def _forward(x_MI, ws, sizes_E, splits: Splits, kernel: Kernel | None) -> tuple[jax.Array, ...]:
    def one(w_EIO: jax.Array, split: Split | None) -> jax.Array:
        return _multiply(
            x_MI, _collect(w_EIO, x_MI.dtype, split), sizes_E, 2 if _is_turned(split) else 1, kernel
        )

    return tuple(map(one, ws, splits))


_grouped = jax.custom_vjp(_forward, nondiff_argnums=(3, 4))


def _grouped_fwd(x_MI, ws, sizes_E, splits: Splits, kernel: Kernel | None):
    return _forward(x_MI, ws, sizes_E, splits, kernel), (x_MI, ws, sizes_E)


def _grouped_bwd(splits: Splits, kernel: Kernel | None, saved, gs):
    x_MI, ws, sizes_E = saved
    dx_MI, dws = None, []
    for w_EIO, split, g_MO in zip(ws, splits, gs, strict=True):
        g_MO = g_MO.astype(x_MI.dtype)
        is_turned, parts = _is_turned(split), _collect(w_EIO, x_MI.dtype, split)
        dx_MI = _multiply(g_MO, parts, sizes_E, 1 if is_turned else 2, kernel, dx_MI)
        pair = (g_MO, x_MI) if is_turned else (x_MI, g_MO)
        dtype = _accumulate(x_MI, g_MO) if split is None else jnp.dtype(split.sum_dtype)
        dw = _grad_in_parts(*pair, sizes_E, parts, dtype, kernel)
        if split is not None:
            dw = scatter_sum(dw, split._replace(dim=0))
        dw = jnp.swapaxes(dw[0], 1, 2) if is_turned else dw[0]
        dws.append(dw.astype(w_EIO.dtype))
    return dx_MI, tuple(dws), None


_grouped.defvjp(_grouped_fwd, _grouped_bwd)


def grouped(
    x_MI: jax.Array,
    ws: dict[str, jax.Array],
    sizes_E: jax.Array,
    splits: dict[str, Split | None] | None = None,
    kernel: Kernel | None = None,
) -> dict[str, jax.Array]:
    """x_MI @ w_EIO[group of the row] -> [M, O] in x's dtype, accumulated in float32, for each w.

    As with `dense_each`, pass weights as they are stored (float32): their gradients come back in float32, never
    rounded; and what shares x goes together, so that x's gradient is added up where it is made.

    Args:
      x_MI: rows, those of group 0 first. Rows beyond the last group may come back as anything, also in the gradient.
      ws: by what `model.remat` calls the results.
      sizes_E: rows of each group, int32; any of them may be 0.
      splits: by weight, where each device of a shard_map holds a part of it: gathered here, in the compute dtype, and
        the gradient summed and scattered again.
      kernel: the TPU whose kernels run this, where they take the shapes; None: what XLA makes of it.
    """
    of = tuple((splits or {}).get(name) for name in ws)
    ys = _grouped(x_MI, tuple(ws.values()), sizes_E, of, kernel)
    return {name: checkpoint_name(y, name) for name, y in zip(ws, ys, strict=True)}
