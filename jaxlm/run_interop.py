"""`import-hf` and `export-hf`: a checkpoint of Hugging Face becomes a run's first checkpoint, and the way back."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath

from jaxlm import __version__
from jaxlm.data.files import disk_error
from jaxlm.origin import find_origin, local_folder, source_tokenizer
from jaxlm.paths import is_local
from jaxlm.types import UserError
from jaxlm.workdir import CHECKPOINTS, CONFIG_FILE

if TYPE_CHECKING:
    from jaxlm.checkpoint_meta import Meta
    from jaxlm.data.tokenizer import Tokenizer
    from jaxlm.interop.families import Family
    from jaxlm.interop.hf_import import Classes, Source
    from jaxlm.models.config import ModelConfig
    from jaxlm.parallel.config import MeshConfig
    from jaxlm.run_loading import LoadedWeights
    from jaxlm.runconfig import RunConfig
    from jaxlm.types import Params

Say = Callable[[str], None]


def import_hf(
    source: str,
    out: str | os.PathLike,
    *,
    tokenizer_path: str | None = None,
    mesh: MeshConfig | None = None,
    say: Say = print,
) -> None:
    """Writes the folder `out` like a run's workdir: config, tokenizer, and the weights as checkpoint 0.

    Weights keep the dtype they have; each process reads what its devices hold.

    Args:
      source: folder of a Hugging Face checkpoint, or a name on the hub.
      tokenizer_path: where the source has none, or another than it has.
      mesh: over which the weights are spread while they are read; None: fsdp over all devices.

    Errors: UserError when the source is not one jaxlm can load, or `out` holds something.
    """
    from jaxlm import processes
    from jaxlm.interop.hf_import import mapping_table, open_source

    # Before it writes there, whatever the others are at.
    processes.from_first(lambda: _check_empty(out), "The folder to write")
    with processes.waiting_at_most(processes.LONGEST_BUILD_S), processes.together("The checkpoint to import"):
        origin = find_origin(source, weights=True)
        if origin.is_run:
            raise UserError(f"{source} is a run of jaxlm already: give it to --run or init_from as it is.")
        found = open_source(local_folder(origin.folder))
        tokenizer = source_tokenizer(found.folder, tokenizer_path)
        cfg = imported_config(found, tokenizer)
    say = say if processes.is_first() else lambda line: None
    for line in [*(f"note: {note}" for note in found.notes), found.describe(), *mapping_table(found)]:
        say(line)
    params = _read_sharded(found, cfg, mesh)
    _save_run(epath.Path(out), cfg, tokenizer, params, source, found)
    if tokenizer is None:
        say(
            f"{out}: checkpoint 0. It has no tokenizer, since {source} has none: --tokenizer=PATH gives it one."
        )
    else:
        say(
            f"{out}: checkpoint 0, and its tokenizer of {tokenizer.vocab_size:,} ids ({tokenizer.sha256[:12]})"
        )


def imported_config(source: Source, tokenizer: Tokenizer | None) -> RunConfig:
    """The config of a run that has trained nothing: its model, and the context it was made for."""
    from jaxlm.data.config import ClassifyConfig, DataConfig
    from jaxlm.runconfig import RunConfig

    model = source.model
    if tokenizer is not None and (model.vocab_size or 0) < tokenizer.vocab_size:
        raise UserError(
            f"{source.folder}: its tokenizer has {tokenizer.vocab_size:,} ids, but its embedding only "
            f"{model.vocab_size:,} rows: they belong to different models."
        )
    cfg = RunConfig(model=model, data=DataConfig(seq_len=model.max_seq_len or 2048))
    if source.classes is None:
        return cfg
    return dataclasses.replace(cfg, objective="classify", classify=ClassifyConfig(task=source.classes.task))


def _read_sharded(source: Source, cfg: RunConfig, mesh_config: MeshConfig | None) -> Params:
    """The weights on a mesh over all devices, in the dtype they have."""
    import jax

    from jaxlm.checkpoint import named_arrays
    from jaxlm.interop.hf_import import read_params, stored_dtype, used_rows
    from jaxlm.models.build import build
    from jaxlm.parallel.mesh import make_mesh
    from jaxlm.parallel.sharding import param_shardings
    from jaxlm.runconfig import resolve_mesh

    count = jax.device_count()
    batch = dataclasses.replace(
        cfg.data, global_batch_size=count
    )  # that any mesh divides: there is none to train on
    cfg = dataclasses.replace(cfg, mesh=mesh_config or cfg.mesh, data=batch)
    mesh = make_mesh(resolve_mesh(cfg, count))
    lm = build(cfg.model, cfg.data.seq_len)
    named = named_arrays(lm.shapes)
    rows = used_rows(source.family, {path: tuple(leaf.shape) for path, leaf in named.items()})
    dtypes = [stored_dtype(source, rows[path], leaf.shape) for path, leaf in named.items()]
    leaves = [
        jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)
        for leaf, dtype, sharding in zip(
            named.values(), dtypes, jax.tree.leaves(param_shardings(lm.axes, mesh)), strict=True
        )
    ]
    return read_params(source, jax.tree.unflatten(jax.tree.structure(lm.shapes), leaves))


def _save_run(
    out: epath.Path, cfg: RunConfig, tokenizer: Tokenizer | None, params: Any, name: str, source: Source
) -> None:
    """Tokenizer, checkpoint, and last the config, without which the folder is no run; all of them or none."""
    from jaxlm import processes
    from jaxlm.checkpoint import Checkpoints
    from jaxlm.checkpoint_meta import Meta
    from jaxlm.data.files import make_folder
    from jaxlm.runconfig import save_config

    extra: dict[str, Any] = {"origin": {"source": name, "model_type": source.family.model_type}}
    if source.classes is not None:
        extra["labels"] = list(source.classes.names)
    sha256 = "" if tokenizer is None else tokenizer.sha256
    meta = Meta(0, config=dataclasses.asdict(cfg), tokenizer_sha256=sha256, extra=extra)
    try:
        with processes.together("Saving the import"):
            if processes.is_first():
                make_folder(out)
                if tokenizer is not None:
                    tokenizer.save(out)
        with Checkpoints(out / CHECKPOINTS, cfg.checkpoint) as checkpoints:
            checkpoints.save({"params": params}, meta)
        with processes.together("Saving the import"):
            if processes.is_first():
                save_config(out / CONFIG_FILE, cfg)
    except BaseException:
        if processes.is_alone() and out.exists():  # others may still be writing there
            out.rmtree()
        raise


def export_hf(
    run: str | os.PathLike,
    out: str | os.PathLike,
    *,
    step: int | None = None,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
    say: Say = print,
) -> None:
    """Writes a folder that transformers, vLLM and llama.cpp load, with a model card and the hashes of all files.

    Args:
      step: None: the latest good one.
      dtype: float32, bfloat16 or float16; None: as in the checkpoint (float32 of what was trained here).

    Errors: UserError when there is no such run, no architecture of Hugging Face is its model, or `out` is not empty.
    """
    from jaxlm import processes
    from jaxlm.checkpoint import named_arrays
    from jaxlm.data.files import make_folder
    from jaxlm.data.tokenizer import SentencePieceTokenizer
    from jaxlm.interop import artifact
    from jaxlm.interop.hf_export import export_weights
    from jaxlm.interop.safetensors import MAX_SHARD_BYTES
    from jaxlm.run_loading import load_weights, run_tokenizer

    if not processes.is_alone():
        raise UserError(
            f"export-hf is done by one process, and this is one of {processes.count()}: start it once, without "
            "a launcher."
        )
    if not is_local(out):
        raise UserError(f"{out}: an export is written to this machine; copy it from there.")
    target = Path(os.path.realpath(out))  # a link stays one, to the folder that is replaced
    _check_empty(target)
    tokenizer = run_tokenizer(run)
    loaded = load_weights(run, tokenizer, step, as_stored=True)
    family, classes = family_of(loaded.config.model, loaded.meta), _classes_of(loaded)
    architecture = family.architecture_of(loaded.config.model)
    arrays = named_arrays(loaded.params)
    partial = target.parent / f"{target.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        make_folder(partial)
        shard_bytes = max_shard_bytes or MAX_SHARD_BYTES
        hashes = export_weights(partial, family, arrays, dtype=dtype, max_shard_bytes=shard_bytes)
        facts = _facts(loaded, dtype or str(arrays["embedding"].dtype), architecture, target.name)
        if classes is not None:
            facts |= {"labels": list(classes.names), "task": classes.task}
        _write_around(partial, loaded, tokenizer, facts, family, classes)
        artifact.seal(partial, facts, hashes)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise UserError(
                f"{target} has come to be while this was exported. Choose another folder."
            ) from None
        raise (disk_error(target, error) or error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(
        f"{target}: {architecture}, step {facts['step']:,}, {facts['num_params']:,} parameters in "
        f"{facts['dtype']}; check it with `jaxlm artifact verify {target}`"
    )
    if family.model_type == "qwen2" and isinstance(tokenizer, SentencePieceTokenizer):
        say(
            "note: for qwen2 transformers 5 builds a tokenizer of its own from this one, with other ids; load it with "
            f"PreTrainedTokenizerFast.from_pretrained({str(target)!r})."
        )


def _check_empty(folder: epath.PathLike) -> None:
    path = epath.Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{folder} is there already and not empty. Choose another folder.")


def family_of(model: ModelConfig, meta: Meta) -> Family:
    """The family the weights came from, where it can still say this model; else the first that can."""
    from jaxlm.interop.families import FAMILIES, family_for

    known = meta.extra.get("origin", {}).get("model_type")
    for family in FAMILIES:
        if family.model_type == known and not family.differences(model):
            return family
    return family_for(model)


def _classes_of(loaded: LoadedWeights) -> Classes | None:
    """What a classifier's outputs mean. Errors: UserError for one that transformers has no architecture for."""
    from jaxlm.interop.hf_import import Classes

    if loaded.config.model.num_classes is None:
        return None
    classify = loaded.config.classify
    if classify.pooling != "last":
        raise UserError(
            f"The run has classify.pooling={classify.pooling!r}, and transformers' classifiers read the last token: "
            "exported, it would be another model. Train it with classify.pooling='last' to export it."
        )
    return Classes(classify.task, tuple(loaded.meta.extra.get("labels") or ()))


