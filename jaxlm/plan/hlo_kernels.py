"""What a custom call costs: kernels of Pallas and Mosaic say, or are recognised, or stay uncosted.

A kernel may carry a cost estimate (grouped matmuls do). Attention kernels carry none, but their name says which pass
they are, and their operands how long it is. Splash attention (jax.experimental.pallas.ops.tpu.splash_attention, read
in jax 0.10.2) goes over blocks of queries x blocks of keys, as many as its operand `data_next` is wide: fewer than
there are where a window hides the others. A causal mask is taken for granted, as in all that jaxlm trains: blocks above
the diagonal are skipped, blocks on it computed in full. Masks that differ by head, or by data, are not seen.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from jaxlm.plan.hlo import Array, Computation, Instruction
from jaxlm.plan.hlo_work import bytes_in_hbm

FREE = (
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "ConcatBitcast",
    "GetNextBarrier",
    "MoveToDevice",
    "MoveToHost",
    "SPMDFullToShardShape",
    "SPMDShardToFullShape",
    "Sharding",
    "SliceBitcast",
    "SliceId",
)
"""Targets of custom calls that only mark or rename something."""

PRODUCTS = {"fwd": (1, 1), "dq": (2, 1), "dkv": (2, 2), "dkv_fused": (3, 2)}
"""Pass of an attention kernel -> its products over the width of a key (q k, dk, dq), and of a value (p v, dp, dv)."""

DEFAULT_BLOCK = 512
"""Queries and keys of a block, where the kernel does not say."""


class KernelCost(NamedTuple):
    """One execution of a custom call."""

    flops: float
    hbm_bytes: float


def target_of(one: Instruction) -> str:
    found = re.search(r'custom_call_target="([^"]*)"', one.attributes)
    return found.group(1) if found else "unnamed"


def label_of(one: Instruction) -> str:
    """Its name for people: target, and where in the program it comes from."""
    found = re.search(r'op_name="([^"]*)"', one.attributes)
    return f"{target_of(one)} {found.group(1)[-60:] if found else one.name}"


def cost_of(computation: Computation, one: Instruction) -> KernelCost | None:
    """Of a custom call; None where it neither says nor is recognised."""
    stated = re.search(r'"cost_estimate":\{([^}]*)\}', one.attributes)
    if stated:
        fields = dict(re.findall(r'"(\w+)":"?(-?[\d.e+]+)', stated.group(1)))
        flops, num_bytes = (max(0.0, float(fields.get(key, 0))) for key in ("flops", "bytes_accessed"))
        if flops or num_bytes:
            return KernelCost(flops, num_bytes)
    flops = _attention_flops(computation, one)
    if flops is None:
        return None
    return KernelCost(flops, bytes_in_hbm(computation.operand_arrays(one)) + bytes_in_hbm(one.arrays))


def _attention_flops(computation: Computation, one: Instruction) -> float | None:
    """2 x products x heads x pairs of query and key in the blocks it computes x width of a head."""
    found = re.search(r'op_name="([^"]*)"', one.attributes)
    names = f"{one.name} {found.group(1) if found else ''}".lower()
    if "splash" not in names and "flash" not in names:
        return None
    operands = computation.operand_arrays(one)
    matrices = [array for array in operands if len(array.dims) >= 3 and array.dtype in ("bf16", "f16", "f32")]
    if len(matrices) < 3:
        return None
    query, key, value = matrices[:3]
    if _field(one, "q_layout") == 2:  # the sequence is the minor dimension
        query, key, value = (
            Array(a.dtype, (*a.dims[:-2], a.dims[-1], a.dims[-2])) for a in (query, key, value)
        )
    phase = next(iter(re.findall(r"_(fwd|dq|dkv)(?![a-z])", names)), "fwd")
    grids = [array.dims for array in operands if len(array.dims) == 3 and array.dtype in ("s8", "s16", "s32")]
    pairs = _pairs(one, phase, query.dims[-2], key.dims[-2], grids[0] if grids else None)
    if phase == "dkv" and any(len(array.dims) > len(query.dims) for array in one.arrays):
        phase = "dkv_fused"  # it also returns a part of dq for each block of keys
    of_keys, of_values = PRODUCTS[phase]
    width = of_keys * query.dims[-1] + of_values * value.dims[-1]
    return 2.0 * math.prod(query.dims[:-2]) * pairs * width


def _field(one: Instruction, key: str) -> int | None:
    """A number out of the kernel's metadata, which is JSON inside JSON."""
    found = re.search(rf'\b{key}[\\"]*: *(\d+)', one.attributes)
    return int(found.group(1)) if found else None


def _pairs(
    one: Instruction, phase: str, num_queries: int, num_keys: int, grid: tuple[int, ...] | None
) -> float:
    """Pairs of query and key in the blocks that a causal kernel computes.

    Where there are fewer queries than keys (they are split over devices), a device is taken to have their mean.
    """
    suffix = "" if phase == "fwd" else f"_{phase}"
    block_q = min(_field(one, f"block_q{suffix}") or DEFAULT_BLOCK, num_keys)
    block_kv = min(_field(one, f"block_kv{suffix}") or DEFAULT_BLOCK, num_keys)
    rows, columns = -(-num_keys // block_q), -(-num_keys // block_kv)
    if phase == "dkv":  # for each block of keys: the blocks of queries from it on
        widest = grid[-2] if grid else rows
        blocks = sum(min(rows - column * block_kv // block_q, widest) for column in range(columns))
    else:  # for each block of queries: the blocks of keys up to it
        widest = grid[-1] if grid else columns
        blocks = sum(min(-(-(row + 1) * block_q // block_kv), columns, widest) for row in range(rows))
    return blocks * block_q * block_kv * num_queries / num_keys
