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
from jaxlm.train.config import OPTIMIZERS, OptimizerConfig, TrainConfig, TuneConfig
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
        tune=TuneConfig(),
        model=model,
        data=DataConfig(seq_len=seq_len, global_batch_size=batch_size),
        optimizer=OptimizerConfig(name=optimizer),
        train=TrainConfig(**train),
    )


def predict(run, mesh, **kwargs):
    return memory.predict(run, mesh, math.prod(mesh.values()), **kwargs)


def at(run, mesh, moment, platform="tpu"):
    return memory.moments(run, mesh, math.prod(mesh.values()), platform=platform)[moment]


def at_loss(run, mesh, platform="tpu"):
    return at(run, mesh, "loss", platform)


def test_rules_are_those_of_sharding():
    assert memory.PARAM_AXES == PARAMS


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_state_is_what_the_shardings_put_on_a_device(optimizer, mesh):
    """Weights and optimizer state, byte for byte; widths of 128 so that Adafactor factors some weights."""
    state_is_exact(
        dataclasses.replace(sizes.size("tiny-qwen2"), embed_dim=128, head_dim=32, mlp_dim=256),
        optimizer,
        mesh,
    )


def state_is_exact(model, optimizer, mesh):
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


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_state_of_experts_is_what_the_shardings_put_on_a_device(optimizer):
    model, mesh = sizes.size("tiny-mixtral"), {"data": 1, "fsdp": 2, "expert": 2, "tensor": 2}
    state_is_exact(model, optimizer, mesh)


def test_each_policy_keeps_less_than_the_one_before():
    model = dataclasses.replace(sizes.size("llama3-8b"), dtype="bfloat16")
    kept = [
        at(make_run(dataclasses.replace(model, remat=remat), seq_len=2048), MESHES[1], "blocks").activations
        for remat in ("none", "minimal", "save_dots", "save_attention", "full")
    ]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 5


def test_what_divides_what():
    """Llama 3 8B on 8 chips: fsdp splits weights and rows, data only rows, microbatches only activations."""
    model = dataclasses.replace(sizes.size("llama3-8b"), dtype="bfloat16", remat="full")
    whole = make_run(model, batch_size=64, seq_len=4096)
    one = at(whole, {"data": 1, "fsdp": 1, "tensor": 1}, "blocks")
    fsdp = at(whole, {"data": 1, "fsdp": 8, "tensor": 1}, "blocks")
    data = at(whole, {"data": 8, "fsdp": 1, "tensor": 1}, "blocks")
    assert one.parameters == 4 * sizes.published_params("llama3-8b") == data.parameters
    assert 8 * fsdp.parameters == pytest.approx(one.parameters, rel=1e-3)  # norms are whole on every device
    assert one.optimizer == 2 * one.parameters
    assert one.activations == 8 * fsdp.activations == 8 * data.activations
    split = at(make_run(model, batch_size=64, seq_len=4096, num_microbatches=8), MESHES[1], "blocks")
    assert 8 * split.activations == fsdp.activations
    assert split.gradients == 2 * fsdp.gradients  # the running sum beside the part that is added
    assert split.parameters == fsdp.parameters
    assert fsdp.total == sum(fsdp)


@pytest.mark.parametrize("platform", ["tpu", "cpu"])
def test_logits_are_held_for_one_chunk_only(platform):
    def logits(num_tokens, mesh=MESHES[0]):
        made = make_run(sizes.size("llama3-8b"), seq_len=4096, loss_chunk_tokens=num_tokens)
        return at_loss(made, mesh, platform).logits

    num_alive = 2 if platform == "cpu" else 1  # beside their gradient
    assert logits(512) == num_alive * 4 * 512 * 128256
    assert logits(1024) == 2 * logits(512)
    assert 2 * logits(512, {"data": 1, "fsdp": 1, "tensor": 2}) == logits(512)


def test_a_narrow_shard_of_a_tied_table_is_copied_with_its_moments():
    """640 / 8 is no multiple of 128 lanes, 2048 / 8 is; AdamW has one moment more than Lion."""

    def workspace(name, optimizer):
        return at_loss(make_run(sizes.size(name), seq_len=512, optimizer=optimizer), MESHES[1]).workspace

    one_copy = workspace("gemma3-270m", "adamw") - workspace("gemma3-270m", "lion")
    assert one_copy == pytest.approx((1 + memory.KERNEL_GAPS) * 4 * 262_144 * 128, rel=1e-6)
    assert workspace("llama3.2-1b", "adamw") == workspace("llama3.2-1b", "lion")


def test_the_running_sum_of_gradients_is_alive_in_the_loss():
    whole, parts = (
        at_loss(make_run(sizes.size("llama3-8b"), batch_size=16, num_microbatches=num), MESHES[1])
        for num in (1, 2)
    )
    assert parts.gradients == whole.gradients + parts.parameters


