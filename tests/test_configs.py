"""Every config in configs/ builds and resolves, and says how to run it."""

import ast
from pathlib import Path

import pytest

from jaxlm.run import parse, resolve

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


def test_there_are_configs():
    assert "quickstart" in [path.stem for path in CONFIGS]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_resolves(path):
    resolve(parse([f"--config={path}"]))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_says_with_which_command_it_runs(path):
    assert f"--config={path.stem}" in (ast.get_docstring(ast.parse(path.read_text())) or "")
