"""The rules of Gopher, C4 and FineWeb as datatrove has them, made fast and fit for more than English.

Each decides as datatrove's class does, and C4 leaves the same text. Where datatrove fails (a text without words
divides by zero) or keeps an empty document, the document is dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.c4_filters import (
    CITATION_REGEX,
    ELLIPSIS,
    END_PUNCTUATION,
    POLICY_SUBSTRINGS,
    C4QualityFilter,
)
from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import find_duplicates
from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION

from jaxlm.corpus.raw.memory import Memory
from jaxlm.corpus.raw.steps import Verdict
from jaxlm.corpus.raw.words import spans_of, words_of

_PUNCTUATION = "".join(sorted(PUNCTUATION_SET))
ENDS = (
    *END_PUNCTUATION,
    *sorted(TERMINAL_PUNCTUATION - {".", "?", "!"}),
    "”",
    "“",
    "’",
    "»",
    "」",
    "』",
    "…",
)
"""Ends of a line in other languages than English. C4 has the first five, which leave nothing of a page in Bengali or
Chinese."""


class _SpokenChars(Memory[int]):
    """Word -> its length; 0 where all of it is punctuation."""

    def make(self, key: str) -> int:
        return len(key) if key.strip(_PUNCTUATION) else 0


class _HasLetter(Memory[bool]):
    def make(self, key: str) -> bool:
        return key.isalpha() or any(map(str.isalpha, key))


_spoken_chars = _SpokenChars()
_has_letter = _HasLetter()


class GopherQuality(GopherQualityFilter):
    """datatrove's GopherQualityFilter; see its arguments.

    Args:
      letters_between_spaces: of Gopher's rule that 80% of the words have a letter: a word is what stands between
        spaces, as in the paper. datatrove counts marks of punctuation as words, so that a novel's dialogue, where
        every fifth token is one, is dropped. False: as datatrove, whose decisions are then equal.
    """

    def __init__(self, *, letters_between_spaces: bool = True, **options: Any):
        super().__init__(**options)
        self.letters_between_spaces = letters_between_spaces

    def filter(self, doc: Document) -> Verdict:
        """Whether the document is kept, or why not."""
        text = doc.text
        words = words_of(self.language, text)
        if not words:
            return False, "gopher_short_doc"
        spoken = list(map(_spoken_chars.__getitem__, words))
        reason = (
            self._length(len(words) - spoken.count(0), sum(spoken))
            or self._symbols(text, len(words))
            or self._lines(text.splitlines())
            or self._letters(text.split() if self.letters_between_spaces else words)
        )
        if (
            not reason
            and self.min_stop_words
            and len(self.stop_words.intersection(words)) < self.min_stop_words
        ):
            reason = "gopher_enough_stop_words"
        return (False, reason) if reason else True

    def _length(self, num_spoken: int, num_chars: int) -> str | None:
        if not num_spoken or (self.min_doc_words and num_spoken < self.min_doc_words):
            return "gopher_short_doc"
        if self.max_doc_words and num_spoken > self.max_doc_words:
            return "gopher_long_doc"
        mean_chars = num_chars / num_spoken
        if self.min_avg_word_length and mean_chars < self.min_avg_word_length:
            return "gopher_below_avg_threshold"
        if self.max_avg_word_length and mean_chars > self.max_avg_word_length:
            return "gopher_above_avg_threshold"
        return None

    def _symbols(self, text: str, num_words: int) -> str | None:
        if self.max_symbol_word_ratio:
            if text.count("#") / num_words > self.max_symbol_word_ratio:
                return "gopher_too_many_hashes"
            if (text.count(ELLIPSIS) + text.count("…")) / num_words > self.max_symbol_word_ratio:
                return "gopher_too_many_ellipsis"
        return None

    def _lines(self, lines: list[str]) -> str | None:
        if self.max_bullet_lines_ratio:
            bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines)
            if bullets / len(lines) > self.max_bullet_lines_ratio:
                return "gopher_too_many_bullets"
        if self.max_ellipsis_lines_ratio:
            open_ends = sum(line.rstrip().endswith((ELLIPSIS, "…")) for line in lines)
            if open_ends / len(lines) > self.max_ellipsis_lines_ratio:
                return "gopher_too_many_end_ellipsis"
        return None

    def _letters(self, words: list[str]) -> str | None:
        if self.max_non_alpha_words_ratio:
            if sum(map(_has_letter.__getitem__, words)) / len(words) < self.max_non_alpha_words_ratio:
                return "gopher_below_alpha_threshold"
        return None


class C4Quality(C4QualityFilter):
    """datatrove's C4QualityFilter on lines, with equal decisions and text; see its arguments.

    Args:
      ends: what a line may end in, where filter_no_terminal_punct is set.
      count_words: of a line; by white space as in C4, unless told otherwise.
    """

    def __init__(
        self,
        *,
        ends: tuple[str, ...] = END_PUNCTUATION,
        count_words: Callable[[str], int] | None = None,
        **options: Any,
    ):
        super().__init__(**options)
        self.ends = ends
        self.count_words = count_words
        self.removed: Counter[str] = Counter()
        """Lines of the last document by the rule that removed them, blank ones apart."""

    def filter(self, doc: Document) -> Verdict:
        """Whether the document is kept, or why not."""
        self.removed = Counter()
        num_sentences, kept = 0, []
        for line in doc.text.splitlines():
            line = line.strip()
            words = line.split()
            if len(line) > self.max_word_length != -1 and max(map(len, words)) > self.max_word_length:
                self.removed["long_word"] += 1
                continue
            if self.remove_citations and "[" in line:
                line = CITATION_REGEX.sub("", line)
            if rule := self._shape(line, words):
                if words:
                    self.removed[rule] += 1
                continue
            lower = line.lower()
            if self.filter_lorem_ipsum and "lorem ipsum" in lower:
                return False, "lorem_ipsum"
            if self.filter_javascript and "javascript" in lower:
                self.removed["javascript"] += 1
                continue
            if self.filter_curly_bracket and "{" in line:
                return False, "curly_bracket"
            if self.filter_policy and any(phrase in lower for phrase in POLICY_SUBSTRINGS):
                self.removed["policy"] += 1
                continue
            if num_sentences < self.min_num_sentences:  # enough is enough
                num_sentences += max(1, len(spans_of(self.language, line)))
            kept.append(line)
        if num_sentences < self.min_num_sentences:
            return False, "too_few_sentences"
        text = "\n".join(kept).strip()
        if not text:
            return False, "no_line_left"
        doc.text = text
        return True

    def _shape(self, line: str, words: list[str]) -> str | None:
        if self.filter_no_terminal_punct and (not line.endswith(self.ends) or line.endswith(ELLIPSIS)):
            return "no_end_mark"
        num_words = self.count_words(line) if self.count_words else len(words)
        return "few_words" if num_words < self.min_words_per_line else None


class FineWebQuality(FineWebQualityFilter):
    """datatrove's FineWebQualityFilter with equal decisions; see its arguments."""

    def filter(self, doc: Document) -> Verdict:
        """Whether the document is kept, or why not."""
        lines = [line for line in doc.text.split("\n") if line.strip()]
        if not lines:
            return False, "empty"
        ratio = sum(line.endswith(self.stop_chars) for line in lines) / len(lines)
        if ratio < self.line_punct_thr and not (ratio == 0 and self.line_punct_exclude_zero):
            return False, "line_punct_ratio"
        ratio = sum(len(line) <= self.short_line_length for line in lines) / len(lines)
        if ratio > self.short_line_threshold:
            return False, "short_line_ratio"
        if find_duplicates(lines)[1] / len(doc.text.replace("\n", "")) > self.char_duplicates_ratio:
            return False, "char_dup_ratio"
        words = words_of(self.language, doc.text)
        if not words or doc.text.count("\n") / len(words) > self.new_line_ratio:
            return False, "list_ratio"
        return True
