"""Bytes per token of one block, as XLA:CPU and XLA:TPU hold them in a train step; see `jaxlm.plan.memory`."""

from __future__ import annotations

from typing import NamedTuple

from jaxlm.models.config import ModelConfig, attention_chunk

STREAMS = 7
"""Tensors as wide as the residual stream, queries, keys and values among them, that a TPU's block at work holds."""

TENSOR_STREAMS = 3
"""Where `tensor` cuts the stream, also: collected before a product, its gradient likewise, and the pieces of a sum."""

FURTHER_LAYER = 0.6
"""Of what one layer computes again on a CPU, the share that each further layer of a period adds: most of it is there
before the first is used. (In jax 0.12 nothing: one layer comes after the other.)"""

FLOAT32 = 4

LANES = 128
"""A TPU stores the last dim of an array in multiples of this; XLA mostly finds a layout where that costs nothing."""


class Block(NamedTuple):
    """Bytes per token of one block, a mean over the layers."""

    kept: float
    """What outlives its forward pass under `model.remat`."""
    at_work: float
    """What exists beside that during the backward pass of a block, or of `layers_at_work` in one turn of the loop."""
    layers_at_work: int = 1


def is_scanned(model: ModelConfig) -> bool:
    """Whether (nearly) all blocks run in a loop, as `jaxlm.models.decoder.run_blocks` decides."""
    return model.scan_layers and model.num_layers // len(model.layer_pattern) > 1


class Widths(NamedTuple):
    """Elements per token of a block's tensors; heads and the MLP are split over `tensor`."""

    stream: float
    cut_stream: float
    """Between blocks, where its length is split over `tensor`."""
    q: float
    kv: float
    """Keys and values together."""
    mlp: float
    """With experts: of all that a token meets, over the tokens of all devices that share the experts."""
    sent: float
    """Tokens as wide as the stream on their way to the experts, counted like `mlp`; 0 where there is one MLP."""
    router: float
    """Logits of the experts."""
    num_up: int
    """Products into the MLP: two where it is gated."""
    norms: float
    """Inputs of norms and their results before the scale."""
    table: float
    """Logits of the attention: heads x keys, a mean over the layers."""
    prefixes: float
    """Slices of the keys and values before a chunk of queries, one a chunk, over the keys and values."""


def widths(model: ModelConfig, seq_len: int, mesh: dict[str, int], *, dense: bool) -> Widths:
    """The widths of a block on one device."""
    tensor, num_copies = mesh.get("tensor", 1), 1
    if model.num_experts is not None:
        num_copies = model.num_experts_per_token * mesh.get("expert", 1)
    D, H = model.embed_dim, model.head_width
    q, kv = model.num_heads * H / tensor, 2 * model.kv_heads * H / tensor
    keys = sum(mean_table_keys(model, kind, seq_len, dense) for kind in model.layer_kinds) / model.num_layers
    return Widths(
        stream=D,
        cut_stream=D / tensor,
        q=q,
        kv=kv,
        mlp=num_copies * model.mlp_width / tensor,
        sent=0.0 if model.num_experts is None else num_copies * D,
        router=model.num_experts or 0,
        num_up=2 if model.gated else 1,
        norms=2.0 * D * (4 if model.post_norm else 2) + (2 * q + kv if model.qk_norm else 0),
        table=model.num_heads / tensor * keys,
        prefixes=1.0 if dense else keys / min(attention_chunk(seq_len), seq_len),
    )


def kept_of_a_block(model: ModelConfig, w: Widths, item: int, everything: float) -> float:
    """Bytes per token that a block keeps in a loop; `everything` is what its backward pass reads."""
    if model.remat == "none":  # what lies along the residual stream is kept in parts
        return everything - (1 - w.cut_stream / w.stream) * (2 * w.stream * item + w.norms * FLOAT32)
    widths = {
        "q": w.q,
        "k": w.kv / 2,
        "v": w.kv / 2,
        "attention": w.q,
        "o": w.cut_stream,
        "gate": w.mlp if model.gated else 0.0,
        "up": w.mlp,
        # Where only the stream takes it, nobody needs it again.
        "down": w.cut_stream if model.post_norm else 0.0,
        "router": w.router * FLOAT32 / item,
    }
    own_input = 0.0 if "input" in model.kept_on_host else w.cut_stream
    return (own_input + sum(widths.get(name, 0.0) for name in model.kept)) * item


