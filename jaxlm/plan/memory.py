"""Bytes on each device of a training step, by arithmetic on the config: no arrays, no devices, no JAX.

What outlives a step (weights, optimizer state) is exact. What lives inside one is counted at the two moments where
most is alive, and `predict` returns the larger one:

- `blocks`: the first block of the backward pass. Alive: the state, gradients, what every block keeps, and one
  block's own intermediates (under remat: all of them again, and the gradients that replace them).
- `loss`: one chunk's logits and their gradient, with what every block keeps; no block is at work.

| part        | bytes on one device                                                                     |
|-------------|-----------------------------------------------------------------------------------------|
| parameters  | 4 P / (fsdp x tensor), weight by weight: norms and biases are split less                |
| gradients   | the same; twice with microbatches (the running sum and the part being added)            |
| optimizer   | AdamW 2 x parameters, Lion 1 x; Muon 1 x for the blocks' matrices, 2 x for the rest;    |
|             | Adafactor a row and a column for each matrix, not split                                 |
| activations | per token: L x what `model.remat` keeps of a block; the last hidden state, its gradient |
| workspace   | the block at work; weights gathered over fsdp, and copies of them                       |
| logits      | train.loss_chunk_tokens x V / tensor in float32, twice (the logits and their gradient)  |
| batch       | five int32 or float32 arrays of tokens, twice (the next batch is on its way)            |

What XLA:CPU does otherwise (read off its buffer assignments, jax 0.10.2; each is a branch on `cpu` below):

- A stack of activations is float32 even where `model.dtype` is bfloat16.
- Without a scan, remat saves nothing: the barriers that hold the recomputation back are gone before scheduling.
- The blocks' weights are copied; twice under a scan over periods of several layers (on entry, and for each turn).
- A turn of the scan computes all layers of `model.layer_pattern` again before it uses the first.
- Each chunk of attention keeps its own slice of the keys and values before it.

What TPUs do otherwise: the last dim of queries, keys and values is padded to 128 lanes.

Not counted: a second copy of the optimizer's moments on a CPU (0 to 9 % of the total; they are overwritten in place
only with `xla_cpu_copy_insertion_use_region_analysis`), what an optimizer's update needs beside the gradients, and
gaps between buffers. tests/plan/test_memory_compiled.py holds the total to 10 % on a CPU (bfloat16 with remat: at most
20 % above). Compiled for TPU v5e (jax 0.10.2, libtpu 0.0.42.1, 2026-11-24; bfloat16, chunks of 1,024 tokens, of which
up to 8 were then still unrolled) it was off by

| model, mesh, rows x length, remat                                   | compiled GiB | estimate |
|---------------------------------------------------------------------|--------------|----------|
| GPT-3 125M, one chip, 16 x 1024, full                               | 4.62         | +5 %     |
| GPT-3 125M, one chip, 16 x 1024, attention                          | 5.14         | +6 %     |
| GPT-3 125M, one chip, 4 x 1024, none                                | 8.67         | -9 %     |
| Llama 3.2 1B, fsdp 8, 16 x 2048, full                               | 9.37         | +3 %     |
| Llama 3.2 1B, fsdp 4 x tensor 2, 16 x 2048 in 2 parts, attention    | 7.64         | -9 %     |
| Gemma 3 270M (262,144 ids), fsdp 8, 32 x 2048, full                 | 10.94        | -18 %    |
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple, Protocol

from jaxlm.data.config import DataConfig
from jaxlm.models.config import ModelConfig
from jaxlm.plan.flops import Weight, weights
from jaxlm.train.config import OptimizerConfig, TrainConfig
from jaxlm.types import UserError

PARAM_AXES: dict[str, str | None] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "layers": None,
    "positions": None,
    "classes": None,
}
"""Logical axis of a weight -> mesh axis: a copy of `jaxlm.parallel.sharding.PARAMS`, which imports JAX."""

ADAFACTOR_MIN_DIM = 128
"""optax.adafactor factors a weight's second moments where its two largest dims both reach this."""

