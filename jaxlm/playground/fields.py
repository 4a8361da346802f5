"""What a browser asks for, read field by field: types, ranges and lengths, before a model sees any of it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from jaxlm.config import check_choice
from jaxlm.data.chat import Message
from jaxlm.data.tokenizer import check_unicode
from jaxlm.infer.config import SamplingConfig, check_seed
from jaxlm.limits import parse_json
from jaxlm.types import JSON_ERRORS, UserError

MAX_BODY_BYTES = 512 << 10
"""Of a request: more text than any model here reads at a time."""
MAX_TEXT_CHARS = 100_000
"""Of a prompt, a message, a text to classify."""
MAX_TURNS = 400
MAX_TEXTS = 64
"""Lines classified at once."""
MAX_WORDS = 32
"""Candidate words."""
MAX_TOP = 200
MAX_PICKED = 4096
MAX_NEW_TOKENS = 1024


class Limits(NamedTuple):
    """The limits that the page names and checks before it sends anything."""

    body_bytes: int = MAX_BODY_BYTES
    text_chars: int = MAX_TEXT_CHARS
    texts: int = MAX_TEXTS
    words: int = MAX_WORDS
    top: int = MAX_TOP
    new_tokens: int = MAX_NEW_TOKENS


def size_words(num_bytes: int) -> str:
    """`1.0 MB`, `12 kB`."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:,.0f} kB"


class Fields:
    """A JSON object from outside. Errors, of all methods: UserError that names the field and what it may be."""

    def __init__(self, values: dict[str, Any]):
        self._values = values

    @classmethod
    def parse(cls, content: bytes) -> Fields:
        """Of the body of a request."""
        try:
            values = parse_json(content, max_values=100_000)
        except JSON_ERRORS:
            raise UserError("the request is not valid JSON: reload the page.") from None
        if not isinstance(values, dict):
            raise UserError("the request is not a JSON object: reload the page.")
        return cls(values)

    def text(self, name: str, max_chars: int = MAX_TEXT_CHARS, default: str | None = None) -> str:
        """A text of Unicode characters. default: for a field that may be missing."""
        value = self._values.get(name, default)
        return _text(name, value, max_chars)

    def optional_text(self, name: str) -> str | None:
        """A text, or None where it is missing or blank."""
        return self.text(name, default="").strip() or None

    def whole(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number in [low, high]."""
        value = self._values.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise UserError(f"{name}={_short(value)} must be a whole number from {low:,} to {high:,}.")
        return value

    def number(self, name: str, default: float) -> float:
        """A finite number."""
        value = self._values.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise UserError(f"{name}={_short(value)} must be a number.")
        return float(value)

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """One of some words."""
        value = self._values.get(name)
        check_choice(name, value, choices)
        return str(value)

    def sampling(self) -> dict[str, Any]:
        """temperature, top_k, top_p, min_p and seed, by the names that the functions in infer/ have for them."""
        optional = {name: self._values.get(name) is not None for name in ("top_k", "top_p", "min_p")}
        found: dict[str, Any] = {
            "temperature": self.number("temperature", 1.0),
            "top_k": self.whole("top_k", 1, 2**31 - 1) if optional["top_k"] else None,
            "top_p": self.number("top_p", 1.0) if optional["top_p"] else None,
            "min_p": self.number("min_p", 0.0) if optional["min_p"] else None,
        }
        SamplingConfig(**found)
        seed = self.whole("seed", 0, 2**32 - 1, 0)
        check_seed(seed)
        return {**found, "seed": seed}

    def ids(self, name: str, vocab_size: int) -> list[int]:
        """Token ids of the vocabulary."""
        values = self._list(name, MAX_PICKED, "tokens")
        for value in values:
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab_size:
                raise UserError(
                    f"{name} holds {_short(value)}, but the model's ids are 0 to {vocab_size - 1:,}."
                )
        return values

    def texts(self, name: str, max_items: int, what: str, max_chars: int = MAX_TEXT_CHARS) -> list[str]:
        """A list of texts."""
        return [_text(name, value, max_chars) for value in self._list(name, max_items, what)]

    def turns(self, name: str) -> list[Message]:
        """Turns of a conversation: of the user and the assistant, one after the other."""
        found = []
        for number, value in enumerate(self._list(name, MAX_TURNS, "turns")):
            role = ("user", "assistant")[number % 2]
            if not isinstance(value, dict) or value.get("role") != role:
                raise UserError(f"{name}: turn {number + 1} is not of the {role}. Clear the conversation.")
            found.append(Message(role, _text(name, value.get("content"), MAX_TEXT_CHARS)))
        return found

    def _list(self, name: str, max_items: int, what: str) -> list[Any]:
        values = self._values.get(name, [])
        if not isinstance(values, list):
            raise UserError(f"{name} must be a list.")
        if len(values) > max_items:
            raise UserError(f"{name} has {len(values):,} {what}; there may be {max_items:,} at a time.")
        return values


def _text(name: str, value: Any, max_chars: int) -> str:
    if not isinstance(value, str):
        raise UserError(f"{name} must be a text.")
    if len(value) > max_chars:
        raise UserError(f"{name} has {len(value):,} characters; there may be {max_chars:,}: shorten it.")
    check_unicode(value, name)
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
