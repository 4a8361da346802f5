"""Where a run's weights come from that it does not initialise: a run of jaxlm, or a checkpoint of Hugging Face.

`init_from` names one: the workdir of a run, the folder of a checkpoint (config.json and safetensors), or the name
of one on the Hugging Face hub, such as HuggingFaceTB/SmolLM2-135M. Importing this module imports no JAX.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from etils import epath

from jaxlm.models.config import ModelConfig
from jaxlm.models.sizes import RUN_FIELDS
from jaxlm.types import JSON_ERRORS, Params, PyTree, UserError

if TYPE_CHECKING:
    from jaxlm.runconfig import RunConfig

CONFIG_FILE, CHECKPOINTS = "config.json", "checkpoints"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
FREE_FIELDS = (
    "rope_theta", "rope_local_theta", "rope_scaling", "rope_scaling_factor", "rope_original_len", "sliding_window",
    "max_seq_len",
)  # fmt: skip
"""Fields that a run may set otherwise than the weights it starts from: they are how a context is made longer."""


class Origin(NamedTuple):
    """Weights that are there already."""

    folder: epath.Path
    is_run: bool
    """Of jaxlm; else a checkpoint of Hugging Face."""
    model: ModelConfig
    """With vocab_size filled in."""


def find_origin(source: str) -> Origin:
    """Looks at what `source` names; fetches it where it is a name on the hub. Reads configs, no weights.

    Errors: UserError when there is nothing of the kind.
    """
    folder = epath.Path(source)
    if (folder / CHECKPOINTS).exists():
        return Origin(folder, True, _model_of_run(folder))
    if (folder / CONFIG_FILE).exists():
        if not _is_hugging_face(folder / CONFIG_FILE):
            raise UserError(f"{source} holds no checkpoint: give the --workdir of a run that has saved one.")
        from jaxlm.interop.hf_import import read_hf_config

        return Origin(folder, False, read_hf_config(local_folder(folder))[1])
    if not folder.exists() and HUB_NAME.fullmatch(source):
        from jaxlm.interop.hf_import import read_hf_config
        from jaxlm.interop.hub import fetch

        fetched = fetch(source)
        return Origin(epath.Path(fetched), False, read_hf_config(fetched)[1])
    what = f"there is no {CONFIG_FILE} in it" if folder.exists() else "it does not exist"
    raise UserError(
        f"{source} is neither a run nor a checkpoint ({what}): give the --workdir of a run, the folder of a Hugging "
        "Face checkpoint, or the name of one on the hub, such as HuggingFaceTB/SmolLM2-135M."
    )


def local_folder(folder: epath.Path) -> Any:
    from pathlib import Path


    if not islocal_folder(folder):
        raise UserError(
            f"{folder}: safetensors are read through memory maps. Copy the folder to this machine."
        )
    return Path(os.fspath(folder))


def _is_hugging_face(path: epath.Path) -> bool:
    try:
        return "model_type" in json.loads(path.read_bytes())
    except JSON_ERRORS:
        return True  # damaged: the reader of such configs says how


def _model_of_run(folder: epath.Path) -> ModelConfig:
    from jaxlm.checkpoint import Checkpoints
    from jaxlm.runconfig import load_config

    checkpoints = Checkpoints(folder / CHECKPOINTS)
    if (step := checkpoints.latest_step()) is None:
        raise UserError(f"{folder} holds no checkpoint yet: wait for its first, or give another run.")
    model = load_config(folder / CONFIG_FILE).model
    if model.vocab_size is None:
        embedding = checkpoints.read_meta(step).arrays["params/embedding"]
        model = dataclasses.replace(model, vocab_size=embedding.shape[0])
    return model


def fill_model(model: ModelConfig, origin: ModelConfig, source: str) -> ModelConfig:
    """The origin's model, run as `model` says: fields at their default are the origin's, others must agree with it.

    Errors: UserError that names the first field in which they differ.
    """
    default, filled = ModelConfig(), dataclasses.asdict(origin)
    for field in dataclasses.fields(ModelConfig):
        name, value = field.name, getattr(model, field.name)
        if name in RUN_FIELDS or (name in FREE_FIELDS and value != getattr(default, name)):
            filled[name] = value
        elif value not in (getattr(default, name), filled[name], _said(origin, name)):
            raise UserError(
                f"model.{name}={value!r}, but the weights of init_from={source} have {filled[name]!r}. Leave it at "
                f"its default ({getattr(default, name)!r}): the model is then taken from init_from."
            )
    return ModelConfig(**filled)


def _said(model: ModelConfig, name: str) -> Any:
    """A field with its default filled in."""
    names = {"num_kv_heads": "kv_heads", "head_dim": "head_width", "mlp_dim": "mlp_width"}
    return getattr(model, names.get(name, name))


def with_origin(cfg: RunConfig, saved: RunConfig | None = None) -> RunConfig:
    """Fills in the model of `init_from`.

    Args:
      saved: the config of the same run as its workdir has it; then the origin need not be there any more.
    """
    if cfg.init_from is None:
        return cfg
    if saved is not None and saved.init_from == cfg.init_from:
        return dataclasses.replace(cfg, model=fill_model(cfg.model, saved.model, cfg.init_from))
    origin = find_origin(cfg.init_from)
    return dataclasses.replace(cfg, model=fill_model(cfg.model, origin.model, cfg.init_from))


def read_origin(source: str, abstract: PyTree, tokenizer_sha256: str) -> tuple[Params, str]:
    """(params placed as `abstract` says, where they come from, in words).

    Errors: UserError when the weights do not fit, or belong to another tokenizer.
    """
    origin = find_origin(source)
    if origin.is_run:
        from jaxlm.checkpoint import Checkpoints

        checkpoints = Checkpoints(origin.folder / CHECKPOINTS)
        params, meta = checkpoints.restore_params(abstract, tokenizer_sha256=tokenizer_sha256)
        return params, f"weights of step {meta.step} of {source}"
    from jaxlm.interop.hf_import import open_source, read_params

    found = open_source(local_folder(origin.folder))
    return read_params(found, abstract), f"weights of {found.describe()}"
