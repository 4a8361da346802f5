"""Mixture of experts: a router sends each token to a few of many MLPs, and no token is ever dropped.

Sources: Shazeer et al. 2017, arXiv:1701.06538; Mixtral, arXiv:2401.04088, section 2.1; Gale et al. 2022, MegaBlocks,
arXiv:2211.15841 (dropless). The losses of the router: Fedus et al. 2021, Switch, arXiv:2101.03961, section 2.2; Zoph et
al. 2022, ST-MoE, arXiv:2202.08906, section 3.2.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from jaxlm.collective import Split
from jaxlm.models.config import ModelConfig
from jaxlm.models.grouped import Kernel, grouped
from jaxlm.models.layers import Constrain, Spread, nonlinearity, normal, residual_stddev, weight
from jaxlm.models.vector_memory import bytes_of_core


class RouterSums(NamedTuple):
    """What the routers of all layers have to say: sums over tokens that are no padding, so that parts add up."""

    loss: jax.Array
    """What they add to the training loss: model.balance_loss x balance + model.router_z_loss x z, nats."""
    balance: jax.Array
    """Load-balancing losses; tokens x layers where all experts get the same share, up to E times that."""
    z: jax.Array
    """Squared logsumexps of the routers' logits."""
    num_routed: jax.Array
    """Tokens x layers."""
    load_LE: jax.Array
    """Tokens that each expert got."""


class Routes(NamedTuple):
    """Where each token goes; logits and probabilities of all experts, float32."""

    logits_BTE: jax.Array
    probs_BTE: jax.Array
    experts_BTJ: jax.Array
    """The chosen experts, best first, int32."""
    shares_BTJ: jax.Array
    """Weights of their outputs in the token's result."""


def route(config: ModelConfig, x_BTD: jax.Array, router_DE: jax.Array) -> Routes:
    """Chooses num_experts_per_token experts for each token, all in float32: bfloat16 would reorder close calls."""
    x_BTD = x_BTD.astype(jnp.promote_types(x_BTD.dtype, jnp.float32))
    logits_BTE = jnp.einsum("BTD,DE->BTE", x_BTD, router_DE, precision=lax.Precision.HIGHEST)
    logits_BTE = checkpoint_name(logits_BTE, "router")
    probs_BTE = jax.nn.softmax(logits_BTE, axis=-1)
    shares_BTJ, experts_BTJ = lax.top_k(probs_BTE, config.num_experts_per_token)
    if config.normalize_expert_weights:
        shares_BTJ = shares_BTJ / jnp.sum(shares_BTJ, axis=-1, keepdims=True)
    return Routes(logits_BTE, probs_BTE, experts_BTJ, shares_BTJ)


def no_router_sums(config: ModelConfig) -> RouterSums:
    """Sums over no layers."""
    zero = jnp.zeros((), jnp.float32)
    return RouterSums(zero, zero, zero, zero, jnp.zeros((config.num_layers, config.num_experts or 0)))


