"""Promises of the rules: what each check lets pass, which records it is about, and where a mistake in the YAML is."""

import json

import pytest

from jaxlm.evaluate.rules import apply_rules, read_rules, script_share
from jaxlm.types import UserError


@pytest.fixture
def rules(tmp_path):
    """rules(text) -> the rules of a YAML file of this text."""

    def write(text):
        path = tmp_path / "rules.yaml"
        path.write_text(text)
        return read_rules(path)

    return write


def one(rules, check):
    """A function answer -> what is wrong with it."""
    (rule,) = rules(f"rules:\n  - name: it\n    {check}\n")
    return rule.failures


@pytest.mark.parametrize(
    ("check", "passes", "fails", "reason"),
    [
        ("max_lines: 3", "one\n\ntwo\n \nthree\n", "1\n2\n3\n4", "4 lines, at most 3"),
        ("max_words: 2", " two  words\n", "three little words", "3 words, at most 2"),
        ("max_chars: 3", " abc ", "abcd", "4 characters, at most 3"),
        ("must_match: '[.।]$'", "আমি।\n", "no end", "does not match '[.।]$'"),
        ("must_not_match: (?i)as an ai", "As a lion", "Well, as an AI I", "matches '(?i)as an ai': 'as an AI'"),
        ("forbidden_words: [lion, the big zoo]", "Lions, the big, zoos", "The BIG\nzoo!", "says 'the big zoo'"),
        ("forbidden_words: বাংলা", "বাংলার", "আমার বাংলা।", "says 'বাংলা'"),
        ("script: Bengali", "আমার সোনার বাংলা ABC", "আমার ABCD", "50% of its letters are Bengali, at least 80%"),
        ("script: {name: Latin, min_share: 0.5}", "দেশ abc", "123!", "0% of its letters are Latin, at least 50%"),
        ("json_schema: {type: object, required: [a]}", ' {"a": 1} ', '{"b": 1}', "$: 'a' is a required property"),
        ("json_schema: {items: {type: integer}}", "[1]", "[1, x]", "is not JSON: "),
    ],
)  # fmt: skip
def test_what_a_check_lets_pass_and_says_of_the_rest(rules, check, passes, fails, reason):
    failures = one(rules, check)
    assert failures(passes) == []
    (said,) = failures(fails)
    assert said.startswith(reason)


def test_a_share_of_letters_counts_marks_and_not_signs_of_all_scripts():
    assert script_share("বাংলা। ১২ 12 !", "bengali") == 1.0  # a danda is named DEVANAGARI
    assert script_share("কি ab", "Bengali") == 0.5  # letter and vowel sign
    assert script_share("北京", "Han") == 1.0
    assert script_share("", "Latin") == 0.0


def test_a_schema_may_be_in_a_file_beside_the_rules(rules, tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps({"type": "array"}))
    failures = one(rules, "json_schema: schema.json")
    assert failures("[]") == []
    assert failures("{}") == ["$: {} is not of type 'array'"]


def test_a_pattern_that_would_take_for_ever_is_given_up(rules):
    (said,) = one(rules, "must_match: '(a|aa)+$'")("a" * 60 + "!")
    assert "given up after 1 s" in said


def test_a_rule_is_about_the_records_whose_instruction_matches(rules):
    found = rules(
        "rules:\n"
        "  - {name: short, when: '(?i)in (\\d+|three) lines', max_lines: 3, forbidden_words: sorry}\n"
        "  - {name: all, max_chars: 5}\n"
        "  - {name: never, when: poem, max_chars: 5}\n"
    )
    instructions = ["Summarise In Three lines", "Say hi", "In 3 lines", "in 3 lines"]
    answers = ["a\nb", "hi there", "sorry\n1\n2\n3", "a"]
    results, by_record = apply_rules(found, instructions, answers)
    assert [(r.name, r.num_passed, r.num_records, r.pass_rate) for r in results] == [
        ("short", 2, 3, pytest.approx(2 / 3)), ("all", 2, 4, 0.5), ("never", 0, 0, None),
    ]  # fmt: skip
    assert by_record[1] == {"all": ["8 characters, at most 5"]}
    assert by_record[2]["short"] == ["4 lines, at most 3", "says 'sorry'"]
    assert results[0].examples == [
        {"instruction": "In 3 lines", "answer": "sorry\n1\n2\n3", "reasons": by_record[2]["short"]}
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [", "rules.yaml, line 1 is not YAML"),
        ("a: 1", "rules.yaml must be `rules:` and a list"),
        ("rules: []", "must be `rules:` and a list"),
        ("rules: [x]", "rules.yaml, rule 1 must be keys and values"),
        ("rules: [{max_lines: 3}]", "rules.yaml, rule 1: name=None must be a text"),
        ("rules: [{name: n}]", "rules.yaml, rule 1 (n) checks nothing"),
        ("rules: [{name: n, max_lines: 3}, {name: n, max_lines: 3}]", "rule 2: name 'n' is taken"),
        ("rules: [{name: n, max_line: 3}]", "rule 1 (n), max_line is not a key of a rule; did you mean max_lines?"),
        ("rules: [{name: n, max_lines: 0}]", "rule 1 (n), max_lines=0 must be a number of lines, 1 or more"),
        ("rules: [{name: n, max_words: yes}]", "max_words=True must be a number of words"),
        ("rules: [{name: n, must_match: '('}]", "rule 1 (n), must_match='(' is no regular expression"),
        ("rules: [{name: n, when: 3, max_lines: 1}]", "rule 1 (n), when=3 must be a regular expression"),
        ("rules: [{name: n, forbidden_words: ['!!']}]", "rule 1 (n), forbidden_words=['!!'] must be"),
        ("rules: [{name: n, script: Bengal}]", "rule 1 (n), script: name='Bengal' is no script; did you mean Bengali?"),
        ("rules: [{name: n, script: {name: Latin, min_share: 80}}]", "min_share=80 must be in (0, 1]"),
        ("rules: [{name: n, json_schema: {type: text}}]", "rule 1 (n), json_schema is no JSON schema"),
        ("rules: [{name: n, json_schema: no.json}]", "no.json does not exist: give a JSON schema for "),
        ("rules: [{name: n, json_schema: rules.yaml}]", "rules.yaml is not JSON"),
        ("rules: !!python/object:os.system {}", "rules.yaml, line 1 is not YAML"),
    ],
)  # fmt: skip
def test_a_mistake_names_file_rule_and_key(rules, text, message):
    with pytest.raises(UserError) as error:
        rules(text)
    assert message in str(error.value)
