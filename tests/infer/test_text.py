"""Promises of text: streamed pieces join to the text, no broken character, no part of a stop string."""

import functools
import inspect
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import level
from standin import ByteTokenizer, history_lm

from jaxlm.data.tokenizer import SentencePieceTokenizer
from jaxlm.data.tokenizer_hf import HFTokenizer
from jaxlm.data.tokenizer_training import train_tokenizer
from jaxlm.infer.text import REPLACEMENT, TextStream, encode_prompt, generate_text
from jaxlm.types import UserError

BENGALI = "আমার সোনার বাংলা, ক্‌ষ ৳"
WORDS = [" zoo", " the", "the", " lion", "END"]


@functools.cache
def sentencepiece_tokenizer(kind):
    texts = [*inspect.getsource(textwrap).split("\n\n"), "The lion is in the zoo.", BENGALI]
    return SentencePieceTokenizer(train_tokenizer(texts, kind, 400))


def stream(tokenizer, prompt, text, stop=()):
    """-> (pieces, stream) of `text` pushed token by token after `prompt`."""
    made = TextStream(tokenizer, encode_prompt(tokenizer, prompt) if prompt else [tokenizer.bos_id], stop)
    pieces = []
    for token in tokenizer.encode(text):
        if not made.stopped:
            pieces.append(made.push(token))
    pieces.append(made.finish())
    return pieces, made


CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters=[REPLACEMENT])
TEXTS = st.text(st.one_of(CHARACTERS, st.sampled_from(" \n\t৳ক্")), max_size=60)


@functools.cache
def hugging_face_tokenizer():
    return HFTokenizer(level())


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe", "unigram", "char", "hf"])
@given(prompt=TEXTS, text=TEXTS)
def test_pieces_join_to_the_text_and_hold_whole_characters(tokenizer, prompt, text):
    if tokenizer == "hf":
        tokenizer = hugging_face_tokenizer()
    else:
        tokenizer = ByteTokenizer(WORDS) if tokenizer == "bytes" else sentencepiece_tokenizer(tokenizer)
    pieces, made = stream(tokenizer, prompt, text)
    assert "".join(pieces) == made.text == text
    assert not any(REPLACEMENT in piece for piece in pieces)


@given(
    text=st.text("abEND", max_size=30), stop=st.lists(st.text("abEND", min_size=1, max_size=4), max_size=3)
)
def test_text_ends_right_before_the_first_stop_string(text, stop):
    tokenizer = ByteTokenizer(["EN", "Da", "bb", "DEND"])
    pieces, made = stream(tokenizer, "a", text, stop)
    assert "".join(pieces) == made.text
    assert made.stopped == any(s in text for s in stop)
    assert text.startswith(made.text)
    assert not any(s in made.text for s in stop)
    if made.stopped:
        assert any(text[len(made.text) :].startswith(s) for s in stop)
        assert len(made.text) <= min(text.find(s) for s in stop if s in text) + max(map(len, stop))
    else:
        assert made.text == text


def test_a_possible_stop_string_is_held_back_until_it_is_none():
    pieces, _ = stream(ByteTokenizer(), "a", "x<|e|>y<|end|>z", ["<|end|>"])
    assert pieces == ["x", "", "", "", "<|e|", ">", "y", "", "", "", "", "", "", "", ""]


def test_bytes_that_are_no_text_are_shown_and_never_pile_up():
    tokenizer = ByteTokenizer()
    made = TextStream(tokenizer, [0])
    pieces = [made.push(2 + 0x80) for _ in range(100)]
    assert "".join(pieces) == REPLACEMENT * 97
    assert made.push(2 + ord("a")) == REPLACEMENT * 3 + "a"


def test_a_character_cut_off_by_the_end_is_left_out():
    tokenizer = ByteTokenizer()
    made = TextStream(tokenizer, [0])
    for token in tokenizer.encode("a€")[:-1]:
        made.push(token)
    assert made.finish() == ""
    assert made.text == "a"


