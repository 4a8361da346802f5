"""A tiny training run on random batches, for tests that compare how it is cut and placed."""

import dataclasses
import functools

import jax
import numpy as np
from jax.sharding import Mesh

from jaxlm.models.build import build
from jaxlm.models.config import ModelConfig
from jaxlm.objectives import OBJECTIVES
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import batch_sharding, make_constrain, make_spread, place_batch
from jaxlm.train.config import OptimizerConfig, TrainConfig
from jaxlm.train.optimizer import make_optimizer, make_schedule
from jaxlm.train.step import Steps, TrainState, compile_steps, make_eval_step, make_train_step
from jaxlm.train.tuning import EVERYTHING
from jaxlm.types import Params

B, T, V = 16, 16, 64
MODEL = ModelConfig(
    vocab_size=V,
    embed_dim=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    layer_pattern="gl",
    sliding_window=5,
)
EXPERTS = dataclasses.replace(
    MODEL,
    layer_pattern="g",
    sliding_window=None,
    mlp_dim=8,
    num_experts=8,
    num_experts_per_token=3,
    balance_loss=0.05,
    router_z_loss=0.01,
)
ONE = {"data": 1, "fsdp": 1, "tensor": 1}


def batch(step: int) -> dict[str, np.ndarray]:
    """Random tokens in random documents, with very uneven weights."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, V, (B, T + 1)).astype(np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": (rng.random((B, T)) < rng.random((B, 1))).astype(np.float32),
        "segments": (np.cumsum(rng.random((B, T)) < 0.1, axis=1) + 1).astype(np.int32),
        "positions": np.tile(np.arange(T, dtype=np.int32), (B, 1)),
        "fingerprint": rng.integers(0, 2**32, B, dtype=np.uint32),
    }


def make(
    sizes=ONE,
    num_microbatches=1,
    model=MODEL,
    optimizer="adamw",
    loss_wrapper=lambda loss: loss,
    tuning=EVERYTHING,
    sequence_attention="gather",
    **train,
):
    """(compiled steps, mesh) of the tiny run."""
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    lm = build(
        model,
        T,
        constrain=make_constrain(mesh),
        spread=make_spread(mesh, sequence_attention=sequence_attention),
        lora_dropout=tuning.config.lora_dropout,
    )
    opt = OptimizerConfig(name=optimizer, learning_rate=1e-3, warmup_steps=2)
    config = TrainConfig(num_steps=10, num_microbatches=num_microbatches, z_loss=1e-4, **train)
    loss = loss_wrapper(OBJECTIVES["pretrain"].make_loss(lm, z_loss=1e-4, chunk_tokens=64))
    tx, rows = make_optimizer(opt), batch_sharding(mesh)

    def constrain_batch(part):
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, rows), part)

    step = make_train_step(
        loss,
        tx,
        make_schedule(opt, 10),
        config,
        clip_norm=1.0,
        dropout_seed=0 if model.dropout or tuning.config.lora_dropout else None,
        constrain_batch=constrain_batch,
        tuning=tuning,
    )
    evaluate = make_eval_step(loss, tuning)
    steps = compile_steps(lm, tx, step, evaluate, mesh, tuning=tuning)
    if tuning.freezes:
        steps = steps.bind(jax.device_put(tuning.split(first_params(model))[1], steps.frozen_shardings))
    return steps, mesh


@functools.cache
def first_params(model: ModelConfig) -> Params:
    """On the host: one compilation for all meshes, which test_parallelism.py says begin with the same."""
    return jax.device_get(jax.jit(build(model, T).init)(jax.random.key(0)))


@functools.cache
def _first_state(**kwargs) -> TrainState:
    steps, _ = make(**kwargs)
    return jax.device_get(steps.init(jax.random.key(0)))


def begin(**kwargs) -> tuple[Steps, Mesh, TrainState]:
    """`make`, and the state that its `steps.init` would give for seed 0, which is compiled once for all meshes."""
    steps, mesh = make(**kwargs)
    decide = {key: kwargs[key] for key in ("model", "optimizer", "tuning") if key in kwargs}
    return steps, mesh, jax.device_put(_first_state(**decide), steps.shardings)


def losses(num_steps: int, **kwargs) -> np.ndarray:
    """Losses of the first steps."""
    steps, mesh, state = begin(**kwargs)
    found = []
    for i in range(num_steps):
        state, metrics = steps.train(state, place_batch(batch(i), mesh, B))
        found.append(float(metrics["loss"]))
    return np.array(found)
