"""A Hugging Face checkpoint -> params of jaxlm's decoder, tensor by tensor and shard by shard.

    source = open_source("path/to/SmolLM2-135M")
    lm = build(source.model, source.model.max_seq_len)
    params = read_params(source, abstract)        # abstract: shapes, dtypes and shardings of the params

Every name and shape is checked before the first tensor is read: a checkpoint is loaded whole or not at all.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxlm.config import MAX_CONFIG_BYTES
from jaxlm.data.files import read_file
from jaxlm.interop.families import CLASSIFIER, Family, Row, family_of
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.safetensors import Spec, Tensors
from jaxlm.limits import parse_json, short
from jaxlm.models.config import ModelConfig
from jaxlm.types import JSON_ERRORS, Params, PyTree, UserError

if TYPE_CHECKING:
    import jax

CONFIG_FILE = "config.json"
NUM_THREADS = min(8, os.cpu_count() or 1)
"""That read and turn tensors; more would wait for the memory."""
MAX_LISTED = 50
"""Unknown keys of a config.json that are named."""
FLOATS = ("float32", "bfloat16", "float16", "float64")


TASKS = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
"""classify.task -> problem_type of a config.json."""


class Classes(NamedTuple):
    """What a classifier's outputs mean."""

    task: str
    names: tuple[str, ...]
    """Of the labels; empty for a regression."""


def read_classes(folder: Path, num_classes: int) -> Classes:
    """From config.json: problem_type and id2label; without the former what transformers would take.

    Errors: UserError where they do not fit the number of outputs.
    """
    values = read_object(folder / CONFIG_FILE)
    said = values.get("problem_type")
    guessed = "regression" if num_classes == 1 else "single_label_classification"
    task = next((ours for ours, theirs in TASKS.items() if theirs == (said or guessed)), None)
    if task is None:
        raise UserError(
            f"{folder / CONFIG_FILE} has problem_type={said!r}: jaxlm knows {', '.join(TASKS.values())}."
        )
    if task == "regression":
        if num_classes != 1:
            raise UserError(
                f"{folder / CONFIG_FILE}: a regression to {num_classes} numbers: jaxlm predicts one."
            )
        return Classes(task, ())
    labels = values.get("id2label") or {}
    if not isinstance(labels, dict):
        raise UserError(
            f"{folder / CONFIG_FILE}: id2label is {short(labels)}, and has to name the labels by number."
        )
    names = tuple(str(labels.get(str(i), f"LABEL_{i}")) for i in range(num_classes))
    if len(set(names)) < num_classes:
        raise UserError(f"{folder / CONFIG_FILE}: two labels of id2label have one name: {', '.join(names)}.")
    return Classes(task, names)


class Source(NamedTuple):
    """A checkpoint that is known to be one jaxlm can load; its tensors are not read yet."""

    folder: Path
    family: Family
    model: ModelConfig
    tensors: Tensors
    places: dict[str, str]
    """Name of a tensor in the family's table -> its name in these files."""
    shapes: dict[str, tuple[int, ...]]
    """Path -> shape of every weight of the model."""
    notes: tuple[str, ...]
    """What was left out or not understood, one line each."""
    classes: Classes | None = None
    """Of a classifier."""

    def describe(self) -> str:
        """One line for the first screen."""
        dtypes = sorted({str(self.tensors.specs[name].dtype) for name in self.places.values()})
        return f"{self.folder} ({self.family.model_type}, {len(self.places):,} tensors, {', '.join(dtypes)})"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a config.json. Errors: UserError for any other content."""
    content = read_file(path, "the config.json of a Hugging Face checkpoint", MAX_CONFIG_BYTES)
    try:
        values = parse_json(content)
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")
    except JSON_ERRORS as error:
        raise UserError(f"{path} is not JSON ({error}). Fetch it again.") from None
    return values


def read_hf_config(folder: Path) -> tuple[Family, ModelConfig, tuple[str, ...]]:
    """Family and model of a folder's config.json, and notes on what in it was not used."""
    path = folder / CONFIG_FILE
    values = read_object(path)
    if "model_type" not in values:
        raise UserError(f"{path} has no model_type: it is not the config.json of a Hugging Face checkpoint.")
    family, notes = family_of(values["model_type"], str(path)), []
    if values.get("auto_map"):
        notes.append("auto_map is ignored: no code of a checkpoint is ever run.")
    if values.get("quantization_config"):
        method = values["quantization_config"]
        method = method.get("quant_method", method) if isinstance(method, dict) else method
        raise UserError(
            f"{path} has quantization_config ({str(method):.60}): quantised weights cannot be trained on. Take the "
            "original checkpoint."
        )
    inner = values.get("text_config")
    if isinstance(inner, dict):
        notes.append("only the language model is loaded, without the parts for other modalities.")
        values = {"tie_word_embeddings": values.get("tie_word_embeddings", True), **inner}
    hf = HFConfig({key: value for key, value in values.items() if key != "auto_map"}, str(path))
    model = family.read(hf)
    if hf.unknown:
        listed = ", ".join(
            f"{short(key)[1:-1]}={short(value)}" for key, value in [*hf.unknown.items()][:MAX_LISTED]
        )
        notes.append(f"keys of config.json that jaxlm does not know were not used: {listed}")
    return family, model, tuple(notes)


