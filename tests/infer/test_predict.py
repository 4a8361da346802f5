"""Promises of `predict`: the logits of training, whatever shares a batch; each record in its place."""

import dataclasses
import io
import json

import numpy as np
import pytest
from small_classifier import LABELS, make_run, write_records

from jaxlm import run as run_lib
from jaxlm.corpus.examples import ensure_examples
from jaxlm.data.examples import ExampleStore
from jaxlm.data.padding import Labelled, PadPacking, row_widths, text_rows
from jaxlm.evaluate.classification import log_softmax
from jaxlm.infer import predict
from jaxlm.infer.predict import classifier_of, predictions, text_ids, text_logits
from jaxlm.types import UserError

WORDS = "a lion and the zoo are not in this list of things that were seen".split()
TEXTS = [" ".join(WORDS[i % 7 :][:n] * 2) for i, n in enumerate((1, 9, 3, 14, 2, 5, 11, 4, 6, 14))]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "animals")


@pytest.fixture(scope="module")
def classifier(run):
    return classifier_of(run_lib.load_run(run))


def alone(classifier, text):
    return text_logits(classifier, text_ids(classifier, [text]))[0]


def test_a_text_gets_the_same_logits_alone_and_in_any_batch(classifier):  # pain 13
    rows = text_ids(classifier, TEXTS)
    expected = np.stack([alone(classifier, text) for text in TEXTS])
    assert expected.std(axis=0).min() > 0.1  # else nothing is compared
    for batch_size in (2, 4, 32):
        found = text_logits(classifier, rows, batch_size=batch_size)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_rows_are_those_of_training(run, classifier, pooling, tmp_path):
    texts = [*TEXTS, " ".join(WORDS * 9)]  # the last is cut
    path = write_records(tmp_path / "train.jsonl", [{"text": text, "label": "cat"} for text in texts])
    cfg, tokenizer = run_lib.load_run(run).config, classifier.tokenizer
    source = dataclasses.replace(cfg.data.sources["texts"], path=str(path))
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, eval_fraction=0.0))
    folder = ensure_examples("texts", source, cfg, "classify", tokenizer, None, "train", lambda line: None)
    store = ExampleStore(folder, expected_tokenizer_sha256=tokenizer.sha256)
    theirs = PadPacking(store, 48, Labelled(pooling, LABELS)).rows(np.arange(len(texts)))
    rows = [row[: classifier.max_tokens] for row in text_ids(classifier, texts)]
    for name, value in text_rows(rows, pooling, len(rows), 48).items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-6, err_msg=name)


def test_texts_of_any_number_and_length_come_in_a_few_shapes(classifier, monkeypatch):
    shapes = set()

    def scores(params, batch):
        shapes.add(batch["tokens"].shape)
        return np.zeros((len(batch["tokens"]), 3))

    monkeypatch.setattr(predict, "compiled_scores", lambda hidden, head: scores)
    for num in range(1, 15):
        for longest in range(1, 60):
            text_logits(classifier, [[5] * longest] * num, batch_size=4)
    assert {num for num, _ in shapes} == {1, 2, 4}
    assert {width for _, width in shapes} == set(row_widths(48))


def test_a_long_text_is_cut_as_in_training(classifier):
    ids = text_ids(classifier, [" ".join(WORDS * 9)])[0]
    assert len(ids) > 48
    np.testing.assert_array_equal(text_logits(classifier, [ids]), text_logits(classifier, [ids[:48]]))


def test_what_is_predicted():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.05, 0.05, 0.9]]))
    first, second = predictions("single_label", LABELS, logits)
    assert first == {"predicted": "cat", "probabilities": {"cat": 0.7, "dog": 0.2, "উট": 0.1}}
    assert second["predicted"] == "উট"
    hotter = predictions("single_label", LABELS, logits, temperature=2.0)[0]
    assert hotter["predicted"] == "cat"
    roots = np.sqrt([0.7, 0.2, 0.1])
    np.testing.assert_allclose(list(hotter["probabilities"].values()), roots / roots.sum(), rtol=1e-5)
    many = predictions("multi_label", LABELS, np.array([[0.0, 2.0, -1.0], [1.0, 1.0, 1.0]]))
    assert [one["predicted"] for one in many] == [["dog"], list(LABELS)]
    assert many[0]["probabilities"] == {"cat": 0.5, "dog": 0.880797, "উট": 0.268941}
    assert predictions("regression", (), np.array([[1.5], [-2.0]])) == [
        {"predicted": 1.5},
        {"predicted": -2.0},
    ]


RECORDS = [
    {"text": TEXTS[0], "id": 1, "label": "unicorn"},  # a label that is there is a field like others
    {"id": 2, "text": TEXTS[3], "more": ["kept"]},
    "{not json",
    {"text": "   ", "id": 3},
    "",
    {"text": 7, "id": 4},
    {"wrong": "x", "id": 5},
    {"text": " ".join(WORDS * 9), "id": 6},
    *({"text": text, "id": 10 + i} for i, text in enumerate(TEXTS)),
]


