"""What the folder of a tokenised corpus says about itself: DIR/manifest.json, written last."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from jaxlm.data.checksums import SEAL, crc_file, seal_is_broken, sealed
from jaxlm.data.files import write_atomic
from jaxlm.data.notices import Notices
from jaxlm.limits import check, is_inside, parse_json, read_bytes, read_json, short
from jaxlm.paths import is_local
from jaxlm.types import JSON_ERRORS, UserError

FORMAT = 1
MANIFEST = "manifest.json"
_NEEDED = ("chunk_tokens", "dtype", "sha256", "splits", "tokenizer_sha256", "vocab_size")
_COUNTS = {"num_documents": int, "num_tokens": int, "num_bytes": int}
_SHAPE = {
    "chunk_tokens": int, "dtype": str, "sha256": str, "tokenizer_sha256": str, "vocab_size": int,
    "splits": {str: {**_COUNTS, "shards": [{**_COUNTS, "file": str, "sha256?": str}]}},
}  # fmt: skip
MAX_CHUNK_TOKENS = 1 << 24
"""Of a record of a shard, which is read whole."""


def token_dtype(vocab_size: int) -> np.dtype:
    """The type ids are stored as: uint16 when every id fits, else uint32; little-endian."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def offsets_file(name: str) -> str:
    """The file of document ends that belongs to a shard's file."""
    return name.removesuffix(".arrayrecord") + ".offsets.npy"


def shard_files(name: str) -> tuple[str, str, str]:
    """All files of a shard: tokens, document ends, checksums."""
    return name, offsets_file(name), crc_file(name)


def make_manifest(
    *,
    tokenizer_sha256: str,
    vocab_size: int,
    splits: Mapping[str, list[dict[str, Any]]],
    source: dict[str, Any],
    dropped: Mapping[str, int],
    chunk_tokens: int,
    **extra: Any,
) -> dict[str, Any]:
    """The manifest of a corpus whose shards have the entries `splits`; its hash covers all of them."""
    totals = ("num_documents", "num_tokens", "num_bytes")
    content = hashlib.sha256(tokenizer_sha256.encode())
    for split in sorted(splits):
        for shard in splits[split]:
            content.update(f"\n{split} {shard['sha256']}".encode())
    manifest = {
        "format": FORMAT,
        "tokenizer_sha256": tokenizer_sha256,
        "vocab_size": vocab_size,
        "dtype": token_dtype(vocab_size).name,
        "chunk_tokens": chunk_tokens,
        "source": source,
        "splits": {
            split: {**{key: sum(shard[key] for shard in shards) for key in totals}, "shards": shards}
            for split, shards in splits.items()
        },
        "dropped": dict(sorted(dropped.items())),
        "sha256": content.hexdigest(),
        **extra,
    }
    return sealed(manifest)


def write_manifest(directory: epath.PathLike, manifest: Mapping[str, Any]) -> None:
    """Writes DIR/manifest.json, which makes the folder a corpus: everything else must be there already."""
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    write_atomic(epath.Path(directory) / MANIFEST, text.encode())


def is_corpus(directory: epath.PathLike) -> bool:
    """Whether the folder holds a finished corpus, perhaps a damaged one; others have a manifest.json too."""
    path = epath.Path(directory) / MANIFEST
    try:
        manifest = read_json(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    except OSError as error:
        if is_local(path) and not os.path.exists(path):  # a folder that may not be read, or a ring of links
            return False
        raise UserError(f"{path} cannot be read ({error.strerror or error}): allow it.") from None
    except JSON_ERRORS:
        manifest = None
    named = isinstance(manifest, dict) and "tokenizer_sha256" in manifest
    return named or any(epath.Path(directory).glob("*.offsets.npy"))


def read_manifest(directory: epath.PathLike, notices: Notices | None = None) -> dict[str, Any]:
    """The manifest of a finished corpus; a UserError says what is wrong with any other folder."""
    path = epath.Path(directory) / MANIFEST
    try:
        manifest = parse_json((notices or Notices()).retrying(lambda: read_bytes(path), path))
    except FileNotFoundError:
        raise UserError(
            f"{directory} is not a tokenised corpus: it has no {MANIFEST}, which a build writes last. "
            "Make one, or finish one that was interrupted, with `jaxlm corpus build --output`."
        ) from None
    except JSON_ERRORS as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); delete the folder and build it again."
        ) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise UserError(
            f"{path} has format {found!r}, this version reads {FORMAT}; build the corpus again with "
            "`jaxlm corpus build`."
        )
    if missing := [key for key in _NEEDED if key not in manifest]:
        raise UserError(
            f"{path} is damaged: it has no {', '.join(missing)}. Copy it again, or delete the folder and build it "
            "again with `jaxlm corpus build`."
        )
    if seal_is_broken(manifest):
        raise UserError(
            f"{path} was changed after the build: it no longer agrees with its own {SEAL}. Copy it again, or delete "
            "the folder and build it again with `jaxlm corpus build`."
        )
    try:
        check(manifest, _SHAPE)
        _check_contents(manifest)
    except ValueError as error:
        raise UserError(
            f"{path} is damaged: {error}. Copy it again, or delete the folder and build it again with `jaxlm corpus "
            "build`."
        ) from None
    return manifest


def _check_contents(manifest: Mapping[str, Any]) -> None:
    """Errors: ValueError where the numbers contradict each other, or a shard lies outside of the folder."""
    if manifest["dtype"] not in ("uint16", "uint32"):
        raise ValueError(f"dtype is {short(manifest['dtype'])}, not uint16 or uint32")
    if not 0 < manifest["chunk_tokens"] <= MAX_CHUNK_TOKENS:
        raise ValueError(f"chunk_tokens is {manifest['chunk_tokens']}, not 1 to {MAX_CHUNK_TOKENS:,}")
    for split, entry in manifest["splits"].items():
        for name in _COUNTS:
            if entry[name] != (total := sum(shard[name] for shard in entry["shards"])):
                raise ValueError(
                    f"splits.{short(split)}.{name} is {entry[name]:,}, and that of its shards {total:,}"
                )
        for shard in entry["shards"]:
            if "/" in shard["file"] or not is_inside(shard["file"]):
                raise ValueError(
                    f"the shard {short(shard['file'])} has to be the name of a file in the folder itself"
                )


def check_tokenizer(directory: str, manifest: Mapping[str, Any], expected_sha256: str | None) -> None:
    """Raises UserError unless the corpus was made with the tokenizer of this hash (None: not checked)."""
    found = manifest["tokenizer_sha256"]
    if expected_sha256 is not None and found != expected_sha256:
        raise UserError(
            f"{directory} was tokenised by another tokenizer (sha256 {found[:16]}...) than this run's "
            f"({expected_sha256[:16]}...): the same ids would mean other text. Set tokenizer.path to the one "
            "it was built with, or build the corpus again."
        )
