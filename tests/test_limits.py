"""Promises of jaxlm/limits.py: what is refused before memory or time is spent on it, and what is not."""

import json

import pytest

from jaxlm import limits
from jaxlm.limits import Row, TooLarge, check, is_inside, malformed, parse_json, read_bytes, read_json, short
from jaxlm.types import JSON_ERRORS, UserError


def test_a_file_is_read_up_to_the_limit_and_not_beyond(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"[1, 2, 3]")
    assert read_bytes(path, 9) == b"[1, 2, 3]"
    assert read_json(path) == [1, 2, 3]
    with pytest.raises(TooLarge, match="more than 8 bytes"):
        read_bytes(path, 8)
    with pytest.raises(TooLarge, match="more than 8 bytes"):
        read_json(path, 8)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 101 + "]" * 101, "brackets more than 100 deep"),
        ('{"a":' * 101 + "1" + "}" * 101, "brackets more than 100 deep"),
        ("[" * 100_000, "recursion"),
        ("9" * 5000, "digits"),
        ("1" + "0" * 400, "more than 308 digits"),
        ('{"a": [-1' + "0" * 400 + "]}", "more than 308 digits"),
    ],
)
def test_depth_and_numbers_have_limits(text, reason):
    for content in (text, text.encode()):
        with pytest.raises(JSON_ERRORS, match=reason):
            parse_json(content)


def test_what_lies_at_the_limits_is_read(monkeypatch):
    assert parse_json("[" * 100 + "1" + "]" * 100)
    assert parse_json("1" + "0" * 300) == 10**300
    assert parse_json(b'{"a": [1.5, "[[[[", null, true]}') == {"a": [1.5, "[[[[", None, True]}
    monkeypatch.setattr(limits, "_check_value", lambda value: None)
    assert parse_json("[1,2,3]", max_values=4)  # two commas, one bracket
    with pytest.raises(TooLarge, match="more than 2 values"):
        parse_json("[1,2,3]", max_values=2)


def test_the_values_that_are_counted_before_parsing_bound_the_memory():
    with pytest.raises(TooLarge, match="more than 10,000,000 values"):
        parse_json(b"[" + b"[]," * 6_000_000 + b"[]]")


SHAPE = {"n": int, "x?": (float, None), "list": [str], "map": {str: {"a": bool}}, "row?": Row((int, [int]))}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n": -1}, "n is -1, not a whole number, 0 or more"),
        ({"n": True}, "n is True, not a whole number"),
        ({"n": 2**63}, "n is 9223372036854775808, not"),
        ({"n": 1.0}, "n is 1.0, not"),
        ({"x": float("nan")}, "x is nan, not a number or null"),
        ({"x": "1"}, "x is '1', not a number or null"),
        ({"list": {}}, "list is {}, not a list"),
        ({"list": ["a", 3]}, r"list\[1\] is 3, not a text"),
        ({"map": []}, r"map is \[\], not an object"),
        ({"map": {"k": {"a": 1}}}, "map.'k'.a is 1, not true or false"),
        ({"map": {"k": {}}}, "map.'k' has no a"),
        ({"row": [1]}, r"row is \[1\], not a list of 2"),
        ({"row": [1, [2, "x"]]}, r"row\[1\]\[1\] is 'x', not a whole number"),
    ],
)
def test_a_value_of_another_shape_is_named_by_its_place(change, reason):
    good = {"n": 3, "list": ["a"], "map": {"k": {"a": True}}, "more": 1}
    check(good, SHAPE)
    check({**good, "x": None, "row": [1, []]}, SHAPE)
    with pytest.raises(ValueError, match=reason):
        check({**good, **change}, SHAPE)
    with pytest.raises(ValueError, match="it has no n"):
        check({}, SHAPE)


@pytest.mark.parametrize("name", ["a", "a.b", "state/d/0f", "..a", "a..", "Übung"])
def test_names_in_the_folder_are_inside(name):
    assert is_inside(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "/", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", "a\\b", "gs://a", "a\0", "a\n", "\ud800",
     "x" * 2000],
)  # fmt: skip
def test_names_that_lead_out_are_not(name):
    assert not is_inside(name)


def test_what_is_shown_of_a_value_is_short():
    assert short("abc") == "'abc'"
    assert len(short("x" * 10**6)) <= 60
    deep = value = []
    for _ in range(5000):
        value.append([])
        value = value[0]
    assert len(short(deep)) <= 60
    assert len(short({str(i): i for i in range(1000)})) <= 60


def test_what_stumbles_over_a_value_names_the_file():
    with pytest.raises(UserError, match=r"a.json is damaged \(KeyError: 'b'\). Copy it again."):
        with malformed("a.json", "Copy it again."):
            json.loads("{}")["b"]
    with pytest.raises(UserError, match="^mine$"):
        with malformed("a.json", "Copy it again."):
            raise UserError("mine")
    with pytest.raises(ZeroDivisionError):
        with malformed("a.json", "Copy it again."):
            1 / 0  # noqa: B018
