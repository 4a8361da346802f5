"""Promises of the cache: raw sources are built once, found by content; a tokenizer never sees held-out text."""

import json
import os
import time

import numpy as np
import pytest
from corpora import documents, tokenizer, write_raw

from jaxlm.corpus import build, embedded, units
from jaxlm.corpus.build import build_corpus, ensure_corpus, ensure_tokenizer, iter_texts
from jaxlm.data.config import DataConfig, SourceConfig, TokenizerConfig
from jaxlm.data.shards import TokenStore, read_manifest
from jaxlm.types import UserError


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("raw"))


def data_config(root, sources, **options):
    return DataConfig(sources=sources, cache_dir=str(root / "cache"), **options)


def test_ensure_corpus_builds_once_and_finds_it_by_content(raw, tmp_path, monkeypatch):
    source = SourceConfig(path=str(raw))
    data = data_config(tmp_path, {"raw": source})
    said = []
    folder = ensure_corpus(source, data, tokenizer(), progress=False, say=said.append)
    assert "tokenised in" in said[-1]
    assert "empty_file dropped" in said[-1]
    copy = tmp_path / "elsewhere" / raw.name
    copy.mkdir(parents=True)
    for name in os.listdir(raw):
        (copy / name).write_bytes((raw / name).read_bytes())
    for path in (raw, copy):
        with monkeypatch.context() as patch:
            patch.setattr(units, "tokenise", lambda *args: pytest.fail("built again"))
            again = ensure_corpus(SourceConfig(path=str(path)), data, tokenizer(), say=said.append)
        assert again == folder
        assert "in the cache" in said[-1]
    (copy / "b00.txt").write_text("changed")
    others = {
        ensure_corpus(SourceConfig(path=str(copy)), data, tokenizer(), progress=False, say=said.append),
        ensure_corpus(source, data, tokenizer(401), progress=False, say=said.append),
        ensure_corpus(source, data_config(tmp_path, {}, eval_fraction=0.3), tokenizer(), progress=False),
        ensure_corpus(SourceConfig(path=str(raw), document="line"), data, tokenizer(), progress=False),
        folder,
    }
    assert len(others) == 5


