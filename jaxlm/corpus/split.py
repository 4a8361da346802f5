"""Which text is held out for evaluation: decided on text, before any tokenizer sees it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_RANGE = 1 << 64


def hash_of(text: str) -> int:
    """64 bits that depend on the text alone: the same on every machine, whatever stands beside it."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


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


def plan_split(kind: str, fraction: float, documents: Iterable[str]) -> Split:
    """How these documents are split: as asked, and so that there is something on either side.

    The threshold of "hash" is its share of the hash range, moved to the nearest document where all of a few lie
    on one side. One document alone (one book in one file, say) has no other side: its tail is held out. All of
    this depends on the documents only, so whoever plans the split of the same ones comes to the same.

    Reads documents only until it has found one on each side, about 1 / fraction of them.
    """
    return plan_split_of_hashes(kind, fraction, map(hash_of, documents))


def plan_split_of_hashes(kind: str, fraction: float, hashes: Iterable[int]) -> Split:
    """`plan_split`, of documents whose hashes (of `hash_of`) are known."""
    if kind == "tail" or fraction == 0:
        return Split(kind, fraction)
    share = int(fraction * _RANGE)
    lowest, highest = _RANGE, -1
    for value in hashes:
        lowest, highest = min(lowest, value), max(highest, value)
        if lowest < share <= highest:
            return Split(kind, fraction, share)
    if lowest == highest:
        return Split("tail", fraction)
    return Split(kind, fraction, lowest + 1 if share <= lowest else min(share, highest))


def note_on_split(name: str, asked: str, used: str, fraction: float) -> str | None:
    """What to tell the user of a source whose split is not the one asked for; None: nothing."""
    if used == asked:
        return None
    return (
        f"{name} holds one document, and eval_split={asked} holds out whole ones: instead the last "
        f"{fraction:.3g} of its text is held out (eval_split={used})."
    )
