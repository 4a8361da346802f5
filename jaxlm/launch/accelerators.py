"""Machines by the name of their accelerators: v5e-256, v5p-128, v5e:16x16, h100x16. Errors name the nearest.

Names are those of Google Cloud: v5e and v6e count chips, v4, v5p and tpu7x count TensorCores, two a chip. A shape is
written behind a colon, as for `jaxlm compile --topology`. GPUs are counted, h100x16, and come in machines of eight.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.config import nearest
from jaxlm.limits import short
from jaxlm.plan import tables
from jaxlm.plan.hardware import CHIPS, Chip
from jaxlm.plan.topology import (
    CHIPS_PER_HOST,
    DIMS,
    MOST_SLICES,
    OTHER_NAMES,
    shape_name,
    shapes,
    usual_shapes,
)
from jaxlm.types import UserError

GPUS_PER_MACHINE = 8
_TABLE = Path(__file__).with_name("platforms.yaml")
_NAME = re.compile(
    r"(?P<chip>[A-Za-z][A-Za-z0-9-]*?)(?::(?P<shape>\d+x[\dx]*)|[-x:](?P<count>\d+))", re.ASCII
)


class Names(NamedTuple):
    """What the platforms call a chip; None where one does not offer it."""

    gcloud: str | None = None
    """Prefix of an accelerator type."""
    runtime: str | None = None
    """Software of a TPU VM."""
    gke: str | None = None
    """Value of the label that nodes have."""
    machines: Mapping[int, str] = {}
    """Chips of one machine -> machine type."""
    xpk: str | None = None
    skypilot: str | None = None


class Accelerator(NamedTuple):
    """One slice of TPUs, or GPUs in whole machines; and how many such slices."""

    chip: Chip
    shape: tuple[int, ...] | None
    """Chips along each dimension of their network; None: GPUs."""
    chips_per_slice: int
    num_slices: int
    names: Names

    @property
    def is_tpu(self) -> bool:
        return self.shape is not None

    @property
    def name_count(self) -> int:
        """In a name of Google Cloud: TensorCores where a chip has two, else chips."""
        return self.chips_per_slice * self.chip.num_cores

    @property
    def name(self) -> str:
        """As it is written in a target: v5e-256, v5p:4x4x8, h100x16."""
        if self.shape is None:
            return f"{self.chip.name}x{self.chips_per_slice}"
        usual = next(shape for shape in usual_shapes(self.chip.name) if math.prod(shape) == self.chips_per_slice) \
            if self.chip.slices.has(self.chips_per_slice) else None  # fmt: skip
        return (
            f"{self.chip.name}-{self.name_count}"
            if usual == self.shape
            else f"{self.chip.name}:{self.topology}"
        )

    @property
    def topology(self) -> str:
        """16x16"""
        assert self.shape is not None
        return shape_name(self.shape)

    @property
    def chips_per_host(self) -> int:
        """Of each machine."""
        if not self.is_tpu:
            return min(self.chips_per_slice, GPUS_PER_MACHINE)
        alone = self.chips_per_slice in self.names.machines
        return self.chips_per_slice if alone else CHIPS_PER_HOST

    @property
    def hosts_per_slice(self) -> int:
        return self.chips_per_slice // self.chips_per_host

    @property
    def num_hosts(self) -> int:
        """Machines, and so processes."""
        return self.num_slices * self.hosts_per_slice

    @property
    def num_chips(self) -> int:
        return self.num_slices * self.chips_per_slice

    @property
    def num_devices(self) -> int:
        """JAX devices."""
        return self.num_chips * self.chip.devices_per_chip

    @property
    def machine(self) -> str | None:
        """Machine type on Google Cloud."""
        return self.names.machines.get(self.chips_per_host)

    @property
    def accelerator_type(self) -> str | None:
        """Of one slice, for gcloud: v5litepod-256."""
        return None if self.names.gcloud is None else f"{self.names.gcloud}-{self.name_count}"

    def __str__(self) -> str:
        slices = f"{self.num_slices} x " if self.num_slices > 1 else ""
        chips = "1 chip" if self.num_chips == 1 else f"{self.num_chips:,} chips"
        hosts = "1 machine" if self.num_hosts == 1 else f"{self.num_hosts:,} machines"
        shape = f" ({self.topology})" if self.is_tpu else ""
        return f"{slices}{self.name}{shape}: {chips} in {hosts}"


def parse(name: str, topology: str | None = None, num_slices: int = 1) -> Accelerator:
    """The machines of `accelerator`, `topology` and `slices` of a target.

    Errors: UserError that names the nearest valid choices.
    """
    match = _NAME.fullmatch(name)
    chip = _chip_of(name, match)
    if not 1 <= num_slices <= MOST_SLICES:
        raise UserError(
            f"slices={num_slices} must be in [1, {MOST_SLICES}]: how many of {name} the run is spread over."
        )
    assert match is not None
    names = known_names()[chip]
    if chip not in DIMS:
        return _gpus(name, chip, match, topology, num_slices, names)
    shape = _shape_of(name, chip, match, topology)
    return Accelerator(CHIPS[chip], shape, math.prod(shape), num_slices, names)


def _chip_of(name: str, match: re.Match[str] | None) -> str:
    """The chip of a name. Errors: UserError with the name that was meant."""
    chips = known_names()
    written = (match["chip"] if match else re.split(r"[:x]|-\d", name)[0]).lower()
    chip = written if written in chips else OTHER_NAMES.get(written)
    if match is not None and chip is not None and (written in chips or written == "v5litepod"):
        return chip
    chip = chip or nearest(written, chips)
    if chip is None:
        raise UserError(
            f"accelerator={short(name)} is none that is known: there are {', '.join(chips)}, with their "
            "number, such as "
            "v5e-256, v5p-128 or h100x16."
        )
    raise UserError(
        f"accelerator={short(name)} is no accelerator; did you mean {_nearest_names(chip, name)}?"
    )


def _shape_of(name: str, chip: str, match: re.Match[str], topology: str | None) -> tuple[int, ...]:
    if match["shape"] and topology and match["shape"] != topology:
        raise UserError(f"accelerator={name} and topology={topology} name two shapes: leave one of them out.")
    cores = CHIPS[chip].num_cores
    count = None if match["count"] is None else int(match["count"])
    if topology is None and match["shape"] is None:
        found = next((s for s in usual_shapes(chip) if math.prod(s) * cores == count), None)
        if found is None:
            raise UserError(
                f"accelerator={name}: there is no such slice; nearest: {_nearest_names(chip, name)}."
            )
        return found
    text = match["shape"] or str(topology)
    if not re.fullmatch(r"\d{1,5}(x\d{1,5}){1,2}", text):
        raise UserError(
            f"topology={short(text)} must read like {shape_name(next(iter(usual_shapes(chip))))}."
        )
    dims = [int(dim) for dim in text.split("x")]
    while len(dims) > DIMS[chip] and dims[-1] == 1:
        dims.pop()
    shape = (*dims, *[1] * (DIMS[chip] - len(dims)))
    if shape not in shapes(chip):
        raise UserError(f"topology={text}: {chip} has no such slice; nearest: {_nearest_names(chip, text)}.")
    if count is not None and math.prod(shape) * cores != count:
        what = "TensorCores, two a chip" if cores == 2 else "chips"
        raise UserError(
            f"accelerator={name} counts {count} {what}, but topology={text} has {math.prod(shape) * cores}: "
            f"leave topology out, or write accelerator={chip}-{math.prod(shape) * cores}."
        )
    return shape


def _gpus(
    name: str, chip: str, match: re.Match[str], topology: str | None, num_slices: int, names: Names
) -> Accelerator:
    if topology is not None or num_slices != 1 or match["shape"]:
        raise UserError(
            f"accelerator={name} are GPUs, which have no topology and no slices: leave both out, and write how many "
            f"there are, such as {chip}x16."
        )
    count = int(match["count"])
    if count < 1 or not CHIPS[chip].slices.has(count):
        raise UserError(
            f"accelerator={name}: GPUs come in whole machines; nearest: {_nearest_names(chip, name)}."
        )
    return Accelerator(CHIPS[chip], None, count, 1, names)


def _nearest_names(chip: str, written: str) -> str:
    """Up to three names of this chip, of about the size that was written."""
    numbers = [
        int(number)
        for number in re.findall(r"(?<![A-Za-z\d])\d{1,5}|(?<=\dx)\d{1,5}|(?<=[a-z]x)\d{1,5}", written)
    ]
    tpu = chip in DIMS
    cores = CHIPS[chip].num_cores
    wanted = max(math.prod(numbers), 1) if numbers else 8
    if "x" in written and tpu:
        wanted *= cores
    counts = [math.prod(shape) * cores for shape in usual_shapes(chip)] if tpu else \
        [*CHIPS[chip].slices.counts, *(n for n in (near_multiple(wanted),) if n > 8)]  # fmt: skip
    found = sorted(set(counts), key=lambda count: abs(math.log(count / wanted)))[:3]
    return ", ".join(f"{chip}{'-' if tpu else 'x'}{count}" for count in found)


def near_multiple(count: int) -> int:
    """Of whole machines of GPUs, the number that is nearest, at least one machine."""
    return max(round(count / GPUS_PER_MACHINE), 1) * GPUS_PER_MACHINE


@functools.cache
def known_names() -> dict[str, Names]:
    """Chip -> its names, of platforms.yaml; a GPU that is not in it has none, and is for Slurm and Ray."""
    return {chip: Names() for chip in CHIPS} | read_names(_TABLE)


def read_names(path: Path) -> dict[str, Names]:
    """Chip -> its names. Errors: UserError that names file, chip and key of a broken row."""
    table = tables.read(path, ("sources", "tpus", "gpus"))
    sources = tables.fields(table["sources"], f"{path}: sources", (), table["sources"])
    for source, row in sources.items():
        where = f"{path}: sources.{source}"
        row = tables.fields(row, where, ("url", "date"))
        tables.url(row["url"], f"{where}.url")
        tables.date(row["date"], f"{where}.date")
    found = {}
    for kind in ("tpus", "gpus"):
        for chip, row in tables.fields(table[kind], f"{path}: {kind}", (), table[kind]).items():
            found[chip] = _names(row, f"{path}: {chip}", sources)
            if chip not in CHIPS or (chip in DIMS) != (kind == "tpus"):
                raise UserError(f"{path}: {kind}.{chip} is no chip of that kind in plan/hardware.yaml.")
    return found


def _names(row: Any, where: str, sources: Mapping[str, Any]) -> Names:
    row = tables.fields(row, where, ("source",), ("gcloud", "gke", "machines", "skypilot", "xpk"))
    gcloud = row.get("gcloud")
    if gcloud is not None:
        gcloud = tables.fields(gcloud, f"{where}: gcloud", ("prefix", "runtime", "source"))
    for source in (row["source"], gcloud["source"] if gcloud else row["source"]):
        if source not in sources:
            raise UserError(f"{where}: source {source!r} is not one of {', '.join(sources)}.")
    return Names(
        gcloud=gcloud["prefix"] if gcloud else None,
        runtime=gcloud["runtime"] if gcloud else None,
        gke=row.get("gke"),
        machines=dict(row.get("machines") or {}),
        xpk=row.get("xpk"),
        skypilot=row.get("skypilot"),
    )
