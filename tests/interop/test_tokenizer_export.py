"""Promises of an exported sentencepiece model: the same ids from `tokenizers`, with the BOS of our prompts."""

import functools
import io
import json
import unicodedata

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from small_tokenizers import TEXTS as TRAINED_ON
from small_tokenizers import level

from jaxlm.data.tokenizer import NUM_RESERVED, SentencePieceTokenizer
from jaxlm.data.tokenizer_hf import HFTokenizer
from jaxlm.data.tokenizer_training import train_tokenizer
from jaxlm.infer.text import encode_prompt
from jaxlm.interop.tokenizer_export import export_tokenizer
from jaxlm.types import UserError

EDGES = [
    "", " ", "  ", "   a", "a   ", "\t", "\n", "\n\n\n", "\r\n", "\0", "\u2581", "\u2581\u2581a", " \u2581 ",
    "\u0301", "e\u0301", "👩\u200d👩\u200d👧\u200d👦", "🇧🇩", "র\u200d্যাব", "ক্\u200cষ", "আমার সোনার বাংলা", "日本語の文",
    "مرحبا", "<s>", "</s>", "<unk>", "<0x0A>", "<0xE2><0x96><0x81>", "\ufffd", "\ufeff", "\ue000", "\U0010ffff",
    "\x85", "\u2028", "\u3000", "\xa0", "aaaaaaa", "abababab", "the lion is", "ﬁ①Å", "カ゛ｶﾞ", "<mask>", "a<mask>b",
    "[INST] a [/INST]",
]  # fmt: skip
PARTS = st.one_of(st.sampled_from(EDGES), st.text(max_size=3), st.sampled_from(["the", " is", " a"]))
MIXED = st.one_of(st.text(), st.lists(PARTS).map("".join))


def backwards():
    """A model whose best pieces have the highest ids, as none that a trainer makes."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(train_tokenizer(TRAINED_ON, "bpe", 700))
    turned = [*proto.pieces[:NUM_RESERVED], *reversed(proto.pieces[NUM_RESERVED:])]
    copies = [type(piece).FromString(piece.SerializeToString()) for piece in turned]
    del proto.pieces[:]
    proto.pieces.extend(copies)
    return SentencePieceTokenizer(proto.SerializeToString())


def by_hand(pieces):
    """A unigram model with these (text, score, type) behind <unk>, <s> and </s>."""
    proto = sentencepiece_model_pb2.ModelProto()
    for text, score, kind in [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *pieces]:
        proto.pieces.add(piece=text, score=score, type=kind)
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    return SentencePieceTokenizer(proto.SerializeToString())


def foreign(**options):
    """A model made by sentencepiece alone, as other projects make theirs."""
    model = io.BytesIO()
    text = options.pop("text", "the lion is in the forest\n\tabc <mask> ab aa\n")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text * 20] * 3),
        model_writer=model, minloglevel=2, hard_vocab_limit=False, **{"vocab_size": 320, **options},
    )  # fmt: skip
    return SentencePieceTokenizer(model.getvalue())


KEPT = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
MODELS = {
    "bpe": lambda: SentencePieceTokenizer(train_tokenizer(TRAINED_ON, "bpe", 700)),
    "char": lambda: SentencePieceTokenizer(train_tokenizer(TRAINED_ON, "char", 700)),
    "llama": lambda: foreign(**KEPT, model_type="bpe"),
    "mistral": lambda: foreign(
        **KEPT, model_type="bpe", control_symbols=["[INST]", "[/INST]"], user_defined_symbols=["\n\n", "<mask>"]
    ),
    "gemma": lambda: foreign(
        **KEPT, model_type="bpe", add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        user_defined_symbols=["\n\n", "<mask>", "\u2581\u2581"],
    ),
    "t5": lambda: foreign(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, normalization_rule_name="nmt_nfkc"),
    "bpe with nfkc": lambda: foreign(model_type="bpe", normalization_rule_name="nfkc"),
    "t5 of few letters": lambda: foreign(text="the lion is in the forest\n"),
    "backwards": backwards,
    "no BOS": lambda: foreign(model_type="bpe", bos_id=-1, eos_id=-1),
}  # fmt: skip


@functools.cache
def exported(name):
    """-> (ours, the export's files, as transformers reads tokenizer.json, the same that takes no text for special)."""
    ours = MODELS[name]()
    files = export_tokenizer(ours)
    theirs, as_text = (tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode()) for _ in range(2))
    as_text.encode_special_tokens = True
    return ours, files, theirs, as_text


def check(name, text):
    ours, _, theirs, as_text = exported(name)
    assert as_text.encode(text, add_special_tokens=False).ids == ours.encode(text)
    assert theirs.encode(text, add_special_tokens=False).ids == ours.encode_markup(text)
    if ours.exact:
        assert theirs.decode(ours.encode(text)) == text


