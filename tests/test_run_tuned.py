"""Promises of runs that train a part of the weights: what is saved where, and that others get the whole model."""

import json
import shutil

import jax
import numpy as np
import pytest
from slow import all_but, slow
from test_run import small, write_squares

from jaxlm import run
from jaxlm.checkpoint import Checkpoints, named_arrays
from jaxlm.origin import find_origin
from jaxlm.runconfig import load_config
from jaxlm.train.config import TuneConfig
from jaxlm.types import UserError

MODES = {
    "lora": {"tune__train": "lora", "tune__lora_rank": 2, "tune__lora_dropout": 0.1},
    "last_blocks": {"tune__train": "last_blocks", "tune__num_blocks": 1},
    "int8": {"tune__train": "lora", "tune__lora_rank": 2, "tune__quantize": "int8"},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("text") / "squares.txt")


@pytest.fixture(scope="module")
def base(text, tmp_path_factory):
    """A run of a model with two layers."""
    workdir = tmp_path_factory.mktemp("base") / "run"
    run.train(small(text, model__num_layers=2, optimizer__learning_rate=0.01, train__eval_batches=0), workdir)
    return workdir


@pytest.fixture(scope="module")
def tune(text, base):
    def config(mode, **changes):
        keys = {"model__num_layers": 2, "optimizer__learning_rate": 0.01, "train__eval_batches": 0}
        return small(text, init_from=str(base), **(keys | MODES[mode] | changes))

    return config


@pytest.fixture(scope="module")
def tuned(tune, tmp_path_factory):
    """mode -> the workdir of a run of two steps."""
    made = {}

    def make(mode):
        if mode not in made:
            made[mode] = tmp_path_factory.mktemp(mode) / "run"
            run.train(tune(mode, train__eval_batches=1), made[mode])
        return made[mode]

    return make


@pytest.fixture(scope="module")
def others(tune, tmp_path_factory):
    """The frozen folder of another run, of the same base and so the same shapes."""
    workdir = tmp_path_factory.mktemp("other") / "run"
    run.train(tune("lora", seed=1, train__num_steps=1), workdir)
    return workdir / "frozen"


def params_of(workdir):
    return run.load_run(workdir).params


def arrays_of(workdir, folder="checkpoints"):
    checkpoints = Checkpoints(workdir / folder)
    return checkpoints.read_meta(checkpoints.latest_step()).arrays


@pytest.mark.parametrize("mode", all_but(("int8",), MODES))
def test_what_is_frozen_is_saved_once_and_never_changes(mode, tuned, base):
    workdir = tuned(mode)
    assert [path.name for path in (workdir / "frozen").iterdir()] == ["0"]
    trained = {name for name in arrays_of(workdir) if name.startswith("params/")}
    frozen = set(arrays_of(workdir, "frozen"))
    moments = {name for name in arrays_of(workdir) if name.startswith("opt_state/")}
    assert len(moments) <= 2 * len(trained) + 3
    assert "params/embedding" in frozen - trained
    before, after = named_arrays(params_of(base)), named_arrays(params_of(workdir))
    assert before.keys() == after.keys()
    np.testing.assert_array_equal(before["embedding"], after["embedding"])
    q = "layers/attention/q"
    assert not np.array_equal(before[q], after[q])
    if mode == "last_blocks":
        np.testing.assert_array_equal(before[q][0], after[q][0])
        assert after[q].shape == before[q].shape
    else:
        assert all("/lora/" in name for name in trained)
        assert all("/lora/" not in name for name in frozen)


@pytest.mark.parametrize("mode", all_but(("lora",), MODES))
def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(mode, tuned, tune, tmp_path, capsys):
    workdir = tmp_path / "run"
    run.train(tune(mode, train__num_steps=1), workdir)
    seal = (workdir / "frozen/0/integrity.json").read_bytes()
    run.train(tune(mode), workdir)
    extra = Checkpoints(workdir / "checkpoints").read_meta(2).extra
    assert extra["frozen"] == Checkpoints(workdir / "frozen").read_meta(0).extra["id"]
    assert extra["origin"]["source"]
    assert "resumed from step 1" in capsys.readouterr().out
    assert (workdir / "frozen/0/integrity.json").read_bytes() == seal
    jax.tree.map(np.testing.assert_array_equal, params_of(workdir), params_of(tuned(mode)))


def test_frozen_weights_that_are_gone_or_damaged_are_named(tuned, tune, tmp_path):
    workdir = shutil.copytree(tuned("lora"), tmp_path / "run")
    data = max(
        (workdir / "frozen/0/state").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size
    )
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(UserError, match=r"No good checkpoint is left in .*frozen"):
        run.train(tune("lora", train__num_steps=3), workdir)
    shutil.rmtree(workdir / "frozen")
    for use in (lambda: run.load_run(workdir), lambda: run.train(tune("lora", train__num_steps=3), workdir)):
        with pytest.raises(UserError, match=r"frozen is missing: it holds the weights .* Put it back"):
            use()


