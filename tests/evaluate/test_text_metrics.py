"""Worked examples of the metrics, by hand or as published."""

import builtins
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.evaluate.text_metrics import (
    chrf_and_bleu,
    exact_match,
    longest_common_subsequence,
    normalise,
    rouge_l,
    token_f1,
    words,
)


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("a cat, an apple; then theatre", "cat apple then theatre"),
        ("U.S.A.", "usa"),
        ("বাংলা, সোনার বাংলা।", "বাংলা সোনার বাংলা"),
        ("“Quoted” — text", "quoted text"),
        ("য\u09bc", "য\u09bc"),
        ("\u09df", "য\u09bc"),  # two spellings of one letter
        ("the", ""),
    ],
)
def test_texts_are_normalised_as_squad_does_in_every_script(text, normalised):
    assert normalise(text) == normalised


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("The Eiffel Tower.", "eiffel tower", True),
        ("Eiffel", "eiffel tower", False),
        ("->", "->", True),  # nothing is left of either
        ("->", "<-", False),
        ("", "->", False),
        ("ঢাকা।", "ঢাকা", True),
    ],
)
def test_exact_match(answer, reference, same):
    assert exact_match(answer, reference) is same


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        # 2 words in common: precision 2/3, recall 2/4.
        ("the cat sat down", "a cat sat on mats", 4 / 7),
        # Repeated words count as often as both have them: 1 of 3 and of 1.
        ("no no no", "no", 2 / 4),
        ("yes", "no", 0.0),
        ("the", "the", 1.0),
        ("", "cat", 0.0),
        ("আমার সোনার বাংলা।", "সোনার বাংলা", 4 / 5),
    ],
)
def test_token_f1(answer, reference, f1):
    assert token_f1(answer, reference) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("police kill the gunman", 0.75),
        ("the gunman kill police", 0.5),
        ("the gunman police killed", 0.5),
    ],
)
def test_rouge_l_is_that_of_the_examples_in_the_paper(answer, score):
    """Lin 2004, section 3.1: S2, S3 and S4 against S1, beta = 1."""
    assert rouge_l(answer, "police killed the gunman") == pytest.approx(score)


def test_rouge_l_weighs_precision_and_recall_and_needs_no_language():
    # LCS "a b d": precision 3/5, recall 3/4.
    assert rouge_l("a x b y d", "A b, c d!") == pytest.approx(2 * 3 / 9)
    # LCS আমার বাংলা of 3 and 2 words; Python's own \\w would cut them at every vowel sign.
    assert rouge_l("আমার সোনার বাংলা", "আমার বাংলা।") == pytest.approx(4 / 5)
    assert words("ক্‌ষ বাংলা-ভাষা ১২ 北京") == ["ক্‌ষ", "বাংলা", "ভাষা", "১২", "北", "京"]
    assert rouge_l("!", "!") == 1.0
    assert rouge_l("", "word") == 0.0


@given(st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_the_longest_common_subsequence_is_that_of_all_subsequences(first, second):
    def subsequences(text):
        return {c for size in range(len(text) + 1) for c in itertools.combinations(text, size)}

    expected = max(map(len, subsequences(first) & subsequences(second)))
    assert longest_common_subsequence(first, second) == expected


def test_chrf_and_bleu_are_those_of_worked_examples():
    same = chrf_and_bleu(["The lion is in the zoo."], ["The lion is in the zoo."])
    assert (same["chrf"], same["bleu"]) == (pytest.approx(100), pytest.approx(100))
    # Orders 1 and 2 only exist: P = R = (2/3 + 1/2) / 2, the mean over orders, so F2 = 7/12 whatever its beta.
    assert chrf_and_bleu(["abx"], ["aby"])["chrf"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)
    # BLEU: 5/6, 3/5, 2/4 and 1/3 n-grams in common, no brevity penalty.
    bleu = chrf_and_bleu(["the cat sat on the mat"], ["the cat lay on the mat"])["bleu"]
    assert bleu == pytest.approx(100 * (5 / 6 * 3 / 5 * 1 / 4 * (1 / 2 / 3)) ** 0.25)
    assert "version:" in same["chrf_signature"]
    assert chrf_and_bleu(["আমার বাংলা"], ["আমার বাংলা"])["chrf"] == pytest.approx(100)


def test_without_sacrebleu_there_is_none(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("sacrebleu"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    assert chrf_and_bleu(["a"], ["a"]) is None
