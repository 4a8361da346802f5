"""What was worked out for one piece of text, kept for the next: most of a text repeats what stood before (Zipf)."""

from __future__ import annotations

from typing import TypeVar

Value = TypeVar("Value")

MAX_CHARS = 32
"""Longer pieces are not kept."""
MAX_PIECES = 1 << 17
"""Kept at most, some 30 MB of words; then the memory starts again empty."""


class Memory(dict[str, Value]):
    """Piece of text -> `make(piece)`; look it up as `memory[piece]`, or `map(memory.__getitem__, pieces)`."""

    def make(self, key: str) -> Value:
        """What is kept of a piece: a pure function of it."""
        raise NotImplementedError

    def __missing__(self, key: str) -> Value:
        value = self.make(key)
        if len(key) <= MAX_CHARS:
            if len(self) >= MAX_PIECES:
                self.clear()
            self[key] = value
        return value