CHUNK = 128
"""Queries at a time of `jaxlm.models.attention_chunked`."""


NUM_TABLE_GRADS = 2
"""Gradients of the vocabulary's size: of the lookup and of the head; a tied table adds them up at the end."""

LANES = 128
"""A TPU stores the last dim of an array in multiples of this."""

FLOAT32 = 4


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


def optimizer_elements(name: str, w: Weight, mesh: dict[str, int]) -> int:
    """float32 elements of optimizer state on one device for one weight (step counters aside)."""
    if name == "lion":
        return shard_size(w, mesh)
    if name == "muon":
        in_block = w.axes[0] == "layers" and w.is_matrix
        return (1 if in_block else 2) * shard_size(w, mesh)
    if name == "adafactor":
        order = sorted(range(len(w.shape)), key=lambda i: w.shape[i])
        if len(w.shape) >= 2 and w.shape[order[-2]] >= ADAFACTOR_MIN_DIM:
            # One moment without the largest dim, one without the second largest; these are not split over a
            # mesh.
            return sum(w.num_params // w.shape[i] for i in order[-2:]) + 1
        return shard_size(w, mesh) + 2
    return 2 * shard_size(w, mesh)


class Block(NamedTuple):
    """Bytes per token of one block, a mean over the layers."""

    kept: float
    """What outlives its forward pass under `model.remat`."""
    all: float
    """Every intermediate that its backward pass reads."""
    in_flight: float
    """Gradients that exist beside them: of the widest intermediate, and of the residual stream, in and out."""


def is_scanned(model: ModelConfig) -> bool:
    """Whether (nearly) all blocks run in a loop, as `jaxlm.models.decoder.run_blocks` decides."""
    return model.scan_layers and model.num_layers // len(model.layer_pattern) > 1


def block_bytes(model: ModelConfig, seq_len: int, tensor: int, platform: str) -> Block:
    """What a block keeps and needs; heads and the MLP are split over `tensor`, the residual stream is not.

    Products keep their operand, norms their input and their result before the scale (float32), attention its
    queries, keys, values and the table of logits and probabilities, the MLP its products and what they become together.
    """
    cpu = platform == "cpu"
    item = 2 if model.dtype == "bfloat16" and not cpu else FLOAT32
    D, F, H = model.embed_dim, model.mlp_width / tensor, model.head_width
    lanes = -(-H // LANES) * LANES if platform == "tpu" else H
    q, kv = model.num_heads * lanes / tensor, 2 * model.kv_heads * lanes / tensor
    num_up = 2 if model.gated else 1

    dense = model.attention == "dense" or (model.attention == "auto" and not cpu)
    keys = sum(mean_table_keys(model, kind, seq_len, dense) for kind in model.layer_kinds) / model.num_layers
    table = model.num_heads / tensor * keys
    num_float32 = 1 + (model.attention_softcap is not None) + (cpu and not is_scanned(model))
    tables = table * (FLOAT32 * num_float32 + item)
    prefixes = 1.0 if dense else keys / min(CHUNK, seq_len)  # slices of keys and values, one a chunk

    norms = 2.0 * D * (4 if model.post_norm else 2) + (2 * q + kv if model.qk_norm else 0)
    compute = 2 * D + q + q + kv * prefixes + (num_up + 1) * F
    everything = compute * item + norms * FLOAT32 + tables
    remat = "none" if cpu and not is_scanned(model) else model.remat
    kept = {
        "full": D * item,  # the block's input
        "attention": (D + q) * item,  # and the attention's result
        # and what every product with a weight returned, except the last
        "dots": (D + q + kv + D + num_up * F + (D if model.post_norm else 0)) * item,
        "none": everything,
    }[remat]
    widest = max(F * item, table * FLOAT32 if dense else 0.0)
    return Block(kept, everything, widest + 2 * D * item)


def mean_table_keys(model: ModelConfig, kind: str, seq_len: int, dense: bool) -> float:
    """Keys of a query in a block's table: all with dense attention, else those that any query of its chunk sees."""
    if dense:
        return seq_len
    seen = (seq_len + CHUNK) / 2 if kind == "g" else (model.sliding_window or seq_len) + CHUNK
    return min(seq_len, seen)


def logit_chunks(rows: int, seq_len: int, chunk_tokens: int) -> tuple[int, int]:
    """(number of chunks, tokens in one), as `jaxlm.objectives.chunked_loss` cuts the rows of a device."""
    for num in range(1, seq_len + 1):
        if seq_len % num == 0 and rows * (seq_len // num) <= chunk_tokens:
            return num, rows * (seq_len // num)
    return seq_len, rows


def moments(
    run: Run,
    mesh_sizes: dict[str, int],
    num_devices: int,
    vocab_size: int | None = None,
    *,
    platform: str = "tpu",
) -> dict[str, MemoryEstimate]:
    """What is alive on each device at `blocks` and at `loss`; arguments and errors as of `predict`."""
    mesh = resolve_mesh(mesh_sizes, num_devices)
    model = dataclasses.replace(run.model, vocab_size=run.model.vocab_size or vocab_size)
    tensor, fsdp = mesh.get("tensor", 1), mesh.get("fsdp", 1)
    cpu, scanned = platform == "cpu", is_scanned(model)
    item = 2 if model.dtype == "bfloat16" and not cpu else FLOAT32
    table = weights(model, run.data.seq_len)
    parameters = FLOAT32 * sum(shard_size(w, mesh) for w in table)
    blocks = [w for w in table if w.axes[0] == "layers" and w.is_matrix]
    ends = [w for w in table if w.name in ("embedding", "head")]

    num_parts = run.train.num_microbatches
    rows = -(-run.data.global_batch_size // (mesh.get("data", 1) * fsdp))
    part_rows = -(-rows // num_parts)
    tokens = part_rows * run.data.seq_len
    block = block_bytes(model, run.data.seq_len, tensor, platform)
    hidden = 2 * model.embed_dim * item  # after the last block, and its gradient

    copy = FLOAT32 * sum(shard_size(w, mesh) for w in blocks) if cpu else 0
    num_copies = 2 if scanned and len(model.layer_pattern) > 1 else 1
    gathered = 0
    if fsdp > 1:
        # Weights are used whole over fsdp: this block's, the next one's; a table, and its gradients before they are
        # scattered.
        whole = {**mesh, "fsdp": 1}
        gathered = 2 * item * sum(shard_size(w, whole) for w in blocks) // model.num_layers
        gathered += FLOAT32 * (1 + NUM_TABLE_GRADS) * shard_size(ends[0], whole)
    elif len(ends) < NUM_TABLE_GRADS:
        gathered += FLOAT32 * shard_size(ends[0], mesh)
    at_work = block.in_flight
    if block.kept < block.all:  # recomputed; on a CPU for a whole turn of the loop
        at_work += block.all * (len(model.layer_pattern) if cpu else 1)
    elif scanned:  # beside the stack that they are copied to
        at_work += block.all
    _, chunk_tokens = logit_chunks(part_rows, run.data.seq_len, run.train.loss_chunk_tokens)

    shared = MemoryEstimate(
        parameters=parameters,
        gradients=parameters * (2 if num_parts > 1 else 1),
        optimizer=FLOAT32 * sum(optimizer_elements(run.optimizer.name, w, mesh) for w in table),
        activations=round(tokens * (model.num_layers * block.kept + hidden)),
        workspace=0,
        logits=0,
        batch=2 * 5 * 4 * rows * run.data.seq_len,
    )
    return {
        "blocks": shared._replace(workspace=round(tokens * at_work) + gathered + num_copies * copy),
        "loss": shared._replace(
            workspace=gathered + copy,
            logits=2 * FLOAT32 * chunk_tokens * -(-(model.vocab_size or 0) // tensor),
        ),
    }


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
