"""Small tokenizers as Hugging Face has them, trained in the test: {file name: content}."""

import functools
import json

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxlm.corpus import embedded

TEXTS = [*embedded.texts("embedded:topics")[:20], "আমার সোনার বাংলা, ক্‌ষ", "\tif x:\n\t\treturn  1\n" * 20]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def dumps(value):
    return json.dumps(value, ensure_ascii=False).encode()


def template(tokenizer, front=(), behind=()):
    tokens = [*front, *behind]
    return processors.TemplateProcessing(
        single=" ".join([*front, "$A", *behind]),
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in tokens],
    )


@functools.cache
def _level_base():
    """Byte-level BPE whose special tokens come after the base vocabulary, as in Llama 3 and Qwen."""
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    made.add_special_tokens(["<|begin|>", "<|end|>", "<|eot|>", "<|pad|>"])
    made.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return made.to_str()


def level(bos=True, config=None, change=None, **files):
    """Llama 3: BOS by template, EOS, another id that ends a turn, and an added token that is text."""
    made = tokenizers.Tokenizer.from_str(_level_base())
    if bos:
        made.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=False), template(made, ["<|begin|>"])]
        )
    spec = json.loads(made.to_str())
    if change:
        change(spec)
    config = {
        "bos_token": "<|begin|>",
        "eos_token": {"__type": "AddedToken", "content": "<|end|>"},
        **(config or {}),
    }
    more = {name.replace("__", "."): content for name, content in files.items()}
    return {"tokenizer.json": dumps(spec), "tokenizer_config.json": dumps(config), **more}


@functools.cache
def _gpt2():
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made.to_str()


def gpt2():
    """GPT-2: one special token, inside the base vocabulary, and no BOS in front of a text; pad == eos."""
    end = "<|endoftext|>"
    return {
        "tokenizer.json": _gpt2().encode(),
        "special_tokens_map.json": dumps({"bos_token": end, "eos_token": end, "pad_token": end}),
    }


@functools.cache
def _metaspace(prefix):
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend("▁")] if prefix else []
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    steps = [decoders.Strip(" ", 1, 0)] if prefix else []
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *steps]
    )
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>", *bytes_],
        show_progress=False,
        limit_alphabet=60,
    )
    made.train_from_iterator(
        [word for text in TEXTS for word in text.replace(" ", " \n").split("\n")], trainer
    )
    spec = json.loads(made.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]  # the trainer knows no other way to get the bytes in
    made = tokenizers.Tokenizer.from_str(json.dumps(spec))
    made.post_processor = template(made, ["<s>"])
    return made.to_str()


def metaspace(prefix=True, **config):
    """Llama 2 (prefix: it puts a space before every text) and Gemma (it does not)."""
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **config}
    return {"tokenizer.json": _metaspace(prefix).encode(), "tokenizer_config.json": dumps(config)}


def t5():
    """Unigram with EOS behind a text, no BOS; its special tokens are pieces that a text could be cut into."""
    made = tokenizers.Tokenizer(
        models.Unigram(
            [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁the", -3.0)]
            + [(char, -4.0) for char in "<>/abcdefghijklmnopqrstuvwxyz"],
            unk_id=2,
            byte_fallback=False,
        )
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    made.post_processor = template(made, [], ["</s>"])
    config = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return {"tokenizer.json": made.to_str().encode(), "tokenizer_config.json": dumps(config)}


def bert():
    """WordPiece, lower case; [CLS] and [SEP] are neither BOS nor EOS by name."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "lion", "##s", "zoo", "a"]
    made = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(words[:4])
    made.post_processor = template(made, ["[CLS]"], ["[SEP]"])
    return {"tokenizer.json": made.to_str().encode()}
