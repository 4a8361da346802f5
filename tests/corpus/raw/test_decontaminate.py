"""Documents that hold text of evaluation sets, by hand and beside datatrove."""

import json
import pickle

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.utils.hashing import HashConfig, create_hash_func
from datatrove.utils.text import ngrams, simplify_text
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.corpus.raw.decontaminate import DecontaminateStep, NGramIndex, build_index
from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.filter_config import DecontaminateConfig
from jaxlm.corpus.raw.words import UnicodeWords
from jaxlm.types import UserError

QUESTION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
POEM = "আমার মাথা নত করে দাও হে তোমার চরণধুলার তলে সকল অহংকার হে আমার ডুবাও চোখের জলে"


def index(*texts, num_words=13, min_words=8):
    return NGramIndex([("set", text) for text in texts], num_words, min_words)


def contaminated(text, found):
    return next(found.matches(text), None) is not None


def test_thirteen_words_contaminate_and_twelve_do_not():
    words = QUESTION.split()
    found = index(QUESTION)
    assert contaminated(f"As we know, {' '.join(words[2:15])} and so on.", found)
    assert not contaminated(f"As we know, {' '.join(words[2:14])} and so on.", found)
    assert not contaminated(" ".join(words[:12]), found)


def test_case_punctuation_and_space_do_not_count():
    shouted = QUESTION.upper().replace(",", " ").replace(" ", " \n--\t")
    assert contaminated(shouted, index(QUESTION))
    assert contaminated(QUESTION, index(shouted))


def test_one_other_word_in_every_thirteen_is_enough_to_differ():
    words = QUESTION.split()
    words[9] = "other"
    assert not contaminated(" ".join(words), index(QUESTION))


def test_bengali_is_matched_by_its_letters_and_its_vowel_signs():
    found = index(POEM)
    assert contaminated(f"কবি লিখলেন: {POEM.replace('হে', 'হে,')}।", found)
    assert not contaminated(POEM.replace("জলে", "জলা").replace("সকল", "সকাল"), found)
    # The same letter in two forms of Unicode, and a joiner that nobody sees.
    assert contaminated("এটা হ\u09af\u09bc " * 7, index("এটা হ\u09df " * 7))
    assert contaminated(POEM.replace("চরণ", "চর\u200dণ"), found)


def test_a_short_text_is_matched_whole_and_a_shorter_one_not_at_all():
    eight = "what is the capital city of old bengal"
    assert len(eight.split()) == 8
    assert contaminated("He asked: What is the capital city of old Bengal? Nobody knew.", index(eight))
    assert not contaminated("what is the capital city of old delhi", index(eight))
    assert not contaminated(eight, index(eight.rsplit(" ", 1)[0]))


def test_documents_are_dropped_and_counted_by_set():
    texts = [("gsm8k", QUESTION), ("poems", POEM)]
    account = Account()
    step = DecontaminateStep(DecontaminateConfig(), NGramIndex(texts, 13, 8), account)
    documents = [
        Document(f"x {QUESTION}", "a"),
        Document("clean", "b"),
        Document(POEM, "c"),
        Document("", "d"),
    ]
    assert [document.id for document in step(iter(documents))] == ["b", "d"]
    assert account.dropped == {"contaminated_gsm8k": 1, "contaminated_poems": 1}
    assert account.examples["contaminated_gsm8k"] == [
        "a: 'Natalia sold clips to 48 of her friends in April and then she'"
    ]


def test_a_match_is_cut_out_with_a_window_on_both_sides():
    config = DecontaminateConfig(contaminated="cut", window_chars=20)
    account = Account()
    step = DecontaminateStep(config, index(QUESTION), account)
    before, after = "b" * 40 + " " + "c" * 19 + " ", " " + "d" * 19 + " " + "e" * 40
    pieces = list(step(iter([Document(before + QUESTION + after, "x", metadata={"url": "u"})])))
    # The closing full stop is no part of the match.
    assert [(piece.id, piece.text, piece.metadata) for piece in pieces] == [
        ("x/0", "b" * 40, {"url": "u"}),
        ("x/1", "d" + " " + "e" * 40, {"url": "u"}),
    ]
    assert account.changed == {"contaminated_set": 1}
    assert not account.dropped


def test_a_document_of_which_too_little_or_too_many_pieces_are_left_is_dropped():
    config = DecontaminateConfig(contaminated="cut", window_chars=20, max_pieces=2)
    account = Account()
    step = DecontaminateStep(config, index(QUESTION), account)
    filler = " " + "f" * 80 + " "
    documents = [Document(QUESTION, "all"), Document(filler.join(["", *[QUESTION] * 2, ""]), "three pieces")]
    assert list(step(iter(documents))) == []
    assert account.dropped == {"contaminated_set": 2}


