"""make_iterator: from a config, stores of tokens and a seed to batches. The only door into this folder.

The batch of step s is a pure function of (config, seed, s): its row i is row s B + i of the run, which the
mixture maps to a row of a source (`mixture.py`), which the packing reads (`packing.py`). Nothing depends on
what was read before, nor on how many processes share the work: each computes the rows it is asked for. So the
position of a run is its step. Grain is given one element per batch and brings threads, prefetch and order.

    rows = Rows(config.data, stores, config.seed)
    plan = rows.plan(config.train.num_steps)
    with make_iterator(rows, start_step=0, num_steps=plan.num_steps) as batches: ...
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from jaxlm.data.config import DataConfig
from jaxlm.data.mixture import (
    Mixture,
    Plan,
    SourceSize,
    make_plan,
    mix64,
    permute,
    seed_key,
)
from jaxlm.data.notices import Notices
from jaxlm.data.packing import ConcatPacking, ExampleReader, TokenReader, open_packing
from jaxlm.data.padding import Labelled, PadPacking, group_by_length
from jaxlm.data.weights import normalise_weights
from jaxlm.paths import cache_root, is_local
from jaxlm.types import Batch, UserError

if TYPE_CHECKING:
    import grain

NUM_THREADS = 2
PREFETCH_BATCHES = 4
DTYPES = {
    "tokens": np.int32,
    "targets": np.int32,
    "weights": np.float32,
    "segments": np.int32,
    "positions": np.int32,
}


class Rows:
    """Any rows of any batch of a run, read when asked for. Thread-safe.

    Args:
      stores: the training split of every source with a positive weight, by name; others are not touched.
      seed: of the run.
      labelled: of texts with labels.
      notices: hears of an index that was made again, and of slow reads; share it with the stores.
    """

    def __init__(
        self,
        data: DataConfig,
        stores: Mapping[str, TokenReader],
        seed: int,
        labelled: Labelled | None = None,
        notices: Notices | None = None,
    ):
        self.data = data
        self.seed = seed
        self.notices = notices or Notices()
        shares, _ = normalise_weights({name: source.weight_tokens for name, source in data.sources.items()})
        kind, folder = data.packing or "concat", index_folder(data)
        self._packings = tuple(
            open_packing(kind, stores[name], data.seq_len, name=name, cache=folder, notices=self.notices)
            for name in (shares if kind != "pad" else ())
        )
        self._padding = tuple(
            open_padding(stores[name], data.seq_len, labelled, name=name)
            for name in (shares if kind == "pad" else ())
        )
        packings = self._padding or self._packings
        sizes = {n: SourceSize(p.num_rows, p.num_tokens_per_epoch) for n, p in zip(shares, packings)}
        self.mixture = Mixture(shares, sizes, seed)
        self._window = functools.lru_cache(maxsize=4)(self._make_window)

    @property
    def names(self) -> tuple[str, ...]:
        """Sources in the order of `batch["source"]`."""
        return self.mixture.names

    def plan(self, num_steps: int) -> Plan:
        """What `num_steps` steps take from each source; UserError where the config forbids it."""
        return make_plan(
            self.data.sources,
            dict(zip(self.names, self.mixture.sizes)),
            global_batch_size=self.data.global_batch_size,
            num_steps=num_steps,
            seed=self.seed,
        )

    def batch(self, step: int, row_ids: np.ndarray | None = None) -> Batch:
        """Rows `row_ids` (None: all, in order) of the global batch of this step."""
        B = self.data.global_batch_size
        row_ids = np.arange(B) if row_ids is None else np.asarray(row_ids, np.int64)
        source, row, width = self._rows_of(step, row_ids)
        batch = self._padding[0].empty(len(row_ids), width) if self._padding else _empty(len(row_ids), width)
        for number in np.unique(source).tolist():
            here = np.flatnonzero(source == number)
            if self._padding:
                rows = self._padding[number].rows(row[here], width)
            else:
                rows = self._packings[number].rows(row[here])
            for key, field in rows.items():
                batch[key][here] = field
        batch["source"] = source.astype(np.int32)
        batch["fingerprint"] = fingerprint(batch, row_ids)
        return batch

    def rows_of(self, step: int) -> dict[str, list[int]]:
        """Source -> rows of it that the batch of this step takes."""
        source, row, _ = self._rows_of(step, np.arange(self.data.global_batch_size))
        return {self.names[i]: row[source == i].tolist() for i in np.unique(source).tolist()}

    def _rows_of(self, step: int, row_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """(source number and row of it for each of `row_ids` of this step's batch; width of the batch)."""
        if not self._padding:
            return *self.mixture.lookup(step * self.data.global_batch_size + row_ids), self.data.seq_len
        number, place = divmod(step, self.data.length_window_steps)
        source, row, widths = self._window(number)
        return source[place, row_ids], row[place, row_ids], widths[place]

    def _make_window(self, number: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """int64 [W, B] source numbers and rows of the batches of a window, and their widths."""
        W, B = self.data.length_window_steps, self.data.global_batch_size
        source, row = self.mixture.lookup(np.arange(number * W * B, (number + 1) * W * B))
        lengths = np.zeros(W * B, np.int64)
        for i, packing in enumerate(self._padding):
            here = np.flatnonzero(source == i)
            lengths[here] = packing.lengths[row[here]]
        order = group_by_length(lengths, B, self.seed, number)
        widths = [self._padding[0].width(int(longest)) for longest in lengths[order].max(axis=1)]
        return source[order], row[order], widths


def open_padding(store: TokenReader, seq_len: int, labelled: Labelled | None, *, name: str) -> PadPacking:
    """One record a row. Errors: UserError for a source without any that is trained on."""
    assert isinstance(store, ExampleReader)
    packing = PadPacking(store, seq_len, labelled)
    if packing.num_tokens_per_epoch == 0:
        raise UserError(
            f"data.sources.{name}: nothing in its {store.num_documents:,} records is trained on. `jaxlm data show` "
            "prints what was read of them, and what was dropped."
        )
    return packing


class Batches(Iterator[Batch]):
    """Batches in the order of their steps, read ahead by threads; see `make_iterator`.

    Used up, closed or failed, it leaves no thread behind; `with` closes it.
    """

    def __init__(self, rows: Rows, steps: range, row_ids: np.ndarray | None, options: grain.ReadOptions):
        import grain

        self.rows = rows
        self._watch = contextlib.ExitStack()
        self._watch.enter_context(rows.notices.watching())
        self.step = steps.start
        """The step whose batch comes next: all there is to save."""
        self.stall_s = 0.0
        """Seconds that `next` has waited, in all."""
        self._unwanted = threading.Event()
        source = _Steps(rows, steps, row_ids, self._unwanted)
        dataset = grain.MapDataset.source(source).to_iter_dataset(options)
        batches = iter(dataset)
        batches.start_prefetch()
        self._batches: grain.DatasetIterator | None = batches

    def __next__(self) -> Batch:
        if self._batches is None:
            raise StopIteration
        start = time.perf_counter()
        try:
            batch = next(self._batches)
        except BaseException:
            self.close()
            raise
        self.stall_s += time.perf_counter() - start
        self.step += 1
        return batch

    def close(self) -> None:
        """Stops reading ahead; no more batches come. Harmless when called again."""
        batches, self._batches = self._batches, None
        self._unwanted.set()
        self._watch.close()
        if batches is not None:
            batches.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _Steps:
    """What Grain reads from: element i is this process's part of the batch of step `steps[i]`."""

    def __init__(self, rows: Rows, steps: range, row_ids: np.ndarray | None, unwanted: threading.Event):
        self._rows, self._steps, self._row_ids, self._unwanted = rows, steps, row_ids, unwanted

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> Batch:
        step = self._steps[int(index)]
        with self._rows.notices.at_step(step, self._unwanted):
            return self._rows.batch(step, self._row_ids)


def make_iterator(
    rows: Rows,
    *,
    start_step: int = 0,
    num_steps: int,
    row_ids: np.ndarray | None = None,
    num_threads: int = NUM_THREADS,
    prefetch_batches: int = PREFETCH_BATCHES,
) -> Batches:
    """Batches of steps start_step..num_steps - 1, as numpy arrays, read ahead from now on.

    Args:
      start_step: 0, or the step a checkpoint was saved at.
      num_steps: exclusive end, from `rows.plan(...)`: a source with on_exhausted=stop may end the run early.
      row_ids: the rows of the global batch that this process needs, ascending; None: all.
      num_threads: that read; one is enough for local files, more hide the latency of remote ones.
      prefetch_batches: kept ready, each of 20 bytes per token.
    """
    import grain

    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch_batches)
    return Batches(rows, range(start_step, num_steps), row_ids, options)


def make_eval_batches(
    store: TokenReader,
    *,
    seq_len: int,
    batch_size: int,
    num_batches: int,
    source: int = 0,
    row_ids: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Batches of one source's held-out split: the same rows in the same order at every call and in every run.

    Documents lie end to end (whatever the packing trained on, so that evaluations compare). Rows come in a
    fixed scattered order: a few of them stand for the whole split, and more of them include the few. Every
    batch has the same shape: where rows run out, weights, segments and tokens are 0. A split without a target
    gives no batch.

    Args:
      batch_size: rows of the global batch.
      num_batches: at most; fewer when the split is smaller.
      source: what `batch["source"]` says.
      row_ids: the rows of the global batch that this process needs, ascending; None: all.
    """
    packing = ConcatPacking(store, seq_len)
    num_rows = min(num_batches * batch_size, packing.num_rows) if packing.num_tokens_per_epoch else 0
    row_ids = np.arange(batch_size) if row_ids is None else np.asarray(row_ids, np.int64)
    for first in range(0, num_rows, batch_size):
        batch = _empty(len(row_ids), seq_len)
        real = np.flatnonzero(first + row_ids < num_rows)
        if len(real):
            row = permute(first + row_ids[real], packing.num_rows, seed_key("eval"))
            for key, field in packing.rows(row).items():
                batch[key][real] = field
        batch["source"] = np.full(len(row_ids), source, np.int32)
        batch["fingerprint"] = fingerprint(batch, row_ids)
        yield batch


def make_record_eval_batches(
    packing: PadPacking,
    *,
    batch_size: int,
    num_batches: int,
    source: int = 0,
    row_ids: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Batches of one source's held-out records: the same rows in the same order at every call and in every run.

    Which records they are is scattered and fixed, as in `make_eval_batches`; those of similar length share a batch. The
    last batch is filled up with rows of padding.
    """
    num_rows = min(num_batches * batch_size, packing.num_rows)
    chosen = permute(np.arange(num_rows), packing.num_rows, seed_key("eval"))
    chosen = chosen[np.argsort(packing.lengths[chosen], kind="stable")]
    row_ids = np.arange(batch_size) if row_ids is None else np.asarray(row_ids, np.int64)
    for first in range(0, num_rows, batch_size):
        rows = chosen[first : first + batch_size]
        width = packing.width(int(packing.lengths[rows].max()))
        batch = packing.empty(len(row_ids), width)
        real = np.flatnonzero(row_ids < len(rows))
        for key, field in packing.rows(rows[row_ids[real]], width).items():
            batch[key][real] = field
        batch["source"] = np.full(len(row_ids), source, np.int32)
        batch["fingerprint"] = fingerprint(batch, row_ids)
        yield batch


def _empty(num_rows: int, seq_len: int) -> Batch:
    return {key: np.zeros((num_rows, seq_len), dtype) for key, dtype in DTYPES.items()}


def fingerprint(batch: Batch, row_ids: np.ndarray) -> np.ndarray:
    """uint32 [b]: identifies each row by its tokens, targets or labels, weights, segments and place in the batch.

    Summed over the rows of all processes, mod 2^32, it identifies the global batch (`batch_hash`), however
    the rows are shared out.

    Source: Lemire and Kaser 2014, Strongly universal string hashing is fast, arXiv:1202.4961.
    """
    ids_RT = batch["tokens"].astype(np.uint64)
    if "targets" in batch:
        ids_RT |= batch["targets"].astype(np.uint64) << np.uint64(32)
    mask_RT = batch["segments"].astype(np.uint64) << np.uint64(1) | (batch["weights"] > 0)
    by_ids_T, by_mask_T = _multipliers(ids_RT.shape[1])
    hash_R = (ids_RT * by_ids_T + mask_RT * by_mask_T).sum(axis=1, dtype=np.uint64)
    if "labels" in batch:
        bits_RC = batch["labels"].reshape(len(hash_R), -1).view(np.uint32).astype(np.uint64)
        hash_R += mix64((bits_RC * _multipliers(bits_RC.shape[1])[0]).sum(axis=1, dtype=np.uint64))
    place_R = mix64(np.asarray(row_ids).astype(np.uint64) + np.uint64(1))
    return (mix64(hash_R + place_R) >> np.uint64(32)).astype(np.uint32)


@functools.cache
def _multipliers(seq_len: int) -> np.ndarray:
    return mix64(np.arange(1, 2 * seq_len + 1, dtype=np.uint64)).reshape(2, seq_len)


def batch_hash(fingerprints: np.ndarray) -> int:
    """The hash of a batch from the fingerprints of its rows, in any order."""
    return int(np.sum(fingerprints, dtype=np.uint64) & np.uint64(0xFFFFFFFF))


def index_folder(data: DataConfig) -> Path:
    """Where `best_fit` keeps its indices, which are memory-mapped: in a cache on this machine, not on gs://."""
    roots = [cache_root(data.cache_dir), cache_root(), os.path.expanduser("~/.cache/jaxlm")]
    return Path(next(root for root in roots if is_local(root))) / "packing"