def test_records_keep_their_order_and_fields_and_bad_ones_are_named(run, classifier, jaxlm, tmp_path):
    source, target = write_records(tmp_path / "in.jsonl", RECORDS), tmp_path / "out.jsonl"
    code, out, err = jaxlm(
        "predict", f"--run={run}", f"--input={source}", f"--output={target}", "--batch-size=4"
    )
    assert (code, out) == (3, "")
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line.get("id") for line in lines] == [1, 2, None, 3, 4, 5, 6, *range(10, 20)]
    assert [line["predicted"] is None for line in lines] == [
        False,
        False,
        True,
        True,
        True,
        True,
        *[False] * 11,
    ]
    assert lines[0]["label"] == "unicorn"
    assert lines[1]["more"] == ["kept"]
    for line in lines:
        if line["predicted"] is not None:
            probs = np.exp(log_softmax(alone(classifier, line["text"])))
            np.testing.assert_allclose(list(line["probabilities"].values()), probs, atol=1e-5)
            assert list(line["probabilities"]) == list(LABELS)
            assert line["predicted"] == LABELS[probs.argmax()]
    for number, message in (
        (3, "not valid JSON"),
        (4, "empty text"),
        (6, "'text'"),
        (7, "'text' is missing"),
    ):
        assert any(f"{source}, line {number}" in line and message in line for line in err.splitlines()), err
    assert "13 texts" in err
    assert "4 records without a text; 1 cut to 48 tokens" in err
    code, _, err = jaxlm("predict", f"--run={run}", f"--input={source}", f"--output={target}")
    assert (code, "exists: it is complete" in err) == (2, True)


def test_a_killed_run_goes_on_and_gives_the_same_file(run, jaxlm, tmp_path, monkeypatch):
    source = write_records(tmp_path / "in.jsonl", RECORDS)
    monkeypatch.setattr(predict, "CHUNK_BATCHES", 2)
    flags = ("predict", f"--run={run}", f"--input={source}", "--batch-size=2")
    assert jaxlm(*flags, f"--output={tmp_path / 'whole'}")[0] == 3
    calls, original = [], predict.text_logits

    def dies(classifier, rows, **options):
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(classifier, rows, **options)

    monkeypatch.setattr(predict, "text_logits", dies)
    assert jaxlm(*flags, f"--output={tmp_path / 'killed'}")[0] == 130
    assert not (tmp_path / "killed").exists()
    code, _, err = jaxlm(*flags, f"--output={tmp_path / 'killed'}")
    assert code == 3
    assert "4 records without a text" in err  # those before the kill included
    assert calls == [2, 2, 4, 4, 4, 1]
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_stdin_to_stdout(run, jaxlm, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO('{"text": "a lion", "n": "আ"}\n'.encode())))
    code, out, _ = jaxlm("predict", f"--run={run}", "--input=-")
    assert code == 0
    assert list(json.loads(out)) == ["text", "n", "predicted", "probabilities"]
    assert json.loads(out)["n"] == "আ"


def test_a_single_text_and_a_fitted_temperature(run, classifier, jaxlm, tmp_path):
    (tmp_path / "report.json").write_text('{"accuracy": 1.0, "temperature": 2.5}')
    probs = np.exp(log_softmax(alone(classifier, "a lion") / 2.5))
    for value in ("2.5", tmp_path / "report.json"):
        code, out, _ = jaxlm("predict", f"--run={run}", "--text=a lion", "--json", f"--temperature={value}")
        assert code == 0
        np.testing.assert_allclose(list(json.loads(out)["probabilities"].values()), probs, rtol=1e-5)
    out = jaxlm("predict", f"--run={run}", "--text=a lion")[1].splitlines()
    assert out[0] == LABELS[probs.argmax()]
    assert len(out) == 4
    assert all("%" in line for line in out[1:])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "Give either records (--input=FILE) or a text"),
        (("--text=a", "--input=b"), "Give either"),
        (("--text=a", "--output=b"), "--output goes with --input"),
        (("--text=a", "--temperature=0"), "must be a positive number"),
        (("--text=a", "--temperature=nan"), "must be a positive number"),
        (("--text=a", "--temperature=missing.json"), "missing.json does not exist"),
        (("--text= ", "--batch-size=0"), "--batch-size=0 must be at least 1"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_loaded(jaxlm, flags, said):
    code, _, err = jaxlm("predict", "--run=nowhere", *flags)
    assert code == 2
    assert said in err


def test_a_language_model_is_no_classifier(tmp_path, jaxlm):
    base = make_run(tmp_path / "base", None, objective="pretrain")
    code, _, err = jaxlm("predict", f"--run={base}", "--text=a")
    assert code == 2
    assert "is no classifier: its objective is pretrain" in err


def test_a_checkpoint_without_names_is_not_guessed_at(tmp_path):
    loaded = run_lib.load_run(make_run(tmp_path / "unnamed"))
    with pytest.raises(UserError, match="names 0 labels, but its head has 3"):
        classifier_of(loaded._replace(meta=type(loaded.meta)(3)))
