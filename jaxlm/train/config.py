"""OptimizerConfig, TuneConfig, TrainConfig, CheckpointConfig, ReportConfig. Imports no JAX."""

from __future__ import annotations

from dataclasses import dataclass

from jaxlm.config import check_choice
from jaxlm.types import UserError

REDUCE_DTYPES = ("float32", "bfloat16")
OPTIMIZERS = ("adamw", "adafactor", "lion", "muon")
SCHEDULES = ("cosine", "linear", "constant", "wsd")
WRITERS = ("tensorboard", "wandb", "mlflow")
MAX_SAMPLE_PROMPTS = 16
ON_BAD_STEPS = ("stop", "rollback")
TUNED = ("all", "head", "last_blocks", "lora")
LORA_TARGETS = ("q", "k", "v", "o", "up", "gate", "down")
QUANTIZATIONS = ("int8", "nf4")


@dataclass(frozen=True)
class OptimizerConfig:
    """From gradients to updates: `optimizer.<field>`."""

    name: str = "adamw"
    """`adamw`, `adafactor`, `lion` or `muon`."""
    learning_rate: float = 3e-4
    """Peak, after warm-up."""
    schedule: str = "cosine"
    """`wsd`: warm up, stay, decay linearly over the last decay_steps (Hu et al. 2024, arXiv:2404.06395)."""
    warmup_steps: int = 100
    """Steps in which the learning rate rises to its peak, linearly."""
    decay_steps: int | None = None
    """Length of the decay. Unset: until train.num_steps for cosine and linear, a tenth of it for wsd."""
    final_lr_fraction: float = 0.1
    """Learning rate at the end, as a share of the peak."""
    b1: float = 0.9
    """Decay of the running mean of gradients."""
    b2: float = 0.95
    """Decay of the running mean of their squares."""
    eps: float = 1e-8
    """Added to the root of that mean."""
    weight_decay: float = 0.1
    """Decoupled; on weight matrices only, not on norms, biases and position tables."""
    clip_norm: float | None = 1.0
    """Gradients are scaled down to this global norm; unset: not clipped."""

    def __post_init__(self):
        check_choice("optimizer.name", self.name, OPTIMIZERS)
        check_choice("optimizer.schedule", self.schedule, SCHEDULES)
        if self.learning_rate < 0:
            raise UserError(f"optimizer.learning_rate={self.learning_rate} must not be negative.")
        if self.warmup_steps < 0:
            raise UserError(f"optimizer.warmup_steps={self.warmup_steps} must not be negative.")
        if self.decay_steps is not None and self.decay_steps < 1:
            raise UserError(f"optimizer.decay_steps={self.decay_steps} must be at least 1, or unset.")
        if not 0.0 <= self.final_lr_fraction <= 1.0:
            raise UserError(f"optimizer.final_lr_fraction={self.final_lr_fraction} must be in [0, 1].")
        for name in ("b1", "b2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"optimizer.{name}={getattr(self, name)} must be in [0, 1).")
        if self.eps <= 0:
            raise UserError(f"optimizer.eps={self.eps} must be positive.")
        if self.weight_decay < 0:
            raise UserError(f"optimizer.weight_decay={self.weight_decay} must not be negative.")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UserError(
                f"optimizer.clip_norm={self.clip_norm} must be positive; unset (None) does not clip."
            )

    def decay_in(self, num_steps: int) -> int:
        """Steps that the decay takes in a run of num_steps; 0 for constant."""
        if self.schedule == "constant":
            return 0
        rest = num_steps // 10 if self.schedule == "wsd" else num_steps - self.warmup_steps
        return self.decay_steps or max(rest, 1)

    def cut_short(self, num_steps: int) -> str | None:
        """What to tell the user of a run that ends before its schedule does, such as a trial; None: nothing."""
        decay = self.decay_in(num_steps)
        if self.warmup_steps + decay <= num_steps and self.warmup_steps < num_steps:
            return None
        where, decays = "while the learning rate still rises", ""
        if num_steps > self.warmup_steps:
            where, decays = "before the learning rate has fallen", f" + decay_steps={decay}"
        return (
            f"train.num_steps={num_steps} ends {where} (optimizer.warmup_steps={self.warmup_steps}{decays}): good "
            f"for a trial; for a whole run of this length try warmup_steps={num_steps // 10} and no decay_steps."
        )


@dataclass(frozen=True)
class TuneConfig:
    """Which weights are trained: `tune.<field>`. The rest is frozen: no gradient, no optimizer state, saved once."""

    train: str = "all"
    """`all`; `head`: of a classifier; `last_blocks`: the last num_blocks, the final norm and the head; `lora`: low-rank
    adapters (Hu et al. 2021, arXiv:2106.09685), and the head of a classifier."""
    num_blocks: int = 4
    """Of last_blocks."""
    lora_rank: int = 8
    """Columns of each adapter's two matrices."""
    lora_alpha: float = 16.0
    """Adapters are scaled by alpha / rank."""
    lora_dropout: float = 0.0
    """On the input of each adapter; keyed by step."""
    lora_targets: str = "q,k,v,o,up,gate,down"
    """Matrices that get an adapter, in every block."""
    quantize: str | None = None
    """Keep the frozen matrices of the blocks in `int8` or `nf4` (QLoRA, arXiv:2305.14314); unset: as they are."""

    @property
    def targets(self) -> tuple[str, ...]:
        """lora_targets as names."""
        return tuple(name.strip() for name in self.lora_targets.split(","))

    def __post_init__(self):
        check_choice("tune.train", self.train, TUNED)
        if self.num_blocks < 1:
            raise UserError(f"tune.num_blocks={self.num_blocks} must be at least 1.")
        if self.lora_rank < 1:
            raise UserError(f"tune.lora_rank={self.lora_rank} must be at least 1.")
        if self.lora_alpha <= 0:
            raise UserError(f"tune.lora_alpha={self.lora_alpha} must be positive.")
        if not 0.0 <= self.lora_dropout < 1.0:
            raise UserError(f"tune.lora_dropout={self.lora_dropout} must be in [0, 1).")
        for name in self.targets:
            check_choice("tune.lora_targets", name, LORA_TARGETS)
        if self.quantize is not None:
            check_choice("tune.quantize", self.quantize, QUANTIZATIONS)
            if self.train != "lora":
                raise UserError(
                    f"tune.quantize={self.quantize!r} needs frozen blocks, but tune.train={self.train!r}. Try "
                    "tune.train='lora', or unset tune.quantize."
                )


@dataclass(frozen=True)
class TrainConfig:
    """The loop: `train.<field>`."""

    num_steps: int = 1000
    """Of the whole run; raise it to go on with a finished one."""
    num_microbatches: int = 1
    """The batch is cut into this many parts, one after another: less memory, the same result."""
    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps the softmax normaliser near 1 (PaLM, arXiv:2204.02311, section 5)."""
    reduce_dtype: str = "float32"
    """In which gradients are summed over the devices that split the weights; bfloat16 halves what they send."""
    loss_chunk_tokens: int = 1024
    """Logits exist for this many tokens of a device at a time: [B, T, V] is never whole in memory."""
    max_bad_steps: int = 5
    """A step with a non-finite or spiking loss is skipped, counted and explained; after this many in a row..."""
    on_bad_steps: str = "stop"
    """... `stop` the run; or `rollback`: go on behind them, with the weights of the last checkpoint before them."""
    spike_factor: float | None = None
    """A gradient norm above this many times its running mean makes a bad step; unset: only non-finite ones."""
    eval_every_steps: int = 100
    """Steps between evaluations; the last step always has one."""
    eval_batches: int = 8
    """Held-out batches per source, always the same ones; 0: no evaluation."""
    log_every_steps: int = 10
    """Steps between lines on the terminal; the event log has every step."""
    step_timeout_s: float | None = None
    """End the process with exit code 75 when the loop stands still this long (the first log_every_steps, evaluations
    and saves: an hour at least), to be started again by a supervisor; unset: only warn (see train/watchdog.py)."""
    profile_steps: str | None = None
    """`100:105`: write a profiler trace of these steps to <workdir>/profile."""

    def __post_init__(self):
        for name in ("num_steps", "num_microbatches", "loss_chunk_tokens", "max_bad_steps", "eval_every_steps",
                     "log_every_steps"):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"train.{name}={getattr(self, name)} must be at least 1.")
        check_choice("train.reduce_dtype", self.reduce_dtype, REDUCE_DTYPES)
        check_choice("train.on_bad_steps", self.on_bad_steps, ON_BAD_STEPS)
        if self.eval_batches < 0:
            raise UserError(
                f"train.eval_batches={self.eval_batches} must not be negative; 0 means no evaluation."
            )
        if self.z_loss < 0:
            raise UserError(f"train.z_loss={self.z_loss} must not be negative.")
        if self.spike_factor is not None and self.spike_factor <= 1:
            raise UserError(f"train.spike_factor={self.spike_factor} must be above 1: it multiplies a mean.")
        if self.step_timeout_s is not None and self.step_timeout_s <= 0:
            raise UserError(
                f"train.step_timeout_s={self.step_timeout_s} must be positive; unset (None) only warns."
            )
        if self.profile_steps is not None:
            start, _, stop = self.profile_steps.partition(":")
            if not (start.isdigit() and stop.isdigit() and int(start) < int(stop)):
                raise UserError(
                    f"train.profile_steps={self.profile_steps!r} must read first:last, such as 100:105."
                )

    @property
    def profile_window(self) -> tuple[int, int] | None:
        """(first, last) step of the profiler window, or None."""
        if self.profile_steps is None:
            return None
        start, stop = self.profile_steps.split(":")
        return int(start), int(stop)


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept: `checkpoint.<field>`. The last step of a run is always saved."""

    every_steps: int = 200
    """Steps between checkpoints."""
    keep_last: int = 3
    """The newest that are kept; older ones are deleted, unless something below keeps them."""
    keep_every_steps: int | None = None
    """Steps divisible by this are kept for ever."""
    keep_best: bool = False
    """Also keep the step with the lowest held-out loss."""

    def __post_init__(self):
        for name in ("every_steps", "keep_last", "keep_every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"checkpoint.{name}={value} must be at least 1.")


@dataclass(frozen=True)
class ReportConfig:
    """Where metrics go besides the terminal and <workdir>/events.jsonl: `report.<field>`."""

    writers: str = ""
    """Comma-separated: tensorboard, wandb, mlflow (each an extra of the package)."""
    sample_prompts: str = ""
    """Prompts with | between them, such as `The function returns|Once upon a time`, which are continued greedily after
    every evaluation (48 tokens; of an instruction run, answered); empty: none."""

    def __post_init__(self):
        for name in self.names:
            check_choice("report.writers", name, WRITERS)
        if len(self.prompts) > MAX_SAMPLE_PROMPTS:
            raise UserError(
                f"report.sample_prompts has {len(self.prompts)} prompts, and must have {MAX_SAMPLE_PROMPTS} at most: "
                "each is continued at every evaluation. To sample more, `jaxlm generate` loads a checkpoint."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The writers asked for."""
        return tuple(name.strip() for name in self.writers.split(",") if name.strip())

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts to continue, each once."""
        return tuple(dict.fromkeys(text.strip() for text in self.sample_prompts.split("|") if text.strip()))
