"""Records that every Python has: `embedded:questions` to follow instructions, `embedded:kinds` to classify.

Made from the same texts as the sources of `embedded.py`: small tasks for a trial, not data to learn much from.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from jaxlm.config import check_choice
from jaxlm.corpus import embedded

RECORDS = ("questions", "kinds")
_KINDS = {"topics": "manual", "docstrings": "docstring", "comments": "comment", "licences": "licence"}
_PASSAGES = 700
"""Of each kind: the classes are of one size, but for the few licences."""
_WORDS = (8, 50)
_QUESTION = "What does this part of Python's standard library do?"


def is_records(path: str) -> bool:
    """Whether the path names embedded records."""
    return path.removeprefix(embedded.PREFIX) in RECORDS and embedded.is_embedded(path)


@functools.cache
def records(path: str) -> tuple[dict[str, Any], ...]:
    """The records of `embedded:<name>`, in a fixed order.

    questions: {instruction, input, output}: a name of the standard library, and the first sentence on it.
    kinds: {text, label}: a passage, and whether it is from a manual, docstring, comment or licence.
    """
    name = _name(path)
    return tuple(_questions() if name == "questions" else _kinds())


def about_bytes(path: str) -> int:
    """A rough size."""
    return {"questions": 600_000, "kinds": 700_000}[_name(path)]


def _name(path: str) -> str:
    name = path.removeprefix(embedded.PREFIX)
    check_choice(f"the records {path}", name, RECORDS)
    return name


def fingerprint(path: str) -> str:
    """Changes whenever the records may have changed."""
    names = ["docstrings"] if path.endswith("questions") else list(_KINDS)
    return " ".join(embedded.fingerprint(embedded.PREFIX + name) for name in names)


def _questions() -> list[dict[str, Any]]:
    found = []
    for document in embedded.texts("embedded:docstrings"):
        for part in re.split(r"\n\n(?=[\w.]+\n\n)", document):
            name, _, text = part.partition("\n\n")
            sentence = re.split(r"(?<=[.!?])\s", " ".join(text.split("\n\n")[0].split()))[0]
            if re.fullmatch(r"[\w.]+", name) and 4 <= len(sentence.split()) <= 30 and sentence.endswith("."):
                found.append({"instruction": _QUESTION, "input": name, "output": sentence})
    return found


def _kinds() -> list[dict[str, Any]]:
    found = []
    for source, label in _KINDS.items():
        passages = [
            " ".join(words[: _WORDS[1]])
            for document in embedded.texts(embedded.PREFIX + source)
            for words in map(str.split, document.split("\n\n"))
            if len(words) >= _WORDS[0]
        ]
        passages = list(dict.fromkeys(passages))
        step = max(len(passages) // _PASSAGES, 1)  # from all over the source
        found += [{"text": text, "label": label} for text in passages[::step][:_PASSAGES]]
    return found