def test_chunks_are_those_of_the_loss():
    for rows, seq_len, chunk_tokens in ((8, 512, 1024), (8, 510, 1024), (3, 96, 100), (4, 7, 1)):
        num, tokens = memory.logit_chunks(rows, seq_len, chunk_tokens)
        assert num == chunked_loss.num_chunks(seq_len, rows, chunk_tokens)
        assert num * tokens == rows * seq_len


@pytest.mark.parametrize("platform", ["tpu", "cpu"])
def test_the_larger_moment_is_the_estimate(platform):
    """A large vocabulary peaks in the loss, a small one in the blocks; a part not alive is 0."""
    mesh = {"data": 1, "fsdp": 64, "tensor": 1}
    for vocab_size, moment, other in ((2_000_000, "loss", "blocks"), (256, "blocks", "loss")):
        model = dataclasses.replace(
            sizes.size("llama3-8b"), vocab_size=vocab_size, remat="full", attention="chunked"
        )
        made = make_run(model, batch_size=64, seq_len=1024, loss_chunk_tokens=8192)
        found = memory.moments(made, mesh, 64, platform=platform)
        assert predict(made, mesh, platform=platform) == found[moment]
        assert found[moment].total > found[other].total
        assert found["blocks"].logits == 0 < found["loss"].logits


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


GIB = 2**30
COMPILED = [
    # model, mesh, rows, seq_len, remat, other settings, GiB that libtpu 0.0.42.1 allots (v5e, v5p, v6e; 2026-11-24).
    ("gpt3-125m", {}, 16, 1024, "full", {}, 3.82),
    ("gpt3-125m", {}, 72, 1024, "full", {}, 9.41),
    ("gpt3-125m", {}, 16, 1024, "full", {"dtype": "float32"}, 4.47),
    ("gpt3-125m", {}, 64, 1024, "full", {"num_microbatches": 4}, 4.22),
    ("gpt3-125m", {}, 16, 1024, "full", {"attention": "chunked"}, 3.28),
    ("gpt3-125m", {}, 4, 1024, "none", {"scan_layers": False}, 5.02),
    ("gpt3-125m", {}, 16, 1024, "full", {"scan_layers": False}, 7.05),
    ("gpt3-125m", {}, 16, 1024, "save_dots", {}, 6.12),
    ("gpt3-125m", {}, 4, 1024, "none", {}, 7.02),
    ("gpt3-125m", {}, 16, 1024, "full", {"optimizer": "lion"}, 3.35),
    ("llama3.2-1b", {"fsdp": 8}, 16, 2048, "full", {}, 4.94),
    ("llama3.2-1b", {"fsdp": 8}, 16, 2048, "save_dots", {}, 7.46),
    ("llama3.2-1b", {"fsdp": 8}, 8, 1024, "none", {}, 8.89),
    ("llama3.2-1b", {"fsdp": 4, "tensor": 2}, 16, 2048, "save_attention", {"num_microbatches": 2}, 4.60),
    ("llama3.2-1b", {"tensor": 8}, 8, 2048, "full", {}, 4.62),
    ("llama3.2-1b", {"data": 2, "fsdp": 4}, 16, 1024, "full", {}, 7.18),
    ("llama3.2-1b", {"fsdp": 8}, 16, 2048, "full", {"optimizer": "muon"}, 5.00),
    ("llama3.2-1b", {"fsdp": 8}, 16, 2048, "full", {"optimizer": "adafactor"}, 3.88),
    ("llama3.2-1b", {"fsdp": 8}, 8, 256, "full", {}, 3.75),
    ("qwen2.5-0.5b", {"fsdp": 8}, 32, 2048, "full", {}, 3.43),
    ("qwen3-0.6b", {"fsdp": 8}, 8, 1024, "none", {}, 7.54),
    ("gemma3-270m", {"fsdp": 8}, 32, 2048, "full", {}, 3.09),
    ("gemma3-1b", {"fsdp": 8}, 16, 2048, "full", {}, 6.08),
    ("gemma3-1b", {"fsdp": 8}, 8, 1024, "none", {}, 8.29),
    ("gemma2-2b", {"fsdp": 16}, 32, 2048, "full", {}, 8.06),
    ("llama2-7b", {"fsdp": 256}, 1024, 4096, "full", {"num_microbatches": 4}, 5.93),
    ("llama3-8b", {"fsdp": 64}, 64, 4096, "full", {}, 7.99),
    ("gpt2-124m", {"data": 8}, 480, 1024, "save_dots", {"num_microbatches": 5}, 5.63),
    ("gpt3-13b", {"fsdp": 64}, 64, 2048, "save_attention", {}, 6.64),
    ("qwen2.5-7b", {"fsdp": 32, "tensor": 2}, 128, 2048, "save_dots", {"num_microbatches": 2}, 9.74),
    ("gemma3-4b", {"fsdp": 16}, 32, 2048, "full", {}, 12.68),
    ("llama2-7b", {"fsdp": 64}, 64, 2048, "full", {"optimizer": "muon"}, 10.50),
    ("qwen3-0.6b", {"fsdp": 8}, 32, 1024, "full", {"optimizer": "muon"}, 2.88),
    ("qwen3-4b", {"data": 2, "fsdp": 16, "tensor": 2}, 64, 4096, "save_attention", {"num_microbatches": 2}, 5.86),
]  # fmt: skip


