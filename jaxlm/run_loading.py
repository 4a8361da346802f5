"""A trained run, loaded to be asked or exported: its config, weights and tokenizer.

Imports JAX and the model where they are used: a folder that holds no run is refused before that.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from etils import epath

from jaxlm import compile_cache
from jaxlm.data.files import reachable
from jaxlm.report.missing_run import missing_run
from jaxlm.run_data import with_vocabulary
from jaxlm.runconfig import RunConfig, load_config
from jaxlm.types import Params, UserError
from jaxlm.workdir import CHECKPOINTS, CONFIG_FILE

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxlm.checkpoint_meta import Meta
    from jaxlm.data.tokenizer import Tokenizer
    from jaxlm.models.build import LM


class LoadedRun(NamedTuple):
    """A trained model, ready to be asked."""

    config: RunConfig
    lm: LM
    params: Params
    tokenizer: Tokenizer
    meta: Meta

    @property
    def step(self) -> int:
        return self.meta.step

    @property
    def context_tokens(self) -> int:
        """The longest text the model has learned from, or was made for."""
        return max(self.config.data.seq_len, self.config.model.max_seq_len or 0)


class LoadedWeights(NamedTuple):
    """The model of a checkpoint."""

    config: RunConfig
    lm: LM
    params: Params
    meta: Meta


def load_weights(
    workdir: str | os.PathLike,
    tokenizer: Tokenizer | None,
    step: int | None = None,
    *,
    as_stored: bool = False,
    make_mesh: Callable[[RunConfig], Mesh] | None = None,
) -> LoadedWeights:
    """Loads the weights (not the optimizer state) of a run's latest, or given, step.

    Args:
      tokenizer: that of the run; None for one that was imported without.
      as_stored: weights keep the dtype of the checkpoint (that of an imported one may be bfloat16); else float32.
      make_mesh: over which they are spread; None: one device.

    Errors: UserError when there is no run or no checkpoint, or when its tokenizer is another.
    """
    folder = _run_folder(workdir)
    cfg = load_config(folder / CONFIG_FILE)

    compile_cache.use_default()
    from jaxlm.checkpoint import Checkpoints
    from jaxlm.models.build import build
    from jaxlm.run_weights import on_mesh, restore_model, with_saved_sizes

    if tokenizer is not None:
        cfg = with_vocabulary(cfg, tokenizer)
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    if checkpoints.latest_step() is None:
        raise UserError(
            f"--run={folder} has no checkpoint yet: the first is saved at step {cfg.checkpoint.every_steps}."
        )
    cfg = dataclasses.replace(cfg, model=with_saved_sizes(cfg.model, checkpoints))
    mesh = None if make_mesh is None else make_mesh(cfg)
    lm = build(cfg.model, cfg.data.seq_len, **({} if mesh is None else on_mesh(mesh)))
    how: dict[str, Any] = {"tokenizer_sha256": "" if tokenizer is None else tokenizer.sha256}
    params, meta = restore_model(folder, lm, cfg.tune, mesh, step=step, as_stored=as_stored, **how)
    return LoadedWeights(cfg, lm, params, meta)


def _run_folder(workdir: str | os.PathLike) -> epath.Path:
    folder = reachable(workdir)
    if not (folder / CONFIG_FILE).exists():
        raise missing_run(workdir, "--run=")
    return folder


def run_tokenizer(workdir: str | os.PathLike) -> Tokenizer | None:
    """The tokenizer of a run; None where its folder has none."""
    from jaxlm.data.tokenizer import load_tokenizer, saved_tokenizer

    saved = saved_tokenizer(_run_folder(workdir))
    return load_tokenizer(saved) if saved.exists() else None


def load_run(
    workdir: str | os.PathLike, step: int | None = None, make_mesh: Callable[[RunConfig], Mesh] | None = None
) -> LoadedRun:
    """Loads the weights (not the optimizer state) and tokenizer of a run's latest, or given, step.

    Args:
      make_mesh: as of `load_weights`.

    Errors: UserError when there is no run, no checkpoint or no tokenizer, or when that file is another.
    """
    tokenizer = run_tokenizer(workdir)
    if tokenizer is None:
        raise UserError(
            f"--run={workdir} has no tokenizer, so text is nothing to it. Put its tokenizer.model back; or, where it "
            "was imported from a checkpoint without one, import it again with --tokenizer=PATH."
        )
    cfg, lm, params, meta = load_weights(workdir, tokenizer, step, make_mesh=make_mesh)
    return LoadedRun(cfg, lm, params, tokenizer, meta)
