"""Names shared by all of jaxlm, and the legend of dimension letters.

| letter     | meaning                                   | config field                    | logical axis      |
|------------|-------------------------------------------|---------------------------------|-------------------|
| B; T, S    | sequences in the batch; query, key places | global_batch_size; seq_len      | batch; length     |
| D, F, V    | model width, MLP width, vocabulary        | embed_dim, mlp_dim, vocab_size  | embed, mlp, vocab |
| N, K; H    | query heads, KV heads; head width         | num_heads, num_kv_heads; head_dim | heads, kv_heads |
| E; J       | experts of a layer; of a token            | num_experts; num_experts_per_token | experts; -     |
| G          | query heads per KV head, N // K           | -                               | -                 |
| L, C       | layers, classes                           | num_layers, num_classes         | layers, classes   |

Letters describe the logical shape: the same on one chip and on a thousand. *Dim* is for tensors, *axis* for meshes.
"""

from __future__ import annotations

from typing import Any

PyTree = Any
"""Nested dicts, tuples and named tuples of arrays."""

Params = dict[str, Any]
"""The weights of a model: nested dicts of arrays, no boxes."""

Batch = dict[str, Any]
"""One batch: `tokens`, `targets`, `weights`, `segments`, `positions`, each [B, T].

tokens: int32 ids. targets: int32, the token after it. weights: float32, 1 where the target is trained on, else 0.
segments: int32, 1.. for the documents of a row, 0 for padding. positions: int32, restarts at 0 in each segment.
To classify texts, `labels` ([B] int32, or [B, C] float32) stands in place of targets, and weights say what each state
counts in the pooled state of its text.
`fingerprint` [B] uint32 identifies the row (its tokens and its place), summed into the step's batch hash.
`source` [B] int32 is the index of the row's source in the mixture.
"""


JSON_ERRORS = (ValueError, RecursionError)
"""What json raises: of bad syntax; of a number of 5,000 digits, or brackets 1,000 deep."""


class UserError(ValueError):
    """A mistake only the user can mend: bad config, bad input, wrong directory.

    The command line prints its message as one line and exits with code 2; every other exception is a bug and keeps
    its traceback. The message names the value, the rule with its reason, and a way out.
    """
