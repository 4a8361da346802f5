"""Options of XLA that a train step is compiled with, for each chip, each with its reason. Imports no JAX.

They change no result but for rounding. They are passed with the program, not in the environment, so that one process
can compile for several chips, and so that `jaxlm compile` and a run on the chips compile the same.
"""

from __future__ import annotations

import functools
from importlib import metadata
from pathlib import Path
from typing import Any

VMEM_KIB = "xla_tpu_scoped_vmem_limit_kib"
"""Of a core's fast memory, what one operation may use; the rest holds operands of the next ones, fetched ahead.

With XLA's default, 16 MiB, products are cut into small windows, of which each fetches its operands anew and computes
again what is fused into it: those of an MLP of Llama 2 7B reach 77 % of the peak in the compiler's own count of cycles,
and 94 % with 48 MiB (v5e, libtpu 0.0.46). On a v6e, whose matrix units are four times as large, Llama 3.1 8B takes
6.8 s with 16 MiB, 3.43 s with 64 and 3.21 s with 80. More than the table has costs minutes of the compiler's time.
"""

SPARSE_CORES: dict[str, Any] = {
    **{
        f"xla_tpu_enable_sparse_core_collective_offload_{kind}": True
        for kind in ("all_gather", "2d_all_gather", "3d_all_gather", "reduce_scatter", "all_reduce")
    },
    # In every published recipe that has those above (MaxText's for v6e, Google's for tpu7x). No estimate sees what
    # difference they make.
    "xla_tpu_use_tc_device_shape_on_sc": True,
    "xla_sc_disable_megacore_partitioning": True,
    # Small matrices (k and v of grouped queries) would come as an all-reduce of zeros and parts: twice the bytes.
    "xla_tpu_prefer_async_allgather_to_allreduce": True,
}
"""Collectives that the SparseCores run, while the TensorCore multiplies.

Without them, each collective of a v5p or v6e is synchronous in the schedule: Llama 2 7B on 64 v5p waited for the
network for 65 ms of 2.22 s, Llama 3.1 8B on 256 v6e for 117 ms of 3.53 s; with them for 2 and 3 ms (libtpu 0.0.46;
0.0.42 and 0.0.50 take them too). A v5e has no SparseCores, and hides its gathers behind products as it is.
"""

OPTIONS: dict[str, dict[str, Any]] = {
    # Nothing is offloaded; but gathers over three rings stay gathers.
    "TPU v4": SPARSE_CORES,
    "TPU v5 lite": {VMEM_KIB: 24576},
    "TPU v5": {VMEM_KIB: 24576, **SPARSE_CORES},
    "TPU v6 lite": {VMEM_KIB: 81920, **SPARSE_CORES},
    # Offloads by itself, but for gathers over three rings.
    "TPU7x": {VMEM_KIB: 65536, **SPARSE_CORES},
}
"""`jax.Device.device_kind` -> option -> value. A chip that is not here takes XLA's defaults."""


ORDER_FOR_MEMORY: dict[str, Any] = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_cpu_copy_insertion_use_region_analysis": True,
}
"""On CPUs: operations in the order that needs least memory, and no copies of the optimizer's moments.

By default XLA orders them so that many could run at once, in which two cores gain nothing. Shapes S, L and M of
`make bench`, unrolled, take 17 % less temporary memory; S and M took 0.92 of the time while the system handed it out
anew in each step (two cores of Sapphire Rapids, jax 0.10.2). Nor can collectives of several devices on few cores wait
for each other for ever, as those that do not depend on each other do when they begin in any order. (The older option of
this purpose, `xla_cpu_enable_concurrency_optimized_scheduler`, is heard in XLA_FLAGS only, not with a program.)
"""

NEWEST_KNOWN = (0, 12)
"""jaxlib that the options of CPUs were tried with; a later one may not know them, and would refuse to compile."""

EIGEN_PRODUCTS: dict[str, Any] = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
"""On CPUs: products by Eigen, and only sums by YNNPACK, XLA's newer library, which else takes both.

Without AVX-512 its float32 products are the slower ones, those of attention by a third: shape S of `make bench` takes
8 % less time a step with Eigen's (two cores of Zen 3, jax 0.10.2). Products in bfloat16 exist in YNNPACK alone.
"""


def options_for(device_kind: str, dtype: str) -> dict[str, Any]:
    """The options of a chip, for a model that computes in dtype."""
    if device_kind == "cpu":
        return cpu_options(dtype, cpu_features(), jaxlib_version())
    return dict(OPTIONS.get(device_kind, {}))


def jaxlib_version() -> tuple[int, int]:
    """Major and minor version."""
    major, minor = map(int, metadata.version("jaxlib").split(".")[:2])
    return major, minor


def cpu_options(dtype: str, features: frozenset[str], version: tuple[int, int]) -> dict[str, Any]:
    """Of a CPU with these features; only for versions that know them: XLA refuses an option that it does not know."""
    if version > NEWEST_KNOWN:
        return {}
    eigen = dtype == "float32" and "avx2" in features and "avx512f" not in features
    return ORDER_FOR_MEMORY | (EIGEN_PRODUCTS if eigen else {})


@functools.cache
def cpu_features() -> frozenset[str]:
    """What Linux calls flags, of an x86 processor; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())
