"""The decoder: embedding, blocks in a scan or unrolled, final norm, language head.

The weights of all blocks are one stack, [L, ...], however they are run: a checkpoint knows nothing of scan_layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlm.models.attention import Attention, Cache, Places, rotation
from jaxlm.models.config import HOST_MEMORY, ModelConfig
from jaxlm.models.dense import lookup
from jaxlm.models.layers import MLP, Constrain, Norm, Spread, dropout, normal, softcap, weight
from jaxlm.models.moe import MoE, RouterSums


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream; post_norm also normalises what is added.

    -> (x_BTD, cache, what the router of its experts says; None where there is one MLP).
    """

    config: ModelConfig
    kind: str
    kernel: str
    constrain: Constrain
    spread: Spread | None = None
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BTD, places: Places, dropout_key=None, cache: Cache | None = None, layer=0):
        config = self.config
        router: RouterSums | None = None
        keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)

        def add(x_BTD, y_BTD, post_norm: str, key):
            if config.post_norm:
                y_BTD = Norm(config, name=post_norm)(y_BTD)
            x_BTD = x_BTD + dropout(y_BTD, config.dropout, key)
            return self.constrain(x_BTD, "batch", "stream", "embed")

        x_BTD = checkpoint_name(x_BTD, "input")
        attention = Attention(
            config, self.kind, self.kernel, self.constrain, self.spread, self.lora_dropout, name="attention"
        )
        y_BTD, cache = attention(Norm(config, name="attention_norm")(x_BTD), places, cache, layer)
        x_BTD = add(x_BTD, y_BTD, "attention_post_norm", keys[0])
        y_BTD = Norm(config, name="mlp_norm")(x_BTD)
        if config.num_experts is None:
            y_BTD = MLP(config, self.constrain, self.spread, self.lora_dropout, name="mlp")(y_BTD)
        else:
            y_BTD, router = MoE(config, self.constrain, self.spread, name="moe")(
                y_BTD, places.segments_BT, layer
            )
        return add(x_BTD, y_BTD, "mlp_post_norm", keys[1]), cache, router


class Ends(nn.Module):
    """What stands before and after the blocks: token and position embedding, final norm, head."""

    config: ModelConfig
    num_positions: int
    spread: Spread | None = None

    def setup(self):
        config = self.config
        V, D = config.vocab_size or 0, config.embed_dim
        self.embedding = weight(self, "embedding", (V, D), ("vocab", "embed"), normal())
        if config.positions == "learned":
            shape = (self.num_positions, D)
            self.position_table = weight(self, "positions", shape, ("positions", "embed"), normal())
        self.final_norm = Norm(config)
        if config.num_classes is not None:
            shape = (D, config.num_classes)
            self.classifier = weight(self, "classifier", shape, ("embed", "classes"), normal())
        elif not config.tie_embeddings:
            self.head_kernel = weight(self, "head", (V, D), ("vocab", "embed"), normal())

    def rows(self, table, ids_BT: jax.Array) -> Any:
        """x_BTD, in the compute dtype."""
        dtype = jnp.dtype(self.config.dtype)
        if self.spread is None:
            return jnp.take(table, ids_BT, axis=0).astype(dtype)
        return lookup(table, ids_BT, dtype, self.spread.ends())

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        config = self.config
        x_BTD = self.rows(self.embedding, tokens_BT)
        if config.scale_embeddings:
            # Rounded to the compute dtype first, as Gemma does.
            x_BTD = x_BTD * jnp.asarray(config.embed_dim**0.5, config.dtype)
        if config.positions == "learned":
            x_BTD = x_BTD + self.rows(self.position_table, positions_BT)
        return x_BTD

    def norm(self, x_BTD: jax.Array) -> jax.Array:
        return self.final_norm(x_BTD)

    def __call__(self, tokens_BT):  # initialisation touches every weight once
        return self.norm(self.embed(tokens_BT, jnp.zeros_like(tokens_BT)))


