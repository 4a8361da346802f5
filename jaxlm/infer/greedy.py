"""Greedy continuations on the mesh of a training: the forward pass that it evaluates with, one token at a time.

No cache: every token costs a pass over whole rows. In return, this runs wherever the training does, on any mesh and
any number of processes, with the weights where they are; and a few samples at an evaluation cost little beside it. To
sample for its own sake there is infer/sample.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlm.models.build import LM, states
from jaxlm.types import Params


def make_greedy(
    lm: LM, num_new: int, vocab_size: int
) -> Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]:
    """greedy(params, tokens_BT, lengths_B, stop_ids) -> new tokens [B, num_new], -1 after a row's end; to be jitted.

    Args:
      vocab_size: ids from here on are padding of the table and are never picked.
    """

    def greedy(params: Params, tokens_BT: jax.Array, lengths_B: jax.Array, stop_ids: jax.Array) -> jax.Array:
        B, T = tokens_BT.shape
        positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
        head_params = {key: params[key] for key in lm.head_keys}

        def one_token(carry):
            i, tokens_BT, ends_B, done_B, new_BM = carry
            segments_BT = (positions_BT < ends_B[:, None]).astype(jnp.int32)
            batch = lm.arrange({"tokens": tokens_BT, "positions": positions_BT, "segments": segments_BT})
            x_BTD, _ = states(lm, params, batch)
            # Where the newest token stands, whatever the order of the states is.
            is_last_BT = batch["positions"] == ends_B[:, None] - 1
            x_BD = jnp.where(is_last_BT[:, :, None], x_BTD, 0).sum(axis=1)
            logits_BV = lm.head(head_params, x_BD)
            is_word_V = jnp.arange(logits_BV.shape[1]) < vocab_size
            picked_B = jnp.where(is_word_V[None], logits_BV, -jnp.inf).argmax(axis=1).astype(jnp.int32)
            done_B = done_B | jnp.any(picked_B[:, None] == stop_ids[None], axis=1) | (ends_B >= T)
            new_BM = new_BM.at[:, i].set(jnp.where(done_B, -1, picked_B))
            is_next_BT = (positions_BT == ends_B[:, None]) & ~done_B[:, None]
            tokens_BT = jnp.where(is_next_BT, picked_B[:, None], tokens_BT)
            return i + 1, tokens_BT, jnp.where(done_B, ends_B, ends_B + 1), done_B, new_BM

        def more(carry):
            return (carry[0] < num_new) & ~jnp.all(carry[3])

        start = (
            jnp.int32(0),
            tokens_BT,
            lengths_B,
            jnp.zeros(B, bool),
            jnp.full((B, num_new), -1, jnp.int32),
        )
        return lax.while_loop(more, one_token, start)[4]

    return greedy


def pad_rows(prompts: Sequence[Sequence[int]], num_rows: int, T: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens_BT, lengths_B) of at least `num_rows` rows: a prompt for each, and rows of one token to fill up."""
    rows = [*prompts, *[[0]] * (-len(prompts) % num_rows)]
    tokens_BT = np.zeros((len(rows), T), np.int32)
    for row, ids in zip(tokens_BT, rows):
        row[: len(ids)] = ids
    return tokens_BT, np.array([len(ids) for ids in rows], np.int32)
