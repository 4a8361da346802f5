"""A .npy file that is written row by row, its length known at the end."""

from __future__ import annotations

import hashlib
import os
from typing import IO, Any

import numpy as np

from jaxlm.data.files import write_npy_header


class GrowingArray:
    """A .npy file that is written row by row."""

    def __init__(self, path: str, dtype: Any, width: tuple[int, ...] = ()):
        self._file: IO[bytes] = open(path, "w+b")
        self._dtype, self._width, self._rows = np.dtype(dtype), width, 0
        self.sha = hashlib.sha256()
        write_npy_header(self._file, self._dtype, self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """So far."""
        return (self._rows, *self._width)

    def add(self, rows: Any) -> None:
        """Appends rows."""
        array = np.asarray(rows, self._dtype).reshape(-1, *self._width)
        self._rows += len(array)
        self.sha.update(content := array.tobytes())
        self._file.write(content)

    def close(self) -> None:
        """Writes the final shape."""
        self._file.seek(0)
        write_npy_header(self._file, self._dtype, self.shape)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
