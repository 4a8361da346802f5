"""How close an answer is to the one that was wanted: exact match, token F1, ROUGE-L; chrF and BLEU by sacrebleu."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
"""Chinese characters and kana: written without spaces, so each is a word."""
_JOINERS = "\u200c\u200d"
"""Inside Indic words they choose the shape of a conjunct."""


def normalise(text: str) -> str:
    """Lower case, without punctuation and English articles, single spaces; composed (NFC).

    Source: Rajpurkar et al. 2016, SQuAD, arXiv:1606.05250, the official script; punctuation is that of all of
    Unicode, as in Lewis et al. 2020, MLQA, arXiv:1910.07475, so that a danda counts as little as a full stop.
    """
    text = unicodedata.normalize("NFC", text).lower()
    text = "".join(c for c in text if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return " ".join(_ARTICLE.sub(" ", text).split())


def exact_match(answer: str, reference: str) -> bool:
    """Whether the normalised texts are equal; where nothing is left of them (`->`), the texts themselves."""
    pair = normalise(answer), normalise(reference)
    return pair[0] == pair[1] if any(pair) else answer.strip() == reference.strip()


def token_f1(answer: str, reference: str) -> float:
    """F1 of the words in common after `normalise`, as SQuAD has it; words are what stands between spaces."""
    found, wanted = normalise(answer).split(), normalise(reference).split()
    if not found or not wanted:
        return float(exact_match(answer, reference))
    return f1(sum((Counter(found) & Counter(wanted)).values()), len(found), len(wanted))


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits of any script, case-folded.

    Marks belong to the word: Python's `\\w` would cut a Bengali word at each vowel sign.
    """
    text = unicodedata.normalize("NFC", text).casefold()
    spaced = "".join(c if unicodedata.category(c)[0] in "LMN" or c in _JOINERS else " " for c in text)
    return _UNSPACED.sub(r" \g<0> ", spaced).split()


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of `words`, without stemming: no language is preferred.

    Source: Lin 2004, ROUGE, section 3.1, with beta = 1.
    """
    found, wanted = words(answer), words(reference)
    if not found or not wanted:
        return float(answer.strip() == reference.strip())
    return f1(longest_common_subsequence(found, wanted), len(found), len(wanted))


def f1(num_common: int, num_found: int, num_wanted: int) -> float:
    """Harmonic mean of precision and recall."""
    return 2 * num_common / (num_found + num_wanted)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Its length. One column of the table is the bits of an integer: long answers cost no more than short ones.

    Source: Hyyro 2004, Bit-parallel LCS-length computation revisited.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    full = column = (1 << len(first)) - 1
    for word in second:
        matches = column & places.get(word, 0)
        column = ((column + matches) | (column - matches)) & full
    return len(first) - column.bit_count()


def chrf_and_bleu(answers: Sequence[str], references: Sequence[str]) -> dict[str, Any] | None:
    """chrF2 and BLEU of the corpus, 0 to 100, with the signatures that say how; None without sacrebleu.

    chrF compares characters and suits every language; BLEU's tokeniser (13a) is made for European ones.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        return None
    found: dict[str, Any] = {}
    for name, metric in (("chrf", CHRF()), ("bleu", BLEU())):
        found[name] = metric.corpus_score(list(answers), [list(references)]).score
        found[f"{name}_signature"] = str(metric.get_signature())
    return found
