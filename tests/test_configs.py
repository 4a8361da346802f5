"""Every config in configs/ builds and resolves, and says how to run it."""

import ast
import json
from pathlib import Path

import pytest

from jaxlm.corpus.raw import config as corpora
from jaxlm.run import parse, resolve

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


def test_there_are_configs():
    assert "quickstart" in [path.stem for path in CONFIGS]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_resolves(path, tmp_path):
    if path.stem.startswith("corpus_"):
        corpora.resolve(corpora.parse([f"--config={path}"]))
        return
    argument = ""
    if path.stem == "pretrain_corpus":
        sources = {"books": {"path": "books", "weight_tokens": 1.0}}
        (tmp_path / "corpus.json").write_text(json.dumps({"sources": sources, "budget_tokens": 1e6}))
        argument = f":{tmp_path}"
    resolve(parse([f"--config={path}{argument}"]))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_says_with_which_command_it_runs(path):
    assert f"--config={path.stem}" in (ast.get_docstring(ast.parse(path.read_text())) or "")
