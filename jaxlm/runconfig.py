"""RunConfig: all sections of a run, and the rules that cross them. Imports no JAX.

Everything is checked before a device is touched: a second on the host beats an hour in the queue.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import prod
from typing import TYPE_CHECKING, Any

from jaxlm.config import (
    Difference,
    check_choice,
    diff,
    divisors,
    from_config_dict,
    load_section,
    to_config_dict,
    to_json,
)
from jaxlm.config_flags import parse_config_flags
from jaxlm.data.config import ClassifyConfig, DataConfig, InstructConfig, TokenizerConfig
from jaxlm.models.config import ModelConfig
from jaxlm.parallel.config import MeshConfig
from jaxlm.train.config import CheckpointConfig, OptimizerConfig, ReportConfig, TrainConfig, TuneConfig
from jaxlm.types import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

OBJECTIVES = ("pretrain", "instruct", "classify")
"""Keys of objectives.OBJECTIVES, here because that module needs JAX."""

MAY_CHANGE = (
    "train.num_steps", "train.num_microbatches", "train.loss_chunk_tokens", "train.max_bad_steps",
    "train.on_bad_steps", "train.eval_every_steps", "train.eval_batches", "train.log_every_steps",
    "train.profile_steps", "train.step_timeout_s",
    "checkpoint.*", "mesh.*", "report.*", "model.remat", "model.scan_layers", "model.attention",
    "model.attention_blocks", "data.cache_dir", "data.sources.*.on_exhausted", "data.sources.*.max_epochs",
)  # fmt: skip
"""Keys that a restart in the same workdir may change: how long, how often, on what, with which limits.
The rest says which run it is. (A new num_steps also stretches a schedule that ends with it.)"""


@dataclass(frozen=True)
class RunConfig:
    """One run, whole: a pure function of (this, seed, step)."""

    objective: str = "pretrain"
    """What is learnt: `pretrain` (next token of any text), `instruct` (of answers), `classify` (labels)."""
    seed: int = 0
    """Of initial weights, order of the data and dropout."""
    init_from: str | None = None
    """What a new run starts from, with its model and tokenizer: the workdir of a run, the folder of a Hugging Face
    checkpoint, or the name of one on the hub. Unset: random weights."""
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    instruct: InstructConfig = field(default_factory=InstructConfig)
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self):
        check_choice("objective", self.objective, OBJECTIVES)
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} must be in [0, 2**32).")


def default_config() -> Any:
    """A locked ConfigDict of every key with type and default; data.sources is empty and open to new names.

    Declared as Any, since type checkers would take its sections for leaves in everybody's config files.
    """
    return to_config_dict(RunConfig())


def parse(argv: list[str]) -> ConfigDict:
    """`--config=NAME_OR_PATH[:arg]` and `--config.key=value` flags -> locked ConfigDict, for `resolve`."""
    return parse_config_flags(argv, RunConfig)


def resolve(config: ConfigDict | Mapping[str, Any], workdir: str | os.PathLike | None = None) -> RunConfig:
    """Checks every section and what crosses sections. Touches no device; opens no file but configs of `init_from`.

    Args:
      workdir: of the run; what was taken from init_from when it began stands in it.

    Errors: UserError naming the key, the rule and valid choices.
    """
    cfg = from_config_dict(RunConfig, config)
    if cfg.init_from is not None:
        from jaxlm.origin import with_origin

        cfg = with_origin(cfg, workdir)
    cfg = _with_packing(cfg)
    _check_data(cfg)
    _check_objective(cfg)
    _check_steps(cfg)
    _check_lengths(cfg)
    known = {axis: size for axis, size in cfg.mesh.sizes.items() if size != -1}
    _check_batch(cfg, known)
    _check_widths(cfg, known)
    _check_pieces(cfg, known)
    return cfg


def _with_packing(cfg: RunConfig) -> RunConfig:
    """Fills in data.packing. Errors: UserError for one that the objective cannot use."""
    packings = {"pretrain": ("concat", "best_fit"), "instruct": ("best_fit", "pad"), "classify": ("pad",)}
    usable, packing = packings[cfg.objective], cfg.data.packing
    if packing is None:
        return replace(cfg, data=replace(cfg.data, packing=usable[0]))
    if packing not in usable:
        raise UserError(
            f"data.packing={packing!r} is not for objective={cfg.objective!r}, which takes "
            f"{' or '.join(map(repr, usable))}: leave it unset."
        )
    return cfg


def _check_objective(cfg: RunConfig) -> None:
    """Sections and keys that the objective would ignore, or cannot do without."""
    for section, objective in (("instruct", "instruct"), ("classify", "classify")):
        changed = diff(type(getattr(cfg, section))(), getattr(cfg, section))
        if changed and cfg.objective != objective:
            raise UserError(
                f"{section}.{changed[0].key}={changed[0].b!r} would be ignored: objective={cfg.objective!r}. Try "
                f"objective={objective!r}."
            )
    if cfg.model.num_classes is not None and cfg.objective != "classify":
        raise UserError(
            f"model.num_classes={cfg.model.num_classes} is of a classifier, but objective={cfg.objective!r}. Try "
            "objective='classify', or start from a language model."
        )
    if cfg.objective == "classify" and cfg.train.z_loss:
        raise UserError(
            f"train.z_loss={cfg.train.z_loss} would be ignored: objective='classify'. Try z_loss=0.0."
        )
    if cfg.tune.train == "head" and cfg.objective != "classify":
        raise UserError(
            f"tune.train='head' is the head of a classifier, but objective={cfg.objective!r}. Try tune.train="
            "'last_blocks' or 'lora'."
        )
    if cfg.tune.train == "last_blocks" and cfg.tune.num_blocks >= cfg.model.num_layers:
        raise UserError(
            f"tune.num_blocks={cfg.tune.num_blocks} must be below model.num_layers={cfg.model.num_layers}: something "
            "has to be frozen. Try tune.train='all'."
        )
    if cfg.tune.train == "lora" and cfg.model.num_experts is not None:
        mlp = [name for name in cfg.tune.targets if name in ("up", "gate", "down")]
        if mlp or cfg.tune.quantize:
            key = f"tune.quantize={cfg.tune.quantize!r}" if not mlp else f"tune.lora_targets: {mlp[0]!r}"
            raise UserError(
                f"{key} needs one MLP in each block, and model.num_experts={cfg.model.num_experts}: experts have "
                "neither adapters nor fewer bits. Try tune.lora_targets='q,k,v,o', and leave tune.quantize unset."
            )
    if cfg.report.prompts and (cfg.objective == "classify" or not cfg.train.eval_batches):
        reason = "a classifier writes no text" if cfg.objective == "classify" else "train.eval_batches=0"
        raise UserError(
            f"report.sample_prompts={cfg.report.sample_prompts!r} would be ignored, since they are continued at "
            f"evaluations and {reason}. Leave it empty."
        )
    _check_ignored_tuning(cfg)


def _check_ignored_tuning(cfg: RunConfig) -> None:
    """Keys of `tune` that its `train` would ignore."""
    for difference in diff(TuneConfig(), cfg.tune):
        key = difference.key
        is_lora = key.startswith("lora_") and cfg.tune.train != "lora"
        if is_lora or (key == "num_blocks" and cfg.tune.train != "last_blocks"):
            needed = "lora" if is_lora else "last_blocks"
            raise UserError(
                f"tune.{key}={difference.b!r} would be ignored: tune.train={cfg.tune.train!r}. Try tune.train="
                f"{needed!r}, or set tune.{key}={difference.a!r}, its default."
            )


def check_start(cfg: RunConfig) -> None:
    """What a training needs beyond a plan of it. Errors: UserError."""
    if cfg.tune.train != "all" and cfg.init_from is None:
        raise UserError(
            f"tune.train={cfg.tune.train!r} freezes weights that init_from brings, and init_from is unset: random ones "
            "would stay random. Set init_from, or try tune.train='all'."
        )


def _check_data(cfg: RunConfig) -> None:
    sources = cfg.data.sources
    if not sources:
        raise UserError(
            "data.sources is empty: a run needs text to read. Try "
            "--config.data.sources.mine.path=FILE_OR_FOLDER, or path=embedded:topics for the English that "
            "ships with Python."
        )
    if not any(source.weight_tokens for source in sources.values()):
        raise UserError(
            "data.sources: every weight_tokens is 0, so no source would be read. Give one of them a positive "
            f"weight ({', '.join(sources)})."
        )
    held_out = cfg.data.eval_fraction or any(source.eval_path for source in sources.values())
    if cfg.train.eval_batches and not held_out:
        raise UserError(
            f"train.eval_batches={cfg.train.eval_batches} needs held-out text, but data.eval_fraction=0.0. "
            "Try eval_fraction=0.02, or eval_batches=0 for no evaluation."
        )
    if cfg.checkpoint.keep_best and not cfg.train.eval_batches:
        raise UserError(
            "checkpoint.keep_best=True needs held-out losses to compare, but train.eval_batches=0. Try "
            "eval_batches=8."
        )


def _check_steps(cfg: RunConfig) -> None:
    optimizer, num_steps = cfg.optimizer, cfg.train.num_steps
    if optimizer.decay_steps is not None and optimizer.schedule == "constant":
        raise UserError(
            f"optimizer.decay_steps={optimizer.decay_steps} would be ignored: "
            "optimizer.schedule='constant' does not decay. Try schedule='wsd', or unset decay_steps."
        )
    window = cfg.train.profile_window
    if window is not None and window[1] > num_steps:
        raise UserError(
            f"train.profile_steps={cfg.train.profile_steps!r} must end by train.num_steps={num_steps}. Try "
            f"profile_steps='{max(num_steps - 5, 0)}:{num_steps}'."
        )


def _check_lengths(cfg: RunConfig) -> None:
    model, seq_len = cfg.model, cfg.data.seq_len
    if model.positions == "learned" and model.max_seq_len is not None and model.max_seq_len < seq_len:
        raise UserError(
            f"data.seq_len={seq_len} must not exceed model.max_seq_len={model.max_seq_len}: learned "
            f"positions have no rows beyond it. Try seq_len={model.max_seq_len}, or max_seq_len={seq_len}."
        )
    trained = cfg.init_from is None and cfg.tokenizer.path is None  # else that of the weights, or of a file
    known = trained and cfg.tokenizer.kind != "char"  # char: once the text is read
    if known and model.vocab_size is not None and model.vocab_size < cfg.tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size={model.vocab_size} must be at least tokenizer.vocab_size="
            f"{cfg.tokenizer.vocab_size}: every token needs a row of the "
            "embedding. Try leaving model.vocab_size unset (None)."
        )


def _check_batch(cfg: RunConfig, sizes: Mapping[str, int]) -> None:
    """The batch against microbatches and those mesh axes whose size is known."""
    batch, micro = cfg.data.global_batch_size, cfg.train.num_microbatches
    axes = {axis: sizes.get(axis, 1) for axis in ("data", "fsdp", "expert")}
    unit = micro * prod(axes.values())
    if batch % unit == 0:
        return
    parts = [
        f"train.num_microbatches={micro}",
        *(f"mesh.{axis}={size}" for axis, size in axes.items() if size > 1),
    ]
    nearest_sizes = [size for size in (batch // unit * unit, -(-batch // unit) * unit) if size]
    raise UserError(
        f"data.global_batch_size={batch} must be a multiple of {' x '.join(parts)}"
        + (f" = {unit}" if len(parts) > 1 else "")
        + ": every microbatch is cut evenly over the mesh. Try global_batch_size="
        + f"{' or '.join(map(str, nearest_sizes))}."
    )


def _check_widths(cfg: RunConfig, sizes: Mapping[str, int]) -> None:
    """Dims of the weights against the mesh axes that split them."""
    model, num_parts = cfg.model, sizes.get("expert", 1)
    if num_parts > 1 and model.num_experts is None:
        raise UserError(
            f"mesh.expert={num_parts} has nothing to split: model.num_experts is unset, so every layer has one MLP. "
            f"Try mesh.data={num_parts} or mesh.fsdp={num_parts}, and mesh.expert=1."
        )
    dims = [
        ("tensor", "model.num_heads", model.num_heads),
        ("tensor", "model.num_kv_heads", model.kv_heads),
        ("tensor", "model.mlp_dim", model.mlp_width),
        ("tensor", "model.vocab_size", model.vocab_size),
        ("fsdp", "model.embed_dim", model.embed_dim),
        ("expert", "model.num_experts", model.num_experts),
    ]
    for axis, key, width in dims:
        size = sizes.get(axis, 1)
        if width is not None and width % size:
            fits = [d for d in divisors(width) if d <= 2 * size]
            raise UserError(
                f"{key}={width} must be a multiple of mesh.{axis}={size}: each device holds an equal part. "
                f"Try mesh.{axis} in {fits}, or {key}={-(-width // size) * size}."
            )


def _check_pieces(cfg: RunConfig, sizes: Mapping[str, int]) -> None:
    """The length of rows against the mesh axis that cuts it; rows of any width are padded to what it takes."""
    num, seq_len = sizes.get("sequence", 1), cfg.data.seq_len
    unit = 2 * num
    if num > 1 and cfg.data.packing != "pad" and seq_len % unit:
        nearest_lengths = [
            length for length in (seq_len // unit * unit, -(-seq_len // unit) * unit) if length
        ]
        fits = [d for d in divisors(seq_len // 2) if d <= unit] if seq_len % 2 == 0 else [1]
        raise UserError(
            f"data.seq_len={seq_len} must be a multiple of 2 x mesh.sequence={num} = {unit}: each device has two "
            f"pieces of every row. Try seq_len={' or '.join(map(str, nearest_lengths))}, or mesh.sequence in {fits}."
        )


def resolve_mesh(cfg: RunConfig, num_devices: int) -> dict[str, int]:
    """Axis -> size with -1 filled in, outermost first, for this many devices.

    Errors: UserError when the axes do not multiply to the number of devices, or not divide batch and model.
    """
    sizes = cfg.mesh.sizes
    wild = next((axis for axis, size in sizes.items() if size == -1), None)
    fixed = prod(size for size in sizes.values() if size != -1)
    said = " x ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    if num_devices % fixed or (wild is None and fixed != num_devices):
        rule = "divide" if wild else "multiply to"
        raise UserError(
            f"{said} must {rule} the {num_devices} devices. Try mesh.fsdp=-1 (all that are left), with "
            f"mesh.data, mesh.expert, mesh.sequence and mesh.tensor in {divisors(num_devices)}."
        )
    if wild is not None:
        sizes[wild] = num_devices // fixed
    _check_batch(cfg, sizes)
    _check_widths(cfg, sizes)
    _check_pieces(cfg, sizes)
    return sizes


def save_config(path: str | os.PathLike, cfg: RunConfig) -> None:
    """Writes the resolved config as JSON; whoever reads the file sees all of it, or what was there before."""
    from jaxlm.data.files import write_atomic

    write_atomic(path, to_json(cfg).encode())


def load_config(path: str | os.PathLike) -> RunConfig:
    """What save_config wrote. Errors: UserError naming the file, the key that is wrong in it, and a way out."""
    try:
        return load_section(RunConfig, path)
    except UserError as error:
        raise UserError(
            f"{error} It must be the config of the run in its folder, as jaxlm saved it. Restore it (each "
            'checkpoint has a copy, under "config" in checkpoints/STEP/meta/metadata), or train in another '
            "--workdir."
        ) from None


def restart_differences(saved: RunConfig | Mapping[str, Any], new: RunConfig) -> list[Difference]:
    """(key, saved value, new value) of every key that makes `new` another run than the one in the workdir.

    Keys of MAY_CHANGE are left out. So are model.vocab_size and num_classes where one side leaves them to the
    tokenizer and the data: their hashes are compared elsewhere.
    """
    if not isinstance(saved, RunConfig):
        saved = from_config_dict(RunConfig, saved)
    return [
        difference
        for difference in diff(saved, new)
        if not any(fnmatchcase(difference.key, pattern) for pattern in MAY_CHANGE)
        and not (difference.key in ("model.vocab_size", "model.num_classes") and None in difference[1:])
    ]
