"""What the tests of this folder share: a small tokenizer, raw text, a build, and the texts of a corpus."""

import functools
import hashlib
import json
import os

import numpy as np

from jaxlm.corpus import embedded
from jaxlm.corpus.build import build_corpus
from jaxlm.data.shards import TokenStore
from jaxlm.data.tokenizer import SentencePieceTokenizer
from jaxlm.data.tokenizer_training import train_tokenizer

TOPICS = embedded.texts("embedded:topics")


@functools.cache
def tokenizer(vocab_size: int = 400) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_tokenizer(TOPICS[:10], "bpe", vocab_size))


def documents(folder, split="train"):
    """The text of every document of a corpus."""
    store = TokenStore(folder, split, expected_tokenizer_sha256=tokenizer().sha256)
    ends = store.document_ends
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    rows = store.read_rows(starts, ends - starts)
    for row in rows:
        assert row[0] == tokenizer().bos_id
        assert row[-1] == tokenizer().eos_id
        assert (row == tokenizer().bos_id).sum() == (row == tokenizer().eos_id).sum() == 1
    return [tokenizer().decode(row) for row in rows]


def write_raw(folder):
    """Raw text of several kinds, some 200 kB."""
    with open(folder / "a.jsonl", "w") as file:
        for text in TOPICS[:40]:
            file.write(json.dumps({"text": text}) + "\n")
    for i, text in enumerate(TOPICS[40:60]):
        (folder / f"b{i:02d}.txt").write_text(text)
    (folder / "empty.txt").write_text("")
    return folder


def make(raw, output, **options):
    options = {"eval_fraction": 0.1, "shard_tokens": 20_000, "workers": 1, "progress": False, **options}
    return build_corpus([str(raw)], output, tokenizer(), **options)


def tree(folder):
    """Every file below a folder with its content's hash."""
    return {
        os.path.relpath(os.path.join(where, name), folder): hashlib.sha256(
            open(os.path.join(where, name), "rb").read()
        ).hexdigest()
        for where, _, names in os.walk(folder)
        for name in names
    }
