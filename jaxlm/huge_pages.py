"""Large blocks of memory in pages of 2 MiB instead of 4 KiB, where Linux grants them on request only.

On a CPU every training step takes its temporary memory from the system anew and gives it back. In small pages that is
up to half of a small model's step: 12,000 page faults for 47 MB. The C library asks for huge pages by itself when the
environment says so at the start of the process, and not later: so the process is replaced by one that has it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

TUNABLES = "GLIBC_TUNABLES"
TUNABLE = "glibc.malloc.hugetlb"
_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def environment(env: Mapping[str, str], *, mode: str, libc: str) -> dict[str, str] | None:
    """The environment to start with; None: this one is right, or would not help.

    Args:
      mode: of the kernel, such as "always [madvise] never".
      libc: such as "glibc 2.36"; the tunable came with 2.35.
    """
    name, _, number = libc.partition(" ")
    major_minor = tuple(int(part) for part in number.split(".")[:2] if part.isdecimal())
    before = env.get(TUNABLES, "")
    if "[madvise]" not in mode or name != "glibc" or major_minor < (2, 35) or TUNABLE in before:
        return None
    return {**env, TUNABLES: f"{before}:{TUNABLE}=1" if before else f"{TUNABLE}=1"}


def restart(argv: list[str]) -> None:
    """Starts the command line argv again, in this process, with huge pages; returns where that is not needed.

    $GLIBC_TUNABLES=glibc.malloc.hugetlb=0 keeps the small ones.
    """
    if sys.platform != "linux":
        return
    try:
        mode, libc = _MODE.read_text(), os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (OSError, ValueError):  # another C library, or a kernel without huge pages
        return
    env = environment(os.environ, mode=mode, libc=libc)
    if env is not None:
        os.execve(sys.executable, argv, env)
