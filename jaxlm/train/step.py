"""TrainState and the two pure steps, train and evaluate; jitted in one place, `compile_steps`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.models.build import LM
from jaxlm.models.moe import RouterSums
from jaxlm.objectives import Sums
from jaxlm.parallel.sharding import batch_sharding, param_shardings, shardings_like
from jaxlm.train.config import TrainConfig
from jaxlm.train.optimizer import global_norm, square_sums
from jaxlm.train.tuning import EVERYTHING, Tuning
from jaxlm.types import Batch, Params, PyTree

MODEL_KEYS = ("tokens", "targets", "weights", "segments", "positions", "labels")
"""What of a batch the model sees; `fingerprint` only goes into the metrics, `source` stays on the host."""

SOUND = "sound_gradients"
"""Of the metrics, the only one that is no number: see `make_train_step`."""

NORM_MEMORY = 0.98
"""Of the running mean of the gradient norm that `spike_factor` compares with."""


class TrainState(NamedTuple):
    """All that a step changes. `step` is also the position in the data."""

    step: jax.Array
    params: Params
    """Those that are trained; see train/tuning.py."""
    opt_state: PyTree
    num_bad_in_row: jax.Array
    """Bad steps since the last good one."""
    num_bad: jax.Array
    """Bad steps since the start of the run."""
    mean_grad_norm: jax.Array
    """Running mean over good steps; 0 before the first."""


Metrics = dict[str, jax.Array]
LossFn = Callable[..., tuple[jax.Array, Sums]]


def init_state(
    lm: LM, tx: optax.GradientTransformation, key: jax.Array, tuning: Tuning = EVERYTHING
) -> TrainState:
    """Fresh weights and optimizer state at step 0."""
    return first_state(lm.init(key), tx, key, tuning)


def first_state(
    params: Params, tx: optax.GradientTransformation, key: jax.Array, tuning: Tuning
) -> TrainState:
    """The state at step 0 of a model with these weights; the key is for adapters."""
    params = tuning.split(tuning.init(jax.random.fold_in(key, 1), params))[0]
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, tx.init(params), zero, zero, jnp.zeros((), jnp.float32))


def state_shardings(
    lm: LM, tx: optax.GradientTransformation, mesh: Mesh, tuning: Tuning = EVERYTHING
) -> TrainState:
    """NamedShardings shaped like the TrainState: the optimizer's moments live where their weights live."""
    shapes = jax.eval_shape(lambda params: first_state(params, tx, jax.random.key(0), tuning), lm.shapes)
    params = param_shardings(tuning.axes(lm.axes)[0], mesh)
    replicated = NamedSharding(mesh, PartitionSpec())
    counters = jax.tree.map(lambda _: replicated, shapes._replace(params=None, opt_state=None))
    return counters._replace(
        params=params, opt_state=shardings_like(shapes.opt_state, params, shapes.params, mesh)
    )


