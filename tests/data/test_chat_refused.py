"""Chat templates that are refused, and why; what hostile ones cannot do, and how long they may take."""

import re
import time

import pytest
from chat_cases import HEAD, ONE, PROMPT, open_file

from jaxlm.data import chat_worker
from jaxlm.data.chat import Message
from jaxlm.types import UserError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD, "behind the generation prompt it writes '<|im_start|>assistant"),  # would train on the header
        (HEAD + "{% if add_generation_prompt %}<|im_start|>bot\n{% endif %}", "is not how the dialogue begins"),
        ("{{ messages|length }}" + HEAD + PROMPT, "is not how the dialogue begins"),
        (HEAD.replace("<|im_end|>", "") + PROMPT, "writes no special token behind an answer"),
        (HEAD.replace("m.content", "m.content|upper") + PROMPT, "not the answer 'jaxlm answers'"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "it writes ''"),
        (
            HEAD.replace("m.content", "m.content if loop.last or m.role == 'user' else m.content|upper") + PROMPT,
            "in another way once more turns follow",
        ),
        ("{% generation %}" + HEAD + "{% endgeneration %}", "it would train on all tokens"),
        (HEAD + "{% generation %}{% endgeneration %}", "it would train on no tokens"),
        ("{% if %}", "line 1: Expected an expression"),
        ("{% for m in messages %}", "line 1: Unexpected end of template"),
        ("{{ raise_exception('no') }}", "own.jinja: no."),
        ("{% include 'x' %}", "TypeError: no loader"),
        ("{{ messages[7].content.x }}", "UndefinedError"),
    ],
)  # fmt: skip
def test_a_template_is_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        open_file(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "access to attribute 'append'"),
        ("{{ raise_exception.__globals__['sys'] }}", "'__globals__'"),
        ("{{ cycler.__init__.__globals__.os.popen('id') }}", "SecurityError"),
        ("{{ '{0.__class__.x}'.format(1) }}", "SecurityError"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{% for i in range(99999) %}{{ 'x' * 10000 }}{% endfor %}", "more than 16,777,216 characters"),
        ("{{ 'x' * 10**10 }}", "more than 1024 MB of memory"),
        ("{{ '%2000000000d' % 1 }}", "more than 1024 MB of memory"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)  # fmt: skip
def test_the_sandbox_holds(tmp_path, text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        open_file(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 7 ** (9 ** 9) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% set n = namespace(a=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% endfor %}"
        "{% set m = namespace(a=[1]) %}{% for i in range(60) %}{% set m.a = [m.a, m.a] %}{% endfor %}{{ n.a == m.a }}",
    ],
)  # fmt: skip
def test_a_template_that_goes_on_for_ever_is_ended(tmp_path, monkeypatch, text):
    monkeypatch.setattr(chat_worker, "SECONDS", 0.5)
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"took more than 0.5 s"):
        open_file(tmp_path, text)
    assert time.monotonic() - begin < 60


def test_a_template_that_was_ended_goes_on_with_the_next_dialogue(tmp_path, monkeypatch):
    monkeypatch.setattr(chat_worker, "SECONDS", 0.5)
    slow = "{% if 'slow' in messages[0].content %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    template = open_file(tmp_path, slow + "{% endfor %}{% endif %}" + HEAD + PROMPT)
    expected = template.example(ONE)
    with pytest.raises(UserError, match="took more than"):
        template.example([Message("user", "slow"), ONE[1]])
    assert template.example(ONE) == expected
