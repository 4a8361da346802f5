"""The backward kernel of `attention_flash`: gradients of queries, keys and values in one pass.

One kernel computes five products for each pair of blocks. Two kernels, one for queries and one for keys and values,
would compute the logits and the gradient of the probabilities twice (seven products), and read all inputs twice.
Blocks of queries are outer, so their gradient is complete after the loop over keys; the gradients of keys and values
add up in float32 in VMEM, 8 H bytes for each key, whatever the number of query heads.

Logits are transposed here, logits_SQ: logsumexp and delta, with queries in the lanes, then spread over the sublanes
for nothing, the products for keys and values take the tables as they are, and only one block is transposed (by the
product for queries), instead of two.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxlm.models.attention_flash_kernel import (
    COLUMNS,
    LANES,
    ROWS_BY_LANES,
    ROWS_BY_ROWS,
    Tiling,
    bounds,
    by_head,
    dot,
    iota,
    keep,
    logits,
    loop_blocks,
    own_lanes,
    parameters,
    prepare_keys,
    reader,
    scaled_queries,
    swap_halves,
    to_row,
    turn,
    variant,
)


def backward_kernel(
    low_ref, high_ref, begin_ref, chunk_ref, q_ref, k_ref, v_ref, *refs, t: Tiling, skip: int, adds: bool
) -> None:
    """One block of queries with one chunk of keys: adds to the gradients of both.

    skip: blocks of queries that the grid leaves out. adds: to what other chunks gave the queries.
    """
    refs, base = list(refs), 0 if t.num_chunks == 1 else chunk_ref[0] * t.chunk
    first_ref = refs.pop(0) if t.limited else None
    table_ref = refs.pop(0) if t.rotated else None
    q_table_ref = refs.pop(0) if t.rotated and t.num_chunks > 1 else None
    o_ref, do_ref, lse_ref = refs[:3]
    refs = refs[3:]
    part_ref = refs.pop(0) if adds else None
    (dq_ref, dk_ref, dv_ref), refs = refs[:3], refs[3:]
    (q_scratch, do_scratch, delta_scratch, dq_scratch, dk_scratch, dv_scratch), copies = refs[:6], refs[6:]
    b, block, step = (pl.program_id(dim) for dim in (0, 2, 3))
    i = step + skip
    begin = begin_ref[i]
    low, high = low_ref[b * t.num_q + i], high_ref[b * t.num_q + i]
    read_k, read_v = reader(k_ref, copies[:1]), reader(v_ref, copies[1:])
    is_first, is_last = (
        (block == blocks) & (step == steps) for blocks, steps in ((0, 0), (t.group - 1, t.num_q - 1 - skip))
    )

    @pl.when(is_first)
    def _():
        dk_scratch[...] = jnp.zeros_like(dk_scratch)
        dv_scratch[...] = jnp.zeros_like(dv_scratch)
        if copies:
            prepare_keys(k_ref, v_ref, table_ref, copies, t)

    def queries_table() -> jax.Array | None:
        if table_ref is None or q_table_ref is not None:
            return None if q_table_ref is None else q_table_ref[0]
        return table_ref[0, pl.ds(pl.multiple_of(begin, t.q), t.q), :]

    def start_block() -> None:
        scaled = scaled_queries(q_ref, queries_table(), t)
        product = o_ref[0].astype(jnp.float32) * do_ref[0].astype(jnp.float32)
        for head in range(t.heads):
            q_scratch[head] = own_lanes(scaled, head, t).astype(q_scratch.dtype)
            do_scratch[head] = own_lanes(do_ref[0], head, t)
            delta = own_lanes(product, head, t).sum(axis=1, keepdims=True)
            delta_scratch[head : head + 1, :] = to_row(jnp.broadcast_to(delta, (t.q, LANES)))
        dq_scratch[...] = jnp.zeros_like(dq_scratch)

    def pair(place, size: int, rows: slice, *, diagonal: bool = False, limited: bool = False) -> None:
        """Adds what the keys from `place` and some queries of the block give, under the masks that these need."""
        outputs = []
        for head in range(t.heads):
            which = variant(head, block, t)
            q, do = q_scratch[head, rows], do_scratch[head, rows]
            k, v = read_k(which, place, size), read_v(which, place, size)
            s_SQ, tangent_SQ = logits(dot(k, q, ROWS_BY_LANES), t)
            if diagonal:
                s_SQ = keep(iota(s_SQ.shape, 0, 0) <= iota(s_SQ.shape, 1, rows.start), s_SQ)
            if limited and first_ref is not None:
                s_SQ = keep(iota(s_SQ.shape, 0, base + place) >= first_ref[0, :, rows], s_SQ)
            p_SQ = jnp.exp2(s_SQ - lse_ref[0, 0, head : head + 1, rows])
            dv_scratch[which, pl.ds(place, size), :] += dot(p_SQ.astype(do.dtype), do, ROWS_BY_ROWS)
            ds_SQ = p_SQ * (dot(v, do, ROWS_BY_LANES) - delta_scratch[head : head + 1, rows])
            if tangent_SQ is not None:
                ds_SQ *= 1.0 - tangent_SQ * tangent_SQ
            ds_SQ = ds_SQ.astype(q.dtype)
            dk_scratch[which, pl.ds(place, size), :] += dot(ds_SQ, q, ROWS_BY_ROWS)
            outputs.append(dot(ds_SQ, k, COLUMNS))
        dq_scratch[rows] += by_head(outputs, t)

    def on_diagonal() -> None:
        place = pl.multiple_of(begin - base, t.q)
        for start in range(0, t.q, t.diagonal):
            rows = slice(start, start + t.diagonal)
            pair(place, start + t.diagonal, rows, diagonal=True, limited=t.limited)

    def run_block() -> None:
        start_block()
        if t.causal and t.num_chunks == 1:
            on_diagonal()
        elif t.causal:
            pl.when((begin >= base) & (begin < base + t.chunk))(on_diagonal)
        loop_blocks(
            low, high, begin, base, t, lambda place, masked: pair(place, t.kv, slice(0, t.q), limited=masked)
        )
        dq = dq_scratch[...] * t.scale
        table = queries_table()
        dq = dq if table is None else turn(dq, table, t, back=True)
        dq_ref[0] = (dq if part_ref is None else dq + part_ref[0]).astype(dq_ref.dtype)

    def pass_on() -> None:
        dq_ref[0] = jnp.zeros_like(dq_ref[0]) if part_ref is None else part_ref[0]

    if t.num_others is None:
        run_block()
    else:  # half of the blocks see nothing of a chunk
        sees = (begin >= base if t.causal else begin > base) & (low < base + t.chunk)
        pl.when(sees)(run_block)
        pl.when(jnp.logical_not(sees))(pass_on)

    @pl.when(is_last)
    def _():
        write_gradient(dk_scratch, dk_ref, t, t.scale / t.query_scale, table_ref)
        write_gradient(dv_scratch, dv_ref, t)


def write_gradient(scratch, ref, t: Tiling, factor: float | None = None, table_ref=None) -> None:
    """Writes what has added up for the keys, or the values, of a chunk. table_ref: keys are turned back."""

    def write(j, carry):
        rows = pl.ds(pl.multiple_of(j * t.kv, t.kv), t.kv)
        total = scratch[0, rows, :]
        if t.variants == 2:
            total += swap_halves(scratch[1, rows, :])
        if factor is not None:
            total *= factor
        if table_ref is not None:
            total = turn(total, table_ref[0, rows, :], t, back=True)
        ref[0, rows, :] = total.astype(ref.dtype)
        return carry

    lax.fori_loop(0, t.chunk // t.kv, write, None)


def backward(q_BTX, k_BTX, v_BTX, first_BT, table_BTX, o_BTX, lse, do_BTX, t: Tiling, window: int | None):
    """-> gradients of queries, keys and values. One call for each chunk of keys, which adds to the queries'."""
    dq, parts = None, []
    inputs = q_BTX, k_BTX, v_BTX, first_BT, table_BTX, o_BTX, lse, do_BTX
    for chunk in range(t.num_chunks):
        dq, *dkv = backward_chunk(*inputs, dq, t, window, chunk)
        parts.append(dkv)
    assert dq is not None
    if t.num_chunks == 1:
        return dq, *parts[0]
    return dq.astype(q_BTX.dtype), *(jnp.concatenate(part, axis=1) for part in zip(*parts, strict=True))


