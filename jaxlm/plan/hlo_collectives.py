"""Collectives of a compiled module: over which devices, and how many bytes each sends.

Bytes on the wire are those of the algorithms that move least, n devices in a group: an all-gather sends (n - 1) / n of
its result, a reduce-scatter and an all-to-all (n - 1) / n of their operand, an all-reduce twice that (it is a
reduce-scatter and an all-gather), a permute its operand. What is sent to a far device may use several links: hops are
not counted.

The TPU compiler writes a reduce-scatter as a fusion of an all-reduce and a slice of its result
("all-reduce-scatter"): each device sends what a reduce-scatter does, for it never gathers the sums. It is counted as
that; `Sent.as_written_bytes` counts the all-reduce that the text shows.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from jaxlm.plan.hlo import Computation, Instruction
from jaxlm.plan.hlo_work import bytes_of

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_TO_SLICE = ("bitcast", "copy", "get-tuple-element", "convert", "reshape")
"""What may stand between an all-reduce and the slice of its result in a reduce-scatter."""

Groups = tuple[tuple[int, ...], ...]
"""Devices that talk to each other, by their place in the program's device assignment: that of the mesh, flattened."""


class Sent(NamedTuple):
    """One execution of a collective, on one device."""

    kind: str
    payload_bytes: float
    wire_bytes: float
    as_written_bytes: float
    across_slices_bytes: float
    unknown: str | None
    """What could not be read."""


