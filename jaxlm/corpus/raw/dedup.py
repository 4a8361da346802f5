"""Which copies go: equal hashes of all units brought together, column by column; groups; which of each group stays.

```
read units: columns of hashes, sorted        ->  FindPairs, a task per column: pairs of documents with equal hashes
                                            ->  ChooseCopies, one task: connected groups; all but the first go
```

datatrove does the same in its stages 2 and 3 (`MinhashDedupBuckets`, `MinhashDedupCluster`) with a heap and a dict of
Python objects: some hundred bytes for each document of a group, in one process. Here it is numpy: 8 bytes for a hash,
4 for its owner, whatever part of the hashes fits into `dedup.memory_gib` at once; then 20 bytes for each document of a
group. And the copy that stays is the first one, in the order of the sources; there it is the root of a tree.

A document is (unit << 32) + its place in the unit, so that the order of numbers is the order of documents.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep

from jaxlm.corpus.raw.config import DedupConfig
from jaxlm.corpus.raw.read import num_columns, read_column
from jaxlm.corpus.raw.work import BUILD, RawUnit, key_of, result_of, write_result
from jaxlm.data.checksums import npy
from jaxlm.data.files import make_folder, write_atomic
from jaxlm.data.npy import read_npy

_PLACE_BITS = np.uint64(32)
_BYTES_PER_HASH = 48
"""While hashes are compared: hash, document, order, and copies of each."""


def dedup_folder(output: str, units: Sequence[RawUnit], dedup: DedupConfig) -> str:
    """Where the comparison of these units lies."""
    rules = [dedup.exact, dedup.minhash, num_columns(dedup), dedup.across_sources]
    return os.path.join(output, BUILD, "dedup", key_of([unit.key for unit in units], rules))


class FindPairs(PipelineStep):
    """Task c: the pairs of documents whose hashes in column c are equal, each with the first document of its hash."""

    type = "DEDUP"
    name = "equal hashes"

    def __init__(self, units: Sequence[RawUnit], output: str, dedup: DedupConfig):
        super().__init__()
        self.units, self.output, self.dedup = units, output, dedup
        self.folder = dedup_folder(output, units, dedup)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Writes the pairs of column `rank`, [pairs, 2] of uint64."""
        target = pairs_file(self.folder, rank)
        if result_of(self.folder) is not None or os.path.exists(target):
            return
        make_folder(self.folder)
        pairs = list(find_pairs(self.units, self.output, rank, self.dedup))
        found = np.concatenate(pairs) if pairs else np.empty((0, 2), np.uint64)
        write_atomic(target, npy(found))


