"""What one instruction of a compiled module does: FLOPs of its products, bytes it moves through HBM.

FLOPs are those of dots and convolutions, two per multiply-add, off their shapes. The TPU compiler writes most products
as convolutions, some with windows that reach into padding: only taps on real numbers count.

Bytes are of what lies in HBM, each operand and result once: what is on the chip already (`S(1)`) is free. A fusion that
only slices an operand reads the slice, and one that updates a slice in place writes the slice.
"""

from __future__ import annotations

import math
import re

from jaxlm.plan.hlo import HBM, Array, Computation, Instruction, Module

_LABELS = re.compile(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)")
_WINDOW = re.compile(r"\bwindow=\{([^}]*)\}")
_CONTRACTING = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_SLICES = ("dynamic-slice", "slice")


def bytes_in_hbm(arrays: list[Array] | tuple[Array, ...]) -> float:
    return sum(array.num_bytes for array in arrays if array.memory_space == HBM)


def bytes_of(arrays: list[Array] | tuple[Array, ...]) -> float:
    """Wherever they lie."""
    return sum(array.num_bytes for array in arrays)


class Work:
    """FLOPs and bytes of the instructions of a module."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self._flops: dict[str, float] = {}

    def flops(self, computation: Computation, one: Instruction) -> float:
        """Of one execution; those of a fusion or call are the sum over what it runs."""
        if one.opcode == "dot":
            return _dot_flops(computation, one)
        if one.opcode == "convolution":
            return _convolution_flops(computation, one)
        if one.opcode in ("fusion", "call"):
            called = self._module.computations.get(one.called or "")
            return 0.0 if called is None else self._sum(called)
        return 0.0

    def _sum(self, computation: Computation) -> float:
        if computation.name not in self._flops:
            instructions = computation.instructions.values()
            self._flops[computation.name] = sum(self.flops(computation, one) for one in instructions)
        return self._flops[computation.name]

    def hbm_bytes(self, computation: Computation, one: Instruction) -> float:
        """Read and written by one execution."""
        if one.opcode == "fusion":
            called = self._module.computations.get(one.called or "")
            if called is not None:
                return _fusion_reads(computation, one, called) + _fusion_writes(one, called)
        if one.opcode == "dynamic-update-slice":
            update = computation.get(one.operands[1])
            return 2 * bytes_of(update.arrays) if update else 0.0
        if one.opcode in _SLICES:
            return 2 * bytes_of(one.arrays)
        return bytes_in_hbm(computation.operand_arrays(one)) + bytes_in_hbm(one.arrays)


def _fusion_reads(computation: Computation, fusion: Instruction, called: Computation) -> float:
    total = 0.0
    for number, parameter in called.parameters.items():
        operand = computation.get(fusion.operands[number]) if number < len(fusion.operands) else None
        whole = bytes_in_hbm(operand.arrays) if operand else 0.0
        if whole:
            sliced = _sliced_bytes(called, parameter.name)
            total += whole if sliced is None else min(whole, sliced)
    return total


def _sliced_bytes(called: Computation, name: str, depth: int = 0) -> float | None:
    """What is read of a value that is only sliced, or updated in place; None where all of it is read."""
    total = 0.0
    for user in called.users[name]:
        if user.opcode in _SLICES:
            total += bytes_of(user.arrays)
        elif user.opcode == "bitcast" and depth < 5:
            inner = _sliced_bytes(called, user.name, depth + 1)
            if inner is None:
                return None
            total += inner
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
            return None
    return total


def _fusion_writes(fusion: Instruction, called: Computation) -> float:
    root = called.root
    results = root.operands if root.opcode == "tuple" else (root.name,)
    total = 0.0
    for index, array in enumerate(fusion.arrays):
        if array.memory_space != HBM:
            continue
        result = called.behind(results[index], ("bitcast",)) if index < len(results) else None
        update = None
        if result is not None and result.opcode == "dynamic-update-slice":
            update = called.get(result.operands[1])
        total += bytes_of(update.arrays) if update else array.num_bytes
    return total


def _dot_flops(computation: Computation, one: Instruction) -> float:
    left = computation.operand_arrays(one)[0]
    contracting = _CONTRACTING.search(one.attributes)
    axes = contracting.group(1).split(",") if contracting else []
    return 2.0 * one.arrays[0].size * math.prod(left.dims[int(axis)] for axis in axes if axis)


def _convolution_flops(computation: Computation, one: Instruction) -> float:
    """2 x batch x output features x input features of a group x pairs of a place and a tap that meet a number."""
    labels = _LABELS.search(one.attributes)
    assert labels is not None, f"a convolution without dim_labels: {one.attributes[:200]}"
    left_labels, kernel_labels, out_labels = labels.groups()
    left, kernel = computation.operand_arrays(one)[:2]
    out = one.arrays[0]
    window = _WINDOW.search(one.attributes)
    fields = dict(part.split("=", 1) for part in window.group(1).split()) if window else {}
    total = 2.0 * out.dims[out_labels.index("b")] * out.dims[out_labels.index("f")]
    total *= kernel.dims[kernel_labels.index("i")]
    spatial = sorted(label for label in out_labels if label.isdigit())
    for place, label in enumerate(spatial):
        total *= _valid_taps(
            num_inputs=left.dims[left_labels.index(label)],
            num_outputs=out.dims[out_labels.index(label)],
            num_taps=kernel.dims[kernel_labels.index(label)],
            stride=_of_window(fields, "stride", place),
            padding=int(fields["pad"].split("x")[place].split("_")[0]) if "pad" in fields else 0,
            spread=_of_window(fields, "lhs_dilate", place),
            dilation=_of_window(fields, "rhs_dilate", place),
        )
    return total


def _of_window(fields: dict[str, str], key: str, place: int) -> int:
    return int(fields[key].split("x")[place]) if key in fields else 1


def _valid_taps(
    *, num_inputs: int, num_outputs: int, num_taps: int, stride: int, padding: int, spread: int, dilation: int
) -> int:
    """Pairs (output o, tap k) along one dimension whose input is a number, not padding or a hole.

    Place o x stride - padding + k x dilation of the input has to be in [0, (num_inputs - 1) x spread], and a multiple
    of `spread` (lhs_dilate). That is a linear congruence in o for each tap, so the pairs are counted, not listed: a
    window may have thousands of taps.
    """
    last = (num_inputs - 1) * spread
    common = math.gcd(stride, spread)
    period = spread // common
    inverse = pow(stride // common, -1, period)
    total = 0
    for tap in range(num_taps):
        offset = tap * dilation - padding
        if offset % common:
            continue
        first = -(offset // common) * inverse % period
        lowest = max(0, -(offset // stride))  # the least o with o x stride + offset >= 0
        highest = min(num_outputs - 1, (last - offset) // stride)
        if highest >= lowest:
            total += (highest - first) // period - (lowest - 1 - first) // period
    return total
