"""Params of jaxlm's decoder -> a folder that `from_pretrained` of transformers' Auto classes loads as it is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from jaxlm.interop.families import Family, Row, labels_config
from jaxlm.interop.hf_import import TASKS, Classes, used_rows
from jaxlm.interop.safetensors import MAX_SHARD_BYTES, Spec, write_folder
from jaxlm.models.config import ModelConfig
from jaxlm.types import UserError

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
"""What `--dtype` may be."""


class Exporter:
    """The tensors of a checkpoint of the family, made one by one from our stacked arrays.

    Args:
      arrays: path -> array, numpy's or jax's; of jax's on an accelerator one layer at a time is fetched.
      dtype: of all tensors; None: each keeps that of its array.
    """

    def __init__(self, family: Family, arrays: Mapping[str, Any], dtype: np.dtype | None):
        self._arrays = {path: _in_place(array) for path, array in arrays.items()}
        self._dtype = dtype
        self._parts: dict[str, list[tuple[str, Row, tuple[int, ...]]]] = {}
        shapes = {path: tuple(array.shape) for path, array in arrays.items()}
        self.specs: dict[str, Spec] = {}
        for path, row in used_rows(family, shapes).items():
            names, one = row.names(shapes[path]), shapes[path][row.num_stacked :]
            for index in np.ndindex(*names.shape):
                name = str(names[index])
                self._parts.setdefault(name, []).append((path, row, index))
                self.specs[name] = Spec(dtype or np.dtype(arrays[path].dtype), row.their_shape(one))
        for parts in self._parts.values():
            parts.sort(key=lambda part: part[1].part)
        # As the layers follow each other, so that a reader who streams meets them in order.
        order = [row.theirs for row in family.all_rows]
        self.specs = dict(sorted(self.specs.items(), key=lambda item: self._place(item[0], order)))

    def _place(self, name: str, order: Sequence[str]) -> tuple[int, ...]:
        _, row, index = self._parts[name][0]
        at = order.index(row.theirs)
        first = min(i for i, theirs in enumerate(order) if "{layer}" in theirs)
        if not index:
            return (0 if at < first else 2, at)
        return (1, index[0], at, *index[1:])

    def read(self, name: str) -> np.ndarray:
        """One tensor as it is written. Errors: UserError where float16 cannot hold a value."""
        parts = [
            row.to_theirs(np.asarray(self._arrays[path][index])) for path, row, index in self._parts[name]
        ]
        tensor = parts[0]
        if len(parts) > 1:
            tensor = np.concatenate(parts, axis=1 if self._parts[name][0][1].layout == "conv1d" else 0)
        if self._dtype is None or tensor.dtype == self._dtype:
            return tensor
        with np.errstate(over="ignore"):
            cast = tensor.astype(self._dtype)
        if self._dtype == np.float16 and np.isfinite(tensor).all() and not np.isfinite(cast).all():
            raise UserError(
                f"{name} holds {np.abs(tensor).max():.3g}, beyond float16's 65504. Export with --dtype=bfloat16."
            )
        return cast


def _in_place(array: Any) -> Any:
    """numpy's view of an array of jax's, where its memory is the host's: slicing it there compiles nothing."""
    if isinstance(array, np.ndarray) or [d.platform for d in array.devices()] != ["cpu"]:
        return array
    return np.asarray(array)


def export_weights(
    folder: os.PathLike | str,
    family: Family,
    arrays: Mapping[str, Any],
    *,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, str]:
    """Writes the safetensors files (and index); returns file name -> SHA-256.

    Args:
      arrays: path -> array of our params, whole on this process.
      dtype: float32, bfloat16 or float16; None: as the arrays are.
    """
    exporter = Exporter(family, arrays, DTYPES[dtype] if dtype else None)
    return write_folder(folder, exporter.specs, exporter.read, max_shard_bytes=max_shard_bytes)


def hf_config(
    family: Family,
    model: ModelConfig,
    *,
    dtype: str,
    context_tokens: int,
    bos_id: int | None,
    eos_ids: Sequence[int],
    pad_id: int | None,
    classes: Classes | None = None,
) -> dict[str, Any]:
    """The config.json of an exported model.

    In the keys that transformers 4 and 5, vLLM and llama.cpp all read: `rope_theta` and `rope_scaling` beside each
    other, `torch_dtype`.

    Args:
      context_tokens: of the texts it was trained on: may be longer than those of the weights it started from.
      eos_ids: all ids that end a text; one of them is written as a number, several as a list.
      pad_id: a classifier of transformers reads the last token that is not this one.
      classes: of a classifier.
    """
    config = family.write(model)
    if classes is not None:
        config |= {"problem_type": TASKS[classes.task]} | (
            labels_config(classes.names) if classes.names else {}
        )
    context_key = next(key.theirs for key in family.keys if key.ours == "max_seq_len")
    config[context_key] = max(config.get(context_key) or 0, context_tokens)
    eos: int | list[int] | None = None if not eos_ids else eos_ids[0] if len(eos_ids) == 1 else list(eos_ids)
    return {
        **config,
        "bos_token_id": bos_id,
        "eos_token_id": eos,
        "pad_token_id": pad_id,
        "torch_dtype": dtype,
        "use_cache": True,
    }
