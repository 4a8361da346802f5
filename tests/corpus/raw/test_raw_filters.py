"""The rules of filters: a document by hand for each, and decisions equal to datatrove's."""

import copy
import pickle
import random
import warnings

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.text import PUNCTUATION_SET
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.filter_config import FilterConfig
from jaxlm.corpus.raw.filters import build_filters
from jaxlm.corpus.raw.quality import C4Quality, FineWebQuality, GopherQuality
from jaxlm.corpus.raw.repetition import NGramHashes, Repetition
from jaxlm.corpus.raw.steps import FilterStep
from jaxlm.corpus.raw.words import UnicodeWords
from jaxlm.types import UserError

PROSE = """The old harbour lies behind the hill, and every evening the boats come home with fish.
Children wait on the stones for them. They know each sail by its patches, and shout the names of their fathers.
Nobody remembers who built the first pier, but the oldest women say that it was here before the church.
In winter the ice closes the bay for weeks. Then people mend nets, carve spoons and tell stories to each other.
When spring returns, the whole village walks down to the water to see whether the pier has held once more.
"""
BENGALI = """পাহাড়ের পিছনে পুরানো বন্দর, আর প্রতি সন্ধ্যায় নৌকাগুলি মাছ নিয়ে ঘরে ফেরে।
ছেলেমেয়েরা পাথরের উপর বসে তাদের জন্য অপেক্ষা করে। তারা প্রতিটি পাল চেনে এবং বাবার নাম ধরে ডাকে।
কেউ জানে না কে প্রথম ঘাট তৈরি করেছিল, কিন্তু বুড়িরা বলে যে মন্দিরের আগেও এটি এখানে ছিল।
শীতকালে কয়েক সপ্তাহ ধরে নদী শান্ত থাকে। তখন মানুষ জাল মেরামত করে আর একে অন্যকে গল্প শোনায়।
বসন্ত ফিরে এলে সারা গ্রাম জলের ধারে যায়, ঘাট আবার টিকে আছে কি না তা দেখতে।
"""
CHINESE = """旧港口在山后，每天晚上船只都带着鱼回家，孩子们坐在石头上等着他们的父亲。
没有人记得是谁修建了第一座码头，但是最年长的女人说它比教堂还要早得多。
冬天的时候，海湾会结冰好几个星期，人们修补渔网，雕刻木勺，互相讲述古老的故事。
春天回来以后，全村的人都走到水边，看一看码头是不是又一次坚持了下来。
如果它还在那里，他们就会唱歌跳舞，直到深夜，然后各自回家休息。
"""
OFF = dict(url=False, gopher_quality=False, gopher_repetition=False, c4=False, fineweb=False)


def decide(text, language=None, **options):
    """(reason or None, what is left of the text, account) under the given rules, all others off."""
    account = Account()
    steps = build_filters(FilterConfig(**{**OFF, **options}), account, say=lambda line: None)
    documents = iter([Document(text, "x", metadata={"language": language} if language else {})])
    for step in steps:
        documents = step(documents)
    left = list(documents)
    reasons = list(account.dropped)
    assert len(left) + len(reasons) == 1
    return (reasons or [None])[0], left[0].text if left else None, account


@pytest.mark.parametrize(("text", "language"), [(PROSE, "en"), (BENGALI, "bn"), (CHINESE, "zh")])
def test_prose_passes_every_rule(text, language, no_network):
    rules = dict(
        gopher_quality=True, gopher_repetition=True, c4=True, fineweb=True, c4_terminal_punctuation=True
    )
    reason, left, account = decide(text, **rules)
    assert (reason, left) == (None, text.strip())
    assert account.changed.keys() <= {"no_stop_words_known_zh"}
    assert decide(text, language, **rules)[:2] == (None, text.strip())