def backward_others(
    q_BTX, k_BSX, v_BSX, first_BT, o_BTX, lse, do_BTX, dq, t: Tiling, window: int | None, begins: jax.Array
):
    """The same for keys that are others than the queries' own: all gradients in float32, and one loop over chunks.

    Args:
      o_BTX, lse: of all keys that the queries see, here and elsewhere.
      dq: what other keys gave, to which these add; None: nothing yet.
      begins: as of `forward`.
    """
    inputs = q_BTX, k_BSX, v_BSX, first_BT, None, o_BTX, lse, do_BTX
    if t.num_chunks == 1:
        return backward_chunk(*inputs, dq, t, window, 0, begins)

    def body(dq, chunk):
        dq, *dkv = backward_chunk(*inputs, dq, t, window, chunk, begins)
        return dq, dkv

    dq, *first = backward_chunk(*inputs, dq, t, window, 0, begins)
    dq, rest = lax.scan(body, dq, jnp.arange(1, t.num_chunks))
    whole = (
        jnp.concatenate((one, jnp.swapaxes(more, 0, 1).reshape(one.shape[0], -1, one.shape[2])), axis=1)
        for one, more in zip(first, rest, strict=True)
    )
    return dq, *whole


def backward_chunk(
    q_BTX,
    k_BTX,
    v_BTX,
    first_BT,
    table_BTX,
    o_BTX,
    lse,
    do_BTX,
    dq,
    t: Tiling,
    window: int | None,
    index,
    begins=None,
):
    """-> dq with the part of one chunk of keys added (float32 if there are several), dk and dv of these keys.

    index: of the chunk; with `begins` it may be traced.
    """
    B, T, X = q_BTX.shape
    low, high, places = bounds(first_BT, B, t, begins)
    own = t.num_others is None
    skip = index * t.chunk // t.q if own else 0  # queries before the chunk do not see it
    chunk_1 = jnp.asarray(index, jnp.int32).reshape(1)

    def query(b, kv, block, step, low, high, begins, chunk):
        return b, step + skip, kv * t.group + block

    def keys(b, kv, block, step, low, high, begins, chunk):
        return b, chunk[0], kv

    def own_keys(b, kv, block, step, low, high, begins, chunk):
        return b, 0, kv

    def table(b, kv, block, step, low, high, begins, chunk):
        return b, chunk[0], 0

    def query_table(b, kv, block, step, low, high, begins, chunk):
        return b, step + skip, 0

    def row(b, kv, block, step, low, high, begins, chunk):
        return b, 0, step + skip

    def statistic(b, kv, block, step, low, high, begins, chunk):
        return b, kv * t.group + block, 0, step + skip

    queries = pl.BlockSpec((1, t.q, t.lanes), query)
    chunk, own_chunk = (pl.BlockSpec((1, t.chunk, t.lanes), place) for place in (keys, own_keys))
    inputs = [(q_BTX, queries), (k_BTX, chunk), (v_BTX, chunk)]
    if t.limited:
        inputs.append((first_BT[:, None], pl.BlockSpec((1, 1, t.q), row)))
    if t.rotated:
        inputs.append((table_BTX, pl.BlockSpec((1, t.chunk, t.lanes), table)))
        if t.num_chunks > 1:
            inputs.append((table_BTX, pl.BlockSpec((1, t.q, t.lanes), query_table)))
    inputs += [(o_BTX, queries), (do_BTX, queries), (lse, pl.BlockSpec((1, 1, t.heads, t.q), statistic))]
    if dq is not None:
        inputs.append((dq, queries))
    arrays, specs = zip(*inputs, strict=True)
    copy = pltpu.VMEM((t.variants, t.chunk, t.lanes), k_BTX.dtype)
    total = pltpu.VMEM((t.variants, t.chunk, t.lanes), jnp.float32)
    part = pltpu.VMEM((t.heads, t.q, t.lanes), q_BTX.dtype)
    pairs = B * (X // t.head_dim) * t.positions(window) // t.num_chunks
    return pl.pallas_call(
        functools.partial(backward_kernel, t=t, skip=skip, adds=dq is not None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(B, k_BTX.shape[2] // t.lanes, t.group, t.num_q - skip),
            in_specs=specs,
            out_specs=[queries, own_chunk, own_chunk],
            scratch_shapes=[
                part,
                part,
                pltpu.VMEM((t.heads, t.q), jnp.float32),
                pltpu.VMEM((t.q, t.lanes), jnp.float32),
                total,
                total,
                *[copy] * t.copies,
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((B, T, X), q_BTX.dtype if own and t.num_chunks == 1 else jnp.float32),
            *[jax.ShapeDtypeStruct((B, t.chunk, k_BTX.shape[2]), k_BTX.dtype if own else jnp.float32)] * 2,
        ],
        input_output_aliases={} if dq is None else {4 + len(arrays) - 1: 0},
        compiler_params=parameters(t, 4),
        cost_estimate=pl.CostEstimate(
            flops=10 * t.head_dim * pairs,
            transcendentals=pairs * (1 if t.softcap is None else 2),
            bytes_accessed=(4 * q_BTX.nbytes + 4 * k_BTX.nbytes + lse.nbytes) // t.num_chunks,
        ),
        interpret=t.interpret,
        name="flash_attention_backward",
    )(low, high, places, chunk_1, *arrays)
