"""How long a train step takes on a chip, by arithmetic on the config: what `jaxlm compile` says, without the compiler.

A step is the sum of what nothing hides:

- products with weights, at a share of the peak, and a share of the time that their operands and results take;
- attention's and the experts' kernels, at half the peak, as `jaxlm compile` takes them;
- passes over memory between the products: norms, the residual stream, what is kept, logits, the optimizer;
- what is sent while the chip waits.

It is no shorter than the links need for all that is sent, nor than the data-center network needs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxlm.plan.hardware import Chip, product_flops_per_s
from jaxlm.plan.step_passes import moved_bytes
from jaxlm.plan.step_products import Products, products
from jaxlm.plan.step_wire import Wire, is_torus, latency_s, wire

KERNEL_EFFICIENCY = 0.5
"""As of `jaxlm.plan.hlo_walk`."""


class Efficiency(NamedTuple):
    """What the compiler's cycles say of a chip.

    Read off steps of pod configs that were compiled with jax 0.11.1 and libtpu 0.0.46.3 (`bench/pods.py`; 5 for v5e,
    2026-11-26; 8 for v5p and 4 for v6e, 2026-11-27). `products` and `operands` are the line through the cycles of what
    has FLOPs over the FLOPs at the peak, by the time of its operands over that of its FLOPs; `hbm` is what the cycles
    of everything else are worth, given the bytes of `plan/step_passes.py`. Hidden is what the schedule does not wait
    for.
    They are the compiler's model of the chip, not the chip: no step was timed.
    """

    products: float
    """Of the peak, what products reach whose operands come for nothing."""
    operands: float
    """Of the time that HBM takes for a product's operands and results, what does not hide behind the product."""
    hbm: float
    """Of the bandwidth, what passes over memory reach."""
    hidden_gathers: float
    """Of the gathered weights, what is fetched while products go on."""
    hidden_sums: float
    """Of the gradients that are scattered or summed, what is sent meanwhile."""
    hidden_activations: float
    """Of activations along `tensor`, `expert` and `sequence`."""


EFFICIENCIES = {
    "v5e": Efficiency(0.98, 0.6, 0.45, 0.92, 0.0, 0.0),
    "v5p": Efficiency(0.95, 0.27, 0.40, 0.97, 0.97, 0.7),
    "v6e": Efficiency(0.955, 0.84, 0.42, 0.97, 0.97, 0.7),
}
OTHERS: dict[str, tuple[str, dict[str, float]]] = {
    "v4": ("v5p", {"hidden_gathers": 0.0, "hidden_sums": 0.0, "hidden_activations": 0.0}),
    "tpu7x": ("v6e", {}),
}
"""Chips that were not compared: one with matrix units of the same size, and what is different. The compiler gives the
SparseCores of a v4 no collectives, so all are synchronous."""


def efficiency_of(chip_name: str) -> tuple[str, Efficiency]:
    """(of which chip it was read, what it is)."""
    name, different = OTHERS.get(chip_name, (chip_name, {}))
    return name, EFFICIENCIES[name]._replace(**different)


CYCLES = (0.88, 1.07)
"""Measured steps over compiled ones, lowest and highest: `MEASURED["cycles"]` of `jaxlm.plan.compiled`."""

AGAINST_COMPILED = (-0.08, 0.08)
"""This prediction over the compiler's cycles, less 1, on pod configs: what tests/plan/test_pods_compiled.py allows."""


class StepEstimate(NamedTuple):
    """Seconds of one step; those of parts are one after the other."""

    products_s: float
    """With weights."""
    attention_s: float
    experts_s: float
    passes_s: float
    """Over memory, outside of products."""
    exposed_s: float
    """Sent within the slice while the chip waits."""
    wire_s: float
    """All that is sent within the slice."""
    across_slices_s: float
    """All that is sent from slice to slice."""
    latency_s: float
    """Of the collectives, hop by hop, which no compiler counts."""

    @property
    def compute_s(self) -> float:
        """Products, wherever they run."""
        return self.products_s + self.attention_s + self.experts_s

    @property
    def on_chip_s(self) -> float:
        return self.compute_s + self.passes_s

    @property
    def step_s(self) -> float:
        """As the compiler counts it."""
        return max(self.on_chip_s + self.exposed_s, self.wire_s, self.across_slices_s)

    @property
    def bound(self) -> str:
        """What takes most of the step: compute, HBM, ICI, DCN."""
        if self.across_slices_s >= self.step_s:
            return "DCN"
        ici_s = self.wire_s if self.wire_s >= self.step_s else self.exposed_s
        parts = {
            "compute": self.compute_s,
            "HBM": self.passes_s,
            "ICI": ici_s,
        }
        return max(parts, key=lambda part: parts[part])


def time_range(step: StepEstimate) -> tuple[float, float]:
    """(shortest, longest) seconds that a real step may take: errors of this prediction and of the compiler's cycles."""
    (low, high), (fast, slow) = AGAINST_COMPILED, CYCLES
    seconds = step.step_s + step.latency_s
    return seconds / (1 + high) * fast, seconds / (1 + low) * slow


def mfu_range(step: StepEstimate, flops: float, peak_flops_per_s: float) -> tuple[float, float]:
    """(lowest, highest) MFU. flops: the model's, of one step; peak_flops_per_s: of all chips together."""
    shortest, longest = time_range(step)
    return flops / (peak_flops_per_s * longest), min(1.0, flops / (peak_flops_per_s * shortest))


def predict_step(
    run: Any, chip: Chip, mesh: dict[str, int], shape: tuple[int, ...], num_slices: int = 1
) -> StepEstimate:
    """The step of a run on one device.

    Args:
      run: a RunConfig with model.vocab_size filled in.
      mesh: axis -> devices, nothing left open.
      shape: chips of a slice along each dimension.
    """
    device = chip.device()
    peak = (product_flops_per_s(chip, run.model.dtype) or chip.training_flops_per_s) * chip.share()
    reached = efficiency_of(chip.name)[1]
    found: Products = products(run, mesh)
    torus = is_torus(chip.name, shape)
    sent: Wire = wire(run, mesh, torus=torus, num_slices=num_slices)
    num_dims = sum(size > 1 for size in shape)
    exposed = (
        (1 - reached.hidden_gathers) * sent.gathers
        + (1 - reached.hidden_sums) * (sent.scatters + sent.sums)
        + (1 - reached.hidden_activations) * sent.activations
    )
    return StepEstimate(
        products_s=found.weights.padded_flops / (peak * reached.products)
        + reached.operands * found.weights.hbm_bytes / device.hbm_bytes_per_s,
        attention_s=found.attention.padded_flops / (peak * KERNEL_EFFICIENCY),
        experts_s=found.experts.padded_flops / (peak * KERNEL_EFFICIENCY),
        passes_s=moved_bytes(run, mesh, num_dims=num_dims) / (reached.hbm * device.hbm_bytes_per_s),
        exposed_s=exposed / device.link_bytes_per_s,
        wire_s=sent.in_slice / device.link_bytes_per_s,
        across_slices_s=sent.across_slices / chip.dcn_bytes_per_s.value if chip.dcn_bytes_per_s else 0.0,
        latency_s=latency_s(run, mesh, shape),
    )