def words(count, shape="word{}"):
    return " ".join(shape.format(number) for number in range(count))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The end of it.", "gopher_short_doc"),
        ("", "gopher_short_doc"),
        ("!!! ... ???\n---", "gopher_short_doc"),
        ("\u200b\ufeff", "gopher_short_doc"),
        (PROSE * 30, "gopher_long_doc"),
        (PROSE + "a b c d e f " * 40, "gopher_below_avg_threshold"),
        (PROSE + words(200, "extraordinarily{}"), "gopher_above_avg_threshold"),
        (PROSE.replace(" the", " #the# #"), "gopher_too_many_hashes"),
        (PROSE.replace(" ", " ... ", 18), "gopher_too_many_ellipsis"),
        ("".join(f"- {line}\n" for line in PROSE.splitlines()), "gopher_too_many_bullets"),
        (PROSE.replace(".\n", "…\n", 2), "gopher_too_many_end_ellipsis"),
        (PROSE + words(60, "1{}00"), "gopher_below_alpha_threshold"),
        (PROSE.replace("the", "a").replace("and", "or").replace("of", "for").replace("that", "as").replace("to", "at"),
         "gopher_enough_stop_words"),
    ],
)  # fmt: skip
def test_each_rule_of_gophers_quality(text, reason):
    assert decide(text, "en", gopher_quality=True, max_words=1000)[0] == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "gopher_empty"),
        ("a\n\nb\n\na\n\na", "gopher_dup_para_frac"),
        (PROSE + "\n\n" + "one line of it, said twice\n\n" * 2 + words(3) + "\n\n" + words(2), None),
        ("\n\n".join([PROSE, PROSE, "one", "two", "three"]), "gopher_dup_para_char_frac"),
        (PROSE.replace("\n", "\nand so\n"), "gopher_dup_line_frac"),
        (
            PROSE + PROSE.splitlines()[0] + "\n" + PROSE.splitlines()[1] + "\nx\ny\nz",
            "gopher_dup_line_char_frac",
        ),
        (PROSE.replace(" the ", " the harbour boats "), "gopher_top_3_gram"),
        (words(30) + " wonderful fishing" * 12, "gopher_top_2_gram"),
        (words(130) + " ".join(f" {n} wonderful boat came home" for n in range(8)), "gopher_top_4_gram"),
        (" ".join(f"{n}x a{n % 30} boat{n % 30} came{n % 30} home{n % 30} then{n % 30}" for n in range(40)),
         "gopher_duplicated_5_n_grams"),
    ],
)  # fmt: skip
def test_each_rule_of_gophers_repetition(text, reason):
    assert decide(text, "en", gopher_repetition=True)[0] == reason


@pytest.mark.parametrize("n", [6, 7, 8, 9, 10])
def test_longer_repeated_n_grams(n):
    # Two copies of a sequence of n words: its share grows with the sequences, until the rule for n words says no.
    sequence = [f"word{number}" for number in range(n)]
    text = " ".join([*(f"other{number}" for number in range(16 * n // 2 - 2 * n)), *sequence, "x", *sequence])
    rule = Repetition(language=UnicodeWords(), top_n_grams=(), dup_n_grams=((n, (20 - n) / 200),))
    assert rule.filter(Document(text, "x")) == (False, f"duplicated_{n}_n_grams")
    assert rule.filter(Document(text.replace(" x ", " "), "x")) == (False, f"duplicated_{n}_n_grams")
    assert rule.filter(Document(" ".join(sequence), "x")) is True


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Lorem ipsum dolor sit amet.\n" + PROSE, "c4_lorem_ipsum"),
        (PROSE + "function() { return 1 }.", "c4_curly_bracket"),
        ("One line of it. And two more.", "c4_too_few_sentences"),
        ("", "c4_too_few_sentences"),
    ],
)
def test_each_rule_of_c4_on_documents(text, reason):
    assert decide(text, "en", c4=True)[0] == reason


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("Two words.", "few_words"),
        ("Please enable Javascript to see this page.", "javascript"),
        ("This site uses cookies, as all sites do.", "policy"),
        ("It is said that " + "o" * 1001 + ".", "long_word"),
        ("A line without its end", "no_end_mark"),
        ("A line that goes on...", "no_end_mark"),
    ],
)
def test_each_rule_of_c4_on_lines(line, rule):
    reason, left, account = decide(f"{line}\n\n{PROSE}", "en", c4=True, c4_terminal_punctuation=True)
    assert (reason, left) == (None, PROSE.strip())
    assert account.changed == {f"c4_line_{rule}": 1}
    if rule == "no_end_mark":
        assert decide(f"{line}\n{PROSE}", "en", c4=True)[1] == f"{line}\n{PROSE}".strip()


