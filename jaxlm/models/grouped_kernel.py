"""The matrix products of experts on TPUs: kernels that go through blocks of rows, each with the weights of its group.

Weights are [S, E, r, C]: of each of E groups a matrix of R = S r rows, in S parts of r rows, as the S devices hold them
that they are collected from. So nothing is copied between the network and a product: XLA's own kernel for `ragged_dot`
takes [E, R, C], and for gradients [E, C, R], each of which is a pass over the weights of all experts.

Rows are sorted by group. A block of them may belong to several groups, and is visited once for each, one after the
other (Gale et al. 2022, MegaBlocks, arXiv:2211.15841, section 5.1; the walk is that of JAX's `megablox`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxlm.models.grouped import Kernel
from jaxlm.models.vector_memory import limit_bytes

LANES = 128
ROWS = (512, 256, 128)
"""Of a block of rows: what is tried."""
PIECES = (256, 128)
"""Columns of a result that are computed at a time: what is tried."""
FLOPS_PER_BYTE = 300
"""Of a chip with as much arithmetic as bandwidth: between the 166 of a v5p and the 560 of a v6e."""
STEP_BYTES = 350_000
"""What could be read while a step of a kernel begins: a third of a microsecond."""


class Blocks(NamedTuple):
    """What one step of a kernel has of each dim: M rows, R and C of the weights."""

    m: int
    r: int
    c: int


class Visits(NamedTuple):
    """Which group meets which block of rows, int32 [number of visits]; groups and blocks never fall.

    A group without rows has one visit, in which nothing is computed, so that the gradient of its weights is written.
    """

    group: jax.Array
    block: jax.Array
    start: jax.Array
    """First row of the group."""
    stop: jax.Array
    num: jax.Array
    """[1]: visits; those beyond repeat the last one, and do nothing."""


def visit(sizes_E: jax.Array, num_rows: int, block_rows: int) -> Visits:
    """The way through the groups, each of `sizes_E` rows, in blocks of so many of `num_rows`."""
    E, num_blocks = sizes_E.shape[0], num_rows // block_rows
    stop_E = jnp.cumsum(sizes_E)
    start_E = stop_E - sizes_E
    first_E = jnp.minimum(start_E // block_rows, num_blocks - 1)
    num_E = jnp.where(sizes_E > 0, (stop_E - 1) // block_rows - first_E + 1, 1)
    through_E = jnp.cumsum(num_E)
    index_V = jnp.minimum(jnp.arange(most_visits(num_rows, block_rows, E)), through_E[-1] - 1)
    group_V = jnp.sum(through_E[None] <= index_V[:, None], axis=1)
    block_V = (first_E - (through_E - num_E))[group_V] + index_V
    found = group_V, block_V, start_E[group_V], stop_E[group_V], through_E[-1:]
    return Visits(*(a.astype(jnp.int32) for a in found))


def most_visits(num_rows: int, block_rows: int, num_groups: int) -> int:
    """Every block once, and once more for each group that begins within one."""
    return num_rows // block_rows + num_groups - 1


def supports(num_rows: int, weights: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Whether the kernels take so many rows and weights of [S, E, r, C]: their blocks have to be tiles of memory."""
    S, _, r, C = weights.shape
    tile = 8 * 4 // weights.dtype.itemsize
    blocks = next(_blocks(num_rows, S * r, r, C), None)
    return r % tile == 0 and blocks is not None and weights.dtype in (jnp.float32, jnp.bfloat16)


def _blocks(num_rows: int, R: int, r: int, C: int) -> Iterator[Blocks]:
    """Those that cut all dims evenly; of R, into whole parts or parts of one."""
    rs = [size for size in range(LANES, R + 1, LANES) if R % size == 0 and (size % r == 0 or r % size == 0)]
    cs = [size for size in range(LANES, C + 1, LANES) if C % size == 0]
    return (Blocks(m, size, c) for m in ROWS if num_rows % m == 0 for size in rs for c in cs)


