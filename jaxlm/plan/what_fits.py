"""What to change in a run that does not fit on its devices: each change with what `plan/memory.py` predicts for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxlm.config import divisors
from jaxlm.models.config import KEPT, REMATS, ModelConfig
from jaxlm.plan import placement
from jaxlm.plan.hardware import Chip
from jaxlm.plan.memory import predict
from jaxlm.plan.topology import Topology, shape_name, usual_shapes


class Change(NamedTuple):
    """Flags to add, and what a device then takes."""

    flags: str
    predicted_bytes: int


class Try(NamedTuple):
    """A way to run on the same devices."""

    mesh: dict[str, int]
    remat: str
    num_microbatches: int

    def flags(self, other: Try) -> str:
        """What of it is unlike the other, as flags of the command line."""
        said = [f"--config.mesh.{axis}={n}" for axis, n in self.mesh.items() if n != other.mesh[axis]]
        if self.remat != other.remat:
            said.append(f"--config.model.remat={self.remat}")
        if self.num_microbatches != other.num_microbatches:
            said.append(f"--config.train.num_microbatches={self.num_microbatches}")
        return " ".join(said)


def predicted_bytes(run: Any, way: Try, num_devices: int) -> int:
    """What `jaxlm plan` says of a TPU device."""
    model = dataclasses.replace(run.model, remat=way.remat)
    train = dataclasses.replace(run.train, num_microbatches=way.num_microbatches)
    return predict(
        dataclasses.replace(run, model=model, train=train), way.mesh, num_devices, platform="tpu"
    ).total


def changes(run: Any, mesh: dict[str, int], on: Topology, compiled_bytes: int) -> list[Change]:
    """Changes with which the run is predicted to fit; each alone, and where none is enough, several together.

    Args:
      mesh: axis -> size, nothing left open.
      compiled_bytes: what the compiler needs as things are: where that is more than predicted, predictions are held
        against the memory with as much added.
    """
    chip = on.chip
    assert chip is not None
    now = Try(mesh, run.model.remat, run.train.num_microbatches)
    factor = max(1.0, compiled_bytes / predicted_bytes(run, now, on.num_devices))
    most = (1 - placement.MARGIN) * placement.limit_bytes(chip) / factor
    parts, remats, meshes = (
        more_microbatches(run, mesh),
        stronger(run.model),
        more_fsdp(run, mesh, on.num_slices),
    )

    def first(ways: Sequence[Try]) -> list[Change]:
        for way in ways:
            total = predicted_bytes(run, way, on.num_devices)
            if total <= most:
                return [Change(way.flags(now), total)]
        return []

    alone = [
        *first([now._replace(num_microbatches=num) for num in parts]),
        *first([now._replace(remat=remat) for remat in remats]),
        *first([now._replace(mesh=other) for other in meshes]),
    ]
    if alone:
        return alone
    together = first([
        Try(other, remat, num)
        for other in (mesh, *meshes)
        for remat in reversed((now.remat, *remats))
        for num in (now.num_microbatches, *more_microbatches(run, other))
    ])  # fmt: skip
    return together or larger_slice(run, on, chip, most)


def more_microbatches(run: Any, mesh: dict[str, int]) -> list[int]:
    """Than there are, down to a row at a time: they change no result."""
    return [num for num in placement.microbatches(run, mesh) if num > run.train.num_microbatches]


def stronger(model: ModelConfig) -> list[str]:
    """Policies that keep less than that of this model, the one that keeps most first."""
    names = list(REMATS)
    if model.remat in REMATS:
        return names[names.index(model.remat) + 1 :]
    kept = {name: set(KEPT if found is None else found) for name, found in REMATS.items()}
    return [name for name in names if kept[name] < set(model.kept)]


def more_fsdp(run: Any, mesh: dict[str, int], num_slices: int) -> list[dict[str, int]]:
    """Meshes of as many devices with weights split further: copies become shards, then heads that were split.

    `data` stays a multiple of the slices, between which only it may lie.
    """
    return list(_more_fsdp(run, mesh, num_slices))


def _more_fsdp(run: Any, mesh: dict[str, int], num_slices: int) -> Iterator[dict[str, int]]:
    for axis, least in (("data", num_slices), ("tensor", 1)):
        for factor in divisors(mesh[axis]):
            other = {**mesh, axis: mesh[axis] // factor, "fsdp": mesh["fsdp"] * factor}
            if factor > 1 and other[axis] % least == 0 and placement.divides(run, other):
                yield other


def larger_slice(run: Any, on: Topology, chip: Chip, most_bytes: float) -> list[Change]:
    """The smallest slice with more chips on which the run is predicted to fit, with its mesh; empty: none."""
    for shape in usual_shapes(chip.name):
        larger = on._replace(shape=shape)
        if larger.num_chips <= on.num_chips or on.num_slices > 1:
            continue
        found = placement.best(run, chip, larger.num_chips)
        if found is not None and found.memory.total <= most_bytes:
            sizes = run.mesh.sizes
            flags = [f"--topology={chip.name}:{shape_name(shape)}"]
            flags += [f"--config.mesh.{axis}={n}" for axis, n in found.mesh.items() if n != sizes[axis]]
            if found.num_microbatches != run.train.num_microbatches:
                flags.append(f"--config.train.num_microbatches={found.num_microbatches}")
            return [Change(" ".join(flags), found.memory.total)]
    return []
