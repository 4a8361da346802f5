"""The composition root: builds the pieces of a run from its config and hands them to the loop.

Importing this module imports neither JAX nor any data library: config files do so, and a bad config is refused
before a device is touched. What is heavy is imported where it is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from etils import epath

from jaxlm import compile_cache, processes, step_memory
from jaxlm.config import flatten
from jaxlm.models.config import HOST_MEMORY
from jaxlm.run_data import (
    OpenData,
    class_weights,
    make_rows,
    open_data,
    open_data_together,
    with_classes,
    with_vocabulary,
)
from jaxlm.run_loading import load_run
from jaxlm.runconfig import (
    MAY_CHANGE,
    RunConfig,
    check_start,
    default_config,
    load_config,
    parse,
    resolve,
    resolve_mesh,
    restart_differences,
    save_config,
)
from jaxlm.types import Params, UserError
from jaxlm.workdir import CHECKPOINTS, CONFIG_FILE, FROZEN, claim

if TYPE_CHECKING:
    from jaxlm.checkpoint import Checkpoints
    from jaxlm.checkpoint_meta import Meta
    from jaxlm.data.mixture import Plan
    from jaxlm.data.pipeline import Rows
    from jaxlm.models.build import LM
    from jaxlm.parallel.distributed import Cluster
    from jaxlm.train.step import LossFn, TrainState
    from jaxlm.train.tuning import Tuning

__all__ = [
    "MAY_CHANGE", "RunConfig", "default_config", "load_config", "load_run", "open_data", "parse", "resolve",
    "resolve_mesh", "restart_differences", "save_config", "train",
]  # fmt: skip


class Pieces(NamedTuple):
    """What a run is made of, before its first step."""

    lm: LM
    loss: LossFn
    steps: Any
    mesh: Any
    sizes: dict[str, int]
    tuning: Tuning


def build_pieces(
    cfg: RunConfig, class_weights: tuple[float, ...] | None = None, devices: Sequence[Any] | None = None
) -> Pieces:
    """Model, optimizer and steps, compiled on first use, on a mesh over all devices.

    Args:
      class_weights: of the labels of a classification; None: all 1.
      devices: those of the mesh, also such as are only compiled for; None: all there are.
    """
    import jax

    from jaxlm.models.build import build
    from jaxlm.objectives import OBJECTIVES
    from jaxlm.parallel.mesh import make_mesh
    from jaxlm.parallel.sharding import make_constrain, make_constrain_batch, make_spread
    from jaxlm.parallel.xla_options import options_for
    from jaxlm.train.optimizer import make_optimizer, make_schedule
    from jaxlm.train.step import compile_steps, make_eval_step, make_train_step
    from jaxlm.train.tuning import Tuning

    devices = jax.devices() if devices is None else devices
    sizes = resolve_mesh(cfg, len(devices))
    mesh = make_mesh(sizes, devices)
    check_host_memory(cfg, devices[0])
    lm = build(
        cfg.model,
        cfg.data.seq_len,
        platform=devices[0].platform,
        constrain=make_constrain(mesh),
        spread=make_spread(mesh, cfg.train.reduce_dtype, cfg.mesh.sequence_attention),
        lora_dropout=cfg.tune.lora_dropout if cfg.tune.train == "lora" else 0.0,
    )
    tuning = Tuning(cfg.tune)
    options: dict[str, Any] = {"z_loss": cfg.train.z_loss, "chunk_tokens": cfg.train.loss_chunk_tokens}
    if cfg.objective == "classify":
        task, smoothing = cfg.classify.task, cfg.classify.label_smoothing
        options = {"task": task, "label_smoothing": smoothing, "class_weights": class_weights}
        options["num_classes"] = cfg.model.num_classes
    loss = OBJECTIVES[cfg.objective].make_loss(lm, **options)
    tx = make_optimizer(cfg.optimizer)
    train_step = make_train_step(
        loss,
        tx,
        make_schedule(cfg.optimizer, cfg.train.num_steps),
        cfg.train,
        clip_norm=cfg.optimizer.clip_norm,
        dropout_seed=dropout_seed(cfg),
        constrain_batch=make_constrain_batch(mesh),
        tuning=tuning,
    )
    steps = compile_steps(
        lm,
        tx,
        train_step,
        make_eval_step(loss, tuning),
        mesh,
        tuning=tuning,
        compiler_options=options_for(mesh.devices.flat[0].device_kind, cfg.model.dtype),
    )
    return Pieces(lm, loss, steps, mesh, sizes, tuning)


def dropout_seed(cfg: RunConfig) -> int | None:
    """None for a run without dropout."""
    return cfg.seed if cfg.model.dropout or cfg.tune.lora_dropout else None


def check_host_memory(cfg: RunConfig, device: Any) -> None:
    """Raises UserError where `model.remat` keeps something on the host, and JAX has no such memory for the device."""
    hosted, kinds = cfg.model.kept_on_host, [memory.kind for memory in device.addressable_memories()]
    if hosted and HOST_MEMORY not in kinds:
        raise UserError(
            f"model.remat={cfg.model.remat!r} keeps {', '.join(hosted)} in the memory of the host, but JAX has no "
            f"{HOST_MEMORY!r} memory for a {device.platform}, only {', '.join(kinds)}. Try model.remat="
            f"{','.join(cfg.model.kept) or 'full'}."
        )


def abstract_state(pieces: Pieces, cfg: RunConfig) -> Any:
    """Shapes and shardings of the TrainState: what a checkpoint is restored into."""
    import jax

    shapes = jax.eval_shape(pieces.steps.init, jax.random.key(cfg.seed))
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        pieces.steps.shardings,
    )


class Start(NamedTuple):
    """What a run goes on from."""

    state: TrainState
    meta: Meta | None
    """Of the checkpoint that is resumed; None for a new run."""
    words: str
    """Where the weights come from."""
    notes: dict[str, Any]
    """For its checkpoints: the `origin` of weights that were there before the run, the id of what is `frozen`."""
    frozen: Params
    """The weights that are not trained; empty where all are."""


def start_state(cfg: RunConfig, pieces: Pieces, checkpoints: Checkpoints, data: OpenData) -> Start:
    """One order: resume this run; else start from the weights that init_from names; else initialise."""
    if processes.from_first(checkpoints.latest_step, "The latest checkpoint") is not None:
        return saved_state(cfg, pieces, checkpoints, data)
    return fresh_state(cfg, pieces, checkpoints, data)


NOTES = ("origin", "frozen", "rolled_back")
"""Of what a checkpoint says, what the next one says again."""


def saved_state(
    cfg: RunConfig, pieces: Pieces, checkpoints: Checkpoints, data: OpenData, step: int | None = None
) -> Start:
    """A step of this run; None: the latest."""
    from jaxlm.run_weights import abstract_params, restore_frozen

    state, meta = checkpoints.restore(
        abstract_state(pieces, cfg),
        step=step,
        tokenizer_sha256=data.tokenizer.sha256,
        corpus_sha256=data.corpus_sha256,
    )
    words = f"resumed from step {meta.step} in {checkpoints.directory}"
    frozen = {}
    if pieces.tuning.freezes:
        abstract = abstract_params(pieces.lm, pieces.tuning, pieces.mesh)[1]
        frozen = restore_frozen(checkpoints.directory.parent, abstract, meta)
    return Start(state, meta, words, {name: meta.extra[name] for name in NOTES if name in meta.extra}, frozen)


def fresh_state(
    cfg: RunConfig, pieces: Pieces, checkpoints: Checkpoints, data: OpenData, *, keep: bool = True
) -> Start:
    """Step 0 of this run.

    Args:
      keep: what is frozen is saved in the folder of the run.
    """
    import jax

    from jaxlm.run_weights import save_frozen

    tuning = pieces.tuning
    state = pieces.steps.init(jax.random.key(cfg.seed))
    if cfg.init_from is None:
        return Start(state, None, f"initialised from seed {cfg.seed}", {}, {})
    from jaxlm.origin import read_origin
    from jaxlm.train.tuning import fresh_parts, with_parts

    fresh = fresh_parts(state.params)
    state = state._replace(params=None)  # so that the random weights are gone before the others come
    params, words, facts = read_origin(
        cfg.init_from, pieces.lm, pieces.mesh, data.tokenizer.sha256, data.labels
    )
    trained, frozen = tuning.split(with_parts(params, fresh))
    del params
    trained = jax.device_put(trained, pieces.steps.shardings.params)
    notes: dict[str, Any] = {"origin": facts}
    if tuning.freezes:
        frozen = jax.device_put(frozen, pieces.steps.frozen_shardings)
        if keep:
            notes["frozen"] = save_frozen(checkpoints.directory.parent, frozen, data.tokenizer.sha256)
    return Start(state._replace(params=trained), None, words, notes, frozen)


class Run(NamedTuple):
    """A run that is ready to start: its data open, its model built."""

    config: RunConfig
    """With the vocabulary and the number of labels filled in."""
    folder: epath.Path
    data: OpenData
    rows: Rows
    plan: Plan
    pieces: Pieces


def prepare(cfg: RunConfig, folder: epath.Path) -> Run:
    """Opens the data, plans which tokens are read, and builds the model; on all processes together."""
    data = open_data_together(cfg, folder)
    with processes.together("The plan of the data"):
        cfg = with_classes(with_vocabulary(cfg, data.tokenizer), data.labels)
        rows = make_rows(cfg, data)
        plan = rows.plan(cfg.train.num_steps)
        weights = class_weights(cfg, data)
    compile_cache.use_default()
    return Run(cfg, folder, data, rows, plan, build_pieces(cfg, weights))


def expert_products(cfg: RunConfig, device: Any, mesh: dict[str, int]) -> str | None:
    """What multiplies the experts on such a device of this mesh (axis -> devices); None: the model has none."""
    if cfg.model.num_experts is None:
        return None
    from jaxlm.models.moe import picked_products
    from jaxlm.plan.step_products import device_tokens

    tokens = round(device_tokens(cfg, mesh)) // cfg.train.num_microbatches
    return picked_products(cfg.model, mesh, tokens, device.platform)


def start_facts(run: Run, first_step: int, joined: str) -> dict[str, str]:
    """What was decided, for the first screen."""
    from jaxlm.models.attention import describe_attention
    from jaxlm.plan.flops import count_params, weights
    from jaxlm.plan.tuning import trained_weights, tuned_flops_per_token
    from jaxlm.report.progress import quantity
    from jaxlm.run_hooks import plan_numbers

    cfg, mesh, sizes, num_steps = run.config, run.pieces.mesh, run.pieces.sizes, run.plan.num_steps
    B, T = cfg.data.global_batch_size, cfg.data.seq_len
    plan = plan_numbers(run, first_step)
    count = count_params(cfg.model, T)
    at_most = " at most" if cfg.data.packing == "pad" else ""
    active = f" ({count.active:,} for each token)" if count.idle_experts else ""
    facts = {
        "model": f"{count.total:,} parameters{active}, {cfg.model.num_layers} layers, {cfg.model.dtype}",
        "processes": joined,
        "mesh": " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        + f" on {mesh.size} {mesh.devices.flat[0].device_kind} device(s)",
        "attention": describe_attention(cfg.model, mesh.devices.flat[0].platform, sizes["tensor"]),
        "batch": f"{B} x {T} = {B * T:,} tokens a step{at_most}, {cfg.train.num_microbatches} microbatch(es)",
        "steps": f"{first_step:,} to {num_steps:,}; {plan['num_positions']:,} tokens in all{at_most}",
        "predicted": f"{plan['flops']:.3g} FLOPs, {plan['device_bytes'] / 2**30:.2f} GiB a device",
    }
    if products := expert_products(cfg, mesh.devices.flat[0], sizes):
        model = cfg.model
        facts["experts"] = (
            f"{model.num_experts_per_token} of {model.num_experts} for each token, products: {products}"
        )
    if cfg.tune.train != "all":
        num_trained = sum(w.num_params for w in trained_weights(weights(cfg.model, T), cfg.tune))
        base = f", on a base in {cfg.tune.quantize}" if cfg.tune.quantize else ""
        facts["trained"] = f"{num_trained:,} parameters ({cfg.tune.train}){base}; the others are in {FROZEN}/"
    if peak := plan["peak_flops_per_s"]:
        formula = tuned_flops_per_token(cfg.model, T, cfg.tune).formula
        facts["MFU"] = f"share of {quantity(peak, 'FLOP/s')}; FLOPs a token: {formula}"
    return facts


def train(cfg: RunConfig, workdir: str | os.PathLike, cluster: Cluster | None = None) -> dict[str, float]:
    """Trains a run in its workdir, or continues it; returns the last evaluation's scores.

    Args:
      cluster: where the processes of this run meet; None: from the environment. Each of them calls this.

    Errors: hooks.Stopped when a signal ended it early, its last step saved.
    """
    from jaxlm.parallel import distributed
    from jaxlm.source_hash import check_same_code

    check_start(cfg)
    started = time.perf_counter()
    step_memory.before_devices()
    joined = distributed.connect(cluster or distributed.Cluster())
    check_same_code()
    folder = epath.Path(workdir)
    versions = {name: version(name) for name in ("jax", "jaxlm")}
    processes.check_same("The run", versions | {"--workdir": str(folder)} | flatten(cfg))
    with contextlib.ExitStack() as held:
        resuming = processes.from_first(lambda: held.enter_context(claim(folder, cfg)), "The workdir")
        with processes.together("The workdir"):
            if not (folder / CONFIG_FILE).exists():
                raise UserError(
                    f"--workdir={folder} holds no {CONFIG_FILE} here, though the first process has just written "
                    "one: all processes must share it. Give a folder on gs:// or on a shared disk."
                )
        return _train(cfg, folder, resuming=resuming, joined=joined, started=started)


def _train(
    cfg: RunConfig, folder: epath.Path, *, resuming: bool, joined: str, started: float
) -> dict[str, float]:
    """`train` in a workdir that is claimed, the other processes connected."""
    from jaxlm.train.compile_clock import compile_seconds

    compiled = compile_seconds()
    run = prepare(cfg, folder)
    if run.pieces.mesh.devices.flat[0].platform == "cpu":
        step_memory.keep()
    from jaxlm.checkpoint import Checkpoints
    from jaxlm.report.run_report import RunReport
    from jaxlm.run_hooks import fit_until_done_or_stopped, is_finished, log_peak_memory, plan_numbers

    num_steps = run.plan.num_steps
    report = RunReport(folder, cfg.report.names, num_steps=num_steps, config=dataclasses.asdict(run.config))
    with report, Checkpoints(folder / CHECKPOINTS, cfg.checkpoint, warn=report.warning) as checkpoints:
        run.rows.notices.connect(report.event)
        began_state = time.perf_counter()
        state, meta, words, notes, frozen = start_state(run.config, run.pieces, checkpoints, run.data)
        restore_s = time.perf_counter() - began_state if meta is not None else 0.0
        run = run._replace(pieces=run.pieces._replace(steps=run.pieces.steps.bind(frozen)))
        if processes.is_first():  # and not before it is known to be that of the checkpoints
            run.data.tokenizer.save(folder)
            if run.data.chat is not None:
                from jaxlm.data.chat import save_chat

                save_chat(folder, run.data.chat)
        first_step = int(state.step)
        if meta is not None and is_finished(run, meta, checkpoints):
            report.say(
                f"{folder} holds this run, finished at step {first_step}. Raise train.num_steps to go on, or choose "
                "another --workdir."
            )
            return dict(meta.extra.get("scores", {}))
        cut_short = cfg.optimizer.cut_short(num_steps)
        found = "continued" if meta else "new: nothing was saved here before" if resuming else "new"
        report.start(
            {"workdir": f"{folder} ({found})", "weights": words} | start_facts(run, first_step, joined),
            [*run.plan.table().splitlines(), *run.plan.notes, *([cut_short] if cut_short else [])],
        )
        report.event("plan", **plan_numbers(run, first_step))
        report.event(
            "startup",
            seconds=time.perf_counter() - started,
            restore_s=restore_s,
            compile_s=compile_seconds() - compiled,
        )
        began = started - (meta.wall_time_s if meta else 0.0)
        scores, stopped = fit_until_done_or_stopped(
            run, state, report, checkpoints, meta=meta, began=began, notes=notes
        )
        log_peak_memory(report)
        if stopped is not None:
            report.say(str(stopped))
            raise stopped
        report.end(scores, seconds=time.perf_counter() - started)
        return scores