def head_logits(config: ModelConfig, table_VD: jax.Array, x_XD: jax.Array) -> jax.Array:
    """Hidden states [..., D] to logits [..., V] in float32, soft-capped where the model says so."""
    logits_XV = jax.lax.dot_general(
        x_XD,
        table_VD.astype(x_XD.dtype),
        (((x_XD.ndim - 1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return softcap(logits_XV, config.logits_softcap)


def class_logits(kernel_DC: jax.Array, x_XD: jax.Array) -> jax.Array:
    """Pooled states [..., D] to logits [..., C], in float32."""
    kernel_DC = kernel_DC.astype(jnp.float32)
    return jnp.matmul(x_XD.astype(jnp.float32), kernel_DC, precision=jax.lax.Precision.HIGHEST)


def remat_policy(config: ModelConfig) -> Callable[..., Any]:
    """What the forward pass of a block keeps for the backward pass, and what of it in the memory of the host."""
    policies, kept, hosted = jax.checkpoint_policies, config.kept, config.kept_on_host
    if not hosted:
        return policies.save_only_these_names(*kept)
    return policies.save_and_offload_only_these_names(
        names_which_can_be_saved=list(kept),
        names_which_can_be_offloaded=list(hosted),
        offload_src="device",
        offload_dst=HOST_MEMORY,
    )


def unstack(stack, num_layers: int) -> list:
    """The layers of a [L, ...] stack, one by one.

    Through lax.split, whose gradient is one concatenation; that of indexing would be a sum of L padded stacks.
    """
    leaves, treedef = jax.tree.flatten(stack)
    split = [jax.lax.split(leaf, (1,) * num_layers, axis=0) for leaf in leaves]
    return [treedef.unflatten([jnp.squeeze(parts[i], 0) for parts in split]) for i in range(num_layers)]


COLLECTIONS = ("lora", "quantized")
"""Groups of a block's weights that are there in fine-tuning: adapters, and matrices that are kept in fewer bits."""


def collections(layer_params: dict[str, Any]) -> dict[str, Any]:
    """The weights of a block as Flax takes them."""
    found = {name: layer_params[name] for name in COLLECTIONS if name in layer_params}
    return {"params": {k: w for k, w in layer_params.items() if k not in found}, **found}


def run_blocks(
    config: ModelConfig,
    apply_block,
    layers,
    x_BTD,
    dropout_key=None,
    carried: Cache | RouterSums | None = None,
) -> tuple[Any, Any]:
    """Passes x through all blocks. apply_block(kind, params, x, key, carried, layer) -> (x, carried).

    Args:
      layers: the stack of all layers; or a list of stacks, one after the other: of frozen layers and of those above
        them that are trained, so that no gradient enters the former.
      carried: what every block adds to: the KV cache in decoding, the sums of the routers in training.
    """
    first = 0
    for stack in layers if isinstance(layers, list) else [layers]:
        num = len(stack) if isinstance(stack, tuple) else jax.tree.leaves(stack)[0].shape[0]
        x_BTD, carried = run_stack(config, apply_block, stack, (first, num), x_BTD, dropout_key, carried)
        first += num
    return x_BTD, carried


def run_stack(
    config: ModelConfig, apply_block, stack, place: tuple[int, int], x_BTD, dropout_key, carried
) -> tuple[Any, Any]:
    """`run_blocks` of one stack.

    With scan_layers the loop runs over whole periods of layer_pattern, so that each layer's kind is known to the
    compiler; what is left over (26 layers of a pattern of 6) is unrolled. So is a stack that comes as a tuple of
    layers: decoding on a CPU takes them apart once instead of slicing the stack for every token.

    Args:
      place: its first layer, and how many it has.
    """
    first, L = place
    kinds, period = config.layer_kinds[first : first + L], len(config.layer_pattern)

    def step(i, kind, params, x_BTD, carried):
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, i)
        return apply_block(kind, params, x_BTD, key, carried, i)

    if config.remat != "none" and not isinstance(carried, Cache):
        # In a scan over single layers nothing can merge the recomputation with the original: no barrier is needed.
        step = jax.checkpoint(
            step,
            policy=remat_policy(config),
            prevent_cse=not config.scan_layers or period > 1,
            static_argnums=(1,),
        )
    apart = isinstance(stack, tuple)
    num_scanned = L // period if config.scan_layers and L // period > 1 and not apart else 0
    done = num_scanned * period
    if num_scanned:
        # A period of one layer takes the stack as it is: what the scan only hands on is then never copied.
        periods = stack
        if period > 1:
            periods = jax.tree.map(lambda w: w[:done].reshape(num_scanned, period, *w.shape[1:]), stack)

        def body(carry, xs):
            (x_BTD, carried), (index, params) = carry, xs
            for j in range(period):
                one = params if period == 1 else jax.tree.map(lambda w, j=j: w[j], params)
                if j and not isinstance(carried, Cache):
                    # Else XLA:TPU collects the weights of the whole period at once: 60 GiB in place of 35, Gemma 3 27B.
                    x_BTD, one = jax.lax.optimization_barrier((x_BTD, one))
                with jax.named_scope(f"layers[{first + j}::{period}]"):  # train/first_bad.py reads this
                    x_BTD, carried = step(index * period + (first + j), kinds[j], one, x_BTD, carried)
            return (x_BTD, carried), None

        (x_BTD, carried), _ = jax.lax.scan(body, (x_BTD, carried), (jnp.arange(num_scanned), periods))
    if done < L:
        rest = jax.tree.map(lambda w: w[done:], stack) if done else stack
        for i, params in enumerate(rest if apart else unstack(rest, L - done), start=done):
            with jax.named_scope(f"layers[{first + i}]"):
                x_BTD, carried = step(first + i, kinds[i], params, x_BTD, carried)
    return x_BTD, carried


def make_places(config: ModelConfig, positions_BT, segments_BT, begins_BT=None) -> Places:
    """What all layers share: positions, segments and RoPE's angles for each kind of layer there is."""
    kinds = sorted(set(config.layer_kinds)) if config.positions == "rope" else []
    turns = {kind: rotation(config, positions_BT, local=kind == "l") for kind in kinds}
    return Places(positions_BT, segments_BT, turns, begins_BT)
