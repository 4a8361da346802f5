"""The scaling ladder: shapes, learning rates, steps."""

import math

import pytest

from jaxlm.models import sizes
from jaxlm.models.config import ModelConfig
from jaxlm.plan.flops import count_params
from jaxlm.plan.ladder import Base, make_ladder, shape
from jaxlm.plan.scaling_points import why_not
from jaxlm.train.config import OptimizerConfig
from jaxlm.types import UserError

MODEL = ModelConfig(vocab_size=4096, embed_dim=256, num_heads=8, num_kv_heads=4, mlp_dim=512)


def base_of(model=MODEL, **changes):
    options = {
        "optimizer": OptimizerConfig(learning_rate=2e-3, warmup_steps=50),
        "batch_size": 8,
        "seq_len": 64,
    }
    return Base(argv=("--config=x",), model=model, num_steps=500, **(options | changes))


@pytest.mark.parametrize("wanted", [4e7, 1e9, 3e10])
@pytest.mark.parametrize("name", ["mine", "llama3-8b", "gpt3-125m"])
def test_a_shape_is_near_its_size_and_keeps_the_proportions(wanted, name):
    model = MODEL if name == "mine" else sizes.size(name)
    made = shape(model, wanted, 2048)
    assert abs(math.log(count_params(made, 2048).total / wanted)) < math.log(1.3)
    assert made.head_width == 64
    assert made.num_layers == 2 or 64 <= made.embed_dim / made.num_layers <= 128
    assert made.num_heads % made.kv_heads == 0
    if name == "mine":
        assert made.mlp_width == 2 * made.embed_dim
    assert (made.activation, made.norm, made.vocab_size) == (model.activation, model.norm, model.vocab_size)


def test_a_size_below_the_embedding_is_refused():
    with pytest.raises(
        UserError, match=r"the nearest has 3,.* of them in embedding and head \(50,257 tokens\)"
    ):
        shape(sizes.size("gpt3-125m"), 2e6, 2048)


def test_budgets_are_spent_and_the_grid_can_be_fitted():
    rungs = make_ladder(base_of(), flops=[1e14, 1e15, 1e16], ratios=[5, 20, 80])
    assert len(rungs) == 9
    assert why_not([rung.num_params for rung in rungs], [rung.num_tokens for rung in rungs]) is None
    for rung, budget in zip(rungs, [1e14] * 3 + [1e15] * 3 + [1e16] * 3):
        assert rung.flops == pytest.approx(budget, rel=0.01)
        assert rung.num_tokens == rung.num_steps * 8 * 64
        assert rung.warmup_steps == pytest.approx(rung.num_steps / 10, abs=1)
        width_ratio = 256 / rung.model.embed_dim
        assert rung.learning_rate == pytest.approx(2e-3 * width_ratio**0.75, rel=3e-3)
    assert [rung.flops for rung in rungs] == sorted(rung.flops for rung in rungs)


def test_sizes_with_tokens_per_parameter_make_the_whole_grid():
    rungs = make_ladder(base_of(), sizes=[1e6, 3e6, 9e6], ratios=[5, 80])
    assert len({rung.num_params for rung in rungs}) == 3
    for rung in rungs:
        assert min(abs(rung.num_tokens / rung.num_params / ratio - 1) for ratio in (5, 80)) < 1e-3


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {"batch_size": 65536},
            {"sizes": [1e6], "ratios": [20]},
            "4 steps of 4,194,304 tokens, and at least 20",
        ),
        ({}, {"sizes": [1e6, 1.01e6], "ratios": [20]}, "Two rungs are the same"),
        (
            {"model": sizes.size("mixtral-8x7b")},
            {"sizes": [1e9], "ratios": [20]},
            "the law is of dense models",
        ),
    ],
)
def test_a_ladder_that_cannot_be_climbed_is_refused(changes, options, message):
    with pytest.raises(UserError, match=message):
        make_ladder(base_of(**changes), **options)
