"""Training documents that hold n-grams of evaluation sets, as GPT-3's were found (Brown et al. 2020, appendix C).

Words are compared without case, punctuation and white space, after Unicode's NFKC and without the invisible joiners
that Bengali and Persian are written with or without. An n-gram that is found has been compared word for word: a hash
only says where to look.

datatrove's decontamination is not used. Its indexer needs lighteval, and its normalisation removes the vowel signs of
Bengali and Hindi with all other marks, makes every number 0, and joins and hashes each n-gram in Python. Here the words
of the evaluation sets have numbers, a document's words are looked up, and numpy hashes all its n-grams at once: a
document costs little more than its being cut into words.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from datatrove.data import Document

from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.evaluation_sets import iterate_texts
from jaxlm.corpus.raw.filter_config import DecontaminateConfig
from jaxlm.corpus.raw.memory import Memory
from jaxlm.corpus.raw.powers import INVERSE, powers
from jaxlm.corpus.raw.steps import AccountedStep
from jaxlm.corpus.raw.words import plain_word_pattern

_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200c\u200d"))
_MAX_TABLE_BITS = 24


def normal_form(word: str) -> str:
    """The word as it is compared."""
    return unicodedata.normalize("NFKC", word).casefold().translate(_INVISIBLE)


class _NumbersOf(Memory[tuple[int, ...]]):
    """What stands between two spaces -> the numbers of its words, 0 for a word of no evaluation set."""

    def __init__(self, vocabulary: dict[str, int]):
        super().__init__()
        self.vocabulary = vocabulary

    def make(self, key: str) -> tuple[int, ...]:
        words = plain_word_pattern().findall(key)
        return tuple(self.vocabulary.get(normal_form(word), 0) for word in words)


@dataclass
class _Grams:
    """All n-grams of one length."""

    length: int
    hashes: np.ndarray
    """[grams] uint64, ascending."""
    places: np.ndarray
    """[grams] int64: where each stands first in the numbers of all evaluation texts."""
    sets: np.ndarray
    """[grams] int32: the set it stands in first."""
    table: np.ndarray
    """[2**bits] bool: whether any hash begins with these bits."""

    @staticmethod
    def of(length: int, hashes: np.ndarray, places: np.ndarray, sets: np.ndarray) -> _Grams:
        unique, first = np.unique(hashes, return_index=True)  # the first of equal ones
        bits = min(_MAX_TABLE_BITS, max(16, len(unique).bit_length() + 4))
        table = np.zeros(1 << bits, bool)
        table[unique >> np.uint64(64 - bits)] = True
        return _Grams(length, unique, places[first], sets[first], table)

    def candidates(self, hashes: np.ndarray) -> Iterator[tuple[int, int]]:
        """(place of an n-gram of a document, its row here) of those whose hashes are equal."""
        shift = np.uint64(64 - (len(self.table).bit_length() - 1))
        maybe = np.flatnonzero(self.table[hashes >> shift])
        if len(maybe):
            rows = np.minimum(np.searchsorted(self.hashes, hashes[maybe]), len(self.hashes) - 1)
            equal = self.hashes[rows] == hashes[maybe]
            yield from zip(maybe[equal].tolist(), rows[equal].tolist())


class Match(NamedTuple):
    """Words of a document that stand so in an evaluation set."""

    start: int
    """The first, counted in words; `stop` is behind the last."""
    stop: int
    set_name: str


class NGramIndex:
    """The n-grams of evaluation sets.

    Args:
      texts: (name of the set, text) in order.
      num_words: length of the n-grams.
      min_words: shorter texts are left out; those between are one n-gram of their own length.
    """

    def __init__(
        self, texts: Iterator[tuple[str, str]] | Sequence[tuple[str, str]], num_words: int, min_words: int
    ):
        self.names: list[str] = []
        self.vocabulary: dict[str, int] = {}
        self.num_texts: dict[str, int] = {}
        """Of each set: its texts that are long enough."""
        numbers: list[np.ndarray] = []
        found: dict[int, list[tuple[np.ndarray, int]]] = {}
        done = 0
        for name, text in texts:
            words = [normal_form(word) for word in plain_word_pattern().findall(text)]
            self.num_texts.setdefault(name, 0)
            if len(words) < min_words:
                continue
            self.num_texts[name] += 1
            if name not in self.names:
                self.names.append(name)
            numbers.append(
                np.array([self.vocabulary.setdefault(w, len(self.vocabulary) + 1) for w in words], np.int32)
            )
            length = min(num_words, len(words))
            starts = np.arange(done, done + len(words) - length + 1)
            found.setdefault(length, []).append((starts, self.names.index(name)))
            done += len(words)
        self.numbers = np.concatenate(numbers) if numbers else np.zeros(0, np.int32)
        self._weights = _mixed(len(self.vocabulary) + 1)
        self.grams = [self._grams(length, parts) for length, parts in sorted(found.items(), reverse=True)]
        self._numbers_of = _NumbersOf(self.vocabulary)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_numbers_of": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._numbers_of = _NumbersOf(self.vocabulary)

    def _grams(self, length: int, parts: list[tuple[np.ndarray, int]]) -> _Grams:
        places = np.concatenate([starts for starts, _ in parts])
        sets = np.concatenate([np.full(len(starts), number, np.int32) for starts, number in parts])
        return _Grams.of(length, self._hashes(self._sums(self.numbers), length)[places], places, sets)

    def _sums(self, numbers: np.ndarray) -> np.ndarray:
        sums = np.zeros(len(numbers) + 1, np.uint64)
        np.cumsum(self._weights[numbers] * powers(len(numbers))[: len(numbers)], out=sums[1:])
        return sums

    def _hashes(self, sums: np.ndarray, length: int) -> np.ndarray:
        """Of every n-gram: the sum of its words' weights, each times the base to the power of its place in it."""
        count = len(sums) - length
        return (sums[length:] - sums[:count]) * powers(count, INVERSE)[:count]

    def matches(self, text: str) -> Iterator[Match]:
        """Every n-gram of the text that stands in an evaluation set, the longest n-grams first."""
        chunks = map(self._numbers_of.__getitem__, text.split())
        numbers = np.fromiter(chain.from_iterable(chunks), np.int32)
        if not self.grams or len(numbers) < self.grams[-1].length:
            return
        sums = self._sums(numbers)
        for grams in self.grams:
            length = grams.length
            if len(numbers) < length:
                continue
            for start, row in grams.candidates(self._hashes(sums, length)):
                place = grams.places[row]
                if np.array_equal(numbers[start : start + length], self.numbers[place : place + length]):
                    yield Match(start, start + length, self.names[grams.sets[row]])


