"""Promises of the cache: raw sources are built once, found by content; a tokenizer never sees held-out text."""

import dataclasses
import json
import os
import time

import numpy as np
import pytest
import small_tokenizers
from corpora import TOPICS, documents, tokenizer, tree

from jaxlm import run
from jaxlm.corpus import embedded, units
from jaxlm.corpus import sources as corpus_sources
from jaxlm.corpus.build import build_corpus
from jaxlm.corpus.sources import check_sources, ensure_corpus, ensure_tokenizer, iter_texts
from jaxlm.data.config import DataConfig, SourceConfig, TokenizerConfig
from jaxlm.data.manifest import read_manifest
from jaxlm.data.shards import TokenStore
from jaxlm.types import UserError


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
    monkeypatch.setattr(corpus_sources, "_CLOCK_NS", 0)
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
    train = corpus_sources.train_tokenizer
    monkeypatch.setattr(
        corpus_sources,
        "train_tokenizer",
        lambda texts, *args: train((seen.append(t) or t for t in texts), *args),
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
    monkeypatch.setattr(corpus_sources, "TRAINING_BYTES", 1000)
    sources = {"a": SourceConfig(path="x", weight_tokens=3), "b": SourceConfig(path="y", weight_tokens=1)}
    assert corpus_sources._budgets(sources, {"a": 5000, "b": 5000}) == {"a": 750, "b": 250}
    assert corpus_sources._budgets(sources, {"a": 500, "b": 400}) == {"a": None, "b": None}


def missing(tmp_path):
    """Sources of which four cannot be read, each in its own way; the first in line is good."""
    (tmp_path / "good.txt").write_text("the lion is in the zoo\n" * 50)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"\x89PNG")
    paths = {
        "a_good": tmp_path / "good.txt",
        "b_gone": tmp_path / "gone.txt",
        "c_glob": tmp_path / "*.jsonl",
        "d_pictures": tmp_path / "pictures",
        "e_topics": "embedded:topicz",
    }
    return {name: SourceConfig(path=str(path)) for name, path in paths.items()}


def test_all_sources_that_cannot_be_read_are_named_at_once(tmp_path):
    with pytest.raises(UserError) as caught:
        check_sources(data_config(tmp_path, missing(tmp_path)))
    message = str(caught.value)
    assert message.startswith(
        f"4 of 5 sources cannot be read. data.sources.b_gone.path: {tmp_path}/gone.txt does"
    )
    assert f"data.sources.c_glob.path: {tmp_path}/*.jsonl matches no file of a readable kind" in message
    assert f"data.sources.d_pictures.path: {tmp_path}/pictures matches no file of a readable kind" in message
    assert "data.sources.e_topics.path: the source embedded:topicz='topicz' is not one of" in message
    assert "a_good" not in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["b_gone", "c_glob", "d_pictures", "e_topics"])
def test_a_run_finds_out_that_a_source_is_missing_before_it_works_on_another(tmp_path, monkeypatch, name):
    for module, work in ((corpus_sources, "train_tokenizer"), (corpus_sources, "build_corpus")):
        monkeypatch.setattr(module, work, lambda *args, **options: pytest.fail("worked"))
    sources = {key: source for key, source in missing(tmp_path).items() if key in ("a_good", name)}
    config = run.RunConfig(data=data_config(tmp_path, sources, eval_split="tail"))
    with pytest.raises(UserError, match=rf"^data\.sources\.{name}\.path: "):
        run.open_data(config, quiet=True)
    assert not (tmp_path / "cache").exists()


def test_a_damaged_corpus_is_found_before_work_on_another_source(raw, tmp_path):
    build_corpus([str(raw)], tmp_path / "tokens", tokenizer(), progress=False)
    for content in ("{", '{"tokenizer_sha256": "x", "format": 99}'):
        (tmp_path / "tokens" / "manifest.json").write_text(content)
        sources = {"a": SourceConfig(path=str(raw)), "b": SourceConfig(path=str(tmp_path / "tokens"))}
        with pytest.raises(UserError, match=r"^data\.sources\.b\.path: .*manifest\.json (is not|has format)"):
            check_sources(data_config(tmp_path, sources))


def test_a_corpus_of_another_tokenizer_is_found_before_work_on_another_source(raw, tmp_path):
    build_corpus([str(raw)], tmp_path / "out", tokenizer(401), progress=False)
    (tmp_path / "a.model").write_bytes(tokenizer().model_bytes)
    sources = {"a": SourceConfig(path=str(raw)), "b": SourceConfig(path=str(tmp_path / "out"))}
    with pytest.raises(UserError, match="out was tokenised by another tokenizer"):
        ensure_tokenizer(TokenizerConfig(path=str(tmp_path / "a.model")), data_config(tmp_path, sources))


