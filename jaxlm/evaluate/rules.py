"""Rules that answers have to keep, read from YAML: lines, words, patterns, JSON, scripts.

    rules:
      - name: three lines
        when: (?i)in (3|three) lines       # for records whose instruction matches; left out: for all
        max_lines: 3                       # blank lines are not counted
      - name: Bengali without apologies
        script: {name: Bengali, min_share: 0.8}
        forbidden_words: [দুঃখিত, sorry]
      - name: a person as JSON
        json_schema: {type: object, required: [name, age]}
      - name: one sentence
        must_match: '[.।]$'
        must_not_match: '[.।].+[.।]'
        max_words: 30
        max_chars: 200

Everything a rule asks for has to hold. Patterns are searched for anywhere in the answer, without blanks at its ends.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxlm.config import nearest
from jaxlm.data.files import read_file
from jaxlm.data.yaml_files import read_yaml
from jaxlm.evaluate.text_metrics import words
from jaxlm.limits import MALFORMED, MAX_JSON_BYTES, parse_json, short
from jaxlm.types import JSON_ERRORS, UserError

PATTERN_SECONDS = 1.0
"""Some patterns take ages on some texts ((a+)+b): such a search is given up, and the answer fails."""
MAX_PATTERN_CHARS = 10_000
NUM_EXAMPLES = 3

Check = Callable[[str], str | None]
"""check(answer) -> what is wrong with it, or None."""


@dataclass(frozen=True)
class Rule:
    """What is asked of the answers to some instructions."""

    name: str
    when: Any
    """A compiled pattern for the instruction, or None."""
    checks: tuple[Check, ...]

    def applies(self, instruction: str) -> bool:
        """Whether the rule is about this record."""
        if self.when is None:
            return True
        try:
            return self.when.search(instruction, timeout=PATTERN_SECONDS) is not None
        except TimeoutError:
            return False

    def failures(self, answer: str) -> list[str]:
        """Everything that is wrong with an answer."""
        answer = answer.strip()
        return [wrong for wrong in (check(answer) for check in self.checks) if wrong is not None]


@dataclass
class RuleResult:
    """How often a rule was kept."""

    name: str
    num_records: int = 0
    num_passed: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)
    """The first failures: instruction, answer, reasons."""

    @property
    def pass_rate(self) -> float | None:
        """None where the rule is about no record."""
        return self.num_passed / self.num_records if self.num_records else None

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**vars(self), "pass_rate": self.pass_rate}


def apply_rules(
    rules: Sequence[Rule], instructions: Sequence[str], answers: Sequence[str]
) -> tuple[list[RuleResult], list[dict[str, list[str]]]]:
    """-> (results by rule, for each record {rule that is about it: what was wrong, nothing if it was kept})."""
    results, by_record = [RuleResult(rule.name) for rule in rules], []
    for instruction, answer in zip(instructions, answers, strict=True):
        reasons = {rule.name: rule.failures(answer) for rule in rules if rule.applies(instruction)}
        by_record.append(reasons)
        for result in results:
            if result.name not in reasons:
                continue
            result.num_records += 1
            result.num_passed += not reasons[result.name]
            if reasons[result.name] and len(result.examples) < NUM_EXAMPLES:
                result.examples.append(
                    {"instruction": instruction, "answer": answer, "reasons": reasons[result.name]}
                )
    return results, by_record


def read_rules(path: str | os.PathLike) -> list[Rule]:
    """The rules of a YAML file. Errors: UserError that names file, rule and key."""
    content = read_yaml(path, "a YAML file of rules")
    listed = content.get("rules") if isinstance(content, dict) and content.keys() == {"rules"} else None
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{path} must be `rules:` and a list of rules below it, each with a name and checks.")
    rules = []
    for number, entry in enumerate(listed, 1):
        rules.append(_rule(f"{path}, rule {number}", entry, os.path.dirname(os.fspath(path))))
        if rules[-1].name in {rule.name for rule in rules[:-1]}:
            raise UserError(f"{path}, rule {number}: name {rules[-1].name!r} is taken: give it another.")
    return rules


def _rule(where: str, entry: Any, folder: str) -> Rule:
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be keys and values (name: ..., max_lines: 3), not {short(entry)}.")
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{where}: name={short(name)} must be a text: results are printed under it.")
    where = f"{where} ({name})"
    when, checks = None, []
    for key, value in entry.items():
        at = f"{where}, {key}"
        if key == "when":
            when = _pattern(at, value)
        elif key == "json_schema":
            checks.append(_json_check(at, value, folder))
        elif key in CHECKS:
            checks.append(CHECKS[key](at, value))
        elif key != "name":
            keys = ["name", "when", "json_schema", *CHECKS]
            match = nearest(str(key), keys)
            hint = f"did you mean {match}?" if match else f"there are {', '.join(keys)}."
            raise UserError(f"{at} is not a key of a rule; {hint}")
    if not checks:
        raise UserError(f"{where} checks nothing: give one of {', '.join(['json_schema', *CHECKS])}.")
    return Rule(name, when, tuple(checks))


def _pattern(at: str, value: Any) -> Any:
    if not isinstance(value, str) or not value:
        raise UserError(f"{at}={short(value)} must be a regular expression.")
    try:
        import regex  # unlike `re`, it can be told to give up
    except ImportError:
        raise UserError(f"{at}: patterns need regex: pip install 'jaxlm[eval]'.") from None
    if len(value) > MAX_PATTERN_CHARS:
        raise UserError(f"{at} has {len(value):,} characters, and a pattern at most {MAX_PATTERN_CHARS:,}.")
    try:
        return regex.compile(value)
    except (regex.error, *MALFORMED) as error:
        raise UserError(f"{at}={short(value)} is no regular expression: {error}.") from None


def _match_check(at: str, value: Any, *, wanted: bool) -> Check:
    pattern = _pattern(at, value)

    def check(answer: str) -> str | None:
        try:
            found = pattern.search(answer, timeout=PATTERN_SECONDS)
        except TimeoutError:
            return f"{value!r} was given up after {PATTERN_SECONDS:g} s"
        if wanted:
            return None if found else f"does not match {value!r}"
        return f"matches {value!r}: {found.group()[:80]!r}" if found else None

    return check


def num_lines(text: str) -> int:
    """Lines that hold something."""
    return sum(not line.isspace() for line in text.splitlines() if line)


def _maximum(at: str, value: Any, *, unit: str, count: Callable[[str], int]) -> Check:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{at}={short(value)} must be a number of {unit}, 1 or more.")

    def check(answer: str) -> str | None:
        found = count(answer)
        return f"{found} {unit}, at most {value}" if found > value else None

    return check


def _forbidden_check(at: str, value: Any) -> Check:
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(one, str) and words(one) for one in listed):
        raise UserError(
            f"{at}={short(value)} must be a list of words or phrases, with a letter or digit in each; must_not_match "
            "looks for other signs."
        )

    def check(answer: str) -> str | None:
        said = words(answer)
        for phrase, parts in ((one, words(one)) for one in listed):
            if any(said[i : i + len(parts)] == parts for i in range(len(said) - len(parts) + 1)):
                return f"says {phrase!r}"
        return None

    return check


def script_share(text: str, script: str) -> float:
    """Share of the letters (with their marks) of a script; 0 for a text without letters.

    Unicode names begin with the script: BENGALI LETTER KA. Signs that several scripts share are no letters (the
    danda), or are marks named COMBINING, and are not counted.
    """
    names = [unicodedata.name(c, "") for c in text if unicodedata.category(c)[0] in "LM"]
    names = [name for name in names if not name.startswith(("COMBINING ", "MODIFIER LETTER "))]
    return sum(name.startswith(_prefix(script)) for name in names) / len(names) if names else 0.0


def _prefix(script: str) -> str:
    return {"HAN": "CJK"}.get(script.upper(), script.upper()) + " "


@functools.cache
def _scripts() -> frozenset[str]:
    """First words of the names of all letters."""
    letters = (chr(i) for i in range(0x20000) if unicodedata.category(chr(i))[0] == "L")
    return frozenset(unicodedata.name(c, " ").partition(" ")[0] for c in letters)


def _script_check(at: str, value: Any) -> Check:
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or not value.keys() <= {"name", "min_share"}:
        raise UserError(f"{at}={short(value)} must be like {{name: Bengali, min_share: 0.8}}.")
    name, share = value.get("name"), value.get("min_share", 0.8)
    if not isinstance(name, str) or _prefix(name).partition(" ")[0] not in _scripts():
        match = nearest(str(name).upper(), _scripts())
        hint = (
            f"did you mean {match.capitalize()}?" if match else "Unicode has Latin, Bengali, Devanagari, ..."
        )
        raise UserError(f"{at}: name={name!r} is no script; {hint}")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise UserError(f"{at}: min_share={short(share)} must be in (0, 1]: the share of the letters.")

    def check(answer: str) -> str | None:
        found = script_share(answer, name)
        return f"{found:.0%} of its letters are {name}, at least {share:.0%}" if found < share else None

    return check


def _json_check(at: str, value: Any, folder: str) -> Check:
    try:
        from jsonschema import Draft202012Validator, SchemaError
        from jsonschema.validators import validator_for
        from referencing import Registry
        from referencing.exceptions import Unresolvable
    except ImportError:
        raise UserError(f"{at}: JSON schemas need jsonschema: pip install 'jaxlm[eval]'.") from None
    if isinstance(value, str):
        path = os.path.join(folder, value)
        content = read_file(path, f"a JSON schema for {at}", MAX_JSON_BYTES)
        try:
            value = parse_json(content)
        except JSON_ERRORS as error:
            raise UserError(f"{at}: {path} is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{at}={short(value)} must be a JSON schema, or the path of one.")
    validator = validator_for(value, default=Draft202012Validator)
    try:
        with time_limit(PATTERN_SECONDS):
            validator.check_schema(value)
    except SchemaError as error:
        raise UserError(f"{at} is no JSON schema: {error.message:.300}.") from None
    except (re.error, TimeoutError, *MALFORMED) as error:
        raise UserError(f"{at} is no JSON schema: {str(error) or type(error).__name__:.300}.") from None
    made = validator(value, registry=Registry())  # empty: nothing is fetched from an address in `$ref`

    def check(answer: str) -> str | None:
        try:
            found = parse_json(answer)
        except JSON_ERRORS as error:
            return f"is not JSON: {error}"
        try:
            with time_limit(PATTERN_SECONDS):
                error = next(made.iter_errors(found), None)
        except TimeoutError:
            return f"its schema was given up after {PATTERN_SECONDS:g} s"
        except (Unresolvable, re.error, *MALFORMED) as error:  # a $ref to nowhere, or to itself
            raise UserError(f"{at} cannot be used: {str(error) or type(error).__name__:.300}.") from None
        return None if error is None else f"{error.json_path:.200}: {error.message[:200]}"

    return check


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TimeoutError inside the block when it takes longer: `re`, which JSON schemas search with, knows no end.

    By a signal, which only the main thread gets: elsewhere nothing is limited.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def give_up(number: int, frame: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


CHECKS: dict[str, Callable[[str, Any], Check]] = {
    "must_match": functools.partial(_match_check, wanted=True),
    "must_not_match": functools.partial(_match_check, wanted=False),
    "max_lines": functools.partial(_maximum, unit="lines", count=num_lines),
    "max_words": functools.partial(_maximum, unit="words", count=lambda text: len(text.split())),
    "max_chars": functools.partial(_maximum, unit="characters", count=len),
    "forbidden_words": _forbidden_check,
    "script": _script_check,
}
