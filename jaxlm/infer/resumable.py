"""JSONL output that takes hours to compute: a run that was killed goes on where its output ends."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from jaxlm.data.files import disk_error, is_pipe, sync_folder
from jaxlm.limits import parse_json
from jaxlm.paths import is_local
from jaxlm.types import JSON_ERRORS, UserError


class Output:
    """The open file. Made by `resumable`."""

    def __init__(self, file: BinaryIO, path: str, done: list[dict[str, Any]]):
        self._file, self._path = file, path
        self.done = done
        """Records that an earlier process has written."""

    def write(self, records: Sequence[dict[str, Any]]) -> None:
        """Appends records; after it they survive a kill, and a power cut."""
        try:
            for record in records:
                self._file.write(
                    json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"
                )
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise disk_error(self._path, error) or error from None


@contextlib.contextmanager
def resumable(path: str | os.PathLike, settings: dict[str, Any], chunk: int = 1) -> Iterator[Output]:
    """A file that appears under its name when the block ends without an error.

    Until then its lines are in PATH.<hash of settings>.partial, so that what was begun with other settings is never
    continued. After a kill, whole chunks are kept.

    Args:
      settings: all that decides about the lines.
      chunk: how many records are computed together.

    Errors: UserError when the file exists, cannot be written, or another process is writing it.
    """
    import fcntl

    path = os.fspath(path)
    if not is_local(path) or is_pipe(path):
        raise UserError(f"--output={path} must be a file of this machine: it is appended to.")
    if os.path.exists(path):
        raise UserError(f"--output={path} exists: it is complete. Choose another name, or delete it.")
    key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]
    partial = f"{path}.{key}.partial"
    try:
        file = open(partial, "a+b")
    except OSError as error:
        reason = UserError(f"--output={path} cannot be written ({error.strerror}): choose another place.")
        raise disk_error(path, error) or reason from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--output={path} is being written by another process: wait for it.") from None
        file.seek(0)
        lines = [line for line in file if line.endswith(b"\n")]
        lines = lines[: len(lines) - len(lines) % chunk]
        file.truncate(sum(map(len, lines)))
        try:
            done = [parse_json(line) for line in lines]
        except JSON_ERRORS as error:
            raise UserError(
                f"{partial}, which an interrupted run left, is damaged ({error}): delete it, to begin anew."
            ) from None
        yield Output(file, path, done)
        os.rename(partial, path)
    sync_folder(os.path.dirname(path))
