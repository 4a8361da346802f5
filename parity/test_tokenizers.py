"""Parity with transformers: AutoTokenizer gives the ids of jaxlm, for what jaxlm exports and for what it reads."""

import functools
import io
import json

import pytest
import sentencepiece
import small_tokenizers as small

from jaxlm.data.tokenizer import SentencePieceTokenizer, load_tokenizer
from jaxlm.data.tokenizer_hf import HFTokenizer
from jaxlm.data.tokenizer_training import train_tokenizer
from jaxlm.infer.text import encode_prompt
from jaxlm.interop.tokenizer_export import export_tokenizer

transformers = pytest.importorskip("transformers")

TEXTS = [
    "the lion is in the zoo", " a", "  a  b   c", "a\n\n\tb\r\n", "\0", "\u2581a \u2581", "e\u0301\u0301", "12345 6",
    "👩\u200d👩\u200d👧\u200d👦 🇧🇩", "আমার সোনার বাংলা, র\u200d্যাব ক্\u200cষ", "日本語の文", "<0x0A> <0xE2>",
    "<think>a</think>", "a <|end|> b", "a </s> b", "<mask>a", "x [INST] y", *small.TEXTS[:3],
]  # fmt: skip


def foreign(**options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("the lion is in the forest\n\tabc <mask> ab aa\n" * 20 for _ in range(3)),
        model_writer=model, minloglevel=2, hard_vocab_limit=False, **{"vocab_size": 320, **options},
    )  # fmt: skip
    return SentencePieceTokenizer(model.getvalue())


def trained(kind):
    return SentencePieceTokenizer(train_tokenizer(small.TEXTS, kind, 700))


KEPT = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
MADE = {
    **{kind: functools.partial(trained, kind) for kind in ("bpe", "unigram", "char")},
    "llama.model": lambda: foreign(**KEPT, model_type="bpe"),
    "mistral.model": lambda: foreign(
        **KEPT, model_type="bpe", control_symbols=["[INST]"], user_defined_symbols=["<mask>"]
    ),
    "gemma.model": lambda: foreign(
        **KEPT, model_type="bpe", add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        user_defined_symbols=["<mask>", "\u2581\u2581"],
    ),
    "t5.model": lambda: foreign(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, normalization_rule_name="nmt_nfkc"),
    "level": lambda: HFTokenizer(small.level()),
    "level without BOS": lambda: HFTokenizer(small.level(bos=False)),
    "level, BOS by config": lambda: HFTokenizer(small.level(config={"add_bos_token": False})),
    "level with additions": lambda: HFTokenizer(small.level(
        config={"additional_special_tokens": ["<|x|>"], "pad_token": "<think>"},
        added_tokens__json=small.dumps({"<|x|>": 506, "<extra>": 505}),
    )),
    "gpt2": lambda: HFTokenizer(small.gpt2()),
    "llama": lambda: HFTokenizer(small.metaspace()),
    "gemma": lambda: HFTokenizer(small.metaspace(False)),
    "bert": lambda: HFTokenizer(small.bert()),
}  # fmt: skip


EXPORTED = [
    name for name, make in MADE.items() if name.endswith(".model") or isinstance(make, functools.partial)
]


@pytest.mark.parametrize(
    ("name", "model_type"),
    # Without a tokenizer_class of its own, a tokenizer is read as one of its model's type, whatever its files say.
    [(name, None) for name in MADE]
    + [(name, kind) for name in EXPORTED for kind in ("llama", "qwen3", "gemma")],
)
def test_auto_tokenizer_gives_our_ids(name, model_type, tmp_path):
    ours = MADE[name]()
    for file, content in export_tokenizer(ours).items():
        (tmp_path / file).write_bytes(content)
    if model_type is not None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    reader = transformers.AutoTokenizer if name in EXPORTED else transformers.PreTrainedTokenizerFast
    theirs = reader.from_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).sha256 == HFTokenizer(export_tokenizer(ours)).sha256
    for text in TEXTS:
        assert theirs(text, add_special_tokens=False).input_ids == ours.encode_markup(text), repr(text)
        if name != "bert":  # whose texts end with [SEP]
            assert theirs(text).input_ids == encode_prompt(ours, text), repr(text)
        as_text = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert as_text == ours.encode(text), repr(text)
        if ours.exact:
            assert theirs.decode(ours.encode(text), skip_special_tokens=True) == text
    assert len(theirs) <= ours.vocab_size
    for key in ("bos", "eos"):
        assert getattr(theirs, f"{key}_token_id") == getattr(ours, f"{key}_id")
