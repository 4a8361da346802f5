"""A conversation with a model: its turns, in the template it was trained with, as far as they fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxlm.data.chat import ChatTemplate, Message, open_template, saved_chat
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.infer.text import continue_ids
from jaxlm.models.build import LM
from jaxlm.types import Params, UserError


def run_template(workdir: str | os.PathLike, tokenizer: Tokenizer, objective: str) -> ChatTemplate:
    """The template a run was trained with; else its tokenizer's, as an imported chat model has it.

    Errors: UserError where there is neither: the model has learnt no dialogues.
    """
    if objective == "classify":
        raise UserError(
            f"--run={workdir} is a classifier, which writes nothing: ask it with `jaxlm predict`."
        )
    template = saved_chat(workdir, tokenizer)
    if template is None and tokenizer.chat_template is None:
        raise UserError(
            f"--run={workdir} has no chat template, neither stored nor in its tokenizer: it has learnt texts and not "
            "dialogues. Train it on some (objective=instruct), or let it continue a text (jaxlm generate --prompt=...)."
        )
    return template or open_template(tokenizer, "chat")


def message_ids(template: ChatTemplate, text: str, system: str | None = None) -> list[int]:
    """Ids of a conversation that begins with this message."""
    return template.prompt([*([] if system is None else [Message("system", system)]), Message("user", text)])


class Answer(NamedTuple):
    """What the model said."""

    text: str
    finish_reason: str
    """`eos`, `stop`, `length` or `interrupted`."""
    num_dropped: int
    """Turns that were forgotten to make room, since the conversation began."""


class Conversation:
    """Turns of a user and the model.

    The longest conversation the model has learnt from bounds what it sees: the oldest turns are dropped to keep a
    quarter of that, or max_new_tokens, for the answer. The system message stays.
    """

    def __init__(
        self,
        lm: LM,
        params: Params,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        context_tokens: int,
        max_new_tokens: int,
        system: str | None = None,
        **sampling: Any,
    ):
        self._model = lm, params, tokenizer
        self._template = template
        self._context_tokens = context_tokens
        self._max_new_tokens = max_new_tokens
        self._sampling = sampling
        self._system = [] if system is None else [Message("system", system)]
        self.turns: list[Message] = []
        """The conversation, without the system message and without what was dropped."""
        self._num_dropped = 0
        if system is not None:
            message_ids(template, "?", system)  # some templates refuse a system message

    def reset(self) -> None:
        """Forgets all turns."""
        self.turns, self._num_dropped = [], 0

    def ask(self, text: str, on_text: Callable[[str], None]) -> Answer:
        """Answers, streaming; an interrupt (Ctrl-C) ends the answer, and what was said of it is remembered.

        Errors: UserError for a message that fits in no context or that the template refuses; it is then forgotten.
        """
        turns = [*self.turns, Message("user", text)]
        ids = self._template.prompt([*self._system, *turns])
        room = min(self._max_new_tokens, max(self._context_tokens // 4, 1))
        num_dropped = self._num_dropped
        while len(ids) + room > self._context_tokens and len(turns) > 1:
            turns, num_dropped = turns[2:], num_dropped + 2
            ids = self._template.prompt([*self._system, *turns])
        if len(ids) >= self._context_tokens:
            raise UserError(
                f"the message takes {len(ids)} tokens of the {self._context_tokens} that the model reads, and leaves "
                "no room for an answer: shorten it."
            )
        said: list[str] = []

        def show(row: int, new: str) -> None:
            said.append(new)
            on_text(new)

        finish_reason = "interrupted"
        try:
            [found] = continue_ids(
                *self._model,
                [ids],
                stop_ids=self._template.stop_ids,
                max_new_tokens=min(self._max_new_tokens, self._context_tokens - len(ids)),
                on_text=show,
                **self._sampling,
            )
            finish_reason = found.finish_reason
        except KeyboardInterrupt:
            pass
        answer = "".join(said).strip()
        if answer or finish_reason != "interrupted":
            self.turns, self._num_dropped = [*turns, Message("assistant", answer)], num_dropped
        return Answer(answer, finish_reason, num_dropped)
