"""The forward kernel of `attention_flash`, and what it shares with the backward kernel.

Both hold the keys and values of one KV head in VMEM (all of a row, or a chunk of it) while the blocks of queries of
all heads it serves pass by, and loop over the blocks of keys that these see. So each array crosses HBM once, only
blocks of the [T, T] table that hold something are computed, and the loop's bounds are two scalars: the first key that
the first query of the block sees, and the first that its last query sees. Keys before the former are out of reach;
those from the latter on, up to the diagonal, need no mask.

Source of the algorithm: Dao 2023, FlashAttention-2, arXiv:2307.08691, section 3.1. Here logits_QS have the queries in
the sublanes; there is a running maximum, and one running sum per lane, which are added up across lanes at the end
only. Logits are in powers of 2 throughout (log2(e) is part of the queries' scale), and so is the logsumexp.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxlm.models.masks import NEG_INF

LANES = 128
LOG2_E = math.log2(math.e)
ROWS_BY_LANES, ROWS_BY_ROWS, COLUMNS = ((1,), (1,)), ((1,), (0,)), ((0,), (0,))
"""Which dims a product contracts: a @ b.T, a @ b, a.T @ b."""


class Tiling(NamedTuple):
    """All that is fixed when a kernel is compiled. Lengths are positions: `q` divides `chunk`, which divides T."""

    seq_len: int
    q: int
    """Queries at a time."""
    kv: int
    """Keys at a time, before the diagonal; divides q."""
    diagonal: int
    """Queries at a time of a block on the diagonal, with the keys up to their own; divides q."""
    chunk: int
    """Keys and values in VMEM at a time."""
    head_dim: int
    heads: int
    """Query heads of one block of lanes: 1, or 2 of 64 lanes."""
    group: int
    """Query heads of a KV head."""
    scale: float
    softcap: float | None
    limited: bool
    """Whether some query does not see all keys before it."""
    rotated: bool
    """Whether the kernels apply RoPE to queries and keys."""
    vmem_bytes: int
    interpret: bool = False
    num_others: int | None = None
    """Keys, where the queries are others than these; then `begins` says where each block of queries stands among them,
    and gradients are float32, to be added to others'."""
    causal: bool = True
    """Whether each block of queries stands before its own keys, whose diagonal is masked; else it sees all keys before
    its place, which is where a block of keys begins, and goes on with what other keys gave."""

    @property
    def lanes(self) -> int:
        return self.heads * self.head_dim

    @property
    def num_q(self) -> int:
        return self.seq_len // self.q

    @property
    def variants(self) -> int:
        """Copies of keys and values in VMEM: with two grouped heads of 64 lanes, one more with the halves swapped."""
        return 2 if self.heads == 2 and self.group > 1 else 1

    @property
    def num_keys(self) -> int:
        return self.seq_len if self.num_others is None else self.num_others

    @property
    def num_chunks(self) -> int:
        return self.num_keys // self.chunk

    @property
    def copies(self) -> int:
        """How many of (keys, values) the kernels change before use, and so keep in scratch memory."""
        return 2 if self.variants == 2 else int(self.rotated)

    @property
    def query_scale(self) -> float:
        """Turns queries into those whose products with keys are logits in powers of 2, or the tangent's argument."""
        return self.scale * (LOG2_E if self.softcap is None else 1.0 / self.softcap)

    def positions(self, window: int | None) -> int:
        """Pairs of query and key that are computed for one head of one row that holds one document; of queries
        elsewhere: of half of all keys, about what zigzag placement gives."""
        if self.num_others is not None:
            return self.seq_len * min(self.num_others // 2, window or self.num_others)
        blocks = self.q // self.diagonal
        total = self.num_q * self.diagonal**2 * blocks * (blocks + 1) // 2
        for begin in range(0, self.seq_len, self.q):
            low = 0 if window is None else max(begin - window + 1, 0)
            total += self.q * (begin - low // self.kv * self.kv)
        return total


def dot(a: jax.Array, b: jax.Array, dims: tuple[tuple[int, ...], tuple[int, ...]]) -> jax.Array:
    """A product that adds up in float32; float32 operands are not rounded."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(a, b, (dims, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def by_head(values: list[jax.Array], t: Tiling) -> jax.Array:
    """The lanes of each head of the block from its own value."""
    if t.heads == 1:
        return values[0]
    return jnp.where(lax.broadcasted_iota(jnp.int32, values[0].shape, 1) < t.head_dim, *values)


def own_lanes(x: jax.Array, head: int, t: Tiling) -> jax.Array:
    """The lanes of one head of the block, and 0 elsewhere: in a product with all lanes, the others drop out."""
    return by_head([x if h == head else jnp.zeros_like(x) for h in range(t.heads)], t)


def swap_halves(x: jax.Array) -> jax.Array:
    """The two heads of a block of lanes, swapped."""
    return pltpu.roll(x.astype(jnp.float32), x.shape[1] // 2, 1).astype(x.dtype)


def turn(x: jax.Array, table: jax.Array, t: Tiling, *, back: bool = False) -> jax.Array:
    """RoPE of float32 [rows, lanes], or its transpose. table: in each head's lanes, cosines and then sines.

    Lane i of a head's first half pairs with lane i of its second half (see `rope` in attention.py).
    """
    half = t.head_dim // 2
    lane = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    is_first = lax.rem(lane, t.head_dim) < half
    before, after = ((pltpu.roll(y, half, 1), pltpu.roll(y, t.lanes - half, 1)) for y in (table, x))
    cos = jnp.where(is_first, table, before[0])
    sin = jnp.where(is_first, before[1] if back else -before[1], -table if back else table)
    return x * cos + jnp.where(is_first, after[1], after[0]) * sin


def variant(head: int, block, t: Tiling):
    """Which copy of the keys has a query head's KV head in this head's lanes. block: of the KV block's query heads."""
    if t.variants == 1:
        return 0
    return (lax.div(t.heads * block + head, t.group) != head).astype(jnp.int32)


def logits(raw: jax.Array, t: Tiling) -> tuple[jax.Array, jax.Array | None]:
    """-> logits in powers of 2, and the tangent they were capped with."""
    if t.softcap is None:
        return raw, None
    tangent = jnp.tanh(raw)
    return tangent * (t.softcap * LOG2_E), tangent


def wide(x: jax.Array, num_lanes: int) -> jax.Array:
    """Repeats a value that all lanes of a row share."""
    repeats = num_lanes // x.shape[1]
    return x if repeats == 1 else jnp.tile(x, (1, repeats))


def lane_sums(x: jax.Array) -> jax.Array:
    """Adds up all columns that lie in the same lane: [rows, LANES]."""
    return sum((x[:, lane : lane + LANES] for lane in range(LANES, x.shape[1], LANES)), start=x[:, :LANES])


def on_diagonal() -> jax.Array:
    shape = (LANES, LANES)
    return lax.broadcasted_iota(jnp.int32, shape, 0) == lax.broadcasted_iota(jnp.int32, shape, 1)


def to_row(x_QL: jax.Array) -> jax.Array:
    """[Q, LANES], all lanes alike -> [1, Q]. A tenth of the work of a transposition."""
    parts = [x_QL[begin : begin + LANES] for begin in range(0, x_QL.shape[0], LANES)]
    return jnp.concatenate(
        [jnp.where(on_diagonal(), x, 0.0).sum(axis=0, keepdims=True) for x in parts], axis=1
    )


def to_lanes(row_1Q: jax.Array) -> jax.Array:
    """[1, Q] -> [Q, LANES], all lanes alike."""
    parts = [row_1Q[:, begin : begin + LANES] for begin in range(0, row_1Q.shape[1], LANES)]
    columns = [jnp.where(on_diagonal(), x, 0.0).sum(axis=1, keepdims=True) for x in parts]
    return jnp.concatenate([jnp.broadcast_to(x, (LANES, LANES)) for x in columns], axis=0)


def keep(seen: jax.Array, table: jax.Array) -> jax.Array:
    return jnp.where(seen, table, NEG_INF)


def iota(shape: tuple[int, ...], dim: int, first) -> jax.Array:
    return lax.broadcasted_iota(jnp.int32, shape, dim) + first


def loop_blocks(low, high, begin, base, t: Tiling, body) -> None:
    """body(place, masked) for each block of keys before `begin` that a block of queries sees, `place` in the chunk.

    low, high: first keys that its first and its last query see. base: where the chunk begins.
    """
    end = lax.div(jnp.clip(begin - base, 0, t.chunk), t.kv)
    end = jnp.where(base < 0, 0, end)  # there are no chunks before the first
    full = 0

    def run(masked, j, carry):
        body(pl.multiple_of(j * t.kv, t.kv), masked)
        return carry

    if t.limited:
        first = jnp.minimum(lax.div(jnp.maximum(low - base, 0), t.kv), end)
        full = jnp.clip(lax.div(jnp.maximum(high - base, 0) + t.kv - 1, t.kv), first, end)
        lax.fori_loop(first, full, functools.partial(run, True), None)
    lax.fori_loop(full, end, functools.partial(run, False), None)


def prepare_keys(k_ref, v_ref, table_ref, copies, t: Tiling) -> None:
    """Fills the copies of a chunk's keys and values: keys turned, and of both those with halves swapped."""
    for source, copy_ref in zip((k_ref, v_ref), copies, strict=False):

        def fill(j, carry, source=source, copy_ref=copy_ref):
            rows = pl.ds(pl.multiple_of(j * t.kv, t.kv), t.kv)
            block = source[0, rows, :]
            if t.rotated and source is k_ref:
                block = turn(block.astype(jnp.float32), table_ref[0, rows, :], t).astype(copy_ref.dtype)
            copy_ref[0, rows, :] = block
            if t.variants == 2:
                copy_ref[1, rows, :] = swap_halves(block)
            return carry

        lax.fori_loop(0, t.chunk // t.kv, fill, None)


def reader(ref, copy: list):
    """read(which, begin, size): keys or values of one variant, from their copy if there is one."""
    if copy:
        return lambda which, begin, size: copy[0][which, pl.ds(begin, size), :]
    return lambda which, begin, size: ref[0, pl.ds(begin, size), :]


def scaled_queries(q_ref, table: jax.Array | None, t: Tiling) -> jax.Array:
    q = q_ref[0].astype(jnp.float32) * t.query_scale
    return q if table is None else turn(q, table, t)


def forward_kernel(low_ref, high_ref, begin_ref, q_ref, k_ref, v_ref, *refs, t: Tiling) -> None:
    """One block of queries with one chunk of keys; chunks of a block come last first, so that it begins with itself."""
    refs = list(refs)
    first_ref = refs.pop(0) if t.limited else None
    table_ref = refs.pop(0) if t.rotated else None
    before_refs = [] if t.causal else [refs.pop(0), refs.pop(0)]
    o_ref, lse_ref, q_scratch, m_scratch, l_scratch, o_scratch = refs[:6]
    refs = refs[6:]
    first_scratch = refs.pop(0) if t.limited else None
    copies = refs
    b, block, i, step = (pl.program_id(dim) for dim in (0, 2, 3, 4))
    begin = begin_ref[i]
    low, high = low_ref[b * t.num_q + i], high_ref[b * t.num_q + i]
    base = (last_chunk(begin, t) - step) * t.chunk
    read_k, read_v = reader(k_ref, copies[:1]), reader(v_ref, copies[1:])

    if copies:
        stale = (block == 0) & (i == 0) if t.num_chunks == 1 else base + t.chunk > low
        pl.when(stale & (base >= 0))(lambda: prepare_keys(k_ref, v_ref, table_ref, copies, t))

    def start_block(table) -> None:
        scaled = scaled_queries(q_ref, table, t)
        for head in range(t.heads):
            q_scratch[head] = own_lanes(scaled, head, t).astype(q_scratch.dtype)
        if first_ref is not None and first_scratch is not None:
            first_scratch[...] = to_lanes(first_ref[0].astype(jnp.float32)).astype(jnp.int32)

    def go_on() -> None:
        """With what other keys gave: a maximum that is the whole logsumexp, of which there is one, in all lanes."""
        o_before_ref, lse_before_ref = before_refs
        start_block(None)
        for head in range(t.heads):
            m_scratch[head] = to_lanes(lse_before_ref[0, 0, head : head + 1, :])
        l_scratch[...] = jnp.full_like(l_scratch, 1 / LANES)
        o_scratch[...] = o_before_ref[0]

    def diagonal() -> None:
        place = pl.multiple_of(begin - base, t.q)
        start_block(None if table_ref is None else table_ref[0, pl.ds(place, t.q), :])
        for start in range(0, t.q, t.diagonal):
            rows, size = slice(start, start + t.diagonal), start + t.diagonal
            outputs = []
            for head in range(t.heads):
                which = variant(head, block, t)
                s, _ = logits(dot(q_scratch[head, rows], read_k(which, place, size), ROWS_BY_LANES), t)
                seen = iota(s.shape, 1, 0) <= iota(s.shape, 0, start)
                if first_scratch is not None:
                    seen &= iota(s.shape, 1, begin) >= wide(first_scratch[rows], size)
                s = keep(seen, s)
                m = jnp.broadcast_to(s.max(axis=1, keepdims=True), (t.diagonal, LANES))
                p = jnp.exp2(s - wide(m, size))
                m_scratch[head, rows] = m
                l_scratch[head, rows] = lane_sums(p)
                outputs.append(dot(p.astype(v_ref.dtype), read_v(which, place, size), ROWS_BY_ROWS))
            o_scratch[rows] = by_head(outputs, t)

    def before(place, masked: bool) -> None:
        outputs, decays = [], []
        for head in range(t.heads):
            which = variant(head, block, t)
            s, _ = logits(dot(q_scratch[head], read_k(which, place, t.kv), ROWS_BY_LANES), t)
            if masked and first_scratch is not None:
                s = keep(iota(s.shape, 1, base + place) >= wide(first_scratch[...], t.kv), s)
            m_old = m_scratch[head]
            m = jnp.maximum(m_old, s.max(axis=1, keepdims=True))
            p = jnp.exp2(s - wide(m, t.kv))
            decay = jnp.exp2(m_old - m)
            m_scratch[head] = m
            l_scratch[head] = l_scratch[head] * decay + lane_sums(p)
            outputs.append(dot(p.astype(v_ref.dtype), read_v(which, place, t.kv), ROWS_BY_ROWS))
            decays.append(wide(decay, t.lanes))
        o_scratch[...] = o_scratch[...] * by_head(decays, t) + by_head(outputs, t)

    def finish() -> None:
        inverses = []
        for head in range(t.heads):
            total = jnp.broadcast_to(l_scratch[head].sum(axis=1, keepdims=True), (t.q, LANES))
            lse_ref[0, 0, head : head + 1, :] = to_row(m_scratch[head]) + jnp.log2(to_row(total))
            inverses.append(wide(1.0 / total, t.lanes))
        o_ref[0] = (o_scratch[...] * by_head(inverses, t)).astype(o_ref.dtype)

    pl.when(step == 0)(diagonal if t.causal else go_on)
    loop_blocks(low, high, begin, base, t, before)
    pl.when(step == t.num_chunks - 1)(finish)


def forward(
    q_BTX,
    k_BTX,
    v_BTX,
    first_BT,
    table_BTX,
    t: Tiling,
    window: int | None,
    begins=None,
    before: tuple[jax.Array, jax.Array] | None = None,
    dtype: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """-> o_BTX, and the logsumexp [B, N // heads, heads, T] in powers of 2. X: heads and their lanes.

    Args:
      begins: the place of each block of queries among the keys, [blocks] int32; None: they are the keys' own.
      before: the results of other keys, in float32, with which these go on, where they are not causal.
      dtype: of o_BTX; None: that of q_BTX.
    """
    B, T, X = q_BTX.shape
    low, high, begins = bounds(first_BT, B, t, begins)

    def query(b, kv, block, i, step, low, high, begins):
        return b, i, kv * t.group + block

    def keys(b, kv, block, i, step, low, high, begins):
        return b, jnp.maximum(last_chunk(begins[i], t) - step, lax.div(low[b * t.num_q + i], t.chunk)), kv

    def table(b, kv, block, i, step, low, high, begins):
        return *keys(b, kv, block, i, step, low, high, begins)[:2], 0

    def row(b, kv, block, i, step, low, high, begins):
        return b, 0, i

    def lse(b, kv, block, i, step, low, high, begins):
        return b, kv * t.group + block, 0, i

    queries, chunk = pl.BlockSpec((1, t.q, t.lanes), query), pl.BlockSpec((1, t.chunk, t.lanes), keys)
    inputs = [(q_BTX, queries), (k_BTX, chunk), (v_BTX, chunk)]
    if t.limited:
        inputs.append((first_BT[:, None], pl.BlockSpec((1, 1, t.q), row)))
    if t.rotated:
        inputs.append((table_BTX, pl.BlockSpec((1, t.chunk, t.lanes), table)))
    statistics = pl.BlockSpec((1, 1, t.heads, t.q), lse)
    aliases = {}
    if before is not None:
        if before[0].dtype == (dtype or q_BTX.dtype):
            aliases = {3 + len(inputs): 0, 4 + len(inputs): 1}
        inputs += [(before[0], queries), (before[1], statistics)]
    arrays, specs = zip(*inputs, strict=True)
    copy = pltpu.VMEM((t.variants, t.chunk, t.lanes), k_BTX.dtype)
    statistic = pltpu.VMEM((t.heads, t.q, LANES), jnp.float32)
    pairs = B * (X // t.head_dim) * t.positions(window)
    return pl.pallas_call(
        functools.partial(forward_kernel, t=t),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(B, k_BTX.shape[2] // t.lanes, t.group, t.num_q, t.num_chunks),
            in_specs=specs,
            out_specs=[queries, statistics],
            scratch_shapes=[
                pltpu.VMEM((t.heads, t.q, t.lanes), q_BTX.dtype),
                statistic,
                statistic,
                pltpu.VMEM((t.q, t.lanes), jnp.float32),
                *([pltpu.VMEM((t.q, LANES), jnp.int32)] if t.limited else []),
                *[copy] * t.copies,
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((B, T, X), dtype or q_BTX.dtype),
            jax.ShapeDtypeStruct((B, X // t.lanes, t.heads, T), jnp.float32),
        ],
        input_output_aliases=aliases,
        compiler_params=parameters(t, 5),
        cost_estimate=pl.CostEstimate(
            flops=4 * t.head_dim * pairs,
            transcendentals=pairs * (1 if t.softcap is None else 2),
            bytes_accessed=2 * (q_BTX.nbytes + k_BTX.nbytes) + 4 * B * T * X // t.head_dim,
        ),
        interpret=t.interpret,
        name="flash_attention_forward",
    )(low, high, begins, *arrays)


def last_chunk(begin, t: Tiling):
    """The last chunk that a block of queries sees; without its own keys, of those before `begin`."""
    return lax.div(begin if t.causal else jnp.maximum(begin - 1, 0), t.chunk)


def bounds(first_BT, B: int, t: Tiling, begins: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For scalar memory: the first keys that the first and the last query of each block see, [B * blocks] each; and
    `begins`, as of `forward`."""
    if begins is None:
        begins = jnp.arange(0, t.seq_len, t.q, dtype=jnp.int32)
    if not t.limited:
        return jnp.zeros(B * t.num_q, jnp.int32), jnp.zeros(B * t.num_q, jnp.int32), begins
    first_BT = jnp.minimum(first_BT, t.num_keys - 1)  # where they begin later, none is seen
    return first_BT[:, :: t.q].reshape(-1), first_BT[:, t.q - 1 :: t.q].reshape(-1), begins


def parameters(t: Tiling, num_dims: int) -> pltpu.CompilerParams:
    """Rows and KV heads may run on different cores; the rest adds up in order."""
    order = [pltpu.PARALLEL, pltpu.PARALLEL, *[pltpu.ARBITRARY] * (num_dims - 2)]
    return pltpu.CompilerParams(dimension_semantics=order, vmem_limit_bytes=t.vmem_bytes)