def sent(computation: Computation, one: Instruction, num_devices: int, devices_per_slice: int | None) -> Sent:
    """What a collective sends.

    Args:
      num_devices: of the program; a collective that names no groups is over all of them.
      devices_per_slice: None: all are in one slice. Slices have to be outermost in the mesh.
    """
    kind, unknown = one.kind, None
    into = bytes_of(computation.operand_arrays(one))
    if kind == "collective-permute":
        payload = _result_bytes(one)
        share = _crossing_pairs(one.attributes, devices_per_slice)
        return Sent(kind, payload, payload, payload, share * payload, None)
    groups = replica_groups(one.attributes, num_devices)
    if groups is None:
        unknown = f"groups of {one.name}: taken as all {num_devices} devices"
        groups = (tuple(range(num_devices)),)
    size = max(map(len, groups))
    share = (size - 1) / size
    payload = _result_bytes(one) if kind in ("all-gather", "collective-broadcast") else into
    wire = payload if kind == "collective-broadcast" else share * payload
    written = wire
    if kind == "all-reduce":
        wire = written = 2 * share * payload
        shards = _shards(computation, one)
        if shards > 1:
            kind = "reduce-scatter"
            wire = _scatter_share(size, shards) * payload
    spans = devices_per_slice and any(
        len({device // devices_per_slice for device in group}) > 1 for group in groups
    )
    return Sent(kind, payload, wire, written, wire if spans else 0.0, unknown)


def sent_to_slices(one: Instruction) -> Sent | None:
    """What a `send` sends to other slices; None where it is of another sort.

    The program of a TPU is that of one slice. What goes on between slices leaves it through the host ("megascale"), in
    pairs of send and recv whose attributes say which collective over the slices it is.
    """
    found = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.attributes)
    if one.opcode != "send" or found is None:
        return None
    kind = found.group(1).lower().replace("_", "-")
    kind = "collective-permute" if kind == "one-to-one" else kind
    payload = one.arrays[0].num_bytes
    target = re.search(r'_xla_megascale_target="\{([\d,]+)\}x', one.attributes)
    unknown = None if target else f"slices of {one.name}: taken as 2"
    slices = len(target.group(1).split(",")) if target else 2
    share = {"all-reduce": 2 * (slices - 1) / slices, "all-gather": slices - 1, "collective-permute": 1}
    wire = payload * share.get(kind, (slices - 1) / slices)
    return Sent(kind, payload, wire, wire, wire, unknown)


def _result_bytes(one: Instruction) -> float:
    """Of the result; a -start has its operands first, and flags last."""
    arrays = one.arrays
    if one.opcode.endswith("-start") and one.kind in ("all-gather", "collective-permute"):
        arrays = [array for array in arrays if array.dims or array.dtype != "u32"]
        arrays = arrays[len(arrays) // 2 :]
    return bytes_of(arrays)


def _shards(computation: Computation, one: Instruction) -> float:
    """Into how many parts an all-reduce's result is cut before anything looks at it; 1: something uses the whole.

    Only inside a fusion: its caller asks.
    """
    kept, waiting = 0.0, [one]
    while waiting:
        users = computation.users[waiting.pop().name]
        if not users:
            return 1.0
        for user in users:
            if user.opcode == "dynamic-slice":
                kept += bytes_of(user.arrays)
            elif user.opcode in _TO_SLICE:
                waiting.append(user)
            else:
                return 1.0
    return bytes_of(computation.operand_arrays(one)) / kept if kept else 1.0


def _scatter_share(size: int, shards: float) -> float:
    """Of the payload, what each device sends: scattered over `shards` of the group, then summed over the rest."""
    if shards >= size:
        return (size - 1) / size
    rest = size / shards
    return (shards - 1) / shards + 2 * (rest - 1) / rest / shards


def _crossing_pairs(attributes: str, devices_per_slice: int | None) -> float:
    """Of the pairs (source, target), how many are in two slices: the mean over the devices that send."""
    found = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    pairs = re.findall(r"\{(\d+),(\d+)\}", found.group(1)) if found else []
    if not pairs or not devices_per_slice:
        return 0.0
    return sum(int(a) // devices_per_slice != int(b) // devices_per_slice for a, b in pairs) / len(pairs)


_LISTED = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=@?mesh\[([^\]]*)\](?:,\s*device_ids=\(([^{]*)\))?\s*\{([^}]*)\}")


def replica_groups(attributes: str, num_devices: int) -> Groups | None:
    """The groups of a collective, whichever way they are written; None where that is not understood.

    Listed: {{0,1},{2,3}}; {} is one group of all. Iota: [2,4]<=[4,2]T(1,0), the numbers 0..7 as a 4 x 2 array,
    transposed, read off as two groups of four. Mesh: mesh['a'=2,'b'=4] {'b'}, one group along axis b for each place on
    the others; 'b':(2)2 is the part of axis b that is 2 long, after a part of 2.
    Source of the last: xla/hlo/ir/mesh_and_axis.cc of OpenXLA (read 2026-11-26).
    """
    start = attributes.find("replica_groups=")
    if start < 0:
        return (tuple(range(num_devices)),)
    for pattern, read in ((_LISTED, _listed), (_IOTA, _iota), (_MESH, _mesh)):
        found = pattern.match(attributes, start)
        if found:
            return read(*found.groups(), num_devices)
    return None


@functools.cache
def _listed(text: str, num_devices: int) -> Groups:
    groups = tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", text))
    return groups or (tuple(range(num_devices)),)


@functools.cache
def _iota(count: str, size: str, dims: str, order: str | None, num_devices: int) -> Groups:
    ids, width = _iota_ids(dims, order), int(size)
    return tuple(tuple(ids[start : start + width]) for start in range(0, int(count) * width, width))


def _iota_ids(dims: str, order: str | None) -> list[int]:
    """The numbers from 0 on as an array of these dims, transposed by this order, in a row."""
    sizes = [int(size) for size in dims.split(",")]
    axes = [int(axis) for axis in order.split(",")] if order else [*range(len(sizes))]
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    places = itertools.product(*(range(sizes[axis]) for axis in axes))
    return [sum(strides[axis] * index for axis, index in zip(axes, place)) for place in places]


@functools.cache
def _mesh(mesh: str, device_ids: str | None, chosen: str, num_devices: int) -> Groups | None:
    sizes = {
        name.strip("' "): int(size) for name, size in (axis.split("=") for axis in mesh.split(",") if axis)
    }
    picks = [
        re.fullmatch(r"\s*'?([^':]+)'?(?::\((\d+)\)(\d+))?'?\s*", one) for one in chosen.split(",") if one
    ]
    ranges = []  # (axis, from, to): the part of an axis whose strides, counted from its outer end, are in this range
    for pick in picks:
        if pick is None or pick.group(1) not in sizes:
            return None
        name, before, size = pick.groups()
        ranges.append((name, int(before or 1), int(before or 1) * int(size or sizes[name])))
    dims, inner = [], []
    for name, size in sizes.items():
        cuts = sorted({1, size, *(cut for axis, *ends in ranges if axis == name for cut in ends)})
        for low, high in zip(cuts, cuts[1:]):
            covered = [
                at for at, (axis, start, end) in enumerate(ranges) if axis == name and start <= low < end
            ]
            if covered:
                inner.append((covered[0], len(dims)))
            dims.append(high // low)
    return _along(_mesh_ids(device_ids, math.prod(sizes.values())), dims, [axis for _, axis in sorted(inner)])


def _mesh_ids(device_ids: str | None, count: int) -> list[int]:
    if device_ids is None:
        return [*range(count)]
    iota = re.fullmatch(r"\[([\d,]+)\](?:<=\[[\d,]+\])?(?:T\(([\d,]+)\)?)?", device_ids)
    if iota:
        return _iota_ids(iota.group(1), iota.group(2))
    return [int(one) for one in re.findall(r"\d+", device_ids)]


def _along(ids: Sequence[int], dims: Sequence[int], inner: Sequence[int]) -> Groups:
    """The ids as an array of these dims: one group along the inner axes for each place on the others."""
    outer = [axis for axis in range(len(dims)) if axis not in inner]
    order = ",".join(map(str, (*outer, *inner)))
    width = math.prod(dims[axis] for axis in inner)
    places = _iota_ids(",".join(map(str, dims)), order) if dims else [0]
    return tuple(
        tuple(ids[place] for place in places[start : start + width]) for start in range(0, len(places), width)
    )