def test_weights_that_another_run_has_frozen_are_refused(tuned, tune, others, tmp_path):
    workdir = shutil.copytree(tuned("lora"), tmp_path / "run")
    shutil.rmtree(workdir / "frozen")
    shutil.copytree(others, workdir / "frozen")
    for use in (lambda: run.load_run(workdir), lambda: run.train(tune("lora", train__num_steps=3), workdir)):
        with pytest.raises(
            UserError, match=r"frozen holds the weights that another run has frozen \(id \w+, the"
        ):
            use()


def test_what_an_earlier_start_left_frozen_is_written_anew(tuned, tune, others, tmp_path):
    shutil.copytree(others, tmp_path / "run/frozen")
    shutil.copy(tuned("lora") / "config.json", tmp_path / "run")
    run.train(tune("lora"), tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, params_of(tmp_path / "run"), params_of(tuned("lora")))


@pytest.mark.parametrize("mode", ["lora", slow("int8")])
def test_a_run_starts_from_all_weights_of_a_tuned_one(mode, tuned, tune, text, tmp_path):
    workdir = tmp_path / "run"
    run.train(
        small(text, init_from=str(tuned(mode)), model__num_layers=2, optimizer__learning_rate=0.0), workdir
    )
    found, expected = params_of(workdir), params_of(tuned(mode))  # merged on eight devices, and on one
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=0, atol=1e-7), found, expected)
    assert find_origin(str(tuned(mode))).model == find_origin(str(workdir)).model


def test_merging_makes_a_run_that_computes_the_same(tuned, base, jaxlm, tmp_path):  # pain 25
    code, out, err = jaxlm("merge-lora", f"--run={tuned('lora')}", tmp_path / "merged")
    assert code == 0, err
    assert "step 2, merged in float32. Logits of merged and adapted weights differ by at most" in out
    jax.tree.map(np.testing.assert_array_equal, params_of(tmp_path / "merged"), params_of(tuned("lora")))
    assert run.load_run(tmp_path / "merged").config.tune == TuneConfig()
    code, _, err = jaxlm("merge-lora", f"--run={base}", tmp_path / "other")
    assert (code, "has no adapters: tune.train='all'" in err) == (2, True)
    code, _, err = jaxlm("merge-lora", f"--run={tuned('lora')}", tmp_path / "merged")
    assert (code, "is there already and not empty" in err) == (2, True)


def test_merging_refuses_what_does_not_compute_the_same_or_changes_nothing(
    tuned, tune, tmp_path, monkeypatch
):  # pain 25
    from jaxlm import run_lora
    from jaxlm.train import tuning

    workdir = tmp_path / "run"
    run.train(tune("lora", optimizer__learning_rate=0.0), workdir)
    with pytest.raises(UserError, match="adapters of step 2 of .* change nothing: nothing was written"):
        run_lora.merge_lora(workdir, tmp_path / "out")
    right = tuning.low_rank
    monkeypatch.setattr(tuning, "low_rank", lambda a, b, num_in: 1.1 * right(a, b, num_in))
    with pytest.raises(
        UserError, match="logits of merged and adapted weights differ by .* nothing was written"
    ):
        run_lora.merge_lora(tuned("lora"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapters_are_exported_as_peft_names_them(tuned, jaxlm, tmp_path):
    from safetensors.numpy import load_file

    code, out, err = jaxlm("export-hf", "--adapter", f"--run={tuned('lora')}", tmp_path / "adapter")
    assert code == 0, err
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    shapes = {name: tensor.shape for name, tensor in tensors.items() if ".layers.1." in name}
    prefix = "base_model.model.model.layers.1"
    assert shapes[f"{prefix}.self_attn.q_proj.lora_A.weight"] == (2, 16)
    assert shapes[f"{prefix}.self_attn.o_proj.lora_B.weight"] == (16, 2)
    assert shapes[f"{prefix}.mlp.down_proj.lora_A.weight"] == (2, 64)
    assert len(shapes) == 14
    facts = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (facts["r"], facts["lora_alpha"], facts["lora_dropout"]) == (2, 16.0, 0.1)
    assert len(facts["target_modules"]) == 7
    # x A^T B^T alpha / r is what the merged weights have on top.
    checkpoints = Checkpoints(tuned("lora") / "frozen")
    assert checkpoints.latest_step() == 0
    assert sum(path.stat().st_size for path in (tmp_path / "adapter").iterdir()) < 40_000


def test_tuning_needs_weights_and_cannot_change_on_the_way(tuned, tune, text):
    with pytest.raises(UserError, match="tune.train='lora' freezes weights that init_from brings"):
        run.train(small(text, tune__train="lora"), "nowhere")
    with pytest.raises(UserError, match=r"belongs to another config: tune\.lora_rank was 2, now 3"):
        run.train(tune("lora", tune__lora_rank=3), tuned("lora"))
    assert load_config(tuned("lora") / "config.json").tune != TuneConfig()
