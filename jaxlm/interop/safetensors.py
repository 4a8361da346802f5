"""The safetensors format: tensors read through memory maps, and written one after the other. Imports no JAX.

A file is 8 bytes with the length of a header, the header in JSON (name -> dtype, shape, place), and the tensors,
little-endian and row-major, without gaps. Nothing in it is ever executed.

Source: https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxlm.data.files import disk_error, is_pipe, read_file
from jaxlm.limits import MAX_JSON_BYTES, check, parse_json
from jaxlm.types import JSON_ERRORS, UserError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000
"""As in the reference implementation: a longer header is an attack, or no header."""
MAX_HEADER_VALUES = 4_000_000
"""In a header: a tensor has about ten."""
MAX_SHARD_BYTES = 5_000_000_000
"""Of a written file, "5GB", as `save_pretrained` cuts them."""
MAX_DIMS, MAX_SIZE = 8, 2**48
"""Of a tensor: beyond them there is no weight, and numpy ends somewhere."""

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
"""Names of the format -> numpy dtype."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Spec(NamedTuple):
    """Dtype and shape of one tensor."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFile:
    """One file, mapped into memory: opening it reads the header alone.

    Errors: UserError when the file is cut short, has another format, or a header that contradicts itself.
    """

    def __init__(self, path: os.PathLike | str):
        self.path = Path(path)
        if is_pipe(self.path):
            raise self._fail("it is a pipe or device")
        try:
            with open(self.path, "rb") as file:
                self._size = os.fstat(file.fileno()).st_size
                self._map: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self._size else b""
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror or error}).") from None
        header = self._read_header()
        self.specs: dict[str, Spec] = {}
        self._starts: dict[str, int] = {}
        for name, entry in header.items():
            if name != "__metadata__":
                self._add(name, entry)
        self._check_places()

    def _fail(self, reason: str) -> UserError:
        return UserError(f"{self.path} is damaged or no safetensors file: {reason}. Fetch it again.")

    def _read_header(self) -> dict[str, Any]:
        if self._size < 8:
            raise self._fail(f"it has {self._size} bytes, fewer than the 8 that start such a file")
        length = int.from_bytes(self._map[:8], "little")
        if length > MAX_HEADER_BYTES:
            raise self._fail(f"its header would have {length:,} bytes")
        self._begin = 8 + length
        if self._begin > self._size:
            raise self._fail(f"it is cut short: {self._size:,} bytes, of which {length:,} should be header")
        try:
            header = parse_json(self._map[8 : self._begin], max_values=MAX_HEADER_VALUES, pairs=_no_twins)
        except JSON_ERRORS as error:
            raise self._fail(f"its header is not JSON ({error})") from None
        if not isinstance(header, dict):
            raise self._fail("its header is not a JSON object")
        return header

    def _add(self, name: str, entry: Any) -> None:
        try:
            dtype_name, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            counts = (
                len(shape) <= MAX_DIMS,
                *(type(n) is int and 0 <= n < MAX_SIZE for n in (*shape, start, end)),
            )
            if not (isinstance(dtype_name, str) and name.isprintable() and all(counts)):
                raise ValueError
        except (TypeError, KeyError, ValueError):
            raise self._fail(f"the entry of {name!r} in its header is malformed") from None
        if dtype_name not in DTYPES:
            raise UserError(
                f"{self.path}: {name} has dtype {dtype_name}, which cannot be read; there are {', '.join(DTYPES)}. "
                "Is the checkpoint quantised? Take the original one."
            )
        spec = Spec(DTYPES[dtype_name], shape)
        if end - start != spec.num_bytes:
            raise self._fail(
                f"{name} is {dtype_name} {list(shape)}, {spec.num_bytes:,} bytes, but has {end - start:,}"
            )
        if self._begin + end > self._size:
            raise self._fail(
                f"it is cut short: {name} ends at byte {self._begin + end:,}, the file at {self._size:,}"
            )
        self.specs[name], self._starts[name] = spec, self._begin + start

    def _check_places(self) -> None:
        """The format has no gaps and no overlaps: two names for the same bytes would hide what is there."""
        place = self._begin
        for name in sorted(self.specs, key=lambda name: (self._starts[name], self.specs[name].num_bytes)):
            if self._starts[name] != place:
                raise self._fail(f"{name} begins at byte {self._starts[name]:,} instead of {place:,}")
            place += self.specs[name].num_bytes
        if place != self._size:
            raise self._fail(f"{self._size - place:,} bytes at its end belong to no tensor")

    def read(self, name: str) -> np.ndarray:
        """The tensor, read-only, in the file's own memory: nothing is copied until somebody does."""
        spec = self.specs[name]
        flat = np.frombuffer(self._map, spec.dtype, math.prod(spec.shape), self._starts[name])
        return flat.reshape(spec.shape)

    def forget(self, name: str) -> None:
        """Gives the memory of a tensor's pages back, which would otherwise count as this process's."""
        if not self.specs[name].num_bytes or not hasattr(self._map, "madvise"):
            return
        page = mmap.PAGESIZE
        start = self._starts[name] // page * page
        end = self._starts[name] + self.specs[name].num_bytes
        self._map.madvise(mmap.MADV_DONTNEED, start, end - start)


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


