"""What `make release-check` relies on; that wheel and sdist install and train, it shows itself."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jaxlm
from jaxlm.cli import main as cli

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("licences", ROOT / ".ci/licences.py")
licences = importlib.util.module_from_spec(spec)
spec.loader.exec_module(licences)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_is_that_of_the_installed_package_and_is_said(capsys):
    assert jaxlm.__version__ == importlib.metadata.version("jaxlm")
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"jaxlm {jaxlm.__version__} (python ")
    with pytest.raises(AttributeError, match="nothing"):
        jaxlm.nothing  # noqa: B018


def test_a_source_tree_that_is_not_installed_still_has_a_version(tmp_path):
    code = "import jaxlm; print(jaxlm.__version__)"
    env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.stdout == "0+not.installed\n", done.stderr


def test_types_are_shipped_and_the_sdist_has_what_its_tests_read():
    assert (ROOT / "jaxlm/py.typed").exists()
    include = set(PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
    parts = {
        path.name for path in ROOT.iterdir() if (path.suffix in (".md", ".yml") or path.name == "Makefile")
    }
    assert parts <= include
    assert {".ci", "jaxlm", "configs", "tests", "docs", "launch", "parity", "bench"} <= include


@pytest.mark.skipif("JAXLM_LOWEST" in os.environ, reason="old versions bring other packages along")
def test_every_package_that_comes_along_is_listed_with_its_licence():
    """`make release-check` asks the same of all extras, installed together."""
    found, _ = licences.here()
    assert {"jax", "flax", "numpy"} <= set(found)
    listed = licences.listed(licences.PAGE.read_text())
    assert licences.problems(found, listed) == []


def test_a_package_that_is_new_changed_or_not_permissive_is_named():
    page = {"a": ("MIT", ["jaxlm"]), "b": ("MIT", ["jaxlm"])}
    found = {
        "a": ("GPL-3.0-only", ["jaxlm"]),
        "b": ("MIT", ["jaxlm"]),
        "c": ("ISC", ["hf"]),
        "tqdm": ("unknown", []),
    }
    lines = licences.problems(found, page | {"tqdm": ("unknown", [])})
    assert [line.split(" (")[0] for line in lines] == ["a", "a", "c", "tqdm"]
    assert "new, under ISC" in lines[2]


@pytest.mark.parametrize(
    ("expression", "is_permissive"),
    [("MIT", True), ("Apache-2.0 OR GPL-2.0-only", True), ("MIT AND MPL-2.0", False), ("GPL-3.0-only", False),
     ("(MIT OR LGPL-2.1-only) AND BSD-3-Clause", True), ("unknown", False)],
)  # fmt: skip
def test_an_expression_is_permissive_if_one_may_choose_so(expression, is_permissive):
    assert licences.permissive(expression) is is_permissive


def test_the_changelog_has_sections_as_keep_a_changelog_wants_them():
    text = (ROOT / "CHANGELOG.md").read_text()
    sections = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert all(
        re.fullmatch(r"\[(Unreleased|\d+\.\d+\.\d+)\](?: - \d{4}-\d\d-\d\d)?", one) for one in sections
    )
    kinds = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
