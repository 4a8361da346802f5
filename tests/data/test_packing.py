"""Packing: nothing lost, nothing twice, no document sees another."""

import collections
import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_store import MemoryStore

from jaxlm.data import packing_index
from jaxlm.data.packing import BestFitPacking, ConcatPacking, open_packing
from jaxlm.data.packing_index import best_fit_decreasing
from jaxlm.types import UserError

PACKINGS = [ConcatPacking, BestFitPacking]
both = pytest.mark.parametrize("packing_class", PACKINGS)
documents = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def epoch(packed):
    return packed.rows(np.arange(packed.num_rows))


@both
@given(lengths=documents, seq_len=st.integers(2, 17))
@settings(max_examples=150, deadline=None)
def test_every_token_with_a_predecessor_is_a_target_exactly_once(packing_class, lengths, seq_len):
    store = MemoryStore(lengths=lengths)  # token i is i + 1: every token is its own name
    packed = packing_class(store, seq_len)
    batch = epoch(packed)
    targets = np.sort(batch["targets"][batch["weights"] > 0])
    starts = store.document_ends - lengths
    expected = np.setdiff1d(store.tokens, store.tokens[starts])
    np.testing.assert_array_equal(targets, expected)
    assert packed.num_tokens_per_epoch == len(expected) == store.num_tokens - store.num_documents
    assert batch["weights"].sum() == packed.num_tokens_per_epoch


@both
@given(lengths=documents, seq_len=st.integers(2, 17))
@settings(max_examples=150, deadline=None)
def test_documents_in_a_row_are_isolated(packing_class, lengths, seq_len):  # pain 12
    store = MemoryStore(lengths=lengths)
    batch = epoch(packing_class(store, seq_len))
    document_of = np.repeat(np.arange(store.num_documents), lengths)
    for tokens, targets, weights, segments, positions in zip(*(batch[key] for key in packing_fields())):
        real = segments > 0
        assert np.all(np.diff(real.astype(int)) <= 0), "padding only at the end"
        inside = tokens[real] - 1
        assert len(inside)
        expected_segments, expected_positions = [], []
        for i, token in enumerate(inside):
            new = i == 0 or document_of[token] != document_of[inside[i - 1]] or token != inside[i - 1] + 1
            expected_segments.append((expected_segments[-1] if i else 0) + new)
            expected_positions.append(0 if new else expected_positions[-1] + 1)
        np.testing.assert_array_equal(segments[real], expected_segments)
        np.testing.assert_array_equal(positions[real], expected_positions)
        for token, target, weight in zip(tokens[real], targets[real], weights[real]):
            assert weight == (document_of[token - 1] == document_of[target - 1])
            assert not weight or target == token + 1
        for field in (tokens, targets, weights, segments, positions):
            assert not field[~real].any(), "padding is zero"


def packing_fields():
    return ("tokens", "targets", "weights", "segments", "positions")


def test_concat_worked_example():
    batch = epoch(ConcatPacking(MemoryStore(lengths=[5, 3, 2]), 4))
    expected = {
        #            document A   | A,  B           | C
        "tokens":   [[1, 2, 3, 4], [5, 6, 7, 8], [9, 0, 0, 0]],
        "targets":  [[2, 3, 4, 5], [6, 7, 8, 9], [10, 0, 0, 0]],
        "weights":  [[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]],
        "segments": [[1, 1, 1, 1], [1, 2, 2, 2], [1, 0, 0, 0]],
        "positions": [[0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 0, 0]],
    }  # fmt: skip
    for key, rows in expected.items():
        np.testing.assert_array_equal(batch[key], rows, err_msg=key)