class Tensors:
    """All tensors of a checkpoint folder, in one file or in many with an index.

    Errors: UserError when there are none, when the index and the files contradict each other, or when the index
    names a file outside the folder.
    """

    def __init__(self, folder: os.PathLike | str):
        self.folder = Path(folder)
        self._file_of: dict[str, TensorFile] = {}
        weight_map = self._weight_map()
        opened = {name: TensorFile(self._inside(name)) for name in dict.fromkeys(weight_map.values())}
        for file_name, file in opened.items():
            for name in file.specs:
                if weight_map.get(name, file_name if not self._indexed else None) != file_name:
                    raise UserError(
                        f"{file.path} holds {name}, which {INDEX_FILE} places in "
                        f"{weight_map.get(name, 'no file')}: index and files belong to different checkpoints."
                    )
                self._file_of[name] = file
        for name, file_name in weight_map.items():
            if self._indexed and name not in self._file_of:
                raise UserError(f"{self.folder / file_name} lacks {name}, which {INDEX_FILE} places there.")

    def _weight_map(self) -> dict[str, str]:
        """Tensor -> file name; of a single file, one entry that stands for all."""
        index = self.folder / INDEX_FILE
        found = sorted(path.name for path in self.folder.glob("*.safetensors"))
        self._indexed = (
            index.exists() and SINGLE_FILE not in found
        )  # with both, transformers takes the file, too
        if self._indexed:
            content = read_file(index, "the index of a checkpoint", MAX_JSON_BYTES)
            try:
                found = parse_json(content, pairs=_no_twins)
                check(found, {"weight_map": {str: str}})
                if not (weight_map := found["weight_map"]):
                    raise ValueError("weight_map names no file")
            except JSON_ERRORS as error:
                raise UserError(f"{index} is no index of a checkpoint ({error!r}). Fetch it again.") from None
            return weight_map
        if SINGLE_FILE in found:
            return {"": SINGLE_FILE}
        if len(found) == 1:
            return {"": found[0]}
        if found:
            raise UserError(
                f"{self.folder} holds {len(found)} safetensors files ({found[0]}, ...) but no {INDEX_FILE} that "
                "says which belong together. Fetch the index, too."
            )
        raise UserError(f"{self.folder} holds no safetensors file.{_other_formats(self.folder)}")

    def _inside(self, name: str) -> Path:
        """The file of this name, which must be in the folder (or, of a hub's cache, in the blobs beside it)."""
        path, index = self.folder / name, self.folder / INDEX_FILE
        if Path(name).name != name or name in ("", ".", "..") or not name.isprintable():
            raise UserError(
                f"{index} names the file {name!r}: only names of files in the folder itself are followed."
            )
        if not os.path.exists(path):
            reason = f"{INDEX_FILE} names it" if self._indexed else "there is a link of that name"
            raise UserError(f"{path} is missing, though {reason}. Fetch it, too.")
        real, homes = path.resolve(), [self.folder.resolve()]
        if self.folder.resolve().parent.name == "snapshots":
            homes.append(self.folder.resolve().parent.parent / "blobs")
        if real.parent not in homes:
            raise UserError(f"{path} is a link to {real}, outside of the folder: it is not followed.")
        return path

    @property
    def specs(self) -> dict[str, Spec]:
        """Name -> dtype and shape."""
        return {name: file.specs[name] for name, file in self._file_of.items()}

    def read(self, name: str) -> np.ndarray:
        """As `TensorFile.read`."""
        return self._file_of[name].read(name)

    def forget(self, name: str) -> None:
        """As `TensorFile.forget`."""
        self._file_of[name].forget(name)


