"""Where a run fits: mesh, microbatches and bytes on a number of chips, and the smallest slice that takes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jaxlm.config import divisors
from jaxlm.plan import memory
from jaxlm.plan.hardware import Chip
from jaxlm.types import UserError

MOST_TENSOR = 8
"""Chips along `tensor` at most: every layer waits for it, so it stays within the nearest neighbours."""


MARGIN = 0.05
"""Of a device's memory, kept free: the estimate is that of `plan/memory.py`, most of the time within 10 %."""

GPU_SHARE = 0.9
"""Of a GPU's memory, what JAX is told to take (XLA_PYTHON_CLIENT_MEM_FRACTION; 0.75 unless told)."""


class Placement(NamedTuple):
    """One way to run on some chips."""

    chip: Chip
    num_chips: int
    mesh: dict[str, int]
    """Axis -> devices, outermost first."""
    num_microbatches: int
    memory: memory.MemoryEstimate
    """Of each device."""

    @property
    def num_devices(self) -> int:
        return self.num_chips * self.chip.devices_per_chip

    @property
    def limit_bytes(self) -> float:
        return limit_bytes(self.chip)

    @property
    def fits(self) -> bool:
        return self.memory.total <= (1 - MARGIN) * self.limit_bytes


def limit_bytes(chip: Chip) -> float:
    """What one program may take of a device's memory: what the compiler allows where that is known."""
    device = chip.device()
    return device.usable_hbm_bytes or GPU_SHARE * device.hbm_bytes


def platform_of(chip: Chip) -> str:
    """What JAX calls the platform: `tpu` or `gpu`."""
    return "tpu" if any(kind.startswith("TPU") for kind in chip.device_kinds) else "gpu"


def meshes(run: Any, num_devices: int) -> Iterator[dict[str, int]]:
    """Meshes of this many devices that divide model and batch, the one that costs least traffic first.

    First the mesh of the config, where its sizes fill the devices; its `sequence` stays. Then weights are split over
    `fsdp` as far as the width and the batch divide; the rest of the devices hold copies (`data`), or, where the batch
    has too few rows for that, split heads and MLP (`tensor`, at most 8 ways).
    """
    own = own_mesh(run, num_devices)
    if own is not None and divides(run, own):
        yield own
    sequence = run.mesh.sequence if run.mesh.sequence > 0 and num_devices % run.mesh.sequence == 0 else 1
    for tensor in divisors(num_devices // sequence):
        if tensor > MOST_TENSOR:
            return
        rows = num_devices // (sequence * tensor)
        fsdp = next(fsdp for fsdp in reversed(divisors(rows)) if run.model.embed_dim % fsdp == 0)
        mesh = {"data": rows // fsdp, "fsdp": fsdp, "expert": 1, "sequence": sequence, "tensor": tensor}
        if mesh != own and divides(run, mesh):
            yield mesh


def own_mesh(run: Any, num_devices: int) -> dict[str, int] | None:
    """The mesh of the config with its -1 filled in; None where its sizes do not multiply to the devices."""
    try:
        return memory.resolve_mesh(run.mesh.sizes, num_devices)
    except UserError:
        return None


def divides(run: Any, mesh: dict[str, int]) -> bool:
    """Whether a mesh cuts batch and model evenly, as a training demands."""
    model, tensor, sequence = run.model, mesh["tensor"], mesh.get("sequence", 1)
    rows = mesh["data"] * mesh["fsdp"] * mesh["expert"] * run.train.num_microbatches
    split = [
        (run.data.global_batch_size, rows),
        (model.embed_dim, mesh["fsdp"]),
        *(
            (width, tensor)
            for width in (model.num_heads, model.kv_heads, model.mlp_width, model.vocab_size or tensor)
        ),
        (model.num_experts or 1, mesh["expert"]),
        (run.data.seq_len, 2 * sequence if sequence > 1 else 1),
    ]
    return not any(size % parts for size, parts in split)


def microbatches(run: Any, mesh: dict[str, int]) -> list[int]:
    """From what the config says to one row at a time: more of them take less memory, and change no result."""
    rows = run.data.global_batch_size // (mesh["data"] * mesh["fsdp"] * mesh["expert"])
    return [num for num in divisors(rows) if num >= run.train.num_microbatches]


def place(run: Any, chip: Chip, num_chips: int, mesh: dict[str, int], num_microbatches: int) -> Placement:
    """The estimate for one choice. Errors: UserError where the mesh does not fill the chips."""
    train = dataclasses.replace(run.train, num_microbatches=num_microbatches)
    estimate = memory.predict(
        dataclasses.replace(run, train=train),
        mesh,
        num_chips * chip.devices_per_chip,
        platform=platform_of(chip),
    )
    return Placement(chip, num_chips, mesh, num_microbatches, estimate)


def best(run: Any, chip: Chip, num_chips: int) -> Placement | None:
    """The first mesh, and on it the fewest microbatches, that fit; else what takes least; None: no mesh divides."""
    closest: Placement | None = None
    for mesh in meshes(run, num_chips * chip.devices_per_chip):
        for num in microbatches(run, mesh):
            found = place(run, chip, num_chips, mesh, num)
            if found.fits:
                return found
            if closest is None or found.memory.total < closest.memory.total:
                closest = found
    return closest


def smallest(run: Any, chip: Chip, sizes: Iterable[int]) -> Placement | None:
    """On the fewest of `sizes` chips, ascending, on which it fits; None where it fits on none of them."""
    for num_chips in sizes:
        found = best(run, chip, num_chips)
        if found is not None and found.fits:
            return found
    return None
