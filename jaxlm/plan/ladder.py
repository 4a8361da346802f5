"""Configs of a scaling ladder: small runs of one config that differ in size and tokens, for `jaxlm plan scaling`.

Shape. Heads are 64 wide. Width is a multiple of 64; there is one layer for each 64 to 128 of width, and never fewer
than two: Kaplan et al. (arXiv:2001.08361, sections 3.1 and 3.2, figures 5 and 6) find the loss nearly the same over
many shapes, and models of one layer off the trend. Of these shapes the one nearest in parameters is taken.

Learning rate. The base config's, times (base width / width)^0.75. That is near the slope of GPT-3's table 2.1
(arXiv:2005.14165): over its eight sizes, log learning rate falls by 0.77 for each log width (our regression). Warm-up
keeps its share of the steps, and the decay ends with the run: a loss before the end of the decay is no point of the law
(Hoffmann et al., arXiv:2203.15556, section 3.1).

Budgets. A rung of C FLOPs at r tokens per parameter has N = sqrt(C / 6 r), D = r N. Its D is rounded to whole steps.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jaxlm.models.config import ModelConfig
from jaxlm.plan import report
from jaxlm.plan.flops import count_params, flops_per_token, training_flops
from jaxlm.plan.report import Report, Table
from jaxlm.plan.scaling_points import why_not
from jaxlm.types import UserError

if TYPE_CHECKING:
    from jaxlm.train.config import OptimizerConfig

HEAD_DIM = 64
MAX_WIDTH = 32768
LR_EXPONENT = 0.75
MAX_MISS = 1.5
"""A shape further than this factor from the parameters asked for is refused."""
MIN_STEPS = 20
"""Fewer are no training: warm-up and decay need some each."""


@dataclass(frozen=True)
class Base:
    """What a ladder varies: the sections of a resolved config that it needs, and the flags that load it."""

    argv: tuple[str, ...]
    """`--config=...` and overrides."""
    model: ModelConfig
    """With vocab_size filled in."""
    optimizer: OptimizerConfig
    batch_size: int
    seq_len: int
    num_steps: int

    @property
    def step_tokens(self) -> int:
        return self.batch_size * self.seq_len


@dataclass(frozen=True)
class Rung:
    """One run of a ladder."""

    model: ModelConfig
    num_params: int
    num_steps: int
    num_tokens: int
    learning_rate: float
    warmup_steps: int
    flops_per_token: float

    @property
    def name(self) -> str:
        """`n1p2m_d24m`: a file and a workdir."""
        return f"n{_short(self.num_params)}_d{_short(self.num_tokens)}"

    @property
    def flops(self) -> float:
        """6 N D"""
        return training_flops(self.num_params, self.num_tokens)


def _short(value: float) -> str:
    return report.count(value).lower().replace(",", "").replace(".", "p")


def make_ladder(
    base: Base, *, flops: Sequence[float] = (), sizes: Sequence[float] = (), ratios: Sequence[float]
) -> list[Rung]:
    """One rung for each budget (or size) and number of tokens per parameter; the cheapest first.

    Errors: UserError for a size that no shape is near, or fewer steps than `MIN_STEPS`.
    """
    if base.model.num_experts is not None:
        raise UserError(
            f"model.num_experts={base.model.num_experts}: the law is of dense models. Give a config without experts."
        )
    wanted = [(math.sqrt(C / (6 * ratio)), ratio, C) for C in flops for ratio in ratios]
    wanted += [(size, ratio, None) for size in sizes for ratio in ratios]
    rungs = [_rung(base, num_params, ratio, C) for num_params, ratio, C in wanted]
    rungs.sort(key=lambda rung: (rung.flops, rung.num_params))
    double = next(
        (rung for index, rung in enumerate(rungs) if rung.name in {r.name for r in rungs[:index]}), None
    )
    if double:
        raise UserError(
            f"Two rungs are the same, {double.name} ({double.num_params:,} parameters, {double.num_tokens:,} tokens): "
            "put budgets or sizes further apart."
        )
    return rungs


def _rung(base: Base, num_params: float, ratio: float, flops: float | None) -> Rung:
    model = shape(base.model, num_params, base.seq_len)
    count = count_params(model, base.seq_len).total
    num_tokens = ratio * count if flops is None else flops / (6 * count)
    num_steps = round(num_tokens / base.step_tokens)
    if num_steps < MIN_STEPS:
        raise UserError(
            f"A rung of {count:,} parameters and {num_tokens:,.0f} tokens is {num_steps} steps of {base.step_tokens:,} "
            f"tokens, and at least {MIN_STEPS} are needed. Lower --config.data.global_batch_size={base.batch_size}, or "
            "raise the budget."
        )
    warmup_share = min(base.optimizer.warmup_steps / base.num_steps, 0.5)
    return Rung(
        model=model,
        num_params=count,
        num_steps=num_steps,
        num_tokens=num_steps * base.step_tokens,
        learning_rate=float(
            f"{base.optimizer.learning_rate * (base.model.embed_dim / model.embed_dim) ** LR_EXPONENT:.3g}"
        ),
        warmup_steps=max(1, round(warmup_share * num_steps)),
        flops_per_token=flops_per_token(model, base.seq_len).total,
    )


def shape(base: ModelConfig, num_params: float, seq_len: int) -> ModelConfig:
    """The base with the width and depth whose parameters are nearest, as a ratio. Errors: UserError if none is near."""
    best, best_miss = base, math.inf
    for width in range(HEAD_DIM, MAX_WIDTH + 1, HEAD_DIM):
        depths = range(max(2, math.ceil(width / 128)), max(2, width // 64) + 1)
        for depth in depths:
            model = _shaped(base, width, depth)
            miss = abs(math.log(count_params(model, seq_len).total / num_params))
            if miss < best_miss:
                best, best_miss = model, miss
        if count_params(_shaped(base, width, depths[0]), seq_len).total > num_params:
            break
    if best_miss > math.log(MAX_MISS):
        found = count_params(best, seq_len)
        raise UserError(
            f"No model of the ladder is near {num_params:,.0f} parameters: the nearest has {found.total:,}, "
            f"{found.embedding + found.head:,} of them in embedding and head ({best.vocab_size:,} tokens). Ask for "
            "larger budgets or sizes, or lower the vocabulary."
        )
    return best


def _shaped(base: ModelConfig, width: int, depth: int) -> ModelConfig:
    """Query heads per KV head and the relative width of the MLP stay those of the base, as near as heads divide."""
    heads = width // HEAD_DIM
    kv_heads = mlp_dim = None
    if base.num_kv_heads is not None:
        most = max(1, heads * base.num_kv_heads // base.num_heads)
        kv_heads = max(k for k in range(1, most + 1) if heads % k == 0)
    if base.mlp_dim is not None:
        mlp_dim = 64 * max(1, round(base.mlp_dim / base.embed_dim * width / 64))
    return replace(
        base,
        embed_dim=width,
        num_layers=depth,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=None if base.head_dim is None else HEAD_DIM,
        mlp_dim=mlp_dim,
    )


def write_ladder(base: Base, rungs: Sequence[Rung], folder: Path) -> list[Path]:
    """Writes a config for each rung, and run.sh; returns the files. Errors: UserError if the folder holds anything."""
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(
                f"--output={folder} is not empty: files are never overwritten. Choose a new folder, or remove it."
            )
        folder.mkdir(parents=True, exist_ok=True)
        files = {folder / f"{rung.name}.py": config_text(base, rung, rungs, folder) for rung in rungs}
        files[folder / "run.sh"] = script_text(rungs, folder)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
        (folder / "run.sh").chmod(0o755)
    except OSError as error:
        raise UserError(f"--output={folder} cannot be written: {error.strerror}.") from None
    return list(files)


def settings(base: Base, rung: Rung) -> dict[str, int | float | None]:
    """Config key -> value: all in which a rung differs from the base. The decay ends with the run."""
    model = {name: getattr(rung.model, name) for name in ("embed_dim", "num_layers", "num_heads")}
    model |= {
        name: getattr(rung.model, name)
        for name in ("num_kv_heads", "head_dim", "mlp_dim")
        if getattr(base.model, name) is not None
    }
    return {f"model.{name}": value for name, value in model.items()} | {
        "optimizer.learning_rate": rung.learning_rate,
        "optimizer.warmup_steps": rung.warmup_steps,
        "optimizer.decay_steps": None,
        "train.num_steps": rung.num_steps,
        "train.eval_every_steps": rung.num_steps,
    }


def config_text(base: Base, rung: Rung, rungs: Sequence[Rung], folder: Path) -> str:
    """A config file that loads the base and sets what differs."""
    path, workdir = folder / f"{rung.name}.py", folder / "runs" / rung.name
    lines = [f"    cfg.{key} = {value!r}" for key, value in settings(base, rung).items()]
    flags = ", ".join(json.dumps(flag, ensure_ascii=False) for flag in base.argv)
    return f'''"""Rung {rungs.index(rung) + 1} of {len(rungs)} of a scaling ladder: {rung.num_params:,} parameters, \
{rung.num_tokens:,} tokens, {rung.flops:.2e} FLOPs (6 N D).

    jaxlm train --config={shlex.quote(str(path))} --workdir={shlex.quote(str(workdir))}

