"""build(ModelConfig) -> LM: all that the rest of jaxlm ever sees of a model. Flax stays in this folder."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.collective import Place
from jaxlm.models.attention import Cache, init_cache, pick_attention
from jaxlm.models.config import BLOCK_UNIT, ModelConfig
from jaxlm.models.decoder import Block, Ends, class_logits, collections, head_logits, make_places, run_blocks
from jaxlm.models.layers import Constrain, Spread, dropout
from jaxlm.models.moe import RouterSums, no_router_sums
from jaxlm.models.pieces import arrange
from jaxlm.types import Batch, Params, PyTree, UserError


class LM(NamedTuple):
    """A language model as pure functions of its weights."""

    init: Callable[[jax.Array], Params]
    hidden: Callable[..., jax.Array]
    """hidden(params, batch, dropout_key=None) -> x_BTD after the final norm."""
    head: Callable[[Params, jax.Array], jax.Array]
    """head(params, x_...D) -> logits_...V (of a classifier, ...C) in float32; params may be just `head_keys`."""
    axes: PyTree
    """Shaped like params; a leaf is a tuple of logical axes, such as ("layers", "embed", "mlp")."""
    shapes: PyTree
    """Shaped like params; a leaf is a ShapeDtypeStruct. What `eval_shape` of `init` says, without tracing it again."""
    head_keys: tuple[str, ...]
    """Top-level groups of params that `head` reads."""
    init_cache: Callable[[int, int], Cache]
    """init_cache(batch_size, max_len) -> an empty KV cache."""
    extend: Callable[[Params, jax.Array, jax.Array, Cache], tuple[jax.Array, Cache]]
    """extend(params, tokens_BT, positions_BT, cache) -> (x_BTD, cache): prefill and decode."""
    head_place: Place | None = None
    """On a mesh: where `head` runs on the rows of each device, for whoever hands it a whole table."""
    arrange: Callable[[Batch], Batch] = lambda batch: batch
    """arrange(batch) -> the batch as `hidden` takes it, which returns states in its order: another one, on a mesh that
    cuts the length of rows."""
    hidden_with_router: Callable[..., tuple[jax.Array, RouterSums]] | None = None
    """Of a mixture of experts: `hidden`, and what the routers say of that batch; None for other models."""


def states(
    lm: LM, params: Params, batch: Batch, dropout_key: jax.Array | None = None
) -> tuple[jax.Array, RouterSums | None]:
    """(x_BTD after the final norm, what the routers say; None for a model without experts)."""
    if lm.hidden_with_router is None:
        return lm.hidden(params, batch, dropout_key), None
    return lm.hidden_with_router(params, batch, dropout_key)


def no_constraint(x: jax.Array, *axes: str) -> jax.Array:
    """The `constrain` of a model on one device."""
    return x


def is_axes(leaf: Any) -> bool:
    """Whether a node of `LM.axes` is a leaf."""
    return isinstance(leaf, tuple)


class Modules(NamedTuple):
    """The Flax modules of one model, which hold no weights."""

    config: ModelConfig
    ends: Ends
    blocks: dict[str, Block]
    """By kind of layer, of which all have the same weights."""
    constrain: Constrain
    has_dropout: bool


def make_modules(
    config: ModelConfig,
    num_positions: int,
    kernel: str,
    constrain: Constrain,
    spread: Spread | None = None,
    lora_dropout: float = 0.0,
) -> Modules:
    """Modules whose activations live where `constrain` and `spread` say."""
    blocks = {
        kind: Block(config, kind, kernel, constrain, spread, lora_dropout) for kind in set(config.layer_kinds)
    }
    has_dropout = config.dropout > 0 or lora_dropout > 0
    return Modules(config, Ends(config, num_positions, spread), blocks, constrain, has_dropout)


def build(
    config: ModelConfig,
    seq_len: int,
    *,
    platform: str | None = None,
    constrain: Constrain = no_constraint,
    spread: Spread | None = None,
    lora_dropout: float = 0.0,
) -> LM:
    """Makes the model's functions; no weight is made yet.

    Args:
      config: with vocab_size filled in.
      seq_len: rows of a learned position table where config.max_seq_len is unset.
      platform: cpu, gpu or tpu, for `attention="auto"`; unset: the default backend.
      constrain: where activations live on a mesh, by logical axes.
      spread: the mesh that the model is spread over; None: one device.
      lora_dropout: on the input of adapters, where params["layers"]["lora"] holds some.
    """
    if config.vocab_size is None:
        raise UserError("model.vocab_size is unset: take the tokenizer's vocabulary size.")
    num_parts = 1 if spread is None else spread.mesh.shape[spread.heads]
    cuts_length = spread is not None and spread.length is not None
    kernel = pick_attention(config, platform or jax.default_backend(), num_parts, cuts_length=cuts_length)
    num_positions = config.max_seq_len or seq_len
    modules = make_modules(config, num_positions, kernel, constrain, spread, lora_dropout)
    # Initialisation and sampling see batches too small for the mesh's batch axes, so nothing is prescribed there.
    free_modules = make_modules(config, num_positions, "dense", no_constraint)
    init_boxed = make_init(free_modules)
    head_key = "embedding" if config.tie_embeddings else "head"
    head_key = head_key if config.num_classes is None else "classifier"

    def init(key: jax.Array) -> Params:
        return nn.meta.unbox(init_boxed(key))

    def head(params: Params, x_XD: jax.Array) -> jax.Array:
        if config.num_classes is not None:
            return class_logits(params[head_key], x_XD)
        return head_logits(config, params[head_key], x_XD)

    def make_cache(batch_size: int, max_len: int) -> Cache:
        return init_cache(config, batch_size, max_len)

    extend, with_router = make_extend(free_modules), make_hidden_with_router(modules)

    def hidden(params: Params, batch: Batch, dropout_key: jax.Array | None = None) -> jax.Array:
        return with_router(params, batch, dropout_key)[0]

    return LM(
        init,
        hidden,
        head,
        *axes_and_shapes(config, num_positions),
        (head_key,),
        make_cache,
        extend,
        head_place=None if spread is None else spread.ends(),
        hidden_with_router=with_router if config.num_experts else None,
        arrange=make_arrange(spread, kernel),
    )


def make_arrange(spread: Spread | None, kernel: str) -> Callable[[Batch], Batch]:
    """`LM.arrange` on this mesh, for this kernel of attention."""
    if spread is None or spread.length is None:
        return lambda batch: batch
    # Between blocks the length is also cut over `heads`.
    num_parts = -(-spread.mesh.shape[spread.heads] // 2)
    return functools.partial(
        arrange, spread=spread, unit=math.lcm(num_parts, BLOCK_UNIT if kernel == "flash" else 1)
    )


def make_init(modules: Modules) -> Callable[[jax.Array], PyTree]:
    """init(key) -> weights in Flax's boxes, which carry their logical axes."""
    config = modules.config

    def init(key: jax.Array) -> PyTree:
        ends_key, blocks_key = jax.random.split(key)
        tokens_BT = jnp.zeros((1, 2), jnp.int32)
        params = dict(modules.ends.init(ends_key, tokens_BT)["params"])
        x_BTD = jnp.zeros((1, 2, config.embed_dim), config.dtype)
        places = make_places(config, tokens_BT, None)
        block = modules.blocks[config.layer_kinds[0]]
        init_block = jax.vmap(lambda k: block.init(k, x_BTD, places)["params"])
        params["layers"] = init_block(jax.random.split(blocks_key, config.num_layers))
        return params

    return init


