"""Products of a train step on one device: their FLOPs with what is computed again, and their bytes. No JAX.

Products with weights are listed one by one, as (tokens x inputs) . (inputs x outputs), with the times that each runs in
a step: forward, the gradients of what it multiplies and of its weight, and once more where `model.remat` computes it
again. Attention's and the experts' products run in kernels, whose cycles no compiler says, and stand apart.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from jaxlm.models.config import ModelConfig
from jaxlm.plan.flops import Weight, weights
from jaxlm.plan.memory import logit_chunks
from jaxlm.plan.tuning import adapters

QUERIES, KEYS, DIAGONAL = 1024, 512, 256
"""Blocks of `jaxlm/models/attention_flash.py`: queries, keys, and both around the diagonal. Blocks count whole."""

FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 2, 5
"""Of attention's kernels: queries with keys and probabilities with values; then those again, and three gradients."""

LANES = 128
"""A product takes as long as one whose dims are multiples of this."""


class Product(NamedTuple):
    """One kind of product of a step."""

    flops: float
    """Of one device and step."""
    padded_flops: float
    """With dims filled up to whole lanes: what its time follows."""
    hbm_bytes: float
    """Operands and results, each once."""

    def plus(self, other: Product) -> Product:
        return Product(*map(sum, zip(self, other, strict=True)))


NOTHING = Product(0.0, 0.0, 0.0)


class Products(NamedTuple):
    """All of a step."""

    weights: Product
    """With weights, the head's too."""
    attention: Product
    """In attention's kernels, or as tables of logits."""
    experts: Product
    """In the kernels of the experts' MLPs."""

    @property
    def flops(self) -> float:
        return sum(one.flops for one in self)


def device_tokens(run: Any, mesh: dict[str, int]) -> float:
    """Tokens of a step that one device computes on; those along `tensor` share them."""
    rows = mesh.get("data", 1) * mesh.get("fsdp", 1) * mesh.get("expert", 1)
    return run.data.global_batch_size / rows * run.data.seq_len / mesh.get("sequence", 1)


def share_trained(run: Any) -> float:
    """Of the blocks, those that have a backward pass."""
    tune = run.tune
    return {"head": 0.0, "last_blocks": tune.num_blocks / run.model.num_layers}.get(tune.train, 1.0)


def is_computed_again(model: ModelConfig, name: str) -> bool:
    """Whether the backward pass computes a block's product again: what is kept it does not, nor what nobody needs."""
    if model.remat == "none" or name in (*model.kept, *model.kept_on_host):
        return False
    return name != "down" or model.post_norm


def dims(w: Weight, mesh: dict[str, int]) -> tuple[float, float]:
    """(inputs, outputs) of a block's matrix on one device, of one expert where it is of experts."""
    shape = w.shape[2:] if w.is_expert else w.shape[1:]
    inputs = math.prod(shape[:2]) if w.name == "o" else shape[0]
    outputs = math.prod(shape) // inputs
    tensor = mesh.get("tensor", 1)
    return (inputs / tensor, outputs) if w.axes[-1] == "embed" else (inputs, outputs / tensor)


def product(tokens: float, inputs: float, outputs: float, item: int = 2) -> Product:
    """(tokens x inputs) . (inputs x outputs)."""
    padded = [max(dim, LANES) for dim in (inputs, outputs)]
    num_bytes = item * (tokens * inputs + tokens * outputs + inputs * outputs)
    return Product(2.0 * tokens * inputs * outputs, 2.0 * tokens * math.prod(padded), num_bytes)


def times(one: Product, num: float) -> Product:
    return Product(*(num * part for part in one))


def products(run: Any, mesh: dict[str, int]) -> Products:
    """What one device multiplies in a step. run: a RunConfig with model.vocab_size filled in."""
    model, tokens = run.model, device_tokens(run, mesh)
    item = 2 if model.dtype == "bfloat16" else 4
    backward = share_trained(run)
    table = weights(model, run.data.seq_len)
    blocks = [w for w in table if w.axes[0] == "layers" and w.is_matrix]
    own_gradient = run.tune.train != "lora"
    dense = experts = NOTHING
    for w in blocks:
        again = is_computed_again(model, w.name)
        num = model.num_layers * (1 + backward * (1 + own_gradient + again))
        if w.is_expert:
            met = tokens * model.num_experts_per_token
            experts = experts.plus(times(product(met, *dims(w, mesh), item), num))
        else:
            dense = dense.plus(times(product(tokens, *dims(w, mesh), item), num))
    if run.tune.train == "lora":
        for w in adapters(table, run.tune):  # two for each matrix: into the rank, and out of it
            is_needed = w.axes[-1] == "rank" or is_computed_again(model, w.name)
            num = model.num_layers * (3 + (model.remat != "none" and is_needed))
            dense = dense.plus(times(product(tokens, *dims(w, mesh), item), num))
    return Products(dense.plus(head(run, mesh, tokens, item)), attention(run, mesh, tokens), experts)


def head(run: Any, mesh: dict[str, int], tokens: float, item: int) -> Product:
    """The language head, chunk by chunk, with its gradients at once; logits in float32."""
    model, tensor = run.model, mesh.get("tensor", 1)
    if model.num_classes is not None:
        return NOTHING
    D, V = model.embed_dim, (model.vocab_size or 0) / tensor
    rows = tokens / run.data.seq_len / run.train.num_microbatches
    num_chunks, _ = logit_chunks(max(round(rows), 1), run.data.seq_len, run.train.loss_chunk_tokens)
    num_chunks *= run.train.num_microbatches
    trains = run.tune.train == "all" or (run.tune.train == "last_blocks" and not model.tie_embeddings)
    num = 2 + trains if run.tune.train != "head" else 1
    streams = tokens * (D * item + V * (2 * 4 + item) / 3)
    table = num_chunks * D * V * (item if num < 3 else (2 * item + 2 * 4) / 3)
    flops = 2.0 * num * tokens * D * V
    return Product(flops, flops, num * (streams + table))


def attention(run: Any, mesh: dict[str, int], tokens: float) -> Product:
    """Queries with keys and probabilities with values; blocks that no query of theirs sees are left out."""
    model, T = run.model, run.data.seq_len
    N, K, H = model.num_heads, model.kv_heads, model.head_width
    tensor, item = mesh.get("tensor", 1), 2 if model.dtype == "bfloat16" else 4
    whole = model.attention == "dense"
    window = model.sliding_window
    keys = sum(T if whole else block_keys(T, window if kind == "l" else None) for kind in model.layer_kinds)
    again = model.remat != "none" and "attention" not in model.kept
    backward = share_trained(run)
    num_products = FORWARD_PRODUCTS * (1 + backward * again) + backward * BACKWARD_PRODUCTS
    num_passes = (1 + backward * again) + 3 * backward
    flops = 2.0 * num_products * tokens * N * H * keys / tensor
    return Product(
        flops,
        flops,
        num_passes * model.num_layers * tokens * (2 * N + 2 * K) * H / tensor * item,
    )


def block_keys(seq_len: int, window: int | None) -> float:
    """Keys of a query, averaged over a row of one document, with those of its blocks that it does not see."""
    q = min(QUERIES, seq_len)
    before = range(0, seq_len, q)
    far = math.inf if window is None else -(-(window - 1) // KEYS) * KEYS
    return sum(min(start, far) for start in before) / len(before) + (q + min(DIAGONAL, q)) / 2
