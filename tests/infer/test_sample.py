"""Promises of sampling: a row depends on itself alone, the cache changes nothing, nothing compiles twice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import all_but
from standin import history_lm, history_logits, random_table

from jaxlm.infer import sample
from jaxlm.infer.sample import (
    BUFFER_TOKENS,
    PREFILL_TOKENS,
    generate,
    prefill_pieces,
    round_cache,
    round_rows,
)
from jaxlm.models.build import build
from jaxlm.models.config import ModelConfig
from jaxlm.types import UserError

V = 11
RAGGED = [[1], [4, 2, 9, 9, 3], [7] * 40, [3, 1]]


@functools.cache
def standin(seed=0, scale=1.0, num_positions=None):
    table_VV = random_table(V, seed, scale)
    return table_VV, *history_lm(table_VV, num_positions=num_positions)


def greedy_reference(table_VV, prompt, num_new):
    """-> (tokens, logprobs) by evaluating the whole text anew for each token."""
    tokens, logprobs = list(prompt), []
    for _ in range(num_new):
        logits = history_logits(table_VV, tokens)
        tokens.append(int(logits.argmax()))
        logprobs.append(logits.max() - np.log(np.exp(logits).sum()))
    return tokens[len(prompt) :], logprobs


def assert_same(got, expected, atol=1e-5):
    """Equal tokens and ends; log-probabilities may differ in the last bits where compiled shapes do."""
    assert [(r.tokens, r.finish_reason) for r in got] == [(r.tokens, r.finish_reason) for r in expected]
    for a, b in zip(got, expected):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=atol)


def test_greedy_equals_evaluating_the_whole_text_for_each_token():
    table_VV, lm, params = standin()
    prompts = [*RAGGED, [2] * (PREFILL_TOKENS + 30)]
    for prompt, result in zip(prompts, generate(lm, params, prompts, max_new_tokens=20, temperature=0.0)):
        tokens, logprobs = greedy_reference(table_VV, prompt, 20)
        assert result.tokens == tokens
        np.testing.assert_allclose(result.logprobs, logprobs, atol=1e-4)
        assert result.finish_reason == "length"


def test_a_row_does_not_depend_on_its_batch_mates():
    _, lm, params = standin()
    together = generate(lm, params, RAGGED, max_new_tokens=30, seed=5)
    for batch_size in (1, 3):
        assert_same(generate(lm, params, RAGGED, max_new_tokens=30, seed=5, batch_size=batch_size), together)
    for row, prompt in enumerate(RAGGED):
        assert_same(generate(lm, params, [prompt], max_new_tokens=30, seed=5, row_ids=[row]), [together[row]])


def test_rows_and_seeds_differ():
    _, lm, params = standin()
    results = generate(lm, params, [[1]] * 4, max_new_tokens=30, seed=0)
    results += generate(lm, params, [[1]] * 4, max_new_tokens=30, seed=1)
    assert len({tuple(result.tokens) for result in results}) == 8


def test_a_sample_continued_later_equals_one_made_in_one_go():
    _, lm, params = standin()
    whole = generate(lm, params, [[1, 2]], max_new_tokens=50, seed=3)[0].tokens
    first = generate(lm, params, [[1, 2]], max_new_tokens=17, seed=3)[0].tokens
    rest = generate(lm, params, [[1, 2, *first]], max_new_tokens=33, seed=3)[0].tokens
    assert first + rest == whole


def test_how_often_the_host_looks_changes_nothing():
    _, lm, params = standin()
    expected = generate(lm, params, RAGGED, max_new_tokens=BUFFER_TOKENS + 9, seed=2)
    for tokens_per_call in (1, 5, 1000):
        seen = [[] for _ in RAGGED]

        def note(row, tokens, seen=seen):
            seen[row] += tokens

        got = generate(
            lm, params, RAGGED, max_new_tokens=BUFFER_TOKENS + 9, seed=2, on_tokens=note,
            tokens_per_call=tokens_per_call,
        )  # fmt: skip
        assert got == expected
        assert seen == [result.tokens for result in expected]


def test_frequencies_match_the_true_probabilities_of_a_bigram_model():
    table_VV = random_table(V, seed=4)
    lm, params = history_lm(table_VV, decay=0.0)
    num_rows, num_new = 64, 400
    results = generate(lm, params, [[0]] * num_rows, max_new_tokens=num_new, batch_size=num_rows, seed=7)
    counts_VV = np.zeros((V, V))
    for result in results:
        np.add.at(counts_VV, ([0, *result.tokens[:-1]], result.tokens), 1)
    probs_VV = np.exp(table_VV) / np.exp(table_VV).sum(-1, keepdims=True)
    expected_VV = counts_VV.sum(-1, keepdims=True) * probs_VV
    chi_square, freedom = ((counts_VV - expected_VV) ** 2 / expected_VV).sum(), V * (V - 1)
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_rows_stop_at_eos_and_stop_ids_and_leave_them_out():
    table_VV = np.full((V, V), -30.0, np.float32)
    table_VV[np.arange(V), (np.arange(V) + 1) % V] = 0.0  # counts upwards
    lm, params = history_lm(table_VV, decay=0.0)
    results = generate(lm, params, [[1], [6], [9]], max_new_tokens=5, temperature=0.0, eos_id=8, stop_ids=[4])
    assert [(r.tokens, r.finish_reason) for r in results] == [
        ([2, 3], "stop"),
        ([7], "eos"),
        ([10, 0, 1, 2, 3], "length"),
    ]
    assert [len(r.logprobs) for r in results] == [2, 1, 5]


def test_the_caller_stops_a_row_between_tokens():
    _, lm, params = standin()
    whole = generate(lm, params, [[1], [2]], max_new_tokens=40, seed=9)
    calls = []

    def stop_row_1_after_6(row, tokens):
        calls.append(row)
        return 2 if row == 1 and calls.count(1) == 2 else None

    got = generate(
        lm, params, [[1], [2]], max_new_tokens=40, seed=9, on_tokens=stop_row_1_after_6, tokens_per_call=4
    )
    assert got[0] == whole[0]
    assert (got[1].tokens, got[1].finish_reason) == (whole[1].tokens[:6], "stop")
    assert calls.count(1) == 2


def test_decoding_ends_when_all_rows_are_done(monkeypatch):
    table_VV = np.zeros((V, V), np.float32)
    table_VV[:, 8] = 5.0
    lm, params = history_lm(table_VV)
    steps, calls = sample.compiled_steps(lm.extend, lm.head), []

    def decode(*args):
        calls.append(steps.decode(*args))
        return calls[-1]

    monkeypatch.setattr(sample, "compiled_steps", lambda *functions: steps._replace(decode=decode))
    results = generate(lm, params, [[1], [2]], max_new_tokens=10 * BUFFER_TOKENS, temperature=0.0, eos_id=8)
    assert [result.finish_reason for result in results] == ["eos", "eos"]
    assert len(calls) == 1
    # Nothing is computed for the rest of the call either: its log-probabilities are still the buffer's zeros.
    assert not np.asarray(calls[0][3])[:, 1:].any()


def test_lengths_and_settings_do_not_compile_anew():
    lm, params = history_lm(random_table(V))
    generate(lm, params, [[1] * 20], max_new_tokens=70, temperature=0.0)
    num_traces = len(lm.traces)
    shapes = set(lm.traces)
    for length, max_new_tokens, setting in [
        (2, 90, {"seed": 1}),
        (17, 100, {"temperature": 0.7, "seed": 3}),
        (30, 90, {"top_k": 3, "top_p": 0.5, "min_p": 0.1, "eos_id": 2}),
        (33, 65, {"stop_ids": [1, 2, 3]}),
    ]:
        generate(lm, params, [[1] * length], max_new_tokens=max_new_tokens, **setting)
    assert shapes == {(1, 32, 128), (1, 1, 128)}
    assert len(lm.traces) == num_traces, f"traced again: {lm.traces[num_traces:]}"


def test_compiled_shapes_are_few():
    lengths = range(1, 1200)
    assert len({size for n in lengths for _, size in prefill_pieces(n, None)}) <= 4
    assert len({round_cache(n, None) for n in range(1, 8193)}) <= 24
    assert all(n <= round_cache(n, None) <= max(n + 63, n * 5 / 4) for n in range(1, 8193))
    assert sorted({round_rows(n) for n in range(1, 33)}) == [1, 2, 4, 8, 16, 24, 32]


@pytest.mark.parametrize("limit", [None, 300])
def test_prefill_pieces_cover_the_prompt_and_stay_inside_the_limit(limit):
    for num_tokens in range(300):
        pieces = prefill_pieces(num_tokens, limit)
        assert [start for start, _ in pieces] == [PREFILL_TOKENS * i for i in range(len(pieces))]
        assert num_tokens <= sum(size for _, size in pieces)
        assert limit is None or all(start + size <= limit for start, size in pieces)


def test_learned_positions_are_a_limit_and_can_be_filled():
    table_VV, lm, params = standin(num_positions=50)
    with pytest.raises(
        UserError, match=r"prompt 1 has 40 tokens and max_new_tokens=11.* 50 positions.*for 10 new"
    ):
        generate(lm, params, [[1], [2] * 40], max_new_tokens=11)
    with pytest.raises(UserError, match="shorten the prompt"):
        generate(lm, params, [[2] * 50], max_new_tokens=1)
    result = generate(lm, params, [[2] * 40], max_new_tokens=10, temperature=0.0)[0]
    assert result.tokens == greedy_reference(table_VV, [2] * 40, 10)[0]


@pytest.mark.parametrize(
    ("prompts", "setting", "message"),
    [
        ([[1], []], {}, "prompt 1 has no tokens"),
        ([[1, V]], {}, "prompt 0 holds token id 11, but the model's vocabulary has ids 0 to 10"),
        ([[-1]], {}, "token id -1"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ([[1]], {"batch_size": 0}, "batch_size=0 must be at least 1"),
        ([[1]], {"top_p": 1.5}, "top_p=1.5 must be in"),
        ([[1]], {"seed": -1}, "seed=-1 must be in"),
        ([[1]], {"seed": 2**32}, "seed=4294967296 must be in"),
        ([[1]], {"row_ids": [1, 2]}, "2 row ids for 1 prompts"),
    ],
)
def test_impossible_requests_are_refused(prompts, setting, message):
    _, lm, params = standin()
    with pytest.raises(UserError, match=message):
        generate(lm, params, prompts, **{"max_new_tokens": 3, **setting})


def test_no_prompts_give_no_results():
    _, lm, params = standin()
    assert generate(lm, params, [], max_new_tokens=3) == []


def test_damaged_weights_are_named_instead_of_sampled():
    _, lm, params = standin()
    with pytest.raises(UserError, match="logits are not finite"):
        generate(lm, {"table": params["table"] * jnp.nan}, [[1]], max_new_tokens=3)


REAL = {
    "llama": {"num_kv_heads": 2, "scan_layers": True},
    "gemma": {"layer_pattern": "lg", "sliding_window": 5, "attention_softcap": 20.0, "logits_softcap": 10.0,
              "post_norm": True, "qk_norm": True, "norm": "rmsnorm_plus_one"},
    "gpt2": {"positions": "learned", "norm": "layernorm", "activation": "gelu_tanh", "bias": "all",
             "scan_layers": False},
}  # fmt: skip


@functools.cache
def real(style):
    config = ModelConfig(vocab_size=97, embed_dim=32, num_layers=3, num_heads=4, mlp_dim=64, **REAL[style])
    lm = build(config, 64)
    params = jax.jit(lm.init)(jax.random.key(1))
    # Sharper than at initialisation, so that equal picks mean equal logits.
    return lm, jax.tree.map(lambda w: w * 4 if w.ndim > 2 else w, params)


PROMPTS = [[5], list(range(1, 15)), [9, 8, 7]]
NUM_NEW = 30


@functools.cache
def full_pass(style):
    """Log-probabilities [V] of the token after each of up to 64, with nothing cached."""
    lm, params = real(style)

    @jax.jit
    def logprobs_TV(tokens_1T, length):
        positions_1T = jnp.arange(64)[None]
        batch = {"tokens": tokens_1T, "positions": positions_1T, "segments": (positions_1T < length) * 1}
        return jax.nn.log_softmax(lm.head(params, lm.hidden(params, batch)), axis=-1)[0]

    return lambda tokens: np.asarray(
        logprobs_TV(jnp.asarray([tokens + [0] * (64 - len(tokens))]), len(tokens))
    )


@pytest.mark.slow  # of greedy tokens `make test` compares them below
@pytest.mark.parametrize("style", REAL)
def test_prefill_then_decode_equals_one_full_pass(style):
    for prompt, result in zip(PROMPTS, generate(*real(style), PROMPTS, max_new_tokens=NUM_NEW, seed=1)):
        steps = np.arange(len(prompt) - 1, len(prompt) + NUM_NEW - 1)
        chosen = full_pass(style)(prompt + result.tokens)[steps, result.tokens]
        np.testing.assert_allclose(result.logprobs, chosen, atol=2e-4)


@pytest.mark.parametrize("style", all_but(("gpt2",), REAL))
def test_greedy_is_the_argmax_of_the_full_pass(style):
    for prompt, result in zip(
        PROMPTS, generate(*real(style), PROMPTS, max_new_tokens=NUM_NEW, temperature=0.0)
    ):
        steps = np.arange(len(prompt) - 1, len(prompt) + NUM_NEW - 1)
        full_TV = full_pass(style)(prompt + result.tokens)[steps]
        chosen = full_TV[np.arange(NUM_NEW), result.tokens]
        np.testing.assert_allclose(chosen, full_TV.max(-1), atol=2e-4)
        np.testing.assert_allclose(result.logprobs, chosen, atol=2e-4)


@pytest.mark.parametrize("style", all_but(("gpt2",), REAL))
def test_ragged_rows_of_a_real_model_equal_each_row_alone(style):
    together = generate(*real(style), PROMPTS, max_new_tokens=NUM_NEW, seed=1)
    for row, prompt in enumerate(PROMPTS):
        alone = generate(*real(style), [prompt], max_new_tokens=NUM_NEW, seed=1, row_ids=[row])
        assert_same(alone, [together[row]], atol=2e-4)


def test_weights_sharded_over_a_mesh_sample_the_same_text():
    lm, params = real("llama")
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])

    def split(w):  # the last dim that can be split, as fsdp does
        dims = [i for i, size in enumerate(w.shape) if size % 4 == 0]
        spec = [None] * w.ndim
        if dims:
            spec[dims[-1]] = "fsdp"
        return jax.device_put(w, jax.NamedSharding(mesh, jax.P(*spec)))

    expected = generate(lm, params, PROMPTS, max_new_tokens=NUM_NEW, seed=1)
    got = generate(lm, jax.tree.map(split, params), PROMPTS, max_new_tokens=NUM_NEW, seed=1)
    assert_same(got, expected, atol=2e-4)