@functools.lru_cache(maxsize=64)
def axes_and_shapes(config: ModelConfig, num_positions: int) -> tuple[PyTree, PyTree]:
    """`LM.axes` and `LM.shapes`. Not to be changed: models of one config share them."""
    init_boxed = make_init(make_modules(config, num_positions, "dense", no_constraint))

    def axes_of(path, box) -> tuple[str, ...]:  # the stack of layers gets its leading axis
        return (("layers",) if path[0].key == "layers" else ()) + tuple(box.names)

    # Made inside, the key opens no device: a config can be looked at before processes are connected.
    boxed = jax.eval_shape(lambda: init_boxed(jax.random.key(0)))
    is_box = nn.meta.is_axis_metadata
    axes = jax.tree_util.tree_map_with_path(axes_of, boxed, is_leaf=is_box)
    return axes, jax.tree.map(lambda box: box.value, boxed, is_leaf=is_box)


def embed(modules: Modules, params, tokens_BT, positions_BT, dropout_key) -> jax.Array:
    """Tokens to the input of the first block."""
    x_BTD: Any = modules.ends.apply({"params": params}, tokens_BT, positions_BT, method="embed")
    return dropout(x_BTD, modules.config.dropout, dropout_key)


def final_norm(modules: Modules, params, x_BTD) -> Any:
    """The output of the last block to the input of the head."""
    return modules.ends.apply({"params": params}, x_BTD, method="norm")


def make_hidden_with_router(modules: Modules) -> Callable[..., tuple[jax.Array, Any]]:
    """`LM.hidden_with_router`: all positions at once, for training and scoring; without experts the second is None."""
    config = modules.config

    def hidden(params: Params, batch: Batch, dropout_key: jax.Array | None = None):
        tokens_BT, segments_BT = batch["tokens"], batch.get("segments")
        positions_BT = batch.get("positions")
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
        places = make_places(config, positions_BT, segments_BT, batch.get("begins"))
        keys: Any = (None, None)
        if dropout_key is not None and modules.has_dropout:
            keys = jax.random.split(dropout_key)

        def apply_block(kind, layer_params, x_BTD, key, sums, layer):
            block = modules.blocks[kind]
            rngs = None if key is None else {"lora": key}
            done: Any = block.apply(collections(layer_params), x_BTD, places, key, None, layer, rngs=rngs)
            x_BTD, _, own = done
            return x_BTD, jax.tree.map(jnp.add, sums, own)

        sums = no_router_sums(config) if config.num_experts else None
        x_BTD = embed(modules, params, tokens_BT, positions_BT, keys[0])
        x_BTD = modules.constrain(x_BTD, "batch", "stream", "embed")
        x_BTD, sums = run_blocks(config, apply_block, params["layers"], x_BTD, keys[1], sums)
        x_BTD = final_norm(modules, params, x_BTD)
        # Whole along the axis that cuts the vocabulary: else each chunk of the loss collects all of it.
        return modules.constrain(x_BTD, "batch", "length", "embed"), sums

    return hidden


def make_extend(modules: Modules) -> Callable[..., tuple[jax.Array, Cache]]:
    """`LM.extend`: more tokens after those in the cache, for sampling."""
    config = modules.config

    def extend(params: Params, tokens_BT: jax.Array, positions_BT: jax.Array, cache: Cache):
        places = make_places(config, positions_BT, None)

        def apply_block(kind, layer_params, x_BTD, key, cache, layer):
            block = modules.blocks[kind]
            return block.apply(collections(layer_params), x_BTD, places, None, cache, layer)[:2]

        x_BTD = embed(modules, params, tokens_BT, positions_BT, None)
        x_BTD, cache = run_blocks(config, apply_block, params["layers"], x_BTD, None, cache)
        return final_norm(modules, params, x_BTD), cache

    return extend
