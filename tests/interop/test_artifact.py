"""Promises of artifact.json: whoever changes, adds or takes away one byte of an export is found out by name."""

import json

import pytest

from jaxlm.interop import artifact
from jaxlm.types import UserError

FACTS = {"name": "mine", "step": 3, "tokens": 12, "ratio": 0.1, "origin": None, "tokenizer": "বাংলা"}


@pytest.fixture
def sealed(tmp_path):
    """A folder of small files, one of them empty and one in a folder of its own."""
    folder = tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    for name, content in {
        "config.json": b"{}\n",
        "model.safetensors": bytes(range(40)),
        "empty": b"",
        "sub/a": b"a",
    }.items():
        (folder / name).write_bytes(content)
    artifact.seal(folder, FACTS)
    return folder


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_an_untouched_folder_verifies_and_gives_the_facts_back(sealed):
    content, of_hub = artifact.verify(sealed)
    assert of_hub == []
    assert {key: content[key] for key in FACTS} == FACTS
    assert [*sorted(content["files"]), "artifact.json"] == sorted(
        names(sealed), key=lambda n: n == "artifact.json"
    )
    artifact.verify(str(sealed) + "/")


def test_any_flipped_byte_is_found(sealed):
    """Each byte of each file, artifact.json and its white space included."""
    count = 0
    for name in names(sealed):
        path = sealed / name
        content = path.read_bytes()
        for at in range(len(content)):
            for bit in (0, 5, 7):
                path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
                with pytest.raises(UserError, match=name):
                    artifact.verify(sealed)
                count += 1
        path.write_bytes(content)
    assert count > 1000
    artifact.verify(sealed)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "sub/a", "empty", "artifact.json"])
def test_a_file_that_is_missing_cut_or_longer_is_named(name, sealed):
    path = sealed / name
    content = path.read_bytes()
    for changed in (content[:-1], content + b"\n", content + b" ", b"") if content else (b"x",):
        path.write_bytes(changed)
        with pytest.raises(UserError, match=name):
            artifact.verify(sealed)
    path.unlink()
    with pytest.raises(UserError, match=name):
        artifact.verify(sealed)
    path.mkdir()
    with pytest.raises(UserError, match=name):
        artifact.verify(sealed)


def test_whatever_was_added_is_named(sealed, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    additions = {
        "more.bin": lambda path: path.write_bytes(b""),
        ".hidden": lambda path: path.write_bytes(b"x"),
        "sub/artifact.json": lambda path: path.write_bytes(b"x"),
        "link": lambda path: path.symlink_to(tmp_path / "elsewhere"),
        "broken": lambda path: path.symlink_to("nowhere"),
    }
    for name, add in additions.items():
        add(sealed / name)
        with pytest.raises(UserError, match=f"{name} was added"):
            artifact.verify(sealed)
        (sealed / name).unlink()
    artifact.verify(sealed)


def test_what_the_hub_adds_is_told_and_not_compared(sealed):
    added = [".cache/huggingface/download/config.json.metadata", ".git/config", ".gitattributes"]
    for name in added:
        (sealed / name).parent.mkdir(parents=True, exist_ok=True)
        (sealed / name).write_text("x")
    assert artifact.verify(sealed)[1] == [".cache/huggingface/", ".git/", ".gitattributes"]
    for name in (".gitattributes2", ".cache/other", "sub/.gitattributes"):
        (sealed / name).write_text("x")
        with pytest.raises(UserError, match=f"{name} was added"):
            artifact.verify(sealed)
        (sealed / name).unlink()


def test_all_that_is_wrong_is_named_at_once(sealed):
    (sealed / "config.json").unlink()
    (sealed / "sub" / "a").write_bytes(b"b")
    (sealed / "more").write_bytes(b"b")
    with pytest.raises(UserError) as error:
        artifact.verify(sealed)
    assert "config.json is missing; more was added; sub/a was changed (SHA-256)" in str(error.value)


def test_files_that_are_links_are_verified_by_their_content(sealed, tmp_path):
    """As in the hub's cache."""
    blob = tmp_path / "blob"
    (sealed / "model.safetensors").rename(blob)
    (sealed / "model.safetensors").symlink_to(blob)
    artifact.verify(sealed)
    blob.write_bytes(blob.read_bytes()[::-1])
    with pytest.raises(UserError, match="model.safetensors was changed"):
        artifact.verify(sealed)
    blob.unlink()
    with pytest.raises(UserError, match="model.safetensors is no file any more"):
        artifact.verify(sealed)


def test_hashes_that_writers_took_are_believed_and_checked_later(sealed):
    (sealed / "artifact.json").unlink()
    artifact.seal(sealed, FACTS, {"config.json": "0" * 64})
    with pytest.raises(UserError, match=r"config.json was changed \(SHA-256\)"):
        artifact.verify(sealed)


def test_facts_cannot_be_changed_without_their_hash(sealed):
    path = sealed / "artifact.json"
    content = json.loads(path.read_bytes()) | {"step": 4}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n")
    with pytest.raises(UserError, match="artifact.json was changed"):
        artifact.verify(sealed)


def test_a_folder_that_is_none_says_what_to_give(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            UserError, match="artifact.json cannot be read .*give a folder that `jaxlm export-hf` wrote"
        ):
            artifact.verify(folder)
