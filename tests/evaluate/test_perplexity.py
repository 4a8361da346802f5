"""Promises of perplexity: every token counts once, windows are told apart, and bits per byte count bytes."""

import math

import numpy as np
import pytest
from standin import ByteTokenizer, history_lm, random_table

from jaxlm.evaluate.perplexity import Perplexity, text_perplexity, together, units_of, windows
from jaxlm.types import UserError


def scored(text, window, *, bos_id=0, max_tokens=None, words=(), stride=None):
    """(result, loss in nats of the same by hand): a bigram model knows the token before, and nothing else."""
    tokenizer = ByteTokenizer(words, bos_id)
    tokenizer.bytes_per_id = lambda: np.array([len(b) for b in tokenizer.bytes], np.int32)
    table = random_table(tokenizer.vocab_size)
    lm, params = history_lm(table, decay=0.0)
    lm.hidden_with_router = None
    hidden = lm.hidden
    lm.hidden = lambda params, batch, key=None: hidden(
        params,
        batch | {"positions": np.broadcast_to(np.arange(batch["tokens"].shape[1]), batch["tokens"].shape)},
    )
    found = text_perplexity(lm, params, tokenizer, text, window=window, max_tokens=max_tokens, stride=stride)
    logprobs = table - np.log(np.exp(table.astype(np.float64)).sum(-1, keepdims=True))
    prefix, ids = list(tokenizer.prefix_ids), tokenizer.encode(text)[:max_tokens]
    step, nats = window - len(prefix), 0.0
    for start in range(0, len(ids), step):
        row = prefix + ids[start : start + step]
        nats -= sum(logprobs[a, b] for a, b in zip(row, row[1:]))
    return found, nats


@pytest.mark.parametrize("window", [3, 5, 8, 100])
@pytest.mark.parametrize("bos_id", [None, 0])
def test_the_loss_is_that_of_every_window_by_hand(window, bos_id):
    found, nats = scored("The lion is in the zoo.", window, bos_id=bos_id)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    num_windows = math.ceil(23 / (window - (bos_id is not None)))
    assert found.num_tokens == (23 if bos_id is not None else 23 - num_windows)
    assert found.perplexity == pytest.approx(math.exp(nats / found.num_tokens), rel=1e-5)


def test_bits_per_byte_count_the_bytes_that_the_tokens_stand_for():
    found, nats = scored("zoo zoo ভ", 50, words=("zoo",))
    assert (found.num_tokens, found.num_bytes) == (2 + 2 + 3, len("zoo zoo ভ".encode()))
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / found.num_bytes, rel=1e-5)


def test_max_tokens_cuts_the_text():
    found, nats = scored("The lion is in the zoo.", 8, max_tokens=10)
    assert found.num_tokens == 10
    assert found.nats == pytest.approx(nats, rel=1e-5)


def test_overlapping_windows_score_every_token_once_with_the_most_context():
    """Aligned by hand: prefix 9, window 4, stride 2. A row's scored tokens are those from `start` on."""
    rows = [(list(row.ids), row.start) for row in windows([1, 2, 3, 4, 5, 6], [9], 4, 2)]
    assert rows == [([9, 1, 2, 3], 1), ([2, 3, 4, 5], 2), ([4, 5, 6], 2)]
    for length in range(1, 12):
        for stride in (1, 2, 3):
            found = [t for row in windows(range(1, length + 1), [0], 4, stride) for t in row.ids[row.start :]]
            assert found == list(range(1, length + 1)), (length, stride)


def test_more_context_lowers_no_count_and_a_bigram_does_not_mind_the_stride():
    text = "The lion is in the zoo."
    apart, nats = scored(text, 8, bos_id=0)
    overlapping, _ = scored(text, 8, bos_id=0, stride=3)
    assert overlapping.num_tokens == apart.num_tokens == 23
    # All but the first window lose their BOS as the token before, so only those losses differ.
    assert overlapping.nats != pytest.approx(nats, rel=1e-6)
    whole, whole_nats = scored(text, 100, bos_id=0)
    assert overlapping.nats == pytest.approx(whole_nats, rel=1e-5)


def test_the_standard_error_is_that_of_a_ratio_over_documents():
    units = [(10.0, 5, 20), (30.0, 10, 30), (8.0, 4, 10)]
    found = Perplexity(units, 3)
    residuals = [nats - 48 / 19 * tokens for nats, tokens, _ in units]
    expected = math.sqrt(3 / 2 * sum(r * r for r in residuals)) / 19
    assert found.loss_error == pytest.approx(expected)
    assert found.perplexity_error == pytest.approx(expected * math.exp(48 / 19))
    assert Perplexity(units[:1], 1).loss_error is None
    whole = together([Perplexity(units[:1], 1), Perplexity(units[1:], 2)])
    assert (whole.nats, whole.num_documents, whole.loss_error) == (48.0, 3, found.loss_error)


def test_a_long_document_is_cut_into_blocks_and_loses_nothing():
    losses = np.arange(5000.0)
    units = units_of([(losses, np.ones(5000, int))])
    assert len(units) == 20
    assert sum(nats for nats, _, _ in units) == losses.sum()
    assert sum(tokens for _, tokens, _ in units) == sum(num for _, _, num in units) == 5000


@pytest.mark.parametrize("stride", [0, 8, 9])
def test_a_stride_that_leaves_tokens_out_is_refused(stride):
    with pytest.raises(UserError, match="stride="):
        scored("The lion is in the zoo.", 8, stride=stride)


@pytest.mark.parametrize(
    ("text", "window", "bos_id"), [("", 8, None), ("a", 8, None), ("ab", 1, None), ("ab", 2, 0)]
)
def test_what_cannot_be_scored_is_said(text, window, bos_id):
    with pytest.raises(UserError, match="nothing can be predicted|window="):
        scored(text, window, bos_id=bos_id)
