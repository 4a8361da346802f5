"""Promises of the evaluation of instructions: losses are sums over tokens, answers are compared, groups are counted."""

import json

import jax
import numpy as np
import pytest
from standin import ByteTokenizer, history_lm, history_logits, random_table

from jaxlm.data.chat import Message
from jaxlm.evaluate.instruction import answer_loss, consistency, evaluate_instructions
from jaxlm.infer.instructions import Question
from jaxlm.types import UserError

TOKENIZER = ByteTokenizer()
V = TOKENIZER.vocab_size
END = 2 + ord(";")


class Template:
    """`Q=`, then the answer, then `;`."""

    stop_ids = (END,)

    def prompt(self, messages):
        return TOKENIZER.encode("".join(message.content for message in messages) + "=")

    def example(self, messages, train_on="answers"):
        prompt, answer = self.prompt(messages[:-1]), [*TOKENIZER.encode(messages[-1].content), END]
        return prompt + answer, [False] * len(prompt) + [True] * len(answer)


def spelling(text):
    """A table of which the greedy bigram model writes each byte of the text after the one before."""
    table = np.zeros((V, V), np.float32)
    for before, after in zip(TOKENIZER.encode(text), TOKENIZER.encode(text)[1:]):
        table[before, after] = 5.0
    return table


def question(text, answer, number=1, **fields):
    return Question(f"f.jsonl, line {number}", fields, [Message("user", text)], answer)


def nats(table, ids, trained, decay=0.5):
    total = 0.0
    for t in range(1, len(ids)):
        if trained[t]:
            logits = history_logits(table, ids[:t], decay)
            total += np.log(np.exp(logits).sum()) - logits[ids[t]]
    return total


def test_the_answer_loss_is_one_sum_over_tokens_whatever_the_lengths():
    table = random_table(V)
    lm, params = history_lm(table)
    rng = np.random.default_rng(0)
    examples = []
    for length in (2, 3, 70, 5, 11, 4, 9, 6, 8, 130):  # two batches, several widths
        ids = rng.integers(0, V, length).tolist()
        examples.append((ids, [False] + [bool(x) for x in rng.integers(0, 2, length - 1)]))
    examples[0][1][1] = True
    # The first id is no target, whether it is trained on or not.
    examples.append(([5, 6], [True, False]))
    found = answer_loss(lm, params, examples)
    assert found.num_tokens == sum(sum(trained[1:]) for _, trained in examples)
    expected = sum(nats(table, *example) for example in examples)
    assert found.nats == pytest.approx(expected, rel=1e-5)
    assert found.loss == pytest.approx(expected / found.num_tokens, rel=1e-5)


def test_greedy_answers_are_compared_and_the_stop_id_of_the_template_ends_them():
    lm, params = history_lm(spelling("=the lion;"), decay=0.0)
    questions = [question("where", "A lion!"), question("who", "zoo", 2), question("what", "the big lion", 3)]
    report = evaluate_instructions(
        lm, params, TOKENIZER, Template(), questions, max_new_tokens=20, batch_size=2
    )
    assert [record["answer"] for record in report.records] == ["the lion"] * 3
    assert [record["where"] for record in report.records] == [
        "f.jsonl, line 1",
        "f.jsonl, line 2",
        "f.jsonl, line 3",
    ]
    assert report.exact_match == pytest.approx(1 / 3)
    # Articles gone: lion = lion; none of zoo; lion of big lion.
    assert report.token_f1 == pytest.approx((1 + 0 + 2 / 3) / 3)
    # ROUGE-L keeps them: lion of (the lion, a lion); none; the lion of (the lion, the big lion).
    assert report.rouge_l == pytest.approx((2 / 4 + 0 + 4 / 5) / 3)
    assert (report.stop_rate, report.mean_tokens) == (1.0, 8.0)
    assert report.mean_reference_tokens == pytest.approx((7 + 3 + 12) / 3)
    assert report.corpus is not None
    assert 0 < report.corpus["chrf"] < 100
    cut = evaluate_instructions(lm, params, TOKENIZER, Template(), questions, max_new_tokens=8)
    assert (cut.stop_rate, cut.records[0]["finish_reason"]) == (0.0, "length")
    json.dumps([report.as_dict(), report.records])


def test_a_record_beyond_the_positions_is_left_out_and_named():
    lm, params = history_lm(spelling("=a;"), decay=0.0, num_positions=12)
    questions = [question("q", "a"), question("q" * 9, "a", 2), question("q", "a" * 20, 3)]
    report = evaluate_instructions(lm, params, TOKENIZER, Template(), questions, max_new_tokens=4)
    assert report.too_long == ["f.jsonl, line 2", "f.jsonl, line 3"]
    assert (report.num_records, report.exact_match) == (1, 1.0)
    with pytest.raises(UserError, match="none of the 1 records can be evaluated: .* beyond the 12 positions"):
        evaluate_instructions(lm, params, TOKENIZER, Template(), questions[1:2], max_new_tokens=4)
    with pytest.raises(UserError, match="none of the 0 records"):
        evaluate_instructions(lm, params, TOKENIZER, Template(), [], max_new_tokens=4)


def test_weights_that_have_diverged_are_refused():
    lm, params = history_lm(np.full((V, V), np.nan, np.float32))
    with pytest.raises(UserError, match="not finite"):
        answer_loss(lm, params, [([2, 3], [False, True])])
    with pytest.raises(UserError, match="no token of an answer"):
        answer_loss(lm, jax.tree.map(np.asarray, params), [([2, 3], [True, False])])


def test_consistency_counts_groups_and_pairs():
    groups = ["a", "a", "a", "b", "b", None, "alone", None]
    answers = ["The lion.", "lion", "tiger", "yes", "Yes!", "x", "y", "x"]
    found = consistency(groups, answers)
    # a: one of three pairs agrees; b: its only pair.
    assert (found.num_groups, found.num_agreeing, found.num_pairs, found.num_agreeing_pairs) == (2, 1, 4, 2)
    assert found.as_dict()["agreement"] == found.as_dict()["pairwise_agreement"] == 0.5
    assert consistency([None, "a"], ["x", "x"]) is None
    assert consistency(["a", "a"], ["->", "<-"]).num_agreeing == 0  # nothing is left of either
