"""Named sizes: what the config says, what the model has, what the planner counts, what was published: one."""

import collections
import math

import jax
import pytest
from ml_collections import ConfigDict

from jaxlm.models import sizes
from jaxlm.models.build import build, is_axes
from jaxlm.plan.flops import count_params, weights
from jaxlm.types import UserError

PUBLISHED = [name for name in sizes.SIZES if name not in sizes.TINY_SIZES]


@pytest.mark.parametrize("name", sizes.SIZES)
def test_model_has_the_weights_the_planner_lists(name):
    config = sizes.size(name)
    lm = build(config, seq_len=32)
    shapes = jax.tree.leaves(lm.shapes)
    axes = jax.tree.leaves(lm.axes, is_leaf=is_axes)
    built = collections.Counter((leaf.shape, names) for leaf, names in zip(shapes, axes, strict=True))
    planned = collections.Counter((w.shape, w.axes) for w in weights(config, seq_len=32))
    assert built == planned
    assert sum(math.prod(leaf.shape) for leaf in shapes) == count_params(config, seq_len=32).total


@pytest.mark.parametrize("name", sizes.TINY_SIZES)
def test_weights_have_the_shapes_and_dtypes_that_are_said(name):
    lm = build(sizes.size(name), seq_len=32)
    assert jax.eval_shape(lm.init, jax.random.key(0)) == lm.shapes


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count_is_the_published_one(name):
    published = sizes.published(name)
    counted = count_params(sizes.size(name)).total
    assert counted == sizes.published_params(name) or published.rounding > 0
    assert abs(counted - published.num_params) <= published.rounding * published.num_params
    assert published.source


def test_only_gpt3_counts_are_rounded():
    rounded = {name for name in PUBLISHED if sizes.published(name).rounding > 0}
    assert rounded == {name for name in PUBLISHED if name.startswith("gpt3-")}


# Spot checks against the published config.json files, one row per family and field that a count cannot see.
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gpt2-124m", dict(norm_eps=1e-5, activation="gelu_tanh", max_seq_len=1024, positions="learned")),
        ("gpt3-175b", dict(head_width=128, max_seq_len=2048, num_kv_heads=None)),
        ("gpt3-1.3b", dict(num_heads=16, head_width=128)),
        ("llama2-7b", dict(rope_theta=10_000.0, norm_eps=1e-5, rope_scaling="none")),
        ("llama3-8b", dict(rope_theta=500_000.0, rope_scaling="none", rope_scaling_factor=1.0)),
        ("llama3.1-8b", dict(rope_scaling="llama3", rope_scaling_factor=8.0, rope_original_len=8192)),
        ("llama3.2-1b", dict(rope_scaling="llama3", rope_scaling_factor=32.0, rope_original_len=8192)),
        ("gemma2-9b", dict(query_scale_dim=256, attention_softcap=50.0, logits_softcap=30.0)),
        ("gemma2-27b", dict(query_scale_dim=144, layer_pattern="lg", sliding_window=4096)),
        ("gemma3-1b", dict(rope_theta=1e6, rope_local_theta=1e4, rope_scaling="none", sliding_window=512)),
        ("gemma3-27b", dict(query_scale_dim=168, rope_scaling="linear", rope_scaling_factor=8.0)),
        ("gemma3-4b", dict(layer_pattern="lllllg", sliding_window=1024, scale_embeddings=True)),
        ("qwen2.5-7b", dict(bias="qkv", rope_theta=1e6, norm_eps=1e-6, sliding_window=None)),
        ("qwen2.5-72b", dict(norm_eps=1e-5)),
        ("qwen3-8b", dict(qk_norm=True, bias="none", rope_theta=1e6, norm_eps=1e-6)),
        (
            "mixtral-8x7b",
            dict(
                num_experts=8,
                num_experts_per_token=2,
                normalize_expert_weights=True,
                norm_eps=1e-5,
                rope_theta=1e6,
                sliding_window=None,
            ),
        ),
        (
            "qwen3-30b-a3b",
            dict(num_experts_per_token=8, normalize_expert_weights=True, qk_norm=True, norm_eps=1e-6),
        ),
        ("smollm2-135m", dict(rope_theta=100_000.0, norm_eps=1e-5)),
        ("mistral-7b", dict(layer_pattern="l", sliding_window=4096, rope_theta=10_000.0)),
    ],
)
def test_fields_are_those_of_the_published_config(name, fields):
    config = sizes.size(name)
    assert {key: getattr(config, key) for key in fields} == fields


def test_tiny_sizes_are_tiny_and_cover_every_feature():
    configs = [sizes.size(name) for name in sizes.TINY_SIZES]
    assert all(20_000 < count_params(config).total < 100_000 for config in configs)
    seen = collections.defaultdict(set)
    for config in configs:
        for field in (
            "norm",
            "bias",
            "positions",
            "qk_norm",
            "post_norm",
            "tie_embeddings",
            "scale_embeddings",
        ):
            seen[field].add(getattr(config, field))
    assert seen["norm"] == {"layernorm", "rmsnorm", "rmsnorm_plus_one"}
    assert seen["bias"] == {"none", "qkv", "all"}
    assert seen["positions"] == {"learned", "rope"}
    for field in ("qk_norm", "post_norm", "tie_embeddings", "scale_embeddings"):
        assert seen[field] == {True, False}


def test_unknown_size_names_the_nearest():
    with pytest.raises(UserError, match=r"llama3-8b"):
        sizes.size("llama3-8B")


def test_tiny_sizes_have_no_published_count():
    with pytest.raises(UserError, match="made for tests"):
        sizes.published_params("tiny-gpt")


def test_apply_writes_the_size_and_leaves_how_it_is_run():
    model = ConfigDict(dict(num_layers=1, embed_dim=8, dtype="bfloat16", remat="full", dropout=0.1))
    sizes.apply(model, "tiny-llama")
    config = sizes.size("tiny-llama")
    assert model.num_layers == config.num_layers
    assert model.rope_scaling == "llama3"
    assert (model.dtype, model.remat, model.dropout) == ("bfloat16", "full", 0.1)
