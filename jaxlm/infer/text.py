"""Sampling in text: prompts in, text out, with stop strings and streaming."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxlm.data.tokenizer import Tokenizer
from jaxlm.infer.sample import generate
from jaxlm.models.build import LM
from jaxlm.types import Params, UserError

REPLACEMENT = "\ufffd"
MAX_WINDOW = 32
"""Tokens decoded again for each new one; enough that no decoder depends on what came before them."""
KEPT_WINDOW = 8

OnText = Callable[[int, str], None]
"""on_text(row, new text)."""


@dataclass(frozen=True)
class Continuation:
    """A prompt and what the model wrote after it."""

    prompt: str
    text: str
    """Without the stop string that ended it, and without the bytes of a character cut off at the end."""
    tokens: list[int]
    """The new tokens, those of a stop string included, EOS and other stop ids not."""
    logprobs: list[float]
    """Of `tokens`, in nats, by the model itself: before temperature and filters."""
    finish_reason: str
    """`eos`, `stop` (a stop string, or another id that ends a text) or `length`."""


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The text as a training document starts: with BOS where the model wants one, once, and never EOS.

    A special token that is written out in the prompt is that token; a BOS in front is not doubled.
    """
    prefix, ids = list(tokenizer.prefix_ids), list(tokenizer.encode_markup(prompt))
    if ids[: len(prefix)] != prefix:
        ids = prefix + ids
    if not ids:
        raise UserError(
            "the prompt is empty and the tokenizer puts no BOS token before a text: give at least one character."
        )
    return ids


class TextStream:
    """Turns new tokens into text that can be shown at once.

    What it returns is final: never a part of a character, never text that may yet turn out to belong to a
    stop string. The pieces joined are the text after the prompt.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop: Sequence[str] = ()):
        self._decode = tokenizer.decode
        # Some decoders drop the first space they see: with the prompt's end before it, it is not the first.
        self._window = list(prompt_ids[-KEPT_WINDOW:])
        self._num_shown = len(self._decode(self._window))
        self._stop = tuple(stop)
        self._held = ""
        self.text = ""
        """Everything returned so far."""
        self.stopped = False
        """Whether a stop string has been found; text then ends right before it."""

    def push(self, token: int) -> str:
        """Takes one more token; returns the text that is certain now, often none."""
        self._window.append(token)
        text = self._decode(self._window)
        # The bytes of an unfinished character decode to U+FFFD, to three at most.
        end = len(text)
        while end > self._num_shown and text[end - 1] == REPLACEMENT and len(text) - end < 3:
            end -= 1
        new = text[self._num_shown : end]
        self._num_shown = max(self._num_shown, end)
        if len(self._window) > MAX_WINDOW and end == len(text):
            self._window = self._window[-KEPT_WINDOW:]
            self._num_shown = len(self._decode(self._window))
        return self._release(new)

    def finish(self) -> str:
        """Returns what was held back for a stop string that never came."""
        rest, self._held = self._held, ""
        self.text += rest
        return rest

    def _release(self, new: str) -> str:
        held = self._held + new
        found = [place for place in map(held.find, self._stop) if place >= 0]
        if found:
            self.stopped, certain, self._held = True, held[: min(found)], ""
        else:
            num_certain = len(held) - max((_overlap(held, stop) for stop in self._stop), default=0)
            certain, self._held = held[:num_certain], held[num_certain:]
        self.text += certain
        return certain


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a start of `stop`, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


def generate_text(
    lm: LM,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    on_text: OnText | None = None,
    **sampling: Any,
) -> list[Continuation]:
    """Continues every prompt; see `jaxlm.infer.sample.generate` for `sampling` and what it promises.

    Args:
      prompts: an empty one starts from BOS.
      stop: a row ends where one of these appears in its new text, and is cut right before it.
      on_text: called with each row's new text as it becomes certain.
    """
    found = continue_ids(
        lm,
        params,
        tokenizer,
        [encode_prompt(tokenizer, prompt) for prompt in prompts],
        stop_ids=tokenizer.stop_ids,
        max_new_tokens=max_new_tokens,
        stop=stop,
        on_text=on_text,
        **sampling,
    )
    return [replace(one, prompt=prompt) for one, prompt in zip(found, prompts, strict=True)]


def continue_ids(
    lm: LM,
    params: Params,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    stop: Sequence[str] = (),
    on_text: OnText | None = None,
    on_tokens: Callable[[list[int]], None] | None = None,
    **sampling: Any,
) -> list[Continuation]:
    """`generate_text` for prompts that are ids already, such as those a chat template writes.

    Args:
      stop_ids: every id that ends a row; no other does, not even EOS.
      on_tokens: called with new tokens of a row before their text is, also where they have none; what it raises ends
        all rows.
    """
    if "" in stop:
        raise UserError("a stop string is empty, which would stop before the first token: leave it out.")
    streams = [TextStream(tokenizer, ids, stop) for ids in prompt_ids]

    def take(row: int, tokens: list[int]) -> int | None:
        stream, num_taken, new = streams[row], 0, ""
        if on_tokens is not None:
            on_tokens(tokens)
        while num_taken < len(tokens) and not stream.stopped:
            new += stream.push(tokens[num_taken])
            num_taken += 1
        if new and on_text is not None:
            on_text(row, new)
        return num_taken if stream.stopped else None

    watched = on_text is not None or on_tokens is not None or bool(stop)
    generations = generate(
        lm,
        params,
        prompt_ids,
        max_new_tokens=max_new_tokens,
        eos_id=tokenizer.eos_id if tokenizer.eos_id in stop_ids else None,
        stop_ids=stop_ids,
        vocab_size=tokenizer.vocab_size,
        on_tokens=take if watched else None,
        tokens_per_call=16 if on_text is None else 4,
        **sampling,
    )
    results = []
    for row, (ids, generation, stream) in enumerate(zip(prompt_ids, generations, streams, strict=True)):
        if not watched:
            take(row, generation.tokens)
        rest = stream.finish()
        if rest and on_text is not None:
            on_text(row, rest)
        results.append(
            Continuation(
                tokenizer.decode(ids),
                stream.text,
                generation.tokens,
                generation.logprobs,
                generation.finish_reason,
            )
        )
    return results
