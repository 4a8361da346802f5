"""Files that vanish, are cut short or change, reads that fail or hang: the same batches, or an error that says why."""

import errno
import json
import os
import shutil
import threading
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from memory_store import MemoryStore

from jaxlm.data import notices as noticing
from jaxlm.data import packing_index, shard_reader
from jaxlm.data.checksums import SEAL
from jaxlm.data.config import DataConfig, SourceConfig
from jaxlm.data.notices import Notices, may_pass
from jaxlm.data.packing import BestFitPacking
from jaxlm.data.pipeline import Rows, batch_hash, make_iterator
from jaxlm.data.shards import TokenStore, write_corpus
from jaxlm.types import UserError

SHARD, ENDS, CRCS = (f"train-00001.{end}" for end in ("arrayrecord", "offsets.npy", "crc32.npy"))
CHUNK_TOKENS = 2048
RESIDENT = {"from disk": 0, "from memory": 1 << 30}
NUM_STEPS = 12


def write(folder, seed=0, num_documents=300):
    """Three shards; of another seed the same but for the tokens."""
    lengths = np.random.default_rng(7).integers(5, 800, num_documents)
    rng = np.random.default_rng(seed)
    documents = ((rng.integers(0, 500, length), 3 * int(length)) for length in lengths)
    write_corpus(
        folder, {"train": documents, "eval": []}, tokenizer_sha256="ab" * 32, vocab_size=500,
        chunk_tokens=CHUNK_TOKENS, shard_tokens=45_000,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    return write(root / "good"), write(root / "other", seed=1)


@pytest.fixture
def corpus(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "corpus")


def hashes(
    folder, resident_bytes=0, packing="concat", between=None, running=None, start=0, cache=None, notices=None
):
    """Hashes of the batches of a run; `between` is called before its first read, `running` after its third batch."""
    notices = notices or Notices()
    store = TokenStore(folder, "train", resident_bytes=resident_bytes, notices=notices)
    if between is not None:
        between()
    data = DataConfig(
        sources={"mine": SourceConfig(path="mine", on_exhausted="repeat")},
        seq_len=300, global_batch_size=16, packing=packing, cache_dir=str(cache or folder / "cache"),
    )  # fmt: skip
    rows, found = Rows(data, {"mine": store}, 0, notices=notices), []
    with make_iterator(
        rows, start_step=start, num_steps=NUM_STEPS, num_threads=1, prefetch_batches=1
    ) as batches:
        for batch in batches:
            found.append(batch_hash(batch["fingerprint"]))
            if running is not None and len(found) == 3:
                running()
    return found


@pytest.fixture(scope="module")
def expected(made, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return {packing: hashes(made[0], packing=packing, cache=cache) for packing in ("concat", "best_fit")}


def overwrite(path, content):
    """In place: who has the file open reads the new content."""
    with open(path, "r+b") as file:
        file.write(content)
        file.truncate(len(content))


def flip(path, place, bit=1):
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    overwrite(path, content)


def flip_token(folder, _):
    store = TokenStore(folder, "train")
    first = int(store._token_base[1])
    content = (folder / SHARD).read_bytes()
    flip(folder / SHARD, content.index(store.read(first + 10, first + 30).astype("<u2").tobytes()))


def move_an_end(folder, _):
    ends = np.load(folder / ENDS)
    ends[3] += 1
    np.save(folder / ENDS, ends)


def edit_manifest(folder, _):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"].reverse()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def delete(name):
    return lambda folder, _: (folder / name).unlink()


def cut(name):
    return lambda folder, _: os.truncate(folder / name, 100)


def put_other(name):
    return lambda folder, other: overwrite(folder / name, (other / name).read_bytes())


def replace_by_other(folder, other):
    for name in (SHARD, CRCS):
        shutil.copy(other / name, folder / "new")
        os.replace(folder / "new", folder / name)


FAULTS = {
    "tokens deleted": (delete(SHARD), SHARD),
    "tokens cut short": (cut(SHARD), SHARD),
    "other tokens": (put_other(SHARD), SHARD),
    "other tokens with their checksums": (replace_by_other, CRCS),
    "a token flipped": (flip_token, SHARD),
    "ends deleted": (delete(ENDS), ENDS),
    "ends cut short": (cut(ENDS), ENDS),
    "an end moved": (move_an_end, ENDS),
    "checksums deleted": (delete(CRCS), CRCS),
    "checksums cut short": (cut(CRCS), CRCS),
    "other checksums": (put_other(CRCS), CRCS),
    "manifest edited": (edit_manifest, "manifest.json"),
    "manifest deleted": (delete("manifest.json"), "manifest.json"),
}


@pytest.mark.parametrize("resident", RESIDENT)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_corpus_that_changed_before_the_start_is_refused_by_the_name_of_its_file(
    made, corpus, fault, resident
):
    change, name = FAULTS[fault]
    change(corpus, made[1])
    with pytest.raises(UserError, match=name) as caught:
        hashes(corpus, RESIDENT[resident])
    assert "\n" not in str(caught.value)
    assert "corpus build" in str(caught.value), "the way out"


@pytest.mark.parametrize("resident", RESIDENT)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_changes_between_start_and_first_read_is_named_or_harmless(
    made, corpus, fault, resident, expected
):
    change, name = FAULTS[fault]
    if name == "manifest.json":  # it was read before
        found = hashes(corpus, RESIDENT[resident], between=lambda: change(corpus, made[1]))
        assert found == expected["concat"]
    else:
        with pytest.raises(UserError, match=name):
            hashes(corpus, RESIDENT[resident], between=lambda: change(corpus, made[1]))


@pytest.mark.parametrize("resident", RESIDENT)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_changes_in_the_middle_of_a_run_is_named_or_harmless(made, corpus, fault, resident, expected):
    """What is open stays as it was when its name is gone; what was written over is another matter."""
    change, name = FAULTS[fault]
    if resident == "from disk" and fault in ("tokens cut short", "other tokens", "a token flipped"):
        with pytest.raises(UserError, match=name):
            hashes(corpus, 0, running=lambda: change(corpus, made[1]))
    else:
        found = hashes(corpus, RESIDENT[resident], running=lambda: change(corpus, made[1]))
        assert found == expected["concat"]


def test_other_tokens_are_seen_also_in_records_that_were_compared_before(made, corpus, monkeypatch):
    """A record of a file that stays the same is compared once; so the file has to be looked at."""
    monkeypatch.setattr(shard_reader, "_CLOCK_NS", 0)  # else what is two seconds old is compared at each read
    store = TokenStore(corpus, "train", resident_bytes=0)
    count = []
    crc32 = shard_reader.zlib.crc32
    monkeypatch.setattr(shard_reader.zlib, "crc32", lambda piece: count.append(1) or crc32(piece))
    tokens = store.read(0, store.num_tokens)
    num_records = len(count)
    assert num_records == int(store._record_base[-1])
    np.testing.assert_array_equal(store.read(0, store.num_tokens), tokens)
    assert len(count) == num_records, "compared once"
    time.sleep(0.02)  # the tick of the file system's clock
    put_other(SHARD)(corpus, made[1])
    with pytest.raises(UserError, match=f"{SHARD}.*record 0 is not what the build wrote"):
        store.read(0, store.num_tokens)


def test_a_file_that_is_opened_again_is_compared_again(made, corpus, monkeypatch):
    """What was compared came from the file that was open, whatever has its name by now."""
    monkeypatch.setattr(shard_reader, "_CLOCK_NS", 0)
    store = TokenStore(corpus, "train", resident_bytes=0)
    store.read(0, store.num_tokens)
    shutil.copy(made[1] / SHARD, corpus / "new")
    os.replace(corpus / "new", corpus / SHARD)
    tokens = [store.read(0, store.num_tokens) for _ in range(3)]
    np.testing.assert_array_equal(tokens[0], tokens[2])
    store.close()
    with pytest.raises(UserError, match=f"{SHARD}.*record 0 is not what the build wrote"):
        store.read(0, store.num_tokens)


def test_a_resumed_run_refuses_other_tokens_and_goes_on_with_the_old_ones(made, corpus, expected):
    assert hashes(corpus, start=7) == expected["concat"][7:]
    put_other(SHARD)(corpus, made[1])
    with pytest.raises(UserError, match="is not what the build wrote"):
        hashes(corpus, start=7)
    shutil.copy(made[0] / SHARD, corpus / SHARD)
    assert hashes(corpus, start=7) == expected["concat"][7:]


small = {"num_documents": 12}


@pytest.fixture(scope="module")
def small_corpus(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("small") / "corpus", **small)
    return folder, {name: (folder / name).read_bytes() for name in os.listdir(folder)}


def read_all(folder, resident_bytes):
    store = TokenStore(folder, "train", resident_bytes=resident_bytes)
    return store.read(0, store.num_tokens).tolist(), store.document_ends.tolist(), store.manifest["sha256"]


@pytest.mark.parametrize("resident", RESIDENT)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_bit_flipped_in_any_file_gives_the_same_tokens_or_an_error_that_names_it(
    small_corpus, resident, data
):
    folder, contents = small_corpus
    name = data.draw(st.sampled_from(sorted(contents)))
    content = contents[name]
    # Most of an ArrayRecord is zeros to the next 64 KiB.
    places = np.flatnonzero(np.frombuffer(content, np.uint8)).tolist()
    place = data.draw(st.one_of(st.sampled_from(places), st.integers(0, len(content) - 1)))
    good = read_all(folder, 0)
    try:
        flip(folder / name, place, 1 << data.draw(st.integers(0, 7)))
        found, said = None, ""
        try:
            found = read_all(folder, RESIDENT[resident])
        except UserError as error:
            said = str(error)
        assert found == good or (found is None and name in said)
    finally:
        overwrite(folder / name, content)


def as_by_an_older_version(folder):
    """Takes the checksums away."""
    for path in folder.glob("*.crc32.npy"):
        path.unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest[SEAL]
    for shard in manifest["splits"]["train"]["shards"]:
        del shard["crc32_sha256"], shard["offsets_sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("resident", RESIDENT)
def test_a_corpus_without_checksums_is_read_whole_once_and_then_like_any_other(
    made, corpus, resident, expected, capsys
):
    as_by_an_older_version(corpus)
    notices = Notices()
    assert hashes(corpus, RESIDENT[resident], notices=notices) == expected["concat"]
    assert notices.counts() == {"data_verified": 1}
    assert "built by an older version, without checksums" in capsys.readouterr().err
    if resident == "from disk":
        with pytest.raises(UserError, match=SHARD):
            hashes(corpus, running=lambda: put_other(SHARD)(corpus, made[1]))


@pytest.mark.parametrize("fault", ["tokens cut short", "other tokens", "a token flipped", "an end moved"])
def test_a_corpus_without_checksums_that_is_not_what_its_manifest_says_is_refused(made, corpus, fault):
    change, _ = FAULTS[fault]
    change(corpus, made[1])
    as_by_an_older_version(corpus)
    with pytest.raises(UserError, match="train-00001"):
        hashes(corpus)


class Flaky(shard_reader.ArrayRecordReader):
    """Fails reads number 5 to 7, and for ever after one of its failures until it is opened again."""

    num_reads, failing, error = 0, range(5, 8), OSError(errno.EIO, "Input/output error")
    broken = False

    def read(self, *args):
        Flaky.num_reads += 1
        if self.broken or Flaky.num_reads in Flaky.failing:
            self.broken = True
            raise Flaky.error
        return super().read(*args)


@pytest.fixture
def flaky(monkeypatch):
    monkeypatch.setattr(noticing, "RETRY_WAITS_S", (0.01, 0.02, 0.03, 0.04))
    monkeypatch.setattr(shard_reader, "ArrayRecordReader", Flaky)
    monkeypatch.setattr(Flaky, "num_reads", 0)
    return monkeypatch


@pytest.mark.parametrize("resident", RESIDENT)
@pytest.mark.parametrize(
    "error",
    [
        *(OSError(code, os.strerror(code)) for code in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN)),
        RuntimeError("UNKNOWN: [errno 5]: Input/output error: pread() failed"),
    ],
    ids=str,
)  # fmt: skip
def test_a_read_that_fails_for_a_moment_is_tried_again_counted_and_told(
    flaky, corpus, expected, error, resident, capsys
):
    flaky.setattr(Flaky, "error", error)
    notices, told = Notices(), []
    notices.connect(lambda event, **fields: told.append((event, fields)))
    assert hashes(corpus, RESIDENT[resident], notices=notices) == expected["concat"]
    assert [event for event, _ in told] == ["data_retry"] * 3
    assert [fields["attempt"] for _, fields in told] == [1, 2, 3]
    assert [fields["wait_s"] for _, fields in told] == [0.01, 0.02, 0.03]
    for _, fields in told:
        assert fields["file"].startswith(str(corpus / "train-0000"))
        assert "nput/output error" in fields["error"] or os.strerror(error.errno) in fields["error"]
        assert fields["step"] in range(NUM_STEPS)
        assert "record" in fields
    assert notices.metrics() == {"data/num_retries": 3.0}
    assert capsys.readouterr().err.count("tried again in") == 1, "a line for the first, not for each"


def test_a_read_that_goes_on_failing_ends_with_the_name_of_its_file_and_leaves_no_thread(flaky, corpus):
    flaky.setattr(Flaky, "failing", range(5, 10**9))
    flaky.setattr(noticing, "RETRY_WAITS_S", (0.01, 0.02, 0.03, 3.0))
    notices, before, begin = Notices(), threading.active_count(), time.monotonic()
    with pytest.raises(
        UserError, match=r"train-0000\d.arrayrecord cannot be read, 5 tries in.*last checkpoint"
    ):
        hashes(corpus, notices=notices)
    assert notices.counts()["data_retry"] in (4, 5), "4, and perhaps one of the next batch"
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
    assert time.monotonic() - begin < sum(noticing.RETRY_WAITS_S) + 2, "other batches are not waited for"


def test_closing_waits_for_no_further_try(flaky, corpus):
    flaky.setattr(Flaky, "failing", range(1, 10**9))
    flaky.setattr(noticing, "RETRY_WAITS_S", (60.0,))
    notices, failed, before = Notices(), threading.Event(), threading.active_count()
    notices.connect(lambda event, **fields: failed.set())
    store = TokenStore(corpus, "train", resident_bytes=0, notices=notices)
    rows = Rows(
        DataConfig(sources={"mine": SourceConfig(path="mine")}, seq_len=300),
        {"mine": store},
        0,
        notices=notices,
    )
    with make_iterator(rows, num_steps=10):
        assert failed.wait(10), "a thread now waits for its second try"
        begin = time.monotonic()
    while threading.active_count() > before and time.monotonic() - begin < 10:
        time.sleep(0.01)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("name", ["manifest.json", ENDS, CRCS])
def test_small_files_are_tried_again_too(corpus, name, expected, monkeypatch):
    from etils import epath

    monkeypatch.setattr(noticing, "RETRY_WAITS_S", (0.01, 0.01))
    real, failed = type(epath.Path("x")).read_bytes, []

    def read_bytes(path):
        if path.name == name and len(failed) < 2:
            failed.append(path)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(path)

    monkeypatch.setattr(type(epath.Path("x")), "read_bytes", read_bytes)
    monkeypatch.setattr("jaxlm.data.manifest.read_bytes", read_bytes)
    assert hashes(corpus) == expected["concat"]
    assert len(failed) == 2


@pytest.mark.parametrize(
    ("error", "file", "expected"),
    [
        (OSError(errno.EIO, "x"), "/a", True),
        (TimeoutError(), "/a", True),
        (RuntimeError("[errno 116]: Stale file handle"), "/a", True),
        (RuntimeError("chunk header hash mismatch"), "/a", False),
        (FileNotFoundError(2, "x"), "gs://b/a", False),
        (PermissionError(13, "x"), "gs://b/a", False),
        (OSError(errno.ENOSPC, "x"), "/a", False),
        (RuntimeError("UNAVAILABLE: connection reset"), "gs://b/a", True),
        (RuntimeError("DATA_LOSS: hash mismatch"), "gs://b/a", False),
        (RuntimeError("NOT_FOUND: no such object"), "gs://b/a", False),
        (UserError("x"), "gs://b/a", False),
        (MemoryError(), "gs://b/a", False),
    ],
)
def test_only_errors_that_may_pass_are_tried_again(error, file, expected):
    assert may_pass(error, file) == expected


def test_a_read_that_hangs_is_told_of_while_it_lasts(corpus, expected, monkeypatch, capsys):
    monkeypatch.setattr(noticing, "STALL_S", 0.2)

    class Slow(shard_reader.ArrayRecordReader):
        num_reads = 0

        def read(self, *args):
            Slow.num_reads += 1
            if Slow.num_reads == 60:
                time.sleep(0.7)
            return super().read(*args)

    monkeypatch.setattr(shard_reader, "ArrayRecordReader", Slow)
    notices, told = Notices(), []
    notices.connect(lambda event, **fields: told.append((event, fields, time.monotonic())))
    assert hashes(corpus, notices=notices) == expected["concat"]
    assert [event for event, _, _ in told] == ["data_stall"] * 3, "at 0.2, 0.4 and 0.6 s"
    assert told[0][1]["file"].startswith(str(corpus / "train-0000"))
    assert told[0][1]["step"] > 0
    assert 0.2 <= told[0][1]["waited_s"] < told[2][1]["waited_s"] <= 0.7
    assert notices.metrics() == {"data/num_stalls": 3.0}
    assert "warning: reading" in capsys.readouterr().err


def test_what_happened_before_anybody_listened_is_told_first(capsys):
    notices, told = Notices(), []
    notices("data_rebuilt", file="/cache/a", reason="flipped")
    notices.connect(lambda event, **fields: told.append((event, fields)))
    with notices.at_step(3):
        notices("data_rebuilt", file="/cache/b", reason="gone")
    assert told == [
        ("data_rebuilt", {"file": "/cache/a", "reason": "flipped"}),
        ("data_rebuilt", {"step": 3, "file": "/cache/b", "reason": "gone"}),
    ]
    assert capsys.readouterr().err.splitlines() == [
        "jaxlm: warning: /cache/a was damaged (flipped) and is made again",
        "jaxlm: warning: /cache/b (for step 3) was damaged (gone) and is made again",
    ]


STORE = MemoryStore(lengths=[30, 5, 12, 7, 100, 3] * 20)


@pytest.fixture
def index(tmp_path):
    packed = BestFitPacking(STORE, 16, tmp_path)
    (folder,) = tmp_path.iterdir()
    return folder, packed.rows(np.arange(packed.num_rows))


def rows_of(packed):
    return packed.rows(np.arange(packed.num_rows))


@pytest.mark.parametrize("name", ["starts.npy", "lengths.npy", "row_ends.npy", "index.json"])
@settings(max_examples=15, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(share=0.99, bit=0)
def test_a_bit_flipped_in_a_cached_index_changes_no_row(tmp_path_factory, name, share, bit):
    cache = tmp_path_factory.mktemp("index")
    good = rows_of(BestFitPacking(STORE, 16, cache))
    (folder,) = cache.iterdir()
    flip(folder / name, int(share * (folder / name).stat().st_size), 1 << bit)
    notices = Notices()
    np.testing.assert_equal(rows_of(BestFitPacking(STORE, 16, cache, notices)), good)
    assert notices.counts() in ({"data_rebuilt": 1}, {}), "no notice: a space of the JSON"
    assert name == "index.json" or notices.counts()


def test_the_index_of_other_documents_is_not_used(index, tmp_path, capsys):
    folder, good = index
    other = tmp_path / "other"
    BestFitPacking(MemoryStore(lengths=[31, 4, 12, 7, 100, 3] * 20), 16, other)
    shutil.rmtree(folder)
    shutil.copytree(next(other.iterdir()), folder)
    np.testing.assert_equal(rows_of(BestFitPacking(STORE, 16, tmp_path)), good)
    assert "is not that of these documents) and is made again" in capsys.readouterr().err


@pytest.mark.parametrize("resident", RESIDENT)
@pytest.mark.parametrize("fault", ["cut short", "flipped", "deleted"])
def test_an_index_that_changes_while_it_is_used_changes_no_row(index, tmp_path, fault, resident, monkeypatch):
    """A memory map of a file that was cut short would end the process without a word."""
    monkeypatch.setattr(packing_index, "RESIDENT_BYTES", RESIDENT[resident])
    folder, good = index
    notices = Notices()
    packed = BestFitPacking(STORE, 16, tmp_path, notices)
    if fault == "deleted":
        shutil.rmtree(folder)
    elif fault == "flipped":
        flip(folder / "starts.npy", 200)
    else:
        os.truncate(folder / "starts.npy", 130)
    np.testing.assert_equal(rows_of(packed), good)
    harmless = fault == "deleted" or resident == "from memory"
    assert notices.counts() == ({} if harmless else {"data_rebuilt": 1})
