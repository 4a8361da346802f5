"""Words and sentences of many scripts, by hand."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.corpus.raw.words import UnicodeWords, plain_word_pattern, word_pattern


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, well-known U.S. firm!", ["Don't", "stop", ",", "well-known", "U.S", ".", "firm", "!"]),
        ("cost $3,000.50 (at 12:30) ... -- ok", ["cost", "$", "3,000.50", "(", "at", "12:30", ")", "...", "--", "ok"]),
        ("a:b x,y snake_case", ["a", ":", "b", "x", ",", "y", "snake_case"]),
        ("আমি বাংলায় গান গাই। ‘কবিতা’", ["আমি", "বাংলায়", "গান", "গাই", "।", "‘", "কবিতা", "’"]),
        ("क्षत्रिय हिन्दी है।", ["क्षत्रिय", "हिन्दी", "है", "।"]),
        ("我们在北京。", ["我", "们", "在", "北", "京", "。"]),
        ("コンピュータは速い", ["コンピュータ", "は", "速", "い"]),
        ("น้ำ ไทย", ["น้", "ำ", "ไ", "ท", "ย"]),
        ("كتاب، جديد", ["كتاب", "،", "جديد"]),
        ("😀👍 ok\u200bnow\ufeff", ["😀", "👍", "ok", "now"]),
        ("#tag === ****", ["#", "tag", "===", "****"]),
        ("\x00\x1b \u200b", []),
        ("", []),
    ],
)  # fmt: skip
def test_words_of_each_script(text, words):
    assert UnicodeWords().word_tokenize(text) == words


@given(st.text(alphabet="ab'’.-_,:1२ কা।我ไ\u0e49\u200d\u200b\n\t\x1c\x85!😀\U0001d538"))
@settings(max_examples=300, deadline=None)
def test_memory_changes_no_word(text):
    words = UnicodeWords()
    expected = word_pattern().findall(text)
    assert words.word_tokenize(text) == expected
    assert words.word_tokenize(text) == expected
    assert all(word and not any(map(str.isspace, word)) for word in expected)
    assert plain_word_pattern().findall(text) == [
        word for chunk in text.split() for word in plain_word_pattern().findall(chunk)
    ]


def test_combining_marks_stay_with_their_word_in_both_forms_of_unicode():
    assert UnicodeWords().word_tokenize("cafe\u0301 caf\u00e9") == ["cafe\u0301", "caf\u00e9"]
    assert UnicodeWords().word_tokenize("হয় হ\u09af\u09bc") == ["হয়", "হ\u09af\u09bc"]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Dr. Smith met J. R. Ewing. Why? Yes!", ["Dr. Smith met J. R. Ewing.", "Why?", "Yes!"]),
        ('He said: "No." Then he left...', ['He said: "No."', "Then he left..."]),
        ("See e.g. this. It is 3.14 at x.org now.", ["See e.g. this.", "It is 3.14 at x.org now."]),
        ("আমি যাই। তুমি আসো? হ্যাঁ!", ["আমি যাই।", "তুমি আসো?", "হ্যাঁ!"]),
        ("我们在北京。你呢？好", ["我们在北京。", "你呢？", "好"]),
        ("یہ کتاب ہے۔ وہ قلم ہے۔", ["یہ کتاب ہے۔", "وہ قلم ہے۔"]),
        ("one line\nanother", ["one line", "another"]),
        ("...", ["..."]),
        (" \n ", []),
        ("", []),
    ],
)
def test_sentences_of_each_script(text, sentences):
    words = UnicodeWords()
    assert words.sent_tokenize(text) == sentences
    assert [text[start:stop] for start, stop in words.span_tokenize(text)] == sentences


def test_the_last_text_is_not_cut_twice_and_is_not_pickled():
    words = UnicodeWords()
    text = "one two"
    assert words.word_tokenize(text) is words.word_tokenize(text)
    assert len(pickle.dumps(words)) < 200
    assert pickle.loads(pickle.dumps(words)).word_tokenize("three") == ["three"]


def test_a_line_of_sixteen_megabytes():
    words = UnicodeWords()
    assert len(words.word_tokenize("x" * (16 << 20))) == 1
    assert len(words.word_tokenize("ab. " * (1 << 20))) == 2 << 20
    assert len(words.span_tokenize("ab. " * (1 << 18))) == 1  # "ab" before a small letter
    assert len(words.span_tokenize("Ab. " * (1 << 18))) == 1 << 18
