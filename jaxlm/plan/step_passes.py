"""Bytes that a train step moves between HBM and a chip outside of its products. No JAX.

Read off the schedules of compiled steps (jax 0.11.1, libtpu 0.0.46, 2026-11-26): what stands between the products of a
block, in units of the residual stream; what is kept for the backward pass, written and read with its copy out of the
stack; logits; whole tables and weights that are laid out anew; the optimizer.
"""

from __future__ import annotations

import math
from typing import Any

from jaxlm.models.config import ModelConfig
from jaxlm.plan.block_memory import FLOAT32, is_scanned, kept_of_a_block, widths
from jaxlm.plan.flops import weights
from jaxlm.plan.memory import optimizer_elements, shard_size
from jaxlm.plan.step_products import device_tokens, share_trained
from jaxlm.plan.step_wire import exchanges
from jaxlm.plan.tuning import adapters, trained_weights

STREAM_PASSES = 8
"""Of a block over the residual stream: squares for its norms, twice, and sums of gradients."""

KEPT_PASSES = 4
"""Written, put into the stack of all layers, taken out of it, read."""

POST_NORM_PASSES, QK_NORM_PASSES = 12, 6
"""Of norms behind attention and MLP, over the stream; of those of queries and keys, over these."""

BIAS_PASSES = 40
"""Of biases, over the stream: sums of the gradients of all that they were added to."""

NARROW_HEAD_PASSES = 31
"""Of heads of 64: queries, keys and values are copied into pairs of heads, and their gradients out of them."""

ADAPTER_PASSES = 4
"""Over the result of every product that has an adapter, to which its result is added."""

EXCHANGE_PASSES = 1
"""Each time that the stream is gathered or scattered along `tensor`, over what comes from others, a mean: what is
scattered is copied piece by piece, what is gathered is not."""

EXPERT_PASSES, SENT_PASSES = 11, 14
"""Of experts, over their inner width and over the stream, of every token once for each expert that it meets:
activations stand alone, rows are sorted and sorted back."""

TABLE_PASSES = {True: 18, False: 9}
"""Over a whole matrix of the vocabulary's size: gathered, laid out anew, its gradient likewise; and a frozen one."""

WEIGHT_PASSES, WEIGHT_PASSES_3D = 0.4, 2.7
"""Over the gathered weights of all blocks; over three dimensions of a network one after the other they are copied.
Those of experts are used as they arrive."""


def block_passes(model: ModelConfig) -> float:
    """Of one block, in units of the residual stream, without what is kept."""
    D, H = model.embed_dim, model.head_width
    passes = STREAM_PASSES + POST_NORM_PASSES * model.post_norm
    if model.qk_norm:
        passes += QK_NORM_PASSES * (model.num_heads + model.kv_heads) * H / D
    if model.bias == "all":
        passes += BIAS_PASSES
    if H < 128:
        passes += NARROW_HEAD_PASSES * model.num_heads * H / D
    return passes


def moved_bytes(run: Any, mesh: dict[str, int], *, num_dims: int) -> float:
    """Of one device and step. num_dims: of the network that fsdp goes over."""
    model, tokens = run.model, device_tokens(run, mesh)
    item = 2 if model.dtype == "bfloat16" else FLOAT32
    L, D, V, T = model.num_layers, model.embed_dim, model.vocab_size or 0, run.data.seq_len
    tensor, fsdp = mesh.get("tensor", 1), mesh.get("fsdp", 1)
    backward = share_trained(run)
    found = tokens * L * D * item * block_passes(model) / tensor * (1 + 2 * backward) / 3
    if tensor > 1:
        found += tokens * L * D * item * EXCHANGE_PASSES * exchanges(run) * (tensor - 1) / tensor
    if model.num_experts is not None:
        widths_met = EXPERT_PASSES * model.mlp_width / tensor + SENT_PASSES * D
        found += tokens * L * model.num_experts_per_token * widths_met * item
    found += tokens * L * backward * KEPT_PASSES * kept_bytes(run, mesh, item)
    if model.num_classes is None:
        found += tokens * V / tensor * FLOAT32
        found += TABLE_PASSES[run.tune.train == "all"] * D * V / tensor * item
    table = weights(model, T)
    if fsdp > 1:
        whole = {**mesh, "fsdp": 1}
        gathered = sum(
            shard_size(w, whole) for w in table if w.axes[0] == "layers" and w.is_matrix and not w.is_expert
        )
        passes = WEIGHT_PASSES_3D if num_dims == 3 else WEIGHT_PASSES
        found += passes * gathered * item * run.train.num_microbatches
    if run.tune.train == "lora":
        outputs = sum(math.prod(w.shape[2:]) for w in adapters(table, run.tune)[1::2])
        found += ADAPTER_PASSES * tokens * L * outputs / tensor * item
    # In float32: weights, gradients and moments are read, weights and moments written.
    trained = trained_weights(table, run.tune)
    moments = sum(optimizer_elements(run.optimizer.name, w, mesh) for w in trained)
    found += FLOAT32 * (3 * sum(shard_size(w, mesh) for w in trained) + 2 * moments)
    return found


def kept_bytes(run: Any, mesh: dict[str, int], item: int) -> float:
    """Of a block and token, what outlives the forward pass; with model.remat=none what the products take and give."""
    model = run.model
    w = widths(model, run.data.seq_len, mesh, dense=True)
    everything = item * (2 * w.stream + 2 * w.q + w.kv + 2 * w.num_up * w.mlp)
    return kept_of_a_block(model, w, item, everything) if is_scanned(model) else everything
