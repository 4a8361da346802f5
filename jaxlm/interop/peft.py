"""Adapters of LoRA as the package PEFT stores them: `PeftModel.from_pretrained(base, folder)` loads them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.interop.families import Family, Row
from jaxlm.interop.safetensors import Spec, write_file
from jaxlm.train.config import TuneConfig

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."


def adapter_tensors(
    family: Family, adapters: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> dict[str, np.ndarray]:
    """Name -> tensor: lora_A [rank, in] and lora_B [out, rank], float32.

    Where theirs is one matrix of several of ours side by side (the c_attn of GPT-2), their adapter is as wide as ours
    together: all a below each other, the b on the diagonal.

    Args:
      adapters: group -> matrix -> {"a": [L, in dims, rank], "b": [L, rank, out dims]}.
    """
    by_name: dict[str, list[tuple[Row, np.ndarray, np.ndarray]]] = {}
    for row in family.rows:
        *_, group, matrix = row.ours.split("/") if row.ours.count("/") == 2 else ("", "", "")
        if matrix not in adapters.get(group, {}):
            continue
        pair = adapters[group][matrix]
        for layer in range(pair["a"].shape[0]):
            a, b = (np.asarray(pair[letter][layer], np.float32) for letter in "ab")
            rank = b.shape[0]
            name = row.theirs.format(layer=layer).removesuffix(".weight")
            by_name.setdefault(name, []).append((row, a.reshape(-1, rank).T, b.reshape(rank, -1).T))
    tensors = {}
    for name, pieces in by_name.items():
        num_parts, rank = pieces[0][0].part[1], pieces[0][1].shape[0]
        out = pieces[0][2].shape[0]  # of q, k and v alike, where they are one matrix
        b = np.zeros((num_parts * out, len(pieces) * rank), np.float32)
        for i, (row, _, piece) in enumerate(pieces):
            b[row.part[0] * out : (row.part[0] + 1) * out, i * rank : (i + 1) * rank] = piece
        tensors[f"{PREFIX}{name}.lora_A.weight"] = np.concatenate([a for _, a, _ in pieces])
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b
    return tensors


def adapter_config(
    family: Family,
    tune: TuneConfig,
    tensors: Mapping[str, np.ndarray],
    base: str | None,
    *,
    is_classifier: bool,
) -> dict[str, Any]:
    """The adapter_config.json.

    Args:
      base: folder or name of the checkpoint that the adapters belong to.
    """
    ranks: dict[str, int] = {}
    for name, tensor in tensors.items():
        if name.endswith(".lora_A.weight"):
            # The last two words: GPT-2 has a c_proj in its attention and in its MLP.
            module = ".".join(name.removesuffix(".lora_A.weight").split(".")[-2:])
            ranks[module] = tensor.shape[0]
    wider = {module: rank for module, rank in ranks.items() if rank != tune.lora_rank}
    rows = {row.layout for row in family.rows}
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if is_classifier else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": tune.lora_rank,
        "lora_alpha": tune.lora_alpha,
        "lora_dropout": tune.lora_dropout,
        "target_modules": sorted(ranks),
        "modules_to_save": ["score"] if is_classifier else None,
        "rank_pattern": wider,
        "alpha_pattern": {module: tune.lora_alpha * rank / tune.lora_rank for module, rank in wider.items()},
        "fan_in_fan_out": "conv1d" in rows,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }


def write_adapter(
    folder: os.PathLike | str,
    family: Family,
    tune: TuneConfig,
    adapters: Mapping[str, Any],
    *,
    base: str | None,
    classifier: Any = None,
) -> dict[str, str]:
    """Writes both files; returns file name -> SHA-256 of the weights'.

    Args:
      classifier: [D, C], the head of one, which is saved beside its adapters.
    """
    tensors = adapter_tensors(family, adapters)
    config = adapter_config(family, tune, tensors, base, is_classifier=classifier is not None)
    if classifier is not None:
        tensors[f"{PREFIX}score.weight"] = np.ascontiguousarray(np.asarray(classifier, np.float32).T)
    specs = {name: Spec(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    contiguous = ((name, np.ascontiguousarray(tensor)) for name, tensor in tensors.items())
    path = Path(folder) / WEIGHTS_FILE
    hashes = {WEIGHTS_FILE: write_file(path, specs, contiguous)}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (Path(folder) / CONFIG_FILE).write_text(text, encoding="utf-8")
    return hashes