def find_pairs(
    units: Sequence[RawUnit], output: str, column: int, dedup: DedupConfig
) -> Iterator[np.ndarray]:
    """[pairs, 2] of documents, a range of hashes at a time."""
    # Files are mapped only while they are looked at: a process may hold 65,530 maps (vm.max_map_count), and a snapshot
    # has more units than half of that.
    total = sum(len(read_column(unit.folder(output), column, dedup)[0]) for unit in units)
    passes = max(1, -(-total * _BYTES_PER_HASH // max(1, int(dedup.memory_gib * (1 << 30)))))
    names = sorted({unit.source for unit in units})
    for number in range(passes):
        low, high = (number << 64) // passes, ((number + 1) << 64) // passes
        values, documents, sources = [], [], []
        for index, unit in enumerate(units):
            column_hashes, owners = read_column(unit.folder(output), column, dedup)
            start = int(np.searchsorted(column_hashes, np.uint64(low)))
            stop = len(column_hashes) if high >> 64 else int(np.searchsorted(column_hashes, np.uint64(high)))
            values.append(np.array(column_hashes[start:stop]))
            places = owners[start:stop].astype(np.uint64)
            documents.append((np.uint64(index) << _PLACE_BITS) + places)
            sources.append(np.full(stop - start, names.index(unit.source), np.uint32))
        source = None if dedup.across_sources else np.concatenate(sources)
        yield _pairs_of(np.concatenate(values), np.concatenate(documents), source)


def _pairs_of(values: np.ndarray, documents: np.ndarray, sources: np.ndarray | None) -> np.ndarray:
    """Pairs (first, other) of the documents with equal values, and equal sources where they matter."""
    keys = [documents, values] if sources is None else [documents, sources, values]
    order = np.lexsort(keys)
    values, documents = values[order], documents[order]
    same = values[1:] == values[:-1]
    if sources is not None:
        sources = sources[order]
        same &= sources[1:] == sources[:-1]
    starts = np.flatnonzero(np.concatenate([[True], ~same]))[: len(values)]
    firsts = np.repeat(documents[starts], np.diff(np.append(starts, len(values))))
    return np.stack([firsts[1:][same], documents[1:][same]], axis=1).astype(np.uint64).reshape(-1, 2)


class ChooseCopies(PipelineStep):
    """One task: joins the pairs to groups and writes, for each unit, which of its documents go."""

    type = "DEDUP"
    name = "groups of copies"

    def __init__(self, units: Sequence[RawUnit], output: str, dedup: DedupConfig):
        super().__init__()
        self.units, self.output, self.dedup = units, output, dedup
        self.folder = dedup_folder(output, units, dedup)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Writes the places that go, a file for each unit, and how many there are; removes the pairs."""
        if result_of(self.folder) is not None:
            return
        make_folder(self.folder)
        files = [pairs_file(self.folder, number) for number in range(num_columns(self.dedup))]
        removed, kept = choose_copies(files)
        is_exact = _exact_copies(files[0] if self.dedup.exact else None, removed)
        owners = (removed >> _PLACE_BITS).astype(np.int64)
        bounds = np.searchsorted(owners, np.arange(len(self.units) + 1))
        counts = {}
        for index, unit in enumerate(self.units):
            part = slice(bounds[index], bounds[index + 1])
            places = (removed[part] & np.uint64((1 << 32) - 1)).astype(np.uint32)
            write_atomic(removed_file(self.folder, unit), npy(places))
            exact = int(is_exact[part].sum())
            counts[unit.key] = {"exact": exact, "near": len(places) - exact}
        for path in files:
            with contextlib.suppress(FileNotFoundError):  # the same task ran elsewhere too
                os.unlink(path)
        write_result(self.folder, {"removed": counts, "examples": self._examples(removed, kept, is_exact)})

    def _examples(self, removed: np.ndarray, kept: np.ndarray, is_exact: np.ndarray) -> list[list[Any]]:
        """[kind, (unit key, place) that went, (unit key, place) that stayed] of a few."""
        found = []
        for name, mask in (("exact", is_exact), ("near", ~is_exact)):
            for index in np.flatnonzero(mask)[:5]:
                pair = [
                    [self.units[int(d) >> 32].key, int(d) & 0xFFFFFFFF] for d in (removed[index], kept[index])
                ]
                found.append([name, *pair])
        return found


def choose_copies(files: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(documents that go, ascending; the document that stays for each): all but the first of each connected group."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    found = [np.unique(read_npy(path, mapped=True)) for path in files]
    nodes = np.unique(np.concatenate([np.empty(0, np.uint64), *found]))
    del found
    # Of each document, the place in `nodes` of the first one that it is known to be like.
    labels = np.arange(len(nodes))
    for path in files:
        pairs = read_npy(path, mapped=True)
        if not len(pairs):
            continue
        ends, graph = np.unique(labels[np.searchsorted(nodes, pairs)], return_inverse=True)
        left, right = graph.reshape(-1, 2).T
        shape = (len(ends), len(ends))
        _, joined = connected_components(
            coo_matrix((np.ones(len(left), bool), (left, right)), shape), directed=False
        )
        _, first = np.unique(
            joined, return_index=True
        )  # `ends` ascend, so the first of a group is the lowest
        lowest = np.arange(len(nodes))
        lowest[ends] = ends[first][joined]
        labels = lowest[labels]
    kept = nodes[labels]
    goes = kept != nodes
    return nodes[goes], kept[goes]


def _exact_copies(path: str | None, removed: np.ndarray) -> np.ndarray:
    """Which of the documents that go have the same text as an earlier one."""
    if path is None:
        return np.zeros(len(removed), bool)
    return np.isin(removed, read_npy(path)[:, 1])


def pairs_file(folder: str, column: int) -> str:
    """The pairs of documents with equal hashes in a column; gone when the copies are chosen."""
    return os.path.join(folder, f"pairs-{column:02d}.npy")


def removed_file(folder: str, unit: RawUnit) -> str:
    """The places of the documents of a unit that go, ascending."""
    return os.path.join(folder, f"removed-{unit.key}.npy")
