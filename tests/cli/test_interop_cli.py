"""Promises of `import-hf`, `export-hf` and `artifact`: a model in, asked, and out again; one line for each mistake."""

import dataclasses
import errno
import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
from small_checkpoints import random_params, tensors_of, write_checkpoint, write_tensors
from small_tokenizers import gpt2

from jaxlm import processes, run_interop
from jaxlm.checkpoint import Checkpoints
from jaxlm.interop import safetensors
from jaxlm.interop.hub import fetch
from jaxlm.models import sizes
from jaxlm.origin import find_origin

MODEL = dataclasses.replace(sizes.size("tiny-qwen3"), num_layers=2, vocab_size=416)


@pytest.fixture
def fails(jaxlm):
    """fails("import-hf", ...) -> the one line it says, with nothing on stdout."""

    def call(*argv):
        code, out, err = jaxlm(*argv)
        assert (code, out, err.count("\n")) == (2, "", 1), (code, out, err)
        assert err.startswith("jaxlm: error: ")
        return err.removeprefix("jaxlm: error: ")

    return call


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("hf") / "source", MODEL, random_params(MODEL, "bfloat16"))


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    run_interop.import_hf(str(source), out, say=lambda line: None)
    return out


@pytest.fixture
def plain(tmp_path):
    """--config= a file that sets no field of the model."""
    path = tmp_path / "plain.py"
    path.write_text(
        "from jaxlm import run\n\n\ndef get_config():\n    cfg = run.default_config()\n"
        "    cfg.data.sources.text = dict(path='embedded:topics', weight_tokens=1.0)\n    return cfg\n"
    )
    return f"--config={path}"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# In and out.


def test_import_says_what_was_mapped_and_where_it_is(jaxlm, source, tmp_path):
    written = json.loads((source / "config.json").read_bytes()) | {
        "strange": 3,
        "auto_map": {"AutoModel": "x.Y"},
    }
    shutil.copytree(source, tmp_path / "source")
    (tmp_path / "source" / "config.json").write_text(json.dumps(written))
    code, out, err = jaxlm("import-hf", tmp_path / "source", tmp_path / "run")
    assert (code, err) == (0, "")
    for line in (
        "note: auto_map is ignored: no code of a checkpoint is ever run.",
        "note: keys of config.json that jaxlm does not know were not used: strange=3",
        f"{tmp_path}/source (qwen3, 24 tensors, bfloat16)",
        "layers/attention/q [2, 32, 4, 16] <- 2 x model.layers.*.self_attn.q_proj.weight [64, 32], transposed",
        "embedding [416, 32] <- 1 x model.embed_tokens.weight [416, 32]",
    ):
        assert line in out.splitlines()
    assert out.splitlines()[-1].startswith(f"{tmp_path}/run: checkpoint 0, and its tokenizer of 400 ids (")


def test_what_was_imported_can_be_asked(jaxlm, source, run):
    code, out, _ = jaxlm("generate", f"--run={run}", "--prompt=the lion", "--max-new-tokens=4", "--seed=1")
    assert code == 0
    assert out.startswith("the lion")
    code, out, _ = jaxlm("next-token", f"--run={run}", "--prompt=the lion", "--json")
    assert code == 0
    assert json.loads(out)["top"]
    code, out, _ = jaxlm("inspect", f"--run={run}")
    assert code == 0
    assert "params/embedding" in out
    assert f"{source} (qwen3)" in out


def test_what_has_no_tokenizer_can_be_kept_but_not_asked(fails, jaxlm, source, tmp_path):
    write_checkpoint(tmp_path / "source", MODEL, tokenizer=False)
    code, out, _ = jaxlm("import-hf", tmp_path / "source", tmp_path / "run")
    assert (code, "has no tokenizer" in out) == (0, True)
    assert "--tokenizer=PATH" in fails("generate", f"--run={tmp_path / 'run'}", "--prompt=a")
    assert jaxlm("export-hf", f"--run={tmp_path / 'run'}", tmp_path / "out")[0] == 0
    assert "tokenizer.json" not in names(tmp_path / "out")
    code, out, _ = jaxlm("import-hf", tmp_path / "source", tmp_path / "with", f"--tokenizer={source}")
    assert (code, "its tokenizer of 400 ids" in out) == (0, True)


