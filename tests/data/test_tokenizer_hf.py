"""Promises of a tokenizer.json: text and bytes add up, BOS once where the model wants it, special tokens apart."""

import functools
import json
import os
import pickle
import sys

import numpy as np
import pytest
import small_tokenizers as small
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data.tokenizer import SentencePieceTokenizer, load_tokenizer, saved_tokenizer
from jaxlm.data.tokenizer_hf import HFTokenizer
from jaxlm.data.tokenizer_training import train_tokenizer
from jaxlm.infer.text import encode_prompt
from jaxlm.origin import source_tokenizer
from jaxlm.types import UserError

AWKWARD = [
    "\u2581", " \u2581 ", "\0", "\t\t", "\n", "\n\n\n", "   ", " b", "\r\n", "<s>", "</s>", "<unk>", "<0x0A>",
    "<|end|>", "<|endoftext|>", "<|begin|>", "<think>", "\ufffd", "\ufeff", "র‍্যাব", "ক্‌ষ", "👩‍👩‍👧‍👦", "🇧🇩", "مرحبا",
    "\ue000", "\U0010ffff", "\x85", "\u2028", "\xa0", "e\u0301", "日本語", "12345", "the", " is",
]  # fmt: skip
TEXTS = st.one_of(st.text(), st.lists(st.one_of(st.sampled_from(AWKWARD), st.text(max_size=3))).map("".join))
LEVEL = {"level": small.level, "gpt2": small.gpt2}
FAMILIES = {
    **LEVEL,
    "level without BOS": functools.partial(small.level, bos=False),
    "llama": small.metaspace,
    "gemma": functools.partial(small.metaspace, False),
    "t5": small.t5,
    "bert": small.bert,
}


@functools.cache
def made(name: str) -> HFTokenizer:
    return HFTokenizer(FAMILIES[name]())


@pytest.mark.parametrize("name", LEVEL)
@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_byte_level_text_comes_back_and_its_bytes_add_up(name, text):
    tokenizer = made(name)
    ids = tokenizer.encode(text)
    assert tokenizer.exact
    assert tokenizer.decode(ids) == text
    assert tokenizer.bytes_per_id()[ids].sum() == len(text.encode())
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids)


