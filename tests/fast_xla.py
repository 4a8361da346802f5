"""XLA_FLAGS of tests: programs that run once or twice are compiled fast, not to be fast. Imports no JAX."""

import os

from jaxlm.parallel.xla_options import jaxlib_version


def xla_flags(num_devices: int) -> str:
    """For a process of so many fake devices, to be set before it imports JAX."""
    flags = [
        f"--xla_force_host_platform_device_count={num_devices}",
        # In order: XLA:CPU's own schedule starts collectives that do not depend on each other in any order. Each
        # blocks a thread of every device, and on few cores two devices at one and six at another wait for ever:
        # quantised steps did so.
        "--xla_cpu_enable_concurrency_optimized_scheduler=false",
        # Most of the time of all tests was LLVM's: without its optimisations, and in one piece, programs compile three
        # to five times as fast.
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
    if jaxlib_version() < (0, 11):
        # XLA's newer way to compile fusions takes half of the time that is left. Later versions have no other, and end
        # a process that asks for it.
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(flags)


def set_environment(num_devices: int) -> None:
    """Of this process and its children, which import JAX later.

    `XLA_FLAGS=--xla_backend_optimization_level=3 make pytest` tests programs as users get them: the last flag counts.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"{xla_flags(num_devices)} {os.environ.get('XLA_FLAGS', '')}".strip()
