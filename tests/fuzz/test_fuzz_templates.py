"""Chat templates from anybody: programs in a sandbox, in a process with limits."""

import os
import time

import pytest
import small_tokenizers
from hostile import fuzz, refused
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.data import chat, chat_worker
from jaxlm.data.chat import ChatTemplate, Message, saved_chat
from jaxlm.data.tokenizer_hf import HFTokenizer
from jaxlm.types import UserError

GOOD = (
    "{% for m in messages %}<|begin|>{{ m.role }}: {{ m.content }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant: {% endif %}"
)
HOSTILE = {
    "a loop without end": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "a huge range": "{% for i in range(10**9) %}x{% endfor %}",
    "a huge text": "{{ 'x' * 10**10 }}",
    "a huge list": "{{ [0] * 10**10 }}",
    "a huge number": "{{ 9 ** (9 ** 9) }}",
    "much output": "{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}",
    "a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a class by attr": "{{ ''|attr('__class__') }}",
    "a class by format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "a class by format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "format by attr": "{{ ('{0.__cla' ~ 'ss__}')|attr('format')(1) }}",
    "format by map": "{{ ['{0.__class__}']|map('format', 1)|list }}",
    "a wide format": "{{ '%999999999d' % 1 }}",
    "a wide date": "{{ strftime_now('%999999999d') }}",
    "globals of a helper": "{{ raise_exception.__globals__ }}",
    "globals by cycler": "{{ cycler.__init__.__globals__.os.environ }}",
    "the object of a method": "{{ strftime_now.__self__ }}",
    "a file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}{{ os.environ }}",
    "another template": "{% extends 'base.html' %}",
    "a change of the dialogue": "{{ messages.append(1) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "deep brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep lists": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "deep blocks": "{% if 1 %}" * 300 + "{% endif %}" * 300,
    "deep operators": "{{ " + "-" * 100_000 + "1 }}",
    "indent": "{{ messages|tojson(indent=10**9) }}",
    "center": "{{ 'x'|center(10**10) }}",
    "lipsum": "{{ lipsum(n=10**6) }}",
    "a caught error": "{{ raise_exception('no') }}",
    "undefined": "{{ nothing.at.all }}",
    "not closed": "{% for",
    "nothing": "",
}
EMPTY = (
    "a class by attr", "a class by format_map", "format by attr", "a wide date", "globals of a helper",
    "the object of a method",
)  # fmt: skip
"""What the sandbox makes undefined, which writes nothing."""
HARMLESS = ("undefined", "nothing", "lipsum", "indent", "a caught error", "not closed", "deep blocks", *EMPTY)
"""These are text, or undefined, or no template at all."""


@pytest.fixture(scope="module")
def tokenizer():
    return HFTokenizer(small_tokenizers.level())


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(chat_worker, "SECONDS", 1.0)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_refused_soon_and_tells_nothing(name, tokenizer, quick):
    begin = time.monotonic()
    with pytest.raises(UserError, match="chat template|The chat template") as error:
        ChatTemplate("it", HOSTILE[name], tokenizer)
    assert time.monotonic() - begin < 40  # a second of its processor, on a machine that may be busy
    assert len(str(error.value)) < 3000
    assert not any(word in str(error.value) for word in ("root:", "<class '", "HOME", "built-in"))


@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in HARMLESS])
def test_hostile_code_in_a_turn_of_a_good_template_is_refused(name, tokenizer, quick):
    """It may come to life with the second answer only, after the template was tried."""
    late = "{% if messages|length > 5 %}" + HOSTILE[name] + "{% endif %}"
    try:
        template = ChatTemplate("it", late + GOOD, tokenizer)
    except UserError:
        return  # not even compiled
    short = [Message("user", "a"), Message("assistant", "b")]
    assert template.example(short)
    with pytest.raises(UserError, match="chat template it: "):
        template.example(short * 3)
    assert template.example(short), "the process starts again"


@pytest.mark.parametrize("name", EMPTY)
def test_what_the_sandbox_hides_is_empty(name):
    assert chat_worker.render(chat_worker.compile_template(HOSTILE[name]), {"messages": [1]}) == ""


def test_a_template_sees_no_token_of_the_environment(tokenizer, monkeypatch):
    """Were there a hole in the sandbox, the process would have nothing to tell."""
    monkeypatch.setenv("HF_TOKEN", "hf_" + "planted" * 6)
    template = ChatTemplate("it", GOOD, tokenizer)
    template.example([Message("user", "a"), Message("assistant", "b")])
    process = template._worker._process
    with open(f"/proc/{process.pid}/environ", "rb") as file:
        seen = file.read()
    assert b"planted" not in seen
    assert os.environ["HF_TOKEN"]


PIECES = st.sampled_from(
    ["{{", "}}", "{%", "%}", "{#", "#}", "for m in messages", "endfor", "if", "endif", "else", "set x =", "macro f(x)",
     "endmacro", "generation", "endgeneration", "m.content", "m.role", "messages[0]", "['content']", "|", "tojson",
     "trim", "length", "join", "~", "+", "*", "**", "(", ")", "[", "]", "'", "eos_token", "add_generation_prompt",
     "range(", "99", "10", "loop.first", "not", "is defined", "<|eot|>", "\n", " ", "-", "\0", "é", "namespace(a=1)",
     "x.a", "raise_exception(", "__class__", "break", "continue", "call", "endcall", "filter upper", "endfilter"]
)  # fmt: skip


@fuzz(20)
@given(
    pieces=st.lists(PIECES, max_size=12),
    place=st.integers(0, len(GOOD)),
)
def test_any_template_renders_or_is_refused(pieces, place, tokenizer):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_worker, "SECONDS", 0.5)
        with refused():
            template = ChatTemplate("it", GOOD[:place] + " ".join(pieces) + GOOD[place:], tokenizer)
            template.example([Message("user", "Hi <|eot|>"), Message("assistant", "Hello")])
            template.prompt([Message("user", "Hi")])


def test_a_template_beyond_the_limit_is_not_compiled(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"has 1,048,577 characters, and at most 1,048,576 are read"):
        ChatTemplate("it", "x" * (chat.MAX_TEMPLATE_BYTES + 1), tokenizer)
    (tmp_path / "a.jinja").write_text("x" * (chat.MAX_TEMPLATE_BYTES + 1))
    with pytest.raises(UserError, match="a.jinja is too large: it has more than 1,048,576 bytes"):
        chat.open_template(tokenizer, str(tmp_path / "a.jinja"))
    for content in (
        "[]",
        "{}",
        "[" * 5000,
        '{"name": 1, "template": 2, "stop_ids": 3}',
        '{"name": "", "template": "", "stop_ids": ["a"]}',
        '{"name": "a", "template": "x", "stop_ids": [99999999]}',
    ):
        (tmp_path / "chat.json").write_text(content)
        with pytest.raises(UserError, match="chat.json is damaged, or belongs to another tokenizer"):
            saved_chat(tmp_path, tokenizer)
