"""Promise of the memory estimate: what the compiler allots for the real train step, within 12 %.

The step is the one a run would take (`run.build_pieces`), on eight fake devices; it is compiled, never run. Shapes are
large enough that tensors, not constants, decide: a device holds 30 MB to 3 GB.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import compiled_memory
import jax
import jax.numpy as jnp
import pytest
from slow import slow

from jaxlm import run
from jaxlm.data.config import DataConfig
from jaxlm.models.config import ModelConfig
from jaxlm.parallel.config import MeshConfig
from jaxlm.parallel.xla_options import ORDER_FOR_MEMORY, jaxlib_version
from jaxlm.plan import memory
from jaxlm.runconfig import RunConfig
from jaxlm.train.config import OptimizerConfig, TrainConfig, TuneConfig

GPT: dict[str, Any] = dict(activation="gelu_tanh", norm="layernorm", bias="all", positions="learned")
LLAMA: dict[str, Any] = dict(activation="swiglu", norm="rmsnorm", tie_embeddings=False)
GEMMA: dict[str, Any] = dict(
    activation="geglu", norm="rmsnorm_plus_one", post_norm=True, layer_pattern="lg", sliding_window=256,
    attention_softcap=50.0, logits_softcap=30.0, num_kv_heads=4,
)  # fmt: skip
QWEN: dict[str, Any] = dict(activation="swiglu", norm="rmsnorm", qk_norm=True, num_kv_heads=2, head_dim=64)

MOE: dict[str, Any] = LLAMA | dict(num_experts=8, num_experts_per_token=2, mlp_dim=512)

WITHIN_A_TENTH = (
    "llama-none-replicated", "llama-attention-lion-replicated", "llama-dots-replicated",
    "llama-none-muon-2-parts-fsdp8", "qwen-none-data2-fsdp2-tensor2", "gpt-none-unrolled-fsdp8",
    "llama-none-dense-unrolled-fsdp8",
)  # fmt: skip
"""Configs that are nearer than the 12 % of all: replicated and split, three optimizers, three kinds of remat."""

LESS_IN_LATER_JAX = ("gemma-full-fsdp4-tensor2", "llama-none-dense-softcap-fsdp8")
"""XLA:CPU of jax 0.10 recomputes all layers of a period at once; that of 0.12 one after the other, as it should: 276 MB
where 403 are planned. Of soft-capped tables it keeps less: 1,715 MB where 1,965 are planned. The plan is for 0.10."""

WIDE = dict(embed_dim=512, num_layers=6, num_heads=8, vocab_size=8192)
SLIM = dict(embed_dim=256, num_layers=8, num_heads=4, vocab_size=8192)
LARGE_VOCABULARY = dict(vocab_size=65536)
"""So large that logits and tables decide."""


def make_config(
    model: dict[str, Any],
    mesh: dict[str, int],
    rows: int,
    seq_len: int,
    optimizer: str,
    train: dict[str, int],
) -> RunConfig:
    """rows: sequences on one device."""
    sizes = MeshConfig(**mesh)
    return dataclasses.replace(
        RunConfig(),
        model=ModelConfig(**model),
        data=DataConfig(seq_len=seq_len, global_batch_size=rows * 8 // sizes.tensor),
        mesh=sizes,
        optimizer=OptimizerConfig(name=optimizer),
        train=TrainConfig(**train),
    )


@pytest.fixture(scope="module")
def process():
    with compiled_memory.process() as process:
        yield process


@pytest.fixture
def compiled_bytes(process):
    return lambda cfg: process.submit(compiled_memory.compiled_bytes, cfg).result()


def six_branches(x, *ws):
    return sum((jnp.sin(x @ w) @ x).sum() for w in ws)


def test_operations_are_ordered_for_memory(process):
    """One branch after the other: two tables are there at most, not those of all six (but in jax 0.12)."""
    shapes = [(256, 256)] * 7
    ask = functools.partial(process.submit, compiled_memory.temporary_bytes, six_branches)
    ours, default = ask(ORDER_FOR_MEMORY, *shapes).result(), ask({}, *shapes).result()
    assert ours < 3 * 256 * 256 * 4
    assert ours < default / 2 or jaxlib_version() >= (0, 12)


# Not slow are three models, on three meshes; and what decides: blocks, or the vocabulary.
@pytest.mark.parametrize(
    ("model", "mesh", "rows", "seq_len", "optimizer", "train"),
    [
        slow(LLAMA | WIDE, {"data": 8, "fsdp": 1}, 8, 512, "adamw", {},
             id="llama-none-replicated"),
        slow(GPT | SLIM | {"scan_layers": False}, {}, 8, 512, "adamw", {},
             id="gpt-none-unrolled-fsdp8"),
        slow(LLAMA | WIDE | {"remat": "save_attention"}, {"data": 8, "fsdp": 1}, 8, 512, "lion", {},
             id="llama-attention-lion-replicated"),
        slow(LLAMA | WIDE | {"remat": "full", "attention": "dense"}, {"fsdp": 4, "tensor": 2}, 4, 1024,
             "adamw", {}, id="llama-full-dense-fsdp4-tensor2"),
        slow(GPT | SLIM | {"remat": "full", "vocab_size": 50257}, {"data": 8, "fsdp": 1}, 8, 512, "adafactor",
             {"loss_chunk_tokens": 256}, id="gpt-full-vocabulary-adafactor-replicated"),
        slow(LLAMA | SLIM, {}, 8, 512, "muon", {"num_microbatches": 2},
             id="llama-none-muon-2-parts-fsdp8"),
        slow(GPT | WIDE | {"remat": "full"}, {}, 16, 256, "adamw", {"num_microbatches": 4},
             id="gpt-full-4-parts-fsdp8"),
        slow(GEMMA | WIDE | {"remat": "full"}, {"fsdp": 4, "tensor": 2}, 8, 512, "adamw", {},
             id="gemma-full-fsdp4-tensor2"),
        pytest.param(QWEN | SLIM, {"data": 2, "fsdp": 2, "tensor": 2}, 8, 512, "adamw", {},
                     id="qwen-none-data2-fsdp2-tensor2"),
        slow(LLAMA | SLIM | {"remat": "full", "scan_layers": False}, {}, 8, 512, "adamw", {},
             id="llama-full-unrolled-fsdp8"),
        slow(LLAMA | WIDE | {"remat": "save_dots"}, {"data": 8, "fsdp": 1}, 8, 512, "adamw", {},
             id="llama-dots-replicated"),
        pytest.param(LLAMA | SLIM | {"remat": "full"} | LARGE_VOCABULARY, {}, 4, 512, "adamw", {},
                     id="llama-full-large-vocabulary-fsdp8"),
        slow(LLAMA | SLIM | LARGE_VOCABULARY | {"tie_embeddings": True}, {}, 4, 512, "adamw",
             {"loss_chunk_tokens": 256}, id="llama-none-large-vocabulary-tied-fsdp8"),
        slow(LLAMA | SLIM | {"remat": "full"} | LARGE_VOCABULARY, {"data": 8, "fsdp": 1}, 4, 512, "adamw",
             {}, id="llama-full-large-vocabulary-replicated"),
        slow(LLAMA | SLIM | {"remat": "full", "tie_embeddings": True} | LARGE_VOCABULARY,
             {"data": 8, "fsdp": 1}, 4, 512, "adamw", {},
             id="llama-full-large-vocabulary-tied-replicated"),
        slow(MOE | SLIM | {"remat": "full"}, {"fsdp": 4, "expert": 2}, 8, 512, "adamw", {},
             id="moe-full-fsdp4-expert2"),
        slow(LLAMA | SLIM | {"attention": "dense", "scan_layers": False}, {}, 8, 512, "adamw", {},
             id="llama-none-dense-unrolled-fsdp8"),
        slow(LLAMA | SLIM | {"attention": "dense", "attention_softcap": 50.0}, {}, 8, 512, "adamw", {},
             id="llama-none-dense-softcap-fsdp8"),
        slow(MOE | SLIM | {"scan_layers": False}, {}, 8, 512, "adamw", {}, id="moe-none-unrolled-fsdp8"),
        slow(MOE | SLIM, {"fsdp": 1, "expert": 8}, 8, 512, "adamw", {"num_microbatches": 2},
             id="moe-none-expert8-2-parts"),
    ],
)  # fmt: skip
def test_the_estimate_is_what_the_compiler_allots(
    request, compiled_bytes, model, mesh, rows, seq_len, optimizer, train
):  # pain 23
    cfg = make_config(model, mesh, rows, seq_len, optimizer, train)
    estimate = memory.predict(cfg, run.resolve_mesh(cfg, 8), 8, platform="cpu")
    compiled = compiled_bytes(cfg)
    case = request.node.callspec.id
    if case in LESS_IN_LATER_JAX and estimate.total > 1.12 * compiled:
        assert jax.__version_info__ >= (0, 11)
        return
    assert estimate.total == pytest.approx(compiled, rel=0.10 if case in WITHIN_A_TENTH else 0.12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "tune",
    [{"train": "lora"}, {"train": "last_blocks", "num_blocks": 2}, {"train": "lora", "quantize": "int8"}],
)
def test_what_is_frozen_has_no_gradients_and_no_moments(compiled_bytes, tune):
    cfg = make_config(LLAMA | WIDE, {"data": 8, "fsdp": 1}, 4, 256, "adamw", {})
    whole, cfg = compiled_bytes(cfg), dataclasses.replace(cfg, tune=TuneConfig(**tune))
    estimate = memory.predict(cfg, run.resolve_mesh(cfg, 8), 8, platform="cpu")
    compiled = compiled_bytes(cfg)
    assert compiled < 0.62 * whole
    # Blocks keep a little less than is counted, since frozen matrices do not need their inputs again.
    assert 0.9 < estimate.total / compiled < 1.2


@pytest.mark.slow
def test_recomputing_in_bfloat16_is_estimated_on_the_safe_side(compiled_bytes):
    """XLA:CPU keeps some of the intermediates in bfloat16 and others in float32; all are counted as float32."""
    cfg = make_config(GPT | WIDE | {"dtype": "bfloat16", "remat": "full"}, {}, 8, 512, "adamw", {})
    estimate = memory.predict(cfg, run.resolve_mesh(cfg, 8), 8, platform="cpu")
    assert 1.0 < estimate.total / compiled_bytes(cfg) < 1.3
