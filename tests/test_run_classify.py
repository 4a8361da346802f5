"""Whole runs that sort texts, of a model as small as can be, from records of each kind to what `predict` says."""

import json

import numpy as np
import pytest
from slow import all_but
from small_run import small
from small_tokenizers import level

from jaxlm import run
from jaxlm.cli.main import main
from jaxlm.data.tokenizer_hf import HFTokenizer
from jaxlm.report.events import last_of_each_step, read_events

LABELS = ("ant", "bee", "cat", "dog", "eel")
CASES = {
    "two": ("single_label", lambda n: LABELS[n % 2]),
    "five": ("single_label", lambda n: LABELS[n % 5]),
    "any": ("multi_label", lambda n: list(LABELS[: n % 4])),
    "number": ("regression", lambda n: n / 4),
}


@pytest.mark.parametrize("case", all_but(("two", "number"), CASES))
def test_texts_are_sorted_by_one_label_of_many_by_several_or_by_a_number(case, tmp_path):  # pain 14
    task, label = CASES[case]
    records = [{"text": f"{n} " * (n % 5 + 1), "label": label(n)} for n in range(40)]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "tokenizer").mkdir()
    HFTokenizer(level()).save(tmp_path / "tokenizer")
    keys = {
        "objective": "classify",
        "classify__task": task,
        "tokenizer__kind": "bpe",
        "tokenizer__path": str(tmp_path / "tokenizer"),
        "data__eval_split": "hash",
        "train__num_steps": 1,
        "train__eval_batches": 0,
        "data__eval_fraction": 0.0,
        "data__length_window_steps": 1,
    }
    run.train(small(path, **keys), tmp_path / "run")
    assert last_of_each_step(read_events(tmp_path / "run" / "events.jsonl"))[1]["train/loss"] > 0
    out = tmp_path / "out.jsonl"
    assert main(["predict", f"--run={tmp_path / 'run'}", f"--input={path}", f"--output={out}"]) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["text"] for line in found] == [record["text"] for record in records]
    names = sorted({one for record in records for one in np.atleast_1d(record["label"])})
    for line in found:
        if task == "regression":
            assert isinstance(line["predicted"], float)
            continue
        probabilities = line["probabilities"]
        assert list(probabilities) == names
        if task == "multi_label":
            assert line["predicted"] == [name for name in names if probabilities[name] > 0.5]
        else:
            assert line["predicted"] == max(names, key=probabilities.get)
            assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
