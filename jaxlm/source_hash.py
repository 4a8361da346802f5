"""Whether all processes of a run have the same jaxlm: two hosts with other code would compute other steps, or hang."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from jaxlm import processes

PACKAGE = Path(__file__).parent


def source_hashes(package: Path = PACKAGE) -> dict[str, str]:
    """Path in the package -> SHA-256 of each .py file, sorted.

    Not of `configs/`, which only a wheel carries: configs are compared key by key.
    """
    found = {}
    for folder, inner, files in os.walk(package):
        inner[:] = sorted(name for name in inner if name not in ("__pycache__", "configs"))
        for name in files:
            if name.endswith(".py"):
                path = Path(folder, name)
                content = path.read_bytes()
                found[path.relative_to(package).as_posix()] = hashlib.sha256(content).hexdigest()
    return dict(sorted(found.items()))


def combined(hashes: dict[str, str]) -> str:
    """One hash of all of them and their names."""
    return hashlib.sha256(
        "".join(f"{name} {sha256}\n" for name, sha256 in hashes.items()).encode()
    ).hexdigest()


def check_same_code() -> None:
    """Errors: UserError on all processes that names the first file of jaxlm that is not that of the first process."""
    if processes.is_alone():
        return
    what, hashes = "The code of jaxlm", source_hashes()
    if len(set(processes.from_all(combined(hashes), what))) > 1:
        processes.check_same(what, {f"jaxlm/{name}": sha256[:12] for name, sha256 in hashes.items()})
