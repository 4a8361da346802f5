"""Promises of the distribution: it is the model's, it sums to 1, words follow the chain rule."""

import json
import math

import numpy as np
import pytest
from standin import ByteTokenizer, history_lm, history_logits, random_table

from jaxlm.infer.next_token import ends_word, next_token_distribution, row_logits
from jaxlm.infer.sample import generate
from jaxlm.infer.text import encode_prompt
from jaxlm.types import UserError

WORDS = [" zoo", " forest", " for", "est", " wild", " the", "the", " lion", "s", "."]
TOKENIZER = ByteTokenizer(WORDS)
V = TOKENIZER.vocab_size
TABLE = random_table(V + 4, seed=1, scale=1.5)  # four ids pad the embedding
LM, PARAMS = history_lm(TABLE)
PROMPT = "the lion"


def true_probs(tokens):
    logits = history_logits(TABLE, tokens)[:V]
    probs = np.exp(logits - logits.max())
    return probs / probs.sum()


def distribution(prompt=PROMPT, **options):
    return next_token_distribution(LM, PARAMS, TOKENIZER, prompt, **options)


def test_probabilities_are_the_models_and_sum_to_one():
    result = distribution(top=10**6)
    assert len(result.top) == V
    probs = true_probs(result.ids)
    for entry in result.top:
        assert entry.p == pytest.approx(probs[entry.id], rel=1e-4, abs=1e-9)
        assert entry.piece == TOKENIZER.piece(entry.id)
    assert sum(entry.p for entry in result.top) == pytest.approx(1.0, abs=1e-12)
    assert [entry.rank for entry in result.top] == list(range(1, V + 1))
    np.testing.assert_allclose([e.cumulative_p for e in result.top], np.cumsum([e.p for e in result.top]))
    assert result.entropy_nats == pytest.approx(-(probs * np.log(probs)).sum(), rel=1e-5)
    assert result.entropy_bits == pytest.approx(result.entropy_nats / math.log(2))
    assert result.num_kept == V


def test_entropy_of_a_coin_is_one_bit_and_of_a_certainty_none():
    table_VV = np.full((V, V), -1e9, np.float32)
    table_VV[:, [5, 9]] = 0.0
    lm, params = history_lm(table_VV, decay=0.0)
    assert next_token_distribution(lm, params, TOKENIZER, PROMPT).entropy_bits == pytest.approx(1.0)
    certain = next_token_distribution(lm, params, TOKENIZER, PROMPT, temperature=0.0)
    assert (certain.sampled_entropy_bits, certain.num_kept) == (0.0, 1)


def test_settings_change_what_is_sampled_and_not_what_the_model_says():
    plain, filtered = (
        distribution(top=V),
        distribution(top=V, temperature=0.7, top_k=50, top_p=0.8, min_p=0.01),
    )
    assert [e.p for e in plain.top] == [e.p for e in filtered.top]
    assert [e.p_sampled for e in plain.top] == pytest.approx([e.p for e in plain.top])
    assert sum(e.p_sampled for e in filtered.top) == pytest.approx(1.0, abs=1e-12)
    assert filtered.num_kept == sum(e.p_sampled > 0 for e in filtered.top) <= 50
    assert filtered.sampled_entropy_bits < plain.sampled_entropy_bits
    first, second = filtered.top[:2]
    assert first.p_sampled / second.p_sampled == pytest.approx((first.p / second.p) ** (1 / 0.7), rel=1e-4)


def test_picks_are_those_of_generate():
    ids = encode_prompt(TOKENIZER, PROMPT)
    for seed in range(5):
        result = distribution(seed=seed, temperature=1.4)
        options = {"max_new_tokens": 1, "vocab_size": V}
        assert generate(LM, PARAMS, [ids], seed=seed, temperature=1.4, **options)[0].tokens == [
            result.sampled.id
        ]
        assert generate(LM, PARAMS, [ids], temperature=0.0, **options)[0].tokens == [result.greedy.id]
    assert len({distribution(seed=seed, temperature=1.4).sampled.id for seed in range(5)}) > 1


@pytest.mark.parametrize("word", ["zoo", "forest", "forests", "wilderness"])
def test_a_words_probability_is_the_product_of_its_tokens(word):
    candidate = distribution(candidates=["zoo", word, "wild"]).candidates[word != "zoo"]
    tokens = encode_prompt(TOKENIZER, PROMPT)
    expected = 1.0
    for token, p in zip(TOKENIZER.encode(" " + word), candidate.token_ps, strict=True):
        assert p == pytest.approx(true_probs(tokens)[token], rel=1e-3)
        expected *= true_probs(tokens)[token]
        tokens.append(token)
    assert candidate.ids == TOKENIZER.encode(" " + word)
    assert candidate.p_prefix == pytest.approx(expected, rel=1e-3)
    ends = [i for i in range(V) if TOKENIZER.bytes[i][:1] in (b" ", b".", b"\n", b"\t", b"!") or i == 1]
    assert true_probs(tokens)[ends].sum() < candidate.p_word / candidate.p_prefix < 1.0


