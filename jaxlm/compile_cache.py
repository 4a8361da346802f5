"""JAX's cache of compiled programs, with a checksum on each: a damaged one is compiled anew instead of being run.

JAX stores what XLA compiled in zstd frames that have no checksum: of 500 single bits flipped in the compiled step of a
small model, 285 came back as another program (2026-11-26, jax 0.10.2). It never replaces an entry either, so one that
a killed process left half-written would be compiled again at every start.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import zlib
from typing import Any

from jaxlm.paths import cache_root, is_local

SEAL = b"jaxlm"
"""Ends every entry, before the four bytes of its CRC-32."""
NUM_SEAL_BYTES = len(SEAL) + 4


def use_default() -> str:
    """Keeps compiled steps on disk ($JAXLM_CACHE or ~/.cache/jaxlm), so that a second start is quick; their folder."""
    folder = os.path.join(cache_root(), "compiled")
    use(folder)
    return folder


def use(folder: str) -> None:
    """Compiled programs are kept in a folder, local or gs://, from now on; however short their compilation."""
    import jax

    # Not public: JAX lets one choose the folder of its cache, not the class.
    from jax._src import compilation_cache

    compilation_cache.LRUCache = _sealed_cache()
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def sealed(content: bytes) -> bytes:
    """With a checksum at its end."""
    return content + SEAL + zlib.crc32(content).to_bytes(4, "little")


def unsealed(entry: bytes) -> bytes | None:
    """Without it; None when it does not match."""
    content = entry[:-NUM_SEAL_BYTES]
    return content if entry == sealed(content) else None


@functools.cache
def _sealed_cache() -> Any:
    from jax._src.lru_cache import LRUCache

    class SealedCache(LRUCache):
        """What JAX uses, but for the seals."""

        def get(self, key: str) -> bytes | None:
            entry = super().get(key)
            content = None if entry is None else unsealed(entry)
            if entry is None or content is not None:
                return content
            path = self.path / f"{key}-cache"
            print(f"jaxlm: note: {path} is damaged, or was not finished: compiled anew.", file=sys.stderr)
            path.unlink(missing_ok=True)  # JAX would keep the first
            return None

        def put(self, key: str, value: bytes) -> None:
            path = self.path / f"{key}-cache"
            if self.eviction_enabled or not is_local(path):
                super().put(key, sealed(value))
            elif not path.exists():
                # In one piece: JAX writes in place, and another process would read half of an entry.
                partial = f"{os.fspath(path)}.{os.getpid()}.{threading.get_ident()}.partial"
                try:
                    with open(partial, "wb") as file:
                        file.write(sealed(value))
                    os.replace(partial, path)
                except OSError:
                    with contextlib.suppress(OSError):
                        os.unlink(partial)
                    raise  # JAX says so, and goes on without the entry

    return SealedCache
