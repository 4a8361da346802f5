"""`merge-lora` and `export-hf --adapter`: what becomes of the adapters of a run."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from etils import epath

from jaxlm import compile_cache, processes
from jaxlm.paths import is_local
from jaxlm.types import Params, UserError
from jaxlm.workdir import CHECKPOINTS, CONFIG_FILE

if TYPE_CHECKING:
    from jaxlm.checkpoint_meta import Meta
    from jaxlm.data.tokenizer import Tokenizer
    from jaxlm.models.build import LM
    from jaxlm.runconfig import RunConfig
    from jaxlm.train.tuning import Tuning

TOLERANCE = 1e-5
"""Of the largest logit: how far those of merged and of adapted weights may be apart."""
PROBE_TOKENS = 64


class Adapted(NamedTuple):
    """A run of LoRA, its two parts apart."""

    config: RunConfig
    lm: LM
    tuning: Tuning
    trained: Params
    frozen: Params
    tokenizer: Tokenizer | None
    meta: Meta


def load_adapted(workdir: str | os.PathLike, step: int | None = None) -> Adapted:
    """Loads a run's adapters and what they are added to. Errors: UserError where it has none."""
    from jaxlm.checkpoint import Checkpoints
    from jaxlm.models.build import build
    from jaxlm.run_loading import run_tokenizer
    from jaxlm.run_weights import restore_parts, with_saved_sizes
    from jaxlm.runconfig import load_config
    from jaxlm.train.tuning import Tuning

    tokenizer = run_tokenizer(workdir)
    folder = epath.Path(workdir)
    cfg = load_config(folder / CONFIG_FILE)
    if cfg.tune.train != "lora":
        raise UserError(
            f"--run={workdir} has no adapters: tune.train={cfg.tune.train!r}. Its weights are whole as they are; "
            "`jaxlm export-hf` writes them."
        )
    compile_cache.use_default()
    cfg = dataclasses.replace(cfg, model=with_saved_sizes(cfg.model, Checkpoints(folder / CHECKPOINTS)))
    lm, tuning = build(cfg.model, cfg.data.seq_len), Tuning(cfg.tune)
    sha256 = "" if tokenizer is None else tokenizer.sha256
    restored, frozen = restore_parts(folder, lm, tuning, step=step, tokenizer_sha256=sha256)
    return Adapted(cfg, lm, tuning, restored.state, frozen, tokenizer, restored.meta)


def difference(lm: LM, one: Params, other: Params) -> tuple[float, float]:
    """(largest difference, largest value) of the logits of two sets of weights, on a probe of random ids."""
    import jax
    import jax.numpy as jnp

    from jaxlm.infer.sample import axis_size

    length = min(PROBE_TOKENS, axis_size(lm, one, "positions") or PROBE_TOKENS)
    tokens = jax.random.randint(jax.random.key(0), (2, length), 0, one["embedding"].shape[0])

    @jax.jit
    def logits(params):
        return lm.head(params, lm.hidden(params, {"tokens": tokens}))

    a, b = logits(one), logits(other)
    return float(jnp.max(jnp.abs(a - b))), float(jnp.max(jnp.abs(b)))


def merge_lora(
    workdir: str | os.PathLike,
    out: str | os.PathLike,
    *,
    step: int | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Writes the folder `out` like the workdir of a run that trained all its weights: adapters added in float32.

    Errors: UserError when the run has no adapters or `out` holds something; and when the merged weights do not compute
    what the adapted ones do, or the adapters change nothing.
    """
    from jaxlm.checkpoint import Checkpoints
    from jaxlm.data.files import make_folder
    from jaxlm.models.build import build
    from jaxlm.runconfig import save_config
    from jaxlm.train.config import TuneConfig

    target = _new_folder(out, "merge-lora")
    loaded = load_adapted(workdir, step)
    # In float32, so that what is compared is the merge, not the rounding of a compute dtype.
    lm = build(dataclasses.replace(loaded.config.model, dtype="float32"), loaded.config.data.seq_len)
    whole = loaded.tuning.whole(loaded.trained, loaded.frozen)
    apart, largest = difference(lm, whole, loaded.tuning.merge(loaded.trained, loaded.frozen))
    no_adapters = {**loaded.frozen, **{k: w for k, w in loaded.trained.items() if k != "layers"}}
    changed, _ = difference(lm, whole, no_adapters)
    if not apart <= TOLERANCE * max(largest, 1.0):
        raise UserError(
            f"The logits of merged and adapted weights differ by {apart:.3g} of {largest:.3g}, more than "
            f"{TOLERANCE:g}: nothing was written. Is the checkpoint whole? Try another --step."
        )
    if changed == 0:
        raise UserError(
            f"The adapters of step {loaded.meta.step} of {workdir} change nothing: nothing was written. Try a later "
            "--step."
        )
    cfg = dataclasses.replace(loaded.config, tune=TuneConfig(), init_from=None)
    meta = dataclasses.replace(loaded.meta, config=dataclasses.asdict(cfg))
    partial = target.parent / f"{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        make_folder(partial)
        for path in Path(workdir).iterdir():  # tokenizer and chat template
            if path.is_file() and path.name not in _OWN:
                shutil.copy(path, partial)
        with Checkpoints(partial / CHECKPOINTS, cfg.checkpoint) as checkpoints:
            checkpoints.save({"params": whole}, meta)
        save_config(partial / CONFIG_FILE, cfg)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(
        f"{target}: step {meta.step}, merged in float32. Logits of merged and adapted weights differ by at most "
        f"{apart:.2g} (of {largest:.3g}); those of the base by {changed:.3g}."
    )


_OWN = ("config.json", "events.jsonl", "run.lock")
"""Files of a workdir that say how it was trained."""


def _new_folder(out: str | os.PathLike, command: str) -> Path:
    if not processes.is_alone():
        raise UserError(f"{command} is done by one process: start it once, without a launcher.")
    if not is_local(out):
        raise UserError(f"{out}: this is written to this machine; copy it from there.")
    target = Path(os.path.abspath(out))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{out} is there already and not empty. Choose another folder.")
    return target


def export_adapter(
    workdir: str | os.PathLike,
    out: str | os.PathLike,
    *,
    step: int | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Writes the adapters alone, as PEFT loads them. Errors: UserError where there are none, or no family fits."""
    from jaxlm.data.files import make_folder
    from jaxlm.interop.peft import write_adapter
    from jaxlm.run_interop import family_of

    target = _new_folder(out, "export-hf")
    loaded = load_adapted(workdir, step)
    family = family_of(loaded.config.model, loaded.meta)
    make_folder(target)
    write_adapter(
        target,
        family,
        loaded.config.tune,
        loaded.trained["layers"]["lora"],
        base=loaded.meta.extra.get("origin", {}).get("source"),
        classifier=loaded.trained.get("classifier"),
    )
    num_bytes = sum(path.stat().st_size for path in target.iterdir())
    say(
        f"{target}: adapters of step {loaded.meta.step} for a model of {family.architecture}, {num_bytes:,} bytes; "
        f"PeftModel.from_pretrained(base, {str(target)!r}) loads them"
    )
