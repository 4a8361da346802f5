"""What a compiled step costs on one device, and how long it may take: read off its text, without the device.

`read_step` walks the scheduled module from its entry, multiplies the bodies of loops by their trip counts, and sums
FLOPs, bytes and the compiler's own estimate of cycles. `step_time` makes three step times of them, in seconds:

- roofline: each instruction takes the longer of its FLOPs at the peak and its HBM bytes at full bandwidth. A lower
  bound, all but for operands of which only some rows are read (a gather), which count in full.
- hybrid: products by the compiler's cycles, everything else by its HBM bytes.
- cycles: everything by the compiler's cycles, which are near for products and pessimistic for what memory bounds.

To each come the collectives that nothing can hide, and none is shorter than all collectives take together. What is
not in any of them: latencies, hops and contention of the network, hosts and slower links between slices (bytes across
slices are counted, but timed as if within one), transfers to the host's memory (counted in bytes), input, dispatch.
Asynchronous collectives are taken to hide fully. Asynchronous copies between HBM and the chip count as bytes, not as
time. Kernels without a cost are listed, not timed.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxlm.plan import hlo, hlo_collectives, hlo_kernels
from jaxlm.plan.hardware import Chip
from jaxlm.plan.hlo import Computation, Instruction, Module
from jaxlm.plan.hlo_loops import Integers, trips
from jaxlm.plan.hlo_work import Work, bytes_of

KERNEL_EFFICIENCY = 0.5
"""Of the peak: what kernels whose cycles nobody knows are taken to reach, in the estimates that are no bound."""

_FREE = (
    "after-all",
    "bitcast",
    "constant",
    "domain",
    "get-tuple-element",
    "opt-barrier",
    "optimization-barrier",
    "parameter",
    "partition-id",
    "recv",
    "recv-done",
    "replica-id",
    "send",
    "send-done",
    "tuple",
)
"""Opcodes that move and compute nothing."""


class Collective(NamedTuple):
    """All collectives of a kind, in loops or outside, of one step and one device."""

    kind: str
    """all-gather, all-reduce, reduce-scatter, all-to-all, collective-permute, ..."""
    in_loop: bool
    """Inside a loop (over the layers, as a rule); else once a step."""
    count: float
    """Executions a step."""
    payload_bytes: float
    wire_bytes: float
    """What the device sends; see hlo_collectives."""
    hidden_wire_bytes: float
    """Of them, those that are asynchronous, so that computation can go on meanwhile."""
    across_slices_bytes: float
    """Of wire_bytes, those of groups that span slices."""
    as_written_wire_bytes: float
    """wire_bytes, if a reduce-scatter that the text shows as a fused all-reduce were one."""


class Loop(NamedTuple):
    """A while loop, in the order in which the step comes to them."""

    name: str
    """Of its body."""
    trip_count: int
    entered: float
    """Times a step."""


class StepCost(NamedTuple):
    """Of one device and one step."""

    flops: float
    """Of dots, convolutions, and kernels that have a cost."""
    matmul_cycles: float
    """The compiler's estimate for what has FLOPs; 0 on platforms whose compiler estimates none."""
    cycles: float
    """For everything."""
    hbm_bytes: float
    """Read and written by everything but kernels."""
    kernel_flops: float
    """Of `flops`, those of Pallas and Mosaic kernels."""
    kernel_bytes: float
    """Of HBM, read and written by them."""
    kernels: dict[str, float]
    """Name -> times a step, of those with a cost."""
    uncosted: dict[str, float]
    """Name -> times a step, of custom calls that cost nobody knows what."""
    compute_s: float
    """Of the roofline: instructions that FLOPs bound."""
    memory_s: float
    """Of the roofline: instructions that HBM bounds."""
    no_flops_memory_s: float
    """Of memory_s: instructions without FLOPs."""
    kernel_s: float
    """Kernels at KERNEL_EFFICIENCY of the peak, or at the bandwidth of HBM."""
    host_bytes: float
    """Copied to and from the memory of the host."""
    collectives: tuple[Collective, ...]
    loops: tuple[Loop, ...]
    unknown: tuple[str, ...]
    """What could not be read, and what was taken in its place."""

    @property
    def wire_bytes(self) -> float:
        return sum(row.wire_bytes for row in self.collectives)

    @property
    def exposed_wire_bytes(self) -> float:
        return sum(row.wire_bytes - row.hidden_wire_bytes for row in self.collectives)


