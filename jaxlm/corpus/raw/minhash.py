"""Signatures of documents: which phrases they have, in a few numbers (MinHash with banding).

Broder 1997; banding as in Leskovec et al., Mining of Massive Datasets, section 3.4; numbers of buckets and hashes as in
FineWeb (Penedo et al. 2024, arXiv:2406.17557). As in datatrove, phrases are runs of words without case, punctuation,
accents and the values of digits. Unlike there, a bucket is one hash of 64 bits instead of `hashes_per_bucket` of them:
two documents share one by chance in 2**-64 of pairs, and 8 bytes for a document and bucket are an eighth of what
datatrove writes and compares.
"""

from __future__ import annotations

import unicodedata

import numpy as np
import xxhash

from jaxlm.corpus.raw.config import DedupConfig

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that no bit of a word is lost: 2**64 over the golden ratio."""
_BLOCK = 1 << 9
"""Phrases at a time: with 112 hashes of each, about the size of a processor's cache."""
_SEED = 1
_MAX_WORDS = 1 << 20
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF),
             (0xF900, 0xFAFF), (0x20000, 0x323AF))  # fmt: skip
"""Scripts that leave no space between words (Thai, Lao, Burmese, Khmer, kana, Han): each character is a word."""


class _WordHashes(dict[bytes, int]):
    """Word -> hash; most words of a text were in another text before."""

    def __missing__(self, word: bytes) -> int:
        if len(self) > _MAX_WORDS:
            self.clear()
        value = self[word] = xxhash.xxh3_64_intdigest(word)
        return value


class _Simple(dict[int, "str | None"]):
    """Character, lower case and decomposed -> what stands for it in a phrase."""

    def __missing__(self, code: int) -> str | None:
        self[code] = value = self._of(code)
        return value

    @staticmethod
    def _of(code: int) -> str | None:
        character = chr(code)
        category = unicodedata.category(character)
        if category in ("Mn", "Cf"):  # accents; joiners
            return None
        if unicodedata.decimal(character, None) is not None:
            return "0"
        if category[0] in "PSCZ":
            return " "
        if any(low <= code <= high for low, high in _UNSPACED):
            return f" {character} "
        return character


_SIMPLE = _Simple()
_SIMPLE_BYTES = bytes(ord(_SIMPLE[code] or " ") for code in range(128)) + bytes(128)


def words_of(text: str) -> list[bytes]:
    """The words of a text as phrases have them."""
    if text.isascii():
        return text.encode().lower().translate(_SIMPLE_BYTES).split()
    return unicodedata.normalize("NFD", text.lower()).translate(_SIMPLE).encode().split()


class Signatures:
    """Makes signatures."""

    def __init__(self, config: DedupConfig):
        self._config = config
        self._hashes = _WordHashes()
        random = np.random.default_rng(_SEED)
        size = (1, config.num_buckets * config.hashes_per_bucket)
        self._a = random.integers(0, 1 << 64, size, np.uint64) | np.uint64(1)
        self._b = random.integers(0, 1 << 64, size, np.uint64)

    def __call__(self, text: str) -> np.ndarray | None:
        """[num_buckets] of uint64; None for a text of fewer words than a phrase has."""
        phrases = self._phrases(words_of(text))
        if phrases is None:
            return None
        raw = self._lowest(phrases).tobytes()
        width = 8 * self._config.hashes_per_bucket
        hashes = [xxhash.xxh3_64_intdigest(raw[start : start + width]) for start in range(0, len(raw), width)]
        return np.array(hashes, np.uint64)

    def _phrases(self, words: list[bytes]) -> np.ndarray | None:
        """[phrases, 1]: a hash of each run of `ngram_words` words, each once."""
        count = len(words) - self._config.ngram_words + 1
        if count < 1:
            return None
        hashes = np.fromiter(map(self._hashes.__getitem__, words), np.uint64, len(words))
        phrases = np.zeros(count, np.uint64)
        for offset in range(self._config.ngram_words):
            phrases *= _MULTIPLIER
            phrases += hashes[offset : offset + count]
        phrases ^= phrases >> np.uint64(29)  # the product reaches only upwards
        return np.unique(phrases).reshape(-1, 1)

    def _lowest(self, phrases: np.ndarray) -> np.ndarray:
        """[hashes]: the lowest value of each function (a x + b) mod 2**64, a odd, over all phrases.

        Multiply-add, whose high bits, which decide what is lowest, are 2-universal (Dietzfelbinger et al. 1997); the
        phrases are well mixed before. A third of the time of datatrove's, which divides by 2**61 - 1.
        """
        best = None
        for start in range(0, len(phrases), _BLOCK):
            values = phrases[start : start + _BLOCK] * self._a
            values += self._b
            lowest = values.min(axis=0)
            best = lowest if best is None else np.minimum(best, lowest)
        assert best is not None
        return best
