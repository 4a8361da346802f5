"""How well a tokenizer suits a text: by file and by script."""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxlm.data.tokenizer import Tokenizer

_SCRIPTS = {"HIRAGANA": "Japanese", "KATAKANA": "Japanese", "CJK": "Chinese", "DIGIT": "numbers"}


@dataclass
class Stats:
    """Counts over one text; every ratio follows from them."""

    vocab_size: int
    documents: int = 0
    num_bytes: int = 0
    words: int = 0
    tokens: int = 0
    unknown: int = 0
    byte_pieces: int = 0
    changed_documents: int = 0
    lost_newlines: int = 0
    used: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def __post_init__(self):
        self.used = np.zeros(self.vocab_size, bool)

    def add(self, other: Stats) -> None:
        """Adds the counts of another text."""
        for name in ("documents", "num_bytes", "words", "tokens", "unknown", "byte_pieces",
                     "changed_documents", "lost_newlines"):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.used |= other.used

    @property
    def round_trip(self) -> str:
        """What decode(encode(x)) does to the text, in words."""
        if not self.changed_documents:
            return "exact"
        newlines = f", {self.lost_newlines:,} newlines lost" if self.lost_newlines else ""
        return f"{self.changed_documents:,} of {self.documents:,} documents change{newlines}"

    def to_json(self) -> dict[str, Any]:
        """The numbers that the report shows."""
        tokens = max(self.tokens, 1)
        return {
            "documents": self.documents,
            "bytes": self.num_bytes,
            "words": self.words,
            "tokens": self.tokens,
            "bytes_per_token": self.num_bytes / tokens,
            "tokens_per_word": self.tokens / max(self.words, 1),
            "unknown_share": self.unknown / tokens,
            "byte_fallback_share": self.byte_pieces / tokens,
            "vocabulary_use": float(self.used.mean()),
            "round_trip_exact": not self.changed_documents,
            "changed_documents": self.changed_documents,
            "lost_newlines": self.lost_newlines,
        }


class Report:
    """Gathers the statistics of files; `files` and `scripts` hold the result."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        ids = range(tokenizer.vocab_size)
        self._is_byte = np.array([tokenizer.is_byte(i) for i in ids])
        self._words: Counter[str] = Counter()
        self.files: dict[str, Stats] = {}

    def add(self, name: str, texts: Iterable[str]) -> None:
        """Adds the documents of a file."""
        stats = self.files.setdefault(name, Stats(self._tokenizer.vocab_size))
        for text in texts:
            ids = self._tokenizer.encode(text)
            back = self._tokenizer.decode(ids)
            words = text.split()
            self._words.update(words)
            self._count(stats, np.array(ids, np.int64), len(text.encode()), len(words))
            stats.documents += 1
            stats.changed_documents += back != text
            stats.lost_newlines += max(0, text.count("\n") - back.count("\n"))

    def _count(self, stats: Stats, ids: np.ndarray, num_bytes: int, words: int, times: int = 1) -> None:
        stats.num_bytes += num_bytes * times
        stats.words += words * times
        stats.tokens += len(ids) * times
        stats.unknown += int((ids == self._tokenizer.unk_id).sum()) * times
        stats.byte_pieces += int(self._is_byte[ids].sum()) * times
        stats.used[ids] = True

    @property
    def total(self) -> Stats:
        """All files together."""
        total = Stats(self._tokenizer.vocab_size)
        for stats in self.files.values():
            total.add(stats)
        return total

    def scripts(self) -> dict[str, Stats]:
        """Statistics of the words of each script, most text first; a word counts with the space before it.

        Scripts with less than a thousandth of the text are summed up as "others".
        """
        scripts: dict[str, Stats] = {}
        words = list(self._words)
        space = "" if self._tokenizer.adds_space else " "
        for word, ids in zip(words, self._tokenizer.encode_batch([space + word for word in words])):
            stats = scripts.setdefault(script_of(word), Stats(self._tokenizer.vocab_size))
            self._count(stats, np.array(ids, np.int64), len(word.encode()) + 1, 1, self._words[word])
        total = sum(stats.num_bytes for stats in scripts.values())
        for name in [name for name, stats in scripts.items() if stats.num_bytes < total / 1000]:
            scripts.setdefault("others", Stats(self._tokenizer.vocab_size)).add(scripts.pop(name))
        return dict(sorted(scripts.items(), key=lambda item: -item[1].num_bytes))

    def to_json(self) -> dict[str, Any]:
        """Everything, for --json."""
        return {
            "tokenizer": {
                "sha256": self._tokenizer.sha256,
                "vocab_size": self._tokenizer.vocab_size,
                "normalizer": self._tokenizer.normalizer,
                "exact": self._tokenizer.exact,
            },
            "files": {name: stats.to_json() for name, stats in self.files.items()},
            "total": self.total.to_json(),
            "scripts": {
                name: {key: value for key, value in stats.to_json().items() if key in _SCRIPT_KEYS}
                for name, stats in self.scripts().items()
            },
        }


_SCRIPT_KEYS = ("bytes", "words", "tokens", "bytes_per_token", "tokens_per_word", "unknown_share",
                "byte_fallback_share", "vocabulary_use")  # fmt: skip


def script_of(word: str) -> str:
    """The script of a word's first letter, or "numbers", or "symbols"."""
    kinds = [kind for kind in map(_script, word) if kind]
    return next((kind for kind in kinds if kind != "numbers"), kinds[0] if kinds else "symbols")


@functools.cache
def _script(char: str) -> str | None:
    """Python knows no scripts; the names of letters begin with theirs: BENGALI LETTER KA."""
    category = unicodedata.category(char)
    if category[0] == "N":
        return "numbers"
    if category[0] != "L":
        return None
    first = unicodedata.name(char, "OTHER").split()[0].split("-")[0]
    return _SCRIPTS.get(first, first.capitalize())
