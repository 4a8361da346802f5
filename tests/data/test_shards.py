"""Promises of tokenised corpora: rows are the right slices, damage is named, nothing is half there."""

import errno
import json
import os
import pickle
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data import files, shards
from jaxlm.data.manifest import read_manifest
from jaxlm.data.shards import ShardWriter, TokenStore, write_corpus
from jaxlm.types import UserError

SHA = "ab" * 32


def random_documents(num=60, seed=0, longest=400, vocab_size=500):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, rng.integers(0, longest)) for _ in range(num)]


def write(directory, documents, **options):
    options = {"vocab_size": 500, "chunk_tokens": 32, "shard_tokens": 3000, **options}
    splits = {"train": [(ids, 3 * len(ids)) for ids in documents], "eval": []}
    return write_corpus(directory, splits, tokenizer_sha256=SHA, **options)


def names(folder):
    return sorted(os.listdir(folder))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    documents = random_documents()
    folder = tmp_path_factory.mktemp("corpus")
    write(folder, documents)
    return folder, documents


@pytest.fixture(scope="module", params=[0, 1 << 20], ids=["from disk", "from memory"])
def opened(corpus, request):
    folder, documents = corpus
    return TokenStore(folder, "train", resident_bytes=request.param), np.concatenate(documents)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_rows_are_the_right_slices(opened, data):
    store, stream = opened
    spans = data.draw(
        st.lists(st.tuples(st.integers(0, len(stream)), st.integers(0, len(stream))).map(sorted), max_size=8)
    )
    starts = np.array([a for a, _ in spans], np.int64)
    lengths = np.array([b - a for a, b in spans], np.int64)
    for (a, b), row in zip(spans, store.read_rows(starts, lengths)):
        np.testing.assert_array_equal(row, stream[a:b])
        assert row.dtype == np.int32
    length = data.draw(st.integers(0, 100))
    starts = np.array(data.draw(st.lists(st.integers(0, len(stream) - length), max_size=8)), np.int64)
    np.testing.assert_array_equal(
        store.read_block(starts, length), stream[starts[:, None] + np.arange(length)]
    )


def test_a_store_knows_its_documents_and_totals(corpus):
    folder, documents = corpus
    store = TokenStore(folder, "train")
    assert len(store.manifest["splits"]["train"]["shards"]) > 2
    assert (store.num_documents, store.num_tokens) == (len(documents), sum(map(len, documents)))
    assert store.num_bytes == 3 * store.num_tokens
    np.testing.assert_array_equal(store.document_ends, np.cumsum([len(ids) for ids in documents]))
    empty = TokenStore(folder, "eval")
    assert (empty.num_tokens, len(empty.document_ends), len(empty.read(0, 0))) == (0, 0, 0)


@pytest.mark.parametrize("resident_bytes", [0, 1 << 20])
def test_rows_outside_the_split_are_refused(corpus, resident_bytes):
    store = TokenStore(corpus[0], "train", resident_bytes=resident_bytes)
    for start, stop in ((-1, 3), (0, store.num_tokens + 1), (5, 4)):
        with pytest.raises(IndexError):
            store.read(start, stop)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1 << 16, "uint16"), ((1 << 16) + 1, "uint32")])
def test_the_largest_id_survives(tmp_path, vocab_size, dtype):
    manifest = write(tmp_path, [np.array([0, vocab_size - 1])], vocab_size=vocab_size)
    assert manifest["dtype"] == dtype
    assert TokenStore(tmp_path, "train").read(0, 2).tolist() == [0, vocab_size - 1]
    with pytest.raises(ValueError, match="token ids"):
        write(tmp_path / "more", [np.array([vocab_size])], vocab_size=vocab_size)
    assert not [name for name in names(tmp_path / "more") if "partial" in name]


@pytest.mark.parametrize("resident_bytes", [0, 1 << 20])
def test_a_store_is_picklable_and_thread_safe(corpus, resident_bytes):
    folder, documents = corpus
    stream = np.concatenate(documents)
    store = TokenStore(folder, "train", resident_bytes=resident_bytes)
    store.read(0, 10)
    store = pickle.loads(pickle.dumps(store))
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for start in rng.integers(0, len(stream) - 200, 200):
            if (store.read(start, start + 200) != stream[start : start + 200]).any():
                wrong.append(start)

    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(0.005)
    assert not wrong
    store.close()
    assert store.read(0, 5).tolist() == stream[:5].tolist()


def test_the_same_documents_give_the_same_bytes_and_hash(tmp_path):
    first, second = (write(tmp_path / name, random_documents()) for name in "ab")
    assert first == second
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    other = random_documents()
    other[3] = other[3][::-1]
    assert write(tmp_path / "c", other)["sha256"] != first["sha256"]


