"""What a compiler allots for a run's train step, asked in a process with the order of operations that users get.

That is what parallel/xla_options.py asks for with each step. conftest.py has operations run in one order, so that
collectives of fake devices cannot wait for each other, by a flag that is read once in a process: hence another one.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm import run
from jaxlm.parallel.sharding import batch_sharding
from jaxlm.run_weights import abstract_params
from jaxlm.runconfig import RunConfig


def _use_own_order() -> None:
    os.environ["XLA_FLAGS"] += " --xla_cpu_enable_concurrency_optimized_scheduler=true"


def temporary_bytes(function: Callable, options: dict[str, Any], *shapes: tuple[int, ...]) -> int:
    """Of a function of float32 arrays."""
    shaped = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(function, compiler_options=options).lower(*shaped).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def process() -> ProcessPoolExecutor:
    """One process, to `submit(compiled_bytes, cfg)` to."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _use_own_order)


def compiled_bytes(cfg: RunConfig) -> int:
    """Arguments, outputs that are not aliased, and temporaries, on one device."""
    pieces = run.build_pieces(cfg)
    shape = (cfg.data.global_batch_size, cfg.data.seq_len)
    rows = batch_sharding(pieces.mesh)
    batch = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32 if name == "weights" else jnp.int32, sharding=rows)
        for name in ("tokens", "targets", "weights", "segments", "positions")
    }
    frozen = [abstract_params(pieces.lm, pieces.tuning, pieces.mesh)[1]] if pieces.tuning.freezes else []
    lowered = pieces.steps.train.lower(run.abstract_state(pieces, cfg), batch, *frozen)
    found = lowered.compile().memory_analysis()
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes
    )
