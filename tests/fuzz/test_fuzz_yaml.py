"""YAML from anybody: rules of answers, mixtures, prices."""

import time

import pytest
from hostile import VALUES, child, damaged_bytes, fuzz, refused
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.data.yaml_files import read_yaml
from jaxlm.evaluate.rules import CHECKS, read_rules
from jaxlm.plan import prices
from jaxlm.plan.mixture_file import read_mixture
from jaxlm.types import UserError

RULES = """\
rules:
  - {name: a, when: '(?i)in (\\d+) lines', max_lines: 3, forbidden_words: [sorry, 'no way']}
  - {name: b, script: {name: Bengali, min_share: 0.8}, must_match: '[.]$', must_not_match: '[.].+[.]', max_words: 3}
  - {name: c, json_schema: {type: object, required: [x]}}
"""
MIXTURE = "budget_tokens: 9e9\nrounding: {weight: 0.5, tokens: 1e8}\nsources:\n  - {name: a, tokens: 4e9, weight: 70}\n"
PRICES = """\
prices:
  - {chip: v5p, usd: 2.94, provider: Google Cloud, region: us-east5, commitment: reserved-1y, date: 2026-11-01,
     url: "https://a.b/c"}
"""
FILES = {"rules": (RULES, read_rules), "mixture": (MIXTURE, read_mixture), "prices": (PRICES, prices.load)}


def read(kind, path):
    with refused():
        found = FILES[kind][1](str(path) if kind != "prices" else path)
        for rule in found if kind == "rules" else ():
            rule.applies("Say it in 3 lines")
            rule.failures('{"x": 1}')


@pytest.mark.parametrize("kind", FILES)
def test_yaml_of_any_bytes_is_read_or_refused(kind, tmp_path):
    path = tmp_path / "a.yaml"

    @fuzz(15 if kind == "prices" else 80)  # 0.2 s each: with the package's own
    @given(content=damaged_bytes(FILES[kind][0].encode()))
    def check(content):
        path.write_bytes(content)
        read(kind, path)

    check()


@pytest.mark.parametrize("kind", FILES)
def test_yaml_of_any_values_is_read_or_refused(kind, tmp_path):
    import yaml
    from hostile import damaged_json

    path = tmp_path / "a.yaml"

    @fuzz(10 if kind == "prices" else 60)
    @given(value=damaged_json(yaml.safe_load(FILES[kind][0])))
    def check(value):
        path.write_text(yaml.safe_dump(value), errors="replace")
        read(kind, path)

    check()


@fuzz(100)
@given(
    rule=st.dictionaries(
        st.sampled_from([*CHECKS, "when", "json_schema", "name"]),
        VALUES | st.text("()[]{}*+?|\\a1,", max_size=9),
    ),
    answer=st.text(max_size=20) | st.sampled_from(['{"a": [1]}', "[[]]", "a" * 50]),
)
def test_a_rule_of_any_values_checks_an_answer_or_is_refused(rule, answer, tmp_path_factory):
    import yaml

    path = tmp_path_factory.getbasetemp() / "rules.yaml"
    path.write_text(yaml.safe_dump({"rules": [{"name": "it", **rule}]}), errors="replace")
    with refused():
        (found,) = read_rules(path)
        found.applies(answer)
        found.failures(answer)


