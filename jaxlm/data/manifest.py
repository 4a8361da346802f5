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
from jaxlm.paths import is_local
from jaxlm.types import JSON_ERRORS, UserError

FORMAT = 1
MANIFEST = "manifest.json"
_NEEDED = ("chunk_tokens", "dtype", "sha256", "splits", "tokenizer_sha256", "vocab_size")


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
        manifest = json.loads(path.read_bytes())
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
        manifest = json.loads((notices or Notices()).retrying(path.read_bytes, path))
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
    return manifest


def check_tokenizer(directory: str, manifest: Mapping[str, Any], expected_sha256: str | None) -> None:
    """Raises UserError unless the corpus was made with the tokenizer of this hash (None: not checked)."""
    found = manifest["tokenizer_sha256"]
    if expected_sha256 is not None and found != expected_sha256:
        raise UserError(
            f"{directory} was tokenised by another tokenizer (sha256 {found[:16]}...) than this run's "
            f"({expected_sha256[:16]}...): the same ids would mean other text. Set tokenizer.path to the one "
            "it was built with, or build the corpus again."
        )
