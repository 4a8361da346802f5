"""How a run scales: its predicted step on slices from a few chips to thousands, and what then costs most.

Weak scaling gives every chip the same rows of a batch, so the batch grows with the chips; strong scaling cuts one batch
into ever smaller parts. At each number of chips the mesh is chosen by rule: weights split over `fsdp` within a slice,
copies (`data`) where the width does not divide and from slice to slice, heads and MLPs split (`tensor`, at most 8 ways)
where a batch has too few rows or memory is short; of the meshes that fit, the fastest by `plan/step_time.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxlm.config import divisors
from jaxlm.plan import placement
from jaxlm.plan.hardware import Chip
from jaxlm.plan.memory import MemoryEstimate
from jaxlm.plan.placement import MOST_TENSOR
from jaxlm.plan.step_time import StepEstimate, predict_step
from jaxlm.plan.topology import Topology, usual_shapes
from jaxlm.plan.what_fits import stronger
from jaxlm.types import UserError

MODES = ("weak", "strong")

ENOUGH = 0.9
"""Of the best speed of a chip: below it, something other than computing is said to set in."""

TOO_SMALL, NO_FIT = "batch too small", "does not fit"


class Way(NamedTuple):
    """One way to run on a number of chips."""

    mesh: dict[str, int]
    rows: int
    """Of a batch."""
    remat: str
    num_microbatches: int
    memory: MemoryEstimate
    step: StepEstimate

    @property
    def step_s(self) -> float:
        """With latencies."""
        return self.step.step_s + self.step.latency_s


class Point(NamedTuple):
    """A number of chips, and the fastest way to run on them."""

    on: Topology
    rows: int
    """Of a batch."""
    tokens: int
    way: Way | None
    """None: there is none; `bound` says why."""
    tokens_per_s_per_chip: float
    mfu: float
    efficiency: float
    """Speed of a chip, as a share of that at the number of chips where it is highest."""
    bound: str


def slices_of(chip: Chip, num_chips: int) -> Topology:
    """One slice, or as many of the largest as it takes. Errors: UserError where there is no such number."""
    by_size = {math.prod(shape): shape for shape in usual_shapes(chip.name)}
    if num_chips in by_size:
        return Topology(chip, by_size[num_chips])
    largest = max(by_size)
    if num_chips % largest:
        near = [n for n in by_size if n <= num_chips] or [min(by_size)]
        above = -(-num_chips // largest) * largest
        raise UserError(
            f"--chips: {num_chips:,} is no slice of {chip.name}, nor several of {largest:,}. "
            f"Nearest: {near[-1]:,} or {above:,}."
        )
    if chip.dcn_bytes_per_s is None:
        raise UserError(
            f"--chips={num_chips:,}: {chip.name} has slices of at most {largest:,} chips, and what it sends from slice "
            f"to slice a second is not known. Give at most {largest:,}."
        )
    return Topology(chip, by_size[largest], num_chips // largest)


def chip_counts(chip: Chip, low: int, high: int) -> list[int]:
    """Sizes from low to high: those of hardware.yaml, powers of two of the largest slice, and high itself."""
    sizes = [n for n in chip.slices.counts if low <= n <= high]
    largest = chip.slices.counts[-1]
    num = 2 * largest
    while num <= high:
        sizes += [num] if num >= low else []
        num *= 2
    if not sizes or sizes[-1] != high:
        slices_of(chip, high)
        sizes.append(high)
    return sizes


def meshes(run: Any, on: Topology) -> Iterator[dict[str, int]]:
    """Meshes in the order of what a layer has to say: no `tensor` first, and weights split as far as they divide."""
    empty = dict.fromkeys(run.mesh.sizes, 1)
    for tensor in divisors(on.devices_per_slice):
        if tensor > MOST_TENSOR:
            return
        inside = on.devices_per_slice // tensor
        widths = [fsdp for fsdp in reversed(divisors(inside)) if run.model.embed_dim % fsdp == 0]
        for fsdp in widths[:2]:
            yield {**empty, "data": on.num_devices // (tensor * fsdp), "fsdp": fsdp, "tensor": tensor}


def ways(run: Any, chip: Chip, on: Topology, rows: int, *, is_strong: bool) -> Iterator[Way | None]:
    """For each mesh that divides what is to be computed: how it fits; None: it does not."""
    for mesh in meshes(run, on):
        row_devices = mesh["data"] * mesh["fsdp"]
        held = rows // row_devices * row_devices if is_strong else rows
        if held == 0:
            continue
        sized = with_rows(run, held)
        if placement.divides(sized, mesh):
            yield fitting(sized, chip, on, mesh)


def with_rows(run: Any, rows: int) -> Any:
    """The run with another batch."""
    return dataclasses.replace(run, data=dataclasses.replace(run.data, global_batch_size=rows))


def fitting(run: Any, chip: Chip, on: Topology, mesh: dict[str, int]) -> Way | None:
    """The run on a mesh with what its config keeps, or, for want of memory, less, or nothing and more microbatches."""
    for remat in (run.model.remat, *stronger(run.model)):
        other = dataclasses.replace(run, model=dataclasses.replace(run.model, remat=remat))
        tried = placement.microbatches(other, mesh)
        for num in tried if remat == "full" else tried[:1]:
            place = placement.place(other, chip, on.num_chips, mesh, num)
            if place.fits:
                train = dataclasses.replace(other.train, num_microbatches=num)
                sized = dataclasses.replace(other, train=train)
                step = predict_step(sized, chip, mesh, on.shape, on.num_slices)
                return Way(mesh, run.data.global_batch_size, remat, num, place.memory, step)
    return None


def point(run: Any, chip: Chip, on: Topology, rows: int, *, is_strong: bool, flops_per_token: float) -> Point:
    """The fastest way to run on these chips; efficiency and bound follow when all points are there."""
    found = [*ways(run, chip, on, rows, is_strong=is_strong)]
    fits = [way for way in found if way is not None]
    if not fits:
        return Point(on, rows, rows * run.data.seq_len, None, 0.0, 0.0, 0.0, NO_FIT if found else TOO_SMALL)

    def speed(way: Way) -> float:
        return way.rows * run.data.seq_len / way.step_s / on.num_chips

    way = max(fits, key=speed)
    mfu = speed(way) * flops_per_token / chip.training_flops_per_s
    return Point(on, way.rows, way.rows * run.data.seq_len, way, speed(way), mfu, 1.0, way.step.bound)


def seconds_per_token(point: Point) -> dict[str, float]:
    """Chip-seconds of a token by part: what each costs, were they one after the other."""
    assert point.way is not None
    step, each = point.way.step, point.on.num_chips / point.tokens
    ici_s = max(step.exposed_s, step.wire_s - step.on_chip_s)
    return {
        "compute": each * step.compute_s,
        "HBM": each * step.passes_s,
        "ICI": each * (ici_s + step.latency_s),
        "DCN": each * max(0.0, step.across_slices_s - step.on_chip_s - step.exposed_s),
    }


def scale(
    run: Any, chip: Chip, counts: Sequence[int], rows_per_chip: float, *, mode: str, flops_per_token: float
) -> list[Point]:
    """One point for each number of chips.

    Args:
      run: a RunConfig with model.vocab_size filled in.
      rows_per_chip: of weak scaling; strong scaling takes the batch of the config.
    """
    strong = mode == "strong"
    points = []
    for num_chips in counts:
        rows = run.data.global_batch_size if strong else max(1, round(rows_per_chip * num_chips))
        points.append(
            point(
                run,
                chip,
                slices_of(chip, num_chips),
                rows,
                is_strong=strong,
                flops_per_token=flops_per_token,
            )
        )
    return with_bounds(points)


def with_bounds(points: Sequence[Point]) -> list[Point]:
    """Efficiency against the fastest chip of all, and what costs more than there where it is low."""
    there = [one for one in points if one.way is not None]
    if not there:
        return [*points]
    best = max(there, key=lambda one: one.tokens_per_s_per_chip)
    out = []
    for one in points:
        if one.way is not None:
            share = one.tokens_per_s_per_chip / best.tokens_per_s_per_chip
            bound = one.way.step.bound
            if share < ENOUGH:
                least, now = seconds_per_token(best), seconds_per_token(one)
                bound = max(now, key=lambda part: now[part] - least[part])
            one = one._replace(efficiency=share, bound=bound)
        out.append(one)
    return out
