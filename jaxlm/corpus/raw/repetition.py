"""Gopher's rules on repetition, decided as datatrove's filter decides, several times faster.

datatrove joins every n-gram of a document into a string, nine times. Here each n-gram is a hash of its characters,
and numpy sorts them. That gives a bound: equal strings have equal hashes, so what the rules measure is at most what
the hashes say. Nearly every document is far below the limits, and its bound too, which decides. Above, datatrove's own
functions count, so that no hash and no other order of counting ever decides.
"""

from __future__ import annotations

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters.gopher_repetition_filter import (
    GopherRepetitionFilter,
    find_all_duplicate,
    find_top_duplicate,
    get_n_grams,
)
from datatrove.utils.word_tokenizers import load_word_tokenizer

from jaxlm.corpus.raw.powers import powers
from jaxlm.corpus.raw.steps import Verdict


class Repetition(GopherRepetitionFilter):
    """datatrove's GopherRepetitionFilter with equal decisions; see its arguments. Texts without words are dropped."""

    def filter(self, doc: Document) -> Verdict:
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
        words = load_word_tokenizer(self.language).word_tokenize(text)
        return self._decide_n_grams(words, len(text))

    def _decide_n_grams(self, words: list[str], num_chars: int) -> Verdict:
        hashes = NGramHashes(words)
        for n, limit in self.top_n_grams:
            if len(words) < n or hashes.most_chars_of_one(n) / num_chars <= limit:
                continue
            if find_top_duplicate(get_n_grams(words, n)) / num_chars > limit:
                return False, f"top_{n}_gram"
        for n, limit in self.dup_n_grams:
            if len(words) < n or hashes.most_repeated_chars(n) / num_chars <= limit:
                continue
            if find_all_duplicate(words, n) / num_chars > limit:
                return False, f"duplicated_{n}_n_grams"
        return True


class NGramHashes:
    """Upper bounds on what the n-grams of a list of words repeat."""

    def __init__(self, words: list[str]):
        joined = "".join(words)
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        self.ends = np.zeros(len(words) + 1, np.int64)
        np.cumsum(lengths, out=self.ends[1:])
        # "surrogatepass": half a character hashes as well as a whole one.
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        self._powers = powers(len(codes) + 1)
        self._sums = np.zeros(len(words) + 1, np.uint64)
        if words:
            terms = codes * self._powers[: len(codes)]
            np.cumsum(np.add.reduceat(terms, self.ends[:-1], dtype=np.uint64), out=self._sums[1:])
        # H(a, b) = (S(b) - S(a)) * base**(L - a): the same wherever the same characters stand.
        self._shifts = self._powers[len(codes) - self.ends]
        self._index_bits = np.uint64(max(1, len(words)).bit_length())

    def _sorted(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(places of the n-grams, grouped by hash and ascending within; whether each has the hash of the one before)."""
        hashes = (self._sums[n:] - self._sums[:-n]) * self._shifts[: len(self._sums) - n]
        bits = self._index_bits
        # The place takes the low bits of the hash, so that one sort of plain numbers orders both.
        keys = (hashes >> bits << bits) | np.arange(len(hashes), dtype=np.uint64)
        keys.sort()
        same = np.zeros(len(keys), bool)
        np.equal(keys[1:] >> bits, keys[:-1] >> bits, out=same[1:])
        return (keys & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64), same

    def most_chars_of_one(self, n: int) -> int:
        """At least the characters, with spaces, of all occurrences of any one n-gram."""
        places, same = self._sorted(n)
        lengths = self.ends[places + n] - self.ends[places] + (n - 1)
        starts = np.flatnonzero(~same)
        counts = np.diff(starts, append=len(places))
        return int((np.maximum.reduceat(lengths, starts) * counts).max())

    def most_repeated_chars(self, n: int) -> int:
        """At least the characters of n-grams that stood before, where those that are counted do not overlap."""
        places, same = self._sorted(n)
        repeated = np.sort(places[same])
        if not len(repeated):
            return 0
        # Characters under any repeated n-gram: each is cut where the next begins.
        stops = self.ends[repeated + n]
        stops[:-1] = np.minimum(stops[:-1], self.ends[repeated[1:]])
        return int((stops - self.ends[repeated]).sum())