def test_c4_takes_citations_out_and_leaves_no_empty_document():
    assert decide(PROSE.replace("harbour", "harbour[12]"), "en", c4=True)[1] == PROSE.strip()
    assert decide("[1] [2] [3]", "en", c4=True, min_sentences=0)[0] == "c4_no_line_left"


def test_lines_of_other_languages_end_in_their_own_marks():
    for text, language in ((BENGALI, "bn"), (CHINESE, "zh")):
        assert decide(text, language, c4=True, c4_terminal_punctuation=True)[1] == text.strip()
        account = decide(text + "\n" + text[:20], language, c4=True, c4_terminal_punctuation=True)[2]
        assert account.changed == {"c4_line_no_end_mark": 1}
    assert decide(BENGALI, "en", c4=True, c4_terminal_punctuation=True)[0] == "c4_too_few_sentences"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "fineweb_empty"),
        (" \n ", "fineweb_empty"),
        ("\u200b.", "fineweb_short_line_ratio"),
        (PROSE.replace(".\n", "\n"), "fineweb_line_punct_ratio"),
        ("".join(f"Short line number {n}.\n" for n in range(9)), "fineweb_short_line_ratio"),
        (PROSE + PROSE.splitlines()[0], "fineweb_char_dup_ratio"),
        (PROSE.replace(" ", "\n\n" + "x" * 31 + ".\n"), "fineweb_char_dup_ratio"),
        ("".join(f"{chr(97 + n) * 31}.\n" for n in range(9)), "fineweb_list_ratio"),
    ],
)
def test_each_rule_of_fineweb(text, reason):
    assert decide(text, "en", fineweb=True)[0] == reason


def test_a_language_without_stop_words_goes_without_the_rule_and_it_is_said():
    said = []
    build_filters(
        FilterConfig(**{**OFF, "gopher_quality": True}, languages="bn,ko"), Account(), say=said.append
    )
    assert said == ["Filters: no list of stop words for ko: that rule of Gopher's is left out for them."]
    text = words(60)
    assert decide(text, "ko", gopher_quality=True)[2].changed == {"no_stop_words_known_ko": 1}
    assert decide(text, "bn", gopher_quality=True)[0] == "gopher_enough_stop_words"


def test_dialogue_is_no_table():
    # Every fourth token is a mark: datatrove counts them as words without a letter, which Gopher did not.
    text = (
        '"Indeed," answered Matthew, "the boat!" "Never," replied Agnes, "with that weather, to be drowned!" '
        * 8
    )
    document = Document(text, "x")
    assert GopherQualityFilter(language=UnicodeWords()).filter(document) == (
        False,
        "gopher_below_alpha_threshold",
    )
    assert decide(text, "en", gopher_quality=True)[0] is None


FRAGMENTS = st.lists(
    st.sampled_from(
        'the be to of and a ab abc abcdefghijkl word 12 - • # ... … { [1] . ! " , javascript cookie এবং । 我 '
        "ab.c don't".split()
        + ["\n", "\n\n", " ", "uses cookies", "lorem ipsum", "x" * 1001, "\u200b", "\x00"]
    ),
    max_size=120,
).map(" ".join)
SMALL = st.lists(st.sampled_from(["a", "ab", "b", "ba", "aab", ".", "\n", "\n\n"]), max_size=60)
REPEATS = st.tuples(SMALL, st.integers(1, 3)).map(lambda pair: " ".join(pair[0] * pair[1]))


