"""What a compiler allots for a run's train step, asked in a process with the order of operations that users get.

That is of jaxlib before 0.12 what parallel/xla_options.py asks for, and later XLA's own. conftest.py has operations
run in one order, so that collectives of fake devices cannot wait for each other; it is a flag that is read once in a
process.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import jax
import jax.numpy as jnp

from jaxlm import run
from jaxlm.parallel.sharding import batch_sharding
from jaxlm.run_weights import abstract_params
from jaxlm.runconfig import RunConfig


def _use_own_order() -> None:
    os.environ["XLA_FLAGS"] += " --xla_cpu_enable_concurrency_optimized_scheduler=true"


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
