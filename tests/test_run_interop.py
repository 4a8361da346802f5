"""Promises of import-hf, export-hf and init_from, as commands: weights, model and tokenizer cross the border whole."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import small_tokenizers as small

from jaxlm.checkpoint import named_arrays
from jaxlm.cli import main as cli
from jaxlm.interop.families import family_for
from jaxlm.interop.hf_export import export_weights
from jaxlm.models.build import build
from jaxlm.models.config import ModelConfig
from jaxlm.models.sizes import size

GOLDEN = Path(__file__).parent / "interop" / "golden"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small Llama of Hugging Face with a byte-level tokenizer of its own."""
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    folder.mkdir()
    model = dataclasses.replace(size("tiny-llama"), vocab_size=512, max_seq_len=64)
    family, lm = family_for(model), build(model, 64)
    export_weights(folder, family, named_arrays(jax.jit(lm.init)(jax.random.key(1))))
    (folder / "config.json").write_text(json.dumps(family.write(model)))
    for name, content in small.level().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def imported(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "imported"
    assert cli.main(["import-hf", str(checkpoint), str(out)]) == 0
    return out


@pytest.mark.parametrize("name", sorted(path.parent.name for path in GOLDEN.glob("*/config.json")))
def test_a_file_that_goes_in_and_out_again_is_the_same_file(name, jaxlm, tmp_path):
    code, out, _ = jaxlm("import-hf", GOLDEN / name, tmp_path / "run")
    assert code == 0
    assert "<-" in out
    assert jaxlm("export-hf", f"--run={tmp_path / 'run'}", tmp_path / "out")[0] == 0
    assert (tmp_path / "out/model.safetensors").read_bytes() == (
        GOLDEN / name / "model.safetensors"
    ).read_bytes()
    before, after = (json.loads((f / "config.json").read_text()) for f in (GOLDEN / name, tmp_path / "out"))
    assert after["architectures"] == before["architectures"]
    assert after["torch_dtype"] == "bfloat16"
    assert jaxlm("artifact", "verify", tmp_path / "out")[0] == 0


def test_an_import_is_a_run_that_can_be_asked(imported, jaxlm):
    code, out, _ = jaxlm(
        "generate", f"--run={imported}", "--prompt=The list", "--max-new-tokens=4", "--temperature=0"
    )
    assert code == 0
    assert out.startswith("The list")
    code, out, _ = jaxlm("inspect", f"--run={imported}")
    assert code == 0
    assert "(llama)" in out


def test_the_tokenizer_leaves_as_it_came(checkpoint, imported, jaxlm, tmp_path):
    assert jaxlm("export-hf", f"--run={imported}", tmp_path / "out")[0] == 0
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (checkpoint / name).read_bytes()
    config = json.loads((tmp_path / "out/config.json").read_text())
    special = json.loads((checkpoint / "tokenizer.json").read_bytes())["added_tokens"]
    ids = {token["content"]: token["id"] for token in special}
    assert (config["bos_token_id"], config["eos_token_id"]) == (ids["<|begin|>"], ids["<|end|>"])


TRAIN = (
    "--config=continue_training", "--config.data.seq_len=32", "--config.train.eval_batches=1",
    "--config.optimizer.warmup_steps=1", "--config.checkpoint.every_steps=2", "--config.train.eval_every_steps=100",
)  # fmt: skip


@pytest.mark.slow
def test_a_run_starts_from_weights_and_goes_on_when_they_are_gone(checkpoint, jaxlm, tmp_path):
    source, workdir = tmp_path / "source", tmp_path / "run"
    shutil.copytree(checkpoint, source)
    argv = ["train", *TRAIN, f"--config.init_from={source}", f"--workdir={workdir}", "--config.mesh.fsdp=2",
            "--config.mesh.data=4", "--config.data.global_batch_size=8"]  # fmt: skip
    code, out, err = jaxlm(*argv, "--config.train.num_steps=2")
    assert code == 0, err
    assert f"weightsof{source}(llama" in "".join((out + err).split())  # wherever the screen breaks its lines
    config = json.loads((workdir / "config.json").read_text())
    assert (config["model"]["num_layers"], config["model"]["vocab_size"]) == (3, 512)
    shutil.rmtree(source)
    code, out, err = jaxlm(*argv, "--config.train.num_steps=4")
    assert code == 0, err
    assert "resumed from step 2" in out + err
    # What comes out says what it is made of.
    assert jaxlm("export-hf", f"--run={workdir}", tmp_path / "out")[0] == 0
    facts = json.loads((tmp_path / "out/artifact.json").read_text())
    assert facts["origin"] == {"source": str(source), "model_type": "llama"}
    assert facts["step"] == 4
    assert facts["tokens"] > 0
    card = (tmp_path / "out/README.md").read_text()
    for said in ("embedded:topics", str(source), "100.0 %", facts["tokenizer_sha256"], "bits_per_byte"):
        assert said in card


def test_training_starts_from_exactly_these_weights(imported, checkpoint):
    from jaxlm import run
    from jaxlm.origin import read_origin

    cfg = run.resolve({"init_from": str(imported), "data": {"sources": {"a": {"path": "embedded:topics"}}}})
    assert cfg.model.num_layers == 3
    lm = build(cfg.model, 64)
    sha256 = run.run_tokenizer(imported).sha256
    expected = jax.jit(lm.init)(jax.random.key(1))
    for source in (imported, checkpoint):
        start = read_origin(str(source), lm, None, sha256)
        jax.tree.map(np.testing.assert_array_equal, start.params, expected)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.model.num_layers=12"], "model.num_layers=12, but the weights of init_from={} have 3"),
        (
            ["--config.model.norm=layernorm"],
            "model.norm='layernorm', but the weights of init_from={} have 'rmsnorm'",
        ),
    ],
)
def test_a_model_that_contradicts_the_weights_is_an_error(imported, jaxlm, flags, said):
    code, _, err = jaxlm("config", f"--config=continue_training:{imported}", *flags)
    assert code == 2
    assert said.format(imported) in err


