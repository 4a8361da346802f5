"""Promises of picking a token: filters keep what their papers say, draws follow the distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.infer import pick as pick_lib
from jaxlm.infer.config import SamplingConfig
from jaxlm.infer.pick import first_max, make_knobs
from jaxlm.types import UserError

V = 600  # more than two blocks of the draw, and not a multiple of one


draw, filter_logits, pick = map(jax.jit, (pick_lib.draw, pick_lib.filter_logits, pick_lib.pick))


def random_logits(seed, shape=(V,), scale=3.0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * scale


def reference_filter(logits, *, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """The textbook: sort, cut, renormalise. -> probabilities."""
    probs = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    if top_k is not None:
        probs[order[top_k:]] = 0.0
        probs /= probs.sum()
    if top_p is not None:
        before = np.cumsum(probs[order]) - probs[order]
        probs[order[before >= top_p]] = 0.0
        probs /= probs.sum()
    if min_p is not None:
        probs[probs < min_p * probs.max()] = 0.0
    return probs / probs.sum()


def filtered_probs(logits, **settings):
    filtered = filter_logits(jnp.asarray(logits)[None], make_knobs(SamplingConfig(**settings)))
    return np.asarray(jax.nn.softmax(filtered[0]))


SETTINGS = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.9, "top_k": 5},
    {"top_k": 1},
    {"top_k": V + 5},
    {"top_p": 0.9},
    {"top_p": 1e-6},
    {"top_p": 1.0},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 40, "top_p": 0.5},
    {"temperature": 1.3, "top_k": 100, "top_p": 0.8, "min_p": 0.05},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_filters_agree_with_sorting(setting, seed):
    logits = random_logits(seed)
    np.testing.assert_allclose(
        filtered_probs(logits, **setting), reference_filter(logits, **setting), atol=2e-6
    )


@settings(max_examples=50)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(0.05, 5.0),
    st.integers(1, V),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
)
def test_filters_agree_with_sorting_whatever_the_setting(seed, temperature, top_k, top_p, min_p):
    logits = random_logits(seed)
    setting = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    got, expected = filtered_probs(logits, **setting), reference_filter(logits, **setting)
    # A rounding error of float32 may put one token on the other side of a threshold, or many that nobody would draw.
    moved = np.maximum(got, expected)[(got > 0) != (expected > 0)]
    assert len(moved) <= 1 or moved.sum() < 1e-6
    if moved.sum() < 1e-6:
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-6)


def test_filters_treat_rows_alone():
    logits_BV = random_logits(0, (3, V))
    knobs = make_knobs(SamplingConfig(top_k=30, top_p=0.7))
    together = np.asarray(filter_logits(jnp.asarray(logits_BV), knobs))
    for row in range(3):
        alone = np.asarray(filter_logits(jnp.asarray(logits_BV[row : row + 1]), knobs))[0]
        np.testing.assert_array_equal(together[row], alone)


def test_temperature_zero_leaves_the_most_probable_alone():
    logits = random_logits(0)
    expected = np.zeros(V)
    expected[logits.argmax()] = 1.0
    np.testing.assert_array_equal(filtered_probs(logits, temperature=0.0, top_p=0.3), expected)


def test_greedy_takes_the_lowest_id_of_equals():
    assert first_max(jnp.asarray([[0.0, 2.0, 1.0, 2.0]])).tolist() == [1]


def test_ids_that_pad_the_embedding_are_never_picked():
    logits_1V = jnp.zeros((1, V)).at[0, 7:].set(50.0)
    knobs = make_knobs(SamplingConfig(), vocab_size=7)
    keys = jax.random.split(jax.random.key(0), 64)
    for key in keys[:20]:
        token, logprob = pick(logits_1V, key[None], jnp.zeros(1, jnp.int32), knobs)
        assert token[0] < 7
        np.testing.assert_allclose(logprob[0], -np.log(7), rtol=1e-5)
    assert pick(logits_1V, keys[:1], jnp.zeros(1, jnp.int32), make_knobs(SamplingConfig(0.0), 7))[0][0] == 0


def chi_square(counts, probs):
    """(statistic, a bound that a correct sampler exceeds once in about 10^5 seeds)."""
    expected = probs * counts.sum()
    assert counts[probs == 0].sum() == 0, "a token was drawn that the filter had dropped"
    big = expected > 5
    statistic = ((counts[big] - expected[big]) ** 2 / expected[big]).sum()
    rest = expected[(probs > 0) & ~big].sum()
    if rest > 5:
        statistic += (counts[(probs > 0) & ~big].sum() - rest) ** 2 / rest
    freedom = big.sum() - (rest <= 5)
    return statistic, freedom + 4.3 * np.sqrt(2 * freedom) + 12


@pytest.mark.parametrize(
    "setting", [{}, {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.02}], ids=str
)
def test_draws_follow_the_filtered_distribution(setting):
    logits = random_logits(1, scale=2.0)
    filtered_1V = filter_logits(jnp.asarray(logits)[None], make_knobs(SamplingConfig(**setting)))
    N = 40_000
    filtered_NV = jnp.broadcast_to(filtered_1V, (N // 8, V))
    tokens = [draw(filtered_NV, keys) for keys in jax.random.split(jax.random.key(3), (8, N // 8))]
    counts = np.bincount(np.concatenate(tokens), minlength=V)
    statistic, bound = chi_square(counts, reference_filter(logits, **setting))
    assert statistic < bound


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be 0"),
        ({"temperature": float("nan")}, "temperature=nan must be 0"),
        ({"temperature": float("inf")}, "temperature=inf must be 0"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 0.0}, r"top_p=0.0 must be in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p=1.5 must be in \(0, 1\]"),
        ({"top_p": float("nan")}, r"top_p=nan must be in \(0, 1\]"),
        ({"min_p": -0.1}, r"min_p=-0.1 must be in \[0, 1\]"),
        ({"min_p": 1.1}, r"min_p=1.1 must be in \[0, 1\]"),
    ],
)
def test_nonsense_is_refused_with_a_way_out(setting, message):
    with pytest.raises(UserError, match=message):
        SamplingConfig(**setting)
