"""A run's tokenizer as the files that transformers, vLLM and others read beside a model.

A Hugging Face tokenizer leaves as it came, to the byte. A sentencepiece model leaves as tokenizer.json, which
gives the same ids (see jaxlm/data/sentencepiece_json.py), and as tokenizer.model for those who read that.
"""

from __future__ import annotations

import json
from typing import Any

from jaxlm.data.hf_files import CONFIG, MODEL, SPECIAL_MAP, TOKENIZER_JSON
from jaxlm.data.sentencepiece_json import named_pieces, special_pieces, tokenizer_json
from jaxlm.data.tokenizer import SentencePieceTokenizer, Tokenizer
from jaxlm.data.tokenizer_hf import HFTokenizer
from jaxlm.types import UserError


def export_tokenizer(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The tokenizer's files for the folder of a Hugging Face model, by name.

    `AutoTokenizer.from_pretrained` of them gives the ids of `encode_prompt`: BOS in front where our prompts have
    it, no EOS behind. In a unigram model, cuts of exactly equal probability, such as ten spaces as 8 + 2 or as
    2 + 8, may come out the other way round: sentencepiece adds up in 32 bits.
    """
    if isinstance(tokenizer, HFTokenizer):
        return dict(tokenizer.files)
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise UserError(f"{type(tokenizer).__name__} has no files that transformers could read.")
    named = named_pieces(tokenizer)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # the one that takes tokenizer.json as it is
        **named,
        "add_bos_token": tokenizer.bos_id is not None,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(i): {"content": text, **flags} for i, text in sorted(special_pieces(tokenizer).items())
        },
    }
    return {
        TOKENIZER_JSON: tokenizer_json(tokenizer),
        CONFIG: _dumps(config),
        SPECIAL_MAP: _dumps(named),
        MODEL: tokenizer.model_bytes,
    }


def _dumps(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
