"""FLOPs of fine-tuning count what is computed: no gradients of what is frozen."""

import jax
import jax.numpy as jnp
import pytest

from jaxlm import run
from jaxlm.models import sizes
from jaxlm.plan.flops import flops_per_token, matmul_params
from jaxlm.plan.tuning import tuned_flops_per_token
from jaxlm.run_weights import abstract_params
from jaxlm.train.config import TuneConfig

T = 64


def counted(tune):
    """(as planned, as XLA counts them) FLOPs of one gradient of a row; with all of the attention's table."""
    cfg = run.default_config()
    sizes.apply(cfg.model, "smollm2-135m")
    cfg.model.num_layers, cfg.model.vocab_size = 4, 512
    cfg.model.scan_layers, cfg.model.attention = False, "dense"  # XLA counts the body of a loop once
    cfg.objective, cfg.tokenizer.path = "instruct", "unused.model"
    cfg.data.sources.mine = dict(path="unused.jsonl")
    cfg.data.seq_len, cfg.data.global_batch_size = T, 8
    cfg.tune.update(tune)
    cfg = run.resolve(cfg)
    pieces = run.build_pieces(cfg)
    trained, frozen = abstract_params(pieces.lm, pieces.tuning, pieces.mesh)
    one = {
        name: jax.ShapeDtypeStruct((8, T), jnp.int32)
        for name in ("tokens", "targets", "segments", "positions")
    }

    def loss(trained, frozen, batch):
        params = pieces.tuning.merge(trained, frozen)
        return jnp.sum(pieces.lm.head(params, pieces.lm.hidden(params, batch)))

    found = jax.jit(jax.grad(loss)).lower(trained, frozen, one).compile().cost_analysis()["flops"]
    return tuned_flops_per_token(cfg.model, T, cfg.tune, causal_halved=False).total * T, found


@pytest.mark.parametrize(
    "tune",
    [{}, {"train": "lora", "lora_rank": 4}, {"train": "last_blocks", "num_blocks": 1}],
    ids=["all", "lora", "last_blocks"],
)
def test_planned_flops_are_what_the_compiler_counts(tune):
    planned, found = counted(tune)
    assert planned == pytest.approx(found, rel=0.08)


def test_a_frozen_model_under_a_trained_head_only_goes_forward():
    classifier = sizes.size("smollm2-135m").__class__(
        **{**vars(sizes.size("smollm2-135m")), "num_classes": 2}
    )
    forward = flops_per_token(classifier, T, backward=False)
    assert tuned_flops_per_token(classifier, T, TuneConfig(train="head")).total == forward.total


def test_lora_leaves_out_a_third_of_the_products():
    llama = sizes.size("llama3.1-8b")
    tuned = tuned_flops_per_token(llama, T, TuneConfig(train="lora", lora_rank=1))
    assert tuned.weights == pytest.approx(4 * matmul_params(llama), rel=1e-3)
    assert tuned.attention == flops_per_token(llama, T).attention