def test_a_model_leaves_as_the_family_it_came_from_though_another_could_say_it(jaxlm, tmp_path):
    names = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
    model = dataclasses.replace(sizes.size("tiny-llama"), num_layers=2, vocab_size=416)
    write_checkpoint(tmp_path / "source", model, **names)
    assert jaxlm("import-hf", tmp_path / "source", tmp_path / "run")[0] == 0
    assert jaxlm("export-hf", f"--run={tmp_path / 'run'}", tmp_path / "out")[0] == 0
    config = json.loads((tmp_path / "out" / "config.json").read_bytes())
    assert {key: config[key] for key in names} == names


def test_what_was_imported_is_exported_to_the_same_weights_config_and_tokenizer(jaxlm, source, run, tmp_path):
    out = tmp_path / "out"
    code, said, err = jaxlm("export-hf", f"--run={run}", out)
    assert (code, err) == (0, "")
    assert said == (
        f"{out}: Qwen3ForCausalLM, step 0, 42,208 parameters in bfloat16; check it with `jaxlm artifact verify {out}`\n"
    )
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    for name, content in gpt2().items():
        assert (out / name).read_bytes() == content
    theirs = json.loads((source / "config.json").read_bytes())
    ours = json.loads((out / "config.json").read_bytes())
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    assert ours == theirs | {"torch_dtype": "bfloat16"} | ids
    assert json.loads((out / "generation_config.json").read_bytes()) == ids
    code, said, _ = jaxlm("artifact", "verify", out)
    assert code == 0
    assert "as exported (step 0)" in said
    content = json.loads(jaxlm("artifact", "verify", out, "--json")[1])
    assert content["origin"] == {"source": str(source), "model_type": "qwen3"}
    assert content["files"].keys() == set(names(out)) - {"artifact.json"}
    card = (out / "README.md").read_text()
    for words in (
        "Qwen3ForCausalLM",
        str(source),
        content["tokenizer_sha256"],
        "Nothing was trained here",
        "Converted with jaxlm",
    ):
        assert words in card
    assert names(tmp_path) == ["out"]


def test_dtype_and_shards_of_an_export_can_be_chosen(jaxlm, run, tmp_path):
    flags = ("--dtype=float16", "--max-shard-bytes=30000", "--step=0")
    assert jaxlm("export-hf", f"--run={run}", *flags, tmp_path / "out")[0] == 0
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    assert {str(array.dtype) for array in tensors_of(tmp_path / "out").values()} == {"float16"}
    assert json.loads((tmp_path / "out" / "config.json").read_bytes())["torch_dtype"] == "float16"
    assert jaxlm("artifact", "verify", tmp_path / "out")[0] == 0