def test_a_longer_context_is_no_contradiction(imported, jaxlm):
    code, out, _ = jaxlm(
        "config", f"--config=continue_training:{imported}", "--json", "--config.model.rope_theta=1e6"
    )
    assert code == 0
    assert json.loads(out)["model"]["rope_theta"] == 1e6


def test_another_tokenizer_than_that_of_the_weights_is_an_error(checkpoint):
    from jaxlm.origin import read_origin
    from jaxlm.types import UserError

    with pytest.raises(UserError, match="belong to the tokenizer .* the same ids would mean other text"):
        read_origin(str(checkpoint), build(ModelConfig(vocab_size=8), 8), None, "0" * 64)


def test_a_checkpoint_without_a_tokenizer_can_be_kept_but_not_asked(jaxlm, tmp_path):
    code, out, _ = jaxlm("import-hf", GOLDEN / "llama", tmp_path / "run")
    assert (code, "has no tokenizer" in out) == (0, True)
    code, _, err = jaxlm("generate", f"--run={tmp_path / 'run'}", "--prompt=a")
    assert (code, "--tokenizer=PATH" in err) == (2, True)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["import-hf", "no-such-folder", "{new}"], "is neither a run nor a checkpoint (it does not exist)"),
        (["import-hf", "{imported}", "{new}"], "is a run of jaxlm already"),
        (["import-hf", "{checkpoint}", "{imported}"], "is there already and not empty"),
        (["import-hf", "{checkpoint}", "{new}", "--mesh=fspd:2"], "did you mean 'fsdp'"),
        (["import-hf", "{checkpoint}", "{new}", "--mesh=fsdp"], "is not AXIS:SIZE"),
        (["export-hf", "--run={imported}", "--step=7", "{new}"], "There is no checkpoint of step 7"),
        (["export-hf", "--run={imported}", "{imported}"], "is there already and not empty"),
        (["export-hf", "--run={new}", "{new}"], "holds no run"),
        (["artifact", "verify", "{imported}"], "artifact.json cannot be read"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(argv, said, checkpoint, imported, jaxlm, tmp_path):
    places = {"checkpoint": checkpoint, "imported": imported, "new": tmp_path / "new"}
    code, _, err = jaxlm(*(arg.format(**places) for arg in argv))
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_with_more_ids_than_rows_is_refused(checkpoint, jaxlm, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(GOLDEN / "llama", folder)
    shutil.copy(checkpoint / "tokenizer.json", folder)
    code, _, err = jaxlm("import-hf", folder, tmp_path / "run")
    assert code == 2
    assert "its embedding only 96 rows" in err


@pytest.mark.parametrize("mesh", ["fsdp:8", "fsdp:2,tensor:2,data:2"])
def test_an_import_is_spread_over_the_mesh_and_the_same(mesh, checkpoint, imported, jaxlm, tmp_path):
    from jaxlm.checkpoint import Checkpoints

    assert jaxlm("import-hf", checkpoint, tmp_path / "run", f"--mesh={mesh}")[0] == 0
    first, second = (
        (Checkpoints(folder / "checkpoints").read_meta(0), folder) for folder in (imported, tmp_path / "run")
    )
    assert first[0].arrays == second[0].arrays
    outs = [
        jaxlm("export-hf", f"--run={folder}", tmp_path / f"out{i}")[0]
        for i, (_, folder) in enumerate([first, second])
    ]
    assert outs == [0, 0]
    one, other = ((tmp_path / f"out{i}/model.safetensors").read_bytes() for i in range(2))
    assert one == other == (checkpoint / "model.safetensors").read_bytes()
