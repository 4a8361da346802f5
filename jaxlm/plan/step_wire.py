"""What one device sends in a train step, over the links of its slice and from slice to slice. No JAX.

As `jaxlm/collective.py` and the compiler have it:

- `fsdp`: the weights of a block are gathered in the compute dtype for the forward pass and again for the backward pass;
  their gradients are scattered in `train.reduce_dtype`, ring by ring, or, where a dimension of the slice is no ring,
  summed everywhere, which is twice the bytes. Embedding and head once a step.
- `data`, `sequence`: what a device holds of the gradients is summed, twice their bytes.
- `sequence`: keys and values of a row come to all that share it, forward and backward, and their gradients go back.
- `tensor`: activations are gathered before a block's two pairs of products, and scattered behind them.
- `expert`: tokens of the devices that share the experts are gathered, and results scattered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxlm.plan.flops import Weight, weights
from jaxlm.plan.memory import BYTES_QUANTIZED, PARAM_AXES, shard_size
from jaxlm.plan.step_products import device_tokens, share_trained
from jaxlm.plan.tuning import trained_weights
from jaxlm.tiles import crosses_tiles

RING = {"v5e": 16, "v6e": 16}
"""Chips along a dimension of a slice whose ends are joined; of slices made of cubes, every multiple of `CUBE`."""

CUBE = 4

INTO_ATTENTION, INTO_GATED_MLP = 1, 1
"""Products that take a block's stream, each of which gathers it along `tensor`: 1 where they are fused."""

OUT_OF_BLOCK = 2
"""Products that give the stream, whose sums are scattered along `tensor`."""

HOP_S = 1e-6
"""A message from a chip to its neighbour (https://jax-ml.github.io/scaling-book/sharding/, read 2026-11-26)."""

COLLECTIVES_PER_MATRIX = 3
"""Two gathers and a scatter."""


class Wire(NamedTuple):
    """Bytes that one device sends in a step."""

    gathers: float
    """Of weights, over fsdp."""
    scatters: float
    """Of their gradients."""
    sums: float
    """Of gradients over `data`, within a slice, and over `sequence`."""
    activations: float
    """Along `tensor`, `expert` and `sequence`, for which a layer waits."""
    across_slices: float
    """From slice to slice, over the data-center network."""

    @property
    def in_slice(self) -> float:
        return self.gathers + self.scatters + self.sums + self.activations


def is_torus(chip_name: str, shape: Sequence[int]) -> bool:
    """Whether the ends of every dimension of a slice are joined, so that sums can be scattered along rings."""
    long = [size for size in shape if size > 1]
    if chip_name in RING:
        return all(size >= RING[chip_name] for size in long)
    return all(size % CUBE == 0 for size in long)


def wire(run: Any, mesh: dict[str, int], *, torus: bool, num_slices: int = 1) -> Wire:
    """What a device sends. torus: of `is_torus`; num_slices: which `data` goes over, outermost."""
    model = run.model
    item = 2 if model.dtype == "bfloat16" else 4
    reduce_item = 2 if run.train.reduce_dtype == "bfloat16" else 4
    fsdp = mesh.get("fsdp", 1)
    table = weights(model, run.data.seq_len)
    whole = {**mesh, "fsdp": 1}

    def split(w: Weight) -> bool:
        return any(PARAM_AXES[axis] == "fsdp" for axis in w.axes)

    def elements(listed: Sequence[Weight], in_blocks: bool) -> float:
        return sum(shard_size(w, whole) for w in listed if split(w) and (w.axes[0] == "layers") == in_blocks)

    ends = elements(table, False)
    by_rows = mesh.get("tensor", 1) == 1 and crosses_tiles(model.embed_dim // fsdp, model.vocab_size or 0)
    if by_rows and model.tie_embeddings and model.num_classes is None:
        # XLA finds that a tied table is collected twice, and does it once; not where it comes some rows at a time.
        ends += elements([w for w in table if w.axes[0] == "vocab"], False)

    share = (fsdp - 1) / fsdp
    trained = trained_weights(table, run.tune)
    backward = share_trained(run)
    microbatches = run.train.num_microbatches
    frozen_item = item if run.tune.quantize is None else min(item, BYTES_QUANTIZED[run.tune.quantize])
    gathers = share * microbatches * (
        frozen_item * (1 + backward) * elements(table, True) + item * ends
    )  # fmt: skip
    scatters = share * microbatches * reduce_item * (elements(trained, True) + elements(trained, False))
    scatters *= 1.0 if torus else 2.0
    inside = mesh.get("data", 1) // num_slices * mesh.get("sequence", 1)
    held = reduce_item * microbatches * sum(shard_size(w, mesh) for w in trained)
    return Wire(
        gathers=gathers,
        scatters=scatters,
        sums=2 * held * (inside - 1) / inside,
        activations=activations(run, mesh, item),
        across_slices=2 * held * (num_slices - 1) / num_slices,
    )


def exchanges(run: Any) -> float:
    """Times that a block gathers or scatters activations along `tensor`.

    Forward as its products take and give the stream; backward what they gave is gathered and what they took scattered,
    and what they took is gathered once more, for the gradients of the weights.
    """
    model = run.model
    into = INTO_ATTENTION + (INTO_GATED_MLP if model.gated else 1)
    again = model.remat != "none" and "o" not in model.kept  # the middle of the block; nobody needs its end
    forward = into + OUT_OF_BLOCK
    return forward + share_trained(run) * (2 * into + OUT_OF_BLOCK + again)


def activations(run: Any, mesh: dict[str, int], item: int) -> float:
    """Bytes along `tensor`, `expert` and `sequence`."""
    model, tokens = run.model, device_tokens(run, mesh)
    tensor, expert, sequence = (mesh.get(axis, 1) for axis in ("tensor", "expert", "sequence"))
    each = tokens * model.embed_dim * item * model.num_layers
    along_experts = 0.0
    if model.num_experts is not None:  # tokens to all that share the experts and back, and their gradients
        along_experts = 2 * (2 + (model.remat != "none")) * (expert - 1)
    keys = tokens * 2 * model.kv_heads * model.head_width / tensor * model.num_layers  # and values
    reduce_item = 2 if run.train.reduce_dtype == "bfloat16" else 4
    again = model.remat != "none" and "attention" not in model.kept
    passes = item * (1 + share_trained(run) * (1 + again)) + reduce_item * share_trained(run)
    along_rows = (sequence - 1) * keys * passes
    return each * (exchanges(run) * (tensor - 1) / tensor + along_experts) + along_rows


def latency_s(run: Any, mesh: dict[str, int], shape: Sequence[int]) -> float:
    """Of all collectives of a step one after the other: each goes half way around every dimension of the slice."""
    if mesh.get("fsdp", 1) == 1 and mesh.get("tensor", 1) == 1:
        return 0.0
    matrices = [w for w in weights(run.model, run.data.seq_len) if w.axes[0] == "layers" and w.is_matrix]
    hops = sum(size // 2 for size in shape)
    num = COLLECTIVES_PER_MATRIX * len(matrices) * run.model.num_layers * run.train.num_microbatches
    return HOP_S * hops * num
