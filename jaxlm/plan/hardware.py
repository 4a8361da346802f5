"""Chips: peak FLOP/s, memory and bandwidths, each number with its source. No devices, no JAX.

Figures are of one chip; `Chip.device` gives those of one JAX device, which is not always the same:

- v4 and v5p: two TensorCores make one device ("megacore"), unless libtpu was told to split them.
- TPU7x: two TensorCores, two devices.
- All others: one chip, one device.

FLOP/s are those of dense matrices: NVIDIA's data sheets double them for 2:4 sparsity. Where a vendor says GB, memory
is counted in 10^9 bytes, the safe side. `usable_hbm_bytes` is what the compiler lets one program take, as its error
says for one that is too large (jax 0.10.2, libtpu 0.0.42.1): a plan has to fit in that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

GIB = 2**30

PRODUCTS = {"float32": ("tfloat32", "bfloat16")}
"""dtype of a model -> dtypes in which JAX multiplies it unless told otherwise, the one it prefers first: float32 as
TF32 on GPUs, as bfloat16 on TPUs (https://docs.jax.dev/en/latest/201/precision.html, read 2026-11-24)."""


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


@dataclass(frozen=True)
class Chip:
    """What one chip has, as published."""

    name: str
    device_kinds: tuple[str, ...]
    """What `jax.Device.device_kind` calls it. A slice of a GPU (MIG) has another name and is not this chip."""
    peak_flops_per_s: Mapping[str, Figure]
    """By dtype of the operands: bfloat16, int8, fp8, tfloat32, and float32 where it has units of its own."""
    hbm_bytes: Figure
    hbm_bytes_per_s: Figure
    link_bytes_per_s: Figure
    """Over all links to other chips together, in one direction: ICI, NVLink, or PCIe where a card has no other."""
    usable_hbm_bytes: Figure | None = None
    num_cores: int = 1
    """TensorCores of a TPU. A GPU counts as one core."""
    cores_per_device: int = 1
    """Of them in one JAX device, as it is by default on Google Cloud."""

    @property
    def devices_per_chip(self) -> int:
        return self.num_cores // self.cores_per_device

    def device(self, num_cores: int | None = None) -> Device:
        """The share of one JAX device.

        Args:
          num_cores: `jax.Device.num_cores`, which only TPUs have; None: the default of this chip.
        """
        share = (num_cores or self.cores_per_device) / self.num_cores
        usable = self.usable_hbm_bytes
        return Device(
            peak_flops_per_s={dtype: share * figure.value for dtype, figure in self.peak_flops_per_s.items()},
            hbm_bytes=share * self.hbm_bytes.value,
            usable_hbm_bytes=None if usable is None else share * usable.value,
            hbm_bytes_per_s=share * self.hbm_bytes_per_s.value,
            link_bytes_per_s=share * self.link_bytes_per_s.value,
        )


_READ = "2026-11-24"
_V4 = Source("https://docs.cloud.google.com/tpu/docs/v4", _READ)
_V5E = Source("https://cloud.google.com/tpu/docs/v5e", _READ)
_V5P = Source("https://docs.cloud.google.com/tpu/docs/v5p", _READ)
_V6E = Source("https://docs.cloud.google.com/tpu/docs/v6e", _READ)
_TPU7X = Source("https://docs.cloud.google.com/tpu/docs/tpu7x", _READ)
_SCALING_BOOK = Source("https://jax-ml.github.io/scaling-book/tpus/", _READ)
_LIBTPU = Source("https://pypi.org/project/libtpu/0.0.42.1/", _READ)
_A100 = Source("https://glennklockwood.com/garden/processors/A100", _READ)
_A100_PCIE = Source("https://www.thundercompute.com/blog/nvidia-a100-specs-full-guide", _READ)
_H100 = Source("https://glennklockwood.com/garden/processors/h100", _READ)
_H100_PCIE = Source("https://www.thundercompute.com/blog/nvidia-h100-specs-full-guide", _READ)
_H200 = Source("https://www.morphllm.com/nvidia-h200", _READ)
_B200 = Source("https://glennklockwood.com/garden/processors/B200", _READ)
_DGX_B200 = Source("https://brent-newsom-nvidia.github.io/AIPS-Boom/wiki/NVIDIA-DGX-B200", _READ)
_TORCHTITAN = Source(
    "https://github.com/pytorch/torchtitan/blob/02581674d9dbd6bbeb04817a8a4d95bdb4a18a5b/torchtitan/tools/utils.py",
    _READ,
)

_A100_PEAK = {
    "bfloat16": Figure(312e12, _A100),
    "tfloat32": Figure(156e12, _A100),
    "float32": Figure(19.5e12, _A100),
    "int8": Figure(624e12, _A100),
}
_HOPPER_PEAK = {
    "bfloat16": Figure(989.4e12, _H100),
    "tfloat32": Figure(494.7e12, _H100),
    "float32": Figure(66.9e12, _H100),
    "int8": Figure(1978.9e12, _H100),
    "fp8": Figure(1978.9e12, _H100),
}

_CHIPS = (
    Chip(
        name="v4",
        device_kinds=("TPU v4",),
        peak_flops_per_s={"bfloat16": Figure(275e12, _V4), "int8": Figure(275e12, _V4)},
        hbm_bytes=Figure(32 * GIB, _V4),
        hbm_bytes_per_s=Figure(1.2e12, _V4),
        link_bytes_per_s=Figure(6 * 45e9, _SCALING_BOOK),
        usable_hbm_bytes=Figure(30.75 * GIB, _LIBTPU),
        num_cores=2,
        cores_per_device=2,
    ),
    Chip(
        name="v5e",
        device_kinds=("TPU v5 lite", "TPU v5e"),
        peak_flops_per_s={"bfloat16": Figure(197e12, _V5E), "int8": Figure(393e12, _V5E)},
        hbm_bytes=Figure(16 * GIB, _V5E),  # "16 GB" there, but a program may take 15.75 GiB
        hbm_bytes_per_s=Figure(819e9, _V5E),
        link_bytes_per_s=Figure(400e9 / 2, _V5E),
        usable_hbm_bytes=Figure(15.75 * GIB, _LIBTPU),
    ),
    Chip(
        name="v5p",
        device_kinds=("TPU v5", "TPU v5p"),
        peak_flops_per_s={
            "bfloat16": Figure(459e12, _V5P),
            "int8": Figure(918e12, _SCALING_BOOK),
            "fp8": Figure(459e12, _V5P),
        },
        hbm_bytes=Figure(95 * GIB, _V5P),
        hbm_bytes_per_s=Figure(2765e9, _TPU7X),
        link_bytes_per_s=Figure(1200e9 / 2, _V5P),
        usable_hbm_bytes=Figure(95.74 * GIB, _LIBTPU),
        num_cores=2,
        cores_per_device=2,
    ),
    Chip(
        name="v6e",
        device_kinds=("TPU v6 lite", "TPU v6e"),
        peak_flops_per_s={
            "bfloat16": Figure(918e12, _V6E),
            "int8": Figure(1836e12, _V6E),
            "fp8": Figure(918e12, _TPU7X),
        },
        hbm_bytes=Figure(32 * GIB, _TPU7X),
        hbm_bytes_per_s=Figure(1638e9, _TPU7X),
        link_bytes_per_s=Figure(800e9 / 2, _TPU7X),
        usable_hbm_bytes=Figure(31.25 * GIB, _LIBTPU),
    ),
    Chip(
        name="tpu7x",
        device_kinds=("TPU7x",),
        peak_flops_per_s={"bfloat16": Figure(2307e12, _TPU7X), "fp8": Figure(4614e12, _TPU7X)},
        hbm_bytes=Figure(192 * GIB, _TPU7X),
        hbm_bytes_per_s=Figure(7380e9, _TPU7X),
        link_bytes_per_s=Figure(1200e9 / 2, _TPU7X),
        usable_hbm_bytes=Figure(2 * 94.75 * GIB, _LIBTPU),
        num_cores=2,
        cores_per_device=1,
    ),
    Chip(
        name="a100-40gb",
        device_kinds=("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
        peak_flops_per_s=_A100_PEAK,
        hbm_bytes=Figure(40e9, _A100),
        hbm_bytes_per_s=Figure(1555e9, _A100),
        link_bytes_per_s=Figure(300e9, _A100),
    ),
    Chip(
        name="a100-80gb",
        device_kinds=("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        peak_flops_per_s=_A100_PEAK,
        hbm_bytes=Figure(80e9, _A100),
        hbm_bytes_per_s=Figure(2039e9, _A100),
        link_bytes_per_s=Figure(300e9, _A100),
    ),
    Chip(
        name="a100-pcie-40gb",
        device_kinds=("NVIDIA A100-PCIE-40GB", "A100-PCIE-40GB"),
        peak_flops_per_s=_A100_PEAK,
        hbm_bytes=Figure(40e9, _A100_PCIE),
        hbm_bytes_per_s=Figure(1555e9, _A100_PCIE),
        link_bytes_per_s=Figure(32e9, _A100),  # PCIe 4.0 x16
    ),
    Chip(
        name="a100-pcie-80gb",
        device_kinds=("NVIDIA A100 80GB PCIe", "NVIDIA A100-PCIE-80GB"),
        peak_flops_per_s=_A100_PEAK,
        hbm_bytes=Figure(80e9, _A100_PCIE),
        hbm_bytes_per_s=Figure(1935e9, _A100_PCIE),
        link_bytes_per_s=Figure(32e9, _A100),
    ),
    Chip(
        name="h100",
        device_kinds=("NVIDIA H100 80GB HBM3",),
        peak_flops_per_s=_HOPPER_PEAK,
        hbm_bytes=Figure(80e9, _H100),
        hbm_bytes_per_s=Figure(3350e9, _H100),
        link_bytes_per_s=Figure(900e9 / 2, _H100),
    ),
    Chip(
        name="h100-pcie",
        device_kinds=("NVIDIA H100 PCIe",),
        peak_flops_per_s={
            "bfloat16": Figure(756e12, _TORCHTITAN),
            "tfloat32": Figure(756e12 / 2, _TORCHTITAN),  # half of it, as on the other form
        },
        hbm_bytes=Figure(80e9, _H100),
        hbm_bytes_per_s=Figure(2000e9, _H100_PCIE),
        link_bytes_per_s=Figure(128e9 / 2, _H100),  # PCIe 5.0 x16
    ),
    Chip(
        name="h200",
        device_kinds=("NVIDIA H200",),
        peak_flops_per_s=_HOPPER_PEAK,  # the same compute units
        hbm_bytes=Figure(141e9, _H200),
        hbm_bytes_per_s=Figure(4800e9, _H200),
        link_bytes_per_s=Figure(900e9 / 2, _H100),
    ),
    Chip(
        name="b200",
        device_kinds=("NVIDIA B200",),
        peak_flops_per_s={
            "bfloat16": Figure(2250e12, _B200),
            "tfloat32": Figure(1100e12, _B200),
            "float32": Figure(80e12, _B200),
            "int8": Figure(4500e12, _B200),
            "fp8": Figure(4500e12, _B200),
        },
        hbm_bytes=Figure(1440e9 / 8, _DGX_B200),
        hbm_bytes_per_s=Figure(64e12 / 8, _DGX_B200),
        link_bytes_per_s=Figure(14.4e12 / 8 / 2, _DGX_B200),
    ),
)

CHIPS: dict[str, Chip] = {chip.name: chip for chip in _CHIPS}
"""All that are known, by name."""


def find_chip(device_kind: str) -> Chip | None:
    """The chip that JAX calls by this name; None for a CPU, and for what is not in the table."""
    return next((chip for chip in _CHIPS if device_kind in chip.device_kinds), None)


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
    peaks = chip.device(num_cores).peak_flops_per_s
    found = next((peaks[name] for name in PRODUCTS.get(dtype, (dtype,)) if name in peaks), None)
    return None if found is None else num_devices * found
