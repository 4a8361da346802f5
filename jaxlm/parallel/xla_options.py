"""Options of XLA that a train step is compiled with, for each chip, each with its reason. Imports no JAX.

They change no result. They are passed with the program, not in the environment, so that one process can compile for
several chips, and so that `jaxlm compile` and a run on the chips compile the same.
"""

from __future__ import annotations

from typing import Any

VMEM_KIB = "xla_tpu_scoped_vmem_limit_kib"
"""Of a core's fast memory, what one operation may use; the rest holds operands of the next ones, fetched ahead.

With XLA's default, 16 MiB, products are cut into small windows, of which each fetches its operands anew and computes
again what is fused into it: those of an MLP of Llama 2 7B reach 77 % of the peak in the compiler's own count of cycles,
and 94 % with 48 MiB (v5e, libtpu 0.0.46).
"""

OPTIONS: dict[str, dict[str, Any]] = {
    "TPU v5 lite": {VMEM_KIB: 24576},
    "TPU v5": {VMEM_KIB: 24576},
    "TPU v6 lite": {VMEM_KIB: 65536},
}
"""`jax.Device.device_kind` -> option -> value. A chip that is not here takes XLA's defaults."""


def options_for(device_kind: str) -> dict[str, Any]:
    """The options of a chip."""
    return dict(OPTIONS.get(device_kind, {}))
