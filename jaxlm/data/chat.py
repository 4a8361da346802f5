"""Dialogues as the text a chat model is trained on: Jinja templates, and which ids of it are an answer.

    template = open_template(tokenizer, "auto")
    ids, trained = template.example([Message("user", "Hi"), Message("assistant", "Hello.")])
    template.prompt([Message("user", "Hi")])        the same ids, up to where the answer begins

**What is trained** is worked out from the template. Where it has `{% generation %}`, that is what stands inside.
Elsewhere the dialogue is rendered up to an answer, with the generation prompt, and up to the answer's end: what the
second has more is what the model is to write, with the tokens that end its turn. These are all that the template
writes before the next turn, in ChatML `<|im_end|>` and the newline after it: as in TRL, so that losses agree.
A token that reaches over the border is trained if it holds at least one character of the answer's side.
A template for which the border cannot be known is refused.

**Ids** are those of the whole rendered text at once, as in transformers. Only where the content of a message spells a
special token (`<|im_end|>` in a user's text, say) they differ: there it is text, and cannot end or begin a turn.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from jaxlm.data import chat_worker
from jaxlm.data.files import read_file, write_atomic
from jaxlm.data.tokenizer import Span, Tokenizer, check_unicode
from jaxlm.limits import Row, check, read_json
from jaxlm.types import JSON_ERRORS, UserError

CHAT_FILE = "chat.json"
"""Where the template lies in the folder of a run."""
MAX_TEMPLATE_BYTES = 1 << 20
"""Of a chat template; the longest known ones have some ten kilobytes."""
ALPACA = """\
{%- for message in messages %}
{%- if loop.first and message.role != 'system' %}
{{- 'Below is an instruction that describes a task' }}
{%- if message.input %}{{ ', paired with an input that provides further context' }}{% endif %}
{{- '. Write a response that appropriately completes the request.\\n\\n' }}
{%- endif %}
{%- if message.role == 'system' %}
{{- message.content + '\\n\\n' }}
{%- elif message.role == 'user' %}
{{- '### Instruction:\\n' + (message.instruction or message.content) + '\\n\\n' }}
{%- if message.input %}{{ '### Input:\\n' + message.input + '\\n\\n' }}{% endif %}
{%- else %}
{{- '### Response:\\n' + message.content + (eos_token or '') }}
{%- if not loop.last %}{{ '\\n\\n' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}
"""
"""With and without input; a system message takes the place of the first paragraph.

Source: Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca, with the newline after `### Response:` that
everybody has added since.
"""
_THINKING = re.compile(r"\s*(?:<think>.*?)?</think>\s*", re.DOTALL)
"""Reasoning before an answer; its start may be part of the generation prompt."""
_GENERATION = re.compile(r"{%[-+]?\s*generation\b")
_PROBES = ("jaxlm asks", "jaxlm answers", "jaxlm asks again", "jaxlm answers again")


WORKER_ENVIRONMENT = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PATH",
    "SYSTEMROOT",
    "TMPDIR",
    "VIRTUAL_ENV",
)
"""All that the process of a template sees: a hole in the sandbox would find no tokens there."""


class Message(NamedTuple):
    """One turn of a dialogue.

    `input` is what an instruction is about, where a record has it apart: Alpaca's template gives it a paragraph of
    its own, all others see it after the content and a blank line.
    """

    role: str
    content: str
    input: str = ""


class Rendered(NamedTuple):
    """A text, and what of it stands inside `{% generation %}`."""

    text: str
    generated: list[Span]


class ChatTemplate:
    """A chat template with the tokenizer it writes for. Thread-safe; made by `open_template` or `saved_chat`.

    Its process (see chat_worker.py) starts with the first rendering.
    """

    def __init__(self, name: str, text: str, tokenizer: Tokenizer, stop_ids: Sequence[int] | None = None):
        """Compiles and tries the template.

        Args:
          name: for people and messages: `chat`, `alpaca` or a file.
          stop_ids: as they were saved; None: those of the tokenizer, and the one that ends a turn here.

        Errors: UserError when it is no template, breaks a limit, or does not tell where an answer begins and ends.
        """
        if len(text) > MAX_TEMPLATE_BYTES:
            raise UserError(
                f"The chat template {name} has {len(text):,} characters, and at most {MAX_TEMPLATE_BYTES:,} are "
                "read. instruct.template takes another one: alpaca, or the path of a Jinja file."
            )
        self.name = name
        self.text = text
        self.note: str | None = None
        """What a user should know about it."""
        self._tokenizer = tokenizer
        self._special = _any_of(tokenizer.special)
        self._marks_answers = bool(_GENERATION.search(text))
        self._worker = _Worker(text, _named_tokens(tokenizer))
        if stop_ids is None:
            self._add_prefix()
            end = self._check()
            stop_ids = [*tokenizer.stop_ids, *([] if end is None else [end])]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(stop_ids))
        """Every id that ends what the model writes."""

    def __reduce__(self):
        return ChatTemplate, (self.name, self.text, self._tokenizer, self.stop_ids)

    def _add_prefix(self) -> None:
        """Where the tokenizer begins every text with BOS, and the template does not, BOS becomes part of it."""
        prefix = list(self._tokenizer.prefix_ids)
        [(text, _)] = self._render([(_messages(_PROBES[:1]), True)])
        if prefix and self._tokenizer.encode_markup(text)[: len(prefix)] != prefix:
            literal = json.dumps("".join(map(self._tokenizer.piece, prefix)), ensure_ascii=False)
            # Blanks before a block at the start of a line are not part of the text: they would be after a literal.
            self.text = f"{{{{ {literal} }}}}" + re.sub(r"^[ \t]+(?={[%#])", "", self.text)
            self._worker = _Worker(self.text, _named_tokens(self._tokenizer))

    def _check(self) -> int | None:
        """The id that ends an answer; refuses what cannot be trained on."""
        for count in (2, 4):
            messages = _messages(_PROBES[:count])
            ids, trained = self.example(messages)
            if all(trained) or not any(trained):
                raise self._error(f"of a dialogue it would train on {'all' if all(trained) else 'no'} tokens")
        end = self._end_of_turn(messages)
        if end is None and not self._marks_answers:
            raise self._error(
                "it writes no special token behind an answer, so a model would never learn to stop. End the turns of "
                "the assistant with {{ eos_token }}"
                + ("" if self._tokenizer.eos_id is not None else ", and take a tokenizer that has one")
            )
        if end is None or end not in {i for i, known in zip(ids, trained) if known}:
            self.note = (
                f"the chat template {self.name} leaves the token that ends a turn outside its {{% generation %}}: the "
                "model is not taught to stop."
            )
        return end

    def _end_of_turn(self, messages: Sequence[Message]) -> int | None:
        [(text, _)] = self._render([(messages, False)])
        closing = text.rpartition(messages[-1].content)[2]
        ids = self._tokenizer.encode_markup(closing)
        special = set(self._tokenizer.special.values())
        end = next((i for i in ids if i in special), None)
        if end is None and len(alone := self._tokenizer.encode_markup(closing.strip())) == 1:
            return alone[0]  # an added token that is not called special
        return end

    def example(
        self, messages: Sequence[Message], train_on: str = "answers", train_on_prompt: bool = False
    ) -> tuple[list[int], list[bool]]:
        """(ids, whether each is trained on) of a dialogue.

        Args:
          train_on: `answers`: all of the assistant's turns; `last_answer`: only the last.
          train_on_prompt: the rest of the dialogue too.

        Errors: UserError when the template refuses the dialogue, or changes an answer so that it is not found again.
        """
        text, restore = self._hide_special(messages)
        answers = [n for n, message in enumerate(text) if message.role == "assistant"]
        jobs = [(text, False)]
        if not self._marks_answers or train_on == "last_answer":
            jobs += [job for n in answers for job in ((text[:n], True), (text[: n + 1], False))]
        whole, *parts = self._render(jobs)
        if self._marks_answers:
            spans = whole.generated
            if train_on == "last_answer":
                begin = len(os.path.commonprefix([whole.text, parts[-2].text]))
                spans = [span for span in spans if span[1] > begin]
        else:
            wanted = range(len(answers))[-1:] if train_on == "last_answer" else range(len(answers))
            spans = [
                self._answer(whole.text, parts[2 * n].text, parts[2 * n + 1].text, text[answers[n]].content)
                for n in wanted
            ]
        ids, places, spans = self._encode(whole.text, spans, restore)
        if train_on_prompt:
            return ids, [True] * len(ids)
        return ids, _overlaps(places, spans)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a dialogue up to where the assistant's answer begins; BOS stands in front once, where there is one."""
        text, restore = self._hide_special(messages)
        [rendered] = self._render([(text, True)])
        return self._encode(rendered.text, [], restore)[0]

    def render(self, messages: Sequence[Message], *, asks: bool = True) -> str:
        """The text of a dialogue, special tokens spelt out.

        Args:
          asks: it ends where the assistant's answer begins; else right behind the last message, which is to be gone on
            with.
        """
        [(text, _)] = self._render([(messages, asks)])
        last = "" if asks else messages[-1].content.rstrip()
        return text[: text.rindex(last) + len(last)] if last and last in text else text

    def _answer(self, whole: str, before: str, until: str, content: str) -> Span:
        """Where in the text an answer stands.

        Args:
          whole: the dialogue.
          before: up to the answer, with the generation prompt.
          until: up to its end.
        """
        start = len(before)
        if not until.startswith(before) or not whole.startswith(before):
            raise self._error(
                "the dialogue up to an answer, with the generation prompt, is not how the dialogue begins "
                f"({before[-40:]!r}), so the prompt of an answer is not known"
            )
        answer = until[start:]
        # Reasoning is the model's to write, and some templates leave it out of all turns but the last.
        bare, expected = (_THINKING.sub("", part, count=1) if _THINKING.match(part) else part
                          for part in (answer, content))  # fmt: skip
        if not bare.lstrip().startswith(expected.strip()):
            raise self._error(
                f"behind the generation prompt it writes {bare[:40]!r}, not the answer {expected.strip()[:40]!r}: what "
                "stands before an answer has to be written {% if add_generation_prompt %} too"
            )
        for found in (answer, bare, bare.lstrip()):
            if whole.startswith(found, start):
                return start, start + len(found)
        # Some write EOS behind the end of the last turn: then an answer goes up to the token that ends its turn.
        common = os.path.commonprefix([whole[start:], answer])
        text, _, closing = common.partition(expected.strip())
        if self._special and (end := self._special.search(closing)):
            return start, start + len(text) + len(expected.strip()) + end.end()
        raise self._error(
            f"it writes the answer {expected.strip()[:40]!r} in another way once more turns follow"
        )

    def _error(self, reason: str) -> UserError:
        way_out = (
            "" if self._marks_answers else " Or mark answers with {% generation %}...{% endgeneration %}."
        )
        return UserError(
            f"The chat template {self.name} cannot be trained with: {reason}.{way_out} instruct.template takes "
            "another one: alpaca, or the path of a Jinja file."
        )

    def _render(self, jobs: Sequence[tuple[Sequence[Message], bool]]) -> list[Rendered]:
        try:
            return self._worker.render(
                [([_as_dict(m) for m in messages], prompt) for messages, prompt in jobs]
            )
        except UserError as error:
            raise UserError(f"chat template {self.name}: {error}") from None

    def _hide_special(self, messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
        """The messages with stand-ins for special tokens that they spell, and what each stands for."""
        for message in messages:
            for part in message:
                check_unicode(part, "a message")
        pattern = self._special
        if pattern is None or not any(pattern.search(part) for message in messages for part in message[1:]):
            return list(messages), {}
        used = {char for message in messages for part in message for char in part}
        mark = next(c for c in map(chr, range(0xE000, 0xF900)) if c not in used)
        restore: dict[str, str] = {}

        def hide(match: re.Match[str]) -> str:
            name = f"{mark}{len(restore)}{mark}"
            restore[name] = match[0]
            return name

        hidden = [
            Message(role, pattern.sub(hide, content), pattern.sub(hide, more))
            for role, content, more in messages
        ]
        return hidden, restore

    def _encode(
        self, text: str, answers: Sequence[Span], restore: Mapping[str, str]
    ) -> tuple[list[int], list[Span], list[Span]]:
        """(ids, the characters of each, the answers), in the text whose stand-ins are restored."""
        encode = self._tokenizer.encode_spans
        ids, places = encode(text, markup=True)
        if not restore:
            return ids, places, list(answers)
        special = set(self._tokenizer.special.values())
        marks = [(i, place) for i, place in zip(ids, places) if i in special]
        pattern = re.compile("|".join(map(re.escape, restore)))
        ids, places, last, moved = [], [], 0, [0]  # moved: old character -> new one
        for token, (start, end) in [*marks, (None, (len(text), len(text)))]:
            plain, done = "", last
            for match in [*pattern.finditer(text, last, start), None]:
                stop = start if match is None else match.start()
                moved += range(moved[-1] + 1, moved[-1] + 1 + stop - done)
                plain += text[done:stop]
                if match is not None:
                    plain += restore[match[0]]
                    moved += [moved[-1] + len(restore[match[0]])] * len(match[0])
                    done = match.end()
            offset = moved[last]
            found, inside = encode(plain, markup=False)
            ids += found
            places += [(offset + a, offset + b) for a, b in inside]
            if token is not None:
                ids.append(token)
                places.append((moved[-1], moved[-1] + end - start))
            moved += range(moved[-1] + 1, moved[-1] + 1 + end - start)
            last = end
        return ids, places, [(moved[a], moved[b]) for a, b in answers]


def open_template(tokenizer: Tokenizer, name_or_path: str = "auto") -> ChatTemplate:
    """The template of instruct.template: `auto`, `chat`, `alpaca` or the path of a Jinja file.

    Errors: UserError when there is none, or it cannot be trained with.
    """
    if name_or_path == "chat" and tokenizer.chat_template is None:
        raise UserError(
            "instruct.template=chat, and the tokenizer has no chat template: it is one of a base model. Try auto, "
            "alpaca, or the path of a Jinja file."
        )
    if name_or_path in ("auto", "chat") and tokenizer.chat_template is not None:
        return ChatTemplate("chat", tokenizer.chat_template, tokenizer)
    if name_or_path in ("auto", "alpaca"):
        return ChatTemplate("alpaca", ALPACA, tokenizer)
    try:
        text = read_file(name_or_path, "a Jinja file, or auto, chat or alpaca", MAX_TEMPLATE_BYTES).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{name_or_path} is not UTF-8 ({error.reason} at byte {error.start}).") from None
    except UserError as error:
        raise UserError(f"instruct.template: {error}") from None
    return ChatTemplate(name_or_path, text, tokenizer)


def save_chat(folder: epath.PathLike, template: ChatTemplate) -> None:
    """Writes the template and the ids that end a turn to FOLDER/chat.json."""
    content = {"name": template.name, "template": template.text, "stop_ids": list(template.stop_ids)}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomic(epath.Path(folder) / CHAT_FILE, text.encode())


def saved_chat(folder: epath.PathLike, tokenizer: Tokenizer) -> ChatTemplate | None:
    """What `save_chat` wrote into the folder; None where there is nothing: a run that learnt no dialogues."""
    path = epath.Path(folder) / CHAT_FILE
    if not path.exists():
        return None
    try:
        content = read_json(path, 2 * MAX_TEMPLATE_BYTES)
        name, text, stop_ids = str(content["name"]), content["template"], content["stop_ids"]
        check([text, stop_ids], Row((str, [int])))
        good = all(i < tokenizer.vocab_size for i in stop_ids)
    except (*JSON_ERRORS, KeyError, TypeError):
        name, text, stop_ids, good = "", "", (), False
    if not good:
        raise UserError(f"{path} is damaged, or belongs to another tokenizer: copy it again from its run.")
    return ChatTemplate(name, text, tokenizer, stop_ids)


def _messages(contents: Iterable[str]) -> list[Message]:
    return [Message(("user", "assistant")[n % 2], content) for n, content in enumerate(contents)]


def _as_dict(message: Message) -> dict[str, str]:
    if not message.input:
        return {"role": message.role, "content": message.content}
    content = f"{message.content}\n\n{message.input}"
    return {"role": message.role, "content": content, "instruction": message.content, "input": message.input}


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(map(re.escape, filter(None, texts)), key=len, reverse=True)
    return re.compile("|".join(longest_first)) if longest_first else None


def _named_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The names that transformers gives a template; one that the tokenizer lacks is undefined, which writes nothing."""
    named = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "unk_token": tokenizer.unk_id}
    return {name: tokenizer.piece(i) for name, i in named.items() if i is not None}


def _overlaps(places: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Whether each place holds at least one character of a span. Both are in order."""
    found, n = [], 0
    for start, end in places:
        while n < len(spans) and spans[n][1] <= start:
            n += 1
        found.append(n < len(spans) and start < spans[n][1] and end > spans[n][0])
    return found


class _Worker:
    """The process that renders a template; it starts when it is needed."""

    def __init__(self, text: str, variables: Mapping[str, str]):
        self._first = {"template": text, "variables": dict(variables)}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def render(self, jobs: Sequence[tuple[list[dict[str, str]], bool]]) -> list[Rendered]:
        """Texts of (messages, add_generation_prompt). Errors: UserError with what the template did wrong."""
        with self._lock:
            if self._process is None or self._owner != os.getpid():
                self._start()
            answer = self._ask({"jobs": jobs})
        spans = [[(start, end) for start, end in inside] for inside in answer["spans"]]
        return list(map(Rendered, answer["texts"], spans))

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", os.path.abspath(chat_worker.__file__), str(chat_worker.SECONDS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True,
            env={name: value for name, value in os.environ.items() if name in WORKER_ENVIRONMENT},
        )  # fmt: skip
        self._owner = os.getpid()
        weakref.finalize(self, _end, self._process, self._owner)
        self._ask(self._first)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        except BaseException:  # interrupted: the next answer would be that to this question
            self._process = None
            _end(process, self._owner)
            raise
        if not line:
            self._process = None
            code = process.wait()
            if code == -signal.SIGPROF:
                raise UserError(
                    f"it took more than {chat_worker.SECONDS:g} s for one dialogue, and was ended."
                )
            raise UserError(f"the process that renders it ended with code {code}.")
        answer = json.loads(line)
        if "error" in answer:
            if "template" in request:
                self._process = None
                _end(process, self._owner)
            raise UserError(f"{answer['error'].rstrip('.')}.")
        return answer


def _end(process: subprocess.Popen[str], owner: int) -> None:
    if owner == os.getpid() and process.poll() is None:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None and owner == os.getpid():
            try:
                stream.close()
            except OSError:  # what was not sent
                pass
