"""Promises of classifiers of Hugging Face: in and out without a changed bit, and with the names of their labels."""

import dataclasses
import json

import numpy as np
import pytest
import small_tokenizers as small
from small_checkpoints import assert_same_bits, random_params, tensors_of, write_checkpoint, write_tensors
from small_classifier import LABELS, make_run

from jaxlm import run as run_lib
from jaxlm import run_loading
from jaxlm.interop.families import family_for
from jaxlm.interop.hf_import import open_source, read_hf_config
from jaxlm.models import sizes
from jaxlm.types import UserError

NAMED = {
    "id2label": {str(i): name for i, name in enumerate(LABELS)},
    "label2id": {name: i for i, name in enumerate(LABELS)},
}


def classifier(name="tiny-llama", num_classes=3):
    return dataclasses.replace(sizes.size(name), num_classes=num_classes)


@pytest.mark.parametrize("name", sizes.TINY_SIZES)
def test_every_family_says_a_classifier(name):
    model = classifier(name)
    family = family_for(model)
    assert family == family_for(sizes.size(name))
    written = family.write(model)
    stem = family.architecture.replace("ForCausalLM", "").replace("LMHeadModel", "")
    stem = {"Gemma3": "Gemma3Text"}.get(stem, stem)
    assert written["architectures"] == [f"{stem}ForSequenceClassification"]
    assert "id2label" not in family.write(sizes.size(name))


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_the_head_is_found_with_and_without_the_prefix_of_the_model(tmp_path, prefix):
    params = random_params(classifier())
    folder = write_checkpoint(tmp_path / "hub", classifier(), params, tokenizer=False, **NAMED)
    tensors = tensors_of(folder)
    np.testing.assert_array_equal(tensors["score.weight"], np.asarray(params["classifier"]).T)
    assert "lm_head.weight" not in tensors
    write_tensors(folder, {name.replace("model.", prefix, 1): value for name, value in tensors.items()})
    from small_checkpoints import load

    assert_same_bits(load(folder), params)
    assert open_source(folder).classes.names == LABELS


@pytest.mark.parametrize(
    ("config", "task", "names"),
    [
        (NAMED | {"problem_type": "single_label_classification"}, "single_label", LABELS),
        (NAMED, "single_label", LABELS),
        (NAMED | {"problem_type": "multi_label_classification"}, "multi_label", LABELS),
        ({"id2label": None, "num_labels": 3}, "single_label", ("LABEL_0", "LABEL_1", "LABEL_2")),
    ],
)
def test_task_and_labels_are_read(tmp_path, config, task, names):
    folder = write_checkpoint(tmp_path / "hub", classifier(), tokenizer=False, **config)
    assert open_source(folder).classes == (task, names)


def test_one_output_is_a_regression(tmp_path):
    folder = write_checkpoint(tmp_path / "hub", classifier(num_classes=1), tokenizer=False)
    assert open_source(folder).classes == ("regression", ())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"problem_type": "ranking"}, "problem_type='ranking'"),
        ({"problem_type": "regression"}, "a regression to 3 numbers"),
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "two labels of id2label have one name"),
        ({"id2label": {"0": "a", "1": "b"}}, r"score.weight has shape \[3, 32\] instead of \[2, 32\]"),
        ({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}, "score.weight is unexpected"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, config, said):
    folder = write_checkpoint(tmp_path / "hub", classifier(), tokenizer=False, **config)
    with pytest.raises(UserError, match=said):
        open_source(folder)


def test_a_run_goes_out_with_its_labels_and_comes_back(tmp_path, jaxlm):
    run = make_run(tmp_path / "run")
    assert jaxlm("export-hf", f"--run={run}", tmp_path / "out")[0] == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["problem_type"] == "single_label_classification"
    assert {key: config[key] for key in NAMED} == NAMED
    tokenizer = run_loading.run_tokenizer(run)
    assert config["pad_token_id"] == tokenizer.pad_id
    assert not (tmp_path / "out/generation_config.json").exists()
    card = (tmp_path / "out/README.md").read_text()
    for said in ("pipeline_tag: text-classification", "AutoModelForSequenceClassification", "| 2 | উট |"):
        assert said in card
    assert json.loads((tmp_path / "out/artifact.json").read_text())["labels"] == list(LABELS)
    assert jaxlm("import-hf", tmp_path / "out", tmp_path / "again")[0] == 0
    before, after = run_lib.load_run(run), run_lib.load_run(tmp_path / "again")
    assert_same_bits(after.params, before.params)
    assert after.meta.extra["labels"] == list(LABELS)
    assert (after.config.objective, after.config.classify.task) == ("classify", "single_label")
    flags = ("--text=a lion in the zoo", "--json")
    assert (
        jaxlm("predict", f"--run={tmp_path / 'again'}", *flags)[1]
        == jaxlm("predict", f"--run={run}", *flags)[1]
    )
    assert jaxlm("export-hf", f"--run={tmp_path / 'again'}", tmp_path / "twice")[0] == 0
    for name in ("model.safetensors", "config.json"):
        twice = json.loads((tmp_path / "twice" / name).read_text()) if name.endswith("json") else None
        if twice is None:
            assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
        else:
            assert {key: twice[key] for key in NAMED} == NAMED


def test_a_number_goes_out_as_a_regression_and_a_mean_not_at_all(tmp_path, jaxlm):
    run = make_run(tmp_path / "number", (), task="regression")
    assert jaxlm("export-hf", f"--run={run}", tmp_path / "out")[0] == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["problem_type"], len(config["id2label"])) == ("regression", 1)
    run = make_run(tmp_path / "mean", pooling="mean")
    code, _, err = jaxlm("export-hf", f"--run={run}", tmp_path / "none")
    assert code == 2
    assert "classify.pooling='mean'" in err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("is_run", [True, False])
def test_a_classifier_that_starts_from_one_of_other_labels_is_refused(tmp_path, is_run):
    from jaxlm.models.build import build
    from jaxlm.origin import read_origin

    lm = build(dataclasses.replace(classifier(), vocab_size=512, max_seq_len=48), 48)
    if is_run:
        source = make_run(tmp_path / "run")
        loaded = run_lib.load_run(source)
        lm, sha256 = loaded.lm, loaded.tokenizer.sha256
    else:
        model = dataclasses.replace(classifier(), vocab_size=512, max_seq_len=48)
        source = write_checkpoint(tmp_path / "hub", model, tokenizer=False, **NAMED)
        for name, content in small.level().items():
            (source / name).write_bytes(content)
        from jaxlm.data.tokenizer import load_tokenizer

        sha256 = load_tokenizer(source).sha256
    assert "classifier" in read_origin(str(source), lm, None, sha256, list(LABELS)).params
    with pytest.raises(UserError, match="its head would mean others"):
        read_origin(str(source), lm, None, sha256, list(reversed(LABELS)))


def test_a_language_model_is_read_as_before(tmp_path):
    folder = write_checkpoint(
        tmp_path / "hub", sizes.size("tiny-llama"), tokenizer=False, id2label={"0": "A"}
    )
    family, model, notes = read_hf_config(folder)
    assert (family.model_type, model.num_classes, notes) == ("llama", None, ())
