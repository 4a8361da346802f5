"""Chat templates in wide use with small tokenizers that have their special tokens."""

import functools

import tokenizers
from small_tokenizers import dumps, template
from tokenizers import decoders, models, pre_tokenizers

from jaxlm.data.chat import Message, open_template
from jaxlm.data.tokenizer_hf import HFTokenizer

WORDS = (  # earlier ones are merged first
    "ĠInstruction", "ĠInput", "ĠResponse", "###", "system", "user", "assistant", "model", "Hi", "Hello", "Bye", "INST",
    "Be", "Ġbrief", "Add", "ĊĊ",
)  # fmt: skip
"""Pieces of more than a byte, in the alphabet of byte-level BPE: Ġ is a space, Ċ a newline."""

CHATML = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
Be brief<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
"""SmolLM2 and Qwen2, with a shorter system prompt."""
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
SPECIAL = {
    "chatml": (None, "<|im_end|>", ["<|im_start|>", "<|im_end|>"]),
    "llama3": (
        "<|begin|>",
        "<|eot_id|>",
        ["<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    ),
    "gemma": ("<bos>", "<eos>", ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]),
    "mistral": ("<s>", "</s>", ["<s>", "</s>"]),
}
"""Family -> BOS, EOS, special tokens."""
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL}
ENDS = {"chatml": "<|im_end|>\n", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>\n", "mistral": "</s>"}
"""What a template writes behind an answer."""


@functools.cache
def files(family, chat_template=None, bos_first=True):
    """The files of a tokenizer: byte-level BPE that knows WORDS and the special tokens of a family."""
    bos, eos, special = SPECIAL[family]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)}
    merges = []
    for word in WORDS:
        for n in range(2, len(word) + 1):
            if word[:n] not in vocab:
                vocab[word[:n]] = len(vocab)
                merges.append((word[: n - 1], word[n - 1]))
    made = tokenizers.Tokenizer(models.BPE(vocab, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(special)
    if bos and bos_first:
        made.post_processor = template(made, [bos])
    config = {"eos_token": eos, "pad_token": eos}  # pad == eos, as so often
    config |= {"bos_token": bos} if bos else {}
    config |= {"chat_template": chat_template} if chat_template else {}
    return {"tokenizer.json": made.to_str().encode(), "tokenizer_config.json": dumps(config)}


@functools.cache
def tokenizer(family, chat_template=None, bos_first=True):
    """The tokenizer of a family, by default with its own template."""
    return HFTokenizer(files(family, chat_template or TEMPLATES[family], bos_first))


ONE = [Message("user", "Hi"), Message("assistant", "Hello")]
TWO = [*ONE, Message("user", "Add"), Message("assistant", "Bye")]


def open_file(tmp_path, text, family="chatml"):
    (tmp_path / "own.jinja").write_text(text)
    return open_template(tokenizer(family), str(tmp_path / "own.jinja"))


HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
