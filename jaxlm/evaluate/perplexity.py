"""Perplexity and bits per byte of a text, in windows that do not overlap."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxlm.data.tokenizer import Tokenizer
from jaxlm.models.build import LM
from jaxlm.objectives.next_token import make_loss
from jaxlm.types import Batch, Params, UserError

BATCH_SIZE = 4


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text."""

    nats: float
    """Sum of the losses of all predicted tokens."""
    num_tokens: int
    """That were predicted."""
    num_bytes: int
    """Of text that these stand for."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers, which perplexity is not."""
        return self.nats / math.log(2) / self.num_bytes

    def as_dict(self) -> dict[str, float]:
        """Everything, for JSON."""
        derived = {name: getattr(self, name) for name in ("loss", "perplexity", "bits_per_byte")}
        return dataclasses.asdict(self) | derived


def windows(ids: Sequence[int], prefix: Sequence[int], window: int) -> Iterator[Batch]:
    """Batches of rows of `window` tokens: the prefix (BOS, where the model wants one), and the next ids of the text.

    The first token of a row is only context. The last row is shorter: its rest, like missing rows, has weight 0.
    """
    step = window - len(prefix)
    rows = [[*prefix, *ids[start : start + step]] for start in range(0, len(ids), step)]
    rows = [row for row in rows if len(row) > 1]
    for first in range(0, len(rows), BATCH_SIZE):
        tokens_BT = np.zeros((BATCH_SIZE, window), np.int32)
        lengths_B1 = np.zeros((BATCH_SIZE, 1), np.int64)
        for i, row in enumerate(rows[first : first + BATCH_SIZE]):
            tokens_BT[i, : len(row)], lengths_B1[i] = row, len(row)
        places_1T = np.arange(window)[None]
        yield {
            "tokens": tokens_BT[:, :-1],
            "targets": tokens_BT[:, 1:],
            "weights": (places_1T[:, 1:] < lengths_B1).astype(np.float32),
            "segments": (places_1T[:, :-1] < lengths_B1).astype(np.int32),
        }


def text_perplexity(
    lm: LM,
    params: Params,
    tokenizer: Tokenizer,
    text: str,
    *,
    window: int,
    max_tokens: int | None = None,
) -> Perplexity:
    """Scores a text.

    Args:
      window: tokens of a row, its context. Published figures say theirs: a longer one gives a lower perplexity.
      max_tokens: of the text, from its beginning; None: all.

    Errors: UserError for a text of no two tokens, and for a window of one.
    """
    prefix = list(tokenizer.prefix_ids)
    if window < len(prefix) + 2:
        raise UserError(
            f"window={window} must be at least {len(prefix) + 2}: a prediction needs a token before it."
        )
    ids = tokenizer.encode(text)[:max_tokens]
    if len(prefix) + len(ids) < 2:
        raise UserError(f"the text has {len(ids)} tokens: nothing can be predicted. Give a longer one.")
    loss, bytes_per_id = make_loss(lm), tokenizer.bytes_per_id()
    score = jax.jit(lambda params, batch: loss(params, batch)[1].loss)
    nats, num_tokens, num_bytes = 0.0, 0, 0
    for batch in windows(ids, prefix, window):
        nats += float(score(params, batch))
        is_target_BT = batch["weights"] > 0
        num_tokens += int(is_target_BT.sum())
        num_bytes += int(bytes_per_id[batch["targets"][is_target_BT]].sum())
    if not math.isfinite(nats):
        raise UserError(
            "the loss is not finite: the weights have diverged or are damaged. Try an earlier step."
        )
    return Perplexity(nats, num_tokens, num_bytes)
