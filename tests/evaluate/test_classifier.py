"""Promises of a classifier's report: the scores of its own logits, with the baselines, for people and for programs."""

import argparse
import io
import json

import numpy as np
import pytest
from small_classifier import LABELS, make_run, write_records

from jaxlm import run as run_lib
from jaxlm.cli import _evaluate_classifier as command
from jaxlm.evaluate.classification import fit_temperature, single_label_scores
from jaxlm.evaluate.classifier import LabelWords, evaluate_classifier
from jaxlm.evaluate.classifier_show import draw, print_report
from jaxlm.evaluate.label_words import zero_shot
from jaxlm.infer.predict import classifier_of, text_ids, text_logits
from jaxlm.types import UserError

WORDS = "a lion and the zoo are not in this list of things that were seen".split()
RECORDS = [
    {"text": " ".join(WORDS[i % 5 :][: 1 + i % 9]), "label": LABELS[i % 3], "group": i // 2}
    for i in range(30)
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return run_lib.load_run(make_run(tmp_path_factory.mktemp("runs") / "animals"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "base", None, objective="pretrain")


@pytest.fixture
def data(tmp_path):
    return write_records(tmp_path / "test.jsonl", [*RECORDS, {"text": " ", "label": "cat"}])


def logits(loaded, records):
    classifier = classifier_of(loaded)
    return text_logits(classifier, text_ids(classifier, [record["text"] for record in records]))


def test_scores_are_those_of_the_models_logits(loaded, data, tmp_path):
    labels = np.array([LABELS.index(record["label"]) for record in RECORDS])
    # Of other labels, those of the model but for one in three: else the best temperature is the highest there is.
    held_out = np.where(np.arange(30) % 3 == 0, labels, logits(loaded, RECORDS).argmax(axis=1))
    validation = [{**record, "label": LABELS[i]} for record, i in zip(RECORDS, held_out, strict=True)]
    path = write_records(tmp_path / "validation.jsonl", validation)
    report = evaluate_classifier(loaded, str(data), calibrate_on=str(path), batch_size=4)
    temperature = fit_temperature(logits(loaded, RECORDS), held_out)
    assert 0.1 < temperature < 15
    wanted = single_label_scores(logits(loaded, RECORDS), labels, LABELS, temperature)
    for name in ("accuracy", "confusion", "classes", "majority"):
        assert report.scores[name] == wanted[name]
    for name in ("loss", "temperature", "ece", "ece_at_temperature"):
        assert report.scores[name] == pytest.approx(wanted[name], rel=1e-3)
    assert report.dropped == {"empty_text": 1}
    assert report.baselines == {"majority": {"label": "cat", "accuracy": pytest.approx(1 / 3)}}
    predicted = logits(loaded, RECORDS).argmax(axis=1)
    agreeing = sum(predicted[i] == predicted[i + 1] for i in range(0, 30, 2))
    assert (report.consistency.num_groups, report.consistency.num_agreeing) == (15, agreeing)
    assert json.loads(json.dumps(report.as_dict()))["accuracy"] == wanted["accuracy"]


def test_label_words_stand_beside_the_majority(loaded, base, data, tmp_path):
    shots = write_records(tmp_path / "shots.jsonl", RECORDS[10:20])
    asked = LabelWords(run_lib.load_run(base), "{text} is a", str(shots), 2)
    report = evaluate_classifier(loaded, str(data), label_words=asked)
    found = report.baselines["label words, 2 shots"]
    examples = [(RECORDS[12]["text"], LABELS[0]), (RECORDS[10]["text"], LABELS[1])]
    scores = zero_shot(asked.loaded, [r["text"] for r in RECORDS], LABELS, "{text} is a", examples)
    labels = np.array([LABELS.index(record["label"]) for record in RECORDS])
    assert found["accuracy"] == (scores.argmax(axis=1) == labels).mean()
    with pytest.raises(UserError, match="A classifier writes no labels"):
        evaluate_classifier(loaded, str(data), label_words=LabelWords(loaded))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"text": "a", "label": "dgo"}, "line 2: the classifier does not know the label 'dgo'.*mean 'dog'"),
        ({"text": "a"}, "line 2: field 'label' is missing"),
        ({"text": "a", "label": None}, "line 2, field 'label'"),
        ("{no json", "line 2: not valid JSON"),
    ],
)
def test_a_record_that_is_wrong_is_named(loaded, tmp_path, record, said):
    with pytest.raises(UserError, match=said):
        evaluate_classifier(loaded, str(write_records(tmp_path / "bad.jsonl", [RECORDS[0], record])))


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Runs of the other tasks, and records for them."""
    folder = tmp_path_factory.mktemp("others")
    sets = [{**record, "label": list(LABELS[: i % 4])} for i, record in enumerate(RECORDS)]
    numbers = [{**record, "label": i / 7} for i, record in enumerate(RECORDS)]
    return {
        "multi_label": (
            run_lib.load_run(make_run(folder / "sets", task="multi_label")),
            write_records(folder / "sets.jsonl", sets),
        ),
        "regression": (
            run_lib.load_run(make_run(folder / "numbers", (), task="regression", pooling="mean")),
            write_records(folder / "numbers.jsonl", numbers),
        ),
    }


def printed(report):
    file = io.StringIO()
    print_report(report, file)
    return file.getvalue()


def test_tables_say_everything(loaded, base, data, others):
    asked = LabelWords(run_lib.load_run(base))
    text = printed(evaluate_classifier(loaded, str(data), calibrate_on=str(data), label_words=asked))
    for said in ("30 texts", "accuracy", "উট", "macro", "confusion matrix", "at temperature", "this classifier",
                 "majority (cat)", "label words, 0 shots", "dropped: empty text", "rewordings"):  # fmt: skip
        assert said in text
    text = printed(evaluate_classifier(others["multi_label"][0], str(others["multi_label"][1])))
    assert "all labels right" in text
    assert "majority" in text
    text = printed(evaluate_classifier(others["regression"][0], str(others["regression"][1])))
    assert "Spearman" in text
    assert "mean (2.07" in text


def test_plots_are_pngs_that_are_drawn_for_the_task(loaded, data, others, tmp_path):
    two = single_label_scores(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1]), ("a$b$", "আ"))
    report = evaluate_classifier(loaded, str(data))
    binary = report.__class__(two, {}, {}, 0, None, np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1]))
    wanted = {
        "three": {"confusion", "reliability"},
        "two": {"confusion", "reliability", "roc"},
        "numbers": {"predicted"},
    }
    reports = {"three": report, "two": binary}
    reports["numbers"] = evaluate_classifier(others["regression"][0], str(others["regression"][1]))
    for name, one in reports.items():
        found = draw(one, tmp_path / name)
        assert {path.stem for path in found} == wanted[name]
        assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in found)


def test_a_temperature_is_for_one_label_a_text(others):
    loaded, data = others["multi_label"]
    with pytest.raises(UserError, match="multi_label"):
        evaluate_classifier(loaded, str(data), calibrate_on=str(data))


def arguments(*flags):
    parser = argparse.ArgumentParser()
    for flag in ("--run", "--data", "--columns", "--json"):
        parser.add_argument(flag)
    parser.add_argument("--max-records", type=int)
    parser.add_argument("--batch-size", type=int, default=32)
    command.add_classifier_arguments(parser)
    return parser.parse_args(["--run=animals", *flags])


def test_the_command_writes_what_predict_reads(loaded, base, data, tmp_path, capsys):
    target = tmp_path / "report.json"
    flags = (f"--data={data}", f"--calibrate-on={data}", f"--json={target}", f"--baseline={base}", "--max-records=20",
             f"--plots={tmp_path / 'plots'}")  # fmt: skip
    assert command.evaluate_labels(arguments(*flags), loaded) == 0
    report = json.loads(target.read_text())
    assert (report["num_texts"], report["step"]) == (20, 3)
    assert set(report["baselines"]) == {"majority", "label words, 0 shots"}
    assert "confusion matrix" in capsys.readouterr().out
    assert (tmp_path / "plots/confusion.png").exists()
    from jaxlm.cli.predict import read_temperature

    assert read_temperature(str(target)) == report["temperature"]
    assert command.evaluate_labels(arguments(f"--data={data}", "--json=-"), loaded) == 0
    assert json.loads(capsys.readouterr().out)["num_texts"] == 30


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--shots-from=x",), "--shots-from is about --baseline"),
        (("--normalise-labels",), "--normalise-labels is about --baseline"),
        (("--baseline=x", "--shots=3"), "--shots needs records"),
        (("--baseline=x", "--shots-from=x", "--shots=0"), "--shots=0 must be at least 1"),
        (("--baseline=x", "--baseline-template=Label:"), "must hold {text} once"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(flags, said):
    with pytest.raises(UserError) as error:
        command.check_classifier_arguments(arguments(*flags))
    assert said in str(error.value)