def open_source(folder: os.PathLike | str) -> Source:
    """Reads config.json and the headers of the files; checks every name and shape.

    Errors: UserError for an unknown architecture, an option that jaxlm's decoder does not have, a quantised or
    damaged file, and the first tensor that is missing, unexpected or of another shape.
    """
    folder = Path(folder)
    family, model, notes = read_hf_config(folder)
    tensors = Tensors(folder)
    places, left_out = place_tensors(family, tensors.specs)
    if left_out:
        notes += (f"{len(left_out):,} tensors of other parts were left out ({left_out[0]}, ...).",)
    classes = None if model.num_classes is None else read_classes(folder, model.num_classes)
    source = Source(folder, family, model, tensors, places, params_shapes(model), notes, classes)
    check_head(source)
    check_tensors(source, source.shapes)
    return source


def params_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every weight of the model."""
    from jaxlm.checkpoint import named_arrays
    from jaxlm.models.build import build

    shapes = build(model, model.max_seq_len or 1, platform="cpu").shapes
    return {name: tuple(leaf.shape) for name, leaf in named_arrays(shapes).items()}


def place_tensors(family: Family, specs: dict[str, Spec]) -> tuple[dict[str, str], list[str]]:
    """(name in the family's table -> name in the files, names of other modalities' tensors)."""
    places, left_out = {}, []
    for name in specs:
        if name.endswith(family.buffers):
            continue
        if family.other_parts and name.startswith(family.other_parts):
            left_out.append(name)
            continue
        begin, instead = next((r for r in family.renamed if name.startswith(r[0])), ("", ""))
        known = instead + name[len(begin) :]
        if known in places:
            raise UserError(
                f"{name} and {places[known]} are the same tensor of {family.model_type}: which is meant?"
            )
        places[known] = name
    if not any(name.startswith(family.prefix) for name in places):  # saved from the model without its head
        heads = ("lm_head.", CLASSIFIER)
        places = {n if n.startswith(heads) else family.prefix + n: at for n, at in places.items()}
    return places, left_out


def check_head(source: Source) -> None:
    """Takes a head that only repeats the embedding it is tied to out of the places."""
    rows = {row.ours: row for row in source.family.rows}
    head, embedding = rows["head"].theirs, rows["embedding"].theirs
    if not source.model.tie_embeddings or head not in source.places or embedding not in source.places:
        return
    a, b = (source.tensors.read(source.places[name]) for name in (head, embedding))
    if a.shape != b.shape or a.dtype != b.dtype or not _same_bytes(a, b):
        raise UserError(
            f"{source.folder} says tie_word_embeddings, but {head} is not {embedding}. Set tie_word_embeddings to "
            "false in its config.json to load both."
        )
    for name in (head, embedding):
        source.tensors.forget(source.places[name])
    del source.places[head]


def _same_bytes(a: np.ndarray, b: np.ndarray, piece: int = 1 << 24) -> bool:
    """Whether two contiguous arrays of one shape and dtype are equal, compared piece by piece."""
    a, b = (array.reshape(-1).view(np.uint8) for array in (a, b))
    starts = range(0, a.nbytes, piece)
    return all(np.array_equal(a[start : start + piece], b[start : start + piece]) for start in starts)


def used_rows(family: Family, shapes: dict[str, tuple[int, ...]]) -> dict[str, Row]:
    """Path -> row of every weight the model has. Errors: UserError where the family has no place for one."""
    rows = {row.ours: row for row in family.all_rows}
    for path in shapes:
        if path not in rows:
            raise UserError(f"{family.model_type} has no tensor for the weight {path} of this model.")
    return {path: rows[path] for path in shapes}


def expected_tensors(family: Family, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Name in the family's table -> shape there, for a model with weights of these shapes."""
    expected: dict[str, tuple[int, ...]] = {}
    for path, row in used_rows(family, shapes).items():
        shape = shapes[path]
        for name in row.names(shape).flat:
            expected[name] = row.their_shape(shape[row.num_stacked :])
    return expected


