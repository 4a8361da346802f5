"""Arrays in .npy files from outside: the header is compared with the file before memory is taken. No pickles."""

from __future__ import annotations

import io
import math
import os
from typing import Any

import numpy as np
from etils import epath

from jaxlm.paths import is_local

KINDS = "biuf"
"""Of a dtype: bool, whole numbers, floats. Objects would be pickles, and records are nobody's here."""
MAX_DIMS = 4


def read_npy(path: epath.PathLike, *, mapped: bool = False) -> np.ndarray:
    """The array of a .npy file.

    Args:
      mapped: a local one through a memory map, read-only.

    Errors: those of the file system; ValueError where it is no such file, or not as long as its header says.
    """
    path = epath.Path(path)
    with path.open("rb") as file:
        dtype, shape, place = read_header(file)
        size = path.stat().length
        if place + math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{size:,} bytes, but its header says {list(shape)} of {dtype}")
        if not mapped or not is_local(path) or 0 in shape:
            return np.frombuffer(file.read(), dtype).reshape(shape)
    return np.memmap(os.fspath(path), dtype, "r", place, shape)


def parse_npy(content: bytes) -> np.ndarray:
    """The array of a .npy file that was read already, read-only. Errors: ValueError, as `read_npy`."""
    dtype, shape, place = read_header(io.BytesIO(content))
    if place + math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"{len(content):,} bytes, but its header says {list(shape)} of {dtype}")
    return np.frombuffer(content, dtype, offset=place).reshape(shape)


def read_header(file: Any) -> tuple[np.dtype, tuple[int, ...], int]:
    """(dtype, shape, where the numbers begin) of an open file."""
    start = io.BytesIO(file.read(1 << 14))
    try:
        version = np.lib.format.read_magic(start)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
            version
        ]
        shape, fortran, dtype = read(start)
    except Exception as error:  # of its parser: tokenize.TokenError, SyntaxError, KeyError, ...
        raise ValueError(f"no header of a .npy file ({type(error).__name__})") from None
    if fortran and len(shape) > 1:
        raise ValueError("its numbers are in Fortran's order")
    if dtype.kind not in KINDS or not dtype.itemsize or len(shape) > MAX_DIMS or any(n < 0 for n in shape):
        raise ValueError(f"its header says {list(shape)[:9]} of {dtype!s:.40}")
    file.seek(start.tell())
    return dtype, shape, start.tell()