WORDS = st.lists(st.sampled_from("red blue green old new cat dog".split()), max_size=60)


@given(st.lists(WORDS, max_size=4), WORDS, st.integers(1, 4))
@settings(max_examples=300, deadline=None)
def test_every_match_is_one_and_every_one_is_matched(texts, document, num_words):
    found = index(*map(" ".join, texts), num_words=num_words, min_words=num_words)
    grams = {tuple(gram) for text in texts for gram in ngrams(text, num_words)}
    expected = [
        (start, start + num_words)
        for start in range(len(document) - num_words + 1)
        if tuple(document[start : start + num_words]) in grams
    ]
    assert [(match.start, match.stop) for match in found.matches(" ".join(document))] == expected


def test_decisions_are_those_of_datatrove(tmp_path, monkeypatch):
    # Its format: the hashes of n-grams of words joined by spaces, 8 bytes each. Not xxhash: 0.10.1 hands it str.
    config = NGramsDecontConfig(n_grams=5, hash_config=HashConfig(hash_fc="sha1"))
    words, digest = UnicodeWords(), create_hash_func(config.hash_config)
    evaluation = "the old cat sat on the red mat and the dog sat by the door of the green house"
    tokens = words.word_tokenize(simplify_text(evaluation))
    hashes = np.array([digest(" ".join(gram)) for gram in ngrams(tokens, 5)], config.hash_config.np_descr)
    hashes.tofile(tmp_path / "set.index.hashes")
    theirs = NGramsDecontFilter(str(tmp_path), config, language=words)
    ours = index(evaluation, num_words=5, min_words=5)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(500):
        start = rng.integers(0, len(tokens) - 4)
        piece = tokens[start : start + rng.integers(3, 8)]
        text = " ".join([*rng.choice(tokens, 6), *piece, *rng.choice(tokens, 6)])
        kept = theirs.filter(Document(text, "x")) is True
        assert kept == (not contaminated(text, ours))
        seen.add(kept)
    assert seen == {True, False}


def test_sets_are_read_from_every_kind_of_file(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": QUESTION, "label": 1}) + "\n")
    (tmp_path / "b.txt").write_text("first one\n\n" + POEM + "\n", encoding="utf-8")
    chat = {
        "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": QUESTION + " Yes."}]
    }
    (tmp_path / "c.json").write_text(json.dumps([chat]))
    (tmp_path / "d.csv").write_text('text,label\n"' + QUESTION + ' No.",1\n')
    for name, counts in (("a.jsonl", 1), ("b.txt", 1), ("c.json", 1), ("d.csv", 1), ("", 4)):
        path = str(tmp_path / name)
        found = build_index(DecontaminateConfig(evaluation=f"mine={path}"))
        assert found.num_texts == {"mine": counts}
    found = build_index(DecontaminateConfig(evaluation=f"{tmp_path}/a.jsonl, poem={tmp_path}/b.txt"))
    assert [next(found.matches(text)).set_name for text in (QUESTION, POEM)] == [
        f"{tmp_path}/a.jsonl",
        "poem",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluation": "a=x,a=y"}, "names 'a' twice"),
        ({"evaluation": "a="}, "'a=' must be a path, or name=path"),
        ({"contaminated": "dropp"}, "did you mean 'drop'"),
        ({"min_words": 14}, "min_words=14 is above decontaminate.num_words=13"),
        ({"num_words": 0}, "num_words=0 must be at least 1"),
        ({"window_chars": -1}, "must not be negative"),
    ],
)
def test_bad_configs_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        DecontaminateConfig(**options)


def test_a_set_that_is_not_there_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        build_index(DecontaminateConfig(evaluation=str(tmp_path / "none.jsonl")))


def test_an_index_survives_pickling_and_nothing_is_compared_without_sets():
    found = pickle.loads(pickle.dumps(index(QUESTION)))
    assert contaminated(QUESTION, found)
    empty = build_index(DecontaminateConfig())
    assert not contaminated(QUESTION, empty)


def test_long_texts_and_odd_ones(no_network):
    found = index(QUESTION)
    for text in ("x" * (16 << 20), "sold " * (1 << 20), "... " * 10_000, "\ufeff", "\ud800 half", "a\x00b"):
        assert not contaminated(text, found)
    assert contaminated("clips " * (1 << 20) + QUESTION, found)
