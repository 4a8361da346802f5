"""Measures the loader on a corpus made for it: `python bench/loader.py`. One line per case, for `make bench`.

Three sources of log-normal document lengths (median 400 tokens), sequences of 1,024 tokens. `memory`: the
source fits in the store's memory; `disk`: every row is read from ArrayRecord (and the system's page cache).
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import numpy as np

from jaxlm.data.config import DataConfig, SourceConfig
from jaxlm.data.pipeline import Rows
from jaxlm.data.shards import TokenStore, write_corpus
from jaxlm.data.speed import measure_loader

GOAL_TOKENS_PER_S = 5e6
WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}


def make_corpus(folder: Path, seed: int, num_documents: int, vocab_size: int = 32_000) -> None:
    """Random tokens in documents of random lengths."""
    rng = np.random.default_rng(seed)
    lengths = np.maximum(rng.lognormal(np.log(400), 1.2, num_documents), 2).astype(int)
    documents = ((rng.integers(0, vocab_size, length), 4 * length) for length in lengths.tolist())
    write_corpus(folder, {"train": documents}, tokenizer_sha256="none", vocab_size=vocab_size)


def main() -> None:
    """Prints million tokens/s and the share of the limit for each packing, place and batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=float, default=50e6, help="read per case")
    parser.add_argument("--documents", type=int, default=20_000, help="per source")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for seed, name in enumerate(WEIGHTS):
            make_corpus(Path(folder, name), seed, args.documents)
        for packing, place, batch_size in itertools.product(
            ("concat", "best_fit"), ("memory", "disk"), (8, 64)
        ):
            resident_bytes = 0 if place == "disk" else 1 << 40
            stores = {n: TokenStore(f"{folder}/{n}", "train", resident_bytes=resident_bytes) for n in WEIGHTS}
            data = DataConfig(
                sources={n: SourceConfig(path=n, weight_tokens=w) for n, w in WEIGHTS.items()},
                seq_len=1024, global_batch_size=batch_size, packing=packing, cache_dir=folder,
            )  # fmt: skip
            rows = Rows(data, stores, seed=0)
            speed = measure_loader(rows, max(int(args.tokens) // (batch_size * data.seq_len), 1))
            print(
                f"loader {packing:>8} {place:>6} {batch_size:>2} x {data.seq_len}: "
                f"{speed.tokens_per_s / 1e6:5.1f} million tokens/s = {speed.ratio:.2f} of np.take "
                f"({speed.limit_tokens_per_s / 1e6:.0f}), {speed.tokens_per_cpu_s / 1e6:.1f} per CPU s, "
                f"{speed.tokens_per_s / GOAL_TOKENS_PER_S:.1f} x goal; first {speed.first_batch_s:.3f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
