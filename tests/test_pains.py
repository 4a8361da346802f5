"""Thirty things that break elsewhere (docs/reliability.md): each is named by a test that it does not break here.

A test names them in a comment where its signature ends: `def test_x():  # pain 12`, or `# pain 6, 7`.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NUM_PAINS = 30
NAMED = re.compile(r"# pain (\d+(?:, \d+)*)\b")
WITHOUT_A_TEST: dict[int, str] = {}
"""Number -> why there is none."""


def names_pains(source: str) -> dict[str, list[int]]:
    """Test -> the numbers in the comments of its signature."""
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            signature = "\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1])
            numbers = [int(n) for group in NAMED.findall(signature) for n in group.split(", ")]
            if numbers:
                found[node.name] = numbers
    return found


def all_named() -> dict[str, list[int]]:
    """`path::test` -> numbers, over all tests."""
    return {
        f"{path.relative_to(ROOT)}::{test}": numbers
        for folder in ("tests", "parity")
        for path in sorted((ROOT / folder).rglob("test_*.py"))
        for test, numbers in names_pains(path.read_text()).items()
    }


def test_every_pain_is_named_by_a_test():
    named = {number for numbers in all_named().values() for number in numbers}
    assert sorted(set(range(1, NUM_PAINS + 1)) - named) == sorted(WITHOUT_A_TEST)
    assert named <= set(range(1, NUM_PAINS + 1))


def test_no_comment_is_where_it_names_no_test():
    for folder in ("tests", "parity"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            source = path.read_text()
            if path != Path(__file__):
                assert len(NAMED.findall(source)) == len(names_pains(source)), path


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def test_a():  # pain 3\n    pass\n", {"test_a": [3]}),
        ("def test_a(\n    x,\n):  # pain 3, 14\n    pass\n", {"test_a": [3, 14]}),
        ('def test_a():  # pain 3: says why\n    """Doc."""\n', {"test_a": [3]}),
        ("def test_a():\n    pass  # pain 3\n", {}),
        ("def make():  # pain 3\n    pass\n", {}),
    ],
)
def test_names_are_read_where_a_signature_ends(source, found):
    assert names_pains(source) == found


def test_the_table_of_the_docs_names_tests_that_are_there():
    """Every row of the table is there, and all of its tests name its number."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    rows = re.findall(r"^\| *(\d+) *\|(.*\.py::.*)\|$", text, re.MULTILINE)
    named = all_named()
    assert [int(number) for number, _ in rows] == list(range(1, NUM_PAINS + 1))
    for number, row in rows:
        tests = re.findall(r"\w+/[\w/]+\.py::\w+", row)
        assert tests, number
        assert [test for test in tests if int(number) not in named.get(test, [])] == [], number
