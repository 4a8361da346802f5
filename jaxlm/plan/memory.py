"""Bytes on each device of a training step, by arithmetic on the config: no arrays, no devices, no JAX.

An estimate. What outlives a step (weights, optimizer state) is exact. What lives inside one counts the
tensors that the backward pass keeps under each remat policy, before the compiler fuses, reuses and pads them.
Of five steps compiled for TPU v5e (GPT-3 125M on one chip with remat full, attention, dots; Llama 3.2 1B and
Gemma 3 270M with fsdp 8, remat full; jax 0.10.2, 2026-11-24) the totals are off by +6, +5, -6, +22 and -19 %.

| part        | bytes on one device                                                                     |
|-------------|-----------------------------------------------------------------------------------------|
| parameters  | 4 P / (fsdp x tensor), weight by weight: norms and biases are split less                |
| gradients   | the same; twice with microbatches (the running sum and the part being added)            |
| optimizer   | AdamW 2 x parameters, Lion 1 x; Muon 1 x for the blocks' matrices, 2 x for the rest;    |
|             | Adafactor a row and a column for each matrix, not split                                 |
| activations | per token: L x what `model.remat` keeps of a block; the last hidden state, its gradient |
| workspace   | a block's intermediates during its backward pass, its weights gathered over fsdp        |
| logits      | train.loss_chunk_tokens x V / tensor in float32, twice (the logits and their gradient)  |
| batch       | five int32 or float32 arrays of tokens, twice (the next batch is on its way)            |
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


def block_elements(model: ModelConfig, keep: str, tensor: int) -> dict[str, float]:
    """Elements per token of one block that outlive its forward pass, by how they are stored.

    Args:
      keep: a remat policy; `none` is also what one block needs while its backward pass runs.
      tensor: size of that mesh axis; heads and the MLP are split over it, the residual stream is not.

    Returns: `compute` elements in the compute dtype, `float32` elements always in float32.
    """
    D, F = model.embed_dim, model.mlp_width / tensor
    q = model.num_heads * model.head_width / tensor
    kv = 2 * model.kv_heads * model.head_width / tensor
    num_up = 2 if model.gated else 1
    if keep == "full":  # the block's input
        return {"compute": D, "float32": 0.0}
    if keep == "attention":  # and the attention's result
        return {"compute": D + q, "float32": 0.0}
    if keep == "dots":  # and what every product with a weight returned, except the last
        return {"compute": D + q + kv + D + num_up * F + (D if model.post_norm else 0), "float32": 0.0}
    # Everything: around each norm two float32 copies of the stream; queries and keys before and after RoPE;
    # the attention's result; of the MLP the products, the nonlinearity and its derivative.
    num_norms = 4 if model.post_norm else 2
    heads = 2 * (q + kv) if model.qk_norm or model.positions == "rope" else q + kv
    return {"compute": 3 * D + heads + q + (6 if model.gated else 4) * F, "float32": 2.0 * num_norms * D}


def attention_bytes(model: ModelConfig, seq_len: int, tensor: int, item_bytes: int, platform: str) -> float:
    """Bytes per token of a block's attention table, a mean over the layers: logits and probabilities.

    Dense attention holds all keys of every query. Chunks of 128 queries (`auto` on a CPU) hold those that
    any of them sees: half of the table, or a window.
    """
    dense = model.attention == "dense" or (model.attention == "auto" and platform != "cpu")

    def keys(kind: str) -> float:
        if dense:
            return seq_len
        seen = (seq_len + CHUNK) / 2 if kind == "g" else (model.sliding_window or seq_len) + CHUNK
        return min(seq_len, seen)

    mean = sum(keys(kind) for kind in model.layer_kinds) / model.num_layers
    per_key = FLOAT32 + item_bytes + (FLOAT32 if model.attention_softcap is not None else 0)
    return model.num_heads / tensor * mean * per_key


def predict(
    run: Run,
    mesh_sizes: dict[str, int],
    num_devices: int,
    vocab_size: int | None = None,
    *,
    platform: str = "tpu",
) -> MemoryEstimate:
    """Bytes on each device of this run's training step.

    Args:
      run: a RunConfig (its model, data, optimizer and train sections).
      mesh_sizes: {"data": 1, "fsdp": -1, "tensor": 1}, as in MeshConfig.sizes.
      vocab_size: of the tokenizer, where run.model.vocab_size is unset.
      platform: cpu, gpu or tpu; what `model.attention="auto"` means there.

    Errors: UserError when the mesh does not fill the devices, or no vocabulary size is known.
    """
    mesh = resolve_mesh(mesh_sizes, num_devices)
    model = dataclasses.replace(run.model, vocab_size=run.model.vocab_size or vocab_size)
    tensor = mesh.get("tensor", 1)
    item_bytes = 2 if model.dtype == "bfloat16" else FLOAT32
    table = weights(model, run.data.seq_len)
    parameters = FLOAT32 * sum(shard_size(w, mesh) for w in table)
    num_parts = run.train.num_microbatches
    rows = -(-run.data.global_batch_size // (mesh.get("data", 1) * mesh.get("fsdp", 1)))
    tokens = -(-rows // num_parts) * run.data.seq_len

    def block_bytes(keep: str) -> float:
        elements = block_elements(model, keep, tensor)
        table_bytes = attention_bytes(model, run.data.seq_len, tensor, item_bytes, platform)
        return (
            elements["compute"] * item_bytes
            + elements["float32"] * FLOAT32
            + (table_bytes if keep == "none" else 0.0)
        )

    hidden = 2 * model.embed_dim * item_bytes  # after the last block, and its gradient
    kept = model.num_layers * block_bytes(model.remat) + hidden
    # A block's intermediates while its backward pass runs; under remat they are not among the activations,
    # and come with half as much again, since gradients appear before the last intermediates go.
    working = block_bytes("none") * (1.0 if model.remat == "none" else 1.5)
    blocks = [w for w in table if w.axes[0] == "layers" and w.is_matrix]
    tables = [w for w in table if w.name in ("embedding", "head")]
    gathered = 0
    if mesh.get("fsdp", 1) > 1 or item_bytes < FLOAT32:
        # Weights are used whole over fsdp, in the compute dtype: this block's, the next one's, and a table.
        whole = {**mesh, "fsdp": 1}
        gathered = 2 * sum(shard_size(w, whole) for w in blocks) // model.num_layers
        gathered += max(shard_size(w, whole) for w in tables)
    return MemoryEstimate(
        parameters=parameters,
        gradients=parameters * (2 if num_parts > 1 else 1),
        optimizer=FLOAT32 * sum(optimizer_elements(run.optimizer.name, w, mesh) for w in table),
        activations=round(tokens * kept),
        workspace=round(tokens * working) + gathered * item_bytes,
        logits=2 * FLOAT32 * min(run.train.loss_chunk_tokens, tokens) * -(-(model.vocab_size or 0) // tensor),
        batch=2 * 5 * 4 * rows * run.data.seq_len,
    )
