"""Folders from anybody: corpora, examples, checkpoints and event logs, whose own lists say what is in them."""

import json
import math

import numpy as np
import pytest
from checkpoint_states import save_steps
from hostile import LEAVES, NAMES, SCALE, child, damaged_bytes, damaged_json, dumps, fuzz, refused
from hypothesis import given
from hypothesis import strategies as st

from jaxlm import checkpoint_integrity as integrity
from jaxlm.checkpoint_integrity import DamagedCheckpoint
from jaxlm.cli.inspect import collect, describe
from jaxlm.data.checked_array import file_checksums
from jaxlm.data.checksums import SEAL, npy, sealed, sha256
from jaxlm.data.examples import ARRAYS, CHECKSUMS, ExampleStore
from jaxlm.data.manifest import is_corpus, read_manifest
from jaxlm.data.npy import read_npy
from jaxlm.data.shards import TokenStore, write_corpus
from jaxlm.interop import artifact
from jaxlm.report.events import EventLog, last_of_each_step, read_events, tail_events
from jaxlm.types import JSON_ERRORS, UserError


@pytest.fixture
def corpus(tmp_path):
    documents = [([1, 2, 3, i], 4) for i in range(5)]
    write_corpus(tmp_path / "c", {"train": documents, "eval": documents[:1]}, tokenizer_sha256="0" * 64, vocab_size=99,
                 chunk_tokens=8)  # fmt: skip
    return tmp_path / "c"


def sealed_again(manifest):
    """A manifest that agrees with its own seal: whoever edits one can do that."""
    try:
        return sealed({name: value for name, value in manifest.items() if name != SEAL})
    except (*JSON_ERRORS, TypeError):  # what no JSON could hold
        return manifest


def read_corpus(folder):
    for split in ("train", "eval"):
        with refused():
            store = TokenStore(folder, split)
            ends = store.document_ends
            if store.num_tokens < 1000:
                store.read(0, store.num_tokens)
            starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
            store.read_rows(starts, ends - starts)
            store.close()


def test_a_manifest_of_any_values_is_read_or_refused(corpus):
    path = corpus / "manifest.json"
    base = json.loads(path.read_bytes())
    resealed = damaged_json(base).map(lambda value: sealed_again(value) if isinstance(value, dict) else value)

    @fuzz(200)
    @given(content=resealed.map(dumps) | damaged_bytes(path.read_bytes()))
    def check(content):
        path.write_bytes(content)
        with refused():
            is_corpus(corpus)
        read_corpus(corpus)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_leads_out_of_no_folder(corpus, name):
    """The shard of another folder is there, and would be read."""
    manifest = json.loads((corpus / "manifest.json").read_bytes())
    outside = corpus.parent / "outside.arrayrecord"
    (corpus / "train-00000.arrayrecord").rename(outside)
    for file in (name, str(outside), "../outside.arrayrecord", "sub/../../outside.arrayrecord"):
        manifest["splits"]["train"]["shards"][0]["file"] = file
        (corpus / "manifest.json").write_bytes(dumps(sealed_again(manifest)))
        with pytest.raises(
            UserError, match="manifest.json is damaged: the shard .* has to be the name of a file in"
        ):
            read_manifest(corpus)


def test_offsets_of_any_bytes_are_read_or_refused(corpus):
    path = corpus / "train-00000.offsets.npy"
    base = path.read_bytes()

    @fuzz(150)
    @given(content=damaged_bytes(base))
    def check(content):
        path.write_bytes(content)
        read_corpus(corpus)

    check()


def header(descr="'<i8'", order="False", shape="(5,)"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"


HEADERS = [
    header(shape="(10**15,)"), header(shape="(10000000000000,)"), header(shape="(-1,)"), header(shape="(True,)"),
    header(shape="5", order="1"), header("'|O'"), header("[('a', '<i8')]"), header("'<V8'"), header("'<i0'"),
    "{'shape': (5,)}", "__import__('os').system('true')", "(" * 3000, "{", "",
]  # fmt: skip


@pytest.mark.parametrize("text", HEADERS)
def test_a_header_of_an_array_that_promises_what_is_not_there_is_refused(text, tmp_path):
    text = (text + "\n").encode()
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 40)
    with pytest.raises(ValueError, match="header|bytes, but"):
        read_npy(path)
    path.write_bytes(b"PK\x03\x04" + b"\0" * 100)  # a .npz would be unpacked by numpy
    with pytest.raises(ValueError, match="no header of a .npy file"):
        read_npy(path)


