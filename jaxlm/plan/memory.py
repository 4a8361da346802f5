"""Bytes on each device of a training step, by arithmetic on the config: no arrays, no devices, no JAX.

What outlives a step (weights, optimizer state) is exact. What lives inside one is counted at the moments where most
is alive, and `predict` returns the largest one:

- `blocks`: the first block of the backward pass (of a loop, its first turn). Alive: the state, gradients, what every
  block keeps, and one block's own intermediates. `loose blocks`: the same of those that a loop leaves over.
- `loss`: one chunk's logits and the gradient of the head, with what every block keeps; no block is at work.
- `head gradient`, where it is split: whole, and as it is sent, before any block goes back.
- `embedding gradient`: of the table of the lookup, whole, on its way to the devices that hold it; no block is at work.
- `update`, of Muon on several TPUs: it works on matrices that are whole, on those of all layers at once.

| part        | bytes on one device                                                                     |
|-------------|-----------------------------------------------------------------------------------------|
| parameters  | 4 P / (fsdp x tensor), weight by weight: norms and biases are split less, experts more  |
| gradients   | 4 bytes a trained weight; twice with microbatches (the running sum, the part being added) |
| optimizer   | AdamW 2 x parameters, Lion 1 x; Muon 1 x for the blocks' matrices, 2 x for the rest;    |
|             | Adafactor a row and a column for each matrix, not split                                 |
| activations | per token of the device, a part of each row where `sequence` cuts it: L x what           |
|             | `model.remat` keeps of a block; the last hidden state, its gradient;                    |
|             | of experts, k times the MLP, for the tokens of all devices along the expert axis        |
| workspace   | the block at work; weights gathered over fsdp, and copies of them; gaps                 |
| logits      | train.loss_chunk_tokens x V / tensor in float32; twice on CPUs                          |
| batch       | five int32 or float32 arrays of whole rows, twice (the next batch is on its way)        |

The rest was read off what the compilers allot, and differs: `cpu_moments` for XLA:CPU, `tpu_moments` for XLA:TPU,
which also stands in for GPUs, unchecked.

XLA:CPU (jax 0.10.2 and 0.12.0, with the options of parallel/xla_options.py), within 12 % in
tests/plan/test_memory_compiled.py (bfloat16 with remat: at most 20 % above; a pattern of layers with remat: in jax 0.12
half of it is enough). Not counted: what an optimizer's update needs beside the gradients.

XLA:TPU with attention's kernels: within 7 % on 17 configs of pods (jax 0.11.1, libtpu 0.0.46.3, 2026-11-27), within
10 % as tests/plan/test_pods_compiled.py holds it to. Compiled is what has to fit: arguments and the one block of
temporaries of the buffer assignment. `memory_analysis()` does not say it: its temp_size_in_bytes is 0.5 to 3 GiB above
(a step of "18.0 GiB" compiles for a chip with 15.75), its peak_memory_in_bytes leaves out the gaps between buffers, 0
to 11 %. With dense attention (jax 0.10.2, libtpu 0.0.42.1, 2026-11-24) within 11 % on 46 train steps; some of them:

| model (AdamW, bfloat16), mesh, rows x length, remat                   | compiled GiB | estimate |
|-----------------------------------------------------------------------|--------------|----------|
| GPT-3 125M, one chip, 16 x 1024, full                                 | 3.82         | +0%      |
| GPT-3 125M, one chip, 4 x 1024, none                                  | 7.02         | +5%      |
| Llama 3.2 1B, fsdp 8, 16 x 2048, dots                                 | 7.46         | +3%      |
| Llama 3.2 1B with Muon, fsdp 8, 16 x 2048, full                       | 5.00         | -11%     |
| Gemma 3 270M (262,144 ids), fsdp 8, 32 x 2048, full                   | 3.09         | +6%      |
| Llama 3 8B, fsdp 64, 64 x 4096, full                                  | 7.99         | -5%      |

Of mixtures of experts, with their kernels (jax 0.11.1, libtpu 0.0.46.3, 2026-11-27): Mixtral 8x7B and Qwen3 30B-A3B on
64 v5p within 2 %, Qwen3 on fsdp 16 x expert 4 with nothing kept -2 %, Mixtral on 256 v6e with nothing kept +11 %.

tests/plan/test_memory_tpu.py compiles some of them anew wherever libtpu is installed.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple, Protocol

from jaxlm.data.config import DataConfig
from jaxlm.models.config import ModelConfig
from jaxlm.plan.block_memory import FLOAT32, LANES, cpu_block, is_scanned, tpu_block, widths
from jaxlm.plan.flops import Weight, weights
from jaxlm.plan.tuning import trained_weights
from jaxlm.train.config import OptimizerConfig, TrainConfig, TuneConfig
from jaxlm.types import UserError

PARAM_AXES: dict[str, str | None] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "width": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "experts": "expert",
    "layers": None,
    "positions": None,
    "classes": None,
    "rank": None,
    "packed": None,
}
"""Logical axis of a weight -> mesh axis: a copy of `jaxlm.parallel.sharding.PARAMS`, which imports JAX."""

ADAFACTOR_MIN_DIM = 128
"""optax.adafactor factors a weight's second moments where its two largest dims both reach this."""

