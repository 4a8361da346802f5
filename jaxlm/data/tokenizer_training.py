"""Training of a tokenizer: a vocabulary learnt from texts by sentencepiece.

What it makes never changes a text; see tokenizer.py.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import sentencepiece

from jaxlm.data.tokenizer import NUM_RESERVED, check_unicode
from jaxlm.types import UserError

CHARACTER_COVERAGE = 0.9995
"""The rarest 0.05% of characters are spelt in bytes and leave their places in the vocabulary to words."""
CHUNK_CHARS = 4000

_UNTRAINABLE = re.compile("[\0\u2581\u2585\u2047]+")


def train_tokenizer(texts: Iterable[str], kind: str, vocab_size: int) -> bytes:
    """Learns a vocabulary; returns the model file. The same texts give the same bytes.

    Args:
      texts: documents; held in memory while training.
      kind: "bpe", "unigram" or "char".
      vocab_size: NUM_RESERVED special and byte ids included; `char` takes one per character instead.

    Source: Sennrich et al. 2016, arXiv:1508.07909 (BPE); Kudo 2018, arXiv:1804.10959 (unigram).
    """
    chunks = [chunk for text in texts for chunk in _chunks(text)]
    counts = _character_counts(chunks)
    if not counts.any():
        raise UserError(
            "A tokenizer cannot be trained on no text: every input was empty, or held out (data.eval_fraction)."
        )
    num_chars = int((counts > 0).sum())
    if kind == "char":
        vocab_size = NUM_RESERVED + num_chars
        options: dict[str, Any] = {"character_coverage": 1.0, "use_all_vocab": True}
        if counts[ord("\n")]:  # the trainer strips a newline that ends a chunk
            options["required_chars"] = "\n"
    else:
        # Where the characters do not all fit, only the most frequent get places, at most half of those free.
        places = vocab_size - NUM_RESERVED
        places = num_chars if num_chars <= places else max(1, places // 2)
        order = np.argsort(-counts, kind="stable")
        common = float(counts[order[:places]].sum() / counts.sum()) - 1e-6
        options = {"character_coverage": min(CHARACTER_COVERAGE, common)}
        if common < 0.98:  # sentencepiece accepts no less: take the others out of the text instead
            rare = dict.fromkeys(order[places:num_chars].tolist(), "\0")
            chunks = [part for chunk in chunks for part in chunk.translate(rare).split("\0") if part]
            options = {"character_coverage": 1.0}
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(chunks),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=1 << 20,
            num_threads=8,  # unigram adds up in as many parts: another number would give other last digits
            minloglevel=2,
            **options,
        )
    except (RuntimeError, ValueError) as error:  # ValueError: of a vocab_size beyond 31 bits
        raise _training_error(error, kind, vocab_size, num_chars) from None
    return model.getvalue()


def _training_error(error: Exception, kind: str, vocab_size: int, num_chars: int) -> UserError:
    largest = re.search(r"value <= (\d+)", str(error))
    if largest:
        return UserError(
            f"tokenizer.vocab_size={vocab_size} is more than this text can fill: {kind} finds {largest[1]}. "
            f"Try vocab_size={largest[1]} or less, or train on more text."
        )
    reason = str(error).splitlines()[0].strip()
    return UserError(
        f"A {kind} tokenizer of vocab_size={vocab_size} cannot be trained on this text of {num_chars} "
        f"different characters ({reason}). Try vocab_size={NUM_RESERVED + 2 * num_chars}."
    )


def _chunks(text: str) -> Iterator[str]:
    """The text in parts of a few kilobytes, cut before spaces, without what the trainer keeps for itself."""
    check_unicode(text, "a training text")
    for part in _UNTRAINABLE.split(text):
        start = 0
        while start < len(part):
            cut = part.find(" ", start + CHUNK_CHARS)
            # Scripts without spaces are cut anywhere: the trainer skips what is too long.
            stop = min(cut if cut >= 0 else len(part), start + 4 * CHUNK_CHARS)
            yield part[start:stop]
            start = stop


def _character_counts(chunks: Sequence[str]) -> np.ndarray:
    counts = np.zeros(0x110000, np.int64)
    for start in range(0, len(chunks), 256):
        codes = np.frombuffer("".join(chunks[start : start + 256]).encode("utf-32-le"), "<u4")
        counts += np.bincount(codes, minlength=len(counts))
    return counts
