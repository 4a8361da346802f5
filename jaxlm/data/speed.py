"""How fast batches are made, beside what copying the same bytes takes on this machine."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from jaxlm.data.pipeline import DTYPES, Rows, make_iterator

POOL_BYTES = 64 << 20  # more than the caches of a processor hold


class LoaderSpeed(NamedTuple):
    """Of one process; tokens are the B x T places of a batch, padding included."""

    num_batches: int
    first_batch_s: float
    """From the first request of data to the first batch, nothing read ahead."""
    tokens_per_s: float
    batches_per_s: float
    tokens_per_cpu_s: float
    """The same per second of processor time: what others do on the machine matters less."""
    limit_tokens_per_s: float
    """Of `np.take` of as many rows from memory and a copy of the other fields."""

    @property
    def ratio(self) -> float:
        """Share of the limit that the loader reaches."""
        return self.tokens_per_s / self.limit_tokens_per_s

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"first batch  {self.first_batch_s:.4f} s",
            f"loader       {self.tokens_per_s / 1e6:.3g} million tokens/s, {self.batches_per_s:,.0f} "
            f"batches/s over {self.num_batches:,}; {self.tokens_per_cpu_s / 1e6:.3g} million tokens per CPU second",
            f"limit        {self.limit_tokens_per_s / 1e6:.3g} million tokens/s (np.take and copies of as "
            f"many bytes, one thread)",
            f"ratio        {self.ratio:.2f} of the limit",
        ]


def measure_loader(rows: Rows, num_batches: int) -> LoaderSpeed:
    """Reads `num_batches` batches after a first one, with nothing else to do, then copies as many bytes."""
    places = rows.data.global_batch_size * rows.data.seq_len
    start = time.perf_counter()
    with make_iterator(rows, num_steps=num_batches + 1) as batches:
        next(batches)
        first_s = time.perf_counter() - start
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in batches:
            pass
        seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    limit_s = _copy_batches(rows.data.global_batch_size, rows.data.seq_len, num_batches)
    return LoaderSpeed(
        num_batches=num_batches,
        first_batch_s=first_s,
        tokens_per_s=num_batches * places / seconds,
        batches_per_s=num_batches / seconds,
        tokens_per_cpu_s=num_batches * places / max(cpu_s, 1e-9),
        limit_tokens_per_s=num_batches * places / limit_s,
    )


def _copy_batches(num_rows: int, seq_len: int, num_batches: int) -> float:
    """Seconds to fill as many batches with rows at random places of an array in memory."""
    pool = np.zeros((max(POOL_BYTES // (4 * seq_len), num_rows), seq_len), np.int32)
    pool += 1  # a page of zeros is not memory until it is written
    ids = np.random.default_rng(0).integers(0, len(pool), (num_batches, num_rows))
    fields = {key: np.ones((num_rows, seq_len), dtype) for key, dtype in DTYPES.items()}
    start = time.perf_counter()
    for row in ids:
        for key, field in fields.items():
            _ = np.take(pool, row, axis=0) if key in ("tokens", "targets") else field.copy()
    return time.perf_counter() - start
