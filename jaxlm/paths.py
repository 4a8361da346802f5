"""Where a path leads: to this machine's disks, or to an object store."""

from __future__ import annotations

import os


def is_local(path: str | os.PathLike) -> bool:
    """Whether the path is on a file system, where folders can be renamed and locked; not gs:// or s3://."""
    return "://" not in os.fspath(path)


def cache_root(cache_dir: str | None = None) -> str:
    """The folder for what can be made again: `cache_dir`, else $JAXLM_CACHE, else ~/.cache/jaxlm."""
    return cache_dir or os.environ.get("JAXLM_CACHE") or os.path.expanduser("~/.cache/jaxlm")