def on_mesh(data=1, fsdp=1, tensor=1):
    return {"data": data, "fsdp": fsdp, "tensor": tensor}


@pytest.mark.parametrize(("name", "mesh", "rows", "seq_len", "remat", "settings", "gib"), COMPILED)
def test_the_estimate_for_tpus_is_what_their_compiler_allotted(
    name, mesh, rows, seq_len, remat, settings, gib
):
    """Golden values, for machines without libtpu; test_memory_tpu.py renews some of them."""
    of_model = {"dtype": "bfloat16", "remat": remat, "attention": "dense"} | {
        key: settings[key] for key in ("dtype", "scan_layers", "attention") if key in settings
    }
    others = {key: value for key, value in settings.items() if key not in of_model}
    model = dataclasses.replace(sizes.size(name), **of_model)
    made = make_run(model, batch_size=rows, seq_len=seq_len, **others)
    assert predict(made, on_mesh(**mesh)).total / GIB == pytest.approx(gib, rel=0.12)


def test_the_heads_gradient_is_whole_before_that_of_the_blocks_and_the_lookups_behind_it():
    """Llama 3 8B: in float32, and as it is sent. While blocks are at work neither is there."""
    model = dataclasses.replace(sizes.size("llama3-8b"), dtype="bfloat16", remat="full")
    whole, gap = 128_256 * 4096, 1 + memory.KERNEL_GAPS

    def workspace(moment, reduce_dtype="float32", tied=False):
        made = make_run(dataclasses.replace(model, tie_embeddings=tied), reduce_dtype=reduce_dtype)
        return at(made, MESHES[1], moment).workspace

    own, tied = workspace("blocks"), workspace("blocks", tied=True)
    gaps = (gap - 1) * 4 * whole / 8  # of another eighth of a gradient
    assert own - tied == pytest.approx(gaps, rel=1e-3)
    # Sent as it is, but turned; or turned and, before that, converted.
    head, narrow = workspace("head gradient"), workspace("head gradient", "bfloat16")
    assert head == pytest.approx(narrow, rel=1e-6)
    assert head - workspace("blocks") == pytest.approx(gap * 4 * whole * 2, rel=0.25)
    wide, narrow = workspace("embedding gradient"), workspace("embedding gradient", "bfloat16")
    # Turned, and in float32 cut up anew; of a device's eighth of both tables copies, with two moments each.
    assert wide == pytest.approx(gap * 4 * whole * (3 + 2 * 3 / 8), rel=1e-2)
    assert wide - narrow == pytest.approx(gap * 6 * whole, rel=1e-6)
    for moment in "head gradient", "embedding gradient":
        assert moment not in memory.moments(make_run(model), MESHES[0], 1)  # nothing is gathered


def test_a_frozen_head_has_no_gradient():
    model = dataclasses.replace(sizes.size("llama3-8b"), dtype="bfloat16", remat="full")
    made, lora = make_run(model), make_run(model)
    lora.tune = TuneConfig(train="lora")
    assert "embedding gradient" not in memory.moments(lora, MESHES[1], 8)
    whole = 128_256 * 4096
    less = at_loss(made, MESHES[1]).workspace - at_loss(lora, MESHES[1]).workspace
    assert less > 4 * whole


def test_a_turn_of_a_loop_over_several_layers_works_on_two_of_them():
    """Gemma 3: five local layers and a global one a turn; two of 62 are left over, and gone when the loop begins."""
    model = dataclasses.replace(sizes.size("gemma3-27b"), dtype="bfloat16", remat="full")
    six = memory.moments(make_run(model, seq_len=1024), MESHES[1], 8)
    one = memory.moments(make_run(dataclasses.replace(model, layer_pattern="l"), seq_len=1024), MESHES[1], 8)
    tokens, D, F, q, kv = 1024, 5376, 21504, 4096, 4096
    at_work = 2 * tokens * (4 * F + 2 * D + 2 * q + kv)
    more = six["blocks"].workspace - one["blocks"].workspace
    assert more == pytest.approx((1 + memory.KERNEL_GAPS) * at_work, rel=1e-3)
    assert six["blocks"].activations == 60 * 2 * tokens * D
    assert "loose blocks" in six
    assert "loose blocks" not in one


def test_tokenizer_fills_in_the_vocabulary():
    model = dataclasses.replace(sizes.size("tiny-llama"), vocab_size=None)
    unknown = make_run(model)
    with pytest.raises(UserError, match=r"model\.vocab_size"):
        predict(unknown, MESHES[0])
    known = make_run(dataclasses.replace(model, vocab_size=256))
    assert memory.predict(unknown, MESHES[0], 1, 256) == predict(known, MESHES[0])
