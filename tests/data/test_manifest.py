"""Promises of the manifest: a folder is a corpus or is not, and a damaged one says what it lacks."""

import json
import os

import pytest
from etils import epath

from jaxlm.data.manifest import is_corpus, read_manifest
from jaxlm.data.shards import write_corpus
from jaxlm.types import UserError


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "out", {"train": [([1, 5, 2], 3)]}, tokenizer_sha256="ab" * 32, vocab_size=10)
    return tmp_path / "out"


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"", b"[" * 100_000])
def test_a_broken_manifest_makes_a_corpus_only_beside_shards(corpus, tmp_path, content):
    """Else it is somebody's file, in a folder of text that nobody should be told to delete."""
    (corpus / "manifest.json").write_bytes(content)
    assert is_corpus(corpus)
    with pytest.raises(UserError, match="is not valid JSON"):
        read_manifest(corpus)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "manifest.json").write_bytes(content)
    assert not is_corpus(tmp_path / "text")


@pytest.mark.parametrize("content", ["[]", '{"name": "my-web-app"}', "3"])
def test_a_manifest_of_something_else_is_none(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    assert not is_corpus(tmp_path)


def test_what_a_manifest_lacks_is_named(corpus):
    manifest = json.loads((corpus / "manifest.json").read_text())
    for key in ("splits", "dtype"):
        del manifest[key]
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is damaged: it has no dtype, splits. Copy it again"):
        read_manifest(corpus)


def test_a_manifest_that_may_not_be_read_is_named_and_a_folder_that_may_not_is_no_corpus(corpus, monkeypatch):
    def forbidden(path, *args, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(epath.Path("x")), "open", forbidden)
    with pytest.raises(UserError, match=r"manifest.json cannot be read \(Permission denied\): allow it"):
        is_corpus(corpus)
    monkeypatch.setattr(os.path, "exists", lambda path: False)  # what it says of all below such a folder
    assert not is_corpus(corpus)
