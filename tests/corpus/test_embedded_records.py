"""Records that every Python has."""

from collections import Counter

import pytest

from jaxlm.corpus import embedded_records
from jaxlm.types import UserError


def test_questions_have_one_sentence_as_answer():
    found = embedded_records.records("embedded:questions")
    assert len(found) > 2000
    assert all(record.keys() == {"instruction", "input", "output"} for record in found)
    answers = {record["input"]: record["output"] for record in found}
    assert answers["json.loads"].startswith("Deserialize")
    assert not [answer for answer in answers.values() if "\n" in answer or not answer.endswith(".")]


def test_kinds_have_four_labels_and_no_text_twice():
    found = embedded_records.records("embedded:kinds")
    counts = Counter(record["label"] for record in found)
    assert counts.keys() == {"manual", "docstring", "comment", "licence"}
    assert min(counts[label] for label in ("manual", "docstring", "comment")) == 700
    assert counts["licence"] >= 10
    texts = [(record["text"], record["label"]) for record in found]
    assert len(set(texts)) == len(texts)
    assert all(8 <= len(text.split()) <= 50 for text, _ in texts)


def test_names():
    assert embedded_records.is_records("embedded:kinds")
    assert not embedded_records.is_records("embedded:topics")
    assert not embedded_records.is_records("kinds")
    with pytest.raises(UserError, match="did you mean 'kinds'"):
        embedded_records.records("embedded:kind")
    assert embedded_records.fingerprint("embedded:kinds") != embedded_records.fingerprint(
        "embedded:questions"
    )