def test_a_prompt_starts_with_exactly_one_bos_and_has_no_eos():  # pain 10
    tokenizer = ByteTokenizer(WORDS)
    assert encode_prompt(tokenizer, "") == [0]
    assert encode_prompt(tokenizer, "the zoo") == [0, 2 + 256 + 2, 2 + 256]
    assert encode_prompt(ByteTokenizer(WORDS, bos_id=None), " the") == [2 + 256 + 1]
    sentencepiece = sentencepiece_tokenizer("bpe")
    with_bos = [sentencepiece.bos_id, *sentencepiece.encode("the zoo")]
    assert encode_prompt(sentencepiece, "the zoo") == encode_prompt(sentencepiece, "<s>the zoo") == with_bos
    with pytest.raises(UserError, match="prompt is empty and the tokenizer puts no BOS"):
        encode_prompt(ByteTokenizer(bos_id=None), "")


def chain_lm(tokenizer, text):
    """A model that writes `text`, whose characters all differ, again and again."""
    V = tokenizer.vocab_size
    table_VV = np.full((V, V + 5), -30.0, np.float32)[:, :V]
    ids = tokenizer.encode(text)
    table_VV[ids, ids[1:] + ids[:1]] = 10.0
    table_VV[0, ids[0]] = 10.0
    return history_lm(table_VV, decay=0.0)


def test_generated_text_is_cut_at_a_stop_string_whatever_the_streaming():
    tokenizer = ByteTokenizer(WORDS)
    lm, params = chain_lm(tokenizer, "abcdefghij")
    options = {"max_new_tokens": 25, "temperature": 0.0, "stop": ["fgh", "zz"]}
    shown = {0: "", 1: ""}

    def show(row, text):
        shown[row] += text

    quiet = generate_text(lm, params, tokenizer, ["a", "g"], **options)
    streamed = generate_text(lm, params, tokenizer, ["a", "g"], **options, on_text=show)
    assert quiet == streamed
    assert [(c.text, c.finish_reason) for c in quiet] == [("bcde", "stop"), ("hijabcde", "stop")]
    assert shown == {0: "bcde", 1: "hijabcde"}
    assert [len(c.tokens) for c in quiet] == [len("bcdefgh"), len("hijabcdefgh")]


def test_what_was_held_back_comes_out_at_the_end():
    tokenizer = ByteTokenizer(WORDS)
    lm, params = chain_lm(tokenizer, "abcdefghij")
    for on_text in (None, lambda row, text: None):
        result = generate_text(
            lm, params, tokenizer, [""], max_new_tokens=7, temperature=0.0, stop=["fgh"], on_text=on_text
        )[0]
        assert (result.text, result.finish_reason) == ("abcdefg", "length")


def test_text_without_stop_strings_and_eos():
    tokenizer = ByteTokenizer(WORDS)
    lm, params = chain_lm(tokenizer, "abc")
    params["table"] = params["table"].at[2 + ord("c"), 1].set(99.0)
    result = generate_text(lm, params, tokenizer, ["a"], max_new_tokens=7, temperature=0.0)[0]
    assert (result.prompt, result.text, result.finish_reason) == ("a", "bc", "eos")


def test_every_stop_id_of_the_tokenizer_ends_a_text():
    tokenizer = ByteTokenizer(WORDS)
    tokenizer.stop_ids = (1, 2 + ord("d"))
    lm, params = chain_lm(tokenizer, "abcdef")
    result = generate_text(lm, params, tokenizer, ["a"], max_new_tokens=7, temperature=0.0)[0]
    assert (result.text, result.finish_reason) == ("bc", "stop")


def test_an_empty_stop_string_is_refused():
    lm, params = chain_lm(ByteTokenizer(), "ab")
    with pytest.raises(UserError, match="stop string is empty"):
        generate_text(lm, params, ByteTokenizer(), ["a"], max_new_tokens=1, stop=[""])
