"""Weighted mixtures of sources: which row of which source is row r of the run, for any r, at once.

A weight is a share of the *tokens* trained on. Row r of the run lies in a block of K rows. How many rows of a
block each source gets is a difference of floors of exact fractions: after any number of blocks every source
has its share to within one row, without a counter that could drift or would have to be saved. Which rows of
the block they are is a seeded permutation, and so is the order of a source's own rows, a new one each epoch.
Both are computed entry by entry, so that nothing is read, kept or saved: a checkpoint holds the step.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from jaxlm.data.config import SourceConfig
from jaxlm.data.weights import about, normalise_weights
from jaxlm.types import UserError

MIN_BLOCK_ROWS = 16
MAX_BLOCK_ROWS = 1 << 17  # to find one row, its block is laid out: 0.2 s for the largest
CHUNK_ROWS = 512
ROUNDS = 5  # of two half-steps; with 3, pairs of places in a range of 16 were visibly uneven
GOLDEN = 0x9E3779B97F4A7C15


def mix64(x: np.ndarray) -> np.ndarray:
    """Scrambles uint64 one to one, so that one flipped bit of the input flips half of the output.

    Source: Steele et al. 2014, Fast Splittable Pseudorandom Number Generators: the finaliser of SplitMix64.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def seed_key(*parts: object) -> int:
    """64 bits that depend on all the parts, the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def permute(index: np.ndarray, size: np.ndarray | int, key: np.ndarray | int) -> np.ndarray:
    """Where a seeded permutation of range(size) sends each index: O(1) memory, vectorised.

    A Feistel network over Z_a x Z_b, where a b is just above size; its few results beyond the range walk on
    until they fall inside. (Grain's `index_shuffle` does the same job, but one index per call, in a module
    called experimental whose results a release may change; here they are part of what a run is.)

    Args:
      index: int64 in [0, size).
      size: 1 to 2^62, one for each index or one for all.
      key: uint64, one for each index or one for all.

    Source: Black and Rogaway 2002, Ciphers with Arbitrary Finite Domains, section 5 and (walking) section 4.
    """
    index, size, key = np.broadcast_arrays(
        np.asarray(index).astype(np.uint64), np.asarray(size).astype(np.uint64), np.asarray(key, np.uint64)
    )
    shape = index.shape
    index, size, key = index.ravel(), size.ravel(), key.ravel()
    a = np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64)
    b = (size + a - np.uint64(1)) // a
    result = _feistel(index, a, b, key)
    outside = np.flatnonzero(result >= size)
    while len(outside):
        result[outside] = _feistel(result[outside], a[outside], b[outside], key[outside])
        outside = outside[result[outside] >= size[outside]]
    return result.astype(np.int64).reshape(shape)


def _feistel(x: np.ndarray, a: np.ndarray, b: np.ndarray, key: np.ndarray) -> np.ndarray:
    left, right = x // b, x % b
    keys = mix64(key + np.uint64(GOLDEN) * np.arange(1, 2 * ROUNDS + 1, dtype=np.uint64)[:, None])
    for key_left, key_right in zip(keys[::2], keys[1::2]):
        left = (left + mix64(right ^ key_left) % a) % a
        right = (right + mix64(left ^ key_right) % b) % b
    return left * b + right


@dataclass(frozen=True)
class SourceSize:
    """What one epoch of a source holds."""

    num_rows: int
    num_tokens: int
    """Targets of weight 1, over all rows."""


class Mixture:
    """Assigns rows of the run to rows of sources.

    Sources are numbered in the order of their names, whatever the order in the config.

    Args:
      shares: of the tokens; exact, summing to 1, all positive (from `normalise_weights`).
      sizes: of the same sources.
      seed: of the whole run.
    """

    def __init__(self, shares: Mapping[str, Fraction], sizes: Mapping[str, SourceSize], seed: int):
        self.names = tuple(sorted(shares))
        self.sizes = tuple(sizes[name] for name in self.names)
        # A source whose rows are only half full needs twice the rows for its share of the tokens.
        rows = [shares[n] * Fraction(s.num_rows, s.num_tokens) for n, s in zip(self.names, self.sizes)]
        total = sum(rows, Fraction(0))
        self.row_shares = tuple(share / total for share in rows)
        smallest = min(self.row_shares)
        if smallest * MAX_BLOCK_ROWS < 1:
            name = self.names[self.row_shares.index(smallest)]
            raise UserError(
                f"data.sources.{name}.weight_tokens is {about(smallest)} of all rows: below one row in "
                f"{MAX_BLOCK_ROWS:,} a share cannot be kept. Raise it, or set it to 0."
            )
        # K >= 1 / smallest share: then no difference of floors below is ever negative.
        self.block_rows = 1 << max(
            MIN_BLOCK_ROWS.bit_length() - 1, (math.ceil(1 / smallest) - 1).bit_length()
        )
        cumulative = [sum(self.row_shares[:i], Fraction(0)) for i in range(len(rows) + 1)]
        self._denominator = math.lcm(*(share.denominator for share in cumulative))
        self._numerators = [int(share * self._denominator) for share in cumulative]
        self.seed = seed
        self._block_key = seed_key("mixture", seed)
        self._source_keys = np.array([seed_key("source", seed, name) for name in self.names], np.uint64)
        self._num_rows = np.array([size.num_rows for size in self.sizes], np.int64)
        # Neighbours are wanted together, and NumPy takes as long for one row as for hundreds.
        self._chunk_rows = max(self.block_rows, CHUNK_ROWS)
        self._chunk = functools.lru_cache(maxsize=4)(self._make_chunk)

    def _before(self, block: int) -> list[int]:
        """Rows of sources 0..i-1 in all blocks before this one, for i = 0..S. Python's integers: exact."""
        rows = block * self.block_rows
        return [rows * numerator // self._denominator for numerator in self._numerators]

    def _drawn(self, block: int) -> list[int]:
        """Rows of each source in all blocks before this one."""
        before = self._before(block)
        return [after - first for first, after in zip(before, before[1:])]

    def _make_chunk(self, chunk: int) -> np.ndarray:
        """int64 [3, chunk_rows]: source number, ordinal and row of every row of a few neighbouring blocks."""
        K, S = self.block_rows, len(self.names)
        G = self._chunk_rows // K
        blocks = np.arange(chunk * G, (chunk + 1) * G)
        before_GS = np.array([self._before(block) for block in [*blocks.tolist(), (chunk + 1) * G]])
        keys = mix64(blocks.astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(self._block_key))
        place = permute(np.tile(np.arange(K), (G, 1)), K, keys[:, None]) + np.arange(G)[:, None] * K
        begins = (np.diff(before_GS, axis=0)[:, :-1] + np.arange(G)[:, None] * K).ravel()  # of each `part`
        part = np.searchsorted(begins, place.ravel(), side="right") - 1  # block * S + source
        order = np.argsort(part, kind="stable")  # the rows that a source gets in a block keep their order
        ordinal = np.empty(G * K, np.int64)
        ordinal[order] = np.arange(G * K) - begins[part[order]]
        ordinal += np.diff(before_GS, axis=1)[:-1].ravel()[part]
        source = part % S
        epoch, index = np.divmod(ordinal, self._num_rows[source])
        keys = mix64(self._source_keys[source] + epoch.astype(np.uint64) * np.uint64(GOLDEN))
        return np.stack([source, ordinal, permute(index, self._num_rows[source], keys)])

    def _columns(self, row_ids: np.ndarray) -> np.ndarray:
        chunk, inside = np.divmod(np.asarray(row_ids, np.int64), self._chunk_rows)
        columns = np.empty((3, len(chunk)), np.int64)
        for number in np.unique(chunk).tolist():
            here = chunk == number
            columns[:, here] = self._chunk(number)[:, inside[here]]
        return columns

    def lookup(self, row_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source number, row of that source) of each row of the run."""
        source, _, row = self._columns(row_ids)
        return source, row

    def locate(self, row_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source number, which row of it, counted from 0 over all epochs) of each row of the run."""
        source, ordinal, _ = self._columns(row_ids)
        return source, ordinal

    def rows_drawn(self, num_rows: int) -> dict[str, int]:
        """How many of the first `num_rows` rows of the run come from each source: exact."""
        block = num_rows // self.block_rows
        source, _ = self.locate(np.arange(block * self.block_rows, num_rows))
        partial = np.bincount(source, minlength=len(self.names)).tolist()
        return {name: a + b for name, a, b in zip(self.names, self._drawn(block), partial)}

    def row_of_run(self, name: str, ordinal: int) -> int:
        """The row of the run that is this row (counted from 0, over all epochs) of the source."""
        i = self.names.index(name)
        low, high = 0, 1
        while self._drawn(high)[i] <= ordinal:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._drawn(middle)[i] <= ordinal else (low, middle)
        rows = np.arange(low * self.block_rows, high * self.block_rows)
        source, ordinals = self.locate(rows)
        return int(rows[np.flatnonzero((source == i) & (ordinals == ordinal))[0]])


@dataclass(frozen=True)
class SourcePlan:
    """What a run takes from one source."""

    name: str
    share: float
    """Of the tokens trained on; 0: not used for training."""
    num_rows: int
    """Rows of one epoch."""
    num_tokens: int
    """Trained tokens of one epoch."""
    planned_rows: int
    planned_tokens: int
    planned_epochs: float
    on_exhausted: str | None
    max_epochs: float | None


@dataclass(frozen=True)
class Plan:
    """What a run takes from all its sources, and what it has taken after any step."""

    num_steps: int
    """Steps the run has: those asked for, or fewer where a source with on_exhausted=stop ends it."""
    global_batch_size: int
    sources: tuple[SourcePlan, ...]
    """By name; sources of weight 0 come last."""
    notes: tuple[str, ...]
    """What the user should be told before the run starts, one line each."""
    mixture: Mixture

    def rows_at(self, step: int) -> dict[str, int]:
        """Rows of each source in the first `step` batches: exact."""
        return self.mixture.rows_drawn(step * self.global_batch_size)

    def epochs_at(self, step: int) -> dict[str, float]:
        """How often each source has been read after `step` batches: rows drawn over rows of an epoch."""
        rows = self.rows_at(step)
        return {n: rows[n] / size.num_rows for n, size in zip(self.mixture.names, self.mixture.sizes)}

    def tokens_at(self, step: int) -> dict[str, int]:
        """Trained tokens of each source after `step` batches.

        Exact at the end of an epoch; inside one, rows drawn times the mean of trained tokens per row.
        """
        rows = self.rows_at(step)
        return {
            name: rows[name] * size.num_tokens // size.num_rows
            for name, size in zip(self.mixture.names, self.mixture.sizes)
        }

    def metrics_at(self, step: int) -> dict[str, float]:
        """`data/<source>/tokens` and `data/<source>/epochs` after `step` batches."""
        tokens, epochs = self.tokens_at(step), self.epochs_at(step)
        return {f"data/{n}/tokens": tokens[n] for n in tokens} | {
            f"data/{n}/epochs": epochs[n] for n in epochs
        }

    def table(self) -> str:
        """One line per source, for people."""
        lines = [
            f"{'source':<16} {'share':>8} {'tokens/epoch':>15} {'planned tokens':>16} {'epochs':>8}  at end"
        ]
        for s in self.sources:
            end = (s.on_exhausted or "-") if s.share else "not used: weight 0"
            lines.append(
                f"{s.name:<16} {s.share:>8.2%} {s.num_tokens:>15,} {s.planned_tokens:>16,} "
                f"{s.planned_epochs:>8.3f}  {end}"
            )
        return "\n".join(lines)


def make_plan(
    sources: Mapping[str, SourceConfig],
    sizes: Mapping[str, SourceSize],
    *,
    global_batch_size: int,
    num_steps: int,
    seed: int,
) -> Plan:
    """What `num_steps` steps take from each source; UserError where a source's rules forbid it.

    Args:
      sources: config of each source.
      sizes: of each source with a positive weight.
    """
    shares, warning = normalise_weights({name: source.weight_tokens for name, source in sources.items()})
    mixture = Mixture(shares, sizes, seed)
    notes = [warning] if warning else []
    last, ended_by = num_steps, None
    for name in mixture.names:
        if sources[name].on_exhausted == "stop":
            steps = mixture.row_of_run(name, sizes[name].num_rows) // global_batch_size
            if steps < last:
                last, ended_by = steps, name
    if ended_by is not None:
        if last == 0:
            raise UserError(
                f"data.sources.{ended_by}.on_exhausted=stop: its {sizes[ended_by].num_rows:,} rows do not "
                f"last for the first batch of {global_batch_size:,}. Lower data.global_batch_size, or choose "
                f"repeat."
            )
        notes.append(
            f"The run ends after step {last:,} of {num_steps:,}: there data.sources.{ended_by} is exhausted "
            f"(on_exhausted=stop)."
        )
    drawn = mixture.rows_drawn(last * global_batch_size)
    plans = []
    for name in [*mixture.names, *sorted(set(sources) - set(mixture.names))]:
        source, size, rows = sources[name], sizes.get(name, SourceSize(0, 0)), drawn.get(name, 0)
        plan = SourcePlan(
            name=name,
            share=float(shares.get(name, 0)),
            num_rows=size.num_rows,
            num_tokens=size.num_tokens,
            planned_rows=rows,
            planned_tokens=rows * size.num_tokens // max(size.num_rows, 1),
            planned_epochs=rows / max(size.num_rows, 1),
            on_exhausted=source.on_exhausted,
            max_epochs=source.max_epochs,
        )
        plans.append(plan)
        if name in mixture.names:
            _check_epochs(plan, sources, mixture, last, global_batch_size)
    return Plan(last, global_batch_size, tuple(plans), tuple(notes), mixture)


def _check_epochs(
    plan: SourcePlan, sources: Mapping[str, SourceConfig], mixture: Mixture, num_steps: int, batch_size: int
) -> None:
    """UserError if the plan reads the source more often than its `on_exhausted` and `max_epochs` allow."""
    key = f"data.sources.{plan.name}"
    may_repeat = plan.on_exhausted in ("repeat", "stop")  # stop: the plan was cut before the second epoch
    limits = [] if may_repeat else [1.0]
    limits += [] if plan.max_epochs is None else [plan.max_epochs]
    for limit in limits:
        limit_rows = math.floor(Fraction(str(limit)) * plan.num_rows)
        if plan.planned_rows <= limit_rows:
            continue
        num_fit = mixture.row_of_run(plan.name, limit_rows) // batch_size
        ways = [f"train.num_steps to at most {num_fit}"] if num_fit else []
        weight = _largest_weight(plan, sources, mixture, limit_rows, num_steps * batch_size)
        if weight is not None:
            ways.append(f"{key}.weight_tokens to at most {weight:g}")
        fits = f"lower {' or '.join(ways or ['data.global_batch_size'])}"
        found = f"{key}: {num_steps:,} steps read it {plan.planned_epochs:.3f} times"
        if plan.max_epochs is not None and limit == plan.max_epochs:
            raise UserError(f"{found}, more than its max_epochs={plan.max_epochs:g} allows: {fits}.")
        if plan.on_exhausted == "error":
            raise UserError(f"{found}, and on_exhausted=error forbids a second time: {fits}.")
        raise UserError(
            f"{found}, and {key}.on_exhausted does not say what to do at its end. Choose repeat (again, in "
            f"a new order), stop (end the run there) or error (refuse such a plan); or {fits}."
        )


def _largest_weight(
    plan: SourcePlan,
    sources: Mapping[str, SourceConfig],
    mixture: Mixture,
    limit_rows: int,
    num_rows: int,
) -> float | None:
    """The largest `weight_tokens` (three digits) that takes at most `limit_rows` of `num_rows` rows; or None.

    The other weights stay. None where no weight helps: the source is alone, or its share would vanish.
    """
    sizes = dict(zip(mixture.names, mixture.sizes))
    weights = {name: sources[name].weight_tokens for name in mixture.names}
    others = sum(weights[n] * sizes[n].num_rows / sizes[n].num_tokens for n in sizes if n != plan.name)
    share = min(limit_rows / num_rows, 1.0)
    if not others or share == 1.0:
        return None
    weight = share / (1 - share) * others * plan.num_tokens / plan.num_rows
    for _ in range(50):  # the rounding of shares to whole rows may ask for a little less
        if weight <= 0:
            return None
        digit = 10.0 ** (math.floor(math.log10(weight)) - 2)
        weight = float(f"{math.floor(weight / digit) * digit:.3g}")
        shares, _ = normalise_weights(weights | {plan.name: weight})
        try:
            smaller = Mixture(shares, sizes, mixture.seed)
        except UserError:  # too small a share to be kept
            return None
        if smaller.rows_drawn(num_rows)[plan.name] <= limit_rows:
            return weight
        weight -= digit / 2
    return None
