"""What a run writes after every evaluation: continuations of the prompts of `report.sample_prompts`."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.infer.chat import message_ids
from jaxlm.infer.greedy import make_greedy, pad_rows
from jaxlm.infer.text import encode_prompt
from jaxlm.parallel.sharding import ACTIVATIONS
from jaxlm.report.run_report import RunReport
from jaxlm.types import Params

if TYPE_CHECKING:
    from jaxlm.run import Run

NUM_TOKENS = 48
"""Of a continuation, at most; and of a row of the training, at most half."""


def make_samples(run: Run, report: RunReport) -> Callable[[int, Params], None] | None:
    """samples(step, trained weights): writes a `text` event for each prompt; None where the config has no prompts.

    Greedy, by a program of its own, compiled at the first evaluation: the steps of the training, its random numbers and
    its batches stay as they are. All processes take part, the first one writes. Of a prompt that is too long for a row
    the end is continued.
    """
    cfg, pieces = run.config, run.pieces
    prompts = cfg.report.prompts
    if not prompts:
        return None
    tokenizer, chat, T = run.data.tokenizer, run.data.chat, cfg.data.seq_len
    num_new = min(NUM_TOKENS, T // 2)
    ids = [encode_prompt(tokenizer, text) if chat is None else message_ids(chat, text) for text in prompts]
    stop_ids = np.array(tokenizer.stop_ids if chat is None else chat.stop_ids, np.int32)
    batch_axes = ACTIVATIONS["batch"]
    assert isinstance(batch_axes, tuple)
    num_rows = prod(pieces.sizes[axis] for axis in batch_axes)
    tokens_BT, lengths_B = pad_rows([one[-(T - num_new) :] for one in ids], num_rows, T)
    greedy, tuning = make_greedy(pieces.lm, num_new, tokenizer.vocab_size), pieces.tuning
    everywhere = NamedSharding(pieces.mesh, PartitionSpec())
    frozen = (pieces.steps.frozen_shardings,) if tuning.freezes else ()
    step_of = jax.jit(
        lambda params, tokens_BT, lengths_B, stop_ids, frozen=None: greedy(
            tuning.merge(params, frozen), tokens_BT, lengths_B, stop_ids
        ),
        in_shardings=(pieces.steps.shardings.params, everywhere, everywhere, everywhere, *frozen),
        out_shardings=everywhere,
    )

    def samples(step: int, params: Params) -> None:
        also = (pieces.steps.frozen,) if tuning.freezes else ()
        new_BM = np.asarray(jax.device_get(step_of(params, tokens_BT, lengths_B, stop_ids, *also)))
        for prompt, before, row in zip(prompts, ids, new_BM):
            # With the prompt's end before them: some decoders drop the first space they see.
            start, new = list(before[-8:]), [int(token) for token in row if token >= 0]
            text = tokenizer.decode(start + new)[len(tokenizer.decode(start)) :]
            report.text(step, f"sample: {prompt}", text)

    return samples
