"""Promises of `jaxlm corpus build`: the flags reach the build, the summary is right, mistakes are one line."""

import argparse
import json
import os
import subprocess
import sys

import pytest

from jaxlm.cli import corpus as cli
from jaxlm.data.manifest import read_manifest
from jaxlm.data.shards import TokenStore
from jaxlm.data.tokenizer_training import train_tokenizer
from jaxlm.types import UserError


def run(*argv, config_argv=()):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return cli.main(parser.parse_args([str(arg) for arg in argv]), list(config_argv))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "a.model"
    path.write_bytes(train_tokenizer(["the lion is in the zoo\n"], "char", 0))
    return path


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "in").mkdir()
    with open(tmp_path / "in" / "a.jsonl", "w") as file:
        file.writelines(json.dumps({"body": f"the lion {i}"}) + "\n" for i in range(200))
        file.write('{"body": ""}\n')
    return tmp_path / "in"


def test_flags_reach_the_build_and_the_summary_counts(raw, model, tmp_path, capsys):
    code = run("build", "--input", raw, "--output", tmp_path / "out", "--tokenizer", model, "--text-key", "body",
               "--eval-fraction", 0.1, "--shard-tokens", 500, "--workers", 1)  # fmt: skip
    assert code == 0
    out = capsys.readouterr().out
    manifest = read_manifest(tmp_path / "out")
    train, held_out = (manifest["splits"][name] for name in ("train", "eval"))
    assert train["num_documents"] + held_out["num_documents"] == 200
    assert 5 <= held_out["num_documents"] <= 40
    assert f"train: {train['num_documents']} documents, {train['num_tokens']:,} tokens" in out
    assert "dropped: empty 1" in out
    assert TokenStore(tmp_path / "out", "train").num_tokens == train["num_tokens"]


def test_tail_split_and_replacement_reach_the_build(model, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 the lion")
    run("build", "--input", tmp_path / "a.txt", "--output", tmp_path / "out", "--tokenizer", model,
        "--eval-fraction", 0.5, "--eval-split", "tail", "--invalid-utf8", "replace", "--quiet")  # fmt: skip
    manifest = read_manifest(tmp_path / "out")
    assert manifest["splits"]["eval"]["num_documents"] == 1
    assert manifest["changed"] == {"invalid_utf8": 1}


def test_one_document_is_split_at_its_tail_and_that_is_said(model, tmp_path, capsys):
    (tmp_path / "book.txt").write_text("the lion is in the zoo\n" * 50)
    run("build", "--input", tmp_path / "book.txt", "--output", tmp_path / "out", "--tokenizer", model,
        "--eval-fraction", 0.1)  # fmt: skip
    assert read_manifest(tmp_path / "out")["source"]["eval_split"] == "tail"
    assert "book.txt holds one document, and eval_split=hash" in capsys.readouterr().out.splitlines()[-1]


def test_an_empty_output_is_refused(raw, model):
    with pytest.raises(UserError, match="The output is empty"):
        run("build", "--input", raw, "--output", "", "--tokenizer", model, "--text-key", "body")


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--eval-fraction", "1.5"], "--eval-fraction=1.5 must be in [0, 1)"),
        (["--shard-tokens", "0"], "--shard-tokens=0 must be at least 1"),
        (["--workers", "0"], "workers=0 must be at least 1"),
        ([], "no key 'text' in this row"),
    ],
)
def test_mistakes_are_one_line(raw, model, tmp_path, flags, part):
    with pytest.raises(UserError) as caught:
        run("build", "--input", raw, "--output", tmp_path / "out", "--tokenizer", model, *flags)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_config_flags_are_refused(raw, model, tmp_path):
    with pytest.raises(UserError, match="--input does not go with --config"):
        run(
            "build",
            "--input",
            raw,
            "--output",
            tmp_path / "out",
            "--tokenizer",
            model,
            config_argv=["--config=x"],
        )


def test_the_flags_are_known_without_importing_numpy_or_jax():
    code = (
        "import argparse, sys; import jaxlm.cli.corpus as c, jaxlm.cli.tokenizer as t\n"
        "for m in (c, t): m.add_arguments(argparse.ArgumentParser())\n"
        "print([name for name in ('jax', 'numpy', 'sentencepiece', 'array_record') if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
