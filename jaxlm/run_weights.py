"""The weights in the folder of a run: what is trained in its checkpoints, what is frozen in `frozen`, written once.

Importing this module imports no JAX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from etils import epath

from jaxlm import processes
from jaxlm.checkpoint import Checkpoints, Restored
from jaxlm.checkpoint_meta import ArraySpec, Meta
from jaxlm.models.config import ModelConfig
from jaxlm.train.config import CheckpointConfig, TuneConfig
from jaxlm.types import Params, PyTree, UserError
from jaxlm.workdir import CHECKPOINTS, FROZEN

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxlm.models.build import LM
    from jaxlm.train.tuning import Tuning


def with_saved_sizes(model: ModelConfig, checkpoints: Checkpoints) -> ModelConfig:
    """Fills in what a run's config left to its data: rows of the embedding, and labels."""
    arrays: Mapping[str, ArraySpec] = {}
    for step in reversed(checkpoints.all_steps()):  # the last that can be read: all have the same
        with contextlib.suppress(UserError):
            arrays = checkpoints.read_meta(step).arrays
            break
    for field, name, dim in (("vocab_size", "params/embedding", 0), ("num_classes", "params/classifier", -1)):
        if getattr(model, field) is None and name in arrays:
            model = dataclasses.replace(model, **{field: arrays[name].shape[dim]})
    return model


def on_mesh(mesh: Mesh) -> dict[str, Any]:
    """Arguments of `build` for a model that is spread over a mesh."""
    from jaxlm.parallel.sharding import make_constrain, make_spread

    return {"constrain": make_constrain(mesh), "spread": make_spread(mesh)}


def abstract_params(lm: LM, tuning: Tuning, mesh: Mesh | None = None) -> tuple[PyTree, PyTree]:
    """(trained, frozen) as ShapeDtypeStructs, with their shardings where there is a mesh."""
    import jax

    from jaxlm.parallel.sharding import param_shardings

    def both(params):
        return tuning.split(tuning.init(jax.random.key(0), params))

    shapes = jax.eval_shape(both, lm.shapes)
    if mesh is None:
        return shapes
    shardings = tuple(param_shardings(axes, mesh) for axes in tuning.axes(lm.axes))
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings
    )


def save_frozen(workdir: epath.PathLike, frozen: Params, tokenizer_sha256: str) -> str:
    """Writes the frozen weights of a new run, and returns an id for its checkpoints to name them by.

    What a start that came to nothing has left there goes.
    """
    folder = epath.Path(workdir) / FROZEN
    with processes.together("Saving the frozen weights"):
        if processes.is_first() and folder.exists():
            folder.rmtree()
    written = processes.from_first(lambda: secrets.token_hex(8), "Saving the frozen weights")
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        meta = Meta(0, tokenizer_sha256=tokenizer_sha256, extra={"id": written})
        checkpoints.save({"params": frozen}, meta)
    return written


def restore_frozen(
    workdir: epath.PathLike, abstract: PyTree, meta: Meta, *, as_stored: bool = False
) -> Params:
    """The frozen weights of a run, of which a checkpoint has this meta.

    Errors: UserError when they are missing, damaged, of another model or of another run.
    """
    folder = epath.Path(workdir) / FROZEN
    checkpoints = Checkpoints(folder)
    if processes.from_first(checkpoints.latest_step, "The frozen weights") is None:
        raise UserError(
            f"{folder} is missing: it holds the weights that this run does not train, and its checkpoints only the "
            "others. Put it back, or train in another --workdir."
        )
    restored = checkpoints.restore_params(abstract, as_stored=as_stored)
    found, expected = restored.meta.extra.get("id"), meta.extra.get("frozen")
    if found != expected:
        raise UserError(
            f"{folder} holds the weights that another run has frozen (id {found}, the checkpoint of step {meta.step} "
            f"names {expected}): together they are no model. Put this run's own back, or train in another --workdir."
        )
    return restored.state


def restore_parts(
    workdir: epath.PathLike, lm: LM, tuning: Tuning, mesh: Mesh | None = None, **how: Any
) -> tuple[Restored, Params]:
    """The trained weights of a step, with its meta, and the frozen ones; `how` as of `Checkpoints.restore_params`."""
    trained, frozen = abstract_params(lm, tuning, mesh)
    restored = Checkpoints(epath.Path(workdir) / CHECKPOINTS).restore_params(trained, **how)
    if not tuning.freezes:
        return restored, {}
    return restored, restore_frozen(workdir, frozen, restored.meta, as_stored=how.get("as_stored", False))


def restore_model(
    workdir: epath.PathLike, lm: LM, tune: TuneConfig, mesh: Mesh | None = None, **how: Any
) -> Restored:
    """All weights of a run's model, adapters added; arguments as of `restore_parts`."""
    import jax

    from jaxlm.train.tuning import EVERYTHING, Tuning

    tuning = Tuning(tune)
    restored, frozen = restore_parts(workdir, lm, tuning, mesh, **how)
    params = tuning.whole(restored.state, frozen)
    if mesh is not None and tuning.freezes:
        places = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(lm, EVERYTHING, mesh)[0])
        params = jax.device_put(params, places)
    return Restored(params, restored.meta)
