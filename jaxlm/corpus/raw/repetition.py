"""Gopher's rules on repetition, decided as datatrove's filter decides, several times faster.

datatrove joins every n-gram of a document into a string, nine times. Here each n-gram is a hash of its characters,
and numpy sorts them. That gives a bound: equal strings have equal hashes, so what the rules measure is at most what
the hashes say. Nearly every document is far below the limits, and its bound too, which decides. Above, datatrove's own
functions count, so that no hash and no other order of counting ever decides.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters.gopher_repetition_filter import (
    GopherRepetitionFilter,
    find_all_duplicate,
    find_top_duplicate,
    get_n_grams,
)

from jaxlm.corpus.raw.powers import BASE, powers
from jaxlm.corpus.raw.steps import Verdict
from jaxlm.corpus.raw.words import words_of

_BLOCK_WORDS = 1 << 14
"""Hashed at a time."""


class Repetition(GopherRepetitionFilter):
    """datatrove's GopherRepetitionFilter with equal decisions; see its arguments. Texts without words are dropped."""

    def filter(self, doc: Document) -> Verdict:
        """Whether the document is kept, or why not."""
        text = doc.text
        if not text:
            return False, "empty"
        for name, parts, limit, char_limit in (
            ("para", self.paragraph_exp.split(text.strip()), self.dup_para_frac, self.dup_para_char_frac),
            ("line", self._line_splitter.split(text), self.dup_line_frac, self.dup_line_char_frac),
        ):
            unique = set(parts)
            if len(unique) == len(parts):
                continue
            if limit and (len(parts) - len(unique)) / len(parts) > limit:
                return False, f"dup_{name}_frac"
            num_chars = sum(map(len, parts)) - sum(map(len, unique))
            if char_limit and num_chars / len(text) > char_limit:
                return False, f"dup_{name}_char_frac"
        words = words_of(self.language, text)
        return self._decide_n_grams(words, len(text))

    def _decide_n_grams(self, words: list[str], num_chars: int) -> Verdict:
        hashes = NGramHashes(words)
        for n, limit in self.top_n_grams:
            if len(words) < n or hashes.most_chars_of_one_quickly(n) / num_chars <= limit:
                continue
            if hashes.most_chars_of_one(n) / num_chars <= limit:
                continue
            if find_top_duplicate(get_n_grams(words, n)) / num_chars > limit:
                return False, f"top_{n}_gram"
        bounds = hashes.most_repeated_chars([n for n, _ in self.dup_n_grams])
        for (n, limit), bound in zip(self.dup_n_grams, bounds):
            if bound / num_chars > limit and find_all_duplicate(words, n) / num_chars > limit:
                return False, f"duplicated_{n}_n_grams"
        return True


class NGramHashes:
    """Upper bounds on what the n-grams of a list of words repeat."""

    def __init__(self, words: list[str]):
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        self.ends = np.zeros(len(words) + 1, np.int64)
        """Where each word begins in the characters of all of them; at last their number."""
        np.cumsum(lengths, out=self.ends[1:])
        # H(a, b) = (S(b) - S(a)) * base**(L - a): the same wherever the same characters stand. S is summed over words.
        self._sums = np.zeros(len(words) + 1, np.uint64)
        self._shifts = np.zeros(len(words) + 1, np.uint64)
        for first in range(0, len(words), _BLOCK_WORDS):  # so that the powers of a block do
            self._add_block(words, first)
        np.cumsum(self._sums, out=self._sums)

    def _add_block(self, words: list[str], first: int) -> None:
        ends = self.ends[first : first + _BLOCK_WORDS + 1]
        low, high = int(ends[0]), int(ends[-1])
        joined = "".join(words[first : first + _BLOCK_WORDS])
        # "surrogatepass": half a character hashes as well as a whole one.
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        table = powers(high - low + 1)
        sums = np.add.reduceat(codes * table[: high - low], ends[:-1] - low)
        self._sums[first + 1 : first + len(ends)] = sums * np.uint64(pow(BASE, low, 1 << 64))
        after = np.uint64(pow(BASE, int(self.ends[-1]) - high, 1 << 64))
        self._shifts[first : first + len(ends)] = table[high - ends] * after

    def _hashes(self, n: int) -> np.ndarray:
        return (self._sums[n:] - self._sums[:-n]) * self._shifts[: len(self._sums) - n]

    def most_chars_of_one(self, n: int) -> int:
        """At least the characters, with spaces, of all occurrences of any one n-gram."""
        hashes = self._hashes(n)
        order = np.argsort(hashes)
        hashes = hashes[order]
        starts = np.flatnonzero(np.concatenate(([True], hashes[1:] != hashes[:-1])))
        lengths = self.ends[order + n] - self.ends[order] + (n - 1)
        counts = np.diff(starts, append=len(hashes))
        return int((np.maximum.reduceat(lengths, starts) * counts).max())

    def most_chars_of_one_quickly(self, n: int) -> int:
        """The same, mostly looser, with one sort for every n >= 2."""
        longest = int((self.ends[n:] - self.ends[:-n]).max()) + n - 1
        # A longer n-gram stands nowhere but where its first two words stand.
        return longest * self._most_pairs

    @functools.cached_property
    def _most_pairs(self) -> int:
        """At least how often any two words stand together."""
        hashes = np.sort(self._hashes(2))
        starts = np.flatnonzero(hashes[1:] != hashes[:-1]) + 1
        return int(np.diff(starts, prepend=0, append=len(hashes)).max())

    def most_repeated_chars(self, sizes: Sequence[int]) -> list[int]:
        """For each n, at least the characters of n-grams that stood before, where those counted do not overlap."""
        num_words = len(self.ends) - 1
        width = num_words - min(sizes, default=0) + 1
        if not sizes or width < 1:
            return [0] * len(sizes)
        if width > _BLOCK_WORDS and len(sizes) > 1:  # together they are quicker, and take more memory
            return [self.most_repeated_chars([n])[0] for n in sizes]
        bits = np.uint64(num_words.bit_length())
        places = np.arange(width, dtype=np.uint64)
        # The place takes the low bits of the hash, so that one sort of plain numbers orders by hash, then by place.
        keys = np.empty((len(sizes), width), np.uint64)
        for row, n in enumerate(sizes):
            count = max(0, num_words - n + 1)
            keys[row, :count] = self._hashes(n)[:count] if count else 0
            keys[row, count:] = ~(places[count:] << bits)  # nothing stands there: each is its own
        keys = (keys >> bits << bits) | places
        keys.sort(axis=1)
        rows, columns = np.nonzero((keys[:, 1:] >> bits) == (keys[:, :-1] >> bits))
        repeated = np.zeros(keys.shape, bool)
        repeated[
            rows, (keys[rows, columns + 1] & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
        ] = True
        rows, starts = np.nonzero(repeated)
        if not len(rows):
            return [0] * len(sizes)
        stops = np.minimum(starts + np.asarray(sizes)[rows], num_words)
        # Characters under any repeated n-gram: each is cut where the next begins.
        inner = rows[1:] == rows[:-1]
        stops[:-1][inner] = np.minimum(stops[:-1][inner], starts[1:][inner])
        covered = self.ends[stops] - self.ends[starts]
        return np.bincount(rows, covered, len(sizes)).astype(np.int64).tolist()