def test_the_hash_sees_where_documents_end(tmp_path):
    joined = write(tmp_path / "a", [np.arange(10)])
    apart = write(tmp_path / "b", [np.arange(4), np.arange(4, 10)])
    assert joined["sha256"] != apart["sha256"]


def test_joined_shards_are_the_shards_end_to_end(tmp_path):
    documents = random_documents()
    whole = write(tmp_path / "whole", documents, shard_tokens=None)
    parts = write(tmp_path / "parts", documents)["splits"]["train"]["shards"]
    (tmp_path / "out").mkdir()
    pieces = [(str(tmp_path / "parts"), part) for part in parts]
    joined = shards.join_shards(pieces, tmp_path / "out", "train-00000", 500, 32)
    assert joined == whole["splits"]["train"]["shards"][0]
    one = shards.join_shards(pieces[:1], tmp_path / "out", "train-00007", 500, 32)
    assert one == {**parts[0], "file": "train-00007.arrayrecord"}
    assert shards.join_shards(pieces[:1], tmp_path / "out", "train-00007", 500, 32) == one
    assert names(tmp_path / "out")[3:] == [
        f"train-00007.{end}" for end in ("arrayrecord", "crc32.npy", "offsets.npy")
    ]


def test_another_tokenizer_is_refused_with_both_hashes_and_a_way_out(corpus):
    TokenStore(corpus[0], "train", expected_tokenizer_sha256=SHA)
    with pytest.raises(UserError) as caught:
        TokenStore(corpus[0], "train", expected_tokenizer_sha256="cd" * 32)
    for part in ("ab" * 8, "cd" * 8, "tokenizer.path", str(corpus[0])):
        assert part in str(caught.value)


def test_an_unknown_split_is_refused(corpus):
    with pytest.raises(UserError, match="no split 'test', only train, eval"):
        TokenStore(corpus[0], "test")


@pytest.mark.parametrize("resident_bytes", [0, 1 << 20])
def test_missing_truncated_and_damaged_shards_are_named(tmp_path, resident_bytes):
    write(tmp_path, random_documents(), chunk_tokens=2048, shard_tokens=None)
    shard = tmp_path / "train-00000.arrayrecord"
    good = shard.read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    for content in (good[: len(good) // 2], b"", bytes(bad), None):
        shard.unlink() if content is None else shard.write_bytes(content)
        store = TokenStore(tmp_path, "train", resident_bytes=resident_bytes)
        with pytest.raises(UserError, match="train-00000.arrayrecord") as caught:
            store.read(0, store.num_tokens)
        assert content != good[: len(good) // 2] or "perhaps truncated" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_missing_and_damaged_document_ends_are_named(tmp_path):
    write(tmp_path, random_documents(), shard_tokens=None)
    ends = tmp_path / "train-00000.offsets.npy"
    good = ends.read_bytes()
    for content in (good[:-8], good[:20], b"", None):
        ends.unlink() if content is None else ends.write_bytes(content)
        with pytest.raises(UserError, match="train-00000.offsets.npy"):
            _ = TokenStore(tmp_path, "train").document_ends


def test_folders_that_are_no_corpus_are_named(tmp_path):
    with pytest.raises(UserError, match="not a tokenised corpus"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_manifest(tmp_path)
    for other in ({"format": 99}, [1]):
        (tmp_path / "manifest.json").write_text(json.dumps(other))
        with pytest.raises(UserError, match="this version reads 1"):
            read_manifest(tmp_path)


class FullDisk(shards.ArrayRecordWriter):
    """A writer on a disk with room for two records; the library reports it as RuntimeError."""

    num_records = 0

    def write(self, record):
        self.num_records += 1
        if self.num_records > 2:
            raise RuntimeError("UNKNOWN: [errno 28]: No space left on device: write() failed")
        super().write(record)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ArrayRecordWriter", FullDisk)
    with pytest.raises(UserError, match="disk is full") as caught:
        write(tmp_path, random_documents())
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_at_the_end_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        write(tmp_path, random_documents())
    assert names(tmp_path) == []


def test_an_aborted_shard_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="token ids"), ShardWriter(tmp_path, "train-00000", 500) as writer:
        writer.add([1, 500], 2)
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    for path in (tmp_path / "no" / "a.txt", tmp_path):
        with pytest.raises(UserError, match="cannot be written"):
            files.write_atomic(path, b"x")
    assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.parent.glob("*.partial")) == []


def test_atomic_writing_keeps_the_old_content_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_atomic(path, b"old")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(UserError, match="disk is full"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.json"]


def test_a_lock_is_held_by_one_at_a_time_and_leaves_no_file(tmp_path):
    path = tmp_path / "lock"
    inside, most = [], []

    def work():
        for _ in range(20):
            with files.exclusive(path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) == 80
    assert not path.exists()