@pytest.fixture
def examples(tmp_path):
    arrays = {
        "tokens": np.arange(6, dtype="<u2"), "trained": np.ones(6, bool), "ends": np.array([2, 6]),
        "places": np.array([[0, 1], [0, 2]]), "labels": np.array([0, 1], np.int32), "label_ends": np.array([1, 2]),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    manifest = {
        "format": 2, "sha256": "0", "tokenizer_sha256": "0", "num_examples": 2, "num_tokens": 6, "num_trained": 5,
        "task": "single_label", "labels": ["x", "y"], "files": [["a.jsonl", "line"]],
        "shapes": {name: list(array.shape) for name, array in arrays.items()},
    }  # fmt: skip
    (tmp_path / "examples.json").write_text(json.dumps(manifest))
    seal_examples(tmp_path)
    return tmp_path


def seal_examples(folder):
    """Checksums of what is there now."""
    checked = {name: file_checksums(str(folder / f"{name}.npy")) for name in ARRAYS}
    checksums = npy(np.concatenate([crcs for _, crcs in checked.values()]))
    (folder / f"{CHECKSUMS}.npy").write_bytes(checksums)
    manifest = json.loads((folder / "examples.json").read_bytes())
    manifest["file_bytes"] = {name: size for name, (size, _) in checked.items()}
    manifest["crc32_sha256"] = sha256(checksums)
    (folder / "examples.json").write_bytes(dumps(sealed_again(manifest)))


def read_examples(folder):
    store = ExampleStore(folder)
    ends = np.asarray(store.document_ends)
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    store.read_rows(starts, ends - starts)
    store.read_trained(starts, ends - starts)
    for i in range(store.num_documents):
        store.where(i)
        store.label_of(i)
    store.labels(["x", "y"])


def test_good_examples_are_read(examples):
    read_examples(examples)


@pytest.mark.parametrize("name", ["examples.json", *(f"{name}.npy" for name in ARRAYS)])
def test_examples_of_any_bytes_are_read_or_refused(examples, name):
    path = examples / name
    base = path.read_bytes()
    damaged = damaged_bytes(base)
    if name.endswith("json"):
        values = damaged_json(json.loads(base))
        damaged = values.map(lambda v: sealed_again(v) if isinstance(v, dict) else v).map(dumps)

    @fuzz(80)
    @given(content=damaged)
    def check(content):
        path.write_bytes(content)
        if not name.endswith("json"):
            with refused():
                read_examples(examples)
            seal_examples(examples)
        with refused():
            read_examples(examples)

    check()


# Checkpoints.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    save_steps(folder / "checkpoints", [1])
    (folder / "config.json").write_text("{}")
    return folder


def resealed(body):
    """A seal of any values whose own checksum is right: whoever edits one can do that."""
    if isinstance(body, dict):
        body = {**body, "crc32": 0}
        body["crc32"] = integrity._canonical_crc(body)
    return dumps(body)


def inspected(run):
    """What `jaxlm inspect` does with it."""
    with refused():
        describe(collect(run, None, verify=True), all_arrays=True)


def test_a_seal_of_any_values_is_read_or_refused(run):
    path = run / "checkpoints/1" / integrity.SEAL
    base = path.read_bytes()

    @fuzz(100)
    @given(content=damaged_json(json.loads(base)).map(resealed) | damaged_bytes(base))
    def check(content):
        path.write_bytes(content)
        with refused(DamagedCheckpoint):
            integrity.verify(path.parent)
        inspected(run)

    check()
    path.write_bytes(base)


@pytest.mark.parametrize("name", NAMES)
def test_a_seal_leads_out_of_no_folder(run, name):
    path = run / "checkpoints/1" / integrity.SEAL
    base = path.read_bytes()
    body = json.loads(base)
    body["files"][name] = [1, [1]]
    path.write_bytes(resealed(body))
    with pytest.raises(DamagedCheckpoint, match="which is not in the folder"):
        integrity.verify(path.parent)
    path.write_bytes(base)


def test_a_meta_of_any_values_is_read_or_refused(run):
    """With a seal that fits."""
    folder = run / "checkpoints/1"
    path, seal = folder / integrity.META, folder / integrity.SEAL
    base, sealed = path.read_bytes(), seal.read_bytes()

    @fuzz(150)
    @given(content=damaged_json(json.loads(base)).map(dumps) | damaged_bytes(base))
    def check(content):
        path.write_bytes(content)
        seal.unlink()
        integrity.seal(folder)
        with refused(DamagedCheckpoint):
            meta = integrity.read_meta(folder)
            assert isinstance(meta.num_params, int)
            assert math.isfinite(meta.wall_time_s)
        inspected(run)

    check()
    path.write_bytes(base)
    seal.write_bytes(sealed)


def test_arrays_of_any_bytes_under_a_good_seal_are_read_or_refused_and_crash_nothing(tmp_path):
    """In a process of its own, which tells how far it came: TensorStore is C++."""
    code, output = child(
        f"""
        import random
        from native import read_damaged_checkpoint
        for seed in range({SCALE * 20}):
            print("seed", seed, flush=True)
            with refused():
                read_damaged_checkpoint(Path({str(tmp_path)!r}), random.Random(seed))
        """,
        memory_mb=12_000, seconds=120 * SCALE,
    )  # fmt: skip
    assert code == 0, output[-3000:]


def test_marks_and_the_config_of_any_values_are_read_or_refused(run):
    folder = run / "checkpoints"

    @fuzz(100)
    @given(
        marks=st.dictionaries(st.sampled_from(["1", "2", "x", "-1", "9" * 5000]), LEAVES).map(dumps)
        | damaged_bytes(b'{"1": {"eval": 3.5}}'),
        config=damaged_json(
            {"checkpoint": {"keep_last": 1, "keep_best": True}, "data": {"sources": {"a": {"b": 1}}}}
        ).map(dumps),
    )
    def check(marks, config):
        (folder / integrity.MARKS).write_bytes(marks)
        (run / "config.json").write_bytes(config)
        with refused():
            integrity.read_marks(folder)
        inspected(run)

    check()
    (folder / integrity.MARKS).unlink()
    (run / "config.json").write_text("{}")


# Event logs, and the list of an artifact.


def test_an_event_log_of_any_bytes_is_read_or_refused(tmp_path):
    with EventLog(tmp_path / "good.jsonl") as log:
        log.write("start", seed=1)
        log.write("step", step=1, loss=float("nan"), values={"a": [1.0, float("inf")]})
        log.write("step", step=2, loss=1.5)
    base = (tmp_path / "good.jsonl").read_bytes()
    lines = [json.loads(line) for line in base.splitlines()]
    path = tmp_path / "events.jsonl"

    @fuzz(200)
    @given(content=damaged_bytes(base) | damaged_json(lines).map(_lines))
    def check(content):
        path.write_bytes(content)
        with refused():
            last_of_each_step(read_events(path))
        with refused():
            tail_events(path, 2)

    check()


def _lines(value):
    return b"".join(dumps(line) + b"\n" for line in value) if isinstance(value, list) else dumps(value)


def test_an_artifact_of_any_values_is_read_or_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    artifact.seal(tmp_path, {"model": "x"})
    path = tmp_path / "artifact.json"
    base = json.loads(path.read_bytes())

    def again(value):
        """With its own hash right, and in its own layout."""
        import hashlib

        if not isinstance(value, dict):
            return dumps(value)
        content = {key: inner for key, inner in value.items() if key != "sha256"}
        try:
            return artifact._text({**content, "sha256": hashlib.sha256(artifact._text(content)).hexdigest()})
        except UnicodeEncodeError:
            return dumps(value)

    @fuzz(100)
    @given(content=damaged_json(base).map(again) | damaged_bytes(path.read_bytes()))
    def check(content):
        path.write_bytes(content)
        with refused():
            artifact.verify(tmp_path)

    check()


def test_what_numpy_writes_is_what_is_read(tmp_path):
    for array in (
        np.arange(5),
        np.zeros((3, 2), bool),
        np.array([], np.float32),
        np.array(3),
        np.ones((2, 2), order="F"),
    ):
        for mapped in (True, False):
            np.save(tmp_path / "a.npy", array)
            if array.flags.f_contiguous and array.ndim > 1 and not array.flags.c_contiguous:
                with pytest.raises(ValueError, match="Fortran"):
                    read_npy(tmp_path / "a.npy", mapped=mapped)
                continue
            found = read_npy(tmp_path / "a.npy", mapped=mapped)
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            assert np.array_equal(found, array)
