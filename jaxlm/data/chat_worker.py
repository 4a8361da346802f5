"""Renders one chat template, as a process of its own that may take only so much time, memory and output.

A template is a program that comes with a tokenizer, from anybody. Jinja's sandbox keeps it from the machine, and
this process keeps it from going on for ever: whatever it does, loops or one huge operation, counts.

    python chat_worker.py SECONDS       a line of JSON in, a line of JSON out
    {"template": ..., "variables": {...}}                       once; -> {}
    {"jobs": [[messages, add_generation_prompt], ...]}          -> {"texts": [...], "spans": [[[start, end], ...], ...]}

Not bounded: nothing that a template can do. Bounded are the processor time of each line (SECONDS: at its end the
process is ended from outside, by SIGPROF), the memory of the process (MEMORY_BYTES; not on macOS, which has no such
limit) and the characters of each text (MAX_CHARS).
"""

import contextlib
import datetime
import json
import re
import resource
import secrets
import signal
import sys
from typing import Any

import jinja2
import jinja2.nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 5.0
MEMORY_BYTES = 1 << 30
MAX_CHARS = 1 << 24
TODAY = datetime.datetime(2024, 7, 26)
"""Of `strftime_now`: a run is a function of its config, not of the day it began. The date that Llama 3's has."""
_NONCE = secrets.token_hex(8)
_START, _END = f"\0{_NONCE}(", f"\0{_NONCE})"
_MARK = re.compile(f"\0{_NONCE}[()]")


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: what the assistant writes, as in transformers."""

    tags = {"generation"}

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        """Puts marks around the block, which `split_marks` finds wherever the text of it has gone."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        return f"{_START}{caller()}{_END}"


def raise_exception(message: str) -> None:
    """For templates that check a dialogue."""
    raise jinja2.TemplateError(message)


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys=False
):
    """`tojson` as transformers has it: Jinja's own escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def compile_template(text: str) -> jinja2.Template:
    """The template, with the settings and helpers of transformers."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = TODAY.strftime
    return environment.from_string(text)


def split_marks(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """(the text without marks, the [start, end) that they enclose)."""
    parts, spans, size, start, last = [], [], 0, 0, 0
    for mark in _MARK.finditer(marked):
        parts.append(marked[last : mark.start()])
        size += len(parts[-1])
        last = mark.end()
        if mark[0] == _START:
            start = size
        elif size > start:
            spans.append((start, size))
    return "".join([*parts, marked[last:]]), spans


def render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """The text of a template, with marks."""
    parts, size = [], 0
    for part in template.generate(**variables):
        parts.append(part)
        size += len(part)
        if size > MAX_CHARS:
            raise jinja2.TemplateError(f"it writes more than {MAX_CHARS:,} characters")
    return "".join(parts)


def main(seconds: float) -> None:
    """Answers lines until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    template, variables = jinja2.Template(""), {}
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            request = json.loads(line)
            if "template" in request:
                template, variables = compile_template(request["template"]), request["variables"]
                answer = {}
            else:
                texts, spans = [], []
                for messages, prompt in request["jobs"]:
                    given = {
                        "messages": messages,
                        "add_generation_prompt": prompt,
                        "tools": None,
                        "documents": None,
                    }
                    text, inside = split_marks(render(template, {**given, **variables}))
                    texts.append(text)
                    spans.append(inside)
                answer = {"texts": texts, "spans": spans}
        except jinja2.TemplateSyntaxError as error:
            answer = {"error": f"line {error.lineno}: {error.message}"}
        except MemoryError:
            answer = {"error": f"it needs more than {MEMORY_BYTES >> 20} MB of memory"}
        except Exception as error:  # a template can raise anything
            kind = "" if type(error) is jinja2.TemplateError else f"{type(error).__name__}: "
            answer = {"error": f"{kind}{error}"[:2000]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]))