def test_best_fit_worked_example():
    batch = epoch(BestFitPacking(MemoryStore(lengths=[3, 7, 2, 4]), 4))
    # Pairs: A 2, B 6 = 4 + 2 (they share token 8), C 1, D 3. Rows: B1; C, D; A, B2.
    expected = {
        "tokens":   [[4, 5, 6, 7], [11, 13, 14, 15], [1, 2, 8, 9]],
        "targets":  [[5, 6, 7, 8], [12, 14, 15, 16], [2, 3, 9, 10]],
        "weights":  [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]],
        "segments": [[1, 1, 1, 1], [1, 2, 2, 2], [1, 1, 2, 2]],
        "positions": [[0, 1, 2, 3], [0, 0, 1, 2], [0, 1, 0, 1]],
    }  # fmt: skip
    for key, rows in expected.items():
        np.testing.assert_array_equal(batch[key], rows, err_msg=key)


@both
@given(lengths=documents, seq_len=st.integers(2, 17), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_rows_do_not_depend_on_which_others_are_read(packing_class, lengths, seq_len, seed):
    packed = packing_class(MemoryStore(lengths=lengths), seq_len)
    if not packed.num_rows:
        return
    whole = epoch(packed)
    ids = np.random.default_rng(seed).integers(0, packed.num_rows, 7)
    for key, field in packed.rows(ids).items():
        np.testing.assert_array_equal(field, whole[key][ids], err_msg=key)
        assert field.dtype == (np.float32 if key == "weights" else np.int32)


def naive_best_fit_decreasing(lengths, capacity):
    """One item at a time, the tightest bin that takes it."""
    bins = []
    for length in sorted(lengths, reverse=True):
        fits = [b for b in bins if sum(b) + length <= capacity]
        if fits:
            max(fits, key=sum).append(length)
        else:
            bins.append([length])
    return bins


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 30))
@settings(max_examples=200, deadline=None)
def test_placing_all_items_of_a_length_together_is_best_fit_decreasing(lengths, capacity):
    bin_of, num_bins = best_fit_decreasing(np.array(lengths, np.int32), capacity)
    contents = collections.defaultdict(list)
    for length, number in zip(lengths, bin_of.tolist()):
        contents[number].append(length)
    expected = naive_best_fit_decreasing(lengths, capacity)
    assert sorted(contents) == list(range(num_bins))
    assert sorted(map(sum, contents.values())) == sorted(
        map(sum, expected)
    )  # ties may swap items of equal use


def test_best_fit_cuts_no_document_that_fits_and_wastes_little():
    lengths = np.maximum(2, np.random.default_rng(0).lognormal(4.0, 1.0, 4000)).astype(int)
    store, T = MemoryStore(lengths=lengths.tolist()), 256
    packed = BestFitPacking(store, T)
    batch = epoch(packed)
    starts = store.document_ends - lengths
    short = np.flatnonzero(lengths - 1 <= T)
    first_inputs = store.tokens[starts[short]]
    where = {token: (r, t) for (r, t), token in np.ndenumerate(batch["tokens"]) if token}
    for token, length in zip(first_inputs.tolist(), lengths[short].tolist()):
        r, t = where[token]
        np.testing.assert_array_equal(
            batch["tokens"][r, t : t + length - 1], np.arange(token, token + length - 1)
        )
    assert batch["weights"].mean() > 0.999


def test_a_million_documents_are_packed_in_seconds():
    lengths = np.maximum(2, np.random.default_rng(0).lognormal(5.0, 1.2, 1_000_000)).astype(np.int64)
    start = time.perf_counter()
    rows = sum(len(row_ends) for _, _, row_ends in packing_index.index_blocks(np.cumsum(lengths), 1024))
    assert time.perf_counter() - start < 10  # measured: 0.3 s
    assert (lengths - 1).sum() / (rows * 1024) > 0.999