@pytest.mark.parametrize("name", ["llama", "gemma"])
@settings(max_examples=100, deadline=None)
@given(text=TEXTS.filter(lambda text: "\u2581" not in text))
def test_byte_fallback_text_comes_back_and_its_bytes_add_up(name, text):
    tokenizer = made(name)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    added = 1 if tokenizer.adds_space and text else 0
    assert tokenizer.bytes_per_id()[ids].sum() == len(text.encode()) + added
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id} & set(ids)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=50, deadline=None)
@given(texts=st.lists(TEXTS, max_size=4))
def test_documents_are_their_texts_between_one_bos_and_one_eos(name, texts):
    tokenizer = made(name)
    ids, lengths = tokenizer.documents(texts)
    alone = [tokenizer.document(text) for text in texts]
    assert ids.dtype == np.int32
    assert ids.tolist() == [i for document in alone for i in document]
    assert lengths.tolist() == [len(document) for document in alone]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    front, end = list(tokenizer.prefix_ids), [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    for text, document in zip(texts, alone):
        inner = document[len(front) :]
        inner = inner[: len(inner) - len(end)] if end else inner
        assert document[: len(front)] == front
        assert document[len(document) - len(end) :] == end
        if name != "bert":
            assert inner == tokenizer.encode(text)
        assert not {*front, *end} & set(tokenizer.encode(text))


@pytest.mark.parametrize(
    ("name", "bos", "eos", "pad", "prefix", "exact"),
    [
        ("level", "<|begin|>", "<|end|>", "<|end|>", ["<|begin|>"], True),
        ("level without BOS", "<|begin|>", "<|end|>", "<|end|>", [], True),
        ("gpt2", "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", [], True),
        ("llama", "<s>", "</s>", "</s>", ["<s>"], False),
        ("gemma", "<s>", "</s>", "</s>", ["<s>"], False),
        ("t5", None, "</s>", "<pad>", [], False),
        ("bert", None, None, "[PAD]", ["[CLS]"], False),
    ],
)
def test_what_each_family_says_of_itself(name, bos, eos, pad, prefix, exact):
    tokenizer = made(name)
    names = [None if i is None else tokenizer.piece(i) for i in (tokenizer.bos_id, tokenizer.eos_id)]
    assert names == [bos, eos]
    assert tokenizer.piece(tokenizer.pad_id) == pad
    assert [tokenizer.piece(i) for i in tokenizer.prefix_ids] == prefix
    assert tokenizer.exact is exact
    assert tokenizer.adds_space is (name in ("llama", "t5"))
    assert tokenizer.stop_ids == (() if eos is None else (tokenizer.eos_id,))


def test_a_special_token_in_a_corpus_is_text_and_in_markup_itself():
    tokenizer = made("level")
    text = "a<|end|><think>b"
    assert tokenizer.eos_id not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert [tokenizer.piece(i) for i in tokenizer.encode_markup(text)] == ["a", "<|end|>", "<think>", "b"]
    assert tokenizer.decode(tokenizer.encode_markup(text)) == "a<think>b"
    thinking = tokenizer.encode("<think>")
    assert len(thinking) == 1  # added, and no special token: text of one id
    assert tokenizer.bytes_per_id()[thinking + [tokenizer.eos_id]].tolist() == [len("<think>"), 0]


@pytest.mark.parametrize(
    ("name", "text"), [("t5", "</s><pad>"), ("gpt2", "<|endoftext|>"), ("llama", "<s></s>")]
)
def test_a_special_token_that_is_a_piece_too_is_not_cut_out_of_a_text(name, text):
    tokenizer = made(name)
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(tokenizer.encode(text))
    assert {tokenizer.eos_id} <= set(tokenizer.encode_markup(text))


def test_a_special_token_that_merges_lead_to_is_not_merged_in_a_text():
    spec = json.loads(small.gpt2()["tokenizer.json"])
    spec["model"]["vocab"] = {"<": 1, "e": 2, ">": 3, "<e": 4, "<e>": 0, "a": 5}
    spec["model"]["merges"] = [["<", "e"], ["<e", ">"]]
    spec["added_tokens"][0]["content"] = "<e>"
    spec["pre_tokenizer"]["use_regex"] = False
    config = small.dumps({"eos_token": "<e>"})
    tokenizer = HFTokenizer({"tokenizer.json": small.dumps(spec), "tokenizer_config.json": config})
    assert tokenizer.encode("a<e>") == [5, 4, 3]
    assert tokenizer.encode_markup("a<e>") == [5, 0]
    assert tokenizer.document("a") == [5, 0]


@pytest.mark.parametrize(
    ("bos", "config", "expected"),
    [
        (True, {}, True),
        (False, {}, False),
        # What transformers 4 and 5 do: tokenizer.json decides ...
        (True, {"add_bos_token": False}, True),
        (False, {"add_bos_token": True, "tokenizer_class": "PreTrainedTokenizerFast"}, False),
        # ... except that 4 has classes in which the config does, which is how such models were trained.
        (True, {"add_bos_token": False, "tokenizer_class": "LlamaTokenizer"}, False),
        (False, {"add_bos_token": True, "tokenizer_class": "LlamaTokenizerFast"}, True),
        (True, {"tokenizer_class": "LlamaTokenizerFast"}, True),
        (True, {"tokenizer_class": "GPTNeoXTokenizerFast"}, False),
    ],
)
def test_bos_stands_in_front_where_transformers_puts_it(bos, config, expected):
    tokenizer = HFTokenizer(small.level(bos, config))
    front = [tokenizer.bos_id] if expected else []
    assert tokenizer.document("the lion") == [*front, *tokenizer.encode("the lion"), tokenizer.eos_id]
    assert encode_prompt(tokenizer, "the lion") == [*front, *tokenizer.encode("the lion")]
    assert encode_prompt(tokenizer, "<|begin|>the") == [tokenizer.bos_id, *tokenizer.encode("the")]


def test_an_eos_by_template_is_not_doubled():
    assert made("t5").document("the") == [*made("t5").encode("the"), made("t5").eos_id]
    files = small.level(config={"add_eos_token": True, "tokenizer_class": "LlamaTokenizer"})
    tokenizer = HFTokenizer(files)
    assert tokenizer.document("a") == [tokenizer.bos_id, *tokenizer.encode("a"), tokenizer.eos_id]
    assert encode_prompt(tokenizer, "a") == [tokenizer.bos_id, *tokenizer.encode("a")]


def test_every_id_that_ends_a_text_is_known():
    ends = small.dumps({"eos_token_id": [502, 501]})
    tokenizer = HFTokenizer(small.level(generation_config__json=ends))
    assert tokenizer.stop_ids == (501, 502)
    assert tokenizer.eos_id == 501
    files = {**small.gpt2(), "special_tokens_map.json": b"{}"}
    assert HFTokenizer(files).stop_ids == ()
    files["generation_config.json"] = small.dumps({"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 3})
    tokenizer = HFTokenizer(files)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.stop_ids) == (0, 0, 3, (0,))


def test_no_bos_is_no_bos_whatever_the_generation_config_says():
    files = small.level(
        False, {"bos_token": None}, generation_config__json=small.dumps({"bos_token_id": 500})
    )
    assert HFTokenizer(files).bos_id is None


def test_the_newer_of_two_files_names_the_special_tokens():
    older = {"special_tokens_map__json": small.dumps({"eos_token": "<|eot|>", "pad_token": "<|pad|>"})}
    tokenizer = HFTokenizer(small.level(**older))
    assert [tokenizer.piece(i) for i in (tokenizer.eos_id, tokenizer.pad_id)] == ["<|eot|>", "<|pad|>"]
    tokenizer = HFTokenizer(small.level(config={"added_tokens_decoder": {}}, **older))
    assert [tokenizer.piece(i) for i in (tokenizer.eos_id, tokenizer.pad_id)] == ["<|end|>", "<|pad|>"]


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        ({}, {}, None),
        ({"chat_template": "{{ a }}"}, {}, "{{ a }}"),
        (
            {"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]},
            {},
            "d",
        ),
        ({"chat_template": [{"name": "tool_use", "template": "t"}]}, {}, None),
        ({"chat_template": "old"}, {"chat_template__jinja": "নতুন".encode()}, "নতুন"),
        ({}, {"chat_template__json": small.dumps({"chat_template": "j"})}, "j"),
    ],
)
def test_the_chat_template_is_found_and_does_not_change_the_hash(config, files, expected):
    tokenizer = HFTokenizer(small.level(config=config, **files))
    assert tokenizer.chat_template == expected
    assert tokenizer.sha256 == made("level").sha256


def test_the_hash_covers_all_that_decides_about_ids():
    hashes = {
        made("level").sha256,
        made("level without BOS").sha256,
        HFTokenizer(small.level(config={"eos_token": "<|eot|>"})).sha256,
        HFTokenizer(small.level(config={"tokenizer_class": "LlamaTokenizer", "add_bos_token": False})).sha256,
        HFTokenizer(small.level(config={"additional_special_tokens": ["<think>"]})).sha256,
        HFTokenizer(small.level(added_tokens__json=small.dumps({"<more>": 505}))).sha256,
    }
    assert len(hashes) == 6


def test_limits_padding_and_dropout_that_were_saved_are_left_out():
    def change(spec):
        spec["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
        spec["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                           "pad_type_id": 0, "pad_token": "!"}  # fmt: skip
        spec["model"]["dropout"] = 0.9

    tokenizer, text = HFTokenizer(small.level(change=change)), "the lion is in the forest of the topics " * 3
    assert tokenizer.encode(text) == made("level").encode(text)
    assert tokenizer.encode("a") == made("level").encode("a")
    assert tokenizer.encode_markup(text) == made("level").encode_markup(text)
    assert tokenizer.document(text) == made("level").document(text)


def test_tokens_that_only_the_config_has_are_added_as_transformers_adds_them():
    token = {"content": "<é>", "special": False, "normalized": False}
    special = {"content": "<|x|>", "special": True}
    ways = [
        small.level(config={"added_tokens_decoder": {"506": special, "505": token}}),
        small.level(
            config={"additional_special_tokens": ["<|x|>"]},
            added_tokens__json=small.dumps({"<|x|>": 506, "<é>": 505}),
        ),
    ]  # fmt: skip
    for files in ways:
        tokenizer = HFTokenizer(files)
        assert tokenizer.vocab_size == 507
        assert tokenizer.encode("<é>") == [505]
        assert tokenizer.encode_markup("<|x|>") == [506]
        assert tokenizer.decode([505, 506]) == "<é>"
        assert 506 not in tokenizer.encode("<|x|>")
        assert tokenizer.bytes_per_id()[[505, 506]].tolist() == [4, 0]


def test_a_named_token_is_special_though_tokenizer_json_does_not_say_so():
    tokenizer = HFTokenizer(small.level(config={"pad_token": "<think>", "mask_token": "<nowhere>"}))
    assert tokenizer.bytes_per_id()[tokenizer.pad_id] == 0
    assert tokenizer.pad_id not in tokenizer.encode("<think>")
    assert tokenizer.vocab_size == made("level").vocab_size


def test_the_word_none_is_not_the_unknown_token():
    def change(spec):
        spec["model"]["vocab"]["None"] = 500
        for token in spec["added_tokens"]:
            token["id"] += 1

    tokenizer = HFTokenizer(small.level(change=change, bos=False))
    assert tokenizer.unk_id is None
    assert tokenizer.encode("None") == [500]
    assert tokenizer.decode([500]) == "None"
    assert tokenizer.bytes_per_id()[500] == 4


def test_ids_may_have_holes():
    spec = json.loads(small.metaspace(False)["tokenizer.json"])
    spec["model"]["vocab"] = {**spec["model"]["vocab"], "z": 1000}
    tokenizer = HFTokenizer({"tokenizer.json": small.dumps(spec)})
    assert tokenizer.vocab_size == 1001
    assert tokenizer.bytes_per_id().shape == (1001,)
    assert tokenizer.decode([900, *tokenizer.encode("az"), 900]) == "az"
    assert tokenizer.piece(900) == "<900>"


def test_pieces_for_people():
    tokenizer = made("level")
    assert "".join(tokenizer.piece(i) for i in tokenizer.encode(" the if")) == " the if"
    pieces = [tokenizer.piece(i) for i in tokenizer.encode("\u20ad")]
    assert "".join(pieces) == "<0xE2><0x82><0xAD>"
    assert [tokenizer.is_byte(i) for i in tokenizer.encode("a\u20ad")][:2] == [False, len(pieces) == 3]
    llama = made("llama")
    assert [llama.piece(i) for i in llama.encode("\u20ad")][-1] == "<0xAD>"
    assert [llama.is_byte(i) for i in llama.encode("a\u20ad")][-1]
    assert not any(tokenizer.is_byte(i) for i in tokenizer.encode("the \n"))
    for one in (tokenizer, llama):
        assert {one.bytes_per_id()[i] for i in range(one.vocab_size) if one.is_byte(i)} == {1}


def test_a_tokenizer_survives_pickling_and_uses_one_thread(monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    for name in FAMILIES:
        again = pickle.loads(pickle.dumps(made(name)))
        assert again.sha256 == made(name).sha256
        assert again.encode("the lion\n") == made(name).encode("the lion\n")
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_ids_outside_the_vocabulary_and_lone_surrogates_are_named():
    tokenizer = made("level")
    for ids in ([tokenizer.vocab_size], [-1]):
        with pytest.raises(ValueError, match="must be in"):
            tokenizer.decode(ids)
    for call in (tokenizer.encode, tokenizer.encode_markup, lambda text: tokenizer.documents(["a", text])):
        with pytest.raises(UserError, match="lone surrogate '\\\\ud800' at character 1"):
            call("a\ud800")


def damaged(**files):
    return {**small.level(), **{name.replace("__", "."): content for name, content in files.items()}}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (damaged(tokenizer__json=small.level()["tokenizer.json"][:3000]), "tokenizer.json is not valid JSON"),
        (damaged(tokenizer__json=b""), "tokenizer.json is not valid JSON (it is empty)"),
        (damaged(tokenizer__json=b"[1]"), "tokenizer.json holds a JSON list"),
        (damaged(tokenizer__json=b'{"version": "1.0"}'), "tokenizer.json cannot be read"),
        (small.level(change=lambda spec: spec.update(version="9.0")), "Unknown tokenizer version '9.0'"),
        (small.level(change=lambda spec: spec.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AA"})),
         "tokenizer.json cannot be read"),
        (small.level(change=lambda spec: spec["model"]["vocab"].update(x=2**31)), "tokenizer.json: 'x' has the id"),
        (small.level(config={"bos_token": "<nowhere>"}), "tokenizer_config.json: bos_token '<nowhere>' is not in the"),
        (small.level(config={"eos_token": 7}), "tokenizer_config.json: eos_token is 7"),
        (small.level(config={"chat_template": 7}), "tokenizer_config.json: chat_template has to be a string"),
        (small.level(config={"added_tokens_decoder": {"900": {"content": "<x>"}}}),
         "'<x>' has the id 900, and comes to 505"),
        (small.level(config={"added_tokens_decoder": {"one": {"content": "<x>"}}}), "added_tokens_decoder has 'one'"),
        (damaged(tokenizer_config__json=b"{"), "tokenizer_config.json is not valid JSON"),
        (damaged(added_tokens__json=b'{"<x>": "y"}'), "added_tokens.json: '<x>' has the id 'y'"),
        (damaged(generation_config__json=b'{"eos_token_id": [501, 999]}'),
         "generation_config.json: eos_token_id has 999"),
        (damaged(chat_template__jinja=b"\xff"), "chat_template.jinja is not UTF-8"),
        ({"tokenizer_config.json": b"{}"}, "tokenizer.json is missing"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_with_the_reason(files, message):
    with pytest.raises(UserError) as caught:
        HFTokenizer(files)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_package_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'jaxlm\[hf\]'"):
        HFTokenizer(small.level())


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_one_door_for_files_and_folders(tmp_path):
    files = small.level(chat_template__jinja=b"{{ x }}")
    source = write(tmp_path / "model", {**files, "config.json": b"{}", "vocab.txt": b"x"})
    loaded = load_tokenizer(source)
    assert loaded.chat_template == "{{ x }}"
    assert load_tokenizer(source / "tokenizer.json").chat_template == "{{ x }}"
    run = tmp_path / "run"
    run.mkdir()
    names = loaded.save(run)
    assert sorted(names) == [
        "tokenizer/chat_template.jinja",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    ]
    assert {name: (run / "tokenizer" / name).read_bytes() for name in files} == files
    assert saved_tokenizer(run) == run / "tokenizer"
    for place in (run, run / "tokenizer", saved_tokenizer(run)):
        assert load_tokenizer(place).sha256 == made("level").sha256


def test_a_folder_with_a_sentencepiece_model_keeps_the_tokens_that_were_added_to_it(tmp_path):
    model = SentencePieceTokenizer(train_tokenizer(small.TEXTS, "bpe", 400))
    files = {"tokenizer.model": model.model_bytes, "tokenizer_config.json": b'{"eos_token": "</s>"}'}
    plain = load_tokenizer(write(tmp_path / "plain", files))
    assert isinstance(plain, SentencePieceTokenizer)
    assert plain.sha256 == model.sha256
    files["added_tokens.json"] = small.dumps({"<|user|>": 400})
    more = load_tokenizer(write(tmp_path / "more", files))
    assert more.vocab_size == 401
    assert more.encode_markup("the <|user|>lion</s>") == [
        *model.encode("the "), 400, *model.encode("lion"), model.eos_id,
    ]  # fmt: skip
    assert more.document("the lion") == model.document("the lion")
    (tmp_path / "run").mkdir()
    more.save(tmp_path / "run")
    assert load_tokenizer(tmp_path / "run").sha256 == more.sha256
    del files["added_tokens.json"]
    files["chat_template.jinja"] = b"{{ x }}"
    assert load_tokenizer(write(tmp_path / "chat", files)).chat_template == "{{ x }}"


def old_gpt2(**files):
    """GPT-2 as it was before there was tokenizer.json."""
    model = json.loads(small.gpt2()["tokenizer.json"])["model"]
    merges = "".join(f"{a} {b}\n" for a, b in model["merges"])
    more = {name.replace("__", "."): content for name, content in files.items()}
    return {
        "vocab.json": small.dumps(model["vocab"]),
        "merges.txt": f"#version: 0.2\n{merges}".encode(),
        "config.json": b'{"model_type": "gpt2"}',
        **more,
    }


def test_a_gpt2_of_vocab_and_merges_is_that_of_its_tokenizer_json(tmp_path):
    expected = HFTokenizer(small.gpt2())
    files = old_gpt2(tokenizer_config__json=b'{"model_max_length": 1024}')
    loaded = source_tokenizer(write(tmp_path / "old", files))
    for text in [*small.TEXTS, " a  b\n\n c", "<|endoftext|>"]:
        assert loaded.document(text) == expected.document(text)
        assert loaded.encode_markup(text) == expected.encode_markup(text)
        assert loaded.decode(loaded.encode(text)) == text
    assert (loaded.bos_id, loaded.eos_id, loaded.stop_ids) == (0, 0, (0,))
    (tmp_path / "run").mkdir()
    loaded.save(tmp_path / "run")
    assert load_tokenizer(tmp_path / "run").sha256 == loaded.sha256


def test_bos_and_a_space_in_front_of_gpt2_are_what_its_config_says(tmp_path):
    config = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "add_prefix_space": True}
    files = old_gpt2(tokenizer_config__json=small.dumps(config), config__json=b"{}")
    loaded = load_tokenizer(write(tmp_path / "old", files))
    assert loaded.document("the lion") == [0, *HFTokenizer(small.gpt2()).encode(" the lion"), 0]


def test_vocab_and_merges_of_another_model_are_not_taken_for_gpt2(tmp_path):
    for name, more in {
        "type": {"config__json": b'{"model_type": "qwen2"}'},
        "class": {"tokenizer_config__json": b'{"tokenizer_class": "Qwen2Tokenizer"}'},
        "nothing": {"config__json": b"{}"},
    }.items():
        folder = write(tmp_path / name, old_gpt2(**more))
        assert source_tokenizer(folder) is None
        with pytest.raises(UserError, match="the folder holds neither"):
            load_tokenizer(folder)
    with pytest.raises(UserError, match=r"merges\.txt: 'a b c' is not two tokens"):
        load_tokenizer(write(tmp_path / "damaged", old_gpt2(merges__txt=b"a b c\n")))


def test_the_file_that_is_wrong_is_named_with_its_place(tmp_path):
    write(tmp_path / "model", damaged(tokenizer_config__json=b"{"))
    with pytest.raises(UserError, match=r"tokenizer .*model: tokenizer_config\.json is not valid JSON"):
        load_tokenizer(tmp_path / "model")
    with pytest.raises(
        UserError, match=r"tokenizer .*nowhere does not exist: give a \.model file, a tokenizer\.json"
    ):
        load_tokenizer(tmp_path / "nowhere")


def test_a_file_that_is_far_too_large_is_not_read(tmp_path, monkeypatch):
    write(tmp_path / "model", small.level())
    monkeypatch.setattr("jaxlm.data.hf_files.MAX_BYTES", {True: 1000, False: 1000})
    with pytest.raises(UserError, match=r"tokenizer\.json has [\d,]+ bytes, and at most 1,000 are read"):
        load_tokenizer(tmp_path / "model")
