"""The memory estimate: exact for what outlives a step, near the compiler for what lives inside one."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import pytest

from jaxlm import run
from jaxlm.data.config import DataConfig
from jaxlm.models import sizes
from jaxlm.models.build import build
from jaxlm.objectives import chunked_loss
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import PARAMS
from jaxlm.plan import memory
from jaxlm.train.config import OPTIMIZERS, OptimizerConfig, TrainConfig
from jaxlm.train.optimizer import make_optimizer
from jaxlm.train.step import init_state, state_shardings
from jaxlm.types import UserError

MESHES = [
    {"data": 1, "fsdp": 1, "tensor": 1},
    {"data": 1, "fsdp": 8, "tensor": 1},
    {"data": 2, "fsdp": 2, "tensor": 2},
]


def make_run(model, *, optimizer="adamw", batch_size=8, seq_len=64, **train):
    return SimpleNamespace(
        model=model,
        data=DataConfig(seq_len=seq_len, global_batch_size=batch_size),
        optimizer=OptimizerConfig(name=optimizer),
        train=TrainConfig(**train),
    )


def predict(run, mesh, **kwargs):
    return memory.predict(run, mesh, math.prod(mesh.values()), **kwargs)


def test_rules_are_those_of_sharding():
    assert memory.PARAM_AXES == PARAMS


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_state_is_what_the_shardings_put_on_a_device(optimizer, mesh):
    """Weights and optimizer state, byte for byte; widths of 128 so that Adafactor factors some weights."""
    model = dataclasses.replace(sizes.size("tiny-qwen2"), embed_dim=128, head_dim=32, mlp_dim=256)
    lm = build(model, seq_len=64)
    tx = make_optimizer(OptimizerConfig(name=optimizer))
    devices = jax.devices()[: math.prod(mesh.values())]
    shardings = state_shardings(lm, tx, make_mesh(mesh, devices))
    shapes = jax.eval_shape(lambda key: init_state(lm, tx, key), jax.random.key(0))

    def device_bytes(tree, where):
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(where), strict=True)
        return sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in pairs)

    estimate = predict(make_run(model, optimizer=optimizer), mesh)
    assert estimate.parameters == device_bytes(shapes.params, shardings.params)
    counters = 64  # step counts: a few int32 scalars
    actual = device_bytes(shapes.opt_state, shardings.opt_state)
    assert actual - counters <= estimate.optimizer <= actual


def test_each_policy_keeps_less_than_the_one_before():
    model = dataclasses.replace(sizes.size("llama3-8b"), dtype="bfloat16")
    kept = [
        predict(make_run(dataclasses.replace(model, remat=remat), seq_len=2048), MESHES[1]).activations
        for remat in ("none", "dots", "attention", "full")
    ]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 4


def test_what_divides_what():
    """Llama 3 8B on 8 chips: fsdp splits weights and rows, data only rows, microbatches only activations."""
    model = dataclasses.replace(sizes.size("llama3-8b"), dtype="bfloat16", remat="full")
    whole = make_run(model, batch_size=64, seq_len=4096)
    one = predict(whole, {"data": 1, "fsdp": 1, "tensor": 1})
    fsdp = predict(whole, {"data": 1, "fsdp": 8, "tensor": 1})
    data = predict(whole, {"data": 8, "fsdp": 1, "tensor": 1})
    assert one.parameters == 4 * sizes.published_params("llama3-8b") == 8 * fsdp.parameters == data.parameters
    assert one.optimizer == 2 * one.parameters
    assert one.activations == 8 * fsdp.activations == 8 * data.activations
    split = predict(make_run(model, batch_size=64, seq_len=4096, num_microbatches=8), MESHES[1])
    assert 8 * split.activations == fsdp.activations
    assert split.gradients == 2 * fsdp.gradients  # the running sum beside the part that is added
    assert split.parameters == fsdp.parameters
    assert fsdp.total == sum(fsdp)


def at_loss(run, mesh, platform="tpu"):
    return memory.moments(run, mesh, math.prod(mesh.values()), platform=platform)["loss"]


def test_logits_are_held_for_one_chunk_only():
    model = sizes.size("llama3-8b")
    few = at_loss(make_run(model, seq_len=4096, loss_chunk_tokens=512), MESHES[0])
    many = at_loss(make_run(model, seq_len=4096, loss_chunk_tokens=1024), MESHES[0])
    assert few.logits == 2 * 4 * 512 * 128256
    assert many.logits == 2 * few.logits
    halved = at_loss(
        make_run(model, seq_len=4096, loss_chunk_tokens=512), {"data": 1, "fsdp": 1, "tensor": 2}
    )
    assert halved.logits * 2 == few.logits


def test_chunks_are_those_of_the_loss():
    for rows, seq_len, chunk_tokens in ((8, 512, 1024), (8, 510, 1024), (3, 96, 100), (4, 7, 1)):
        num, tokens = memory.logit_chunks(rows, seq_len, chunk_tokens)
        assert num == chunked_loss.num_chunks(seq_len, rows, chunk_tokens)
        assert num * tokens == rows * seq_len


def test_the_larger_moment_is_the_estimate():
    """A large vocabulary in large chunks peaks in the loss, a small one in the blocks; a part not alive is 0."""
    big = make_run(sizes.size("llama3-8b"), seq_len=1024, loss_chunk_tokens=8192)
    small = make_run(dataclasses.replace(sizes.size("llama3-8b"), vocab_size=256), seq_len=1024)
    for made, moment in ((big, "loss"), (small, "blocks")):
        made = SimpleNamespace(
            **{**vars(made), "model": dataclasses.replace(made.model, remat="full", attention="chunked")}
        )
        found = memory.moments(made, MESHES[0], 1)
        assert predict(made, MESHES[0]) == found[moment]
        assert found[moment].total == max(estimate.total for estimate in found.values())
    assert memory.moments(big, MESHES[0], 1)["blocks"].logits == 0


def test_minus_one_takes_the_devices_that_are_left():
    mesh = {"data": 2, "fsdp": -1, "tensor": 4}
    assert memory.resolve_mesh(mesh, 64) == {"data": 2, "fsdp": 8, "tensor": 4}
    with pytest.raises(UserError, match="does not fill 60 devices"):
        memory.resolve_mesh(mesh, 60)
    with pytest.raises(UserError, match="does not fill 8 devices"):
        memory.resolve_mesh({"data": 2, "fsdp": 2, "tensor": 1}, 8)


@pytest.mark.parametrize(
    ("config", "num_devices", "hbm_bytes"),
    [("pretrain_gpt2_124m_v5e8", 8, 16e9), ("pretrain_llama2_7b_v5e256", 256, 16e9)],
)
def test_configs_fit_the_chips_in_their_names(config, num_devices, hbm_bytes):
    cfg = run.resolve(run.parse([f"--config={config}"]))
    estimate = memory.predict(cfg, run.resolve_mesh(cfg, num_devices), num_devices)
    assert estimate.total < 0.9 * hbm_bytes


def test_tokenizer_fills_in_the_vocabulary():
    model = dataclasses.replace(sizes.size("tiny-llama"), vocab_size=None)
    unknown = make_run(model)
    with pytest.raises(UserError, match=r"model\.vocab_size"):
        predict(unknown, MESHES[0])
    known = make_run(dataclasses.replace(model, vocab_size=256))
    assert memory.predict(unknown, MESHES[0], 1, 256) == predict(known, MESHES[0])
