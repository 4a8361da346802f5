"""A plain `pip install jaxlm` brings all that its modules import, in versions that are said.

That it installs into an empty environment and trains there, `make quickstart` shows, and `make test-lowest` with the
oldest versions: tests have no network.
"""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PLAIN = [Requirement(one) for one in PROJECT["dependencies"]]
EXTRAS = [
    Requirement(one)
    for name, some in PROJECT["optional-dependencies"].items()
    if name not in ("dev", "parity")
    for one in some
]
BROUGHT_ALONG = {
    "jaxlib": "jax",
    "ml_dtypes": "jax",
    "referencing": "jsonschema",
    "scipy": "jax",
    "loguru": "datatrove",
}
"""Package -> the dependency that never comes without it."""
OPTIONAL = {"jaxlm/corpus/raw", "jaxlm/evaluate/harness_model.py", "jaxlm/playground", "jaxlm/run_lm_eval.py"}
"""Parts of jaxlm whose modules cannot be imported without an extra; who imports them says which."""


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def lowest(requirement):
    (bound,) = (Version(one.version) for one in requirement.specifier if one.operator == ">=")
    return bound


def imports(tree, *, always):
    """Top-level packages that a module imports; always: as soon as it is imported itself."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Try) and always:
            continue
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        else:
            yield from imports(node, always=always)


def imported(*, always):
    """Package -> a file of jaxlm that imports it."""
    found = {}
    for path in sorted((ROOT / "jaxlm").rglob("*.py")):
        if always and {str(one.relative_to(ROOT)) for one in (path, path.parent)} & OPTIONAL:
            continue
        for name in imports(ast.parse(path.read_text()), always=always):
            if name not in sys.stdlib_module_names and name != "jaxlm":
                found.setdefault(BROUGHT_ALONG.get(name, name), str(path.relative_to(ROOT)))
    return found


@pytest.mark.parametrize("always", [True, False])
def test_what_is_imported_is_installed_by_what_is_said(always):  # pain 29
    """By jaxlm alone, where a module cannot be imported without it; else by one of its extras."""
    said = {normal(one.name) for one in (PLAIN if always else PLAIN + EXTRAS)}
    distributions = importlib.metadata.packages_distributions()
    found = imported(always=always)
    assert {"jax", "numpy"} <= set(found)
    missing = {
        name: path
        for name, path in found.items()
        if not said & {normal(one) for one in [name, *distributions.get(name, [])]}
    }
    assert missing == {}


@pytest.mark.parametrize(("package", "dependency"), BROUGHT_ALONG.items())
def test_what_is_said_to_be_brought_along_is(package, dependency):
    requires = [Requirement(one) for one in importlib.metadata.requires(dependency) or ()]
    assert normal(package) in {normal(one.name) for one in requires if one.marker is None}


def test_every_dependency_says_the_lowest_version_and_none_the_highest():  # pain 29
    """What is installed here, and is tested, is above it."""
    for requirement in PLAIN + EXTRAS:
        if requirement.name != "jaxlm":
            assert {one.operator for one in requirement.specifier} == {">="}, str(requirement)
    for requirement in PLAIN:
        if requirement.marker is None or requirement.marker.evaluate():
            assert Version(importlib.metadata.version(requirement.name)) >= lowest(requirement), (
                requirement.name
            )