def verdict(rule, text):
    document = Document(text, "x")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # datatrove's mean of no words
        try:
            return rule.filter(document), document.text
        except ZeroDivisionError:
            return "fails", text


@given(FRAGMENTS | REPEATS, st.integers(0, 40), st.integers(0, 3))
@settings(max_examples=250, deadline=None)
def test_gophers_quality_decides_as_datatrove(text, min_words, stop_words):
    options = dict(min_doc_words=min_words, min_stop_words=stop_words, language=UnicodeWords())
    theirs = verdict(GopherQualityFilter(**options), text)[0]
    ours = verdict(GopherQuality(letters_between_spaces=False, **options), text)[0]
    if theirs == "fails" or all(
        PUNCTUATION_SET.issuperset(word) for word in UnicodeWords().word_tokenize(text)
    ):
        assert ours == (False, "gopher_short_doc")
    else:
        assert ours == theirs


@given(FRAGMENTS | REPEATS, st.sampled_from([1.0, 0.3, 3.0]))
@settings(max_examples=300, deadline=None)
def test_gophers_repetition_decides_as_datatrove(text, scale):
    options = dict(
        language=UnicodeWords(),
        top_n_grams=tuple((n, share * scale) for n, share in ((2, 0.2), (3, 0.18), (4, 0.16))),
        dup_n_grams=tuple((n, (20 - n) / 100 * scale) for n in (2, 3, 5, 6, 7, 8, 9, 10)),
        dup_line_frac=0.3 * scale,
        dup_para_frac=0.3 * scale,
        dup_line_char_frac=0.2 * scale,
        dup_para_char_frac=0.2 * scale,
    )
    theirs = verdict(GopherRepetitionFilter(**options), text)[0]
    assert verdict(Repetition(**options), text)[0] == theirs


@given(st.lists(st.sampled_from(["a", "ab", "b", "ba", "aab"]), min_size=2, max_size=80))
@settings(max_examples=300, deadline=None)
def test_bounds_of_repetition_are_never_below_what_is_counted(tokens):
    from datatrove.pipeline.filters.gopher_repetition_filter import (
        find_all_duplicate,
        find_top_duplicate,
        get_n_grams,
    )

    hashes = NGramHashes(tokens)
    for n in range(2, 5):
        if len(tokens) >= n:
            counted = find_top_duplicate(get_n_grams(tokens, n))
            assert counted <= min(hashes.most_chars_of_one(n), hashes.most_chars_of_one_quickly(n))
    sizes = list(range(2, 11))
    for n, bound in zip(sizes, hashes.most_repeated_chars(sizes)):
        assert find_all_duplicate(tokens, n) <= bound <= len("".join(tokens))
    assert hashes.most_repeated_chars([2]) == hashes.most_repeated_chars([2, 9])[:1]


@given(SMALL, st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_long_documents_are_hashed_in_blocks_to_the_same_bounds(tokens, block):
    from jaxlm.corpus.raw import repetition

    whole = NGramHashes(tokens)
    sizes = [2, 3, 5]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repetition, "_BLOCK_WORDS", block)
        cut = NGramHashes(tokens)
        assert cut.most_repeated_chars(sizes) == whole.most_repeated_chars(sizes)
        for n in sizes:
            if len(tokens) >= n:
                np.testing.assert_array_equal(cut._hashes(n), whole._hashes(n))


def test_nearly_all_prose_is_decided_by_the_bounds(monkeypatch):
    from jaxlm.corpus.raw import repetition

    def refuse(*args):
        raise AssertionError("counted n-gram by n-gram")

    monkeypatch.setattr(repetition, "find_all_duplicate", refuse)
    monkeypatch.setattr(repetition, "find_top_duplicate", refuse)
    rng = random.Random(0)
    tokens = UnicodeWords().word_tokenize(PROSE)
    text = " ".join(rng.choice(tokens) for _ in range(3000))
    assert Repetition(language=UnicodeWords()).filter(Document(text, "x")) is True


