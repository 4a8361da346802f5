"""Promises of the scorer: the chain rule, whatever shares a batch, a pass or a context; and the same bits twice."""

import jax
import numpy as np
import pytest
from standin import history_lm, history_logits, random_table

from jaxlm.evaluate import loglikelihood
from jaxlm.evaluate.loglikelihood import Row, Scorer, round_width
from jaxlm.models.build import build
from jaxlm.models.config import ModelConfig
from jaxlm.types import UserError

V = 40


def questions(rng, num=12, longest=60):
    """Contexts with several answers, some of them one token, some of which share all but their last token."""
    rows = []
    for _ in range(num):
        context = rng.integers(0, V, rng.integers(1, longest)).tolist()
        for _ in range(rng.integers(1, 4)):
            answer = rng.integers(0, V, rng.integers(1, 9)).tolist()
            rows.append(Row(context + answer, len(context)))
        pair = rng.integers(0, V, 2).tolist()
        rows += [Row(context + pair, len(context)), Row([*context, pair[0], (pair[1] + 1) % V], len(context))]
    return rows


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_every_token_is_scored_given_all_before_it(batch_size):
    table = random_table(V)
    lm, params = history_lm(table)
    rows = questions(np.random.default_rng(0))
    for row, scores in zip(rows, Scorer(lm, params).score(rows, batch_size=batch_size), strict=True):
        for place in range(row.start, len(row.ids)):
            logits = history_logits(table, row.ids[:place])
            logprob = logits[row.ids[place]] - np.log(np.exp(logits).sum())
            assert scores.logprobs[place - row.start] == pytest.approx(logprob, abs=1e-4)
            assert scores.is_top[place - row.start] == (logits.argmax() == row.ids[place])
        assert scores.total == pytest.approx(float(scores.logprobs.sum()), rel=1e-6)


def test_answers_to_one_question_read_it_once(monkeypatch):
    read = []
    plain = Scorer._plain
    monkeypatch.setattr(Scorer, "_plain", lambda self, members: read.append(members) or plain(self, members))
    lm, params = history_lm(random_table(V))
    context = list(range(30))
    found = Scorer(lm, params).score([Row([*context, a, b], 30) for a in (1, 2, 3) for b in (4, 5)])
    assert read == []  # three rows go on from the cache of one context
    assert len(lm.traces) == 2  # the context, and what follows it
    assert len(found) == 6
    one_token = Scorer(lm, params).score([Row([*context, a], 30) for a in (1, 2, 3)])
    assert [len(members) for members in read] == [1]  # and answers of one token are read off one row
    assert len({scores.total for scores in one_token}) == 3


@pytest.fixture(scope="module")
def decoder():
    config = ModelConfig(
        vocab_size=V, embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=48, dtype="float32"
    )
    lm = build(config, 64)
    params = jax.jit(lm.init)(jax.random.key(0))
    return lm, jax.tree.map(lambda w: w * 4, params)


def test_the_same_rows_give_the_same_bits_and_other_batches_the_same_to_four_digits(decoder):
    rows = questions(np.random.default_rng(1), num=6, longest=40)
    first = Scorer(*decoder).score(rows, batch_size=8)
    again = Scorer(*decoder).score(rows, batch_size=8)
    for a, b in zip(first, again, strict=True):
        assert a.logprobs.tobytes() == b.logprobs.tobytes()
    for batch_size in (1, 3):
        for a, b in zip(first, Scorer(*decoder).score(rows, batch_size=batch_size), strict=True):
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)
            assert a.is_greedy == b.is_greedy


def test_learned_positions_end_where_they_end():
    lm, params = history_lm(random_table(V), num_positions=40)
    context = list(range(30))
    rows = [Row([*context, a, b, a, b, a, b], 30) for a in (1, 2) for b in (3, 4)]
    found = Scorer(lm, params).score(rows)  # padded to 48 they would be beyond position 40
    free, params = history_lm(random_table(V))
    for a, b in zip(found, Scorer(free, params).score(rows), strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
    lm, params = history_lm(random_table(V), num_positions=20)
    with pytest.raises(UserError, match="20 positions"):
        Scorer(lm, params).score(rows)


def test_a_long_row_leaves_its_batch(monkeypatch):
    monkeypatch.setattr(loglikelihood, "BATCH_TOKENS", 64)
    lm, params = history_lm(random_table(V))
    sizes = []
    plain = Scorer._plain
    monkeypatch.setattr(
        Scorer, "_plain", lambda self, members: sizes.append(len(members)) or plain(self, members)
    )
    rng = np.random.default_rng(0)
    Scorer(lm, params).score([Row(rng.integers(0, V, n).tolist(), 1) for n in (60, 20, 20, 15, 15, 15)])
    assert sizes == [1, 2, 3]


def test_weights_that_give_no_numbers_are_named():
    lm, params = history_lm(np.full((V, V), np.nan, np.float32))
    with pytest.raises(UserError, match="not finite"):
        Scorer(lm, params).score([Row([1, 2, 3], 1)])


def test_widths_waste_little():
    for num in (1, 16, 17, 100, 513, 5000):
        assert num <= round_width(num) <= max(16, num + 15, num * 1.25)
