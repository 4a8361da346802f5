"""Which text is held out for evaluation: decided on text, before any tokenizer sees it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jaxlm.types import UserError

_RANGE = 1 << 64


def hash_of(text: str) -> int:
    """64 bits that depend on the text alone: the same on every machine, whatever stands beside it."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


@dataclass(frozen=True)
class Split:
    """Cuts documents into what is trained on and what is held out.

    kind: "hash" holds out the documents whose hash is below `threshold`; "tail" the last `fraction` of the
    characters of every document.
    """

    kind: str
    fraction: float
    threshold: int = 0

    def cut(self, text: str) -> Iterator[tuple[str, str]]:
        """The document, or its two parts, each with the name of its split."""
        if self.fraction == 0:
            yield "train", text
        elif self.kind == "hash":
            yield ("eval" if hash_of(text) < self.threshold else "train"), text
        else:
            cut = int(len(text) * (1 - self.fraction))
            if cut:
                yield "train", text[:cut]
            if cut < len(text):
                yield "eval", text[cut:]


def plan_split(kind: str, fraction: float, documents: Iterable[str], name: str) -> Split:
    """Fixes the threshold: the share of the hash range, raised if need be until one document is held out.

    Reads documents only until it finds one below the share, about 1 / fraction of them.

    Args:
      name: of the source, for errors.
    """
    if kind == "tail" or fraction == 0:
        return Split(kind, fraction)
    threshold = int(fraction * _RANGE)
    lowest, other = _RANGE, False
    for text in documents:
        value = hash_of(text)
        other = other or lowest not in (_RANGE, value)
        lowest = min(lowest, value)
        if other and lowest < threshold:
            return Split(kind, fraction, threshold)
    if lowest < _RANGE and not other:
        raise UserError(
            f"{name} holds one document, and eval_split=hash holds out whole documents: nothing would be "
            "left to train on. Choose eval_split=tail, or document=paragraph (.txt), or eval_fraction=0."
        )
    return Split(kind, fraction, max(threshold, lowest + 1))