@given(lengths=documents, seq_len=st.integers(2, 9), block=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_blocks_of_the_index_lose_nothing(lengths, seq_len, block):
    store = MemoryStore(lengths=lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing_index, "BLOCK_PIECES", block)
        batch = epoch(BestFitPacking(store, seq_len)) if store.num_tokens > store.num_documents else None
    if batch is not None:
        expected = np.setdiff1d(store.tokens, store.tokens[store.document_ends - lengths])
        np.testing.assert_array_equal(np.sort(batch["targets"][batch["weights"] > 0]), expected)


def test_a_cached_index_equals_one_in_memory_and_is_not_built_twice(tmp_path, monkeypatch):
    store = MemoryStore(lengths=[30, 5, 12, 7, 100, 3] * 50)
    in_memory = epoch(BestFitPacking(store, 16))
    built = epoch(BestFitPacking(store, 16, tmp_path))
    monkeypatch.setattr(packing_index, "_build_index", None)
    loaded = epoch(BestFitPacking(store, 16, tmp_path))
    for key in packing_fields():
        np.testing.assert_array_equal(built[key], in_memory[key])
        np.testing.assert_array_equal(loaded[key], in_memory[key])
    assert len(list(tmp_path.iterdir())) == 1, "no temporary folder stays"


def test_another_corpus_or_length_has_another_index(tmp_path):
    BestFitPacking(MemoryStore(lengths=[30, 5]), 16, tmp_path)
    BestFitPacking(MemoryStore(lengths=[30, 6]), 16, tmp_path)
    BestFitPacking(MemoryStore(lengths=[30, 5]), 8, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", ["truncate", "json", "missing", "short"])
def test_a_damaged_index_is_built_again(tmp_path, damage):
    store = MemoryStore(lengths=[30, 5, 12, 7])
    expected = epoch(BestFitPacking(store, 16, tmp_path))
    (folder,) = tmp_path.iterdir()
    if damage == "truncate":
        os.truncate(folder / "starts.npy", (folder / "starts.npy").stat().st_size - 4)
    elif damage == "json":
        (folder / "index.json").write_text("{")
    elif damage == "short":
        np.save(folder / "row_ends.npy", np.load(folder / "row_ends.npy")[:-1])
    else:
        (folder / "lengths.npy").unlink()
    np.testing.assert_array_equal(epoch(BestFitPacking(store, 16, tmp_path))["tokens"], expected["tokens"])


def test_a_build_that_dies_leaves_nothing_half_written(tmp_path, monkeypatch):
    def blocks(*_):
        yield from ()
        raise KeyboardInterrupt

    monkeypatch.setattr(packing_index, "index_blocks", blocks)
    with pytest.raises(KeyboardInterrupt):
        BestFitPacking(MemoryStore(lengths=[30, 5]), 16, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_index_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data.cache_dir.*data.packing=concat"):
        BestFitPacking(MemoryStore(lengths=[30, 5]), 16, tmp_path / "file" / "cache")


@pytest.mark.parametrize("kind", ["concat", "best_fit"])
def test_a_source_smaller_than_one_sequence_is_refused_by_name(kind):
    with pytest.raises(
        UserError, match=r"data.sources.tiny has 64 training tokens.*data.seq_len=64 needs 65.*Lower"
    ):
        open_packing(kind, MemoryStore(lengths=[64]), 64, name="tiny")
    open_packing(kind, MemoryStore(lengths=[65]), 64, name="tiny")


@pytest.mark.parametrize("kind", ["concat", "best_fit"])
def test_a_source_with_nothing_to_predict_is_refused_by_name(kind):
    with pytest.raises(UserError, match=r"data.sources.dots .*nothing to predict"):
        open_packing(kind, MemoryStore(lengths=[1] * 100), 8, name="dots")


@both
@pytest.mark.parametrize("ends", [[3, 3, 9], [0, 5, 9], [3, 5, 8], [3, 9, 5]])
def test_documents_that_do_not_cut_the_tokens_are_refused(packing_class, ends):
    store = MemoryStore(lengths=[3, 2, 4])
    store.document_ends = np.array(ends)
    with pytest.raises(UserError, match="corpus is damaged"):
        packing_class(store, 4)
