"""A whole run of a model as small as can be, over a file of text."""

from pathlib import Path
from typing import Any

from jaxlm import run
from jaxlm.runconfig import RunConfig

KEYS = {
    "data.seq_len": 16, "data.global_batch_size": 8, "data.eval_fraction": 0.1, "data.eval_split": "tail",
    "tokenizer.kind": "char", "model.embed_dim": 16, "model.num_layers": 1, "model.num_heads": 2,
    "model.num_kv_heads": 2, "train.num_steps": 2, "train.eval_batches": 1, "train.eval_every_steps": 2,
    "checkpoint.every_steps": 1, "optimizer.warmup_steps": 1, "optimizer.schedule": "constant",
}  # fmt: skip


def small(text: str | Path, **changes: Any) -> RunConfig:
    """A run of two steps; keyword arguments are keys with `__` for the dot."""
    config = run.default_config()
    config.data.sources.mine = {"path": str(text), "on_exhausted": "repeat"}
    config.update_from_flattened_dict(KEYS | {key.replace("__", "."): v for key, v in changes.items()})
    return run.resolve(config)


def write_squares(path: Path, power: int = 2) -> Path:
    """A text to learn from."""
    path.write_text("".join(f"{n} to the {power} is {n**power}.\n" for n in range(300)))
    return path
