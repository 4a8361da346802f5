"""Column maps: which fields of a record are the instruction, the answer, the text, the label.

A map gives each role a text with `{column}`s in it, `{column?}` where the column may be missing:

    instruct    instruction, input, output, system; or messages
    classify    text, or text_a and text_b; label

`auto` takes the first map whose columns the first record has.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxlm.corpus.readers import kind_of, some_of
from jaxlm.corpus.records import Record
from jaxlm.data.chat import Message
from jaxlm.limits import parse_json
from jaxlm.types import JSON_ERRORS, UserError

_SYSTEM = {"system": "{system?}"}
MAPS: dict[str, dict[str, dict[str, str]]] = {
    "instruct": {
        "messages": {"messages": "{messages}", **_SYSTEM},
        "conversations": {"messages": "{conversations}", **_SYSTEM},
        "alpaca": {"instruction": "{instruction}", "input": "{input?}", "output": "{output}", **_SYSTEM},
        "instruction_response": {
            "instruction": "{instruction}", "input": "{input?}", "output": "{response}", **_SYSTEM,
        },
        "question_answer": {
            "instruction": "{question}", "input": "{context?}", "output": "{answer}", **_SYSTEM,
        },
        "ticket_resolution": {"instruction": "{ticket}", "output": "{resolution}", **_SYSTEM},
        "clause": {
            "instruction": "Rewrite the clause in plain language, then give the rationale.",
            "input": "{clause}", "output": "{rewritten}\n\n{rationale}", **_SYSTEM,
        },
    },
    "classify": {
        "pair_label": {"text_a": "{text_a}", "text_b": "{text_b}", "label": "{label}"},
        "text_label": {"text": "{text}", "label": "{label}"},
    },
}  # fmt: skip
"""Objective -> name -> role -> text."""
_ROLES = {
    "instruct": (
        {"instruction", "output"},
        {"messages"},
        {"instruction", "input", "output", "system", "messages"},
    ),
    "classify": ({"text", "label"}, {"text_a", "text_b", "label"}, {"text", "text_a", "text_b", "label"}),
}
"""Objective -> two sets of roles of which a map needs one, and all there are."""
_COLUMN = re.compile(r"\{([^{}]+?)(\?)?\}")
_SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
}


class Dropped(Exception):
    """A record that there is nothing to learn from: the message is the reason that is counted."""


class ColumnMap(NamedTuple):
    """A map, and the name it is called by."""

    name: str
    texts: dict[str, str]

    @property
    def needed(self) -> list[str]:
        """Columns that every record must have."""
        return [
            name for text in self.texts.values() for name, optional in _COLUMN.findall(text) if not optional
        ]


def open_columns(spec: str, objective: str, first: Record) -> ColumnMap:
    """The map of `data.sources.<name>.columns`.

    Args:
      spec: the name of a map; `auto`; `role=column,...`; or a JSON object of role to text.
      first: record: `auto` looks at its columns.
    """
    known = MAPS[objective]
    if spec == "auto":
        for name, texts in known.items():
            found = ColumnMap(name, texts)
            if set(found.needed) <= set(first.fields):
                return found
        maps = "; ".join(
            f"{name}: {', '.join(ColumnMap(name, texts).needed)}" for name, texts in known.items()
        )
        raise UserError(
            f"{first.where}: no column map of objective={objective} fits the columns {some_of(first.fields)}. "
            f"There are {maps}. Write a map of your own: columns='{_example(objective)}'."
        )
    if spec in known:
        return ColumnMap(spec, known[spec])
    return ColumnMap("own", _own(spec, objective))


def _example(objective: str) -> str:
    return {"instruct": "instruction=question,output=answer", "classify": "text=review,label=stars"}[
        objective
    ]


def _own(spec: str, objective: str) -> dict[str, str]:
    key = "data.sources.<name>.columns"
    if spec.lstrip().startswith("{"):
        try:
            texts = parse_json(spec)
        except JSON_ERRORS as error:
            raise UserError(f"{key}={spec!r} is not valid JSON ({error}).") from None
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise UserError(
                f'{key}={spec!r}: every role takes a text with {{column}}s in it, as "{{question}}".'
            )
    else:
        pairs = [part.partition("=") for part in spec.split(",")]
        if not all(role.strip() and column.strip() for role, _, column in pairs):
            raise UserError(
                f"{key}={spec!r} is no column map: take auto, one of {', '.join(MAPS[objective])}, or your own as "
                f"{_example(objective)!r}."
            )
        texts = {role.strip(): f"{{{column.strip()}}}" for role, _, column in pairs}
    one, other, every = _ROLES[objective]
    if unknown := set(texts) - every:
        raise UserError(
            f"{key}={spec!r}: {some_of(sorted(unknown))} is no role: there are {', '.join(sorted(every))}."
        )
    if not one <= set(texts) and not other <= set(texts):
        raise UserError(
            f"{key}={spec!r} needs the roles {' and '.join(sorted(one))}, or {' and '.join(sorted(other))}."
        )
    raw = [role for role in ("messages", "label") if role in texts and not _COLUMN.fullmatch(texts[role])]
    if raw:
        raise UserError(f'{key}={spec!r}: {raw[0]} takes one column, as "{{column}}", not a text.')
    return texts


def dialogue(record: Record, columns: ColumnMap, changed: Counter[str]) -> list[Message]:
    """The dialogue of a record; raises Dropped where it has an empty answer or prompt.

    Args:
      changed: counts dialogues whose last turn is the user's: that turn is left out.
    """
    system = _text(record, columns, "system") if "system" in columns.texts else ""
    if "messages" in columns.texts:
        messages = _turns(record, columns)
        if messages and messages[-1].role == "user" and len(messages) > 1:
            changed["unanswered_last_turn"] += 1
            messages = messages[:-1]
        if system and messages[0].role != "system":
            messages = [Message("system", system), *messages]
    else:
        prompt = [
            _text(record, columns, role) if role in columns.texts else "" for role in ("instruction", "input")
        ]
        if not prompt[0].strip():  # a question that stands in the second column
            prompt = [prompt[1], ""]
        answer = _text(record, columns, "output")
        messages = [Message("user", *prompt), Message("assistant", answer)]
        if system.strip():
            messages = [Message("system", system), *messages]
    if not all(message.content.strip() for message in messages if message.role == "assistant"):
        raise Dropped("empty_answer")
    if not all(message.content.strip() for message in messages if message.role == "user"):
        raise Dropped("empty_prompt")
    return messages


def _text(record: Record, columns: ColumnMap, role: str) -> str:
    def value(match: re.Match[str]) -> str:
        name, optional = match[1], bool(match[2])
        found = _value(record, name, columns, optional)
        if found is None:  # null: as good as empty
            return ""
        if not isinstance(found, str):
            raise UserError(
                f"{record.where}, field {name!r}: the {role} has to be a text, found {kind_of(found)} ({found!r:.40})."
            )
        return _valid(found, record, name)

    text = columns.texts[role]
    made = _COLUMN.sub(value, text)
    # A part that is missing leaves no blank lines where it would have stood.
    return made if _COLUMN.fullmatch(text) else made.strip()


def _value(record: Record, name: str, columns: ColumnMap, optional: bool = False) -> Any:
    if name not in record.fields and not optional:
        raise UserError(
            f"{record.where}: field {name!r} is missing, which the column map {columns.name} needs; found "
            f"{some_of(record.fields)}."
        )
    return record.fields.get(name)


def _valid(text: str, record: Record, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{record.where}, field {name!r}: \\u{ord(text[error.start]):04x} is half of a character (a lone "
            "surrogate): mend the text."
        ) from None
    return text


def _turns(record: Record, columns: ColumnMap) -> list[Message]:
    name = columns.needed[0]
    turns = _value(record, name, columns)
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{record.where}, field {name!r}: has to be a list of messages, found {turns!r:.60}.")
    messages: list[Message] = []
    for number, turn in enumerate(turns):
        place = f"{record.where}, field '{name}[{number}]'"
        if not isinstance(turn, Mapping):
            raise UserError(f"{place}: a message is an object with role and content, found {kind_of(turn)}.")
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        role = _SPEAKERS.get(role, role) if isinstance(role, str) else role
        before = messages[-1].role if messages else None
        if role not in ("system", "user", "assistant"):
            raise UserError(f"{place}: the role {role!r} is none of system, user and assistant.")
        if not isinstance(content, str):
            if content is not None or role != "assistant":
                raise UserError(f"{place}: the content has to be a text, found {kind_of(content)}.")
            content = ""
        legal = {"system": before is None, "user": before != "user", "assistant": before == "user"}
        if not legal[role]:
            follows = f"follows one of {before}" if before else "comes first"
            raise UserError(
                f"{place}: a message of {role} {follows}. A dialogue is: system, if any; then "
                "user and assistant in turn."
            )
        messages.append(Message(role, _valid(content, record, name)))
    if not any(message.role == "assistant" for message in messages):
        raise UserError(
            f"{record.where}, field {name!r}: no message is of the assistant: there is nothing to learn."
        )
    return messages


def labelled(record: Record, columns: ColumnMap, task: str) -> tuple[str, list[str] | float]:
    """(text, names of its labels or its number) of a record; raises Dropped where the text is empty.

    A pair of texts is one text, a newline between them. Numbers and truth values are labels by name: 1 is "1".
    """
    text = text_of(record, columns)
    (name,) = [column for column, _ in _COLUMN.findall(columns.texts["label"])]
    value, place = _value(record, name, columns), f"{record.where}, field {name!r}"
    if task == "regression":
        return text, _number(value, place)
    if task == "multi_label":
        if not isinstance(value, list):
            raise UserError(
                f"{place}: classify.task=multi_label needs a list of labels, found {kind_of(value)}."
            )
        return text, list(dict.fromkeys(_label(one, place) for one in value))
    return text, [_label(value, place)]


def text_of(record: Record, columns: ColumnMap) -> str:
    """The text of a record to classify; raises Dropped where it is empty."""
    roles = ("text",) if "text" in columns.texts else ("text_a", "text_b")
    text = "\n".join(_text(record, columns, role) for role in roles)
    if not text.strip():
        raise Dropped("empty_text")
    return text


def open_unlabelled(spec: str, first: Record) -> ColumnMap:
    """The map of texts to classify: as `open_columns`, but nothing of a label is needed."""

    def without_label(columns: ColumnMap) -> ColumnMap:
        return ColumnMap(columns.name, {r: text for r, text in columns.texts.items() if r != "label"})

    if spec == "auto":
        for name, texts in MAPS["classify"].items():
            found = without_label(ColumnMap(name, texts))
            if set(found.needed) <= set(first.fields):
                return found
    elif "=" in spec and not spec.lstrip().startswith("{") and "label=" not in spec:
        spec += ",label=label"
    return without_label(open_columns(spec, "classify", first))


def _label(value: Any, place: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if isinstance(value, str) and value.strip():
        return value
    hint = {list: " (task=multi_label takes lists)", float: " (task=regression takes numbers)"}.get(
        type(value), ""
    )
    found = "an empty text" if isinstance(value, str) else f"{kind_of(value)}{hint}"
    raise UserError(f"{place}: a label is a text or a whole number, found {found}.")


def _number(value: Any, place: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{place}: classify.task=regression needs a number, found {value!r:.40}.")
    return number
