"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from jaxlm.limits import TooLarge, read_bytes
from jaxlm.paths import is_local
from jaxlm.redact import redact
from jaxlm.types import UserError

MAX_FILE_BYTES = 256 << 20
"""Of a file that is read whole, unless its kind has a limit of its own; the largest known tokenizer has 35 MB."""


def reachable(path: epath.PathLike) -> epath.Path:
    """The path, after a first look at it; a UserError says why a remote one cannot be reached."""
    if is_local(path):
        return epath.Path(path)
    scheme = os.fspath(path).partition("://")[0]
    refuse_secret(os.fspath(path))
    try:
        found = epath.Path(path)
        found.exists()
    except KeyError:
        raise UserError(
            f"{path}: {scheme}:// is no known kind of storage; use gs://, s3:// or a folder of this machine."
        ) from None
    except ImportError as error:
        raise UserError(
            f"{path}: {scheme}:// needs a package that is not installed ({error}). Install it with pip (gcsfs for "
            "gs://, s3fs for s3://), or copy the files to this machine."
        ) from None
    except Exception as error:  # each store has errors of its own
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{path} cannot be reached ({type(error).__name__}: {reason}): check its name, the network and "
            "your credentials."
        ) from None
    return found


def refuse_secret(path: str) -> None:
    """UserError for an address that holds a password or a token."""
    if (shown := redact(path)) != path:
        raise UserError(
            f"{shown} holds a secret, and paths are written into logs and manifests. Leave it out: credentials of "
            "gs:// and s3:// come from their own files and variables of the environment "
            "(GOOGLE_APPLICATION_CREDENTIALS, AWS_PROFILE)."
        )


def read_file(path: epath.PathLike, what: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The content of a file that a user named; a UserError says why it cannot be read.

    Args:
      what: it should be, for the error: "a sentencepiece .model file".
      max_bytes: the most that is read of it.
    """
    try:
        if is_pipe(path):
            raise UserError(f"{path} is no file but a pipe or device: give {what}.")
        return read_bytes(reachable(path), max_bytes)
    except TooLarge as error:
        raise UserError(f"{path} is too large: {error}. Give {what}.") from None
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give {what}.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: give {what} in it.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): give {what}.") from None


def is_pipe(path: epath.PathLike) -> bool:
    """Whether there is something that only looks like a file: opening a pipe waits for ever for its other end."""
    if not is_local(path) or not os.path.exists(path):
        return False
    mode = os.stat(path).st_mode
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def disk_error(path: epath.PathLike, error: BaseException) -> UserError | None:
    """A one-line UserError for a disk that is full or may not be written to; None for any other error."""
    code = getattr(error, "errno", None)
    text = str(error)
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "quota exceeded" in text:
        return UserError(
            f"{path}: the disk is full; nothing half-written was kept. Free some space and run again."
        )
    if code == errno.EFBIG or "File too large" in text:
        return UserError(
            f"{path}: a file grew larger than this disk or account allows (see `ulimit -f`); nothing half-written "
            "was kept. Choose another folder, or smaller shards (--shard-tokens)."
        )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"{path}: not allowed to write here ({os.strerror(code)}); choose another folder.")
    return None


def write_atomic(path: epath.PathLike, content: bytes) -> None:
    """Writes a file so that a reader sees the old content, the new content, or no file; never a part."""
    target = epath.Path(path)
    if not is_local(target):
        target.write_bytes(content)  # an object store shows an object when its upload is complete
        return
    partial = f"{os.fspath(target)}.{uuid.uuid4().hex[:8]}.partial"
    if is_pipe(target):  # else /dev/null itself would be replaced
        raise UserError(f"{path} is no file but a pipe or device: choose another place.")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
        sync_folder(os.path.dirname(os.fspath(target)))
    except BaseException as error:
        if os.path.exists(partial):
            os.unlink(partial)
        if isinstance(error, OSError):
            reason = UserError(f"{path} cannot be written ({error.strerror or error}): choose another place.")
            raise (disk_error(path, error) or reason) from None
        raise


def make_folder(path: epath.PathLike) -> None:
    """Makes a folder and those above it; a UserError says why one cannot be made."""
    try:
        reachable(path).mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{path} is a file, and has to be a folder: choose another path.") from None
    except OSError as error:
        reason = UserError(f"{path} cannot be a folder ({error.strerror}): choose another path.")
        raise disk_error(path, error) or reason from None


@contextlib.contextmanager
def exclusive(path: epath.PathLike) -> Iterator[None]:
    """Waits until no other process of this machine holds the lock; a process that dies lets go of it.

    Remote paths have no lock: there the last writer wins, with the same content.
    """
    if not is_local(path):
        yield
        return
    import fcntl

    path = os.fspath(path)
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            if os.path.isdir(os.path.dirname(path) or "."):
                raise
            make_folder(os.path.dirname(path))  # the last holder took the whole folder away
            continue
        except OSError as error:
            raise disk_error(path, error) or error from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_file_at(path, descriptor):
                try:
                    yield
                finally:
                    with contextlib.suppress(FileNotFoundError):  # the whole folder was deleted
                        os.unlink(path)
                return
        finally:
            os.close(descriptor)


def _is_file_at(path: epath.PathLike, descriptor: int) -> bool:
    """False once the lock's last holder has removed the file: another process may hold a new one."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def write_npy_header(file: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    """Writes the header of a .npy file. NumPy leaves room in it for any first dim: it can be written again in place."""
    import numpy as np

    description = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(file, description)


def sync_folder(path: str) -> None:
    """Makes renames inside the folder survive a power cut."""
    descriptor = os.open(path or ".", os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