@functools.cache
def pick_rows(
    num_rows: int,
    num_groups: int,
    R: int,
    r: int,
    C: int,
    itemsize: int,
    vmem_bytes: int,
    contract_columns: bool,
) -> tuple[Blocks, int]:
    """-> blocks of `multiply` with the least traffic and waste, and the vector memory they need, bytes."""

    def rate(b: Blocks) -> tuple[float, int]:
        inner, outer = (C, R) if contract_columns else (R, C)
        step_in, step_out = (b.c, b.r) if contract_columns else (b.r, b.c)
        visits, num_out, num_in = most_visits(num_rows, b.m, num_groups), outer // step_out, inner // step_in
        # A block of rows, or a group's weights, stays for the next visit only if it is there as a whole.
        rows = num_out * inner * (num_rows if num_in == 1 else visits * b.m)
        weights = R * C * (num_groups if num_in == 1 else visits)
        needed = 2 * itemsize * (b.m * step_in + b.r * b.c + 2 * b.m * step_out) + 8 * b.m * step_out
        moved = itemsize * (rows + weights + num_rows * outer)
        computed = 2 * visits * b.m * R * C / FLOPS_PER_BYTE
        return max(moved, computed) + STEP_BYTES * visits * num_out * num_in, needed

    return _best(_blocks(num_rows, R, r, C), rate, vmem_bytes)


@functools.cache
def pick_weights(
    num_rows: int, num_groups: int, R: int, r: int, C: int, itemsize: int, out_itemsize: int, vmem_bytes: int
) -> tuple[Blocks, int]:
    """The same of `weight_grad`."""

    def rate(b: Blocks) -> tuple[float, int]:
        visits, num_r, num_c = most_visits(num_rows, b.m, num_groups), R // b.r, C // b.c
        moved = itemsize * num_rows * (R * num_c + C * num_r) + out_itemsize * num_groups * R * C
        needed = 2 * itemsize * b.m * (b.r + b.c) + 2 * out_itemsize * b.r * b.c + 8 * b.r * b.c
        computed = 2 * visits * b.m * R * C / FLOPS_PER_BYTE
        return max(moved, computed) + STEP_BYTES * visits * num_r * num_c, needed

    return _best(_blocks(num_rows, R, r, C), rate, vmem_bytes)


