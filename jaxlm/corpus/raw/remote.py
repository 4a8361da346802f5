"""Raw files in stores: gs://, s3://, https://, through fsspec. Nothing is fetched before it is read. Imports no JAX."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

from jaxlm.corpus.inputs import has_wildcard, printable
from jaxlm.data.files import refuse_secret
from jaxlm.types import UserError

TRIES = 5
FIRST_WAIT_S = 1.0
"""After the first failure; twice as long after each further one."""
_BLOCK_BYTES = 4 << 20
_PACKAGES = {
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "s3": "s3fs",
    "http": "aiohttp requests",
    "https": "aiohttp requests",
}
_CHANGES = ("ETag", "etag", "generation", "mtime", "updated", "LastModified")
"""What stores call the mark of a version."""
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError)

Found = TypeVar("Found")


def filesystem(path: str) -> tuple[Any, str]:
    """The store of an address, and the path there. Errors: UserError."""
    refuse_secret(path)
    scheme = path.partition("://")[0]
    if scheme not in _PACKAGES:
        raise UserError(
            f"{path}: {scheme}:// is no known kind of storage; use gs://, s3://, https:// or a path here."
        )
    try:
        import fsspec.core

        return fsspec.core.url_to_fs(path)
    except ImportError:
        raise UserError(
            f"{path}: {scheme}:// needs a package that is not installed. Install it (pip install fsspec "
            f"{_PACKAGES[scheme]}), or copy the files to this machine."
        ) from None
    except Exception as error:  # each store has errors of its own
        raise _unreachable(path, error) from None


def expand(path: str, make: Callable[[str, str, int, str, bool], Found]) -> Iterator[Found]:
    """The files of an address: (path, name, bytes, stamp, whether it was named) each, given to `make`."""
    scheme = path.partition("://")[0]
    if has_wildcard(path) and scheme in ("http", "https"):
        raise UserError(
            f"{path}: servers of {scheme}:// have no list of their files; give a list of paths (.paths.gz)."
        )
    store, inside = filesystem(path)
    try:
        if has_wildcard(path):
            root, is_named = inside.split("*")[0].rpartition("/")[0], True
            entries = store.glob(inside, detail=True)
        elif scheme not in ("http", "https") and store.isdir(inside):
            root, is_named = inside.rstrip("/"), False
            entries = store.find(inside, detail=True)
        else:
            info = store.info(inside)
            yield make(
                path, inside.rstrip("/").rpartition("/")[2], int(info.get("size") or 0), _stamp(info), True
            )
            return
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: check its name.") from None
    except Exception as error:  # each store has errors of its own
        raise _unreachable(path, error) from None
    for place, info in sorted(entries.items()):
        name = place[len(root) :].lstrip("/")
        if info.get("type") == "directory" or any(part.startswith(".") for part in name.split("/")):
            continue
        yield make(f"{scheme}://{place}", printable(name), int(info.get("size") or 0), _stamp(info), is_named)


def _stamp(info: dict[str, Any]) -> str:
    return next((str(info[name]) for name in _CHANGES if info.get(name)), "")


def _unreachable(path: str, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [""])[0]
    return UserError(
        f"{path} cannot be reached ({type(error).__name__}: {reason}): check its name, the network and your "
        "credentials."
    )


def open_stream(path: str) -> BinaryIO:
    """The bytes of a file in a store. Errors: UserError, when it is opened and when it is read."""
    store, inside = filesystem(path)
    return io.BufferedReader(
        _Stream(path, lambda: store.open(inside, "rb", block_size=_BLOCK_BYTES)), 1 << 20
    )  # pyright: ignore


class _Stream(io.RawIOBase):
    """A stream that is opened again where it broke off."""

    def __init__(self, path: str, opener: Callable[[], Any], sleep: Callable[[float], None] = time.sleep):
        self.path, self.opener, self.sleep = path, opener, sleep
        self.position = 0
        self.stream = self._try(opener)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence not in (io.SEEK_SET, io.SEEK_CUR):
            raise io.UnsupportedOperation("only from the start, or from here")
        target = offset + (self.position if whence == io.SEEK_CUR else 0)
        if target != self.position:
            self.position = target
            self._try(self._go)
        return self.position

    def _go(self) -> None:
        """Goes to the position; where a server cannot, by reading all that lies before."""
        try:
            self.stream.seek(self.position)
        except (OSError, ValueError, NotImplementedError):
            self._reopen()

    def _reopen(self) -> None:
        self.stream.close()
        self.stream = self.opener()
        try:
            self.stream.seek(self.position)
        except (OSError, ValueError, NotImplementedError):
            left = self.position
            while left and (block := self.stream.read(min(left, _BLOCK_BYTES))):
                left -= len(block)

    def readinto(self, buffer: Any) -> int:
        block = self._try(lambda: self.stream.read(len(buffer)))
        buffer[: len(block)] = block
        self.position += len(block)
        return len(block)

    def _try(self, action: Callable[[], Any]) -> Any:
        wait_s = FIRST_WAIT_S
        for number in range(TRIES):
            try:
                if number and hasattr(self, "stream"):
                    self._reopen()
                return action()
            except _FINAL as error:
                raise UserError(
                    f"{self.path} cannot be read ({type(error).__name__}): check its name."
                ) from None
            except Exception as error:  # each store has errors of its own
                if number == TRIES - 1:
                    raise _unreachable(self.path, error) from None
                self.sleep(wait_s)
                wait_s *= 2
        raise AssertionError

    def close(self) -> None:
        if not self.closed and hasattr(self, "stream"):
            self.stream.close()
        super().close()