def _facts(loaded: LoadedWeights, dtype: str, architecture: str, name: str) -> dict[str, Any]:
    """What the model card and artifact.json say."""
    from jaxlm.plan.flops import count_params

    cfg, meta = loaded.config, loaded.meta
    return {
        "name": name,
        "architecture": architecture,
        "num_params": count_params(cfg.model, cfg.data.seq_len).total,
        "dtype": dtype,
        "objective": cfg.objective,
        "step": meta.step,
        "tokens": meta.tokens,
        "epochs": dict(meta.epochs),
        "sources": {
            name: {"path": source.path, "weight_tokens": source.weight_tokens}
            for name, source in cfg.data.sources.items()
        },
        "corpus_sha256": dict(meta.corpus_sha256),
        "tokenizer_sha256": meta.tokenizer_sha256,
        "scores": dict(meta.extra.get("scores", {})),
        "origin": meta.extra.get("origin"),
        "config": dataclasses.asdict(cfg),
        "jaxlm": meta.version or __version__,
    }


def _write_around(
    folder: Path,
    loaded: LoadedWeights,
    tokenizer: Tokenizer | None,
    facts: Mapping[str, Any],
    family: Family,
    classes: Classes | None,
) -> None:
    """Everything but the weights: configs, tokenizer, model card."""
    from jaxlm.interop.hf_export import hf_config
    from jaxlm.interop.model_card import model_card
    from jaxlm.interop.tokenizer_export import export_tokenizer

    config = hf_config(
        family,
        loaded.config.model,
        dtype=facts["dtype"],
        context_tokens=loaded.config.data.seq_len,
        bos_id=None if tokenizer is None else tokenizer.bos_id,
        eos_ids=() if tokenizer is None else tokenizer.stop_ids,
        pad_id=None if tokenizer is None else tokenizer.pad_id,
        classes=classes,
    )
    files = {} if tokenizer is None else dict(export_tokenizer(tokenizer))
    files["config.json"] = _json(config)
    ids = {
        key: config[key]
        for key in ("bos_token_id", "eos_token_id", "pad_token_id")
        if config[key] is not None
    }
    if classes is None:
        files.setdefault("generation_config.json", _json(ids))
    files["README.md"] = model_card(facts).encode()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
