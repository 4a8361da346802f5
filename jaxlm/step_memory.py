"""The temporary memory of steps on a CPU: the same for every step, in large pages. On Linux with the GNU C library.

XLA:CPU asks for a step's temporary memory anew in each step and gives it back, and the system zeroes every page of it,
while the cores wait: of a model with 4.6 GB of it (shape L of `make bench`) that is a ninth of the time. So

- memory that is freed stays with the process (`keep`), and the next step finds it;
- the next step begins when the last one has freed its own (`before_devices`), or there would be two of them;
- what is taken is taken in pages of 2 MiB instead of 4 KiB (`restart_in_huge_pages`), where the kernel grants them on
  request only. The C library reads that wish at the start of a process and not later: so the process is replaced by one
  that has it.

The first two are for a process that does nothing else: `jaxlm train` asks for them (`begin`), and others can, in the
environment.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TUNABLES = "GLIBC_TUNABLES"
TUNABLE = "glibc.malloc.hugetlb"
CHOICE, KEPT, RELEASED = "JAXLM_STEP_MEMORY", "keep", "release"
"""In the environment. Without "keep", steps are dispatched ahead and give their memory back."""
_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")

# Of malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
KEEP = {M_TRIM_THRESHOLD: -1, M_MMAP_MAX: 0, M_ARENA_MAX: 1}
"""Nothing is given back to the system; nothing is mapped apart, since that would be; and new threads share one heap:
what one frees is there for the others, and heaps of their own hold no block of more than 64 MiB."""


def begin(argv: list[str]) -> None:
    """For a process that trains and does nothing else, before it imports JAX: memory is kept, and in huge pages.

    Args:
      argv: the command line of this process, which may be started again with it.
    """
    os.environ.setdefault(CHOICE, KEPT)  # where the user has chosen, that stays
    restart_in_huge_pages(argv)


def before_devices(libc: Any = None) -> None:
    """Where memory is kept: JAX returns from a step on a CPU when it is done, and its threads share one heap.

    Both must be known before JAX starts those threads. A host of accelerators keeps its many heaps.

    Args:
      libc: has `mallopt`; None: the C library of this process.
    """
    mallopt = _mallopt(libc)
    if mallopt is None:
        return
    import jax

    try:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    except AttributeError:  # a later JAX without that option: it would keep the memory of two steps
        os.environ[CHOICE] = RELEASED
        return
    if not may_have_accelerators(getattr(jax.config, "jax_platforms", None)):
        mallopt(M_ARENA_MAX, KEEP[M_ARENA_MAX])


def may_have_accelerators(platforms: str | None) -> bool:
    """Whether JAX could find other devices than CPUs: by $JAX_PLATFORMS, else by its plugins that are installed."""
    if platforms:
        return platforms != "cpu"
    return any(importlib.util.find_spec(plugin) for plugin in ("libtpu", "jax_plugins"))


def keep(libc: Any = None) -> bool:
    """From now on this process keeps the memory that it frees, where that is chosen and possible; whether it does.

    Args:
      libc: has `mallopt`; None: the C library of this process.
    """
    mallopt = _mallopt(libc)
    return mallopt is not None and all([mallopt(option, value) for option, value in KEEP.items()])


def _mallopt(libc: Any) -> Callable[[int, int], int] | None:
    """What sets an option of malloc; None: memory is not to be kept, or cannot be."""
    if os.environ.get(CHOICE) != KEPT or sys.platform != "linux":
        return None
    return getattr(libc or ctypes.CDLL(None), "mallopt", None)  # musl has none


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


def restart_in_huge_pages(argv: list[str]) -> None:
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