@pytest.mark.parametrize(("place", "out"), [(".", "here/"), ("here", "."), (".", "link")])
def test_an_export_replaces_an_empty_folder_also_where_it_stands_in_it(
    place, out, jaxlm, run, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    monkeypatch.chdir(tmp_path / place)
    assert jaxlm("export-hf", f"--run={run}", out)[0] == 0
    assert jaxlm("artifact", "verify", tmp_path / "here")[0] == 0
    assert json.loads((tmp_path / "here" / "artifact.json").read_bytes())["name"] == "here"
    assert names(tmp_path) == ["here", "link"]


def test_a_mesh_spreads_the_reading_and_changes_nothing(jaxlm, source, run, tmp_path):
    assert jaxlm("import-hf", source, tmp_path / "run", "--mesh=tensor:1, fsdp:4,data:2")[0] == 0
    jaxlm("export-hf", f"--run={tmp_path}/run", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        source / "model.safetensors"
    ).read_bytes()


def by_two_processes(sources, out):
    """(exit code, stdout, stderr) of two processes that import together, each from a source of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_NUM_PROCESSES": "2"}
    flags["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "jaxlm", "import-hf", str(source), str(out)],
            env=os.environ | flags | {"JAX_PROCESS_ID": str(index)},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for index, source in enumerate(sources)
    ]  # fmt: skip
    try:
        return [(p.wait(), out, err) for p in started for out, err in [p.communicate(timeout=50)]]
    finally:
        for process in started:
            process.kill()


def test_two_processes_import_together(jaxlm, source, tmp_path):
    (code, first, said), (other_code, second, other_said) = by_two_processes([source] * 2, tmp_path / "run")
    assert (code, other_code) == (0, 0), (said, other_said)
    assert "checkpoint 0" in first
    assert "checkpoint 0" not in second
    assert jaxlm("export-hf", f"--run={tmp_path}/run", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        source / "model.safetensors"
    ).read_bytes()


def test_what_is_wrong_at_one_process_ends_both_at_once(source, tmp_path):
    shutil.copytree(source, tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").unlink()
    for code, _, err in by_two_processes([source, tmp_path / "source"], tmp_path / "run"):
        assert code == 2
        assert f"{tmp_path}/source holds no safetensors file" in err
    assert names(tmp_path) == ["source"]


# Mistakes.


@pytest.mark.parametrize(
    ("mesh", "message"),
    [("fspd:2", "--mesh='fspd' is not one of data, fsdp, expert, sequence, tensor; did you mean 'fsdp'?"),
     ("fsdp", "'fsdp' is not AXIS:SIZE"), ("fsdp:two", "'fsdp:two' is not AXIS:SIZE"), ("", "--mesh='' is not one of"),
     ("fsdp:2,fsdp:4", "'fsdp:4' names an axis twice"), ("fsdp:0", "mesh.fsdp=0 must be a positive"),
     ("fsdp:3", "must multiply to the 8 devices"), ("tensor:8", "must be a multiple of mesh.tensor=8"),
     ("fsdp:-1,data:-1", "Only one of"), ("expert:2", "mesh.expert=2 has nothing to split")],
)  # fmt: skip
def test_a_mesh_that_is_none_is_refused(mesh, message, jaxlm, source, tmp_path):
    code, _, err = jaxlm("import-hf", source, tmp_path / "run", f"--mesh={mesh}")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert names(tmp_path) == []


def test_import_takes_nothing_but_a_checkpoint_and_a_new_folder(fails, source, run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    (tmp_path / "file").write_text("")
    for out in ("full", "file"):
        assert f"{tmp_path / out} is there already and not empty" in fails(
            "import-hf", source, tmp_path / out
        )
    assert "is a run of jaxlm already: give it to --run or init_from" in fails(
        "import-hf", run, tmp_path / "a"
    )
    assert "is neither a run nor a checkpoint (it does not exist)" in fails(
        "import-hf", "no/such/x", tmp_path / "a"
    )
    assert "import-hf takes its config from SOURCE" in fails(
        "import-hf", source, tmp_path / "a", "--config.seed=3"
    )
    assert "the following arguments are required: SOURCE, DIR" in fails("import-hf")
    assert not (tmp_path / "a").exists()
    assert names(tmp_path / "full") == ["x"]


def test_a_tokenizer_that_does_not_fit_is_refused(fails, tmp_path):
    small = dataclasses.replace(MODEL, vocab_size=399)
    write_checkpoint(tmp_path / "small", small)
    message = fails("import-hf", tmp_path / "small", tmp_path / "run")
    assert "its tokenizer has 400 ids, but its embedding only 399 rows" in message
    assert not (tmp_path / "run").exists()


def test_a_damaged_source_leaves_nothing_behind(fails, source, tmp_path):
    shutil.copytree(source, tmp_path / "source")
    tensors = tensors_of(source)
    tensors.pop("model.norm.weight")
    write_tensors(tmp_path / "source", tensors)
    assert "model.norm.weight [32] is missing" in fails("import-hf", tmp_path / "source", tmp_path / "run")
    assert names(tmp_path) == ["source"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_import_that_is_cut_off_leaves_no_run(error, source, tmp_path, monkeypatch):
    def cut(self, *args):
        raise error

    monkeypatch.setattr(Checkpoints, "save", cut)
    with pytest.raises(type(error)):
        run_interop.import_hf(str(source), tmp_path / "run", say=lambda line: None)
    assert names(tmp_path) == []


def test_the_config_comes_last_so_that_a_killed_import_is_no_run(fails, source, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("jaxlm.runconfig.save_config", lambda path, cfg: seen.append(names(path.parent)))
    run_interop.import_hf(str(source), tmp_path / "run", say=lambda line: None)
    assert seen == [["checkpoints", "tokenizer"]]
    assert "holds no run: config.json is missing" in fails("generate", f"--run={tmp_path}/run", "--prompt=a")
    assert "is there already and not empty" in fails("import-hf", source, tmp_path / "run")


def test_export_needs_a_run_a_step_and_a_new_folder(fails, run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    for flags, message in (
        ([f"--run={run}", tmp_path / "full"], "is there already and not empty"),
        (["--run=/no/such/run", tmp_path / "out"], "--run=/no/such/run holds no run"),
        ([f"--run={run}", "--step=7", tmp_path / "out"], "There is no checkpoint of step 7"),
        ([f"--run={run}", "--step=-1", tmp_path / "out"], "There is no checkpoint of step -1"),
        ([f"--run={run}", "--dtype=int8", tmp_path / "out"], "invalid choice: 'int8'"),
        ([f"--run={run}", "--max-shard-bytes=0", tmp_path / "out"], "--max-shard-bytes=0 must be positive"),
        ([f"--run={run}", "gs://bucket/out"], "an export is written to this machine"),
        ([f"--run={run}", tmp_path / "full" / "x" / "out"], "x"),
        ([f"--run={run}"], "the following arguments are required: OUT"),
    ):
        assert message in fails("export-hf", *flags)
    assert names(tmp_path) == ["full"]


def test_a_run_without_its_tokenizer_or_config_is_not_exported(fails, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "tokenizer")
    assert "tokenizer" in fails("export-hf", f"--run={tmp_path}/run", tmp_path / "out")
    assert names(tmp_path) == ["run"]


def test_a_model_that_no_family_has_is_refused_before_anything_is_written(fails, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "config.json").read_bytes())
    saved["model"]["logits_softcap"] = 5.0
    (tmp_path / "run" / "config.json").write_text(json.dumps(saved))
    message = fails("export-hf", f"--run={tmp_path}/run", tmp_path / "out")
    assert (
        "No architecture of Hugging Face is this model: qwen3, the closest, has no model.logits_softcap=5.0"
        in message
    )
    assert names(tmp_path) == ["run"]


def test_a_full_disk_leaves_nothing_of_an_export(fails, run, tmp_path, monkeypatch):
    real = safetensors._parts

    def full(specs, tensors):
        yield next(real(specs, tensors))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors, "_parts", full)
    assert "the disk is full; nothing half-written was kept" in fails(
        "export-hf", f"--run={run}", tmp_path / "out"
    )
    monkeypatch.setattr(safetensors, "_parts", real)

    def over_quota(*args):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr("jaxlm.interop.artifact.seal", over_quota)
    assert "the disk is full" in fails("export-hf", f"--run={run}", tmp_path / "out")
    assert names(tmp_path) == []


def test_an_export_never_replaces_what_came_meanwhile(fails, run, tmp_path, monkeypatch):
    def other(folder, *args):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "x").write_text("mine")

    monkeypatch.setattr("jaxlm.interop.artifact.seal", other)
    assert "has come to be while this was exported" in fails("export-hf", f"--run={run}", tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["x"]


def test_export_is_for_one_process(fails, run, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    message = fails("export-hf", f"--run={run}", tmp_path / "out")
    assert "export-hf is done by one process, and this is one of 2: start it once" in message


def test_verify_names_what_changed(fails, jaxlm, run, tmp_path):
    jaxlm("export-hf", f"--run={run}", tmp_path / "out")
    (tmp_path / "out" / ".gitattributes").write_text("*.safetensors filter=lfs")
    code, said, _ = jaxlm("artifact", "verify", tmp_path / "out")
    assert code == 0
    assert said.splitlines()[1:] == ["Not compared, since the hub added it: .gitattributes"]
    with open(tmp_path / "out" / "README.md", "a") as file:
        file.write("and it is very good")
    assert "README.md has" in fails("artifact", "verify", tmp_path / "out")
    assert "artifact.json cannot be read" in fails("artifact", "verify", tmp_path)


def test_config_names_what_contradicts_the_source(fails, source):
    message = fails("config", f"--config=continue_training:{source}", "--config.model.num_layers=9")
    assert f"model.num_layers=9, but the weights of init_from={source} have 2" in message


# The hub.


@pytest.fixture
def hub(source, tmp_path, monkeypatch):
    """A cache that holds owner/tiny, and no network."""
    from huggingface_hub import constants

    home = tmp_path / "hub"
    repository = home / "models--owner--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "blobs").mkdir()
    (repository / "snapshots" / commit).mkdir(parents=True)
    for path in source.iterdir():
        shutil.copy(path, repository / "blobs" / f"hash-of-{path.name}")
        (repository / "snapshots" / commit / path.name).symlink_to(f"../../blobs/hash-of-{path.name}")
    # The variables $HF_HOME and $HF_HUB_OFFLINE are read when the package is imported.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetch.cache_clear()
    yield commit
    fetch.cache_clear()


@pytest.mark.parametrize("revision", ["", "@main", "@commit"])
def test_a_name_on_the_hub_is_read_from_its_cache(revision, hub, jaxlm, source, tmp_path):
    name = "owner/tiny" + revision.replace("commit", hub)
    code, out, err = jaxlm("import-hf", name, tmp_path / "run")
    assert (code, err) == (0, "")
    assert jaxlm("export-hf", f"--run={tmp_path}/run", tmp_path / "out")[0] == 0
    content = json.loads((tmp_path / "out" / "artifact.json").read_bytes())
    assert content["origin"]["source"] == name
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        source / "model.safetensors"
    ).read_bytes()


def test_the_hub_is_asked_once_for_a_config_and_once_for_the_weights_of_that_commit(
    hub, jaxlm, plain, monkeypatch
):
    import huggingface_hub

    asked = []
    real = huggingface_hub.snapshot_download

    def recorded(*args, **options):
        asked.append((options["revision"], [p for p in options["allow_patterns"] if "safetensors" in p]))
        return real(*args, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", recorded)
    assert jaxlm("config", plain, "--config.init_from=owner/tiny")[0] == 0
    find_origin("owner/tiny")
    assert asked == [(None, [])]
    for _ in range(2):
        find_origin("owner/tiny", weights=True)
    assert asked[1:] == [(hub, ["*.safetensors", "*.safetensors.index.json"])]


def test_a_hub_that_cannot_be_reached_says_what_to_check(hub, fails, tmp_path, monkeypatch):
    import huggingface_hub

    def refused(*args, **options):
        raise ConnectionError("Connection refused")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    message = fails("import-hf", "owner/tiny", tmp_path / "run")
    assert "owner/tiny is no folder here, and could not be fetched from the" in message
    assert "(ConnectionError: Connection refused)" in message
    assert "Check its name, the network, and $HF_TOKEN" in message


def test_a_model_that_is_not_in_the_cache_says_what_to_check(hub, fails, tmp_path):
    for name in ("owner/other", "owner/tiny@other"):
        message = fails("import-hf", name, tmp_path / "run")
        assert f"{name} is no folder here, and not in the cache of the Hugging Face hub (" in message
        assert "HF_HUB_OFFLINE forbids to fetch it" in message
    assert not (tmp_path / "run").exists()


def test_a_missing_package_says_how_to_install_it(fails, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'jaxlm[hf]'" in fails("import-hf", "owner/tiny", tmp_path / "run")