def _mixed(count: int) -> np.ndarray:
    """The numbers 0..count-1 with their bits spread over 64: the finaliser of MurmurHash3."""
    bits = np.arange(1, count + 1, dtype=np.uint64)
    for shift, factor in ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return bits ^ (bits >> np.uint64(33))


def build_index(config: DecontaminateConfig) -> NGramIndex:
    """Reads the evaluation sets of the config."""
    return NGramIndex(iterate_texts(config.evaluation), config.num_words, config.min_words)


class DecontaminateStep(AccountedStep):
    """Drops documents that hold n-grams of evaluation sets, or cuts these out; counted per set."""

    def __init__(self, config: DecontaminateConfig, index: NGramIndex, account: Account | None = None):
        super().__init__("contaminated", account)
        self.config = config
        self.index = index

    def apply(self, document: Document) -> Iterator[Document]:
        """See AccountedStep."""
        matches = self.index.matches(document.text)
        if self.config.contaminated == "drop":
            first = next(matches, None)
            if first is None:
                yield document
            else:
                self.drop(document, first.set_name, _said(document.text, first))
            return
        found = list(matches)
        if found:
            yield from self._cut(document, found)
        else:
            yield document

    def _cut(self, document: Document, found: list[Match]) -> Iterator[Document]:
        text, window = document.text, self.config.window_chars
        pieces = [piece.strip() for piece in _without(text, found, window)]
        kept = [piece for piece in pieces if len(piece) >= max(1, window)]
        first = found[0].set_name
        if not kept or len(kept) > self.config.max_pieces:
            self.drop(document, first, _said(text, found[0]))
            return
        self.account.changed[f"contaminated_{first}"] += 1
        for number, piece in enumerate(kept):
            yield replace(
                document, text=piece, id=f"{document.id}/{number}", metadata=dict(document.metadata)
            )


def _without(text: str, found: list[Match], window: int) -> Iterator[str]:
    """The text between the matches, each widened by `window` characters on both sides."""
    spans = [match.span() for match in plain_word_pattern().finditer(text)]
    start = 0
    for match in sorted(found):
        cut = max(start, spans[match.start][0] - window)
        yield text[start:cut]
        start = max(start, spans[match.stop - 1][1] + window)
    yield text[start:]


def _said(text: str, match: Match) -> str:
    words = plain_word_pattern().findall(text)[match.start : match.stop]
    return f"'{' '.join(words)}'"
