"""Held-out scores are quotients of sums over all batches of a source, and over all sources."""

import contextlib

import numpy as np
import pytest

from jaxlm.objectives import Sums
from jaxlm.train.hooks import Evaluate


def test_the_held_out_loss_is_a_quotient_of_sums():  # pain 1
    """Batches of 1, 10 and 100 targets: a mean of their means would be another number."""
    nats = {"web": [(9.0, 1.0), (20.0, 10.0)], "books": [(100.0, 100.0)]}
    sources = {
        name: lambda bytes_per_id, sums=sums: ((one, 3.0 * one[1]) for one in sums)
        for name, sums in nats.items()
    }
    evaluate = Evaluate(
        lambda params, batch: Sums(np.float32(batch[0]), np.float32(batch[1])),
        sources,
        report=None,
        every=1,
        num_steps=1,
        bytes_per_id=np.zeros(1),
        place=lambda batch: batch,
        aside=lambda *_: contextlib.nullcontext(),
    )
    scores = evaluate.scores(None)
    assert scores["eval/web/loss"] == pytest.approx(29 / 11)
    assert scores["eval/web/bits_per_byte"] == pytest.approx(29 / np.log(2) / 33)
    assert scores["eval/books/loss"] == pytest.approx(1.0)
    assert scores["eval/loss"] == pytest.approx(129 / 111)