class StepTime(NamedTuple):
    """Seconds of one step; the module's docstring says what they mean."""

    roofline_s: float
    hybrid_s: float | None
    """None where the compiler estimates no cycles, or the chip's clock is not known."""
    cycles_s: float | None
    compute_s: float
    """Of the roofline: what FLOPs bound."""
    hbm_s: float
    """Of the roofline: what HBM bounds."""
    wire_s: float
    """All collectives, one after the other."""
    exposed_wire_s: float
    """Of them, those that cannot hide."""
    bound: str
    """The largest part of the roofline: compute, memory or network."""


@dataclass
class _Totals:
    """Sums over a computation that runs once."""

    flops: float = 0.0
    matmul_cycles: float = 0.0
    cycles: float = 0.0
    hbm_bytes: float = 0.0
    kernel_flops: float = 0.0
    kernel_bytes: float = 0.0
    compute_s: float = 0.0
    memory_s: float = 0.0
    no_flops_memory_s: float = 0.0
    kernel_s: float = 0.0
    host_bytes: float = 0.0
    kernels: Counter[str] = field(default_factory=Counter)
    uncosted: Counter[str] = field(default_factory=Counter)
    collectives: dict[tuple[str, bool], Collective] = field(default_factory=dict)
    loops: list[Loop] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def add(self, other: _Totals, times: float = 1.0, *, in_loop: bool = False) -> None:
        """Adds what another computation costs, run so many times."""
        for key, value in vars(other).items():
            if isinstance(value, float):
                setattr(self, key, getattr(self, key) + times * value)
        for name, count in other.kernels.items():
            self.kernels[name] += times * count  # pyright: ignore[reportArgumentType]
        for name, count in other.uncosted.items():
            self.uncosted[name] += times * count  # pyright: ignore[reportArgumentType]
        for row in other.collectives.values():
            self.add_collective(row._replace(in_loop=row.in_loop or in_loop), times)
        self.loops += [loop._replace(entered=times * loop.entered) for loop in other.loops]
        self.unknown += other.unknown

    def add_collective(self, row: Collective, times: float = 1.0) -> None:
        key = row.kind, row.in_loop
        held = self.collectives.get(key, Collective(*key, *[0.0] * (len(row) - 2)))
        numbers = (a + times * b for a, b in zip(held[2:], row[2:]))
        self.collectives[key] = Collective(*key, *numbers)


def read_step(hlo_text: str, chip: Chip, *, devices_per_slice: int | None = None) -> StepCost:
    """What a compiled step costs on one device of this chip.

    Args:
      hlo_text: `compiled.as_text()`.
      devices_per_slice: where there are several slices, outermost in the mesh; None: one slice.

    Errors: UserError where the text is not that of a compiled module.
    """
    module = hlo.parse(hlo_text)
    walk = _Walk(module, chip, devices_per_slice)
    total = walk.run(Integers(module, module.entry))
    values = {key: value for key, value in vars(total).items() if key in StepCost._fields}
    values |= {
        "flops": total.flops + total.kernel_flops,
        "kernels": dict(total.kernels),
        "uncosted": dict(total.uncosted),
        "collectives": tuple(sorted(total.collectives.values())),
        "loops": tuple(total.loops),
        "unknown": tuple(dict.fromkeys(total.unknown)),
    }
    return StepCost(**values)