Written by `jaxlm plan ladder`; {rung.num_tokens / rung.num_params:.3g} tokens per parameter. The learning rate is the
base's, times (base width / width)^{LR_EXPONENT}, near the slope of GPT-3's table 2.1; the decay ends with the run.
Result: not run yet.
"""

from jaxlm import run


def get_config():
    cfg = run.parse([{flags}])

{chr(10).join(lines)}
    return cfg
'''


def script_text(rungs: Sequence[Rung], folder: Path) -> str:
    """The commands, the cheapest first; the fit at the end."""
    lines = [
        "#!/bin/sh",
        "# A scaling ladder, the cheapest run first. Started again, it goes on where it was.",
        "set -e",
    ]
    lines.append('here=$(cd "$(dirname "$0")" && pwd)')
    lines += [
        f'jaxlm train --config="$here/{rung.name}.py" --workdir="$here/runs/{rung.name}"  # {rung.flops:.2e} FLOPs'
        for rung in rungs
    ]
    lines.append('jaxlm plan scaling "$here"/runs/*')
    return "\n".join(lines) + "\n"


def ladder_report(base: Base, rungs: Sequence[Rung], folder: Path, flops_per_s: float | None) -> Report:
    """The table of what was written.

    Args:
      flops_per_s: that a run reaches, of model FLOPs; None: no hours.
    """
    rows, data = [], []
    for rung in rungs:
        hours = None if flops_per_s is None else rung.flops_per_token * rung.num_tokens / flops_per_s / 3600
        shape_text = f"{rung.model.embed_dim} x {rung.model.num_layers}"
        rows.append(
            [
                rung.name,
                shape_text,
                report.count(rung.num_params),
                report.count(rung.num_tokens),
                f"{rung.num_tokens / rung.num_params:.3g}",
                f"{rung.num_steps:,}",
                f"{rung.learning_rate:.3g}",
                report.flops(rung.flops),
                "-" if hours is None else report.days(hours / 24),
            ]
        )
        data.append(
            {
                "name": rung.name,
                "embed_dim": rung.model.embed_dim,
                "num_layers": rung.model.num_layers,
                "params": rung.num_params,
                "tokens": rung.num_tokens,
                "steps": rung.num_steps,
                "learning_rate": rung.learning_rate,
                "flops": rung.flops,
                "hours": hours,
            }
        )
    total = sum(rung.flops for rung in rungs)
    notes = [f"Shape: width x layers. FLOPs: 6 N D, {report.flops(total)} in all."]
    if flops_per_s is not None:
        all_hours = sum(row["hours"] for row in data)
        notes.append(
            f"Time: model FLOPs (products with weights and attention) at {report.flops(flops_per_s)} FLOP/s, "
            f"{report.days(all_hours / 24)} in all."
        )
    reason = why_not([rung.num_params for rung in rungs], [rung.num_tokens for rung in rungs])
    return Report(
        title=f"A scaling ladder of {' '.join(base.argv)}: {len(rungs)} runs in {folder}",
        tables=[
            Table(
                "Runs, the cheapest first",
                ["config", "shape", "N", "D", "D / N", "steps", "rate", "FLOPs", "time"],
                rows,
                notes=notes,
            )
        ],
        warnings=[f"this ladder cannot be fitted: {reason}"] if reason else [],
        notes=[
            "Where D is more than the data holds, a run reads it again, and its loss is no longer a point of the law.",
            f"Run it: sh {shlex.quote(str(folder / 'run.sh'))}",
        ],
        data={"folder": str(folder), "runs": data, "flops": total},
    )