def laughs(depth=12, width=9):
    """Aliases of aliases: a billion values in a few lines."""
    lines = ["a0: &a0 [lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, depth)]
    return "\n".join([*lines, f"rules: *a{depth - 1}", f"sources: *a{depth - 1}", f"prices: *a{depth - 1}\n"])


BOMBS = {
    "aliases": (laughs(), "more than 100,000 values, aliases written out"),
    "a ring": ("rules: &a [*a]\n", "more than 100 levels deep"),
    "brackets": ("rules: " + "[" * 5000, "is not YAML"),
    "questions": ("? " * 5000, "is not YAML"),
    "length": ("rules: [" + "a, " * 100_000 + "a]", "too large: it has more than 262,144 bytes"),
    "a date": ("rules: 2026-99-99", "is not YAML: month must be in 1..12"),
    "a number": ("rules: " + "9" * 5000, "is not YAML"),
    "code": (
        "rules: !!python/object/apply:os.system ['true']",
        "is not YAML: could not determine a constructor",
    ),
    "a key of a list": ("rules: {[a]: 1}", "is not YAML: found unhashable key"),
    "two documents": ("rules: []\n---\nrules: []\n", "is not YAML: but found another document"),
    "twice": ("rules: []\nrules: []\n", "'rules' stands twice in the mapping of line 1"),
    "keys": ("{" + ", ".join(f"k{i}: 1" for i in range(5_000)) + "}", "must be|key"),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("kind", FILES)
def test_yaml_made_to_break_a_reader_is_refused_soon(kind, name, tmp_path):
    text, message = BOMBS[name]
    path = tmp_path / "a.yaml"
    path.write_text(text)
    begin = time.monotonic()
    with pytest.raises(UserError, match=message):
        FILES[kind][1](str(path) if kind != "prices" else path)
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("kind", FILES)
def test_the_files_that_are_damaged_here_are_good(kind, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(FILES[kind][0])
    assert FILES[kind][1](str(path) if kind != "prices" else path)


def test_good_yaml_with_aliases_is_read(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: &x {b: [1, 2]}\nc: [*x, *x]\n")
    assert read_yaml(path, "a test") == {"a": {"b": [1, 2]}, "c": [{"b": [1, 2]}] * 2}


# Rules: patterns and schemas.

SCHEMAS = {
    "a pattern": (
        "{type: string, pattern: '(a|aa)+$'}",
        '"' + "a" * 60 + '!"',
        "its schema was given up after 1 s",
    ),
    "names": (
        "{patternProperties: {'(a|aa)+$': {}}}",
        '{"' + "a" * 60 + '!": 1}',
        "its schema was given up after 1 s",
    ),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_whose_pattern_would_take_for_ever_is_given_up(name, tmp_path):
    schema, answer, message = SCHEMAS[name]
    (tmp_path / "rules.yaml").write_text(f"rules:\n  - {{name: it, json_schema: {schema}}}\n")
    (rule,) = read_rules(tmp_path / "rules.yaml")
    assert rule.failures(answer) == [message]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # by which jsonschema tells that it fetches
@pytest.mark.parametrize(
    "ref", ["'#'", "'http://localhost:1/schema.json'", "'file://TMP/list.json'", "'#/nowhere'", "5"]
)
def test_a_schema_that_refers_to_itself_or_elsewhere_is_refused_and_fetches_nothing(ref, tmp_path):
    (tmp_path / "list.json").write_text(
        '{"type": "array"}'
    )  # were it fetched, the answer would only be wrong
    ref = ref.replace("TMP", str(tmp_path))
    (tmp_path / "rules.yaml").write_text(f"rules:\n  - {{name: it, json_schema: {{$ref: {ref}}}}}\n")
    with pytest.raises(UserError, match="json_schema"):
        read_rules(tmp_path / "rules.yaml")[0].failures("{}")


@pytest.mark.parametrize(
    "pattern", ["(" * 5000, "(?:a{1000}){1000}{1000}", "a" * 20_000, "[" * 3000, "(?<n>a)" * 3000, "\\p{x}"]
)
def test_a_pattern_made_to_break_the_compiler_is_refused_in_bounded_memory(pattern, tmp_path):
    (tmp_path / "rules.yaml").write_text(f"rules:\n  - {{name: it, must_match: '{pattern}'}}\n")
    code, output = child(
        f"""
        from jaxlm.evaluate.rules import read_rules
        with refused():
            read_rules({str(tmp_path / "rules.yaml")!r})[0].failures("a" * 100)
        """
    )
    assert code == 0, output[-1000:]
