"""Classification without a classifier: which label a language model would write next, zero-shot or few-shot.

The baseline that a trained classifier has to beat.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxlm.evaluate.classification import log_softmax
from jaxlm.infer.next_token import row_logits, word_row
from jaxlm.infer.text import encode_prompt
from jaxlm.types import UserError

TEMPLATE = "Text: {text}\nLabel:"
"""The label follows after a space."""
MAX_TEXT_TOKENS = 256
BATCH_SIZE = 16


def check_template(template: str) -> str:
    """The template. Errors: UserError where a text does not stand in it once."""
    if template.count("{text}") != 1:
        raise UserError(f"The template {template!r} must hold {{text}} once: that is where the text stands.")
    return template


def pick_examples(
    pairs: Sequence[tuple[str, str]], labels: Sequence[str], num_shots: int
) -> list[tuple[str, str]]:
    """The first num_shots (text, label) in turn over the labels, so that each is shown about as often."""
    by_label: dict[str, list[tuple[str, str]]] = {label: [] for label in labels}
    for text, label in pairs:
        by_label[label].append((text, label))
    turns = max(map(len, by_label.values()), default=0)
    in_turn = [found[turn] for turn in range(turns) for found in by_label.values() if turn < len(found)]
    return in_turn[:num_shots]


def prompts_of(
    tokenizer: Any,
    texts: Sequence[str],
    template: str,
    examples: Sequence[tuple[str, str]],
    max_text_tokens: int = MAX_TEXT_TOKENS,
) -> list[str]:
    """What comes before the label of each text: the examples with their labels, then the text, each cut to length."""

    def filled(text: str) -> str:
        ids = tokenizer.encode(text)
        cut = text if len(ids) <= max_text_tokens else tokenizer.decode(ids[:max_text_tokens])
        return template.replace("{text}", cut)

    shown = "".join(f"{filled(text)} {label}\n\n" for text, label in examples)
    return [shown + filled(text) for text in texts]


def zero_shot(
    loaded: Any,
    texts: Sequence[str],
    labels: Sequence[str],
    template: str = TEMPLATE,
    examples: Sequence[tuple[str, str]] = (),
    *,
    normalise: bool = False,
    max_text_tokens: int = MAX_TEXT_TOKENS,
    batch_size: int = BATCH_SIZE,
    on_progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """log p(label | prompt) [N, C], in nats, by the chain rule over the label's tokens.

    Args:
      loaded: a LoadedRun with a language head.
      examples: (text, label) that stand before each text; none: zero-shot.
      normalise: by the number of a label's tokens, so that long labels are not at a disadvantage.

    Errors: UserError for a run that is a classifier, and a template without {text}.
    """
    if loaded.config.model.num_classes is not None:
        raise UserError(
            "A classifier writes no labels, since its head is not one of words: give the language model that it was "
            "trained from (--baseline=RUN)."
        )
    tokenizer = loaded.tokenizer
    prompts = prompts_of(tokenizer, texts, check_template(template), examples, max_text_tokens)
    scores_NC = np.zeros((len(texts), len(labels)))
    by_length = np.argsort([len(prompt) for prompt in prompts], kind="stable")
    for first in range(0, len(prompts), batch_size):
        chosen = [int(i) for i in by_length[first : first + batch_size]]
        _score(loaded, [prompts[i] for i in chosen], labels, scores_NC, chosen, normalise)
        if on_progress is not None:
            on_progress(first + len(chosen), len(prompts))
    return scores_NC


def _score(
    loaded: Any,
    prompts: Sequence[str],
    labels: Sequence[str],
    scores_NC: np.ndarray,
    places: Sequence[int],
    normalise: bool,
) -> None:
    """Fills in the rows `places`. Labels of one token each need a single pass over their prompt: they share it."""
    wanted: dict[tuple[int, ...], list[tuple[int, int, list[int]]]] = defaultdict(list)
    starts: dict[tuple[int, ...], int] = {}
    for place, prompt in zip(places, prompts, strict=True):
        ids = encode_prompt(loaded.tokenizer, prompt)
        rows = [word_row(loaded.tokenizer, prompt, ids, label) for label in labels]
        # Where a label merges with the end of the prompt, all labels of the text are given what comes before that.
        start = min(shared for _, shared in rows)
        for c, (row, _) in enumerate(rows):
            inputs = tuple(row[:-1])
            wanted[inputs].append((place, c, row[start:]))
            starts[inputs] = start - 1
    found = row_logits(loaded.lm, loaded.params, list(wanted), [starts[inputs] for inputs in wanted])
    for targets, logits_WV in zip(wanted.values(), found, strict=True):
        log_probs_WV = log_softmax(logits_WV[:, : loaded.tokenizer.vocab_size])
        for place, c, label_ids in targets:
            nats = log_probs_WV[np.arange(len(label_ids)), label_ids].sum()
            scores_NC[place, c] = nats / len(label_ids) if normalise else nats