def _other_formats(folder: Path) -> str:
    """What to do about weights that are there in another format."""
    pickles = sorted(folder.glob("pytorch_model*.bin")) + sorted(folder.glob("*.pth"))
    if pickles:
        return (
            f" {pickles[0].name} is a pickle, which can run any code when it is read, and is refused. Where you trust "
            "it: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER), with transformers, writes "
            "safetensors."
        )
    if other := sorted(folder.glob("*.gguf")):
        return f" {other[0].name} holds quantised weights: take the original checkpoint."
    return " Give the folder of a Hugging Face checkpoint, with config.json and model.safetensors."


def plan_shards(specs: Mapping[str, Spec], max_shard_bytes: int = MAX_SHARD_BYTES) -> dict[str, list[str]]:
    """File name -> its tensors, in order, cut before max_shard_bytes are exceeded (or after one tensor)."""
    shards: list[list[str]] = [[]]
    room = max_shard_bytes
    for name, spec in specs.items():
        if shards[-1] and spec.num_bytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= spec.num_bytes
    if len(shards) == 1:
        return {SINGLE_FILE: shards[0]}
    count = len(shards)
    return {f"model-{i:05d}-of-{count:05d}.safetensors": names for i, names in enumerate(shards, start=1)}


def write_folder(
    folder: os.PathLike | str,
    specs: Mapping[str, Spec],
    read: Callable[[str], np.ndarray],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, str]:
    """Writes a checkpoint as `save_pretrained` would; returns file name -> SHA-256 of what was written.

    Holds one tensor at a time.

    Args:
      specs: in the order in which they are shared out among files.
      read: the tensor of a name; asked for once.
    """
    shards, hashes = plan_shards(specs, max_shard_bytes), {}
    for file_name, names in shards.items():
        # Within a file as the reference implementation puts them, so that a file in and out again is the same file.
        names = sorted(names, key=lambda name: (-specs[name].dtype.itemsize, name))
        hashes[file_name] = write_file(
            Path(folder) / file_name, {name: specs[name] for name in names}, ((n, read(n)) for n in names)
        )
    if SINGLE_FILE not in shards:
        total = sum(spec.num_bytes for spec in specs.values())
        weight_map = {name: file_name for file_name, names in shards.items() for name in names}
        index = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2).encode()
        (Path(folder) / INDEX_FILE).write_bytes(index)
        hashes[INDEX_FILE] = hashlib.sha256(index).hexdigest()
    return hashes


def write_file(path: Path, specs: Mapping[str, Spec], tensors: Iterable[tuple[str, np.ndarray]]) -> str:
    """Writes one file; returns its SHA-256. Errors: UserError when the disk is full or may not be written to."""
    digest = hashlib.sha256()
    try:
        with open(path, "wb") as file:
            for part in _parts(specs, tensors):
                digest.update(part)
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise (disk_error(path, error) or error) from None
        raise
    return digest.hexdigest()


def _parts(
    specs: Mapping[str, Spec], tensors: Iterable[tuple[str, np.ndarray]]
) -> Iterator[bytes | memoryview]:
    place = 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for one of those it knows
    for name, spec in specs.items():
        end = place + spec.num_bytes
        header[name] = {
            "dtype": NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [place, end],
        }
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    yield len(text).to_bytes(8, "little") + text
    for name, tensor in tensors:
        if Spec(tensor.dtype, tensor.shape) != specs[name]:
            raise AssertionError(f"{name}: {tensor.dtype} {tensor.shape} is not {specs[name]}")
        # As bytes: the buffer protocol does not know bfloat16.
        yield np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
