"""Promises of the split: stable, of the share asked for, never all on one side, never known to the tokenizer."""

import itertools

import pytest
from corpora import TOPICS, documents, make, tokenizer

from jaxlm.corpus.sources import ensure_corpus, iter_texts
from jaxlm.corpus.split import hash_of, plan_split
from jaxlm.data.config import DataConfig, SourceConfig
from jaxlm.data.manifest import read_manifest
from jaxlm.types import UserError


def test_hash_split_does_not_move_documents_when_files_are_added(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i, text in enumerate(TOPICS[:30]):
        (folder / f"m{i:02d}.txt").write_text(text)
    make(folder, tmp_path / "one", eval_fraction=0.2)
    for i, text in enumerate(TOPICS[30:60]):
        (folder / f"{'az'[i % 2]}{i:02d}.txt").write_text(text)
    make(folder, tmp_path / "two", eval_fraction=0.2)
    assert set(documents(tmp_path / "one", "eval")) < set(documents(tmp_path / "two", "eval"))
    assert set(documents(tmp_path / "one")) < set(documents(tmp_path / "two"))


def test_hash_split_holds_out_the_share_asked_for():
    texts = [f"document {i}" for i in range(20_000)]
    split = plan_split("hash", 0.1, texts)
    held_out = sum(name == "eval" for text in texts for name, _ in split.cut(text))
    assert 0.093 < held_out / len(texts) < 0.107


@pytest.mark.parametrize("texts", [["a", "b"], ["x", "y", "z"]])
def test_hash_split_of_a_few_documents_leaves_one_on_either_side(texts):
    by_hash = sorted(texts, key=hash_of)
    for fraction, held_out in ((1e-9, by_hash[:1]), (1 - 1e-9, by_hash[:-1])):
        split = plan_split("hash", fraction, texts)
        assert [text for text in texts if list(split.cut(text)) == [("eval", text)]] == sorted(held_out)
        assert plan_split("hash", fraction, texts[::-1]) == split


def test_hash_split_of_one_document_holds_out_its_tail():
    for texts in (["ab" * 50], ["ab" * 50] * 3):
        split = plan_split("hash", 0.1, texts)
        assert list(split.cut(texts[0])) == [("train", "ab" * 45), ("eval", "ab" * 5)]


def test_hash_split_looks_only_as_far_as_it_must():
    read = []
    plan_split("hash", 0.1, (read.append(i) or f"document {i}" for i in itertools.count()))
    assert len(read) < 100


def test_tail_split_cuts_every_document_by_characters(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("ক" * 90 + "খ" * 10)
    (folder / "b.txt").write_text("x")
    make(folder, tmp_path / "out", eval_split="tail", eval_fraction=0.1)
    assert documents(tmp_path / "out") == ["ক" * 90]
    assert documents(tmp_path / "out", "eval") == ["খ" * 10, "x"]


def test_one_document_is_split_at_its_tail_by_all_who_read_it(tmp_path):
    """The build, the tokenizer's training and the manifest agree; and the user is told."""
    text = "".join(f"the lion {n}\n" for n in range(200))
    (tmp_path / "book.txt").write_text(text)
    source = SourceConfig(path=str(tmp_path / "book.txt"))
    folders, texts = {}, {}
    for split in ("hash", "tail"):
        data = DataConfig(sources={"book": source}, eval_split=split, cache_dir=str(tmp_path / "cache"))
        said = []
        folders[split] = ensure_corpus(source, data, tokenizer(), progress=False, say=said.append)
        texts[split] = list(iter_texts(source, data))
        told = [line for line in said if line.startswith("note: ")]
        assert len(told) == (split == "hash")
        assert all("book.txt holds one document" in line and "the last 0.02" in line for line in told)
        again = []
        ensure_corpus(source, data, tokenizer(), say=again.append)
        assert [line for line in again if line.startswith("note: ")] == told
    (head,) = documents(folders["hash"])
    (tail,) = documents(folders["hash"], "eval")
    assert head + tail == text
    assert len(tail) == pytest.approx(0.02 * len(text), abs=1)
    assert texts["hash"] == texts["tail"] == [head]
    manifests = [read_manifest(folder) for folder in folders.values()]
    assert [manifest["source"]["eval_split"] for manifest in manifests] == ["tail", "tail"]
    assert manifests[0]["sha256"] == manifests[1]["sha256"]


def test_a_few_documents_are_split_alike_by_the_build_and_the_tokenizer(tmp_path):
    """Whichever of them the hash would hold out, by itself all or none."""
    for number in range(12):
        path = tmp_path / f"{number}.txt"
        path.write_text(f"the lion {number}\n\nthe zoo {number}")
        source = SourceConfig(path=str(path), document="paragraph")
        data = DataConfig(eval_fraction=0.5, cache_dir=str(tmp_path / "cache"))
        folder = ensure_corpus(source, data, tokenizer(), progress=False, say=[].append)
        (trained,), (held_out,) = documents(folder), documents(folder, "eval")
        assert {trained, held_out} == {f"the lion {number}", f"the zoo {number}"}
        assert list(iter_texts(source, data)) == [trained]


def test_documents_too_short_to_have_a_tail_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x\ny\n")
    options = {"document": "line", "eval_split": "tail", "eval_fraction": 0.1}
    with pytest.raises(UserError, match=r"all of its 2, which have a character or two.* Lower eval_fraction"):
        make(tmp_path / "a.txt", tmp_path / "out", **options)
