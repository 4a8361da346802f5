"""Examples on disk: token ids, which of them are trained on, and labels; see docs/design/0006-fine-tuning.md.

FOLDER/examples.json    what it holds, written last
       tokens.npy       uint16 or uint32 [num_tokens], examples end to end
       trained.npy      bool [num_tokens]
       ends.npy         int64 [N]: example i is tokens [ends[i - 1], ends[i])
       places.npy       int64 [N, 2]: index of the file, line or row in it
       labels.npy       int32 or float32: index of a name in the manifest, or a number; of all examples end to end
       label_ends.npy   int64 [N]: those of example i are labels [label_ends[i - 1], label_ends[i])
       crc32.npy        uint32: the checksums of all blocks of 4,096 bytes of these files, in this order

Every block is compared with its checksum when it is read. The checksums are covered by `examples.json`, which has a
seal of its own (`checksums.py`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxlm.data.checked_array import BLOCK_BYTES, CheckedArray, check_blocks
from jaxlm.data.checksums import SEAL, seal_is_broken, sha256
from jaxlm.data.manifest import check_tokenizer
from jaxlm.data.notices import Notices
from jaxlm.data.npy import parse_npy
from jaxlm.limits import Row, check, parse_json, read_bytes
from jaxlm.paths import is_local
from jaxlm.types import JSON_ERRORS, UserError

FORMAT = 2
EXAMPLES = "examples.json"
ARRAYS = ("tokens", "trained", "ends", "places", "labels", "label_ends")
_KINDS = {"tokens": "u", "trained": "b", "ends": "i", "places": "i", "labels": "if", "label_ends": "i"}
"""numpy's letters for the types of numbers."""
_LASTS = {"ends": "tokens", "label_ends": "labels"}
_SHAPE = {
    "tokenizer_sha256": str, "num_examples": int, "num_tokens": int, "num_trained": int, "task": (str, None),
    "labels": [str], "files": [Row((str, str))], "shapes": dict.fromkeys(ARRAYS, [int]),
    "file_bytes": dict.fromkeys(ARRAYS, int), "crc32_sha256": str,
}  # fmt: skip
LONG_ARRAYS = ("tokens", "trained", "places")
"""Those of which rows are read where needed, unless they are small; the others are held in memory."""
CHECKSUMS = "crc32"
RESIDENT_BYTES = 64 << 20
"""Arrays of which there is no more than this in all are held in memory."""


class DamagedExamples(UserError):
    """A folder of examples that is not what was built. In the cache it can be built again."""


