"""Column maps: each named one, maps of one's own, and what a record may not look like."""

from collections import Counter

import pytest

from jaxlm.corpus.columns import Dropped, dialogue, labelled, open_columns
from jaxlm.corpus.records import Record
from jaxlm.data.chat import Message
from jaxlm.types import UserError


def record(fields):
    return Record(fields, "a.jsonl", "line", 7)


def read(fields, spec="auto", changed=None):
    one = record(fields)
    return dialogue(one, open_columns(spec, "instruct", one), Counter() if changed is None else changed)


def classified(fields, spec="auto", task="single_label"):
    one = record(fields)
    return labelled(one, open_columns(spec, "classify", one), task)


def asked(content, answer, more=""):
    return [Message("user", content, more), Message("assistant", answer)]


CLAUSE = '{"instruction": "Rewrite.", "input": "{clause}", "output": "{rewritten}\\n\\n{rationale?}"}'


@pytest.mark.parametrize(
    ("fields", "spec", "expected"),
    [
        ({"instruction": "do", "input": "it", "output": "done"}, "auto", asked("do", "done", "it")),
        ({"instruction": "do", "output": "done"}, "alpaca", asked("do", "done")),
        ({"instruction": "do", "input": None, "output": "done"}, "auto", asked("do", "done")),
        ({"instruction": "", "input": "it", "output": "done"}, "auto", asked("it", "done")),
        ({"instruction": "do", "response": "done"}, "auto", asked("do", "done")),
        ({"question": "q", "answer": "a"}, "auto", asked("q", "a")),
        ({"question": "q", "context": "c", "answer": "a"}, "auto", asked("q", "a", "c")),
        ({"ticket": "t", "resolution": "r", "id": 4}, "auto", asked("t", "r")),
        ({"clause": "c", "rewritten": "w", "rationale": "y"}, "auto",
         asked("Rewrite the clause in plain language, then give the rationale.", "w\n\ny", "c")),
        ({"clause": "c", "rewritten": "w", "rationale": "y"}, CLAUSE, asked("Rewrite.", "w\n\ny", "c")),
        ({"clause": "c", "rewritten": "w"}, CLAUSE, asked("Rewrite.", "w", "c")),
        ({"q": "q", "a": "a"}, "instruction=q, output=a", asked("q", "a")),
        ({"question": "q", "answer": "a", "system": "s"}, "auto", [Message("system", "s"), *asked("q", "a")]),
        ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                       {"role": "assistant", "content": "a"}]}, "auto", [Message("system", "s"), *asked("q", "a")]),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"}, "auto",
         [Message("system", "s"), *asked("q", "a")]),
        ({"chat": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "messages=chat",
         asked("q", "a")),
    ],
)  # fmt: skip
def test_a_dialogue(fields, spec, expected):
    assert read(fields, spec) == expected


def turns(*roles, content="x"):
    return {"messages": [{"role": role, "content": content} for role in roles]}


def test_a_last_turn_that_nobody_answers_is_left_out_and_counted():
    changed = Counter()
    assert len(read(turns("user", "assistant", "user"), changed=changed)) == 2
    assert changed == {"unanswered_last_turn": 1}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"question": "q", "answer": " \n"}, "empty_answer"),
        ({"question": "q", "answer": None}, "empty_answer"),
        ({"question": " ", "answer": "a"}, "empty_prompt"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]}, "empty_answer"),
        (turns("user", "assistant", content=""), "empty_answer"),
    ],
)  # fmt: skip
def test_nothing_to_learn_is_a_drop_with_a_reason(fields, reason):
    with pytest.raises(Dropped, match=f"^{reason}$"):
        read(fields)


