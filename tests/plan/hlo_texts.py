"""Small compiled modules to read the cost of, and a chip to add them up on."""

import dataclasses

from jaxlm.plan.hardware import CHIPS, Figure, Source
from jaxlm.plan.step_cost import read_step

V5E = CHIPS["v5e"]
_FIGURE = Source("https://example.org", "2026-11-26")
ROUND = dataclasses.replace(  # a chip to add up in one's head; 500 cycles are a second
    V5E,
    peak_flops_per_s={"bfloat16": Figure(1000.0, _FIGURE)},
    hbm_bytes_per_s=Figure(100.0, _FIGURE),
    link_bytes_per_s=Figure(10.0, _FIGURE),
    flops_per_cycle=Figure(2.0, _FIGURE),
)


def module(entry, others="", num_devices=8):
    """A module whose entry has these lines."""
    return f"HloModule m, num_partitions={num_devices}\n\n{others}\nENTRY %main () -> f32[] {{\n{entry}\n}}\n"


def cost(entry, others="", **kwargs):
    return read_step(module(entry, others), V5E, **kwargs)


def collective(result, kind):
    (row,) = [row for row in result.collectives if row.kind == kind]
    return row


SCATTER = """
%all-reduce-scatter.1 (p: f32[1000]) -> f32[250] {
  %p = f32[1000] parameter(0)
  %sums = f32[1000] all-reduce(%p), channel_id=3, replica_groups=[2,4]<=[8], to_apply=%sum
  %place = s32[] constant(0)
  ROOT %mine = f32[250] dynamic-slice(%sums, %place), dynamic_slice_sizes={250}
}
"""
"""A reduce-scatter, as the TPU compiler writes it."""