class ExampleStore:
    """One split of a source's examples. Thread-safe; pickled as the name of its folder.

    Args:
      directory: made by `corpus.examples.ensure_examples`.
      expected_tokenizer_sha256: the run's tokenizer; another one made these ids -> UserError.
      resident_bytes: examples up to this size are held in memory, and so are remote ones.
      notices: hears of reads that were tried again; None: of its own.

    Errors: DamagedExamples, also later, when rows are read.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        expected_tokenizer_sha256: str | None = None,
        resident_bytes: int = RESIDENT_BYTES,
        notices: Notices | None = None,
    ):
        self.directory = os.fspath(directory)
        self.notices = notices or Notices()
        self.manifest = read_manifest(self.directory, self.notices)
        check_tokenizer(self.directory, self.manifest, expected_tokenizer_sha256)
        sizes: dict[str, int] = self.manifest["file_bytes"]
        self._resident = sum(sizes.values()) <= resident_bytes or not is_local(self.directory)
        crcs = self._checksums()
        cuts = np.cumsum([-(-sizes[name] // BLOCK_BYTES) for name in ARRAYS])
        parts = dict(zip(ARRAYS, np.split(crcs, cuts)))
        arrays = {name: self._open(name, sizes[name], parts[name]) for name in ARRAYS}
        self._tokens, self._trained, self._places = arrays["tokens"], arrays["trained"], arrays["places"]
        self._labels, self._label_ends = arrays["labels"], arrays["label_ends"]
        self._check_indices()
        self.document_ends: np.ndarray = arrays["ends"]
        """int64 [num_documents], ascending."""
        self.num_tokens: int = self.manifest["num_tokens"]
        self.num_documents: int = self.manifest["num_examples"]
        self.num_trained: int = self.manifest["num_trained"]
        """Targets that are trained on: an example's first id is never one."""

    def __reduce__(self):
        return ExampleStore, (self.directory,)

    def _checksums(self) -> np.ndarray:
        content = self._content(CHECKSUMS)
        if sha256(content) != self.manifest["crc32_sha256"]:
            raise self._damaged(f"{CHECKSUMS}.npy is not what was built")
        return parse_npy(content)

    def _content(self, name: str) -> bytes:
        path = epath.Path(self.directory) / f"{name}.npy"
        try:
            return self.notices.retrying(path.read_bytes, path)
        except OSError as error:
            raise self._damaged(f"{name}.npy ({error.strerror or error})") from None

    def _open(self, name: str, num_bytes: int, crcs: np.ndarray) -> Any:
        """The array; or, where it is long, something that is sliced like it."""
        if not self._resident and name in LONG_ARRAYS:
            path = os.path.join(self.directory, f"{name}.npy")
            try:
                array = CheckedArray(path, crcs, num_bytes, self.notices, self._damaged)
            except (OSError, ValueError) as error:
                raise self._damaged(f"{name}.npy ({getattr(error, 'strerror', None) or error})") from None
        else:
            array = self._whole(name, num_bytes, crcs)
        if list(array.shape) != self.manifest["shapes"][name]:
            raise self._damaged(f"{name}.npy has the shape {array.shape}")
        if array.dtype.kind not in _KINDS[name]:
            raise self._damaged(f"{name}.npy has numbers of the type {array.dtype}")
        return array

    def _whole(self, name: str, num_bytes: int, crcs: np.ndarray) -> np.ndarray:
        content = self._content(name)
        if len(content) != num_bytes:
            raise self._damaged(f"{name}.npy has {len(content):,} bytes instead of {num_bytes:,}")
        if (block := check_blocks(content, crcs.tolist())) is not None:
            raise self._damaged(f"{name}.npy, block {block:,} is not what was built")
        try:
            array = parse_npy(content)
        except ValueError as error:
            raise self._damaged(f"{name}.npy ({error})") from None
        if (
            name in _LASTS
            and len(array)
            and (array[-1] != self._length(_LASTS[name]) or (np.diff(array) < 0).any())
        ):
            raise self._damaged(f"{name}.npy does not cut {_LASTS[name]}.npy into examples")
        return array

    def _check_indices(self) -> None:
        """What points into the manifest points at something. Of an array that is read where needed, its reader sees."""
        pointers = []
        if isinstance(self._places, np.ndarray):
            pointers.append(("places", self._places[:, 0], "files"))
        if self.manifest["task"] != "regression":
            pointers.append(("labels", self._labels, "labels"))
        for name, found, names in pointers:
            if len(found) and not (found.min() >= 0 and found.max() < len(self.manifest[names])):
                raise self._damaged(f"{name}.npy points at {names} that {EXAMPLES} does not have")

    def _length(self, name: str) -> int:
        return self.manifest["shapes"][name][0]

    def _damaged(self, what: str) -> UserError:
        return DamagedExamples(f"{self.directory} is damaged: {what}. Delete the folder: it is built again.")

    def read_rows(self, starts: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """int32 ids of the stretches [start, start + length)."""
        return [self._tokens[a : a + n].astype(np.int32) for a, n in zip(starts, lengths)]

    def read_trained(self, starts: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """Of the same stretches: which ids are trained on."""
        return [np.array(self._trained[a : a + n]) for a, n in zip(starts, lengths)]

    def where(self, example: int) -> str:
        """The place an example comes from: "data/train.jsonl, line 12"."""
        file, number = self._places[example].tolist()
        name, unit = self.manifest["files"][file]
        return f"{name}, {unit} {number:,}"

    def label_of(self, example: int) -> list[str] | float:
        """The names of an example's labels, or its number."""
        values = self._labels[self._label_ends[example - 1] if example else 0 : self._label_ends[example]]
        if self.manifest["task"] == "regression":
            return float(values[0])
        return [self.manifest["labels"][i] for i in values.tolist()]

    def labels(self, names: Sequence[str]) -> np.ndarray:
        """Labels by their places in `names`: int32 [N]; float32 [N, C] of 0 and 1 if an example has any number of them;
        float32 [N, 1] for regression.

        Errors: UserError at a label that is not among the names, with the place of its first example.
        """
        task = self.manifest["task"]
        if task is None:
            raise UserError(f"{self.directory} has no labels: it was built for objective=instruct.")
        if task == "regression":
            return np.array(self._labels, np.float32)[:, None]
        index = {name: i for i, name in enumerate(names)}
        lookup = np.array([index.get(name, -1) for name in self.manifest["labels"]] or [0], np.int32)
        found = lookup[self._labels]
        if (found < 0).any():
            place = int(np.argmax(found < 0))
            example = int(np.searchsorted(self._label_ends, place, side="right"))
            name = self.manifest["labels"][self._labels[place]]
            raise UserError(
                f"{self.where(example)}: the label {name!r} is none of {', '.join(map(repr, names))}: no example to "
                "train on has it, or classify.labels leaves it out. Mend the record, or add the label."
            )
        if task == "single_label":
            return found
        rows = np.zeros((self.num_documents, len(names)), np.float32)
        counts = np.diff(np.concatenate([[0], self._label_ends]))
        rows[np.repeat(np.arange(self.num_documents), counts), found] = 1.0
        return rows


def read_manifest(directory: str, notices: Notices | None = None) -> dict[str, Any]:
    """What a folder of examples says about itself. Errors: DamagedExamples."""
    path = epath.Path(directory) / EXAMPLES
    try:
        manifest = parse_json((notices or Notices()).retrying(lambda: read_bytes(path), path))
    except FileNotFoundError:
        raise DamagedExamples(
            f"{directory} holds no examples: it has no {EXAMPLES}, which a build writes last."
        ) from None
    except JSON_ERRORS as error:
        raise DamagedExamples(
            f"{path} is not valid JSON ({error}). Delete the folder: it is built again."
        ) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DamagedExamples(
            f"{path} has another format than {FORMAT}. Delete the folder: it is built again."
        )
    if SEAL not in manifest or seal_is_broken(manifest):
        raise DamagedExamples(f"{path} was changed after the build. Delete the folder: it is built again.")
    try:
        check(manifest, _SHAPE)
    except ValueError as error:
        raise DamagedExamples(f"{path} is damaged: {error}. Delete the folder: it is built again.") from None
    N, tokens = manifest["num_examples"], manifest["num_tokens"]
    labels = manifest["shapes"]["labels"]
    expected = {"tokens": [tokens], "trained": [tokens], "ends": [N], "places": [N, 2], "labels": labels[:1],
                "label_ends": [N]}  # fmt: skip
    for name, shape in expected.items():
        if manifest["shapes"][name] != shape or not shape:
            raise DamagedExamples(
                f"{path} is damaged: shapes.{name} is {manifest['shapes'][name]}, and the counts beside it say "
                f"{shape}. Delete the folder: it is built again."
            )
    return manifest
