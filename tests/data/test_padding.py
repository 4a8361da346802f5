"""One example a row: what a row holds, and which rows share a batch."""

import numpy as np
import pytest
from chat_cases import TEMPLATES, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_examples import MemoryExamples
from memory_store import MemoryStore

from jaxlm.data.chat import Message, open_template
from jaxlm.data.config import DataConfig, SourceConfig
from jaxlm.data.packing import BestFitPacking, ExampleReader
from jaxlm.data.padding import Labelled, PadPacking, group_by_length, row_widths
from jaxlm.data.pipeline import Rows, batch_hash, make_iterator, make_record_eval_batches
from jaxlm.types import UserError

SPAM = Labelled("last", ("ham", "spam"))


def test_examples_are_told_from_documents():
    assert isinstance(MemoryExamples([[1, 2]]), ExampleReader)
    assert not isinstance(MemoryStore([[1, 2]]), ExampleReader)


def test_a_dialogue_in_a_row_of_its_own():  # pain 6
    store = MemoryExamples([[1, 5, 6, 7, 2], [1, 8, 2]], trained=[[0, 0, 0, 1, 1], [0, 1, 1]])
    rows = PadPacking(store, 8).rows(np.array([0, 1]), width=6)
    #                             prompt  answer end
    assert rows["tokens"].tolist() == [[1, 5, 6, 7, 0, 0], [1, 8, 0, 0, 0, 0]]
    assert rows["targets"].tolist() == [[5, 6, 7, 2, 0, 0], [8, 2, 0, 0, 0, 0]]
    assert rows["weights"].tolist() == [[0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert rows["segments"].tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert rows["positions"].tolist() == [[0, 1, 2, 3, 0, 0], [0, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("pooling", "weights"),
    [("last", [[0, 0, 1, 0], [1, 0, 0, 0]]), ("mean", [[1 / 3, 1 / 3, 1 / 3, 0], [1, 0, 0, 0]])],
)
def test_a_text_with_its_label(pooling, weights):
    store = MemoryExamples([[1, 5, 6], [9]], labels=["spam", "ham"])
    rows = PadPacking(store, 8, Labelled(pooling, ("ham", "spam"))).rows(np.array([0, 1]), width=4)
    assert rows["tokens"].tolist() == [[1, 5, 6, 0], [9, 0, 0, 0]]
    np.testing.assert_allclose(rows["weights"], weights, rtol=1e-6)
    assert rows["labels"].tolist() == [1, 0]
    assert "targets" not in rows


def test_packed_dialogues_are_isolated_and_keep_their_masks():
    store = MemoryExamples([[1, 5, 6, 2], [1, 7, 2]], trained=[[0, 0, 1, 1], [0, 1, 1]])
    rows = BestFitPacking(store, 8).rows(np.array([0]))
    assert rows["tokens"].tolist() == [[1, 5, 6, 1, 7, 0, 0, 0]]
    assert rows["targets"].tolist() == [[5, 6, 2, 7, 2, 0, 0, 0]]
    assert rows["weights"].tolist() == [[0, 1, 1, 1, 1, 0, 0, 0]]
    assert rows["segments"].tolist() == [[1, 1, 1, 2, 2, 0, 0, 0]]


@given(st.lists(st.integers(2, 17), min_size=1, max_size=60), st.randoms())
@settings(max_examples=50, deadline=None)
def test_packed_or_padded_every_trained_target_comes_once(lengths, random):
    documents, token = [], 1
    for length in lengths:
        documents.append(list(range(token, token + length)))
        token += length
    trained = [[random.random() < 0.4 for _ in document] for document in documents]
    store = MemoryExamples(documents, trained)
    expected = sorted(
        document[i] for document, mask in zip(documents, trained) for i in range(1, len(document)) if mask[i]
    )
    for packing in (BestFitPacking(store, 16), PadPacking(store, 16)):
        rows = packing.rows(np.arange(packing.num_rows))
        assert sorted(rows["targets"][rows["weights"] > 0].tolist()) == expected
        assert packing.num_tokens_per_epoch == len(expected) == rows["weights"].sum()


@pytest.mark.parametrize("options", [{}, {"train_on": "last_answer"}, {"train_on_prompt": True}], ids=str)
@pytest.mark.parametrize("family", [*TEMPLATES, "alpaca"])
def test_a_dialogue_has_the_mask_of_its_template_packed_or_alone(family, options):  # pain 9
    """Every option, every template, both ways into rows, and the batches that a run reads."""
    template = open_template(
        tokenizer("chatml" if family == "alpaca" else family), "alpaca" if family == "alpaca" else "chat"
    )
    turns = [Message(role, word) for role, word in (("user", "Add"), ("assistant", "Hello"))]
    asked = [[*turns * n, Message("user", "Hi" * n), Message("assistant", "Bye" * n)] for n in range(6)]
    examples = [template.example(messages, **options) for messages in asked[1:]]
    store = MemoryExamples(*zip(*examples))
    seq_len = max(len(ids) for ids, _ in examples)
    expected = sorted((ids[:-1], ids[1:], known[1:]) for ids, known in examples)
    assert len({sum(known) for _, _, known in expected}) > 1

    def found(rows):
        return [
            tuple(
                rows[key][row][rows["segments"][row] == segment].tolist()
                for key in ("tokens", "targets", "weights")
            )
            for row in range(len(rows["tokens"]))
            for segment in range(1, rows["segments"][row].max() + 1)
        ]

    for packing in (BestFitPacking(store, seq_len), PadPacking(store, seq_len)):
        assert sorted(found(packing.rows(np.arange(packing.num_rows)))) == expected
    for name in ("best_fit", "pad"):
        cfg = config(packing=name, seq_len=seq_len, global_batch_size=1)
        rows = Rows(cfg, {"sms": store}, seed=0)
        num_steps = rows.mixture.sizes[0].num_rows
        with make_iterator(rows, num_steps=num_steps) as batches:
            assert sorted(one for batch in batches for one in found(batch)) == expected


def test_widths_are_few_and_end_with_the_longest_row():
    assert row_widths(200) == [16, 24, 32, 48, 64, 96, 128, 192, 200]
    assert row_widths(16) == [16]
    assert row_widths(5) == [5]


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**32), st.randoms())
@settings(max_examples=50, deadline=None)
def test_a_window_uses_each_row_once_and_keeps_similar_lengths_together(num_steps, batch_size, seed, random):
    lengths = np.array([random.randint(1, 300) for _ in range(num_steps * batch_size)])
    batches = group_by_length(lengths, batch_size, seed)
    assert sorted(batches.ravel().tolist()) == list(range(len(lengths)))
    spans = sorted((lengths[batch].min(), lengths[batch].max()) for batch in batches)
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:]))