def router_sums(config: ModelConfig, routes: Routes, segments_BT: jax.Array | None, layer) -> RouterSums:
    """Of one layer. Balance is a matter of each row: a sum over rows is the same however the batch is cut.

    Of a row with n tokens, E sum_e f_e P_e (Switch, equation 4) x n, where f_e is the share of its n x k assignments
    that went to expert e, and P_e the mean of its probabilities.
    """
    E, k = routes.probs_BTE.shape[-1], config.num_experts_per_token
    B, T, _ = routes.experts_BTJ.shape
    real_BT1 = jnp.ones((B, T, 1), jnp.float32)
    if segments_BT is not None:
        real_BT1 = (segments_BT > 0).astype(jnp.float32)[:, :, None]
    is_chosen_BTE = jnp.sum(routes.experts_BTJ[..., None] == jnp.arange(E)[None, None, None], axis=2)
    load_BE = jnp.sum(is_chosen_BTE * real_BT1, axis=1)
    num_B = jnp.sum(real_BT1, axis=(1, 2))
    probs_BE = jnp.sum(routes.probs_BTE * real_BT1, axis=1)
    balance = jnp.sum(E / k * jnp.sum(load_BE * probs_BE, axis=1) / jnp.maximum(num_B, 1.0))
    z = jnp.sum(jnp.square(jax.nn.logsumexp(routes.logits_BTE, axis=-1)) * real_BT1[..., 0])
    load_LE = jnp.zeros((config.num_layers, E)).at[layer].set(jnp.sum(load_BE, axis=0))
    return RouterSums(
        config.balance_loss * balance + config.router_z_loss * z, balance, z, jnp.sum(num_B), load_LE
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def send(x_XD: jax.Array, order_M: jax.Array, back_M: jax.Array, k: int) -> jax.Array:
    """Each token to its k places: [M = X k, D]. order_M: which assignment stands there; back_M: its inverse.

    The gradient reads from the k places, where that of indexing would be a scatter.
    """
    return x_XD[order_M // k]


def _sum_of_places(y_MD: jax.Array, back_M: jax.Array, k: int) -> jax.Array:
    """The k places of each token, added up in float32: all first ones, all second ones, ...

    As [k, X, D]: in memory [X, k, D] would take the room of 8 or 16 places.
    """
    y_JXD = y_MD[back_M.reshape(-1, k).T.reshape(-1)].reshape(k, -1, *y_MD.shape[1:])
    return jnp.sum(y_JXD, axis=0, dtype=jnp.promote_types(y_MD.dtype, jnp.float32))


def _send_bwd(k: int, back_M: jax.Array, g_MD: jax.Array):
    return _sum_of_places(g_MD, back_M, k).astype(g_MD.dtype), None, None


send.defvjp(lambda x_XD, order_M, back_M, k: (send(x_XD, order_M, back_M, k), back_M), _send_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _bring_back(
    y_MD: jax.Array, order_M: jax.Array, back_M: jax.Array, k: int, dtype: jnp.dtype
) -> jax.Array:
    return _sum_of_places(y_MD, back_M, k)


# Only the order is kept: whatever else of y were, even its dtype, y would have to be computed again for it.
_bring_back.defvjp(
    lambda y_MD, order_M, back_M, k, dtype: (_sum_of_places(y_MD, back_M, k), order_M),
    lambda k, dtype, order_M, g_XD: (g_XD.astype(dtype)[order_M // k], None, None),
)


def bring_back(y_MD: jax.Array, order_M: jax.Array, back_M: jax.Array, k: int) -> jax.Array:
    """The sum of each token's k places, [X, D] in float32; order_M and back_M as of `send`, whose transpose it is."""
    return _bring_back(y_MD, order_M, back_M, k, y_MD.dtype)


@jax.checkpoint
def only(is_here_M1: jax.Array, x_MD: jax.Array) -> jax.Array:
    """Zeroes the rows of other devices' experts. Keeps no mask as wide as x for the backward pass."""
    return jnp.where(is_here_M1, x_MD, 0)


@functools.partial(jax.checkpoint, static_argnums=0)
def hidden(activation: str, share_M: jax.Array, up_MF: jax.Array, gate_MF: jax.Array | None) -> jax.Array:
    """What goes into the experts' last product, times the share of its result. Keeps just its arguments.

    The share is as good here as behind the product, and here its gradient does not need the product's result: so that
    is not computed again where nothing was kept.
    """
    h_MF = nonlinearity(activation, up_MF) if gate_MF is None else nonlinearity(activation, gate_MF) * up_MF
    return (h_MF * share_M[:, None]).astype(up_MF.dtype)


def mix(
    config: ModelConfig,
    x_XD: jax.Array,
    experts_XJ: jax.Array,
    shares_XJ: jax.Array,
    weights: dict[str, jax.Array],
    *,
    first: jax.Array | int = 0,
    splits: dict[str, Split | None] | None = None,
    kernel: Kernel | None = None,
) -> jax.Array:
    """What the experts in `weights` contribute to each token, [X, D] in float32.

    Args:
      experts_XJ, shares_XJ: as in Routes.
      weights: of the experts from number `first` on; others are left to other devices.
      splits: by weight, as of `grouped`.
      kernel: as of `grouped`.
    """
    E, k = weights["up"].shape[0], experts_XJ.shape[-1]
    group_M = experts_XJ.reshape(-1) - first
    is_here_M = (group_M >= 0) & (group_M < E)
    order_M = jnp.argsort(
        jnp.where(is_here_M, group_M, E)
    )  # stable: the same order however the batch is placed
    back_M = jnp.argsort(order_M)
    sizes_E = jnp.sum(group_M[:, None] == jnp.arange(E)[None], axis=0, dtype=jnp.int32)
    # Rows that belong to no expert here come back as anything, but neither they nor their gradients count.
    keep = (
        functools.partial(only, is_here_M[order_M][:, None]) if config.num_experts != E else lambda x_MD: x_MD
    )

    def products(x_MI: jax.Array, *names: str) -> dict[str, jax.Array]:
        ys = grouped(x_MI, {name: weights[name] for name in names}, sizes_E, splits, kernel)
        return {name: keep(y_MX) for name, y_MX in ys.items()}

    x_MD, share_M = keep(send(x_XD, order_M, back_M, k)), send(shares_XJ.reshape(-1), order_M, back_M, 1)
    into = products(x_MD, *(("up", "gate") if config.gated else ("up",)))
    h_MF = keep(hidden(config.activation, share_M, into["up"], into.get("gate")))
    return bring_back(products(h_MF, "down")["down"], order_M, back_M, k)


def mix_rows(config: ModelConfig, x_BTD, experts_BTJ, shares_BTJ, weights, **where) -> jax.Array:
    """`mix` of a batch; `where`: its keywords."""
    B, T, D = x_BTD.shape
    x_XD, experts_XJ, shares_XJ = (a.reshape(B * T, -1) for a in (x_BTD, experts_BTJ, shares_BTJ))
    return mix(config, x_XD, experts_XJ, shares_XJ, weights, **where).reshape(B, T, D)


def mix_on_mesh(config: ModelConfig, spread: Spread, x_BTD, experts_BTJ, shares_BTJ, weights) -> jax.Array:
    """`mix_rows` on many devices: each has some tokens of the batch, and a part of the weights of some experts.

    The devices that share all experts among them (those along one line of the `experts` axis) show each other their
    tokens; each computes what its own experts make of all of them; the results are added up, and each device gets
    those of its own. Two collectives, none of whose sizes depends on where tokens go, and nothing can overflow. The
    price: every device holds buffers for all k x tokens of its line, though it fills only its experts' share.
    """
    sizes, axis = spread.mesh.shape, spread.experts
    tokens, is_split = PartitionSpec(spread.batch, spread.length), sizes[spread.experts] > 1
    into, out_of = (spread.experts, spread.embed, spread.mlp), (spread.experts, spread.mlp, spread.embed)
    specs = {name: PartitionSpec(*(out_of if name == "down" else into)) for name in weights}
    dims = {name: 2 if name == "down" else 1 for name in weights}
    device = spread.mesh.devices.flat[0]
    how: dict[str, Any] = {"splits": {name: spread.split(dim) for name, dim in dims.items()}}
    if device.platform == "tpu":
        how["kernel"] = Kernel(bytes_of_core(device.device_kind), rows_here=1 / sizes[axis])

    def local(x_BTD, experts_BTJ, shares_BTJ, weights):
        first: Any = 0
        if is_split:
            x_BTD, experts_BTJ, shares_BTJ = (
                lax.all_gather(a, axis, axis=0, tiled=True) for a in (x_BTD, experts_BTJ, shares_BTJ)
            )
            first = lax.axis_index(axis) * weights["up"].shape[0]
        y_BTD = mix_rows(config, x_BTD, experts_BTJ, shares_BTJ, weights, first=first, **how)
        if is_split:
            y_BTD = lax.psum_scatter(y_BTD, axis, scatter_dimension=0, tiled=True)
        return lax.psum(y_BTD, spread.mlp) if sizes[spread.mlp] > 1 else y_BTD

    run = jax.shard_map(
        local, mesh=spread.mesh, in_specs=(tokens, tokens, tokens, specs), out_specs=tokens, check_vma=False
    )
    return run(x_BTD, experts_BTJ, shares_BTJ, weights)


def picked_products(config: ModelConfig, mesh: Mapping[str, int], num_tokens: int, platform: str) -> str:
    """What runs the products of experts on a mesh: `grouped` (kernels of ours), `ragged_dot` or `blocks`.

    Args:
      mesh: axis -> devices.
      num_tokens: of one device and microbatch.
    """
    if platform != "tpu":
        return "blocks" if platform == "cpu" else "ragged_dot"
    from jaxlm.models.grouped_kernel import supports

    S, E = mesh["fsdp"], (config.num_experts or 0) // mesh["expert"]
    shape = (S, E, config.embed_dim // S, config.mlp_width // mesh["tensor"])
    num_rows = num_tokens * config.num_experts_per_token * mesh["expert"]
    return "grouped" if supports(num_rows, jax.ShapeDtypeStruct(shape, config.dtype)) else "ragged_dot"


class MoE(nn.Module):
    """The experts in place of a block's MLP, each of them plain or gated as the MLP would be."""

    config: ModelConfig
    constrain: Constrain
    spread: Spread | None

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, segments_BT: jax.Array | None, layer
    ) -> tuple[jax.Array, RouterSums]:
        config = self.config
        D, F, E = config.embed_dim, config.mlp_width, config.num_experts or 0
        router_DE = weight(self, "router", (D, E), ("embed", "experts"), normal())
        weights = {
            name: weight(self, name, (E, D, F), ("experts", "embed", "mlp"), normal())
            for name in (("up", "gate") if config.gated else ("up",))
        }
        down = normal(residual_stddev(config))
        weights["down"] = weight(self, "down", (E, F, D), ("experts", "mlp", "embed"), down)
        if self.is_initializing():
            return x_BTD, no_router_sums(config)
        routes = route(config, x_BTD, router_DE)
        chosen = (routes.experts_BTJ, routes.shares_BTJ)
        if self.spread is None:
            y_BTD = mix_rows(config, x_BTD, *chosen, weights)
        else:
            y_BTD = mix_on_mesh(config, self.spread, x_BTD, *chosen, weights)
        y_BTD = self.constrain(y_BTD.astype(x_BTD.dtype), "batch", "length", "embed")
        return y_BTD, router_sums(config, routes, segments_BT, layer)
