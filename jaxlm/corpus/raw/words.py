"""Words and sentences of any language, by Unicode's categories alone: no model, no dictionary, nothing downloaded.

The rules of Gopher, C4 and FineWeb count words. Here a word is a run of letters, marks and digits ("বাংলা", "don't",
"well-known", "3,000"), or one punctuation mark or symbol, or a run of the same one ("...", "--"). Scripts written
without spaces give one word per character (Han, Hiragana) or per cluster of a base and its marks (Thai, Lao, Khmer,
Burmese): `UNSPACED` names their languages, and filters.py adapts their thresholds.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from itertools import chain

from datatrove.utils.text import TERMINAL_PUNCTUATION
from datatrove.utils.word_tokenizers import WordTokenizer, load_word_tokenizer

from jaxlm.corpus.raw.memory import Memory

UNSPACED = frozenset({"bo", "dz", "ja", "km", "lo", "my", "th", "wuu", "yue", "zh"})
"""Languages whose words are not separated; a word here is about half a word there."""
_UNSPACED_SCRIPTS = (
    "\u0e01-\u0eff"  # Thai, Lao
    "\u0f40-\u0fbc"  # Tibetan letters
    "\u1000-\u109f\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17d3"  # Khmer
    "\u3005-\u3007\u3041-\u309f"  # Hiragana; Katakana is left in runs: it writes names and loan words
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
)
_SEPARATORS = "\u200b\u2060\ufeff"  # of no width
_OTHER_PLANES = "\U00010000-\U00011140\U00011144-\U0001cfff\U0001d400-\U0001e95d\U0001e960-\U0001efff"
"""Word characters beyond the Basic Multilingual Plane, by block: a class with every one of their categories is five
times slower. Left out: punctuation of Chakma and Adlam, music, pictures."""
_CLOSERS = "\"'”’»)\\]}」』】）"
_UNSPACED_ENDS = "。｡！？．"
"""Ends of sentences after which no space is written."""
_ABBREVIATIONS = frozenset(
    "al approx capt cf co col corp dept dr ed etc fig figs gen gov hon inc jr lt ltd mr mrs ms mt no nos nr op p pp "
    "prof rev sen sgt sr st vol vs".split()
)
"""Words after which a full stop rarely ends a sentence; without it, in lower case."""


def _ranges(members: list[int]) -> str:
    """The inside of a character class that matches exactly these code points, given in ascending order."""
    spans: list[list[int]] = []
    for code in members:
        if spans and spans[-1][1] == code - 1:
            spans[-1][1] = code
        else:
            spans.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in spans)


@functools.cache
def _classes() -> tuple[str, str]:
    """Insides of two character classes: word characters of spaced scripts, and marks."""
    unspaced = re.compile(f"[{_UNSPACED_SCRIPTS}{_SEPARATORS}]")
    words, marks = [], []
    for code in range(0x10000):
        character = chr(code)
        category = unicodedata.category(character)
        if category[0] == "M":
            marks.append(code)
        if category[0] not in "PSZ" and category not in ("Cc", "Cs") and not unspaced.match(character):
            words.append(code)
    return _ranges(words) + _OTHER_PLANES, _ranges(marks) + "\u200c\u200d"


@functools.cache
def word_pattern() -> re.Pattern[str]:
    """Matches one word or mark of punctuation; without groups, for `findall`."""
    word, marks = _classes()
    return re.compile(
        f"[{word}]+(?:(?:['’.\\-_\u2010\u2011·]|(?<=\\d)[,:](?=\\d))[{word}]+)*"
        f"|[{_UNSPACED_SCRIPTS}][{marks}]*"
        f"|\\.{{2,}}|-{{2,}}|={{2,}}|_{{2,}}|\\*{{2,}}|~{{2,}}"
        f"|[^\\s\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff{_SEPARATORS}]"
    )


@functools.cache
def plain_word_pattern() -> re.Pattern[str]:
    """Matches a word without any punctuation inside or around ("don't" is two): for matching texts, not counting."""
    word, marks = _classes()
    return re.compile(f"[{word}]+|[{_UNSPACED_SCRIPTS}][{marks}]*")


class _WordsOf(Memory[tuple[str, ...]]):
    """What stands between two spaces -> its words. Looked up rather than matched: three times faster."""

    def make(self, key: str) -> tuple[str, ...]:
        return tuple(word_pattern().findall(key))


@functools.cache
def _sentence_end() -> re.Pattern[str]:
    # Marks of other planes but Chakma's are left out: as in `_OTHER_PLANES`, a class with them is five times slower.
    marks = sorted(mark for mark in TERMINAL_PUNCTUATION if ord(mark) < 0x10000)
    inside = _ranges([ord(mark) for mark in marks] + [0x11141, 0x11142, 0x11143])
    return re.compile(f"[{inside}…]+[{_CLOSERS}]*|\\n+")


class UnicodeWords(WordTokenizer):
    """datatrove's interface to words; give an instance as `language` to its filters.

    The words of the last text are kept: several filters in a row ask for the same.
    """

    def __init__(self):
        super().__init__()
        self._text: str | None = None
        self._words: list[str] = []
        self._words_of = _WordsOf()

    def __getstate__(self) -> dict[str, object]:
        return {}  # a worker process starts with an empty memory

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__()

    def word_tokenize(self, text: str) -> list[str]:
        """The words in their order, none empty, no white space; not to be changed by the caller."""
        if text is not self._text:
            self._words = list(chain.from_iterable(map(self._words_of.__getitem__, text.split())))
            self._text = text
        return self._words

    def forget(self) -> None:
        """Frees the last text and its words."""
        self._text, self._words = None, []

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """(start, stop) of each sentence, without the white space around it."""
        spans, start = [], 0
        for match in _sentence_end().finditer(text):
            if _ends_sentence(text, match):
                spans.append((start, match.end()))
                start = match.end()
        spans.append((start, len(text)))
        return [trimmed for span in spans if (trimmed := _trim(text, *span)) is not None]

    def sent_tokenize(self, text: str) -> list[str]:
        """The sentences in their order, without the white space around them."""
        return [text[start:stop] for start, stop in self.span_tokenize(text)]


def words_of(language: str | WordTokenizer, text: str) -> list[str]:
    """The words of a text, for a filter of datatrove's whose `language` is a tokenizer of ours or one of its names.

    Not by its `load_word_tokenizer`, which keeps every tokenizer for ever, nor by `split_into_words`, which keeps the
    last five documents with all their words.
    """
    return _tokenizer(language).word_tokenize(text)


def spans_of(language: str | WordTokenizer, text: str) -> list[tuple[int, int]]:
    """The same for its sentences."""
    return _tokenizer(language).span_tokenize(text)


def _tokenizer(language: str | WordTokenizer) -> WordTokenizer:
    return language if isinstance(language, WordTokenizer) else load_word_tokenizer(language)


def _trim(text: str, start: int, stop: int) -> tuple[int, int] | None:
    piece = text[start:stop]
    left = len(piece) - len(piece.lstrip())
    right = len(piece.rstrip())
    return (start + left, start + right) if left < right else None


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    """Whether a sentence ends here: a mark inside a word ends none, nor does a full stop after an initial or an
    abbreviation, or before a small letter."""
    if match[0][0] in "\n" + _UNSPACED_ENDS or match.end() == len(text):
        return True
    if not text[match.end()].isspace():
        return False
    if match[0] != ".":
        return True
    before = text[max(0, match.start() - 12) : match.start()]
    word = before[max(before.rfind(" "), before.rfind("\n"), before.rfind("(")) + 1 :]
    if (len(word) == 1 and word.isupper()) or word.lower() in _ABBREVIATIONS:
        return False
    return not text[match.end() : match.end() + 4].lstrip()[:1].islower()
