"""Where a run's weights come from that it does not initialise: a run of jaxlm, or a checkpoint of Hugging Face.

`init_from` names one: the workdir of a run, the folder of a checkpoint (config.json and safetensors), or the name
of one on the Hugging Face hub, such as HuggingFaceTB/SmolLM2-135M. Importing this module imports no JAX.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from etils import epath

from jaxlm.data.files import reachable
from jaxlm.limits import read_json
from jaxlm.models.config import ModelConfig
from jaxlm.models.sizes import RUN_FIELDS
from jaxlm.paths import is_local
from jaxlm.types import JSON_ERRORS, Params, UserError
from jaxlm.workdir import CHECKPOINTS, CONFIG_FILE

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxlm.data.tokenizer import Tokenizer
    from jaxlm.models.build import LM
    from jaxlm.runconfig import RunConfig

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
FREE_FIELDS = (
    "rope_theta", "rope_local_theta", "rope_scaling", "rope_scaling_factor", "rope_original_len", "sliding_window",
    "max_seq_len",
)  # fmt: skip
"""Fields that a run may set otherwise than the weights it starts from, beside RUN_FIELDS: how a context is made
longer."""


class Origin(NamedTuple):
    """Weights that are there already."""

    folder: epath.Path
    is_run: bool
    """Of jaxlm; else a checkpoint of Hugging Face."""
    model: ModelConfig
    """With vocab_size filled in, and the rows of a position table."""


def find_origin(source: str, *, weights: bool = False) -> Origin:
    """Looks at what `source` names; reads configs, no weights.

    Args:
      weights: of a name on the hub, fetch them too, and not only what describes them.

    Errors: UserError when there is nothing of the kind.
    """
    folder = reachable(source)
    if (folder / CHECKPOINTS).exists() and (folder / CONFIG_FILE).exists():
        return Origin(folder, True, _model_of_run(folder))
    if (folder / CONFIG_FILE).exists():
        if not _is_hugging_face(folder / CONFIG_FILE):
            raise UserError(f"{source} holds no checkpoint: give the --workdir of a run that has saved one.")
        from jaxlm.interop.hf_import import read_hf_config

        return Origin(folder, False, read_hf_config(local_folder(folder))[1])
    if not folder.exists() and HUB_NAME.fullmatch(source):
        from jaxlm.interop.hf_import import read_hf_config
        from jaxlm.interop.hub import fetch

        fetched = fetch(source, weights=weights)
        return Origin(epath.Path(fetched), False, read_hf_config(fetched)[1])
    what = f"there is no {CONFIG_FILE} in it" if folder.exists() else "it does not exist"
    raise UserError(
        f"{source} is neither a run nor a checkpoint ({what}): give the --workdir of a run, the folder of a Hugging "
        "Face checkpoint, or the name of one on the hub, such as HuggingFaceTB/SmolLM2-135M."
    )


def local_folder(folder: epath.Path) -> Path:
    """The folder as a path of this machine. Errors: UserError where it is in an object store."""
    if not is_local(folder):
        raise UserError(
            f"{folder}: safetensors are read through memory maps. Copy the folder to this machine."
        )
    return Path(os.fspath(folder))


def _is_hugging_face(path: epath.Path) -> bool:
    try:
        return "model_type" in read_json(path)
    except (*JSON_ERRORS, TypeError):
        return True  # damaged: the reader of such configs says how


def _model_of_run(folder: epath.Path) -> ModelConfig:
    from jaxlm.checkpoint import Checkpoints
    from jaxlm.run_weights import with_saved_sizes
    from jaxlm.runconfig import load_config

    checkpoints = Checkpoints(folder / CHECKPOINTS)
    if checkpoints.latest_step() is None:
        raise UserError(f"{folder} holds no checkpoint yet: wait for its first, or give another run.")
    cfg = load_config(folder / CONFIG_FILE)
    model = with_saved_sizes(cfg.model, checkpoints)
    if model.positions == "learned" and model.max_seq_len is None:
        model = dataclasses.replace(model, max_seq_len=cfg.data.seq_len)
    return model


def fill_model(model: ModelConfig, origin: ModelConfig, source: str) -> ModelConfig:
    """The origin's model, run as `model` says: fields at their default are the origin's, others must agree with it.

    Errors: UserError that names the first field in which they differ.
    """
    default, filled = ModelConfig(), dataclasses.asdict(origin)
    bound = ("max_seq_len",) if origin.positions == "learned" else ()  # rows of a weight
    for field in dataclasses.fields(ModelConfig):
        name, value = field.name, getattr(model, field.name)
        chosen = name in FREE_FIELDS and name not in bound and value != getattr(default, name)
        if name in RUN_FIELDS or chosen or name == "num_classes":
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


def with_origin(cfg: RunConfig, workdir: str | os.PathLike | None = None) -> RunConfig:
    """Fills in the model of `init_from`.

    Args:
      workdir: of the run; where it began from the same origin, that need not be there any more.
    """
    source = cfg.init_from
    if source is None:
        return cfg
    if workdir is not None and (saved := epath.Path(workdir) / CONFIG_FILE).exists():
        from jaxlm.runconfig import load_config

        before = load_config(saved)
        if before.init_from == source:
            return dataclasses.replace(cfg, model=fill_model(cfg.model, before.model, source))
    return dataclasses.replace(cfg, model=fill_model(cfg.model, find_origin(source).model, source))


def source_tokenizer(folder: Path, path: str | None = None) -> Tokenizer | None:
    """The tokenizer at `path`, else that of a checkpoint; None where it has no files of one that jaxlm reads."""
    from jaxlm.data.tokenizer import load_tokenizer

    return load_tokenizer(path or folder) if path or _has_tokenizer(folder) else None


def _has_tokenizer(folder: epath.PathLike) -> bool:
    from jaxlm.data.hf_files import TOKENIZER_JSON, is_old_gpt2
    from jaxlm.data.tokenizer import TOKENIZER_FILE

    names = (TOKENIZER_JSON, TOKENIZER_FILE)
    return any((epath.Path(folder) / name).exists() for name in names) or is_old_gpt2(folder)


class Start(NamedTuple):
    """Weights to start from."""

    params: Params
    words: str
    """Where they come from."""
    facts: dict[str, Any]
    """The same, for the checkpoints of the run: `source`, and `model_type` where Hugging Face's is known."""


