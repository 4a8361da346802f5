"""What a compiled step costs on one device, and how long it may take: read off its text, without the device.

`read_step` walks the scheduled module from its entry, multiplies the bodies of loops by their trip counts, and sums
FLOPs, bytes and the compiler's own estimate of cycles. `step_time` makes three step times of them, in seconds:

- roofline: each instruction takes the longer of its FLOPs at the peak and its HBM bytes at full bandwidth. A lower
  bound, all but for operands of which only some rows are read (a gather), which count in full.
- hybrid: products by the compiler's cycles, everything else by its HBM bytes.
- cycles: everything by the compiler's cycles, which are near for products and pessimistic for what memory bounds.

To each come synchronous collectives, and what an asynchronous one takes longer than all that is scheduled between its
start and its end. None is shorter than all collectives take together. What is not in any of them: latencies, hops and
contention of the network, what goes from slice to slice and to the memory of the host (both are counted in bytes),
input, dispatch. Collectives that are fused into products (v5e) are taken to hide fully. Asynchronous copies between HBM
and the chip count as bytes, not as time. Kernels without a cost are listed, not timed.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxlm.plan import hlo
from jaxlm.plan.hardware import Chip
from jaxlm.plan.hlo_loops import Integers
from jaxlm.plan.hlo_walk import KERNEL_EFFICIENCY, Collective, Links, Loop, Walk

__all__ = [
    "KERNEL_EFFICIENCY",
    "Collective",
    "Links",
    "Loop",
    "StepCost",
    "StepTime",
    "read_step",
    "step_time",
]


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
    waited_s: float
    """For asynchronous collectives that were not through when the schedule came to their ends."""
    host_bytes: float
    """Copied to and from the memory of the host."""
    links: Links
    """What the collectives within a slice send."""
    as_written: Links
    """The same, if a reduce-scatter that the text shows as a fused all-reduce were one."""
    collectives: tuple[Collective, ...]
    loops: tuple[Loop, ...]
    unknown: tuple[str, ...]
    """What could not be read, and what was taken in its place."""


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
    """Of them, what computation does not hide: synchronous ones, and what was waited for at the ends of others."""
    bound: str
    """The largest part of the roofline: compute, memory or network."""


def read_step(
    hlo_text: str, chip: Chip, *, devices_per_slice: int | None = None, num_cores: int | None = None
) -> StepCost:
    """What a compiled step costs on one device of this chip.

    Args:
      hlo_text: `compiled.as_text()`.
      devices_per_slice: of a program that runs on several slices at once, outermost in its mesh, as fake devices do;
        the program of a TPU is that of one slice, and says itself what it sends to others.
      num_cores: `jax.Device.num_cores`; None: the default of this chip.

    Errors: UserError where the text is not that of a compiled module.
    """
    module = hlo.parse(hlo_text)
    device = chip.device(num_cores)
    walk = Walk(module, device, device.peak_flops_per_s[chip.training_dtype], devices_per_slice)
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


def step_time(
    cost: StepCost, chip: Chip, *, num_cores: int | None = None, as_written: bool = False
) -> StepTime:
    """How long a step may take on this chip.

    Args:
      num_cores: as of `read_step`.
      as_written: time fused reduce-scatters as the all-reduces that the text shows.
    """
    device = chip.device(num_cores)
    sent = cost.as_written if as_written else cost.links
    wire_s, exposed_wire_s = (num_bytes / device.link_bytes_per_s for num_bytes in sent)
    exposed_wire_s += cost.waited_s
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
