"""What a checkpoint is on disk, how we know that it is whole, and which ones are kept. Imports no JAX.

    <directory>/400/                        one step
      integrity.json                        size and checksums of every file below: the seal
      meta/metadata                         `Meta` as JSON
      state/...                             the arrays (Orbax: OCDBT of Zarr chunks)
    <directory>/400.orbax-checkpoint-tmp/   a save that is under way, or was interrupted
    <directory>/400.damaged/                a step that failed its checks, set aside; never deleted by us
    <directory>/marks.json                  what was completed after each step was saved

The seal is written last, while the folder still has its temporary name, and the rename commits both: a
step with a seal was complete. Orbax alone would not do: it notices missing and truncated files and damage to
its index, but a bit flipped in the weights comes back as another weight (compressed or not, Zarr 2 or 3).
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import threading
import time
import zlib
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import xxhash
from etils import epath

from jaxlm.checkpoint_meta import FORMAT, Meta
from jaxlm.limits import Row, TooLarge, check, is_inside, parse_json, read_bytes, read_json, short
from jaxlm.paths import is_local
from jaxlm.types import JSON_ERRORS, UserError

SEAL = "integrity.json"
META = "meta/metadata"
STATE = "state"
MARKS = "marks.json"
UNFINISHED = ".orbax-checkpoint-tmp"
DAMAGED = ".damaged"
DELETING = ".deleting"

UNSEALED = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Orbax's own marks in the folder of a step: written after the seal, and read by nobody here."""
BLOCK_BYTES = 64 << 20
"""A large file has one checksum per block, so that several threads can share it."""
BUFFER_BYTES = 1 << 20
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
DISK_WORDS = (
    "No space left",
    "quota exceeded",
    "File too large",
    "Read-only file system",
    "Permission denied",
    "Input/output error",
)


_DTYPE = re.compile(r"bool|u?int\d{1,2}|bfloat16|(float|complex)\d{1,3}(_\w{1,16})?|key<\w{1,16}>")
_SEAL_SHAPE = {"algorithm?": str, "files": {str: Row((int, [int]))}}
_META_SHAPE = {
    "format": int, "step": int, "config": dict, "tokenizer_sha256": str, "corpus_sha256": {str: str}, "tokens": int,
    "epochs": {str: float}, "wall_time_s": float, "eval_loss": (float, None), "extra": dict, "version": str,
    "saved_at": float, "arrays": {str: Row(([int], str))},
}  # fmt: skip
"""All but format and step may be missing: younger versions of jaxlm have other fields."""


class _Crc32:
    """CRC-32 with the methods of xxhash's classes."""

    def __init__(self):
        self._crc = 0

    def update(self, content: Any) -> None:
        self._crc = zlib.crc32(content, self._crc)

    def intdigest(self) -> int:
        return self._crc


HASHES = {"xxh3_64": xxhash.xxh3_64, "crc32": _Crc32}
"""Kinds of checksums. Seals of older versions have CRC-32, a tenth as fast, and do not say so."""
ALGORITHM = "xxh3_64"
LARGEST = 2**63 - 1
"""Of the checksums one bit is left out: many readers of JSON take no larger number."""


class DamagedCheckpoint(Exception):
    """One file of a checkpoint is not what was written; the text names it and says how."""

    def __init__(self, file: str, reason: str):
        super().__init__(f"{file} {reason}")
        self.file = file
        self.reason = reason


class FileSeal(NamedTuple):
    """What a file was when it was sealed."""

    size: int
    checksums: tuple[int, ...]
    """One for each block of BLOCK_BYTES; empty on object stores, which check their objects themselves."""
    algorithm: str
    """Of HASHES."""


def absolute(path: epath.PathLike) -> epath.Path:
    """The same place whatever the current folder; gs:// and its like as they are."""
    return epath.Path(os.path.abspath(path) if is_local(path) else path)


def list_steps(directory: epath.PathLike) -> list[int]:
    """Steps that have a folder, ascending; whether they are whole is for `verify` to say."""
    return sorted(int(path.name) for path in _children(directory) if path.name.isdecimal())


def list_leftovers(directory: epath.PathLike, suffix: str) -> list[epath.Path]:
    """Folders beside the steps: UNFINISHED, DAMAGED or DELETING."""
    return sorted(path for path in _children(directory) if suffix in path.name)


def _children(directory: epath.PathLike) -> list[epath.Path]:
    directory = epath.Path(directory)
    return list(directory.iterdir()) if directory.is_dir() else []


