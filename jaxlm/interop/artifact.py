"""The list of an artifact's files with their hashes, and whether they are still what they were."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.limits import TooLarge, check, parse_json, read_bytes
from jaxlm.types import JSON_ERRORS, UserError

ARTIFACT_FILE = "artifact.json"
FORMAT = 1
HUB_FILES = (".gitattributes", ".cache/huggingface/", ".git/")
"""What comes into a folder when it goes through the Hugging Face hub: uploaded, downloaded or cloned."""


def file_sha256(path: os.PathLike | str) -> str:
    """SHA-256 of a file's bytes, read piece by piece."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()


def seal(folder: os.PathLike | str, facts: Mapping[str, Any], known: Mapping[str, str] | None = None) -> Path:
    """Writes artifact.json: facts about the model, and size and hash of every other file in the folder.

    Args:
      known: hashes that were taken while files were written, which are then not read again.
    """
    folder, known = Path(folder), known or {}
    files = {
        name: {
            "bytes": (folder / name).stat().st_size,
            "sha256": known.get(name) or file_sha256(folder / name),
        }
        for name in _names(folder)
    }
    content = {"format": FORMAT, **facts, "files": files}
    sealed = {**content, "sha256": hashlib.sha256(_text(content)).hexdigest()}
    path = folder / ARTIFACT_FILE
    path.write_bytes(_text(sealed))
    return path


def _names(folder: Path) -> list[str]:
    """Of everything in the folder and those inside it, but for folders and artifact.json."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted({path.relative_to(folder).as_posix() for path in paths} - {ARTIFACT_FILE})


def _of_hub(name: str) -> str | None:
    """Which of HUB_FILES a file is, or is in."""
    return next((k for k in HUB_FILES if name == k or k.endswith("/") and name.startswith(k)), None)


def _change(path: Path, num_bytes: int, sha256: str) -> str:
    """What is not as it was in a file; "" where all is."""
    try:
        if not path.is_file():
            return "is no file any more"
        if (size := path.stat().st_size) != num_bytes:
            return f"has {size:,} bytes instead of {num_bytes:,}"
        return "" if file_sha256(path) == sha256 else "was changed (SHA-256)"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def verify(folder: os.PathLike | str) -> tuple[dict[str, Any], list[str]]:
    """(content of artifact.json, after every byte of the folder was compared with it; which of HUB_FILES are there).

    Errors: UserError that names all files that were changed, are missing or were added, but for those of the hub.
    """
    folder = Path(folder)
    path = folder / ARTIFACT_FILE
    try:
        raw = read_bytes(path)
    except TooLarge as error:
        raise UserError(f"{path} was changed: {error}. Export again.") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}): give a folder that `jaxlm export-hf` wrote."
        ) from None
    try:
        sealed = parse_json(raw)
        check(sealed, {"sha256": str, "files": {str: {"bytes": int, "sha256": str}}})
        content = {key: value for key, value in sealed.items() if key != "sha256"}
        intact = sealed["sha256"] == hashlib.sha256(_text(content)).hexdigest() and _text(sealed) == raw
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in content["files"].items()}
    except (*JSON_ERRORS, KeyError, TypeError, AttributeError):
        intact, content, files = False, {}, {}
    if not intact:
        raise UserError(f"{path} was changed: it is not what `jaxlm export-hf` wrote. Export again.")
    found = set(_names(folder))
    wrong = [f"{name} is missing" for name in sorted(set(files) - found)]
    added = sorted(found - set(files))
    wrong += [f"{name} was added" for name in added if not _of_hub(name)]
    wrong += [
        f"{name} {reason}"
        for name in sorted(found & set(files))
        if (reason := _change(folder / name, *files[name]))
    ]
    if wrong:
        raise UserError(f"{folder} is not what was exported: {'; '.join(wrong)}. Export or fetch it again.")
    return content, sorted({known for name in added if (known := _of_hub(name))})