def test_two_sources_with_the_same_text_are_pointed_out(raw, tmp_path):
    (tmp_path / "link").symlink_to(raw)
    both = {"a": SourceConfig(path=str(raw)), "b": SourceConfig(path=str(tmp_path / "link" / "b*.txt"))}
    said = []
    check_sources(data_config(tmp_path, both), say=said.append)
    (note,) = said
    assert note.startswith(
        f"note: data.sources: a and b read the same text, {raw}/b00.txt (and 19 more files): "
    )
    apart = {
        "a": SourceConfig(path=str(raw / "a.jsonl")),
        "b": both["b"],
        "c": SourceConfig(path="embedded:topics"),
    }
    unused = {"a": SourceConfig(path=str(raw), weight_tokens=0.0), "b": both["b"]}
    for sources in (apart, unused):
        check_sources(data_config(tmp_path, sources), say=pytest.fail)


@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_a_corpus_without_held_out_text_is_pointed_out_where_it_should_be_evaluated(
    raw, tmp_path, capsys, fraction
):
    build_corpus([str(raw)], tmp_path / "out", tokenizer(), eval_fraction=fraction, progress=False)
    data = data_config(tmp_path, {"a": SourceConfig(path=str(tmp_path / "out"))})
    opened = run.open_data(run.RunConfig(data=data))
    assert ("data.sources.a has no held-out text and is not evaluated" in capsys.readouterr().err) == (
        fraction == 0
    )
    assert set(opened.eval) == ({"a"} if fraction else set())
    run.open_data(run.RunConfig(data=data, train=dataclasses.replace(run.RunConfig().train, eval_batches=0)))
    assert "no held-out text" not in capsys.readouterr().err


def test_a_remote_cache_that_cannot_be_reached_is_named(raw, tmp_path):
    data = DataConfig(sources={"a": SourceConfig(path=str(raw))}, cache_dir="foo://x/y")
    for use in (
        lambda: ensure_tokenizer(TokenizerConfig(), data),
        lambda: ensure_corpus(data.sources["a"], data, tokenizer()),
    ):
        with pytest.raises(UserError, match="foo:// is no known kind of storage"):
            use()


@pytest.mark.parametrize("content", [b"", b"[3]", b"\xff", b"{}"])
def test_a_damaged_cache_is_made_again(raw, tmp_path, content):
    data = data_config(tmp_path, {"a": SourceConfig(path=str(raw))})
    config, said = TokenizerConfig(vocab_size=300), []
    ensure_tokenizer(config, data, say=said.append)
    (model,) = (tmp_path / "cache" / "tokenizers").glob("*.model")
    before = model.read_bytes()
    for name in (model, tmp_path / "cache" / "fingerprints.json"):
        name.write_bytes(content)
    ensure_tokenizer(config, data, say=said.append)
    assert model.read_bytes() == before
    assert "trained bpe" in said[-1]


def test_a_hugging_face_tokenizer_goes_with_its_tokens_as_it_came(raw, tmp_path):
    files = small_tokenizers.level()
    (tmp_path / "model").mkdir()
    for name, content in files.items():
        (tmp_path / "model" / name).write_bytes(content)
    found = ensure_tokenizer(TokenizerConfig(path=str(tmp_path / "model")), data_config(tmp_path, {}))
    for workers in (1, 2):
        build_corpus([str(raw)], tmp_path / f"out{workers}", found, workers=workers, progress=False)
    assert tree(tmp_path / "out1") == tree(tmp_path / "out2")
    folder = tmp_path / "out1" / "tokenizer"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    data = data_config(tmp_path, {"a": SourceConfig(path=str(tmp_path / "out1"))})
    said = []
    again = ensure_tokenizer(TokenizerConfig(), data, say=said.append)
    assert again.sha256 == found.sha256
    assert str(folder) in said[0]
    texts = documents_of(data, data.sources["a"], "train", again)
    assert len(texts) == 60
    assert set(TOPICS[:60]) == set(texts)
    with pytest.raises(UserError, match="tokenised by another tokenizer"):
        ensure_tokenizer(TokenizerConfig(path=str(write_other(tmp_path))), data)


def write_other(tmp_path):
    """The same model without its BOS."""
    (tmp_path / "other").mkdir()
    for name, content in small_tokenizers.level(bos=False).items():
        (tmp_path / "other" / name).write_bytes(content)
    return tmp_path / "other"