GAPS, KERNEL_GAPS = 0.06, 0.01
"""Of XLA:TPU's temporaries: mean share that lies between buffers (0 to 18 %); the second with attention's kernels,
where no tables come and go."""

WHOLE_BLOCKS, WHOLE_EXPERT_BLOCKS = 1.5, 1.0
"""Of weights that are split over fsdp, how many blocks XLA:TPU holds whole, in the compute dtype."""


class Run(Protocol):
    """What a prediction needs of a RunConfig."""

    @property
    def model(self) -> ModelConfig: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def tune(self) -> TuneConfig: ...


class MemoryEstimate(NamedTuple):
    """Bytes on one device, by part."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    workspace: int
    logits: int
    batch: int

    @property
    def total(self) -> int:
        return sum(self)

    @property
    def state(self) -> int:
        """What outlives a step, and a checkpoint's share of this device."""
        return self.parameters + self.optimizer


def resolve_mesh(mesh_sizes: dict[str, int], num_devices: int) -> dict[str, int]:
    """Fills in the one axis that is -1; UserError where the sizes do not multiply to num_devices."""
    known = math.prod(size for size in mesh_sizes.values() if size != -1)
    sizes = {name: num_devices // known if size == -1 else size for name, size in mesh_sizes.items()}
    if math.prod(sizes.values()) != num_devices:
        shape = " x ".join(f"{name} {size}" for name, size in mesh_sizes.items())
        raise UserError(
            f"The mesh {shape} does not fill {num_devices} devices: the sizes must multiply to their number. "
            "Set one axis to -1 (all that are left)."
        )
    return sizes


def shard_size(w: Weight, mesh: dict[str, int]) -> int:
    """Elements of a weight on one device; a dim that does not divide is padded up."""
    return math.prod(
        -(-dim // mesh.get(PARAM_AXES[axis] or "", 1)) for dim, axis in zip(w.shape, w.axes, strict=True)
    )


BYTES_QUANTIZED = {None: 4.0, "int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Of a frozen weight of the blocks' matrices; nf4 with a scale for each 64."""


def optimizer_elements(name: str, w: Weight, mesh: dict[str, int]) -> int:
    """float32 elements of optimizer state on one device for one weight (step counters aside)."""
    if name == "lion":
        return shard_size(w, mesh)
    if name == "muon":
        in_block = w.axes[0] == "layers" and w.is_matrix and w.name != "router"
        return (1 if in_block else 2) * shard_size(w, mesh)
    if name == "adafactor":
        order = sorted(range(len(w.shape)), key=lambda i: w.shape[i])
        if len(w.shape) >= 2 and w.shape[order[-2]] >= ADAFACTOR_MIN_DIM:
            # One moment without the largest dim, one without the second largest; these are not split over a
            # mesh.
            return sum(w.num_params // w.shape[i] for i in order[-2:]) + 1
        return shard_size(w, mesh) + 2
    return 2 * shard_size(w, mesh)


def logit_chunks(rows: int, seq_len: int, chunk_tokens: int) -> tuple[int, int]:
    """(number of chunks, tokens in one), as `jaxlm.objectives.chunked_loss` cuts the rows of a device."""
    for num in range(1, seq_len + 1):
        if seq_len % num == 0 and rows * (seq_len // num) <= chunk_tokens:
            return num, rows * (seq_len // num)
    return seq_len, rows


class Parts(NamedTuple):
    """Of one run on one device, what both compilers' estimates are made of; sizes in elements."""

    model: ModelConfig
    mesh: dict[str, int]
    rows: int
    """Of one microbatch."""
    seq_len: int
    is_first_of_several: bool
    """Whether there are microbatches, whose gradients are added up."""
    blocks: int
    """Matrices of all blocks."""
    whole_block: int
    """Matrices of one block, whole over fsdp."""
    largest_stack: int
    """The largest matrix of a block, of all layers, whole over fsdp."""
    table: int
    """One matrix of the vocabulary's size, and that whole over fsdp."""
    whole_table: int
    num_tables: int
    trains_tables: bool
    trains_head: bool
    block_bytes: float
    """Of one weight of the blocks' matrices."""
    num_kept: int
    """Blocks that keep something for the backward pass."""
    table_moments: int
    """Moments that the optimizer has of such a matrix."""
    logits: int
    """Of one chunk of the loss."""
    optimizer: str
    reduce_item: int
    """Bytes of an element of a gradient on its way."""
    shared: MemoryEstimate
    """What is the same at all moments."""

    @property
    def tokens(self) -> int:
        return self.rows * -(-self.seq_len // self.mesh.get("sequence", 1))

    @property
    def is_gathered(self) -> bool:
        """Whether weights are split, and used whole."""
        return self.mesh.get("fsdp", 1) > 1

    @property
    def head_gradient(self) -> int:
        """Elements of it."""
        return self.table if self.trains_head else 0


def parts_of(run: Run, mesh: dict[str, int], vocab_size: int | None) -> Parts:
    """Counts what does not depend on the compiler."""
    model = dataclasses.replace(run.model, vocab_size=run.model.vocab_size or vocab_size)
    whole = {**mesh, "fsdp": 1}
    table = weights(model, run.data.seq_len)
    blocks = [w for w in table if w.axes[0] == "layers" and w.is_matrix]
    ends = [w for w in table if w.name in ("embedding", "head")]
    num_parts = run.train.num_microbatches
    rows = -(
        -run.data.global_batch_size // (mesh.get("data", 1) * mesh.get("fsdp", 1) * mesh.get("expert", 1))
    )
    part_rows = -(-rows // num_parts)
    part_len = -(-run.data.seq_len // mesh.get("sequence", 1))
    _, chunk_tokens = logit_chunks(part_rows, part_len, run.train.loss_chunk_tokens)
    trained = trained_weights(table, run.tune)
    block_bytes = BYTES_QUANTIZED[run.tune.quantize]
    num_blocks = sum(shard_size(w, mesh) for w in blocks)
    # Of lora, the adapters are there beside all that the model has.
    added = trained if run.tune.train == "lora" else []
    parameters = FLOAT32 * sum(shard_size(w, mesh) for w in [*table, *added])
    parameters -= round((FLOAT32 - block_bytes) * num_blocks)
    gradients = FLOAT32 * sum(shard_size(w, mesh) for w in trained)
    return Parts(
        model=model,
        mesh=mesh,
        rows=part_rows,
        seq_len=run.data.seq_len,
        is_first_of_several=num_parts > 1,
        blocks=num_blocks,
        whole_block=sum(shard_size(w, whole) for w in blocks) // model.num_layers,
        largest_stack=max(shard_size(w, whole) for w in blocks),
        table=shard_size(ends[0], mesh),
        whole_table=shard_size(ends[0], whole),
        num_tables=len(ends),
        trains_tables=run.tune.train == "all",
        trains_head=any(w.name in ("head", "embedding") for w in trained),
        block_bytes=block_bytes,
        num_kept={"head": 0, "last_blocks": run.tune.num_blocks}.get(run.tune.train, model.num_layers),
        table_moments=optimizer_elements(run.optimizer.name, ends[0], mesh) // shard_size(ends[0], mesh),
        logits=chunk_tokens * -(-(model.vocab_size or 0) // mesh.get("tensor", 1)),
        optimizer=run.optimizer.name,
        reduce_item=2 if run.train.reduce_dtype == "bfloat16" else FLOAT32,
        shared=MemoryEstimate(
            parameters=parameters,
            gradients=gradients * (2 if num_parts > 1 else 1),
            optimizer=FLOAT32 * sum(optimizer_elements(run.optimizer.name, w, mesh) for w in trained),
            activations=0,
            workspace=0,
            logits=0,
            batch=2 * 5 * 4 * rows * run.data.seq_len,
        ),
    )


def cpu_moments(parts: Parts) -> dict[str, MemoryEstimate]:
    """As XLA:CPU has it; see also `cpu_block`.

    The blocks' weights are copied; twice under a scan over periods of several layers (on entry, and for each turn).
    """
    model, tokens = parts.model, parts.tokens
    dense = model.attention == "dense"
    block = cpu_block(model, widths(model, parts.seq_len, parts.mesh, dense=dense), dense=dense)
    copy = round(parts.block_bytes * parts.blocks)
    num_copies = 2 if is_scanned(model) and len(model.layer_pattern) > 1 else 1
    hidden = 2 * model.embed_dim * FLOAT32  # after the last block, and its gradient
    shared = parts.shared._replace(activations=round(tokens * (parts.num_kept * block.kept + hidden)))
    at_blocks, at_loss = cpu_whole_weights(parts)
    return {
        "blocks": shared._replace(
            workspace=round(tokens * block.at_work) + num_copies * copy + FLOAT32 * at_blocks
        ),
        "loss": shared._replace(
            # No block's yet, but the head's; of several parts also the sum of those before, and room for this one's.
            gradients=(shared.gradients if parts.is_first_of_several else 0) + FLOAT32 * parts.head_gradient,
            workspace=copy + FLOAT32 * at_loss,
            logits=2 * FLOAT32 * parts.logits,
        ),
    }


def cpu_whole_weights(parts: Parts) -> tuple[int, int]:
    """Elements of whole weights and of their gradients, beside those in `shared`: (at `blocks`, at `loss`).

    Where weights are split: this block's, the next one's and a table; at the loss the head, the gradient that one chunk
    adds, and that to which it is added. Else a tied table is there once more at the blocks, and at the loss what one
    chunk adds.
    """
    if parts.is_gathered:
        at_loss = (4 if parts.is_first_of_several else 3) if parts.trains_head else 1
        return 2 * parts.whole_block + parts.whole_table, parts.whole_table * at_loss
    is_held = parts.num_tables == 1 and parts.trains_tables
    return parts.table if is_held else 0, parts.head_gradient


def tpu_moments(parts: Parts) -> dict[str, MemoryEstimate]:
    """As XLA:TPU has it; see also `tpu_block`.

    The blocks' weights are converted to the compute dtype once, before the loop. At `loss` there are no gradients of
    blocks yet, but the head's: whole, before it is scattered, which it is before theirs come. A tied table whose shard
    is not a multiple of 128 lanes wide is copied for the update, and so are its moments.
    """
    model, tokens = parts.model, parts.tokens
    fsdp = parts.mesh.get("fsdp", 1)
    item = 2 if model.dtype == "bfloat16" else FLOAT32
    dense = model.attention != "chunked"
    block, loose = tpu_block(model, widths(model, parts.seq_len, parts.mesh, dense=dense), item)
    L = model.num_layers
    num_loose = L % len(model.layer_pattern) if is_scanned(model) else L
    scanned = tokens * (L - num_loose) * block.kept * parts.num_kept / L
    kept = scanned + tokens * num_loose * loose * parts.num_kept / L
    copy = item * parts.blocks if item < FLOAT32 else 0

    width = -(-model.embed_dim // fsdp)
    padded = 0
    if parts.num_tables == 1 and width % LANES:
        padded = FLOAT32 * (1 + parts.table_moments) * (parts.table // width) * -(-width // LANES) * LANES

    table_grad = FLOAT32 * parts.table if parts.trains_tables else 0
    running = parts.shared.gradients // 2 if parts.is_first_of_several else 0
    head = item * parts.table + (item * parts.whole_table if parts.is_gathered else 0)
    if parts.trains_head:
        head += FLOAT32 * (parts.whole_table + (parts.table if parts.is_gathered else 0))
    shared = parts.shared._replace(activations=round(kept))
    kernels = model.attention not in ("dense", "chunked")
    whole_blocks = WHOLE_BLOCKS if model.num_experts is None else WHOLE_EXPERT_BLOCKS
    held = copy + padded + (round(whole_blocks * item * parts.whole_block) if parts.is_gathered else 0)
    found = {}
    if num_loose < L:
        # What the loop leaves over comes last, so it is gone when the backward pass comes to the loop.
        found["blocks"] = shared._replace(
            activations=round(scanned), workspace=held + round(tokens * block.at_work)
        )
    if num_loose:
        at_work = max(block.at_work / block.layers_at_work - loose, 0.0)  # one block's is counted already
        found["blocks" if num_loose == L else "loose blocks"] = shared._replace(
            workspace=held + round(tokens * at_work)
        )
    at_loss = shared._replace(
        gradients=running + table_grad, activations=round(kept + tokens * 2 * model.embed_dim * item)
    )
    found["loss"] = at_loss._replace(workspace=copy + padded + head, logits=FLOAT32 * parts.logits)
    if parts.trains_head and parts.is_gathered:
        # As it is sent: turned, in bfloat16 converted before, which is as much.
        found["head gradient"] = at_loss._replace(workspace=copy + padded + 2 * FLOAT32 * parts.whole_table)
    if kernels and parts.trains_tables and parts.is_gathered:
        found["embedding gradient"] = parts.shared._replace(
            gradients=parts.shared.gradients - FLOAT32 * parts.num_tables * parts.table,
            activations=tokens * model.embed_dim * FLOAT32,
            workspace=padded + tables_at_the_end(parts),
        )
    if parts.optimizer == "muon" and parts.is_gathered:
        # In float32, and in bfloat16, in which it iterates.
        found["update"] = parts.shared._replace(workspace=(FLOAT32 + 2) * parts.largest_stack)
    return {
        name: estimate._replace(
            workspace=estimate.workspace + gaps(estimate, KERNEL_GAPS if kernels else GAPS)
        )
        for name, estimate in found.items()
    }


def tables_at_the_end(parts: Parts) -> int:
    """The gradient of the lookup: whole in float32, and turned for the sum over the devices, for one in float32 also
    cut up anew; of two tables, weights and moments laid out like it for the update."""
    copies = 2 if parts.reduce_item == FLOAT32 else 1
    # Along `tensor` it is that of the whole vocabulary.
    whole = (FLOAT32 + copies * parts.reduce_item) * parts.whole_table * parts.mesh.get("tensor", 1)
    if parts.num_tables == 1:
        return whole
    return whole + FLOAT32 * parts.num_tables * (1 + parts.table_moments) * parts.table


def gaps(estimate: MemoryEstimate, share: float) -> int:
    """What lies between XLA:TPU's temporaries: all but the state and the batch."""
    return round(share * (estimate.total - estimate.state - estimate.batch))


def moments(
    run: Run,
    mesh_sizes: dict[str, int],
    num_devices: int,
    vocab_size: int | None = None,
    *,
    platform: str = "tpu",
) -> dict[str, MemoryEstimate]:
    """What is alive on each device at each of the moments above; arguments and errors as of `predict`."""
    parts = parts_of(run, resolve_mesh(mesh_sizes, num_devices), vocab_size)
    if platform == "cpu":
        return cpu_moments(parts)
    if platform == "gpu" and parts.model.attention == "auto":
        parts = parts._replace(model=dataclasses.replace(parts.model, attention="dense"))
    return tpu_moments(parts)


def predict(
    run: Run,
    mesh_sizes: dict[str, int],
    num_devices: int,
    vocab_size: int | None = None,
    *,
    platform: str = "tpu",
) -> MemoryEstimate:
    """Bytes on each device of this run's training step, at the moment where most is alive.

    Args:
      run: a RunConfig (its model, data, optimizer and train sections).
      mesh_sizes: {"data": 1, "fsdp": -1, "tensor": 1}, as in MeshConfig.sizes.
      vocab_size: of the tokenizer, where run.model.vocab_size is unset.
      platform: cpu, gpu or tpu: what `model.attention="auto"` means there, and how its compiler stores things.

    Errors: UserError when the mesh does not fill the devices, or no vocabulary size is known.
    """
    found = moments(run, mesh_sizes, num_devices, vocab_size, platform=platform)
    return max(found.values(), key=lambda estimate: estimate.total)
