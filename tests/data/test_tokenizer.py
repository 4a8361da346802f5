"""Promises of the tokenizer: no text is changed, no id is lost, the same input gives the same file."""

import functools
import hashlib
import io
import pickle

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.corpus import embedded
from jaxlm.data import tokenizer as tokenizer_lib
from jaxlm.data.tokenizer import (
    SentencePieceTokenizer,
    load_tokenizer,
    saved_tokenizer,
)
from jaxlm.data.tokenizer_training import train_tokenizer
from jaxlm.types import UserError

TOPICS = embedded.texts("embedded:topics")
KINDS = ("bpe", "unigram", "char")
BENGALI = "আমার সোনার বাংলা, আমি তোমায় ভালোবাসি। র‍্যাব ক্‌ষ"
AWKWARD = [
    "\u2581", "\u2581\u2581a", " \u2581 ", "\u2047", "\u2585", "\0", "\t\t", "\n", "\n\n\n", "   ", " b",
    "\r\n", "<s>", "</s>", "<unk>", "<0x0A>", "<0xE2><0x96><0x81>", "\ufffd", "\ufeff", "র‍্যাব",
    "ক্‌ষ", "👩‍👩‍👧‍👦", "🇧🇩", "مرحبا", "\ue000", "\U0010ffff", "\x85", "\u2028", "\u3000",
    "\xa0", " ⁇ ", "e\u0301",
]  # fmt: skip
TEXTS = st.one_of(
    st.text(),
    st.lists(
        st.one_of(st.sampled_from(AWKWARD), st.text(max_size=3), st.sampled_from(["the", " is", " a"]))
    ).map("".join),
)


@functools.cache
def trained(kind: str) -> SentencePieceTokenizer:
    texts = [*TOPICS[:30], BENGALI, "\tif x:\n\t\treturn  1\n" * 20]
    return SentencePieceTokenizer(train_tokenizer(texts, kind, 1200))