def seal(folder: epath.PathLike) -> None:
    """Writes the seal of a folder whose other files are all there.

    Reads every byte back (1.5 GB in a quarter of a second on one core, from the page cache). On an object store
    only sizes are recorded.
    """
    folder = epath.Path(folder)
    files = {name: path for name, path in _files(folder) if name not in (*UNSEALED, SEAL)}
    local = is_local(folder)
    sizes = {name: path.stat().length for name, path in files.items()}
    body = {
        "format": FORMAT,
        "block_bytes": BLOCK_BYTES,
        "algorithm": ALGORITHM,
        "files": {
            name: [size, _checksums(files[name], size) if local else []] for name, size in sizes.items()
        },
    }
    body["crc32"] = _canonical_crc(body)
    content = json.dumps(body, indent=1).encode()
    if not local:
        (folder / SEAL).write_bytes(content)
        return
    with open(folder / SEAL, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _files(folder: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")
        else:
            yield f"{prefix}{path.name}", path


def _canonical_crc(body: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps({k: v for k, v in body.items() if k != "crc32"}, sort_keys=True).encode())


def read_seal(folder: epath.PathLike) -> dict[str, FileSeal]:
    """File -> its seal.

    Errors: DamagedCheckpoint when there is none (the save was not finished) or it is damaged itself.
    """
    path = epath.Path(folder) / SEAL
    try:
        body = read_json(path)
    except FileNotFoundError:
        raise DamagedCheckpoint(SEAL, "is missing: the save was not finished") from None
    except TooLarge as error:
        raise DamagedCheckpoint(SEAL, f"cannot be parsed: {error}") from None
    except JSON_ERRORS:
        raise DamagedCheckpoint(SEAL, "cannot be parsed: it is truncated or damaged") from None
    if not isinstance(body, dict) or body.get("crc32") != _canonical_crc(body):
        raise DamagedCheckpoint(SEAL, "does not match its own checksum: it was damaged or edited")
    try:
        check(body, _SEAL_SHAPE)
    except ValueError as error:
        raise DamagedCheckpoint(SEAL, f"was not written by jaxlm: {error}") from None
    if (outside := next((name for name in body["files"] if not is_inside(name)), None)) is not None:
        raise DamagedCheckpoint(SEAL, f"names the file {short(outside)}, which is not in the folder")
    algorithm = body.get("algorithm", "crc32")
    if algorithm not in HASHES:
        raise DamagedCheckpoint(SEAL, f"has checksums of the kind {short(algorithm)}: upgrade jaxlm")
    return {name: FileSeal(size, tuple(sums), algorithm) for name, (size, sums) in body["files"].items()}


def verify(folder: epath.PathLike, *, checksums: bool = True, part: int = 0, num_parts: int = 1) -> None:
    """Compares a checkpoint with its seal: every file there, every size right, every checksum equal.

    Args:
      checksums: False looks at names and sizes only, which takes no time.
      part, num_parts: check only this share of the blocks: hosts divide the reading among them.

    Errors: DamagedCheckpoint that names the first bad file.
    """
    folder = epath.Path(folder)
    seals = read_seal(folder)
    for name, sealed in seals.items():
        path = folder / name
        if not path.exists():
            raise DamagedCheckpoint(name, "is missing")
        if (size := path.stat().length) != sealed.size:
            how = "is truncated" if size < sealed.size else "is longer than what was written"
            raise DamagedCheckpoint(name, f"{how}: {size:,} bytes instead of {sealed.size:,}")
    if not checksums:
        return
    blocks = [(name, i, one) for name, sealed in seals.items() for i, one in enumerate(sealed.checksums)]
    local = threading.local()

    def check(block: tuple[str, int, int]) -> bool:
        name, index, expected = block
        if not hasattr(local, "buffer"):
            local.buffer = memoryview(bytearray(BUFFER_BYTES))
        return _block_checksum(folder / name, index, local.buffer, seals[name].algorithm) == expected

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="verify") as pool:
        mine = blocks[part::num_parts]
        for (name, index, _), good in zip(mine, pool.map(check, mine)):
            if not good:
                where = f" from byte {index * BLOCK_BYTES:,} on" if index else ""
                raise DamagedCheckpoint(
                    name, f"does not match its checksum{where}: it changed since the save"
                )


def _checksums(path: epath.Path, size: int) -> list[int]:
    buffer = memoryview(bytearray(BUFFER_BYTES))
    num_blocks = max(1, -(-size // BLOCK_BYTES))
    return [_block_checksum(path, index, buffer, ALGORITHM) for index in range(num_blocks)]


def _block_checksum(path: epath.Path, index: int, buffer: memoryview, algorithm: str) -> int:
    checksum, left = HASHES[algorithm](), BLOCK_BYTES
    with open(path, "rb", buffering=0) as file:
        file.seek(index * BLOCK_BYTES)
        while left and (count := file.readinto(buffer[: min(left, len(buffer))])):
            checksum.update(buffer[:count])
            left -= count
    return checksum.intdigest() & LARGEST


def _checksum(content: bytes, algorithm: str) -> int:
    checksum = HASHES[algorithm]()
    checksum.update(content)
    return checksum.intdigest() & LARGEST


def read_meta(folder: epath.PathLike) -> Meta:
    """The meta of one step, checked against the seal.

    Errors: DamagedCheckpoint; UserError for a later format.
    """
    folder = epath.Path(folder)
    sealed = read_seal(folder).get(META)
    if sealed is None:
        raise DamagedCheckpoint(SEAL, f"does not list {META}")
    try:
        content = read_bytes(folder / META)
    except FileNotFoundError:
        raise DamagedCheckpoint(META, "is missing") from None
    except TooLarge as error:
        raise DamagedCheckpoint(META, f"cannot be read: {error}") from None
    if len(content) != sealed.size or (
        sealed.checksums and _checksum(content, sealed.algorithm) != sealed.checksums[0]
    ):
        raise DamagedCheckpoint(META, "does not match its checksum: it changed since the save")
    try:
        data = parse_json(content)
        check(
            data,
            {key if key in ("format", "step", "arrays") else f"{key}?": s for key, s in _META_SHAPE.items()},
        )
    except JSON_ERRORS as error:
        raise DamagedCheckpoint(META, f"was not written by jaxlm: {error}") from None
    for name, (_, dtype) in data["arrays"].items():
        if not _DTYPE.fullmatch(dtype):
            raise DamagedCheckpoint(
                META, f"was not written by jaxlm: {short(name)} has the type {short(dtype)}"
            )
    return Meta.from_json(data)


def size_bytes(folder: epath.PathLike) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().length for _, path in _files(epath.Path(folder)))


def reasons_kept(
    eval_losses: Mapping[int, float | None],
    *,
    keep_last: int,
    keep_every_steps: int | None,
    keep_best: bool,
    pinned: Collection[int] = (),
) -> dict[int, list[str]]:
    """Step -> why it is kept (`last`, `every 1000`, `best`, `replay`); no reason: it may be deleted.

    Args:
      eval_losses: held-out loss of every good step, None where it is not known.
      pinned: steps from which a bad step is to be repeated.
    """
    steps = sorted(eval_losses)
    losses = {step: loss for step in steps if (loss := eval_losses[step]) is not None and math.isfinite(loss)}
    best = min(losses, key=lambda step: (losses[step], step)) if keep_best and losses else None
    reasons: dict[int, list[str]] = {}
    for place, step in enumerate(reversed(steps)):
        reasons[step] = [
            *(["last"] if place < max(1, keep_last) else []),
            *([f"every {keep_every_steps}"] if keep_every_steps and step % keep_every_steps == 0 else []),
            *(["best"] if step == best else []),
            *(["replay"] if step in pinned else []),
        ]
    return reasons


def delete_step(folder: epath.PathLike) -> None:
    """Deletes a step. Killed halfway, it leaves no folder that looks like a damaged step."""
    folder = epath.Path(folder)
    if is_local(folder):
        doomed = folder.parent / f"{folder.name}{DELETING}"
        os.rename(folder, doomed)
        folder = doomed
    folder.rmtree()


def set_aside(folder: epath.PathLike) -> epath.Path:
    """Renames a damaged step (or file) to `<step>.damaged` (`.damaged-2`, ...) and returns the new path."""
    folder = epath.Path(folder)
    target, count = folder.parent / f"{folder.name}{DAMAGED}", 1
    while target.exists():
        count += 1
        target = folder.parent / f"{folder.name}{DAMAGED}-{count}"
    folder.rename(target)
    return target


def read_marks(directory: epath.PathLike) -> dict[int, dict[str, float]]:
    """Step -> {name: value} of what was completed after the step was saved, such as its evaluation."""
    path = epath.Path(directory) / MARKS
    if not path.exists():
        return {}
    try:
        marks = read_json(path)
        check(marks, {str: {str: float}})
        return {int(step): dict(names) for step, names in marks.items()}
    except JSON_ERRORS as error:
        raise UserError(
            f"{path} is no JSON of marks ({error}). Delete it: what it lists will be done again."
        ) from None


def write_mark(directory: epath.PathLike, step: int, name: str, value: float | None = None) -> None:
    """Adds one mark, atomically; marks of steps that no longer exist are dropped."""
    directory = epath.Path(directory)
    steps = set(list_steps(directory))
    marks = {s: names for s, names in read_marks(directory).items() if s in steps}
    marks.setdefault(step, {})[name] = time.time() if value is None else value
    partial = directory / f"{MARKS}.partial"
    partial.write_text(json.dumps(marks, sort_keys=True))
    partial.replace(directory / MARKS)


def disk_reason(error: BaseException) -> str | None:
    """Why the disk refused, in a few words; None for an error of another kind."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in DISK_ERRORS:
            return seen.strerror or str(seen)
        for word in DISK_WORDS:
            if word in str(seen):
                return word
        seen = seen.__cause__ or seen.__context__
    return None
