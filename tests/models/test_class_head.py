"""Promises of a classifier's head: it stands in place of the language head, and reads its text alone."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from slow import all_but

from jaxlm.models import sizes
from jaxlm.models.build import build
from jaxlm.objectives.classify import pooled
from jaxlm.plan.flops import count_params, matmul_params

NAMES = ("tiny-gpt", "tiny-llama", "tiny-gemma3", "tiny-mixtral")


@functools.cache
def make(name):
    config = dataclasses.replace(sizes.size(name), num_classes=3)
    lm = build(config, 32, platform="cpu")
    params = jax.jit(lambda key: jax.tree.map(lambda w: 8.0 * w, lm.init(key)))(jax.random.key(0))
    return config, lm, params


def logits(name, rows, width, side="right", pooling="last", fill=0):
    """Of texts in one batch, padded on this side with the id `fill`."""
    _, lm, params = make(name)
    shape = (len(rows), width)
    batch = {key: np.zeros(shape, np.int32) for key in ("tokens", "segments", "positions")}
    batch["tokens"][:], weights_BT = fill, np.zeros(shape, np.float32)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        batch["tokens"][i, place], batch["segments"][i, place] = row, 1
        batch["positions"][i, place] = np.arange(len(row))
        if pooling == "mean":
            weights_BT[i, place] = 1.0 / len(row)
        else:
            weights_BT[i, place.stop - 1] = 1.0
    return np.asarray(_compiled(name)(params, batch, weights_BT))


@functools.cache
def _compiled(name):
    _, lm, _ = make(name)
    return jax.jit(
        lambda params, batch, weights_BT: lm.head(params, pooled(lm.hidden(params, batch), weights_BT))
    )


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("name", all_but(("tiny-mixtral",), NAMES))
def test_padding_and_batch_mates_do_not_change_a_text(name, pooling):  # pain 13
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 200, n).tolist() for n in (5, 11, 1)]
    alone = np.concatenate([logits(name, [text], len(text), pooling=pooling) for text in texts])
    assert np.abs(alone[0] - alone[1]).max() > 0.1  # else nothing is compared
    options = [(12, "right", 0), (24, "right", 7), (12, "left", 0), (24, "left", 7)]
    for width, side, fill in options:
        found = logits(name, texts, width, side, pooling, fill)
        # Of logits up to 10: experts add up in another order with other rows. What leaks moves them by tenths.
        np.testing.assert_allclose(found, alone, rtol=0, atol=2e-3, err_msg=f"{width} {side} {fill}")


@pytest.mark.parametrize("name", NAMES)
def test_the_head_is_a_matrix_in_place_of_the_language_head(name):
    config, lm, params = make(name)
    assert lm.head_keys == ("classifier",)
    assert "head" not in params
    assert lm.axes["classifier"] == ("embed", "classes")
    x_BD = np.random.default_rng(0).normal(size=(2, config.embed_dim)).astype(np.float32)
    expected = x_BD.astype(np.float64) @ np.asarray(params["classifier"], np.float64)  # and no soft-cap
    np.testing.assert_allclose(
        lm.head({"classifier": params["classifier"]}, x_BD), expected, rtol=1e-4, atol=1e-4
    )
    num_weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count_params(config, 32).total == num_weights
    assert count_params(config, 32).head == 3 * config.embed_dim


def test_the_head_costs_nothing_a_token():
    config = sizes.size("tiny-llama")
    with_head = matmul_params(dataclasses.replace(config, tie_embeddings=False))
    without = matmul_params(dataclasses.replace(config, num_classes=3))
    assert with_head - without == config.vocab_size * config.embed_dim
