"""Files of instructions: read by the column maps of training, answered in batches, written in their order."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from jaxlm.corpus.columns import MAPS, ColumnMap, Dropped, dialogue, open_columns
from jaxlm.corpus.inputs import Part, printable
from jaxlm.corpus.readers import kind_of, limited_lines, read_lines
from jaxlm.corpus.records import Record, find_records, read_all, read_records
from jaxlm.corpus.text import Tally
from jaxlm.data.chat import ChatTemplate, Message
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.infer.resumable import resumable
from jaxlm.infer.sample import axis_size
from jaxlm.infer.text import Continuation, continue_ids
from jaxlm.limits import parse_json
from jaxlm.models.build import LM
from jaxlm.types import JSON_ERRORS, Params, UserError

T = TypeVar("T")
_UNWRITTEN = "?"
"""Stands for the answer where a column map wants one."""


@dataclass(frozen=True)
class Question:
    """A dialogue up to where the model is to answer."""

    where: str
    fields: dict[str, Any]
    """The record as it was read."""
    messages: list[Message]
    """The last is of the user."""
    answer: str | None = None
    """The one that is wanted, where it is known."""

    @property
    def dialogue(self) -> list[Message]:
        """With the answer that is wanted."""
        return [*self.messages, Message("assistant", self.answer or "")]

    @property
    def instruction(self) -> str:
        """What the user said last, with its input."""
        last = self.messages[-1]
        return f"{last.content}\n\n{last.input}" if last.input else last.content

    @property
    def group(self) -> str | None:
        """Rewordings of one question share it."""
        group = self.fields.get("group")
        return None if group is None else str(group)


class BadRecord(NamedTuple):
    """A record that holds no question."""

    fields: dict[str, Any]
    error: str
    """Names file and line."""


def each_record(path: str) -> Iterator[Record | BadRecord]:
    """The records below a path; - is stdin, JSONL.

    A line of JSONL that holds none is yielded as such; other files are whole or refused.
    """
    if path == "-":
        yield from _each_line(limited_lines(sys.stdin.buffer, "stdin"), "stdin")
        return
    tally = Tally()
    for file in find_records(path, tally):
        if file.format == "jsonl":
            lines = read_lines(Part(file, 0, file.num_bytes, file.num_bytes), tally)
            yield from _each_line(lines, printable(file.path))
        else:
            yield from read_records(file, "strict", tally)


def _each_line(lines: Iterable[tuple[int, bytes]], name: str) -> Iterator[Record | BadRecord]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except JSON_ERRORS as error:  # bytes that are not UTF-8 too
            yield BadRecord({}, f"{name}, line {number:,}: not valid JSON ({error}).")
            continue
        if isinstance(value, dict):
            yield Record(value, name, "line", number)
        else:
            yield BadRecord(
                {},
                f"{name}, line {number:,}: a record has to be an object with named fields, not {kind_of(value)}.",
            )


def read_each(
    path: str, open_columns: Callable[[Record], ColumnMap], read: Callable[[Record, ColumnMap], T]
) -> list[T | BadRecord]:
    """What `read` makes of every record below a path; one that holds nothing for it stays as a BadRecord.

    Errors: UserError for a file that cannot be read, one without records, and of `open_columns`, which sees the first.
    """
    found: list[T | BadRecord] = []
    opened: ColumnMap | None = None
    for record in each_record(path):
        if isinstance(record, BadRecord):
            found.append(record)
            continue
        opened = opened or open_columns(record)
        try:
            found.append(read(record, opened))
        except Dropped as error:
            found.append(BadRecord(record.fields, f"{record.where}: {str(error).replace('_', ' ')}."))
        except UserError as error:
            found.append(BadRecord(record.fields, str(error)))
    if not found:
        raise UserError(f"{path} holds no records.")
    return found


def read_questions(path: str, columns: str = "auto") -> list[Question | BadRecord]:
    """What there is to answer. A record may have an answer: it is a field like others, and the model does not see it.

    Errors: UserError for a file that cannot be read, and columns that the first record does not have.
    """

    def read(record: Record, opened: ColumnMap) -> Question:
        messages = dialogue(_unanswered(record, opened), opened, Counter())[:-1]
        return Question(record.where, record.fields, messages)

    return read_each(path, lambda first: _open_unanswered(columns, first), read)


def _open_unanswered(spec: str, first: Record) -> ColumnMap:
    """The column map, with a stand-in for the answer."""
    if spec == "auto":
        for name, texts in MAPS["instruct"].items():
            opened = _with_stand_in(ColumnMap(name, texts))
            if set(opened.needed) <= set(first.fields):
                return opened
    return _with_stand_in(open_columns(spec, "instruct", first))


def _with_stand_in(columns: ColumnMap) -> ColumnMap:
    if "output" not in columns.texts:
        return columns
    return ColumnMap(columns.name, {**columns.texts, "output": _UNWRITTEN})


def _unanswered(record: Record, columns: ColumnMap) -> Record:
    """The record with a stand-in for the last answer of its messages."""
    if "messages" not in columns.texts:
        return record
    name = columns.needed[0]
    turns = record.fields.get(name)
    if not isinstance(turns, list) or not turns:
        return record
    last = turns[-1]
    role = last.get("role", last.get("from")) if isinstance(last, Mapping) else None
    if role not in ("system", "user", "human"):
        turns = turns[:-1]
    turns = [*turns, {"role": "assistant", "content": _UNWRITTEN}]
    return record._replace(fields={**record.fields, name: turns})


def read_answered(
    path: str, columns: str = "auto", max_records: int | None = None
) -> tuple[list[Question], Counter[str]]:
    """(questions with the answers that are wanted, how many records were dropped by reason).

    Errors: UserError that names file, line and field where a record is none.
    """
    found: list[Question] = []
    dropped: Counter[str] = Counter()
    opened: ColumnMap | None = None
    for record in read_all(path, "strict", Tally()):
        opened = opened or open_columns(columns, "instruct", record)
        try:
            turns = dialogue(record, opened, Counter())
        except Dropped as error:
            dropped[str(error)] += 1
            continue
        found.append(Question(record.where, record.fields, turns[:-1], turns[-1].content))
        if len(found) == max_records:
            break
    return found, dropped


@dataclass
class Summary:
    """What `answer_questions` has done, in this process and those before it."""

    num_answers: int = 0
    num_stopped: int = 0
    longest: int = 0
    """Tokens of the longest prompt with its answer, of this process."""
    errors: list[str] = dataclasses.field(default_factory=list)

    @property
    def stop_rate(self) -> float:
        """Share of the answers that did not end by their length."""
        return self.num_stopped / self.num_answers if self.num_answers else 0.0

    def count(self, line: Mapping[str, Any]) -> None:
        """Adds a line of the output."""
        if line.get("response") is None:
            self.errors.append(str(line.get("error")))
        else:
            self.num_answers += 1
            self.num_stopped += line["finish_reason"] != "length"


def _prompt_of(
    question: Question | BadRecord,
    template: ChatTemplate,
    system: str | None,
    num_new: int,
    limit: int | None,
) -> list[int] | str:
    """Its ids, or what is wrong."""
    if isinstance(question, BadRecord):
        return question.error
    first = [Message("system", system)] if system and question.messages[0].role != "system" else []
    try:
        ids = template.prompt([*first, *question.messages])
    except UserError as error:
        return f"{question.where}: {error}"
    if limit is not None and len(ids) + num_new > limit:
        words = f"{len(ids)} tokens and {num_new} new ones are beyond the {limit} positions of the model"
        return f"{question.where}: {words}."
    return ids


def _outcome(prompt: list[int] | str, answer: Continuation | None) -> dict[str, Any]:
    """What a line of the output says besides the fields of its record."""
    if answer is None:
        return {"response": None, "error": prompt}
    return {
        "response": answer.text.strip(),
        "finish_reason": answer.finish_reason,
        "num_tokens": len(answer.tokens),
    }


def answer_questions(
    lm: LM,
    params: Params,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    questions: Sequence[Question | BadRecord],
    output: str | os.PathLike,
    *,
    settings: dict[str, Any],
    system: str | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 256,
    stop: Sequence[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
    **sampling: Any,
) -> Summary:
    """Writes a line for each question, in order: its fields, response, finish_reason and num_tokens; or error.

    An answer depends on its question, its place and the seed, not on when the run was killed: see
    `jaxlm.infer.sample.generate`.

    Args:
      settings: what else decides about the answers: which weights these are.
      system: for dialogues that have no system message of their own.
    """
    asked = [
        (q.error, q.fields) if isinstance(q, BadRecord) else (q.where, q.fields, q.messages)
        for q in questions
    ]
    settings = {
        **settings, **sampling, "template": template.text, "stop_ids": template.stop_ids, "stop": list(stop),
        "system": system, "max_new_tokens": max_new_tokens, "batch_size": batch_size,
        "questions": hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest(),
    }  # fmt: skip
    limit = axis_size(lm, params, "positions")
    summary = Summary()

    with resumable(output, settings, batch_size) as file:
        for line in file.done:
            summary.count(line)
        for first in range(len(file.done), len(questions), batch_size):
            chosen = questions[first : first + batch_size]
            prompts = [_prompt_of(question, template, system, max_new_tokens, limit) for question in chosen]
            ids = {i: prompt for i, prompt in enumerate(prompts) if not isinstance(prompt, str)}
            found = continue_ids(
                lm,
                params,
                tokenizer,
                list(ids.values()),
                stop_ids=template.stop_ids,
                max_new_tokens=max_new_tokens,
                stop=stop,
                row_ids=[first + i for i in ids],
                batch_size=batch_size,
                **sampling,
            )
            answers = dict(zip(ids, found, strict=True))
            lines = [
                question.fields | _outcome(prompt, answers.get(i))
                for i, (question, prompt) in enumerate(zip(chosen, prompts))
            ]
            totals = [len(ids[i]) + len(answer.tokens) for i, answer in answers.items()]
            summary.longest = max([summary.longest, *totals])
            file.write(lines)
            for line in lines:
                summary.count(line)
            if on_progress is not None:
                on_progress(first + len(chosen), len(questions))
    return summary