def cpu_block(model: ModelConfig, w: Widths, *, dense: bool) -> Block:
    """XLA:CPU keeps activations in float32, also where `model.dtype` is bfloat16.

    Without a scan remat saves nothing: the barriers that hold the recomputation back are gone before scheduling. A
    turn of the scan computes all layers of `model.layer_pattern` again before it uses the first. Attention in chunks
    keeps no table in a scan, but its own layout of queries and results; at work, half a table and a slice of the
    keys and values before each chunk. Without a scan, what its backward pass would compute again is kept after all:
    one table. Products of experts copy what they take, to which they append a block of rows, and what they give, of
    which they cut it off: without a scan one copy is kept, and in one most are there while what was not kept is
    computed again.
    """
    scanned = is_scanned(model)
    copies = (w.num_up + 3) * w.mlp + w.sent
    compute = 2 * w.stream + 2 * w.q + w.kv + (w.num_up + 1) * w.mlp + w.norms
    if w.sent:
        compute += w.sent + 2 * w.router + (0.0 if scanned else w.mlp)
    chunks = (w.prefixes - 1) * w.kv + w.table / 2
    if dense:
        compute += w.table * (2 * (1 + (model.attention_softcap is not None)) if scanned else 1)
    elif scanned:
        compute += 2 * w.q if model.remat == "none" else 0.0
    else:
        compute += (w.prefixes - 1) * w.kv + w.table
    everything = FLOAT32 * compute
    kept = kept_of_a_block(model, w, FLOAT32, everything) if scanned else everything
    at_work = FLOAT32 * (w.mlp + 3 * w.sent + 2 * w.stream)  # gradients
    if scanned:
        # Else once, beside the stack that it is copied to.
        again = 1 + FURTHER_LAYER * (len(model.layer_pattern) - 1) if kept < everything else 1
        at_work += again * (everything + (0.0 if dense else FLOAT32 * chunks))
        if w.sent and kept < everything:
            at_work += FLOAT32 * (copies - 3 * w.mlp)
    return Block(kept, at_work)


def tpu_block(model: ModelConfig, w: Widths, item: int) -> tuple[Block, float]:
    """XLA:TPU's block in a loop, and what one keeps that is not in a loop.

    At work with attention's kernels: the MLP's width twice for each product into it, its result and that one's
    gradient; of attention, queries, what it gives, keys and values; of the stream, the middle and a gradient. Heads of
    64 are copied into pairs, queries, keys and values. A turn of a loop over several layers is taken to have two of
    them at work, since a barrier keeps them apart (`decoder.run_stack`); of Gemma 3 27B, the only one that was compiled
    since, the loss takes more than that.

    Attention as a table holds it twice, as logits in float32 and as probabilities or their gradient in the compute
    dtype, while the MLP holds its width once, thrice where it is gated. Outside of a loop the recomputation is merged
    with the original, and norms and probabilities are computed again from what they came from.
    """
    num_float32 = 1 + (model.attention_softcap is not None)
    is_table = model.attention in ("dense", "chunked")
    tables = w.table * (FLOAT32 * num_float32 + item) if is_table else 0.0
    compute = 2 * w.stream + 2 * w.q + w.kv * w.prefixes + 2 * w.num_up * w.mlp + 2 * w.sent
    everything = compute * item + (w.norms + 2 * w.router) * FLOAT32 + tables
    at_work = ((2 * w.num_up - 1) * w.mlp + STREAMS * w.stream + 2 * w.sent) * item
    num = 1
    if not is_table and model.remat != "none":
        streams = 2 + (TENSOR_STREAMS if w.cut_stream < w.stream else 0)
        at_work = (2 * w.num_up * w.mlp + streams * w.stream + 2 * w.q + w.kv + 2 * w.sent) * item
        at_work += (w.q + w.kv) * item if model.head_width < LANES else 0.0
        num = min(2, len(model.layer_pattern)) if is_scanned(model) else 1
    if model.remat == "none":
        loose = (w.num_up * w.mlp + STREAMS * w.stream) * item + (w.table * FLOAT32 if tables else 0.0)
        return Block(everything, at_work), loose
    loose = ((w.num_up + 1) * w.mlp + STREAMS * w.stream) * item
    return Block(kept_of_a_block(model, w, item, everything), num * at_work + tables, num), loose


def mean_table_keys(model: ModelConfig, kind: str, seq_len: int, dense: bool) -> float:
    """Keys of a query in a block's table: all with dense attention, else those that any query of its chunk sees."""
    if dense:
        return seq_len
    chunk = attention_chunk(seq_len)
    seen = (seq_len + chunk) / 2 if kind == "g" else (model.sliding_window or seq_len) + chunk
    return min(seq_len, seen)
