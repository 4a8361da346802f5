"""What the processes of a run agree on about checkpoints. Imports JAX only when called."""

from __future__ import annotations


def process_index() -> int:
    """This process's number."""
    import jax

    return jax.process_index()


def process_count() -> int:
    """How many processes the run has."""
    import jax

    return jax.process_count()


def from_first(values: list[int]) -> list[int]:
    """The first process's list, on all processes: a shared file system may show them different ones."""
    if process_count() == 1:
        return values
    import numpy as np
    from jax.experimental import multihost_utils

    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(values))))
    padded = np.resize(np.array([*values, 0], np.int32), count)
    return multihost_utils.broadcast_one_to_all(padded).tolist() if count else []


def first_text(text: str, limit_bytes: int = 512) -> str:
    """The first text among the processes that is not empty, on all of them; "" if all are."""
    if process_count() == 1:
        return text
    import numpy as np
    from jax.experimental import multihost_utils

    encoded = np.zeros(limit_bytes, np.uint8)
    content = np.frombuffer(text.encode()[:limit_bytes], np.uint8)
    encoded[: len(content)] = content
    rows = np.asarray(multihost_utils.process_allgather(encoded)).reshape(process_count(), limit_bytes)
    texts = [row[row != 0].tobytes().decode(errors="replace") for row in rows]
    return next((t for t in texts if t), "")