@given(FRAGMENTS, st.booleans(), st.sampled_from([-1, 1, 2, 5]))
@settings(max_examples=250, deadline=None)
def test_c4_decides_as_datatrove_and_leaves_the_same_text(text, ends, sentences):
    options = dict(filter_no_terminal_punct=ends, min_num_sentences=sentences, language=UnicodeWords())
    theirs, their_text = verdict(C4QualityFilter(**options), text)
    ours, our_text = verdict(C4Quality(**options), text)
    if theirs is True and not their_text:
        assert ours == (False, "no_line_left")
    else:
        assert (ours, our_text) == (theirs, their_text)


@given(FRAGMENTS | REPEATS)
@settings(max_examples=300, deadline=None)
def test_fineweb_decides_as_datatrove(text):
    theirs = verdict(FineWebQualityFilter(language=UnicodeWords()), text)[0]
    ours = verdict(FineWebQuality(language=UnicodeWords()), text)[0]
    assert ours == ((False, "list_ratio") if theirs == "fails" else theirs)


def test_fineweb_drops_lines_without_a_word_where_datatrove_divides_by_zero():
    options = dict(line_punct_thr=0.0, language=UnicodeWords())
    text = "\x01" * 40
    assert verdict(FineWebQualityFilter(**options), text)[0] == "fails"
    assert verdict(FineWebQuality(**options), text)[0] == (False, "list_ratio")


def test_a_line_of_sixteen_megabytes_passes_through_every_rule(no_network):
    rules = dict(gopher_quality=True, gopher_repetition=True, c4=True, fineweb=True, personal_data=True)
    assert decide("x" * (16 << 20), **rules)[0] == "gopher_short_doc"
    line = " ".join(f"{word}." for word in PROSE.split())
    text = (line + " ") * ((1 << 20) // len(line))
    assert (
        decide(text, "en", **{**rules, "gopher_quality": False}, max_words=0)[0]
        == "gopher_duplicated_5_n_grams"
    )
    assert decide(text, "en", c4=True, fineweb=True)[0] is None


def test_steps_are_copied_and_pickled_with_one_account():
    account = Account()
    config = FilterConfig(**{**OFF, "gopher_quality": True, "gopher_repetition": True, "c4": True})
    steps = build_filters(config, account)
    assert [str(step) for step in steps] == ["language", "gopher_quality", "gopher_repetition", "c4"]
    for clone in (copy.deepcopy(steps), pickle.loads(pickle.dumps(steps))):
        documents = iter([Document("short", "a"), Document(PROSE, "b")])
        for step in clone:
            documents = step(documents, 0, 1)
        assert [document.id for document in documents] == ["b"]
        assert all(step.account is clone[0].account for step in clone)
        assert clone[0].account.dropped == {"gopher_short_doc": 1}
        assert clone[0].account.examples == {"gopher_short_doc": ["a: short"]}
    assert not account.dropped


def test_any_function_of_a_document_can_be_a_rule():
    account = Account()
    step = FilterStep("even", lambda document: (len(document.text) % 2 == 0, "odd"), account)
    assert [document.id for document in step(iter([Document("ab", "1"), Document("abc", "2")]))] == ["1"]
    assert account.dropped == {"even_odd": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language_threshold": 1.5}, r"language_threshold=1.5 must be in \[0, 1\]"),
        ({"min_words": -1}, "min_words=-1 must not be negative; 0 turns it off"),
        ({"min_words": 10, "max_words": 5}, "no document would be left"),
        ({"language_model": ""}, "language_model is empty"),
        ({"url": False, "url_block_list": "x"}, "would be ignored: filters.url=False"),
    ],
)
def test_bad_configs_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        FilterConfig(**options)