def read_origin(
    source: str, lm: LM, mesh: Mesh | None, tokenizer_sha256: str, labels: Sequence[str] | None = None
) -> Start:
    """The weights of `init_from` for this model, spread over the mesh.

    A classifier takes those of a language model, without its head; its own is then missing in what is returned.

    Args:
      mesh: None: the first device.
      labels: of a classifier: one that it starts from must have the same, in the same order.

    Errors: UserError when the weights do not fit, or belong to another tokenizer or to other labels.
    """
    from jaxlm.run_weights import abstract_params, restore_model
    from jaxlm.train.tuning import EVERYTHING, HEADS

    origin = find_origin(source, weights=True)
    if origin.is_run:
        from jaxlm.models.build import build
        from jaxlm.runconfig import load_config

        theirs, tune = build(origin.model, 1), load_config(origin.folder / CONFIG_FILE).tune
        params, meta = restore_model(origin.folder, theirs, tune, mesh, tokenizer_sha256=tokenizer_sha256)
        params = {name: group for name, group in params.items() if name in lm.axes}
        if origin.model.num_classes is not None:
            _check_labels(source, meta.extra.get("labels"), labels)
        model_type = meta.extra.get("origin", {}).get("model_type")
        return Start(params, f"weights of step {meta.step} of {source}", _facts(source, model_type))
    from jaxlm.checkpoint import named_arrays
    from jaxlm.interop.hf_import import check_tensors, open_source, read_params

    found = open_source(local_folder(origin.folder))
    tokenizer = source_tokenizer(found.folder)
    if tokenizer is not None and (theirs := tokenizer.sha256) != tokenizer_sha256:
        raise UserError(
            f"The weights of init_from={source} belong to the tokenizer {theirs[:12]}, but this run has "
            f"{tokenizer_sha256[:12]} (SHA-256): the same ids would mean other text. Leave tokenizer.path unset, and "
            "give the text itself in data.sources, so that it is tokenised anew."
        )
    abstract = abstract_params(lm, EVERYTHING, mesh)[0]
    if origin.model.num_classes is None:
        abstract = {name: group for name, group in abstract.items() if name not in HEADS}
    if found.classes is not None:
        _check_labels(source, found.classes.names, labels)
    if "head" not in abstract:
        head = next(row.theirs for row in found.family.rows if row.ours == "head")
        found.places.pop(head, None)
    # Of the run's model; with that of its own config.json `open_source` has compared it.
    check_tensors(found, {path: tuple(leaf.shape) for path, leaf in named_arrays(abstract).items()})
    facts = _facts(source, found.family.model_type)
    return Start(read_params(found, abstract), f"weights of {found.describe()}", facts)


def _check_labels(source: str, theirs: Sequence[str] | None, ours: Sequence[str] | None) -> None:
    if theirs is not None and ours is not None and list(theirs) != list(ours):
        raise UserError(
            f"init_from={source} is a classifier of {', '.join(theirs)}, but this run has the labels "
            f"{', '.join(ours)}: its head would mean others. Set classify.labels to the first, in that order, or start "
            "from the language model that it was trained from."
        )


def _facts(source: str, model_type: str | None) -> dict[str, Any]:
    return {"source": source} | ({"model_type": model_type} if model_type else {})


def origin_tokenizer(cfg: RunConfig, workdir: epath.PathLike | None = None) -> epath.Path | None:
    """The tokenizer of a run that starts from weights and names none: that of the weights; None for other runs.

    Args:
      workdir: its own copy, where there is one, serves when the origin is gone.

    Errors: UserError when the weights have none.
    """
    if cfg.init_from is None or cfg.tokenizer.path is not None:
        return None
    from jaxlm.data.tokenizer import saved_tokenizer

    if workdir is not None and (saved := saved_tokenizer(workdir)).exists():
        return saved
    origin = find_origin(cfg.init_from)
    found = saved_tokenizer(origin.folder) if origin.is_run else origin.folder
    if not (found.exists() if origin.is_run else _has_tokenizer(found)):
        raise UserError(
            f"init_from={cfg.init_from} has no tokenizer: set tokenizer.path to the one that its weights belong to."
        )
    return found