class _Walk:
    """Sums computations, the ones they call included."""

    def __init__(self, module: Module, chip: Chip, devices_per_slice: int | None) -> None:
        self.module = module
        self.work = Work(module)
        self.devices_per_slice = devices_per_slice
        device = chip.device()
        self.peak_flops_per_s = device.peak_flops_per_s[chip.training_dtype]
        self.hbm_bytes_per_s = device.hbm_bytes_per_s

    def run(self, known: Integers) -> _Totals:
        """The totals of one execution, given the integers that are known in it."""
        total = _Totals()
        channels: set[str] = set()
        for one in known.computation.instructions.values():
            self._add(total, known, one, channels)
        return total

    def _add(self, total: _Totals, known: Integers, one: Instruction, channels: set[str]) -> None:
        computation, opcode = known.computation, one.opcode
        if opcode in _FREE:
            return
        if opcode == "while":
            self._add_loop(total, known, one)
        elif opcode == "conditional":
            branches = [self.run(branch) for branch in self._branches(known, one)]
            total.add(max(branches, key=_dearness, default=_Totals()))
        elif opcode == "call":
            inner = known.inside(one)
            total.add(self.run(inner) if inner else _Totals())
        elif one.kind in hlo_collectives.KINDS:
            self._add_collective(total, computation, one, channels, hidden=opcode.endswith("-start"))
        elif opcode in ("async-start", "call-start"):
            self._add_wrapped(total, one, channels)
        elif opcode.endswith(("-done", "-update")):
            return  # counted where it started
        elif opcode.endswith("-start"):
            self._add_transfer(total, one)
        elif opcode == "custom-call":
            self._add_kernel(total, computation, one)
        elif opcode == "copy" and _touches_host(computation, one):
            total.host_bytes += bytes_of(one.arrays)
        else:
            if opcode == "fusion":
                hidden = _is_async_fusion(one)
                self._add_nested(total, self.module.computations.get(one.called or ""), channels, hidden=hidden)
            self._add_work(total, computation, one)

    def _add_loop(self, total: _Totals, known: Integers, one: Instruction) -> None:
        found = trips(known, one)
        name = found.body.computation.name
        if found.count is None:
            total.unknown.append(f"trip count of {name}: counted once")
        elif found.assumed_start:
            total.unknown.append(f"first counter of {name}: taken as 0, so {found.count} trips")
        count = 1 if found.count is None else found.count
        total.loops.append(Loop(name, count, 1.0))
        total.add(self.run(found.body), count, in_loop=True)

    def _branches(self, known: Integers, one: Instruction) -> list[Integers]:
        """Of a conditional: its first operand chooses, each of the others goes to one branch."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
        names = re.findall(r"%([\w.\-]+)", listed.group(1)) if listed else []
        names += [name for key in ("true_computation", "false_computation") if (name := one.attribute(key))]
        return [
            Integers(self.module, self.module.computations[name], known.arguments(one.operands[1:][place:][:1]))
            for place, name in enumerate(names)
        ]

    def _add_wrapped(self, total: _Totals, one: Instruction, channels: set[str]) -> None:
        """What an asynchronous wrapper runs beside the rest: collectives and kernels, on the SparseCores perhaps."""
        called = self.module.computations.get(one.called or "")
        for inner in called.instructions.values() if called else ():
            if called and inner.opcode == "custom-call":
                self._add_kernel(total, called, inner)
        self._add_nested(total, called, channels, hidden=True)

    def _add_nested(
        self, total: _Totals, called: Computation | None, channels: set[str], *, hidden: bool
    ) -> None:
        """Collectives inside a fusion, and inside those in it."""
        for one in called.instructions.values() if called else ():
            if called and one.kind in hlo_collectives.KINDS:
                self._add_collective(total, called, one, channels, hidden=hidden)
            elif one.opcode in ("fusion", "call", "async-start"):
                self._add_nested(total, self.module.computations.get(one.called or ""), channels, hidden=hidden)

    def _add_collective(
        self, total: _Totals, computation: Computation, one: Instruction, channels: set[str], *, hidden: bool
    ) -> None:
        channel = one.attribute("channel_id")
        if channel is not None:  # one that is fused asynchronously shows up where it starts, goes on and ends
            if channel in channels:
                return
            channels.add(channel)
        sent = hlo_collectives.sent(computation, one, self.module.num_devices, self.devices_per_slice)
        total.unknown += [sent.unknown] if sent.unknown else []
        total.add_collective(
            Collective(
                kind=sent.kind,
                in_loop=False,
                count=1.0,
                payload_bytes=sent.payload_bytes,
                wire_bytes=sent.wire_bytes,
                hidden_wire_bytes=sent.wire_bytes if hidden else 0.0,
                across_slices_bytes=sent.across_slices_bytes,
                as_written_wire_bytes=sent.as_written_bytes,
            )
        )

    def _add_transfer(self, total: _Totals, one: Instruction) -> None:
        """An asynchronous copy, of a slice perhaps: what moves is the smallest array that it names."""
        arrays = [array for array in one.arrays if array.dims]
        moved = min((array.num_bytes for array in arrays), default=0.0)
        if any(array.memory_space == hlo.HOST for array in arrays):
            total.host_bytes += moved
        else:
            total.hbm_bytes += moved

    def _add_kernel(self, total: _Totals, computation: Computation, one: Instruction) -> None:
        if hlo_kernels.target_of(one) in hlo_kernels.FREE:
            return
        cycles = one.estimated_cycles or 0.0
        total.cycles += cycles
        cost, label = hlo_kernels.cost_of(computation, one), hlo_kernels.label_of(one)
        if cost is None:
            if not cycles:
                total.uncosted[label] += 1
            return
        total.kernels[label] += 1
        total.kernel_flops += cost.flops
        total.kernel_bytes += cost.hbm_bytes
        compute_s, memory_s = cost.flops / self.peak_flops_per_s, cost.hbm_bytes / self.hbm_bytes_per_s
        total.kernel_s += max(compute_s / KERNEL_EFFICIENCY, memory_s)
        if compute_s >= memory_s:
            total.compute_s += compute_s
        else:
            total.memory_s += memory_s

    def _add_work(self, total: _Totals, computation: Computation, one: Instruction) -> None:
        flops = self.work.flops(computation, one)
        num_bytes = self.work.hbm_bytes(computation, one)
        cycles = one.estimated_cycles or 0.0
        compute_s, memory_s = flops / self.peak_flops_per_s, num_bytes / self.hbm_bytes_per_s
        total.flops += flops
        total.hbm_bytes += num_bytes
        total.cycles += cycles
        if compute_s >= memory_s:
            total.compute_s += compute_s
        else:
            total.memory_s += memory_s
        if flops:
            total.matmul_cycles += cycles
        else:
            total.no_flops_memory_s += memory_s


def _dearness(total: _Totals) -> tuple[float, float, float]:
    """By which the branch of a conditional is chosen that counts."""
    return total.cycles, total.compute_s + total.memory_s, sum(row.wire_bytes for row in total.collectives.values())


def _touches_host(computation: Computation, one: Instruction) -> bool:
    return any(array.memory_space == hlo.HOST for array in (*one.arrays, *computation.operand_arrays(one)))


def _is_async_fusion(one: Instruction) -> bool:
    """Whether a fusion is one of those in which a collective starts, goes on beside a product, and ends."""
    early = one.attributes.partition("backend_config=")[0].partition("metadata=")[0]
    return re.search("async[_-]collective", f"{one.name} {one.called} {early}") is not None


def step_time(cost: StepCost, chip: Chip, *, as_written: bool = False) -> StepTime:
    """How long a step may take on this chip.

    Args:
      as_written: time fused reduce-scatters as the all-reduces that the text shows.
    """
    device = chip.device()
    wire = sum(row.as_written_wire_bytes if as_written else row.wire_bytes for row in cost.collectives)
    hidden = 0.0
    for row in cost.collectives:
        hidden += row.hidden_wire_bytes
    wire_s = wire / device.link_bytes_per_s
    exposed_wire_s = (wire - hidden) / device.link_bytes_per_s
    hybrid_s = cycles_s = None
    if device.clock_hz and cost.cycles:
        matmul_s = cost.matmul_cycles / device.clock_hz
        hybrid_s = max(matmul_s + cost.no_flops_memory_s + cost.kernel_s + exposed_wire_s, wire_s)
        cycles_s = max(cost.cycles / device.clock_hz + cost.kernel_s + exposed_wire_s, wire_s)
    on_chip_s = cost.compute_s + cost.memory_s
    network_s = exposed_wire_s if wire_s <= on_chip_s + exposed_wire_s else wire_s
    parts = {"compute": cost.compute_s, "memory": cost.memory_s, "network": network_s}
    return StepTime(
        roofline_s=max(on_chip_s + exposed_wire_s, wire_s),
        hybrid_s=hybrid_s,
        cycles_s=cycles_s,
        compute_s=cost.compute_s,
        hbm_s=cost.memory_s,
        wire_s=wire_s,
        exposed_wire_s=exposed_wire_s,
        bound=max(parts, key=lambda part: parts[part]),
    )