def check_tensors(source: Source, shapes: dict[str, tuple[int, ...]]) -> None:
    """Compares names, shapes and dtypes with what the model needs. Errors: UserError naming the first difference."""
    expected, specs = expected_tensors(source.family, shapes), source.tensors.specs
    wrong = [f"{name} {list(expected[name])} is missing" for name in expected if name not in source.places]
    wrong += [f"{at} is unexpected" for name, at in source.places.items() if name not in expected]
    for name, at in source.places.items():
        if name in expected and specs[at].shape != expected[name]:
            wrong.append(f"{at} has shape {list(specs[at].shape)} instead of {list(expected[name])}")
        elif name in expected and str(specs[at].dtype) not in FLOATS:
            wrong.append(f"{at} is {specs[at].dtype}, not a float: is the checkpoint quantised?")
    if wrong:
        more = f" (and {len(wrong) - 1:,} more differences)" if len(wrong) > 1 else ""
        raise UserError(
            f"{source.folder} is no {source.family.model_type} of its config.json: {wrong[0]}{more}. Nothing was "
            "loaded; fetch the checkpoint again."
        )


def stored_dtype(source: Source, row: Row, shape: tuple[int, ...]) -> np.dtype:
    """The dtype of our weight that holds its tensors: theirs, where they agree; else, and for float64, float32."""
    dtypes = {source.tensors.specs[source.places[name]].dtype for name in row.names(shape).flat}
    common = next(iter(dtypes)) if len(dtypes) == 1 else np.dtype(np.float32)
    return np.dtype(np.float32) if common == np.float64 else common


def fresh_memory(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that XLA:CPU takes as it is, without a copy: it begins at a multiple of 64 bytes.

    In pages of 2 MiB where Linux grants them: in small ones the page faults take longer than the reading.
    """
    dtype = np.dtype(dtype)
    memory = mmap.mmap(-1, max(math.prod(shape) * dtype.itemsize, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)


def read_params(source: Source, abstract: PyTree) -> Params:
    """The weights, each read and turned only as far as this process's shards need it.

    Args:
      abstract: params of ShapeDtypeStructs; without a sharding, the first device.
    """
    import jax

    from jaxlm.checkpoint import named_arrays

    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = named_arrays(abstract)
    rows = used_rows(source.family, {path: tuple(leaf.shape) for path, leaf in wanted.items()})
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        leaves = [
            _read_leaf(source, rows[path], leaf, leaf.sharding or device, pool)
            for path, leaf in wanted.items()
        ]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _read_leaf(
    source: Source, row: Row, want: Any, sharding: jax.sharding.Sharding, pool: ThreadPoolExecutor
) -> jax.Array:
    import jax

    names, one = row.names(want.shape), tuple(want.shape[row.num_stacked :])

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or ()
        lead, rest = index[: row.num_stacked], index[row.num_stacked :]
        picked = np.asarray(names[lead], object)
        spans = [span.indices(size) for span, size in zip(rest, one)]
        inner = tuple(stop - start for start, stop, _ in spans) + one[len(rest) :]
        out = fresh_memory(picked.shape + inner, want.dtype)

        def fill(at: tuple[int, ...], piece: slice) -> None:
            name = source.places[picked[at]]
            view = row.to_ours(source.tensors.read(name), one)[rest]
            out[at][piece] = view[piece]
            source.tensors.forget(name)

        # One large tensor, such as an embedding, is shared out among the threads; stacks are by their layers.
        size = inner[0] if inner else 1
        step = size if picked.ndim else -(-size // NUM_THREADS)
        pieces = [slice(start, start + step) for start in range(0, size, step)]
        jobs = [(at, piece) for at in np.ndindex(*picked.shape) for piece in pieces]
        list(pool.map(lambda job: fill(*job), jobs))
        return out

    return jax.make_array_from_callback(want.shape, sharding, shard)


def mapping_table(source: Source) -> list[str]:
    """What was mapped to what, one line for each of our weights."""
    lines = []
    for path, row in used_rows(source.family, source.shapes).items():
        shape = source.shapes[path]
        one, num = shape[row.num_stacked :], row.names(shape).size
        theirs = row.theirs.replace("{layer}", "*").replace("{expert}", "*")
        how = "" if row.layout != "linear" else ", transposed"
        if row.part[1] > 1:
            how += f", part {row.part[0] + 1} of {row.part[1]}"
        lines.append(f"{path} {list(shape)} <- {num} x {theirs} {list(row.their_shape(one))}{how}")
    return lines