def split_microbatches(batch: Batch, num: int) -> Batch:
    """[B, ...] -> [num, B // num, ...]; row i goes to microbatch i % num, so that no device sends rows away."""

    def split(x):
        return jnp.swapaxes(x.reshape(x.shape[0] // num, num, *x.shape[1:]), 0, 1)

    return jax.tree.map(split, batch)


def make_sums_and_grads(
    loss: LossFn, num_microbatches: int, constrain_batch: Callable[[Batch], Batch]
) -> Callable[[Params, Batch, jax.Array | None], tuple[Sums, Params]]:
    """f(params, batch, dropout key) -> (sums of the loss, gradient of its sum), over all microbatches."""
    grad = jax.value_and_grad(loss, has_aux=True)

    def whole(params: Params, batch: Batch, key: jax.Array | None) -> tuple[Sums, Params]:
        (_, sums), grads = grad(params, batch, key)
        return sums, grads

    def in_parts(params: Params, batch: Batch, key: jax.Array | None) -> tuple[Sums, Params]:
        def add(grads, xs):
            index, part = xs
            part_key = None if key is None else jax.random.fold_in(key, index)
            sums, more = whole(params, constrain_batch(part), part_key)
            return jax.tree.map(jnp.add, grads, more), sums

        zeros = jax.tree.map(jnp.zeros_like, params)
        parts = (jnp.arange(num_microbatches), split_microbatches(batch, num_microbatches))
        grads, sums = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda each: jnp.sum(each, axis=0), sums), grads

    return whole if num_microbatches == 1 else in_parts


def router_metrics(router: RouterSums) -> Metrics:
    """How evenly the experts are used: means over tokens and layers, without the weights they have in the loss.

    `balance_loss` is 1 where all experts get the same share. `busiest_expert` is the load of each layer's busiest one,
    relative to an even load; a mean over layers.
    """
    load_LE = router.load_LE
    even_L = jnp.maximum(jnp.mean(load_LE, axis=1), 1.0)
    return {
        "balance_loss": router.balance / router.num_routed,
        "router_z_loss": router.z / router.num_routed,
        "busiest_expert": jnp.mean(jnp.max(load_LE, axis=1) / even_L),
    }


def is_good_step(
    loss: jax.Array, grad_norm: jax.Array, mean_grad_norm: jax.Array, spike_factor: float | None
) -> jax.Array:
    """Whether a step may change the weights: finite, and no spike above the mean of those before."""
    good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    if spike_factor is not None:
        good &= ~(mean_grad_norm > 0) | (grad_norm <= spike_factor * mean_grad_norm)
    return good


def next_state(
    state: TrainState, params: Params, opt_state: PyTree, grad_norm: jax.Array, good: jax.Array
) -> TrainState:
    """The state after a step; a bad one only counts."""
    bad = (~good).astype(jnp.int32)
    mean = jnp.where(
        state.mean_grad_norm > 0,
        NORM_MEMORY * state.mean_grad_norm + (1 - NORM_MEMORY) * grad_norm,
        grad_norm,
    )
    return TrainState(
        step=state.step + 1,
        params=jax.tree.map(lambda new, old: jnp.where(good, new, old), params, state.params),
        opt_state=jax.tree.map(lambda new, old: jnp.where(good, new, old), opt_state, state.opt_state),
        num_bad_in_row=(state.num_bad_in_row + 1) * bad,
        num_bad=state.num_bad + bad,
        mean_grad_norm=jnp.where(good, mean, state.mean_grad_norm),
    )


def make_train_step(
    loss: LossFn,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: TrainConfig,
    *,
    clip_norm: float | None,
    dropout_seed: int | None,
    constrain_batch: Callable[[Batch], Batch] = lambda batch: batch,
    tuning: Tuning = EVERYTHING,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """step(state, batch, frozen weights) -> (state, metrics), pure; without the third where nothing is frozen.

    Sums of losses and gradients run over the microbatches and are divided once, by the number of targets of the
    whole batch: the result does not depend on how the batch is cut, also where weights are uneven. A step whose
    loss or gradient is not finite, or whose gradient norm spikes, leaves weights and optimizer as they were.

    Args:
      dropout_seed: dropout is keyed by (seed, step, microbatch); None: no dropout.
      constrain_batch: keeps the rows of a microbatch spread over the mesh.
    """

    def step(state: TrainState, batch: Batch, frozen: Params | None = None) -> tuple[TrainState, Metrics]:
        def loss_of_trained(params: Params, batch: Batch, key: jax.Array | None):
            return loss(tuning.merge(params, frozen), batch, key)

        sums_and_grads = make_sums_and_grads(loss_of_trained, config.num_microbatches, constrain_batch)
        key = None
        if dropout_seed is not None:
            key = jax.random.fold_in(jax.random.key(dropout_seed), state.step)
        model_batch = {name: batch[name] for name in MODEL_KEYS if name in batch}
        sums, grads = sums_and_grads(state.params, model_batch, key)
        mean_loss = sums.loss / sums.weight
        squares = square_sums(grads)
        grad_norm = global_norm(squares) / sums.weight
        # Dividing by the weight and clipping are one factor on the gradient: no pass over memory of their own.
        scale = 1.0 / sums.weight
        if clip_norm is not None:
            scale = scale * jnp.minimum(1.0, clip_norm / jnp.maximum(grad_norm, 1e-12))
        learning_rate = schedule(state.step)
        updates, opt_state = tx.update(
            jax.tree.map(lambda g: g * scale, grads), state.opt_state, state.params
        )
        params = jax.tree.map(lambda p, u: p + learning_rate * u, state.params, updates)
        good = is_good_step(mean_loss, grad_norm, state.mean_grad_norm, config.spike_factor)
        new_state = next_state(state, params, opt_state, grad_norm, good)
        metrics = {
            "loss": mean_loss,
            "grad_norm": grad_norm,
            "learning_rate": jnp.asarray(learning_rate, jnp.float32),
            "num_tokens": sums.weight,
            "num_bad_in_row": new_state.num_bad_in_row,
            "num_bad": new_state.num_bad,
            # Which gradients are sound, in the order of `square_sums_names`: names the first that is not.
            SOUND: jnp.isfinite(jnp.concatenate([one.reshape(-1) for one in squares])),
        }
        if sums.num_right is not None and sums.num_texts is not None:
            metrics["accuracy"] = sums.num_right / sums.num_texts
        if sums.router is not None:
            metrics |= router_metrics(sums.router)
        if "segments" in batch:
            metrics["num_inputs"] = jnp.sum(batch["segments"] > 0)
        if "fingerprint" in batch:
            metrics["batch_hash"] = jnp.sum(batch["fingerprint"], dtype=jnp.uint32)
        return new_state, metrics

    return step


def make_eval_step(loss: LossFn, tuning: Tuning = EVERYTHING) -> Callable[..., Sums]:
    """evaluate(params, batch, frozen weights) -> Sums, without dropout; the third as of `make_train_step`."""

    def evaluate(params: Params, batch: Batch, frozen: Params | None = None) -> Sums:
        params = tuning.merge(params, frozen)
        sums = loss(params, {name: batch[name] for name in MODEL_KEYS if name in batch})[1]
        return sums._replace(router=None)

    return evaluate


class Steps(NamedTuple):
    """The compiled functions of a run."""

    init: Any
    """init(key) -> TrainState, sharded."""
    train: Any
    """train(state, batch) -> (state, metrics); the old state's memory is reused (donated)."""
    evaluate: Any
    """evaluate(params, batch) -> Sums."""
    shardings: TrainState
    """Where each part of the state lives."""
    frozen_shardings: PyTree
    """And the weights that are not trained."""
    frozen: Params = {}
    """Those weights themselves, once bound."""

    def bind(self, frozen: Params) -> Steps:
        """With the frozen weights, which `train` and `evaluate` need where there are any: an argument, so that they
        are no constants of the compiled program; not donated, so that they stay."""
        if not frozen:
            return self
        train, evaluate = self.train, self.evaluate
        return self._replace(
            frozen=frozen,
            train=lambda state, batch: train(state, batch, frozen),
            evaluate=lambda params, batch: evaluate(params, batch, frozen),
        )


def compile_steps(
    lm: LM,
    tx: optax.GradientTransformation,
    train_step: Callable,
    eval_step: Callable,
    mesh: Mesh,
    *,
    tuning: Tuning = EVERYTHING,
    compiler_options: dict[str, Any] | None = None,
) -> Steps:
    """The one place where steps are jitted: NamedShardings in and out, the state donated."""
    shardings = state_shardings(lm, tx, mesh, tuning)
    frozen = param_shardings(tuning.axes(lm.axes)[1], mesh)
    also = (frozen,) if tuning.freezes else ()
    rows = batch_sharding(mesh)
    replicated = NamedSharding(mesh, PartitionSpec())
    return Steps(
        init=jax.jit(
            lambda key: init_state(lm, tx, key, tuning),
            out_shardings=shardings,
            compiler_options=compiler_options,
        ),
        train=jax.jit(
            train_step,
            in_shardings=(shardings, rows, *also),
            out_shardings=(shardings, replicated),
            donate_argnums=0,
            compiler_options=compiler_options,
        ),
        evaluate=jax.jit(
            eval_step,
            in_shardings=(shardings.params, rows, *also),
            out_shardings=replicated,
            compiler_options=compiler_options,
        ),
        shardings=shardings,
        frozen_shardings=frozen,
    )