def foreign(text: str = "the lion is in the forest\n" * 20, **options) -> SentencePieceTokenizer:
    """A model made by sentencepiece alone, as other projects make theirs."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()), model_writer=model, minloglevel=2, hard_vocab_limit=False,
        **{"vocab_size": 300, **options},
    )  # fmt: skip
    return SentencePieceTokenizer(model.getvalue())


def t5_style():
    return foreign(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, normalization_rule_name="nmt_nfkc")


def llama_style():
    return foreign(byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
                   model_type="bpe")  # fmt: skip


def gemma_style():
    return foreign(
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        model_type="bpe", add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        user_defined_symbols=["\n\n", "<mask>"],
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_decode_undoes_encode_for_every_unicode_string(kind, text):  # pain 26
    tokenizer = trained(kind)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.bytes_per_id()[ids].sum() == len(text.encode())
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id} & set(ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5))
def test_a_batch_is_encoded_as_its_texts_alone(kind, texts):
    tokenizer = trained(kind)
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    ids, lengths = tokenizer.documents(texts)
    alone = [tokenizer.document(text) for text in texts]
    assert ids.tolist() == [i for document in alone for i in document]
    assert lengths.tolist() == [len(document) for document in alone]
    assert ids.dtype == np.int32


@settings(max_examples=300, deadline=None)
@given(text=TEXTS.filter(lambda text: "\u2581" not in text))
def test_the_word_cache_gives_what_sentencepiece_gives(text):
    tokenizer = trained("bpe")
    assert tokenizer._words is not None
    assert tokenizer.encode(text) == tokenizer._sp.encode(text)


def test_a_model_with_pieces_across_words_is_not_encoded_word_by_word():
    tokenizer = foreign(
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        model_type="bpe", add_dummy_prefix=False, split_by_whitespace=False, vocab_size=400,
    )  # fmt: skip
    assert tokenizer.exact
    assert any(" " in tokenizer.piece(i).strip() for i in range(tokenizer.vocab_size))
    text = "the lion is in the forest"
    assert tokenizer.encode(text) == tokenizer._sp.encode(text)


def test_the_word_cache_stays_small(monkeypatch):
    monkeypatch.setattr(tokenizer_lib, "CACHED_WORDS", 10)
    tokenizer = SentencePieceTokenizer(trained("bpe").model_bytes)
    text = " ".join(str(i) for i in range(1000)) + " " + "x" * 1000
    assert tokenizer.decode(tokenizer.encode(text)) == text
    words = tokenizer._words or {}
    assert 0 < len(words) <= 10
    assert max(map(len, words)) <= tokenizer_lib.CACHED_WORD_CHARS


@pytest.mark.parametrize("kind", KINDS)
def test_training_twice_gives_the_same_bytes(kind):
    texts = TOPICS[:20]
    assert train_tokenizer(texts, kind, 600) == train_tokenizer(iter(texts), kind, 600)


def test_newlines_tabs_and_runs_of_spaces_become_pieces():
    code = "def f(x):\n        if x:\n                return 1\n\n\tb\t\tc\n" * 50
    tokenizer = SentencePieceTokenizer(train_tokenizer([code], "bpe", 300))
    assert tokenizer._words is not None
    for text in ("\n", "\t", " " * 4):
        assert not any(tokenizer.is_byte(i) for i in tokenizer.encode(text)), repr(text)
    assert len(tokenizer.encode("        ")) < 4


def test_char_has_a_piece_for_every_character_and_ignores_vocab_size():
    text = "the lion\n\tক্‌ষ zoo"
    tokenizer = SentencePieceTokenizer(train_tokenizer([text], "char", 5000))
    assert tokenizer.vocab_size == len(set(text)) + 256 + 3
    assert len(tokenizer.encode(text)) == len(text)
    only_at_the_end = SentencePieceTokenizer(train_tokenizer(["a\n"], "char", 5000))
    assert len(only_at_the_end.encode("\n\n")) == 2
    assert not only_at_the_end.is_byte(only_at_the_end.encode("\n")[0])


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_vocab_size_is_met_exactly(kind):
    texts = TOPICS[:10]
    assert SentencePieceTokenizer(train_tokenizer(texts, kind, 500)).vocab_size == 500


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_vocabulary_beyond_31_bits_is_refused(kind):
    with pytest.raises(UserError, match=r"vocab_size=99999999999 cannot be trained .* Try vocab_size=\d+"):
        train_tokenizer(["the lion is in the zoo"], kind, 99_999_999_999)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_vocabulary_too_large_for_the_text_is_refused_with_the_largest_possible(kind):
    with pytest.raises(UserError, match=r"vocab_size=4000 is more than .* Try vocab_size=(\d+)") as caught:
        train_tokenizer(["the lion is in the zoo"], kind, 4000)
    largest = int(str(caught.value).split("Try vocab_size=")[1].split()[0])
    assert (
        SentencePieceTokenizer(train_tokenizer(["the lion is in the zoo"], kind, largest)).vocab_size
        == largest
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [[], ["", ""], ["\u2581\0"]])
def test_no_text_to_train_on_is_a_clear_error(kind, texts):
    with pytest.raises(UserError, match="no text"):
        train_tokenizer(texts, kind, 300)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_script_with_more_characters_than_places_can_be_trained_on(kind):
    han = "".join(map(chr, range(0x4E00, 0x5E00))) * 2
    tokenizer = SentencePieceTokenizer(train_tokenizer([han, *TOPICS[:5]], kind, 320))
    assert tokenizer.decode(tokenizer.encode(han)) == han


def test_text_that_looks_special_stays_text():
    texts = ["<s> <0x0A> </s> <unk>" * 50, *TOPICS[:5]]
    tokenizer = SentencePieceTokenizer(train_tokenizer(texts, "bpe", 400))
    for text in ("<s>", "</s>", "<unk>", "<0x0A>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert len(tokenizer.encode(text)) > 1


def test_one_very_long_line_is_learnt_from_and_encoded():
    line = "lion " * 200_000 + "x" * 1_000_000
    tokenizer = SentencePieceTokenizer(train_tokenizer([line], "bpe", 275))
    assert tokenizer.decode(tokenizer.encode(line)) == line
    assert len(tokenizer.encode(" lion")) == 1


@pytest.mark.parametrize("make", [lambda: trained("bpe"), t5_style, llama_style, gemma_style])
def test_markup_is_text_but_for_the_control_pieces_that_are_written_out(make):
    tokenizer = make()
    for text in ("", "the lion", " \n", "<0x0A>", "<sS>"):
        assert tokenizer.encode_markup(text) == tokenizer.encode(text)
    end = tokenizer.eos_id
    text = "the</s> lion</s></s>is"
    assert tokenizer.encode_markup(text) == [
        *tokenizer.encode("the"), end, *tokenizer.encode(" lion"), end, end, *tokenizer.encode("is"),
    ]  # fmt: skip
    assert end not in tokenizer.encode(text)


def test_unk_is_text_for_a_model_that_has_bytes_and_a_token_for_one_that_has_none():
    assert trained("bpe").encode_markup("<unk>") == trained("bpe").encode("<unk>")
    assert t5_style().encode_markup("<unk>") == [t5_style().unk_id]


@pytest.mark.parametrize("make", [lambda: trained("bpe"), t5_style, llama_style, gemma_style])
def test_a_document_has_exactly_one_bos_and_eos_where_the_model_has_them(make):  # pain 10
    tokenizer = make()
    for text in ("the lion", "<s>the lion</s>", ""):
        ids = tokenizer.document(text)
        for special, place in ((tokenizer.bos_id, 0), (tokenizer.eos_id, -1)):
            if special is not None:
                assert ids.count(special) == 1
                assert ids[place] == special
        assert tokenizer.decode(ids).strip() == tokenizer.decode(tokenizer.encode(text)).strip()


def test_special_ids_of_other_models_are_theirs():
    assert (t5_style().bos_id, t5_style().eos_id, t5_style().pad_id) == (None, 1, 0)
    assert (llama_style().bos_id, llama_style().eos_id, llama_style().pad_id) == (1, 2, 2)
    assert (gemma_style().bos_id, gemma_style().eos_id, gemma_style().pad_id) == (2, 1, 0)
    none = foreign(bos_id=-1, eos_id=-1)
    assert (none.bos_id, none.eos_id, none.pad_id) == (None, None, 0)
    assert none.document("the lion") == none.encode("the lion")
    for tokenizer in (t5_style(), llama_style(), gemma_style(), none):
        assert tokenizer.documents(["the lion"])[0].tolist() == tokenizer.document("the lion")


def test_which_models_keep_text_exactly():
    assert trained("bpe").exact
    assert gemma_style().exact
    assert not llama_style().exact
    assert not t5_style().exact
    assert t5_style().normalizer == "nmt_nfkc"


@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_a_gemma_style_model_round_trips_too(text):
    tokenizer = functools.cache(gemma_style)()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_pieces_for_people_and_bytes_per_id():
    tokenizer = trained("bpe")
    widths = tokenizer.bytes_per_id()
    assert widths.shape == (tokenizer.vocab_size,)
    assert widths.dtype == np.int32
    assert widths[[tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id]].tolist() == [0, 0, 0]
    assert [tokenizer.piece(i) for i in tokenizer.encode("the \u20ad")][-1] == "<0xAD>"
    assert "".join(tokenizer.piece(i) for i in tokenizer.encode(" the if")) == " the if"


def test_bytes_that_are_not_utf8_decode_to_the_replacement_character():
    tokenizer = trained("bpe")
    assert tokenizer.decode(tokenizer.encode("ক")[:1] + tokenizer.encode("a")).endswith("a")
    with pytest.raises(ValueError, match="must be in"):
        tokenizer.decode([tokenizer.vocab_size])
    with pytest.raises(ValueError, match="must be in"):
        tokenizer.decode([-1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_lone_surrogate_is_named(kind):
    for method in ("encode", "documents"):
        with pytest.raises(UserError, match="lone surrogate '\\\\ud800' at character 1"):
            getattr(trained(kind), method)(["a\ud800"] if method == "documents" else "a\ud800")
    with pytest.raises(UserError, match="lone surrogate"):
        train_tokenizer(["a\ud800"], kind, 300)


def test_the_hash_is_that_of_the_file(tmp_path):
    tokenizer = trained("bpe")
    assert tokenizer.save(tmp_path) == ["tokenizer.model"]
    assert hashlib.sha256((tmp_path / "tokenizer.model").read_bytes()).hexdigest() == tokenizer.sha256
    loaded = load_tokenizer(saved_tokenizer(tmp_path))
    assert loaded.sha256 == tokenizer.sha256
    assert pickle.loads(pickle.dumps(loaded)).encode("the lion") == tokenizer.encode("the lion")


def test_files_that_are_no_model_are_named(tmp_path):
    model = trained("bpe").model_bytes
    for name, content, reason in (
        ("empty", b"", "it is empty"),
        ("text", b"hello world, this is text", "other content"),
        ("tokenizer.json", b'{"version": "1.0"}', "tokenizer.json cannot be read"),
        ("tiktoken", b"IQ== 0\nIg== 1\n", "it is one of tiktoken"),
        ("cut", model[: len(model) // 2], "cut short"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=reason) as caught:
            load_tokenizer(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(tmp_path / "nowhere.model")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="holds neither tokenizer.json nor tokenizer.model"):
        load_tokenizer(tmp_path / "folder")
