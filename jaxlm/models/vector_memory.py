"""What a kernel of ours may take of a TPU core's vector memory. Imports no JAX."""

MIB = 2**20
VMEM_BYTES = {
    "TPU v4": 16 * MIB,
    "TPU v5 lite": 128 * MIB,
    "TPU v5": 64 * MIB,
    "TPU v5p": 64 * MIB,
    "TPU v6 lite": 128 * MIB,
    "TPU7x": 64 * MIB,
}
"""Vector memory of one core, by `jax.Device.device_kind`. Source: the table of chips in JAX 0.11.1 (jax._src.tpu_info,
read 2026-11-26); an unknown chip is taken for the smallest."""

SMALLEST_BYTES = min(VMEM_BYTES.values())


def bytes_of_core(device_kind: str) -> int:
    """Of such a chip."""
    return VMEM_BYTES.get(device_kind, SMALLEST_BYTES)


def limit_bytes(needed_bytes: int, has_bytes: int) -> int:
    """What to ask for, where so much is needed by estimate and a core has so much.

    Not all there is: the compiler keeps other arrays in vector memory meanwhile.
    """
    return min(max(needed_bytes * 3 // 2, SMALLEST_BYTES * 7 // 8), has_bytes * 7 // 8)
