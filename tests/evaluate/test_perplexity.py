"""Promises of perplexity: every token counts once, windows are told apart, and bits per byte count bytes."""

import math

import numpy as np
import pytest
from standin import ByteTokenizer, history_lm, random_table

from jaxlm.evaluate.perplexity import text_perplexity, windows
from jaxlm.types import UserError


def scored(text, window, *, bos_id=0, max_tokens=None, words=()):
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
    found = text_perplexity(lm, params, tokenizer, text, window=window, max_tokens=max_tokens)
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


def test_padding_and_missing_rows_have_no_weight():
    (batch,) = windows([5, 6, 7], [1], 3)
    assert batch["tokens"].tolist() == [[1, 5], [1, 7], [0, 0], [0, 0]]
    assert batch["targets"].tolist() == [[5, 6], [7, 0], [0, 0], [0, 0]]
    assert batch["weights"].tolist() == [[1, 1], [1, 0], [0, 0], [0, 0]]
    assert batch["segments"].tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("text", "window", "bos_id"), [("", 8, None), ("a", 8, None), ("ab", 1, None), ("ab", 2, 0)]
)
def test_what_cannot_be_scored_is_said(text, window, bos_id):
    with pytest.raises(UserError, match="nothing can be predicted|window="):
        scored(text, window, bos_id=bos_id)