def _best(blocks: Iterator[Blocks], rate: Callable[[Blocks], tuple[float, int]], vmem_bytes: int):
    """The cheapest of those that need half of the vector memory at most; else the smallest."""
    rated = [(*rate(b), b) for b in blocks]
    fitting = [one for one in rated if one[1] <= vmem_bytes // 2] or [min(rated, key=lambda one: one[1])]
    _, needed, best = min(fitting)
    return best, needed


def _cost(
    kernel: Kernel, num_rows: int, R: int, C: int, row_bytes: int, weight_bytes: int
) -> pl.CostEstimate:
    """Of one product, for the rows that belong to a group here. row_bytes: read and written for each."""
    num = num_rows * kernel.rows_here
    return pl.CostEstimate(
        flops=round(2 * num * R * C), transcendentals=0, bytes_accessed=weight_bytes + round(num * row_bytes)
    )


def _weights_spec(r: int, b: Blocks, where: Callable) -> pl.BlockSpec:
    """A block of [S, E, r, C]: whole parts, or a piece of one. where(*ids) -> (block of R, group, block of C)."""
    if b.r >= r:

        def whole(*ids):
            i, group, j = where(*ids)
            return i, group, 0, j

        return pl.BlockSpec((b.r // r, None, r, b.c), whole)

    def piece(*ids):
        i, group, j = where(*ids)
        return lax.div(i, r // b.r), group, lax.rem(i, r // b.r), j

    return pl.BlockSpec((None, None, b.r, b.c), piece)


def _piece(size: int, r: int = 1) -> int:
    """Of a dim of the result, what is computed at a time: few enough columns that the program stays small.

    r: rows of a part, of which a piece has several whole ones, or a share of one.
    """
    fitting = (p for p in PIECES if size % p == 0 and (p % r == 0 or r % p == 0))
    return next(fitting, min(r, size) if r > 1 else size)


def _in_pieces(size: int, piece: int, body: Callable[[Any], None]) -> None:
    """body(i) of each piece."""
    if size == piece:
        return body(0)
    lax.fori_loop(0, size // piece, lambda i, _: body(i), None)
    return None


def _at(i: Any, piece: int) -> Any:
    """Where piece i is."""
    return pl.ds(pl.multiple_of(i * piece, piece), piece)


def _rows_of_weights(w_ref, i: Any, piece: int, r: int) -> jax.Array:
    """Piece i of the rows of a block of weights, [piece, C]."""
    if len(w_ref.shape) == 2:
        return w_ref[_at(i, piece), :]
    if piece % r == 0:
        return w_ref[_at(i, piece // r)].reshape(piece, -1)
    num = r // piece  # `//` of numbers that may be negative asks which chip this is
    return w_ref[lax.div(i, num), _at(lax.rem(i, num), piece), :]


def _multiply_kernel(
    group,
    block,
    start,
    stop,
    num,
    a_ref,
    w_ref,
    *rest,
    b: Blocks,
    r: int,
    num_in: int,
    by_rows: bool,
    adds: bool,
):
    """rest: what is added to, if anything is, the result, and what adds up over several steps.

    by_rows: the rows of the weights are those of the result; they contract their columns.
    """
    onto_ref, (y_ref, *scratch) = (rest[0], rest[1:]) if adds else (None, rest)
    v, k = pl.program_id(1), pl.program_id(2)
    row = block[v] * b.m
    # Rows behind the group's may hold anything: they are those of groups that come later, or nobody's.
    is_first = start[v] <= row
    size = b.r if by_rows else b.c
    piece = _piece(size, r if by_rows else 1)

    def rows_of(shape):
        return row + lax.broadcasted_iota(jnp.int32, shape, 0)

    def one(i):
        at = (slice(None), _at(i, piece))

        def write(total):
            if onto_ref is not None:
                onto = onto_ref[at].astype(jnp.float32)
                # Rows of later groups keep what their own visit adds to: the two may be one memory.
                total = onto + jnp.where(rows_of(total.shape) < stop[v], total, 0.0)

            @pl.when(is_first)
            def _():
                y_ref[at] = total.astype(y_ref.dtype)

            @pl.when(~is_first)
            def _():
                own = rows_of(total.shape) >= start[v]
                y_ref[at] = jnp.where(own, total, y_ref[at].astype(jnp.float32)).astype(y_ref.dtype)

        if by_rows:
            w, dims = _rows_of_weights(w_ref, i, piece, r), ((1,), (1,))
        else:
            w, dims = w_ref[..., _at(i, piece)].reshape(b.r, piece), ((1,), (0,))
        part = lax.dot_general(a_ref[...], w, (dims, ((), ())), preferred_element_type=jnp.float32)
        if num_in == 1:
            return write(part)
        (total_ref,) = scratch

        @pl.when(k == 0)
        def _():
            total_ref[at] = part

        @pl.when((k > 0) & (k < num_in - 1))
        def _():
            total_ref[at] += part

        @pl.when(k == num_in - 1)
        def _():
            write(total_ref[at] + part)

        return None

    @pl.when((v < num[0]) & (start[v] < stop[v]))
    def _():
        _in_pieces(size, piece, one)


def multiply(
    a_MI: jax.Array,
    w_SErC: jax.Array,
    sizes_E: jax.Array,
    kernel: Kernel,
    *,
    contract_columns: bool,
    onto: jax.Array | None = None,
) -> jax.Array:
    """Each row times its group's matrix [R, C] -> [M, C]; or, contracting C, times its transpose -> [M, R].

    In a's dtype, accumulated in float32, with `onto` of the same shape added, whose memory it takes. Rows beyond the
    last group come back as anything.
    """
    S, E, r, C = w_SErC.shape
    M, R = a_MI.shape[0], S * r
    b, needed = pick_rows(M, E, R, r, C, a_MI.dtype.itemsize, kernel.vmem_bytes, contract_columns)
    inner, outer = (b.c, b.r) if contract_columns else (b.r, b.c)
    num_out = R // b.r if contract_columns else C // b.c
    num_in = a_MI.shape[1] // inner

    def step(v, k, num):
        """Of the visits beyond the last, the step that is there already: nothing is read."""
        return jnp.where(v < num[0], k, num_in - 1)

    def of_a(o, v, k, group, block, start, stop, num):
        return block[v], step(v, k, num)

    def of_w(o, v, k, group, block, start, stop, num):
        k = step(v, k, num)
        return (o, group[v], k) if contract_columns else (k, group[v], o)

    def of_y(o, v, k, group, block, start, stop, num):
        return block[v], o

    inputs = [(a_MI, pl.BlockSpec((b.m, inner), of_a)), (w_SErC, _weights_spec(r, b, of_w))]
    if onto is not None:
        inputs.append((onto, pl.BlockSpec((b.m, outer), of_y)))
    arrays, specs = zip(*inputs, strict=True)
    row_bytes = (R + C + (0 if onto is None else num_out * outer)) * a_MI.dtype.itemsize
    how: dict[str, Any] = {"by_rows": contract_columns, "adds": onto is not None}
    return pl.pallas_call(
        functools.partial(_multiply_kernel, b=b, r=r, num_in=num_in, **how),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(num_out, most_visits(M, b.m, E), num_in),
            in_specs=specs,
            out_specs=pl.BlockSpec((b.m, outer), of_y),
            scratch_shapes=[pltpu.VMEM((b.m, outer), jnp.float32)] * (num_in > 1),
        ),
        out_shape=jax.ShapeDtypeStruct((M, num_out * outer), a_MI.dtype),
        input_output_aliases={} if onto is None else {5 + len(arrays) - 1: 0},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=limit_bytes(needed, kernel.vmem_bytes),
        ),
        cost_estimate=_cost(kernel, M, R, C, row_bytes, w_SErC.nbytes),
        interpret=kernel.interpret,
        name="grouped_multiply",
    )(*visit(sizes_E, M, b.m), *arrays)


def _weight_grad_kernel(group, block, start, stop, num, a_ref, b_ref, w_ref, total_ref, *, b: Blocks):
    v = pl.program_id(2)
    last = pl.num_programs(2) - 1
    row = block[v] * b.m
    is_whole = (start[v] <= row) & (row + b.m <= stop[v])
    is_there = (v < num[0]) & (start[v] < stop[v])

    @pl.when((v == 0) | (group[v] != group[jnp.maximum(v - 1, 0)]))
    def _():
        total_ref[...] = jnp.zeros_like(total_ref)

    piece = _piece(b.c)

    def add(own: Callable[[jax.Array], jax.Array]):
        def one(i):
            at = (slice(None), _at(i, piece))
            total_ref[at] += lax.dot_general(
                own(a_ref[...]), own(b_ref[at]), (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
            )

        _in_pieces(b.c, piece, one)

    @pl.when(is_there & is_whole)
    def _():
        add(lambda rows: rows)

    @pl.when(is_there & ~is_whole)
    def _():
        # Of both: rows that are not the group's may hold anything, and 0 times that need not be 0.
        def own(rows):
            at = row + lax.broadcasted_iota(jnp.int32, rows.shape, 0)
            return jnp.where((at >= start[v]) & (at < stop[v]), rows.astype(jnp.float32), 0.0).astype(
                rows.dtype
            )

        add(own)

    @pl.when((v == num[0] - 1) | (group[v] != group[jnp.minimum(v + 1, last)]))
    def _():
        w_ref[...] = total_ref[...].reshape(w_ref.shape).astype(w_ref.dtype)


def weight_grad(
    a_MR: jax.Array, b_MC: jax.Array, sizes_E: jax.Array, num_parts: int, dtype: jnp.dtype, kernel: Kernel
) -> jax.Array:
    """Sum over the rows of each group of a (outer) b -> [S = num_parts, E, r, C], accumulated in float32."""
    (M, R), C, E = a_MR.shape, b_MC.shape[1], sizes_E.shape[0]
    r = R // num_parts
    dtype = jnp.dtype(dtype)
    b, needed = pick_weights(M, E, R, r, C, a_MR.dtype.itemsize, dtype.itemsize, kernel.vmem_bytes)

    def of_a(i, j, v, group, block, start, stop, num):
        return block[v], i

    def of_b(i, j, v, group, block, start, stop, num):
        return block[v], j

    def of_w(i, j, v, group, block, start, stop, num):
        return i, group[v], j

    return pl.pallas_call(
        functools.partial(_weight_grad_kernel, b=b),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(R // b.r, C // b.c, most_visits(M, b.m, E)),
            in_specs=[pl.BlockSpec((b.m, b.r), of_a), pl.BlockSpec((b.m, b.c), of_b)],
            out_specs=_weights_spec(r, b, of_w),
            scratch_shapes=[pltpu.VMEM((b.r, b.c), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((num_parts, E, r, C), dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=limit_bytes(needed, kernel.vmem_bytes),
        ),
        cost_estimate=_cost(kernel, M, R, C, (R + C) * a_MR.dtype.itemsize, E * R * C * dtype.itemsize),
        interpret=kernel.interpret,
        name="grouped_weight_grad",
    )(*visit(sizes_E, M, b.m), a_MR, b_MC)
