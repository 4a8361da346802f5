"""Texts to judge a model on: files, the English that ships with Python, and sets that a YAML file names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from jaxlm.corpus.embedded import NAMES, PREFIX, is_embedded
from jaxlm.corpus.embedded import texts as embedded_texts
from jaxlm.corpus.inputs import find_inputs, plan_units
from jaxlm.corpus.readers import read_documents
from jaxlm.corpus.text import ReadOptions, Tally
from jaxlm.data.files import read_file
from jaxlm.data.yaml_files import read_yaml
from jaxlm.types import UserError

RECORDS = (".jsonl", ".parquet", ".arrayrecord")
PACKED = (".gz", ".zst")


class TextSet(NamedTuple):
    """A named set of texts."""

    name: str
    path: str
    text_key: str = "text"


def is_records(path: str) -> bool:
    """Whether a file holds many texts, or a folder many files; any other file is one text."""
    bare = next((path[: -len(end)] for end in PACKED if path.endswith(end)), path)
    return bare.endswith(RECORDS) or bare != path or os.path.isdir(path)


def read_texts(path: str, text_key: str = "text") -> Iterator[str]:
    """The documents of a file, a folder, or `embedded:topics`.

    Errors: UserError that names the file and the place where it is no text, or empty.
    """
    if is_embedded(path):
        yield from embedded_texts(path)
        return
    if not is_records(path):
        yield read_text(path)
        return
    options, tally = ReadOptions(text_key=text_key), Tally()
    count = 0
    for unit in plan_units(find_inputs([path], tally), options):
        for part in unit:
            for text in read_documents(part, options, tally):
                count += 1
                yield text
    if not count:
        raise UserError(f"{path} holds no text: there is nothing to evaluate.")


def read_text(path: str) -> str:
    """The text of a file. Errors: UserError that names the file and the byte where it is not UTF-8."""
    try:
        text = read_file(path, "a text file").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 at byte {error.start:,}: convert it first (iconv -t UTF-8)."
        ) from None
    if not text:
        raise UserError(f"{path} is empty: there is nothing to evaluate.")
    return text


def read_sets(path: str) -> dict[str, TextSet]:
    """Name -> set of a YAML file: `name: path`, or `name: {path: ..., text_key: ...}`; paths from its folder.

    Errors: UserError that names the file, and the set that is none.
    """
    value = read_yaml(path, "a YAML file of sets")
    if not isinstance(value, dict) or not value:
        raise UserError(f"{path} names no sets: write lines such as `news: texts/news.jsonl`.")
    found = {}
    for name, one in value.items():
        inner = {"path": one} if isinstance(one, str) else one
        if not isinstance(name, str) or not isinstance(inner, dict) or not isinstance(inner.get("path"), str):
            raise UserError(f"{path}: the set {name!r} needs a path, such as `news: texts/news.jsonl`.")
        if unknown := sorted(set(map(str, inner)) - {"path", "text_key"}):
            raise UserError(
                f"{path}: the set {name!r} has an unknown key {unknown[0]!r}; there are path and text_key."
            )
        where = inner["path"]
        if not is_embedded(where) and "://" not in where:
            where = os.path.join(os.path.dirname(path), where)
        found[name] = TextSet(name, where, str(inner.get("text_key", "text")))
    return found


def embedded_sets() -> dict[str, TextSet]:
    """The English that ships with Python: `embedded:topics`, ..."""
    return {PREFIX + name: TextSet(PREFIX + name, PREFIX + name) for name in NAMES}