def test_prefixes_add_up_over_what_may_follow():
    """p(prefix) = sum over next tokens: the word's end and its continuations share it out exactly."""
    candidate = distribution(candidates=["for"]).candidates[0]
    row = encode_prompt(TOKENIZER, PROMPT) + candidate.ids
    goes_on = true_probs(row)[~ends_word(TOKENIZER)].sum()
    assert candidate.p_word == pytest.approx(candidate.p_prefix * (1 - goes_on), rel=1e-3)


def test_shares_compare_whole_words():
    candidates = distribution(candidates=["zoo", "forest", "wild", "zoo"]).candidates
    assert [c.word for c in candidates] == ["zoo", "forest", "wild"]
    assert sum(c.share for c in candidates) == pytest.approx(1.0)
    assert candidates[0].share / candidates[1].share == pytest.approx(
        candidates[0].p_word / candidates[1].p_word
    )


def test_a_candidate_scores_the_same_alone_and_among_longer_ones():
    alone = distribution(candidates=["zoo"]).candidates[0]
    among = distribution(candidates=["wilderness" * 3, "zoo", "x"]).candidates[1]
    assert (among.p_prefix, among.p_word) == pytest.approx((alone.p_prefix, alone.p_word), rel=1e-4)


def test_a_prompt_that_ends_in_a_space_merges_with_the_word():
    after_space = distribution("the lion ", candidates=["zoo"]).candidates[0]
    plain = distribution("the lion", candidates=["zoo"]).candidates[0]
    assert after_space.merged
    assert not plain.merged
    assert (after_space.ids, after_space.p_word) == (plain.ids, pytest.approx(plain.p_word, rel=1e-4))


def test_an_empty_prompt_asks_how_documents_begin():
    candidate = distribution("", candidates=["the"]).candidates[0]
    assert candidate.pieces == ["the"]
    assert candidate.p_prefix == pytest.approx(true_probs([0])[TOKENIZER.encode("the")[0]], rel=1e-3)


def test_words_end_before_spaces_punctuation_and_eos_only():
    over = ends_word(TOKENIZER)
    assert over[[1, *TOKENIZER.encode("\n.,;)\t ")]].all()
    assert over[[i for i in range(V) if TOKENIZER.bytes[i].startswith(b" ")]].all()
    assert not over[[0, *TOKENIZER.encode("aZ9"), 2 + 0xE0, V - 2]].any()


def test_the_result_is_plain_json():
    text = json.dumps(distribution(candidates=["zoo"]).as_dict())
    assert json.loads(text)["candidates"][0]["word"] == "zoo"


def test_logits_are_returned_for_each_place_of_ragged_rows():
    rows, starts = [[3, 4, 5, 6], [7], [8, 9, 10]], [1, 0, 2]
    for row, start, logits in zip(rows, starts, row_logits(LM, PARAMS, rows, starts), strict=True):
        expected = [history_logits(TABLE, row[: i + 1]) for i in range(start, len(row))]
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_bigram_source_is_predicted_with_its_true_probabilities():
    """Calibration of the whole path: a model that knows the source exactly reports exactly its
    probabilities."""
    probs_VV = np.random.default_rng(0).dirichlet(np.full(V, 0.3), size=V) + 1e-9
    probs_VV /= probs_VV.sum(-1, keepdims=True)
    lm, params = history_lm(np.log(probs_VV), decay=0.0)
    result = next_token_distribution(lm, params, TOKENIZER, PROMPT, candidates=["zoo"], top=V)
    for entry in result.top:
        assert entry.p == pytest.approx(probs_VV[result.ids[-1], entry.id], rel=1e-3, abs=1e-8)
    assert result.candidates[0].p_prefix == pytest.approx(probs_VV[result.ids[-1], V - len(WORDS)], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top=0 must be at least 1"),
        ({"candidates": ["zoo", " "]}, "candidate word is empty"),
        ({"top_k": 0}, "top_k=0"),
        ({"seed": 2**32}, "seed=4294967296 must be in"),
    ],
)
def test_impossible_requests_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        distribution(**options)


def test_learned_positions_are_a_limit():
    lm, params = history_lm(TABLE, num_positions=4)
    assert next_token_distribution(lm, params, TOKENIZER, PROMPT, candidates=["zoo"]).ids == [0, 264, 265]
    with pytest.raises(UserError, match="prompt and word have 5 tokens, beyond the 4 positions"):
        next_token_distribution(lm, params, TOKENIZER, PROMPT, candidates=["forests"])


def test_damaged_weights_are_named():
    with pytest.raises(UserError, match="logits are not finite"):
        next_token_distribution(LM, {"table": PARAMS["table"] * np.nan}, TOKENIZER, PROMPT)
