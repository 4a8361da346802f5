"""What a run reads: held-out files, labels and their weights."""

from types import SimpleNamespace

import numpy as np
import pytest
from test_run import small, write_squares

from jaxlm import run
from jaxlm.run_data import OpenData, class_weights, run_labels, with_classes
from jaxlm.types import UserError


def classify(**changes):
    config = run.default_config()
    config.objective = "classify"
    config.data.sources.sms = {"path": "sms.jsonl"}
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return run.resolve(config)


def store(*labels):
    """Of texts with these labels."""
    return SimpleNamespace(
        manifest={"labels": sorted(set(labels))},
        labels=lambda names: np.array([names.index(label) for label in labels]),
    )


def data(*labels, names):
    return OpenData(None, {"sms": store(*labels)}, {}, None, names)  # type: ignore[arg-type]


def test_held_out_text_may_be_a_file_of_its_own(tmp_path):
    write_squares(tmp_path / "train.txt")
    write_squares(tmp_path / "held.txt", power=3)
    cfg = small(tmp_path / "train.txt", data__sources__mine__eval_path=str(tmp_path / "held.txt"))
    opened = run.open_data(cfg, quiet=True)
    whole = run.open_data(
        small(tmp_path / "train.txt", data__eval_fraction=0.0, train__eval_batches=0), quiet=True
    )
    assert opened.train["mine"].num_tokens == whole.train["mine"].num_tokens
    held = opened.eval["mine"]
    assert "to the power" not in opened.tokenizer.decode(held.read(0, 0))
    assert "299 to the 3 is 26730899." in opened.tokenizer.decode(held.read(0, held.num_tokens))


def test_labels_are_those_of_the_data_or_of_the_config_in_its_order():
    stores = {"a": store("spam", "ham"), "b": store("eggs", "ham")}
    assert run_labels(classify(), stores) == ("eggs", "ham", "spam")
    assert run_labels(classify(classify__labels="spam, ham,eggs"), stores) == ("spam", "ham", "eggs")
    assert run_labels(classify(classify__task="regression"), stores) == ()
    assert run_labels(classify(), {"a": store("10", "9", "-1")}) == ("-1", "9", "10")
    with pytest.raises(UserError, match="'ham' twice"):
        run_labels(classify(classify__labels="ham,spam,ham"), stores)
    with pytest.raises(UserError, match="nothing to tell apart: the labels are ham"):
        run_labels(classify(), {"a": store("ham")})
    assert run_labels(classify(classify__task="multi_label"), {"a": store("ham")}) == ("ham",)


def test_the_head_has_an_output_for_each_label():
    assert with_classes(classify(), ("a", "b", "c")).model.num_classes == 3
    assert with_classes(classify(classify__task="regression"), ()).model.num_classes == 1
    with pytest.raises(UserError, match="num_classes=2, but there are 3 labels: a, b, c"):
        with_classes(classify(model__num_classes=2), ("a", "b", "c"))


def test_weights_of_labels():
    names = ("ham", "spam")
    assert class_weights(classify(), data("ham", names=names)) is None
    balanced = class_weights(
        classify(classify__class_weights="balanced"), data("ham", "spam", "ham", "ham", names=names)
    )
    assert balanced == pytest.approx((4 / 2 / 3, 4 / 2 / 1))  # every label weighs as much as every other
    assert class_weights(classify(classify__class_weights="spam=3"), data(names=names)) == (1.0, 3.0)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("balanced", "no training text has the label 'spam'"),
        ("spam", "'spam' is not LABEL=NUMBER"),
        ("spam=x", "'spam=x' is not LABEL=NUMBER"),
        ("spma=2", "did you mean 'spam'"),
        ("spam=-1", "must not be negative"),
        ("spam=nan", "must not be negative"),
        ("spam=0,ham=0", "nor all of them 0"),
    ],
)
def test_weights_that_make_no_sense(wanted, message):
    with pytest.raises(UserError, match=message):
        class_weights(classify(classify__class_weights=wanted), data("ham", names=("ham", "spam")))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"objective": "pretrain", "instruct.template": "alpaca"},
            "instruct.template='alpaca' would be ignored",
        ),
        ({"objective": "instruct", "classify.pooling": "mean"}, "classify.pooling='mean' would be ignored"),
        ({"objective": "instruct", "data.packing": "concat"}, "takes 'best_fit' or 'pad'"),
        ({"objective": "classify", "data.packing": "best_fit"}, "takes 'pad'"),
        ({"objective": "classify", "train.z_loss": 1e-4}, "z_loss=0.0001 would be ignored"),
        ({"objective": "instruct", "tune.train": "head"}, "tune.train='head' is the head of a classifier"),
        ({"objective": "instruct", "model.num_classes": 3}, "model.num_classes=3 is of a classifier"),
        (
            {"objective": "classify", "tune.train": "last_blocks", "tune.num_blocks": 4},
            "below model.num_layers=4",
        ),
        ({"objective": "classify", "tune.quantize": "int8"}, "needs frozen blocks"),
        ({"objective": "classify", "classify.task": "regression", "classify.labels": "a,b"}, "has no labels"),
        ({"objective": "classify", "tune.lora_targets": "q,w"}, "tune.lora_targets='w' is not one of"),
    ],
)
def test_keys_that_would_be_ignored_are_refused(keys, message):
    config = run.default_config()
    config.data.sources.sms = {"path": "sms.jsonl"}
    config.update_from_flattened_dict(keys)
    with pytest.raises(UserError, match=message):
        run.resolve(config)


def test_random_weights_are_not_frozen(tmp_path):
    with pytest.raises(UserError, match="random ones would stay random"):
        run.train(classify(tune__train="lora"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
