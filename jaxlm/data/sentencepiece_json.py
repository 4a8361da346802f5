"""A sentencepiece model as tokenizer.json: the same ids from the package `tokenizers`.

A model that changes no text (each one that jaxlm trains) gets its spaces as spaces: then nothing has to be
replaced on the way in or out, and U+2581 is a character like others, spelt in bytes. Other models keep U+2581
for the space, and their normaliser becomes steps of `tokenizers`. One step is not quite the same:
`Precompiled` looks at one grapheme at a time where sentencepiece looks for the longest match.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxlm.data.hf_files import CONFIG, SPECIAL_MAP, TOKENIZER_JSON, read_object
from jaxlm.data.tokenizer import SPACE, SentencePieceTokenizer
from jaxlm.types import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_UNIGRAM, _BPE, _WORD, _CHAR = range(1, 5)


class Piece(NamedTuple):
    """One piece of the vocabulary."""

    text: str
    score: float
    kind: int


def tokenizer_json(model: SentencePieceTokenizer) -> bytes:
    """The content of tokenizer.json. Errors: UserError for kinds of models that `tokenizers` has no match for."""
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # generated at import: invisible to type checkers
    proto = messages.ModelProto.FromString(model.model_bytes)
    trainer, spec = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type == _WORD or trainer.treat_whitespace_as_suffix:
        what = "whole words" if trainer.model_type == _WORD else "spaces at the end of pieces"
        raise UserError(f"this sentencepiece model works with {what}, which tokenizer.json cannot express.")
    space = " " if model.exact else SPACE
    pieces = [Piece(p.piece.replace(SPACE, space), p.score, p.type or NORMAL) for p in proto.pieces]
    if len({piece.text for piece in pieces}) < len(pieces):
        raise UserError(
            "this sentencepiece model has two pieces of one spelling, which tokenizer.json cannot express."
        )
    is_unigram = trainer.model_type == _UNIGRAM
    symbols = {i: p.text for i, p in enumerate(pieces) if p.kind == USER_DEFINED and not is_unigram}
    cuts = []
    if symbols and not model.exact:  # among text in which spaces are U+2581 by now, and taken whole then
        longest_first = sorted(map(re.escape, symbols.values()), key=len, reverse=True)
        cuts.append(_split("|".join(longest_first), "Isolated"))
    if is_unigram or cuts:
        cuts += _names_apart(pieces)
    if is_unigram:
        body = _unigram(pieces, model)
    else:
        body = {
            "type": "BPE", "dropout": None, "unk_token": pieces[model.unk_id or 0].text,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
            "byte_fallback": bool(trainer.byte_fallback), "ignore_merges": bool(cuts),
            "vocab": {piece.text: i for i, piece in enumerate(pieces)},
            "merges": [] if trainer.model_type == _CHAR else _merges(pieces),
        }  # fmt: skip
    added = {i: _added(i, text, True) for i, text in special_pieces(model).items()}
    added |= {i: _added(i, text, False) for i, text in symbols.items() if model.exact}
    return _dumps({
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added[i] for i in sorted(added)],
        "normalizer": None if model.exact else _normalizer(spec),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cuts} if cuts else None,
        "post_processor": _post_processor(model),
        "decoder": _decoder(model, spec, bool(trainer.byte_fallback)),
        "model": body,
    })  # fmt: skip


def special_pieces(model: SentencePieceTokenizer) -> dict[int, str]:
    """Pieces that are no text, by id."""
    return {i: text for text, i in model.control.items()}


def named_pieces(model: SentencePieceTokenizer) -> dict[str, str]:
    """bos_token, eos_token, ... -> its text."""
    special = special_pieces(model)
    ids = {
        "bos_token": model.bos_id,
        "eos_token": model.eos_id,
        "unk_token": model.unk_id,
        "pad_token": model.pad_id,
    }
    named = {key: special[i] for key, i in ids.items() if i in special}
    if model.pad_id == model.eos_id or named.get("pad_token") == named.get("unk_token"):
        named.pop("pad_token", None)  # stands in for one that the model does not have
    return named


def with_tokenizer_json(model: SentencePieceTokenizer, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a model with a tokenizer.json beside them, and names of its special tokens that they lack."""
    known = {**read_object(files, CONFIG), **read_object(files, SPECIAL_MAP)}
    lacking = {key: text for key, text in named_pieces(model).items() if key not in known}
    special_map = _dumps({**read_object(files, SPECIAL_MAP), **lacking})
    return {**files, TOKENIZER_JSON: tokenizer_json(model), SPECIAL_MAP: special_map}


