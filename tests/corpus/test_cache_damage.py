"""What is damaged in the cache is made again, with a warning, and is the same; a folder of the user's is refused."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from corpora import make, tokenizer, tree
from hypothesis import given, settings
from hypothesis import strategies as st
from test_examples import QUESTIONS, TOKENIZER, build, every, jsonl

import jaxlm.corpus.sources as corpus_sources
from jaxlm.corpus import examples, units
from jaxlm.corpus.sources import check_sources, ensure_corpus, ensure_tokenizer
from jaxlm.data.config import DataConfig, SourceConfig, TokenizerConfig
from jaxlm.data.examples import ARRAYS, DamagedExamples, ExampleStore
from jaxlm.data.notices import Notices
from jaxlm.data.shards import TokenStore, join_shards, write_corpus
from jaxlm.types import UserError


def flip(path, place, bit=1):
    """In place, as a bad disk would."""
    with open(path, "r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ bit]))


def delete(path):
    path.unlink()


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_inside(path):
    """Among the tokens of a shard: the rest of it is padding."""
    flip(path, min(200, path.stat().st_size - 1))


def flip_middle(path):
    flip(path, path.stat().st_size // 2)


def cached(raw, tmp_path, notices=None):
    source = SourceConfig(path=str(raw))
    data = DataConfig(sources={"raw": source}, cache_dir=str(tmp_path / "cache"))
    return Path(ensure_corpus(source, data, tokenizer(), progress=False, say=str, notices=notices))


@pytest.mark.parametrize("fault", [delete, cut, flip_inside])
@pytest.mark.parametrize(
    "name", ["manifest.json", "train-00000.arrayrecord", "train-00000.offsets.npy", "eval-00000.crc32.npy"]
)
def test_a_cached_corpus_that_is_damaged_is_built_again_and_the_same(raw, tmp_path, name, fault, capsys):
    folder = cached(raw, tmp_path)
    good = tree(folder)
    fault(folder / name)
    notices = Notices()
    assert cached(raw, tmp_path, notices) == folder
    assert tree(folder) == good
    assert notices.counts() == {"data_rebuilt": 1}
    assert f"warning: {folder} was damaged" in capsys.readouterr().err
    assert cached(raw, tmp_path, (again := Notices())) == folder
    assert again.counts() == {}


def test_a_cached_corpus_that_comes_out_otherwise_is_an_error(raw, tmp_path, monkeypatch):
    folder = cached(raw, tmp_path)
    delete(folder / "train-00000.arrayrecord")
    real = units.tokenise

    def other(job, tokenizer, heartbeat):
        result = real(job, tokenizer, heartbeat)
        result["shards"]["train"][0]["sha256"] = "0" * 64
        (Path(job.folder) / units.RESULT).write_text(json.dumps(result))
        return result

    monkeypatch.setattr(units, "tokenise", other)
    with pytest.raises(UserError, match="was built again, but came out otherwise"):
        cached(raw, tmp_path)


@pytest.mark.parametrize("fault", [delete, cut, flip_middle])
def test_a_users_corpus_is_never_touched(raw, tmp_path, fault):
    folder = tmp_path / "mine"
    make(raw, folder)
    fault(folder / "train-00000.offsets.npy")
    before = tree(folder)
    source = SourceConfig(path=str(folder))
    data = DataConfig(sources={"mine": source}, cache_dir=str(tmp_path / "cache"))
    assert ensure_corpus(source, data, tokenizer(), say=str) == str(folder)
    with pytest.raises(UserError, match="train-00000.offsets.npy"):
        _ = TokenStore(folder, "train").document_ends
    assert tree(folder) == before


@pytest.mark.parametrize("fault", [delete, lambda path: path.write_text("{}")], ids=["deleted", "emptied"])
def test_tokens_without_a_manifest_are_not_read_as_text(raw, tmp_path, fault):
    folder = tmp_path / "mine"
    make(raw, folder)
    fault(folder / "manifest.json")
    with pytest.raises(UserError, match="manifest.json"):
        check_sources(DataConfig(sources={"mine": SourceConfig(path=str(folder))}), say=str)


def test_a_piece_that_changed_before_it_is_joined_is_refused(tmp_path):
    documents = [(np.arange(n % 50 + 5), 1) for n in range(60)]
    manifest = write_corpus(
        tmp_path / "parts", {"train": documents}, tokenizer_sha256="", vocab_size=100, chunk_tokens=32,
        shard_tokens=500,
    )  # fmt: skip
    ends = tmp_path / "parts" / "train-00001.offsets.npy"
    np.save(ends, np.load(ends) + np.array([1] + [0] * (len(np.load(ends)) - 1)))
    (tmp_path / "out").mkdir()
    pieces = [(str(tmp_path / "parts"), shard) for shard in manifest["splits"]["train"]["shards"]]
    with pytest.raises(UserError, match="train-00001.offsets.npy"):
        join_shards(pieces, tmp_path / "out", "train-00000", 100, 32)
    assert list((tmp_path / "out").iterdir()) == []


def trained(raw, tmp_path, notices=None):
    source = SourceConfig(path=str(raw))
    data = DataConfig(sources={"raw": source}, cache_dir=str(tmp_path / "cache"))
    return ensure_tokenizer(TokenizerConfig(kind="char"), data, say=str, notices=notices)


@settings(max_examples=15, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), of_checksum=st.booleans())
def test_a_bit_flipped_in_a_cached_tokenizer_gives_the_same_one(tmp_path_factory, share, bit, of_checksum):
    """Nearly every flip leaves a file that loads, with other pieces or scores: other ids for the same text."""
    tmp_path = tmp_path_factory.mktemp("tokenizer")
    (tmp_path / "a.txt").write_text("some text to train on, 123.\n" * 20)
    good = trained(tmp_path / "a.txt", tmp_path)
    (path,) = (tmp_path / "cache" / "tokenizers").glob("*.sha256" if of_checksum else "*.model")
    flip(path, int(share * path.stat().st_size), 1 << bit)
    notices = Notices()
    assert trained(tmp_path / "a.txt", tmp_path, notices).sha256 == good.sha256
    assert notices.counts() == {"data_rebuilt": 1}
    assert trained(tmp_path / "a.txt", tmp_path, (again := Notices())).sha256 == good.sha256
    assert again.counts() == {}


def test_a_cached_tokenizer_of_an_older_version_is_used_and_one_that_trains_otherwise_is_an_error(
    tmp_path, monkeypatch
):
    (tmp_path / "a.txt").write_text("some text to train on, 123.\n" * 20)
    good = trained(tmp_path / "a.txt", tmp_path)
    (checksum,) = (tmp_path / "cache" / "tokenizers").glob("*.sha256")
    checksum.unlink()
    assert trained(tmp_path / "a.txt", tmp_path).sha256 == good.sha256
    assert checksum.read_text() == good.sha256
    flip_middle(checksum.with_suffix(""))
    monkeypatch.setattr(corpus_sources, "train_tokenizer", lambda *_: b"another")
    with pytest.raises(UserError, match="the tokenizer that is trained again is another one"):
        trained(tmp_path / "a.txt", tmp_path)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = jsonl(tmp_path_factory.mktemp("questions") / "a.jsonl", QUESTIONS)
    store, _ = build(path)
    return path, Path(store.directory), [(ids.tolist(), known.tolist()) for ids, known in every(store)]


def content_of(store):
    found = [(ids.tolist(), known.tolist()) for ids, known in every(store)]
    places = [store.where(i) for i in range(store.num_documents)]
    return found, places, store.manifest["sha256"]


@pytest.mark.parametrize("resident_bytes", [0, 1 << 30], ids=["from disk", "from memory"])
@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from([*ARRAYS, "crc32", "examples.json"]), share=st.floats(0, 1, exclude_max=True),
       bit=st.integers(0, 7))  # fmt: skip
def test_a_bit_flipped_in_any_file_of_examples_gives_the_same_or_an_error_that_names_it(
    questions, resident_bytes, name, share, bit
):
    _, folder, _ = questions
    good = content_of(ExampleStore(folder, resident_bytes=resident_bytes))
    path = folder / (name if "." in name else f"{name}.npy")
    place = int(share * path.stat().st_size)
    try:
        flip(path, place, 1 << bit)
        found, said = None, ""
        try:
            found = content_of(ExampleStore(folder, resident_bytes=resident_bytes))
        except DamagedExamples as error:
            said = str(error)
        assert found == good or (found is None and path.name in said)
    finally:
        flip(path, place, 1 << bit)


@pytest.mark.parametrize("fault", [delete, cut, flip_middle])
@pytest.mark.parametrize("name", ["tokens.npy", "ends.npy", "crc32.npy", "examples.json"])
def test_damaged_examples_are_built_again_and_the_same(questions, name, fault, capsys):
    path, folder, good = questions
    fault(folder / name)
    store, said = build(path)
    assert store.directory == str(folder)
    assert [(ids.tolist(), known.tolist()) for ids, known in every(store)] == good
    assert "built in" in said[-1]
    warned = f"warning: {folder} was damaged" in capsys.readouterr().err
    assert warned == (name != "examples.json" or fault is not delete)  # without it nothing was ever finished
    assert "in the cache" in build(path)[1][-1]


def test_examples_that_come_out_otherwise_are_an_error(questions, monkeypatch, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", QUESTIONS[:30])
    folder = Path(build(path)[0].directory)
    flip_middle(folder / "tokens.npy")
    real = examples._Build.examples
    monkeypatch.setattr(examples._Build, "examples", lambda self, wanted: list(real(self, wanted))[:-1])
    with pytest.raises(UserError, match="was built again, but came out otherwise"):
        build(path)


@pytest.mark.parametrize("fault", [cut, flip_middle])
def test_large_examples_that_change_while_they_are_read_are_named(questions, tmp_path, fault):
    folder = tmp_path / "copy"
    shutil.copytree(questions[1], folder)
    store = ExampleStore(folder, resident_bytes=0)
    fault(folder / "tokens.npy")
    with pytest.raises(UserError, match=r"copy is damaged: tokens.npy.*Delete the folder: it is built again"):
        every(store)


def test_large_examples_are_the_same_as_small_ones(questions):
    _, folder, good = questions
    large, small = ExampleStore(folder, resident_bytes=0), ExampleStore(folder)
    assert content_of(large) == content_of(small)
    assert content_of(large)[0] == good
    assert large.manifest["tokenizer_sha256"] == TOKENIZER.sha256
    assert large.read_rows(np.array([0]), np.array([0]))[0].tolist() == []
