"""The texts of evaluation sets, from files of text and of records."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from jaxlm.corpus.inputs import InputFile, Kinds, Part, find_inputs
from jaxlm.corpus.raw.filter_config import evaluation_sets
from jaxlm.corpus.readers import read_documents
from jaxlm.corpus.records import read_records
from jaxlm.corpus.text import ReadOptions, Tally

KINDS = Kinds(
    re.compile(r"\.(txt|json|jsonl|ndjson|csv|tsv|parquet)(?:\.(gz|zst))?$", re.IGNORECASE),
    ".txt, .json, .jsonl, .csv, .tsv (all also .gz or .zst) and .parquet",
)


def iterate_texts(evaluation: str) -> Iterator[tuple[str, str]]:
    """(name of the set, text) of `DecontaminateConfig.evaluation`, in order: a paragraph of a text file, or one value
    of a record, be it a message inside a dialogue."""
    for name, path in evaluation_sets(evaluation).items():
        for file in find_inputs([path], Tally(), KINDS):
            for text in _texts_of(file):
                yield name, text


def _texts_of(file: InputFile) -> Iterator[str]:
    if file.format in ("txt", "embedded"):
        options = ReadOptions(document="paragraph", invalid_utf8="replace")
        yield from read_documents(Part(file, 0, file.num_bytes, file.num_bytes), options, Tally())
        return
    for record in read_records(file, "replace", Tally()):
        yield from _strings(record.fields)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