@pytest.mark.parametrize(
    ("fields", "spec", "message"),
    [
        ({"a": 1, "b": 2}, "auto", r"a.jsonl, line 7: no column map of objective=instruct fits the columns 'a', 'b'. "
         r"There are messages: messages; .*question_answer: question, answer; .*columns='instruction=question,output="),
        ({"question": "q", "answer": 4}, "auto", r"line 7, field 'answer': the output has to be a text, found a"),
        ({"question": ["q"], "answer": "a"}, "auto", r"line 7, field 'question': the instruction has to be a text"),
        ({"question": "q"}, "question_answer", "line 7: field 'answer' is missing, .*found 'question'"),
        ({"question": "q\ud83d", "answer": "a"}, "auto", r"field 'question': \\ud83d is half of a character"),
        ({"messages": "x"}, "auto", "field 'messages': has to be a list of messages, found 'x'"),
        ({"messages": []}, "auto", r"has to be a list of messages, found \[\]"),
        ({"messages": ["x"]}, "auto", r"field 'messages\[0\]': a message is an object with role and content"),
        (turns("user", "tool", "assistant"), "auto", r"field 'messages\[1\]': the role 'tool' is none of system"),
        (turns("user", None), "auto", r"field 'messages\[1\]': the role None is none of"),
        (turns("user", "user"), "auto", r"field 'messages\[1\]': a message of user follows one of user"),
        (turns("assistant", "user"), "auto", r"field 'messages\[0\]': a message of assistant comes first"),
        (turns("user", "system"), "auto", r"field 'messages\[1\]': a message of system follows one of user"),
        (turns("user", "assistant", "assistant"), "auto", r"\[2\]': a message of assistant follows one of assistant"),
        (turns("user"), "auto", "no message is of the assistant"),
        (turns("system"), "auto", "no message is of the assistant"),
        (turns("user", "assistant", content=["x"]), "auto", r"\[0\]': the content has to be a text, found a list"),
        ({"q": 1}, "alpacca", "columns='alpacca' is no column map: take auto, one of messages"),
        ({"q": 1}, "instruction=q", "needs the roles instruction and output, or messages"),
        ({"q": 1}, "instruction=q,answer=q", "'answer' is no role: there are input, instruction"),
        ({"q": 1}, '{"instruction": ', "is not valid JSON"),
        ({"q": 1}, '{"instruction": 1, "output": "x"}', "every role takes a text"),
        ({"q": 1}, '{"messages": "{a}{b}"}', "messages takes one column"),
    ],
)  # fmt: skip
def test_a_record_or_map_that_is_wrong_is_named(fields, spec, message):
    with pytest.raises(UserError, match=message):
        read(fields, spec)


@pytest.mark.parametrize(
    ("fields", "spec", "task", "expected"),
    [
        ({"text": "t", "label": "spam"}, "auto", "single_label", ("t", ["spam"])),
        ({"text": "t", "label": 1}, "auto", "single_label", ("t", ["1"])),
        ({"text": "t", "label": 2.0}, "auto", "single_label", ("t", ["2"])),
        ({"text": "t", "label": True}, "auto", "single_label", ("t", ["true"])),
        ({"text_a": "a", "text_b": "b", "label": "x"}, "auto", "single_label", ("a\nb", ["x"])),
        ({"text": "t", "label": []}, "auto", "multi_label", ("t", [])),
        ({"text": "t", "label": ["x", 1, "x"]}, "auto", "multi_label", ("t", ["x", "1"])),
        ({"text": "t", "label": "0.5"}, "auto", "regression", ("t", 0.5)),
        ({"review": "t", "stars": 4}, "text=review,label=stars", "regression", ("t", 4.0)),
        ({"a": "t", "b": "u", "y": 4}, '{"text": "{a}: {b}", "label": "{y}"}', "single_label", ("t: u", ["4"])),
    ],
)  # fmt: skip
def test_a_text_and_its_label(fields, spec, task, expected):
    assert classified(fields, spec, task) == expected


@pytest.mark.parametrize(
    ("fields", "task", "message"),
    [
        ({"text": "t", "label": None}, "single_label", "line 7, field 'label': a label is .* found null"),
        ({"text": "t", "label": ""}, "single_label", "found an empty text"),
        ({"text": "t", "label": 0.5}, "single_label", r"found a number \(task=regression takes numbers\)"),
        ({"text": "t", "label": ["x"]}, "single_label", r"found a list \(task=multi_label takes lists\)"),
        ({"text": "t", "label": "x"}, "multi_label", "needs a list of labels, found a string"),
        ({"text": "t", "label": [None]}, "multi_label", "found null"),
        ({"text": "t", "label": "x"}, "regression", "needs a number, found 'x'"),
        ({"text": "t", "label": True}, "regression", "needs a number, found True"),
        ({"text": "t", "label": "nan"}, "regression", "needs a number, found 'nan'"),
        ({"text": 4, "label": "x"}, "single_label", "field 'text': the text has to be a text"),
        ({"texts": "t", "label": "x"}, "single_label", "no column map of objective=classify fits"),
    ],
)  # fmt: skip
def test_a_label_or_text_that_is_wrong_is_named(fields, task, message):
    with pytest.raises(UserError, match=message):
        classified(fields, "auto", task)


def test_an_empty_text_is_a_drop():
    with pytest.raises(Dropped, match="^empty_text$"):
        classified({"text": " ", "label": "x"})