def test_ensure_corpus_sees_a_file_that_keeps_its_size_and_date(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_CLOCK_NS", 0)
    path = tmp_path / "a.txt"
    source = SourceConfig(path=str(path), document="paragraph")
    data = data_config(tmp_path, {}, eval_fraction=0.0)
    folders = set()
    for animal in ("lion", "lamb"):
        time.sleep(0.05)  # the clock of a file system may tick a hundred times a second
        path.write_text(f"the {animal}\n\nthe zoo")
        os.utime(path, (0, 0))  # as `cp -p` does
        time.sleep(0.05)
        folders |= {ensure_corpus(source, data, tokenizer(), progress=False) for _ in range(2)}
    assert len(folders) == 2
    assert (tmp_path / "cache" / "fingerprints.json").exists()


def test_ensure_corpus_does_not_trust_what_changed_a_moment_ago(tmp_path):
    (tmp_path / "a.txt").write_text("the lion")
    ensure_corpus(SourceConfig(path=str(tmp_path / "a.txt")), data_config(tmp_path, {}, eval_fraction=0.0),
                  tokenizer(), progress=False)  # fmt: skip
    assert not (tmp_path / "cache" / "fingerprints.json").exists()


def test_ensure_corpus_sees_a_file_that_keeps_its_size(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("the lion\n\nthe zoo")
    source = SourceConfig(path=str(path), document="paragraph")
    data = data_config(tmp_path, {}, eval_fraction=0.0)
    ensure_corpus(source, data, tokenizer(), progress=False)
    path.write_text("the lamb\n\nthe zoo")
    os.utime(path, ns=(1, 1))
    folder = ensure_corpus(source, data, tokenizer(), progress=False)
    assert documents(folder) == ["the lamb", "the zoo"]


def test_ensure_corpus_uses_a_built_folder_as_it_is_and_checks_its_tokenizer(raw, tmp_path):
    build_corpus([str(raw)], tmp_path / "out", tokenizer(), eval_fraction=0.1, progress=False)
    source = SourceConfig(path=str(tmp_path / "out"))
    data = data_config(tmp_path, {"raw": source})
    assert ensure_corpus(source, data, tokenizer()) == str(tmp_path / "out")
    with pytest.raises(UserError, match="another tokenizer"):
        ensure_corpus(source, data, tokenizer(401))
    assert ensure_tokenizer(TokenizerConfig(), data, say=[].append).sha256 == tokenizer().sha256
    assert not (tmp_path / "cache").exists()


def test_embedded_sources_are_built_into_the_cache(tmp_path):
    data = data_config(tmp_path, {})
    for name in embedded.NAMES:
        folder = ensure_corpus(SourceConfig(path=f"embedded:{name}"), data, tokenizer(), progress=False)
        manifest = read_manifest(folder)
        assert manifest["splits"]["eval"]["num_documents"] >= 1
        size = manifest["splits"]["train"]["num_bytes"] + manifest["splits"]["eval"]["num_bytes"]
        assert size == manifest["source"]["num_bytes"] == embedded.num_bytes(f"embedded:{name}")


def test_a_tokenizer_is_trained_once_on_text_that_is_not_held_out(raw, tmp_path, monkeypatch):
    sources = {"raw": SourceConfig(path=str(raw)), "topics": SourceConfig(path="embedded:topics")}
    data = data_config(tmp_path, sources, eval_fraction=0.3)
    seen = []
    train = build.train_tokenizer
    monkeypatch.setattr(
        build, "train_tokenizer", lambda texts, *args: train((seen.append(t) or t for t in texts), *args)
    )
    said = []
    config = TokenizerConfig(vocab_size=500)
    first = ensure_tokenizer(config, data, say=said.append)
    held_out = set(documents_of(data, sources["raw"], "eval", first))
    assert held_out
    assert not held_out & set(seen)
    assert set(documents_of(data, sources["raw"], "train", first)) <= set(seen)
    seen.clear()
    assert ensure_tokenizer(config, data, say=said.append).sha256 == first.sha256
    assert seen == []
    assert "trained bpe, 500 pieces" in said[0]
    assert "in the cache" in said[1]
    assert ensure_tokenizer(TokenizerConfig(vocab_size=501), data, say=[].append).sha256 != first.sha256
    path = str(next((tmp_path / "cache" / "tokenizers").glob("*.model")))
    assert ensure_tokenizer(TokenizerConfig(path=path), data).vocab_size in (500, 501)


def documents_of(data, source, split, tokenizer):
    store = TokenStore(ensure_corpus(source, data, tokenizer, progress=False), split)
    starts = np.concatenate([[0], store.document_ends[:-1]])
    return [tokenizer.decode(row) for row in store.read_rows(starts, store.document_ends - starts)]


def test_a_large_source_is_sampled_evenly_for_the_tokenizer(tmp_path):
    path = tmp_path / "a.jsonl"
    with open(path, "w") as file:
        for i in range(40_000):
            file.write(json.dumps({"text": f"{i:06d} " + "lion " * 20}) + "\n")
    source = SourceConfig(path=str(path))
    data = data_config(tmp_path, {"a": source}, eval_fraction=0.01)
    texts = list(iter_texts(source, data, 200_000))
    assert 180_000 < sum(map(len, texts)) < 220_000
    numbers = [int(text[:6]) for text in texts if text[:6].isdigit()]
    assert numbers == sorted(numbers)
    assert len({number // 10_000 for number in numbers}) == 4
    assert texts == list(iter_texts(source, data, 200_000))
    everything = list(iter_texts(source, data))
    assert 0.985 < len(everything) / 40_000 < 0.995


def test_the_share_of_a_source_in_the_tokenizer_follows_its_weight(monkeypatch):
    monkeypatch.setattr(build, "TRAINING_BYTES", 1000)
    sources = {"a": SourceConfig(path="x", weight_tokens=3), "b": SourceConfig(path="y", weight_tokens=1)}
    assert build._budgets(sources, {"a": 5000, "b": 5000}) == {"a": 750, "b": 250}
    assert build._budgets(sources, {"a": 500, "b": 400}) == {"a": None, "b": None}
