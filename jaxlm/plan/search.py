"""Ways to run one config on one topology: which there are, which may fit, and which to compile first.

A trial is a choice on four axes: rows of a device at a time, `model.remat`, mesh, `model.attention_blocks`. Rows of a
device make `data.global_batch_size`: rows x devices that see other rows x `train.num_microbatches`. Where the batch is
to be kept, fewer rows at a time are more microbatches instead.

Nothing is compiled here, and no JAX is imported. What `plan/memory.py` predicts far above the memory of a device is
left out; the rest is ordered by a rough time of a step, which no report shows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jaxlm
from jaxlm.parallel.xla_options import options_for
from jaxlm.plan import memory, placement
from jaxlm.plan.flops import weights
from jaxlm.plan.hardware import CHIPS, product_flops_per_s
from jaxlm.plan.run_plan import budget
from jaxlm.plan.search_axes import Axes, changed_run, mesh_text, shards
from jaxlm.plan.topology import Topology
from jaxlm.types import UserError

MARGIN, LORA_MARGIN = 0.25, 0.5
"""What is predicted to need more of a device's memory than there is by this share is not compiled: predictions are
within 14 % of what is compiled, and 23 to 40 % above it for LoRA (see `plan/memory.py`)."""

NOT_HIDDEN = 0.2
"""Of products and weights on the wire, the share of the shorter one that the longer one does not hide: a guess, so that
among trials that compute the same, those that fetch less come first."""

ENVIRONMENT = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")
"""Variables that change what a compiler makes of a program."""


class Trial(NamedTuple):
    """One way to run."""

    rows: int
    """Of a device, at a time."""
    remat: str
    mesh: dict[str, int]
    """Every axis, none left open."""
    blocks: str | None
    """As model.attention_blocks is written; None: the default of the kernel."""
    run: Any
    """The RunConfig of all that."""
    predicted_bytes: int
    """Of a device, by the planner."""
    rough_s: float
    """Of a chip and a token: for the order alone."""

    @property
    def flags(self) -> list[str]:
        """What makes the config this trial."""
        model, keys = self.run.model, [f"mesh.{axis}={size}" for axis, size in self.mesh.items()]
        keys = [
            f"data.global_batch_size={self.run.data.global_batch_size}",
            f"train.num_microbatches={self.run.train.num_microbatches}",
            f"model.remat={model.remat}",
            f"model.attention_blocks={model.attention_blocks}",
            *keys,
        ]
        return [f"--config.{key}" for key in keys]

    @property
    def name(self) -> str:
        """For people."""
        said = f"rows {self.rows}, remat {self.remat}, mesh {mesh_text(self.mesh)}"
        return said if self.blocks is None else f"{said}, blocks {self.blocks}"

    @property
    def choices(self) -> dict[str, Any]:
        """For --json."""
        return {
            "rows": self.rows,
            "remat": self.remat,
            "mesh": dict(self.mesh),
            "attention_blocks": self.blocks,
            "global_batch_size": self.run.data.global_batch_size,
            "num_microbatches": self.run.train.num_microbatches,
        }

    def has_fewer_rows(self, other: Trial) -> bool:
        """Whether it is the other trial but for fewer rows."""
        return self.rows < other.rows and self[1:4] == other[1:4]


class Left(NamedTuple):
    """A trial that is not compiled."""

    trial: Trial
    why: str


class Grid(NamedTuple):
    """All trials: in the order in which to compile them, and those to leave out."""

    trials: list[Trial]
    left: list[Left]


def make_grid(
    run: Any, on: Topology, axes: Axes, *, margin: float, keeps_batch: bool, check: Callable[[Any], Any]
) -> Grid:
    """All trials: those to compile, the promising ones first, and those to leave out, each with the reason.

    Args:
      margin: share of a device's memory by which a prediction may be too large.
      keeps_batch: whether `data.global_batch_size` stays, and microbatches follow from the rows.
      check: raises UserError for a run that does not go on these devices.
    """
    limit = None if on.chip is None else placement.limit_bytes(on.chip)
    kept, borderline, left = [], [], []
    for rows, remat, mesh, blocks in itertools.product(axes.rows, axes.remats, axes.meshes, axes.blocks):
        whole = rows * shards(mesh)
        batch, num_parts = whole * run.train.num_microbatches, run.train.num_microbatches
        if keeps_batch:
            batch, num_parts = run.data.global_batch_size, max(run.data.global_batch_size // whole, 1)
        changed = changed_run(run, batch, num_parts, remat, mesh, blocks)
        trial = Trial(rows, remat, mesh, blocks, changed, 0, 0.0)
        if batch % (whole * num_parts):
            left.append(Left(trial, f"{whole:,} rows at a time do not divide the {batch:,} of a step"))
            continue
        try:
            check(changed)
        except UserError as error:
            left.append(Left(trial, str(error)))
            continue
        total = memory.predict(changed, mesh, on.num_devices, platform=on.platform).total
        trial = trial._replace(predicted_bytes=total, rough_s=rough_s(changed, mesh, on))
        if limit is not None and total > (1 + margin) * limit:
            left.append(Left(trial, f"predicted to be more than {margin:.0%} too large"))
        elif limit is not None and total > limit:
            borderline.append(trial)
        else:
            kept.append(trial)
    for some in (kept, borderline):
        some.sort(key=lambda trial: (trial.rough_s, trial.predicted_bytes))
    return Grid([*kept, *borderline], left)


def rough_s(run: Any, mesh: dict[str, int], on: Topology) -> float:
    """Of one chip and token: products, those that remat repeats, and what the mesh sends; to order trials by.

    Weights are mostly fetched ahead, so of products and weights on the wire the longer one counts, and a part of the
    other; along `tensor` a layer waits. For CPUs the figures are those of a v5e.
    """
    chip = on.chip or CHIPS["v5e"]
    device, model, tune = chip.device(), run.model, run.tune
    found = budget(run)
    peak = (product_flops_per_s(chip, model.dtype) or chip.training_flops_per_s) * chip.share()
    tokens = found.tokens_per_step / on.num_devices
    compute_s = (found.per_token.total * tokens + repeated_flops(run, tokens)) / peak

    fsdp, tensor, num_parts = mesh["fsdp"], mesh["tensor"], run.train.num_microbatches
    held = found.params.total / (tensor * mesh["expert"])
    trained = held if tune.train == "all" else 0.0
    reduce_bytes = 2 if run.train.reduce_dtype == "bfloat16" else 4
    weights_bytes = (1 - 1 / fsdp) * (num_parts * 2 * 2 * held + num_parts * reduce_bytes * trained)
    weights_bytes += 2 * (1 - 1 / mesh["data"]) * reduce_bytes * trained / fsdp
    waited_bytes = (1 - 1 / tensor) * model.num_layers * 8 * 2 * model.embed_dim * tokens * tensor
    wire = device.link_bytes_per_s
    shorter_s, longer_s = sorted((compute_s, weights_bytes / wire))
    step_s = longer_s + NOT_HIDDEN * shorter_s + waited_bytes / wire
    return step_s * on.num_chips / found.tokens_per_step


def repeated_flops(run: Any, tokens: float) -> float:
    """Of the forward pass, what the backward pass computes again under `model.remat`, for so many tokens."""
    model = run.model
    if model.remat == "none":
        return 0.0
    kept = {*model.kept, *model.kept_on_host}
    matrices = [w for w in weights(model, run.data.seq_len) if w.axes[0] == "layers" and w.is_matrix]
    again = sum(2.0 * w.active_params(model) for w in matrices if w.name not in {*kept, "down"})
    if "attention" not in kept:
        again += budget(run).per_token.attention / 3
    return again * tokens


def digest(trial: Trial, on: Topology, versions: dict[str, str]) -> str:
    """Of all that decides what a compiler makes of a trial: 24 hexadecimal digits."""
    kinds = (on.platform,) if on.chip is None else on.chip.device_kinds
    everything = {
        "config": dataclasses.asdict(trial.run),
        "topology": [on.slice_name, on.num_slices],
        "versions": {**versions, "jaxlm": jaxlm.__version__},
        "options": {kind: options_for(kind, trial.run.model.dtype) for kind in kinds},
        "environment": {name: os.environ.get(name, "") for name in ENVIRONMENT},
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:24]


def beaten(points: Iterable[tuple[float, float]]) -> list[int | None]:
    """For (speed, bytes) of each trial, the fastest one that is as fast in no more bytes; None: on the Pareto front.

    Of equal ones the first is on the front.
    """
    found, points = [], list(points)
    for i, (speed, size) in enumerate(points):
        better = [
            j
            for j, (other, other_size) in enumerate(points)
            if j != i
            and other >= speed
            and other_size <= size
            and ((other, other_size) != (speed, size) or j < i)
        ]
        found.append(max(better, key=lambda j: (points[j][0], -points[j][1]), default=None))
    return found
