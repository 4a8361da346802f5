"""Promises of `init_from`: model, tokenizer and weights of the source, checked before a device is touched."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from slow import slow
from small_checkpoints import (
    assert_same_bits,
    load,
    random_params,
    tensors_of,
    write_checkpoint,
    write_tensors,
)
from small_tokenizers import gpt2, t5

from jaxlm import origin, run_interop
from jaxlm import run as run_lib
from jaxlm.checkpoint import Checkpoints
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.interop import artifact
from jaxlm.models import sizes
from jaxlm.models.build import build
from jaxlm.models.config import ModelConfig
from jaxlm.types import UserError

MODEL = dataclasses.replace(sizes.size("tiny-llama"), num_layers=2, vocab_size=416)
"""With 16 rows more than its tokenizer has ids."""


def config(source, **keys):
    """A short training; `keys` as in --config.KEY, with __ for the dot."""
    cfg = run_lib.default_config()
    cfg.init_from = str(source)
    cfg.data.sources = {"text": {"path": "embedded:licences", "weight_tokens": 1.0, "on_exhausted": "repeat"}}
    cfg.data.seq_len, cfg.data.global_batch_size = 16, 8
    cfg.train.num_steps, cfg.train.eval_every_steps, cfg.train.eval_batches = 3, 3, 1
    cfg.checkpoint.every_steps = 3
    cfg.optimizer.warmup_steps, cfg.optimizer.schedule = 2, "constant"
    cfg.update_from_flattened_dict({key.replace("__", "."): value for key, value in keys.items()})
    return cfg


def train(source, workdir, **keys):
    return run_lib.train(run_lib.resolve(config(source, **keys), workdir), workdir)


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("hf") / "mine", MODEL)


@pytest.fixture(scope="module")
def imported(hugging_face, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "imported"
    run_interop.import_hf(str(hugging_face), out, say=lambda line: None)
    return out


# The model.


def test_the_model_of_the_source_is_taken_with_what_the_run_says_about_running_it(hugging_face, imported):
    for source in (hugging_face, imported):
        model = run_lib.resolve(config(source, model__dtype="bfloat16", model__dropout=0.1)).model
        assert (model.dtype, model.dropout) == ("bfloat16", 0.1)
        same = dataclasses.replace(MODEL, dtype="bfloat16", dropout=0.1, max_seq_len=64)
        assert model == same


def test_fields_may_repeat_the_source_and_defaults_may_be_written_out(hugging_face):
    keys = {
        "model__num_layers": 2,
        "model__embed_dim": 32,
        "model__vocab_size": 416,
        "model__rope_theta": 500_000.0,
    }
    assert run_lib.resolve(config(hugging_face, **keys)) == run_lib.resolve(config(hugging_face))
    plain = ModelConfig(vocab_size=8, embed_dim=64, num_heads=2)
    spelled = ModelConfig(num_kv_heads=2, head_dim=32, mlp_dim=192)
    assert origin.fill_model(spelled, plain, "x") == plain


@pytest.mark.parametrize(
    ("key", "value", "theirs"),
    [("num_layers", 3, 2), ("embed_dim", 64, 32), ("activation", "relu", "swiglu"), ("qk_norm", True, False),
     ("norm_eps", 1e-3, 1e-5), ("vocab_size", 500, 416), ("num_kv_heads", 1, 2), ("positions", "none", "rope")],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["hugging_face", "imported"])
def test_a_field_that_contradicts_the_source_names_both_values(key, value, theirs, kind, request):
    source = request.getfixturevalue(kind)
    with pytest.raises(UserError) as error:
        run_lib.resolve(config(source, **{f"model__{key}": value}))
    assert f"model.{key}={value!r}, but the weights of init_from={source} have {theirs!r}" in str(error.value)
    assert "Leave it at its default" in str(error.value)


def test_how_a_context_is_made_longer_is_the_run_s_choice(hugging_face):
    keys = {"rope_theta": 1e6, "rope_scaling": "yarn", "rope_scaling_factor": 4.0, "rope_original_len": 32}
    model = run_lib.resolve(config(hugging_face, **{f"model__{k}": v for k, v in keys.items()})).model
    assert {key: getattr(model, key) for key in keys} == keys


def test_the_rows_of_a_position_table_are_no_choice():
    theirs = sizes.size("tiny-gpt")
    with pytest.raises(UserError, match="model.max_seq_len=128, but the weights of init_from=x have 64"):
        origin.fill_model(ModelConfig(max_seq_len=128), theirs, "x")
    assert origin.fill_model(ModelConfig(), theirs, "x").max_seq_len == 64
    assert origin.fill_model(ModelConfig(max_seq_len=128), MODEL, "x").max_seq_len == 128


def test_a_run_that_leaves_its_table_of_positions_to_seq_len_hands_it_on(tmp_path):
    model = dataclasses.replace(sizes.size("tiny-gpt"), vocab_size=416)
    run_interop.import_hf(
        str(write_checkpoint(tmp_path / "hf", model)), tmp_path / "run", say=lambda line: None
    )
    path = tmp_path / "run" / "config.json"
    saved = json.loads(path.read_bytes())
    saved["model"]["max_seq_len"] = None
    path.write_text(json.dumps(saved))
    assert run_lib.resolve(config(tmp_path / "run")).model.max_seq_len == 64


def test_the_rules_that_cross_sections_see_the_model_of_the_source(hugging_face):
    with pytest.raises(UserError, match="model.embed_dim=32 must be a multiple of mesh.fsdp=3"):
        run_lib.resolve(config(hugging_face, mesh__fsdp=3, data__global_batch_size=9))


@pytest.mark.parametrize(
    ("source", "message"),
    [("nowhere", "nowhere is neither a run nor a checkpoint (it does not exist)"),
     ("empty", "empty is neither a run nor a checkpoint (there is no config.json in it)"),
     ("begun", "begun holds no checkpoint: give the --workdir of a run that has saved one"),
     ("half", "half is neither a run nor a checkpoint (there is no config.json in it)"),
     ("other", "model_type='mamba'"), ("broken", "is not JSON")],
)  # fmt: skip
def test_what_is_no_source_is_refused(source, message, tmp_path, hugging_face, imported):
    for name in ("empty", "begun", "other", "broken"):
        (tmp_path / name).mkdir()
    shutil.copy(imported / "config.json", tmp_path / "begun")
    (tmp_path / "other" / "config.json").write_text('{"model_type": "mamba"}')
    (tmp_path / "broken" / "config.json").write_text('{"model_type": ')
    shutil.copytree(imported, tmp_path / "half")
    (tmp_path / "half" / "config.json").unlink()  # written last: the import was killed
    with pytest.raises(UserError) as error:
        run_lib.resolve(config(tmp_path / source))
    assert message in str(error.value)


# Training.


@pytest.mark.parametrize("kind", ["hugging_face", slow("imported"), slow("run")])
def test_a_run_starts_from_the_weights_goes_on_without_their_source_and_is_exported(
    kind, hugging_face, imported, tmp_path, capfd
):
    source = tmp_path / "source"
    shutil.copytree(hugging_face if kind == "hugging_face" else imported, source)
    if kind == "run":
        shutil.move(source, tmp_path / "before")
        train(tmp_path / "before", source)
    workdir, keys = tmp_path / "work", {}
    if kind == "imported":  # for the weights alone: nothing moves
        keys = {"optimizer__learning_rate": 1e-30, "optimizer__weight_decay": 0.0}
    train(source, workdir, **keys)
    words = {
        "run": f"step 3 of {source}",
        "imported": f"step 0 of {source}",
        "hugging_face": f"{source} (llama, ",
    }
    shown = capfd.readouterr()
    assert f"weights of {words[kind]}".replace(" ", "") in "".join((shown.out + shown.err).split())  # wrapped
    saved = run_lib.load_config(workdir / "config.json")
    assert (saved.model.num_layers, saved.model.vocab_size, saved.init_from) == (2, 416, str(source))
    assert load_tokenizer(workdir).sha256 == load_tokenizer(hugging_face).sha256
    loaded = run_lib.load_run(workdir)
    assert loaded.step == 3
    moved = [
        float(np.abs(np.asarray(new) - np.asarray(old)).max())
        for new, old in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(load(hugging_face)), strict=True)
    ]
    assert max(moved) < (0.1 if kind != "imported" else 1e-20)

    shutil.rmtree(source)
    train(source, workdir, train__num_steps=5, checkpoint__every_steps=5, **keys)
    assert run_lib.load_run(workdir).step == 5
    run_interop.export_hf(workdir, tmp_path / "out", say=lambda line: None)
    content, _ = artifact.verify(tmp_path / "out")
    assert content["origin"] == {"source": str(source), "model_type": "llama"}
    assert (content["step"], content["tokens"]) == (5, run_lib.load_run(workdir).meta.tokens)
    assert 0 < content["tokens"] <= 5 * 8 * 16
    assert content["sources"]["text"]["path"] == "embedded:licences"
    card = (tmp_path / "out" / "README.md").read_text()
    for said in ("embedded:licences", str(source), "100.0 %", content["tokenizer_sha256"], "bits_per_byte"):
        assert said in card
    assert_same_bits(load(tmp_path / "out"), run_lib.load_run(workdir).params)
    for name, file in gpt2().items():
        assert (tmp_path / "out" / name).read_bytes() == file


def test_first_losses_are_those_of_the_weights_and_not_of_random_ones(hugging_face, tmp_path):
    """A head that always says token 7 is as sure after import as before."""
    folder = tmp_path / "sure"
    shutil.copytree(hugging_face, folder)
    params = random_params(MODEL)
    write_checkpoint(folder, MODEL, jax.tree.map(lambda x: x * 0, params))
    scores = train(folder, tmp_path / "work", optimizer__learning_rate=1e-30, optimizer__weight_decay=0.0)
    loss = next(value for name, value in scores.items() if name.endswith("loss"))
    assert loss == pytest.approx(np.log(416), rel=1e-5)


def test_another_tokenizer_than_that_of_the_weights_is_refused(hugging_face, imported, tmp_path):  # pain 27
    other = tmp_path / "other"
    other.mkdir()
    for name, content in t5().items():
        (other / name).write_bytes(content)
    with pytest.raises(UserError, match="belong to the tokenizer .* the same ids would mean other text"):
        train(hugging_face, tmp_path / "one", tokenizer__path=str(other))
    with pytest.raises(
        UserError, match="was trained with the tokenizer .* the same ids would mean other text"
    ):
        train(imported, tmp_path / "two", tokenizer__path=str(other))


def test_weights_without_a_tokenizer_ask_for_one_and_take_any(tmp_path):
    source = write_checkpoint(tmp_path / "hf", MODEL, tokenizer=False)
    run_interop.import_hf(str(source), tmp_path / "run", say=lambda line: None)
    for place in (source, tmp_path / "run"):
        cfg = run_lib.resolve(config(place))
        with pytest.raises(
            UserError, match="has no tokenizer: set tokenizer.path to the one that its weights"
        ):
            origin.origin_tokenizer(cfg)
        start = origin.read_origin(str(place), build(MODEL, 16), None, "0" * 64)
        assert_same_bits(start.params, random_params(MODEL))


def test_the_same_tokenizer_may_be_named(hugging_face, tmp_path):
    train(hugging_face, tmp_path / "work", tokenizer__path=str(hugging_face))
    assert load_tokenizer(tmp_path / "work").sha256 == load_tokenizer(hugging_face).sha256


def test_weights_that_changed_since_the_config_was_read_are_refused(hugging_face, tmp_path):
    folder = tmp_path / "changing"
    shutil.copytree(hugging_face, folder)
    cfg = run_lib.resolve(config(folder))
    write_tensors(
        folder, {name: array for name, array in tensors_of(folder).items() if "layers.1" not in name}
    )
    written = json.loads((folder / "config.json").read_bytes()) | {"num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match="model.layers.1.* is missing.* Nothing was loaded"):
        run_lib.train(cfg, tmp_path / "work")
    assert Checkpoints(tmp_path / "work" / "checkpoints").latest_step() is None
