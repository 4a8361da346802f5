"""Walks a compiled module from its entry and sums what one execution costs on one device.

Bodies of loops count as often as they run; of a conditional the dearest branch counts; what a fusion, a call or an
asynchronous wrapper runs counts where it is called.

Whether a collective hides is read off the schedule: between its start and its end others compute, and the network sends
one collective after the other; what is not there when its end comes is waited for.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxlm.plan import hlo, hlo_collectives, hlo_kernels
from jaxlm.plan.hardware import Device
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
    "replica-id",
    "tuple",
)
"""Opcodes that move and compute nothing."""


class Collective(NamedTuple):
    """All collectives of a kind, in loops or outside, of one step and one device."""

    kind: str
    """all-gather, all-reduce, reduce-scatter, all-to-all, collective-permute, ..."""
    in_loop: bool
    """Inside a loop (over the layers, as a rule); else once a step."""
    count: float  # pyright: ignore[reportIncompatibleMethodOverride]
    """Executions a step."""
    payload_bytes: float
    wire_bytes: float
    """What the device sends; see hlo_collectives."""
    hidden_wire_bytes: float
    """Of them, those that are asynchronous, so that computation can go on meanwhile."""
    across_slices_bytes: float
    """Of wire_bytes, those that leave the slice, over the data-center network: slower than the rest, and not timed."""
    as_written_wire_bytes: float
    """wire_bytes, if a reduce-scatter that the text shows as a fused all-reduce were one."""


class Loop(NamedTuple):
    """A while loop, in the order in which the step comes to them."""

    name: str
    """Of its body."""
    trip_count: int
    entered: float
    """Times a step."""


class Links(NamedTuple):
    """Bytes that a device sends over the links of its slice."""

    all_bytes: float = 0.0
    exposed_bytes: float = 0.0
    """Of them, those of synchronous collectives: nothing else goes on meanwhile."""

    def plus(self, other: Links, times: float = 1.0) -> Links:
        return Links(*(a + times * b for a, b in zip(self, other)))


@dataclass
class Totals:
    """Sums over a computation that runs once; the fields are those of `step_cost.StepCost`."""

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
    waited_s: float = 0.0
    host_bytes: float = 0.0
    links: Links = Links()
    as_written: Links = Links()
    kernels: Counter[str] = field(default_factory=Counter)
    uncosted: Counter[str] = field(default_factory=Counter)
    collectives: dict[tuple[str, bool], Collective] = field(default_factory=dict)
    loops: list[Loop] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def add(self, other: Totals, times: float = 1.0, *, in_loop: bool = False) -> None:
        """Adds what another computation costs, run so many times."""
        for key, value in vars(other).items():
            if isinstance(value, float):
                setattr(self, key, getattr(self, key) + times * value)
        self.links = self.links.plus(other.links, times)
        self.as_written = self.as_written.plus(other.as_written, times)
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


class Walk:
    """Sums computations, the ones they call included."""

    def __init__(
        self, module: Module, device: Device, peak_flops_per_s: float, devices_per_slice: int | None
    ) -> None:
        self.module = module
        self.work = Work(module)
        self.devices_per_slice = devices_per_slice
        self.peak_flops_per_s = peak_flops_per_s
        self.hbm_bytes_per_s = device.hbm_bytes_per_s
        self.link_bytes_per_s = device.link_bytes_per_s
        timed = any(
            one.estimated_cycles
            for part in module.computations.values()
            for one in part.instructions.values()
        )
        self.clock_hz = device.clock_hz if timed else None

    def run(self, known: Integers) -> Totals:
        """The totals of one execution, given the integers that are known in it."""
        total = Totals()
        channels: set[str] = set()
        sent_at: dict[str, float] = {}  # start of a collective -> second at which all of it is sent
        free_s = 0.0  # when the network has sent all that was started
        for one in known.computation.instructions.values():
            before_bytes = total.links.all_bytes
            self._add(total, known, one, channels)
            now_s, new_bytes = self._seconds(total), total.links.all_bytes - before_bytes
            if one.opcode.endswith("-start") and new_bytes:
                free_s = max(free_s, now_s) + new_bytes / self.link_bytes_per_s
                sent_at[one.name] = free_s
            elif one.opcode.endswith("-done"):
                parts = one.opcode, one.opcode.removesuffix("-done") + "-update"
                start = known.computation.behind(one.name, parts)
                end_s = 0.0 if start is None else sent_at.get(start.name, 0.0)
                total.waited_s += max(0.0, end_s - now_s)
        return total

    def _seconds(self, total: Totals) -> float:
        """How long all of it takes, one after the other: by cycles, where there are any, else by the roofline."""
        if self.clock_hz:
            on_chip_s = total.cycles / self.clock_hz + total.kernel_s
        else:
            on_chip_s = total.compute_s + total.memory_s
        return on_chip_s + total.links.exposed_bytes / self.link_bytes_per_s + total.waited_s

    def _add(self, total: Totals, known: Integers, one: Instruction, channels: set[str]) -> None:
        computation, opcode = known.computation, one.opcode
        if opcode in _FREE:
            return
        if opcode == "while":
            self._add_loop(total, known, one)
        elif opcode == "conditional":
            branches = [self.run(branch) for branch in self._branches(known, one)]
            total.add(max(branches, key=_dearness, default=Totals()))
        elif opcode == "call":
            inner = known.inside(one)
            total.add(self.run(inner) if inner else Totals())
        elif one.kind in hlo_collectives.KINDS:
            self._add_collective(total, computation, one, hidden=opcode.endswith("-start"))
        elif opcode == "send":
            self._add_sent(total, hlo_collectives.sent_to_slices(one), hidden=True)
        elif opcode in ("async-start", "call-start"):
            self._add_wrapped(total, one)
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
                self._add_fused(total, one, channels)
            self._add_work(total, computation, one)

    def _add_loop(self, total: Totals, known: Integers, one: Instruction) -> None:
        found = trips(known, one)
        name = found.body.computation.name
        if found.trip_count is None:
            total.unknown.append(f"trip count of {name}: counted once")
        elif found.assumed_start:
            total.unknown.append(f"first counter of {name}: taken as 0, so {found.trip_count} trips")
        count = 1 if found.trip_count is None else found.trip_count
        total.loops.append(Loop(name, count, 1.0))
        total.add(self.run(found.body), count, in_loop=True)

    def _branches(self, known: Integers, one: Instruction) -> list[Integers]:
        """Of a conditional: its first operand chooses, each of the others goes to one branch."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
        names = re.findall(r"%([\w.\-]+)", listed.group(1)) if listed else []
        names += [name for key in ("true_computation", "false_computation") if (name := one.attribute(key))]
        return [
            Integers(
                self.module, self.module.computations[name], known.arguments(one.operands[1:][place:][:1])
            )
            for place, name in enumerate(names)
        ]

    def _add_wrapped(self, total: Totals, one: Instruction) -> None:
        """What an asynchronous wrapper runs beside the rest: collectives and kernels, on the SparseCores perhaps."""
        called = self.module.computations.get(one.called or "")
        for inner in called.instructions.values() if called else ():
            if called and inner.opcode == "custom-call":
                self._add_kernel(total, called, inner)
        self._add_nested(total, called, hidden=True)

    def _add_fused(self, total: Totals, one: Instruction, channels: set[str]) -> None:
        """Collectives inside a fusion.

        One that is fused asynchronously shows up in all of its parts, where it starts, goes on beside a product, and
        ends: it counts where it starts.
        """
        early = one.attributes.partition("backend_config=")[0].partition("metadata=")[0]
        names = f"{one.name} {one.called} {early}"
        called = self.module.computations.get(one.called or "")
        if not re.search("async[_-]collective", names):
            self._add_nested(total, called, hidden=False)
        else:
            known = set() if "async-collective-start" in one.name else channels
            self._add_nested(total, called, hidden=True, known=known)
            channels |= known

    def _add_nested(
        self, total: Totals, called: Computation | None, *, hidden: bool, known: set[str] | None = None
    ) -> None:
        """Collectives inside a computation, and inside those it calls, but for channels that are known already."""
        for one in called.instructions.values() if called else ():
            if called and one.kind in hlo_collectives.KINDS:
                channel = one.attribute("channel_id")
                if known is not None and channel is not None:
                    if channel in known:
                        continue
                    known.add(channel)
                self._add_collective(total, called, one, hidden=hidden)
            elif one.opcode in ("fusion", "call", "async-start"):
                inner = self.module.computations.get(one.called or "")
                self._add_nested(total, inner, hidden=hidden, known=known)

    def _add_collective(
        self, total: Totals, computation: Computation, one: Instruction, *, hidden: bool
    ) -> None:
        sent = hlo_collectives.sent(computation, one, self.module.num_devices, self.devices_per_slice)
        self._add_sent(total, sent, hidden=hidden)

    def _add_sent(self, total: Totals, sent: hlo_collectives.Sent | None, *, hidden: bool) -> None:
        if sent is None:
            return
        total.unknown += [sent.unknown] if sent.unknown else []
        in_slice = 1 - sent.across_slices_bytes / sent.wire_bytes if sent.wire_bytes else 1.0
        exposed = 0.0 if hidden else 1.0
        for key, wire_bytes in (("links", sent.wire_bytes), ("as_written", sent.as_written_bytes)):
            links = Links(in_slice * wire_bytes, exposed * in_slice * wire_bytes)
            setattr(total, key, getattr(total, key).plus(links))
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

    def _add_transfer(self, total: Totals, one: Instruction) -> None:
        """An asynchronous copy, of a slice perhaps: what moves is the smallest array that it names."""
        arrays = [array for array in one.arrays if array.dims]
        moved = min((array.num_bytes for array in arrays), default=0.0)
        if any(array.memory_space == hlo.HOST for array in arrays):
            total.host_bytes += moved
        else:
            total.hbm_bytes += moved

    def _add_kernel(self, total: Totals, computation: Computation, one: Instruction) -> None:
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

    def _add_work(self, total: Totals, computation: Computation, one: Instruction) -> None:
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


def _dearness(total: Totals) -> tuple[float, float, float]:
    """By which the branch of a conditional is chosen that counts."""
    return (
        total.cycles,
        total.compute_s + total.memory_s,
        sum(row.wire_bytes for row in total.collectives.values()),
    )


def _touches_host(computation: Computation, one: Instruction) -> bool:
    return any(array.memory_space == hlo.HOST for array in (*one.arrays, *computation.operand_arrays(one)))
