"""The train step of a run, lowered and compiled for devices that need not be there.

It is the function that `run.train` compiles: the same `build_pieces`, the same shapes, the same shardings and options.
Only what fills the arrays is missing. So no data is read, and no data library is imported.

Importing this module imports no JAX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxlm.plan.compiled import DeviceMemory
from jaxlm.plan.topology import Topology
from jaxlm.run import Pieces, abstract_state, build_pieces, expert_products
from jaxlm.types import Batch, PyTree, UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxlm.data.examples import ExampleStore
    from jaxlm.runconfig import RunConfig

ON_HOST = ("source",)
"""Of a batch, what no step sees; see `run_hooks.make_place`."""


class LoweredStep(NamedTuple):
    """A train step on its way to the compiler."""

    lowered: Any
    """jax.stages.Lowered"""
    pieces: Pieces
    kernels: dict[str, str]
    """What each `auto` of the config stands for on this platform."""
    argument_parts_bytes: dict[str, int]
    """Of one device, as counted from the shapes: without what a layout pads."""
    seconds: float
    """To trace and to lower it."""

    @property
    def sha256(self) -> str:
        """Of the StableHLO: equal for equal programs."""
        return hashlib.sha256(self.lowered.as_text().encode()).hexdigest()


class CompiledStep(NamedTuple):
    """What the compiler made of a train step."""

    memory: DeviceMemory
    hlo: str | None
    """Optimised and scheduled; None where it was refused for want of memory."""
    seconds: float


def import_all() -> None:
    """Imports what lowering needs, so that its seconds can be told from those of the work."""
    import jax.experimental.topologies  # noqa: F401

    import jaxlm.data.examples
    import jaxlm.data.pipeline
    import jaxlm.models.build
    import jaxlm.objectives
    import jaxlm.run_weights
    import jaxlm.train.optimizer
    import jaxlm.train.step
    import jaxlm.train.tuning  # noqa: F401


def one_example(cfg: RunConfig) -> ExampleStore:
    """A store of one example that fills a row: enough for the data pipeline to make a batch of."""
    import numpy as np

    from jaxlm.data.examples import ExampleStore

    class OneExample(ExampleStore):
        def __init__(self, num_tokens: int, task: str | None, names: Sequence[str]):
            self.directory = "one example"
            self.manifest = {"task": task, "labels": list(names)}
            self._tokens, self._trained = np.zeros(num_tokens, np.uint16), np.ones(num_tokens, bool)
            self._labels = np.zeros(1, np.float32 if task == "regression" else np.int32)
            self._label_ends = self.document_ends = np.array([1])
            self.document_ends = np.array([num_tokens])
            self.num_tokens, self.num_documents, self.num_trained = num_tokens, 1, num_tokens - 1

    if cfg.objective != "classify":
        return OneExample(cfg.data.seq_len + 1, None, ())
    return OneExample(cfg.data.seq_len, cfg.classify.task, label_names(cfg))


def label_names(cfg: RunConfig) -> tuple[str, ...]:
    """As many names as the head has outputs; none for a regression."""
    if cfg.classify.task == "regression":
        return ()
    return tuple(f"label {i}" for i in range(cfg.model.num_classes or 0))


def abstract_batch(cfg: RunConfig, mesh: Mesh) -> Batch:
    """Shapes, dtypes and shardings of a batch, its rows at full width.

    The data pipeline itself makes a row of one example, and the batch has what that row has: keys and dtypes are
    written down in one place. Rows that are packed have the same keys, however they are packed.
    """
    import jax

    from jaxlm.data.config import SourceConfig
    from jaxlm.data.padding import Labelled
    from jaxlm.data.pipeline import Rows
    from jaxlm.parallel.sharding import batch_sharding

    data = dataclasses.replace(
        cfg.data,
        sources={"one": SourceConfig(path="one")},
        global_batch_size=1,
        length_window_steps=1,
        packing="pad" if cfg.data.packing == "pad" else "concat",  # best_fit keeps an index on disk
    )
    labelled = Labelled(cfg.classify.pooling, label_names(cfg)) if cfg.objective == "classify" else None
    row = Rows(data, {"one": one_example(cfg)}, cfg.seed, labelled).batch(0)
    rows = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((cfg.data.global_batch_size, *value.shape[1:]), value.dtype, sharding=rows)
        for name, value in row.items()
        if name not in ON_HOST
    }


def devices_of(topology: Topology) -> list[Any]:
    """The devices of a topology: only compiled for, or the first of this process's fake ones.

    Errors: UserError where libtpu is missing or knows no such slice, or JAX has too few CPU devices.
    """
    import jax

    if topology.chip is None:
        devices = jax.devices("cpu")
        if len(devices) < topology.num_devices:
            raise UserError(
                f"--topology={topology.name}: JAX has {len(devices)} CPU device(s) in this process. Set XLA_FLAGS="
                f"--xla_force_host_platform_device_count={topology.num_devices} before it starts."
            )
        return devices[: topology.num_devices]
    from jax.experimental import topologies

    with quiet_stderr():
        try:
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=topology.slice_name, **topology.libtpu_options
            )
        except jax.errors.JaxRuntimeError as error:
            raise UserError(f"--topology={topology.name}: libtpu refuses it: {first_line(error)}") from error
    assert len(found.devices) == topology.num_devices, (len(found.devices), topology)
    return list(found.devices)


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keeps what C++ code writes to stderr off the terminal, unless the block fails.

    libtpu warns of a metadata server and host names that only a TPU machine has. Who sets its TPU_STDERR_LOG_LEVEL
    wants to read what it says, and does.
    """
    if "TPU_STDERR_LOG_LEVEL" in os.environ:
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as said:
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(kept, 2)
            said.seek(0)
            os.write(2, said.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def first_line(error: BaseException) -> str:
    """What a compiler's error says, without the stack that some add."""
    return str(error).strip().partition("\n")[0]


def class_weights_of(cfg: RunConfig) -> tuple[float, ...] | None:
    """Weights of the labels in the loss: their number is that of the run, their values come from the data."""
    if cfg.objective != "classify" or cfg.classify.class_weights is None or not label_names(cfg):
        return None
    return (1.0,) * len(label_names(cfg))


def lower_step(cfg: RunConfig, devices: Sequence[Any]) -> LoweredStep:
    """Lowers the train step of a run for a mesh of these devices.

    Args:
      cfg: with model.vocab_size, and num_classes of a classifier, filled in.

    Errors: UserError where the mesh does not fill the devices, or does not divide batch and model.
    """
    from jaxlm.run_weights import abstract_params

    started = time.perf_counter()
    pieces = build_pieces(cfg, class_weights_of(cfg), devices)
    state, batch = abstract_state(pieces, cfg), abstract_batch(cfg, pieces.mesh)
    parts = {"parameters": state.params, "optimizer": state.opt_state, "batch": batch}
    frozen = []
    if pieces.tuning.freezes:
        frozen = [abstract_params(pieces.lm, pieces.tuning, pieces.mesh)[1]]
        parts["frozen parameters"] = frozen[0]
    lowered = pieces.steps.train.lower(state, batch, *frozen)
    return LoweredStep(
        lowered,
        pieces,
        kernels_of(cfg, devices[0], pieces.sizes),
        {name: device_bytes(tree) for name, tree in parts.items()},
        time.perf_counter() - started,
    )


def kernels_of(cfg: RunConfig, device: Any, mesh: dict[str, int]) -> dict[str, str]:
    """What each `auto` stands for on such a device of this mesh (axis -> devices), and what runs experts."""
    from jaxlm.models.attention import pick_attention, picked_blocks

    kernel = pick_attention(cfg.model, device.platform, mesh["tensor"])
    blocks = picked_blocks(cfg.model, kernel, cfg.data.seq_len, device.device_kind, mesh["tensor"])
    found = {"attention": kernel, "attention blocks": blocks, "experts": expert_products(cfg, device, mesh)}
    return {name: said for name, said in found.items() if said is not None}


def device_bytes(tree: PyTree) -> int:
    """Of ShapeDtypeStructs with shardings, what one device holds."""
    import jax

    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def compile_step(step: LoweredStep) -> CompiledStep:
    """Compiles a lowered step; one that does not fit is no error, but has no program.

    Errors: UserError for what else the compiler refuses for want of memory (that of a kernel, say).
    """
    import jax

    started, arguments = time.perf_counter(), sum(step.argument_parts_bytes.values())
    is_tpu = step.pieces.mesh.devices.flat[0].platform == "tpu"
    with tempfile.TemporaryDirectory(prefix="jaxlm-compile-") as dump:
        # LLVM's optimisations change neither buffers nor collectives, and take most of the time on CPUs.
        options: dict[str, Any] = {"xla_backend_optimization_level": 0}
        if is_tpu:
            options = {"xla_dump_to": dump, "xla_dump_hlo_as_text": True}
        try:
            with quiet_stderr():
                compiled = step.lowered.compile(options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            total = reported_bytes(Path(dump)) or bytes_of_refusal(str(error))
            if total is None:
                raise UserError(f"The compiler refuses this step: {first_line(error)}") from error
            memory = DeviceMemory(total_bytes=total, argument_bytes=arguments, refused=first_line(error))
            return CompiledStep(memory, None, time.perf_counter() - started)
        seconds = time.perf_counter() - started
        return CompiledStep(memory_of(compiled, reported_bytes(Path(dump))), compiled.as_text(), seconds)


def memory_of(compiled: Any, reported: int | None) -> DeviceMemory:
    """Bytes on a device of a compiled step.

    On TPUs the total is what the report of the buffer assignment says, which is the number that the compiler holds
    against the chip: a step that it refuses as needing "27.72G" has a report of 27.72 GiB (libtpu 0.0.42.1 and 0.0.46,
    2026-11-26). `memory_analysis()` sums all temporaries without their reuse, and gave 18.0 GiB for a step that
    compiles for 15.75; it is taken where there is no report.
    """
    found = compiled.memory_analysis()
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    summed = found.argument_size_in_bytes + outputs + found.temp_size_in_bytes
    return DeviceMemory(
        total_bytes=summed if reported is None else reported,
        argument_bytes=found.argument_size_in_bytes,
        output_bytes=outputs,
        host_bytes=found.host_argument_size_in_bytes + found.host_temp_size_in_bytes,
        program_bytes=found.generated_code_size_in_bytes,
        is_reported=reported is not None,
    )


def reported_bytes(dump: Path) -> int | None:
    """Bytes of HBM in the memory-usage report that XLA:TPU dumps, of a program that is refused too; None: none."""
    totals = []
    for path in dump.glob("*memory-usage-report.txt"):
        totals += re.findall(
            r"^Memory Space: default \(color=0\)\nTotal bytes: (\d+)", path.read_text(), re.MULTILINE
        )
    return max(map(int, totals), default=None)


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_REFUSALS = (
    r"required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM",
    r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
)


def bytes_of_refusal(message: str) -> int | None:
    """Bytes that XLA:TPU says it would need of HBM; None for a message of something else."""
    for pattern in _REFUSALS:
        if match := re.search(pattern, message):
            return round(float(match[1]) * _UNITS[match[2]])
    return None