def texts(count):
    documents = [[1 + (k * 7 + i) % 50 for i in range(1 + k * k % 60)] for k in range(count)]
    return MemoryExamples(documents, labels=[["ham", "spam"][k % 2] for k in range(count)])


def config(**changes):
    sources = {"sms": SourceConfig(path="x", on_exhausted="repeat")}
    return DataConfig(
        **{
            "sources": sources,
            "seq_len": 64,
            "global_batch_size": 8,
            "packing": "pad",
            "length_window_steps": 5,
        }
        | changes
    )


def test_an_epoch_of_a_padded_run_has_each_text_once_and_little_padding():
    store = texts(80)
    grouped, plain = (
        [Rows(config(length_window_steps=window), {"sms": store}, 3, SPAM).batch(step) for step in range(10)]
        for window in (5, 1)
    )
    for batches in (grouped, plain):
        seen = [tuple(t[s > 0].tolist()) for b in batches for t, s in zip(b["tokens"], b["segments"])]
        assert sorted(seen) == sorted(
            tuple(row.tolist()) for row in np.split(store.tokens, store.document_ends)[:-1]
        )
    assert sum(b["tokens"].size for b in grouped) < 0.75 * sum(b["tokens"].size for b in plain)
    assert {b["tokens"].shape[1] for b in grouped} <= set(row_widths(64))


@pytest.mark.parametrize("labelled", [SPAM, None])
def test_any_number_of_processes_and_any_start_give_the_same_padded_batches(labelled):
    rows = Rows(config(), {"sms": texts(83)}, 7, labelled)
    whole = [rows.batch(step) for step in range(23)]
    again = Rows(config(), {"sms": texts(83)}, 7, labelled)
    for step in (22, 3, 11, 0):
        parts = [again.batch(step, np.arange(first, first + 2)) for first in range(0, 8, 2)]
        for key in whole[step]:
            np.testing.assert_array_equal(
                np.concatenate([part[key] for part in parts]), whole[step][key], err_msg=key
            )
        assert batch_hash(np.concatenate([part["fingerprint"] for part in parts])) == batch_hash(
            whole[step]["fingerprint"]
        )


def test_another_label_is_another_batch():
    store = texts(16)
    before = Rows(config(), {"sms": store}, 0, SPAM).batch(0)
    store._labels = store._labels[::-1]
    after = Rows(config(), {"sms": store}, 0, SPAM).batch(0)
    np.testing.assert_array_equal(before["tokens"], after["tokens"])
    assert batch_hash(before["fingerprint"]) != batch_hash(after["fingerprint"])


@pytest.mark.parametrize(("num_batches", "expected"), [(2, 16), (9, 21)])
def test_held_out_texts_come_once_in_batches_filled_up_with_nothing(num_batches, expected):
    packing = PadPacking(texts(21), 64, SPAM)
    batches = list(make_record_eval_batches(packing, batch_size=8, num_batches=num_batches))
    assert sum(batch["weights"].sum() for batch in batches) == expected
    assert all(len(batch["labels"]) == 8 for batch in batches)
    again = list(
        make_record_eval_batches(packing, batch_size=8, num_batches=num_batches, row_ids=np.array([2, 5]))
    )
    for batch, part in zip(batches, again, strict=True):
        for key in part:
            np.testing.assert_array_equal(part[key], batch[key][[2, 5]], err_msg=key)


def test_a_source_with_nothing_to_learn_is_refused():
    store = MemoryExamples([[1, 2, 3]] * 4, trained=[[0, 0, 0]] * 4)
    with pytest.raises(UserError, match=r"data\.sources\.sms: nothing in its 4 records is trained on"):
        Rows(config(), {"sms": store}, 0)