@pytest.mark.parametrize("name", MODELS)
def test_ids_at_the_edges(name):
    for text in [*EDGES, "a" * 100_000, "".join(EDGES), " ".join(EDGES), "\n".join(TRAINED_ON)[:20_000]]:
        check(name, text)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=100, deadline=None)
@given(text=MIXED)
def test_ids_of_any_text(name, text):
    if "nfkc" in exported(name)[0].normalizer:  # `tokenizers` normalises marks on what is no letter otherwise
        text = "".join(char for char in text if unicodedata.category(char)[0] not in "MC")
    check(name, text)


@functools.cache
def unigram():
    """-> (ours, what transformers reads, what jaxlm reads, the score of each piece)."""
    ours = SentencePieceTokenizer(train_tokenizer(TRAINED_ON, "unigram", 700))
    files = export_tokenizer(ours)
    theirs = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    scores = [score for _, score in json.loads(files["tokenizer.json"])["model"]["vocab"]]
    return ours, theirs, HFTokenizer(files), scores


@settings(max_examples=200, deadline=None)
@given(text=MIXED)
def test_a_unigram_export_differs_only_between_cuts_of_equal_probability(text):
    ours, theirs, back, scores = unigram()
    markup = theirs.encode(text, add_special_tokens=False).ids
    for found, wanted in ((markup, ours.encode_markup(text)), (back.encode(text), ours.encode(text))):
        assert ours.decode(found) == ours.decode(wanted)
        assert len(found) == len(wanted)
        if found != wanted:
            assert sum(scores[i] for i in found) == pytest.approx(sum(scores[i] for i in wanted), abs=1e-4)


def test_a_symbol_of_the_user_is_favoured_in_a_unigram_model_as_by_sentencepiece():
    letters = [(char, -3.0, 1) for char in "abc"]
    wanted = []
    for score in (-2.95, -2.85):  # "ab" and "c" together have -2.9
        ours = by_hand([*letters, ("\u2581", -2.0, 1), ("ab", 0.0, 4), ("abc", score, 1)])
        theirs = tokenizers.Tokenizer.from_str(export_tokenizer(ours)["tokenizer.json"].decode())
        for text in ("ab", "abc", "aab", "abcab", "a b"):
            assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text)
        wanted.append([ours.piece(i) for i in ours.encode("ababc")])
    assert wanted == [["ab", "ab", "c"], ["ab", "abc"]]


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_has_the_bos_of_ours_and_no_eos(name):
    ours, files, theirs, _ = exported(name)
    for text in ("the lion", "  a", "</s> b"):
        assert theirs.encode(text).ids == encode_prompt(ours, text)
    config = json.loads(files["tokenizer_config.json"])
    assert config["add_bos_token"] is (ours.bos_id is not None)
    assert config["add_eos_token"] is False
    special_map = json.loads(files["special_tokens_map.json"])
    for key, token_id in (("bos_token", ours.bos_id), ("eos_token", ours.eos_id)):
        for names in (config, special_map):
            assert names.get(key) == (None if token_id is None else theirs.id_to_token(token_id))


@pytest.mark.parametrize("name", MODELS)
def test_an_export_comes_back_as_a_tokenizer_of_the_same_ids(name):
    ours, files, _, _ = exported(name)
    back = HFTokenizer(files)
    assert (back.bos_id, back.eos_id, back.vocab_size) == (ours.bos_id, ours.eos_id, ours.vocab_size)
    assert (back.prefix_ids, back.stop_ids, back.exact) == (ours.prefix_ids, ours.stop_ids, ours.exact)
    assert back.bytes_per_id().tolist() == ours.bytes_per_id().tolist()
    for text in EDGES:
        assert back.document(text) == ours.document(text)
        assert back.encode_markup(text) == ours.encode_markup(text)
    assert export_tokenizer(back) == files


def test_the_model_file_goes_along_and_hugging_face_tokenizers_leave_as_they_came():
    ours, files, _, _ = exported("bpe")
    assert files["tokenizer.model"] == ours.model_bytes
    came = level(chat_template__jinja=b"{{ x }}")
    assert export_tokenizer(HFTokenizer(came)) == came


def test_exporting_twice_gives_the_same_bytes():
    ours, files, _, _ = exported("bpe")
    assert export_tokenizer(SentencePieceTokenizer(ours.model_bytes)) == files


def test_models_that_tokenizer_json_cannot_express_are_refused():
    with pytest.raises(UserError, match="works with whole words"):
        export_tokenizer(foreign(model_type="word"))
    with pytest.raises(UserError, match="works with spaces at the end of pieces"):
        export_tokenizer(foreign(treat_whitespace_as_suffix=True))
