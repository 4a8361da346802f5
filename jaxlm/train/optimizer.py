"""OptimizerConfig -> update rule, learning-rate schedule and weight-decay mask."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from jaxlm.train.config import OptimizerConfig
from jaxlm.types import PyTree

INPUT_DIMS = {"q": 1, "k": 1, "v": 1, "o": 2, "up": 1, "gate": 1, "down": 1}
"""Weight matrices inside a block -> how many of their dims, after `layers`, are contracted with the input."""


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate by step, counted from 0.

    Warm-up is linear and reaches the peak at step warmup_steps; step 0 already moves (peak / (warmup_steps + 1)).
    Cosine and linear fall to final_lr_fraction of the peak over decay_steps and stay there; wsd stays at the peak
    until the last decay_steps.
    """
    peak, warmup, final = (
        config.learning_rate,
        config.warmup_steps,
        config.learning_rate * config.final_lr_fraction,
    )
    after_warmup, decay = max(num_steps - warmup, 1), config.decay_in(num_steps)
    if config.schedule == "constant":
        main = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, decay, alpha=config.final_lr_fraction)
    elif config.schedule == "linear":
        main = optax.linear_schedule(peak, final, decay)
    else:
        main = optax.linear_schedule(peak, final, decay, transition_begin=max(after_warmup - decay, 0))
    if warmup == 0:
        return main
    ramp = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([ramp, main], [warmup])


def _name(path) -> str:
    return path[-1].key


def decay_mask(params: PyTree) -> PyTree:
    """True for weight matrices and token embeddings; False for norms, biases and position tables."""

    def decays(path, _):
        return not (_name(path) in ("scale", "bias", "positions") or _name(path).endswith("_bias"))

    return jax.tree_util.tree_map_with_path(decays, params)


def muon_dims(params: PyTree) -> PyTree:
    """Which dims of each weight are its rows and columns for Muon; None where AdamW is used instead.

    Blocks' matrices only: embeddings, head, routers, norms and biases keep AdamW (Jordan et al. 2024, Muon; Liu et
    al. 2025, arXiv:2502.16982). Dim 0 is the stack of layers, which Muon treats one by one, and so it does with the
    experts of a layer, dim 1.
    """

    def dims(path, leaf):
        if path[0].key != "layers" or _name(path) not in INPUT_DIMS:
            return None
        first = 2 if path[1].key == "moe" else 1
        split = first + INPUT_DIMS[_name(path)]
        return MuonDimensionNumbers(tuple(range(first, split)), tuple(range(split, leaf.ndim)))

    return jax.tree_util.tree_map_with_path(dims, params)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The update rule at learning rate 1, weight decay included; the train step multiplies by the schedule.

    So the learning rate is a function of the step alone, also after skipped steps. Clipping, too, is the train
    step's: it needs the norm anyway.
    """
    rules = {
        "adamw": lambda: optax.chain(
            optax.scale_by_adam(config.b1, config.b2, config.eps), optax.scale(-1.0)
        ),
        "lion": lambda: optax.chain(optax.scale_by_lion(config.b1, config.b2), optax.scale(-1.0)),
        "adafactor": lambda: optax.adafactor(1.0, multiply_by_parameter_scale=False, eps=1e-30),
        "muon": lambda: muon(
            1.0,
            beta=config.b1,
            adam_b1=config.b1,
            adam_b2=config.b2,
            eps=config.eps,
            consistent_rms=0.2,  # AdamW's update size, so that learning rates carry over (arXiv:2502.16982)
            muon_weight_dimension_numbers=muon_dims,
        ),
    }
    decay = optax.add_decayed_weights(-config.weight_decay, mask=decay_mask)
    return (
        optax.chain(rules[config.name](), decay) if config.weight_decay else optax.chain(rules[config.name]())
    )


def square_sums(tree: PyTree) -> list[jax.Array]:
    """Sum of squares of each leaf, float32; of what is stacked over layers (`layers/...`), one for each: [L]."""

    def of(path, leaf: jax.Array) -> jax.Array:
        squares = jnp.square(leaf.astype(jnp.float32))
        is_stack = getattr(path[0], "key", None) == "layers"
        return jnp.sum(squares, axis=tuple(range(1, leaf.ndim)) if is_stack else None)

    return [of(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def global_norm(sums: Sequence[jax.Array]) -> jax.Array:
    """Square root of the sum of all squares, float32.

    Args:
      sums: of `square_sums`.
    """
    return jnp.sqrt(sum(jnp.sum(one) for one in sums))


def square_sums_names(tree: PyTree, first_layer: int = 0) -> list[str]:
    """What each number of `square_sums`, end to end, belongs to: `layers[3]/mlp/up`, `final_norm/scale`.

    Args:
      first_layer: of the stacks.
    """
    names: list[str] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if getattr(path[0], "key", None) == "layers":
            rest = name.removeprefix("layers/")
            names += [f"layers[{first_layer + i}]/{rest}" for i in range(leaf.shape[0])]
        else:
            names.append(name)
    return names
