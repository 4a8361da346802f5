"""Chips: peak FLOP/s, memory, bandwidths, power, slices; each number with its source. No devices, no JAX.

The numbers are in hardware.yaml. Figures are of one chip; `Chip.device` gives those of one JAX device, which is not
always the same:

- v4 and v5p: two TensorCores make one device ("megacore"), unless libtpu was told to split them.
- TPU7x: two TensorCores, two devices.
- All others: one chip, one device.

FLOP/s are those of dense matrices: NVIDIA's data sheets double them for 2:4 sparsity. Where a vendor says GB, memory
is counted in 10^9 bytes, the safe side. `usable_hbm_bytes` is what the compiler lets one program take, as its error
says for one that is too large (jax 0.10.2, libtpu 0.0.42.1): a plan has to fit in that.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.config import check_choice
from jaxlm.plan import tables
from jaxlm.types import UserError

GIB = 2**30

PRODUCTS = {"float32": ("tfloat32", "bfloat16", "float32")}
"""dtype of a model -> dtypes in which JAX multiplies it unless told otherwise, the one it prefers first: float32 as
TF32 on GPUs, as bfloat16 on TPUs (https://docs.jax.dev/en/latest/201/precision.html, read 2026-11-24), and as it is
on GPUs before Ampere, which have neither."""

TRAINING = ("bfloat16", "float16")
"""dtypes whose peak an MFU is a share of, the first that a chip has: mixed precision, as almost all models train."""


class Source(NamedTuple):
    """Where a number was read."""

    url: str
    date: str
    """When it was read there, or measured."""


class Figure(NamedTuple):
    """A published number."""

    value: float
    source: Source


class Device(NamedTuple):
    """What one JAX device has."""

    peak_flops_per_s: dict[str, float]
    """By dtype of the operands."""
    hbm_bytes: float
    usable_hbm_bytes: float | None
    hbm_bytes_per_s: float
    link_bytes_per_s: float
    clock_hz: float | None
    """At which its matrix units reach the peak of `training_dtype`."""


class Slices(NamedTuple):
    """How many chips one can have as one slice (of GPUs: as whole nodes, and less than one)."""

    counts: tuple[int, ...]
    """Ascending."""
    step: int | None
    """Beyond the last of them every multiple of this; None: that is the largest."""
    source: Source | None

    def has(self, num_chips: int) -> bool:
        """Whether there is a slice of this size."""
        beyond = self.step is not None and num_chips > self.counts[-1] and num_chips % self.step == 0
        return num_chips in self.counts or beyond

    def at_least(self, num_chips: int) -> int | None:
        """The smallest with so many chips; None where no slice is so large."""
        if num_chips <= self.counts[-1]:
            return next(count for count in self.counts if count >= num_chips)
        return None if self.step is None else -(-num_chips // self.step) * self.step

    def at_most(self, num_chips: int) -> int | None:
        """The largest with no more chips; None where even the smallest has more."""
        if self.step is not None and num_chips > self.counts[-1]:
            return max(self.counts[-1], num_chips // self.step * self.step)
        return max((count for count in self.counts if count <= num_chips), default=None)


@dataclass(frozen=True)
class Chip:
    """What one chip has, as published."""

    name: str
    device_kinds: tuple[str, ...]
    """What `jax.Device.device_kind` calls it. A slice of a GPU (MIG) has another name and is not this chip."""
    peak_flops_per_s: Mapping[str, Figure]
    """By dtype of the operands: bfloat16, float16, int8, fp8, tfloat32, and float32 where it has units of its own."""
    hbm_bytes: Figure
    hbm_bytes_per_s: Figure
    link_bytes_per_s: Figure
    """Over all links to other chips together, in one direction: ICI, NVLink, or PCIe where a card has no other."""
    slices: Slices
    flops_per_cycle: Figure | None = None
    """Of the matrix units together, in `training_dtype`: with the peak, they give the clock. None: not published."""
    usable_hbm_bytes: Figure | None = None
    dcn_bytes_per_s: Figure | None = None
    """To chips of other slices, over the data-center network, in one direction."""
    power_w: Figure | None = None
    """What a chip draws, without its host: thermal design power, or a mean that was measured (v4)."""
    num_cores: int = 1
    """TensorCores of a TPU. A GPU counts as one core."""
    cores_per_device: int = 1
    """Of them in one JAX device, as it is by default on Google Cloud."""

    @property
    def devices_per_chip(self) -> int:
        return self.num_cores // self.cores_per_device

    @property
    def training_dtype(self) -> str:
        """The one of `TRAINING` that its matrix units multiply."""
        return next(dtype for dtype in TRAINING if dtype in self.peak_flops_per_s)

    @property
    def training_flops_per_s(self) -> float:
        """Its peak in `training_dtype`, which MFU is a share of."""
        return self.peak_flops_per_s[self.training_dtype].value

    @property
    def clock_hz(self) -> float | None:
        """At which its matrix units reach their peak."""
        return (
            None if self.flops_per_cycle is None else self.training_flops_per_s / self.flops_per_cycle.value
        )

    def share(self, num_cores: int | None = None) -> float:
        """Of a chip, what one JAX device has; num_cores as of `device`."""
        return (num_cores or self.cores_per_device) / self.num_cores

    def device(self, num_cores: int | None = None) -> Device:
        """The share of one JAX device.

        Args:
          num_cores: `jax.Device.num_cores`, which only TPUs have; None: the default of this chip.
        """
        share = self.share(num_cores)
        usable = self.usable_hbm_bytes
        return Device(
            peak_flops_per_s={dtype: share * figure.value for dtype, figure in self.peak_flops_per_s.items()},
            hbm_bytes=share * self.hbm_bytes.value,
            usable_hbm_bytes=None if usable is None else share * usable.value,
            hbm_bytes_per_s=share * self.hbm_bytes_per_s.value,
            link_bytes_per_s=share * self.link_bytes_per_s.value,
            clock_hz=self.clock_hz,
        )


_TABLE = Path(__file__).with_name("hardware.yaml")

_CHIP_KEYS = (
    "device_kinds",
    "peak_flops_per_s",
    "hbm_bytes",
    "hbm_bytes_per_s",
    "link_bytes_per_s",
    "slices",
)
_OPTIONAL_KEYS = (
    "flops_per_cycle",
    "usable_hbm_bytes",
    "dcn_bytes_per_s",
    "power_w",
    "num_cores",
    "cores_per_device",
)


def read_chips(path: Path) -> dict[str, Chip]:
    """The chips of a file such as hardware.yaml. Errors: UserError that names file, chip and key of a broken row."""
    table = tables.read(path, ("sources", "chips", "prices"))
    sources = {}
    for name, row in tables.fields(table["sources"], f"{path}: sources", (), table["sources"]).items():
        where = f"{path}: sources.{name}"
        row = tables.fields(row, where, ("url", "date"))
        sources[name] = Source(
            tables.url(row["url"], f"{where}.url"), tables.date(row["date"], f"{where}.date")
        )
    chips = tables.fields(table["chips"], f"{path}: chips", (), table["chips"])
    return {name: _chip(name, row, f"{path}: {name}", sources) for name, row in chips.items()}


def _chip(name: str, row: Any, where: str, sources: dict[str, Source]) -> Chip:
    row = tables.fields(row, where, _CHIP_KEYS, _OPTIONAL_KEYS)
    peaks = tables.fields(row["peak_flops_per_s"], f"{where}: peak_flops_per_s", (), row["peak_flops_per_s"])
    if not any(dtype in peaks for dtype in TRAINING):
        raise UserError(
            f"{where}: peak_flops_per_s has neither of {' and '.join(TRAINING)}: MFU has to have a peak."
        )
    kinds = tables.rows(row["device_kinds"], f"{where}: device_kinds")

    def figure(key: str) -> Figure:
        return _figure(row[key], f"{where}: {key}", sources)

    num_cores, cores_per_device = (
        int(tables.number(row.get(key, 1), f"{where}: {key}")) for key in ("num_cores", "cores_per_device")
    )
    if num_cores % cores_per_device:
        raise UserError(
            f"{where}: num_cores={num_cores} has to be a multiple of cores_per_device={cores_per_device}."
        )
    return Chip(
        name=name,
        device_kinds=tuple(tables.text(kind, f"{where}: device_kinds") for kind in kinds),
        peak_flops_per_s={
            dtype: _figure(peak, f"{where}: peak_flops_per_s.{dtype}", sources)
            for dtype, peak in peaks.items()
        },
        hbm_bytes=figure("hbm_bytes"),
        hbm_bytes_per_s=figure("hbm_bytes_per_s"),
        link_bytes_per_s=figure("link_bytes_per_s"),
        slices=_slices(row["slices"], f"{where}: slices", sources),
        flops_per_cycle=figure("flops_per_cycle") if "flops_per_cycle" in row else None,
        usable_hbm_bytes=figure("usable_hbm_bytes") if "usable_hbm_bytes" in row else None,
        dcn_bytes_per_s=figure("dcn_bytes_per_s") if "dcn_bytes_per_s" in row else None,
        power_w=figure("power_w") if "power_w" in row else None,
        num_cores=num_cores,
        cores_per_device=cores_per_device,
    )


def _figure(row: Any, where: str, sources: dict[str, Source]) -> Figure:
    row = tables.fields(row, where, ("value", "source"))
    check_choice(f"{where}.source", row["source"], sources)
    return Figure(tables.number(row["value"], f"{where}.value"), sources[row["source"]])


def _slices(row: Any, where: str, sources: dict[str, Source]) -> Slices:
    row = tables.fields(row, where, ("value",), ("source", "then_multiples_of"))
    counts = tuple(
        int(tables.number(n, f"{where}.value")) for n in tables.rows(row["value"], f"{where}.value")
    )
    if any(a >= b for a, b in zip(counts, counts[1:])):
        raise UserError(f"{where}.value={[*counts]} has to ascend.")
    step, source = row.get("then_multiples_of"), row.get("source")
    if source is not None:
        check_choice(f"{where}.source", source, sources)
    return Slices(
        counts,
        None if step is None else int(tables.number(step, f"{where}.then_multiples_of")),
        None if source is None else sources[source],
    )


@functools.cache
def _chips() -> dict[str, Chip]:
    return read_chips(_TABLE)


class _Chips(Mapping[str, Chip]):
    """hardware.yaml, read when it is first looked into: a training run imports this module, and may never ask."""

    def __getitem__(self, name: str) -> Chip:
        return _chips()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_chips())

    def __len__(self) -> int:
        return len(_chips())


CHIPS: Mapping[str, Chip] = _Chips()
"""All that are known, by name."""


def chip_named(name: str) -> Chip:
    """The chip of this name. Errors: UserError that lists the names, and the nearest one."""
    check_choice("chip", name, CHIPS)
    return CHIPS[name]


def find_chip(device_kind: str) -> Chip | None:
    """The chip that JAX calls by this name; None for a CPU, and for what is not in the table."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.device_kinds), None)


def peak_flops_per_s(
    device_kind: str, dtype: str, num_devices: int, num_cores: int | None = None
) -> float | None:
    """The peak of all devices together, which MFU is a share of; None where the chip is unknown.

    Args:
      dtype: `model.dtype`; the peak is that of the products that JAX computes for it (see `PRODUCTS`).
      num_cores: `jax.Device.num_cores`, where there is such a thing.
    """
    chip = find_chip(device_kind)
    if chip is None:
        return None
    found = product_flops_per_s(chip, dtype)
    return None if found is None else num_devices * found * chip.share(num_cores)


def product_flops_per_s(chip: Chip, dtype: str) -> float | None:
    """A chip's peak for the products that JAX computes for a model of this dtype; None where it has no such units."""
    peaks = chip.peak_flops_per_s
    return next((peaks[name].value for name in PRODUCTS.get(dtype, (dtype,)) if name in peaks), None)