def _dumps(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


def _added(token_id: int, text: str, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"id": token_id, "content": text, **flags}


def _merges(pieces: list[Piece]) -> list[list[str]]:
    """Every way to put a piece together from two others, best piece first.

    Sentencepiece joins any two neighbours whose letters together are a piece, the best piece first.
    """
    normal = {piece.text: piece.score for piece in pieces if piece.kind == NORMAL}
    ranked = []
    for text, score in normal.items():
        for cut in range(1, len(text)):
            if text[:cut] in normal and text[cut:] in normal:
                ranked.append((-score, text[:cut], text[cut:]))
    ranked.sort(key=lambda merge: merge[0])  # stable: one piece's ways stay together
    return [[left, right] for _, left, right in ranked]


def _unigram(pieces: list[Piece], model: SentencePieceTokenizer) -> dict[str, Any]:
    """The model part. What the user has defined is favoured as by sentencepiece: by 0.1 for each byte but one."""
    vocab = [
        [piece.text, 0.1 * (len(piece.text.encode()) - 1) if piece.kind == USER_DEFINED else piece.score]
        for piece in pieces
    ]
    return {"type": "Unigram", "unk_id": model.unk_id, "vocab": vocab, "byte_fallback": model.has_bytes}


def _split(pattern: str, behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def _names_apart(pieces: list[Piece]) -> list[dict[str, Any]]:
    """Steps that cut the name of what is no text, such as <unk> or <0x0A>, where it stands in a text.

    `tokenizers` would take it for the real thing. It is cut where no piece could cross the cut, so that nothing
    else changes; a name with no such place stays whole.
    """
    texts = [piece.text for piece in pieces if piece.kind in (NORMAL, USER_DEFINED)]
    names = [list(map(re.escape, piece.text)) for piece in pieces if piece.kind in (UNKNOWN, CONTROL)]
    if has_bytes := any(piece.kind == BYTE for piece in pieces):
        names.append(["<", "0", "x", "[0-9A-F]", "[0-9A-F]", ">"])
    known = {re.escape(text) for text in texts}
    cuts = []
    for name in names:
        for place in range(1, len(name)):
            crossing = re.compile(name[place - 1] + name[place])
            # Neighbours that are both unknown become one <unk>.
            apart = has_bytes or known & {name[place - 1], name[place]}
            if apart and not any(map(crossing.search, texts)):
                cuts.append(f"{''.join(name[:place])}(?={''.join(name[place:])})")
                break
    return [_split("|".join(cuts), "MergedWithPrevious")] if cuts else []


def _replace(pattern: str, content: str, kind: str = "Regex") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def _normalizer(spec: Any) -> dict[str, Any] | None:
    """The steps of sentencepiece's normaliser in its order; U+2581 of the text counts as a space at the end."""
    steps: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        steps += [_replace(r"\A +| +\z", ""), _replace(" {2,}", " ")]
    if spec.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE if spec.escape_whitespaces else " "})
    if spec.escape_whitespaces:
        steps.append(_replace(" ", SPACE, "String"))
    if spec.remove_extra_whitespaces:
        steps.append(_replace(f"{SPACE}+\\z", ""))
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _decoder(model: SentencePieceTokenizer, spec: Any, byte_fallback: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [] if model.exact else [_replace(SPACE, " ", "String")]
    if byte_fallback:
        steps.append({"type": "ByteFallback"})
    steps.append({"type": "Fuse"})
    if spec.add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _post_processor(model: SentencePieceTokenizer) -> dict[str, Any] | None:
    """BOS in front, as in every document and prompt; EOS ends documents alone, and is not added to a prompt."""
    if model.bos_id is None:
        return None
    bos = special_pieces(model)[model.bos_id]

    def parts(sequence: str, type_id: int) -> list[dict[str, Any]]:
        return [
            {kind: {"id": name, "type_id": type_id}}
            for kind, name in (("SpecialToken", bos), ("Sequence", sequence))
        ]

    return {
        "type": "TemplateProcessing",
        "single": parts("A", 0),
        "pair": parts("A", 0) + parts("B", 1),
        "special_tokens": {bos: {"id": bos, "ids": [model.bos_id], "tokens": [bos]}},
    }
