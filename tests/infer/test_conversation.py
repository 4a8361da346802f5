"""Promises of a conversation: its turns in the template, its stop ids only, room for the answer, an end at Ctrl-C."""

from types import SimpleNamespace

import numpy as np
import pytest
from standin import ByteTokenizer, history_lm

from jaxlm.data.chat import Message
from jaxlm.infer.chat import Conversation, run_template
from jaxlm.types import UserError

TOKENIZER = ByteTokenizer()
END = 2 + ord(";")


class Template:
    """`[q:...][a:...]`, then `=`; remembers what it was asked for."""

    stop_ids = (END,)

    def __init__(self):
        self.prompts = []

    def prompt(self, messages):
        if any("refuse" in message.content for message in messages):
            raise UserError("the template refuses")
        self.prompts.append("".join(f"[{message.role[0]}:{message.content}]" for message in messages) + "=")
        return TOKENIZER.encode(self.prompts[-1])


def bigrams(*texts):
    table = np.zeros((TOKENIZER.vocab_size, TOKENIZER.vocab_size), np.float32)
    for text in texts:
        ids = [i if i != "EOS" else 1 for i in (TOKENIZER.encode(text) if isinstance(text, str) else text)]
        for before, after in zip(ids, ids[1:]):
            table[before, after] = 50.0
    return history_lm(table, decay=0.0)


def talk(says="=ok;", context_tokens=200, **options):
    template = Template()
    options = {"max_new_tokens": 10, "temperature": 0.0, **options}
    made = Conversation(*bigrams(says), TOKENIZER, template, context_tokens=context_tokens, **options)
    return made, template


def silent(new):
    pass


def test_a_turn_sees_all_turns_before_it_and_reset_forgets_them():
    conversation, template = talk(system="be")
    shown = []
    answer = conversation.ask("one", shown.append)
    assert (answer.text, answer.finish_reason, "".join(shown)) == ("ok", "stop", "ok")
    conversation.ask("two", silent)
    assert template.prompts[-1] == "[s:be][u:one][a:ok][u:two]="
    conversation.reset()
    conversation.ask("three", silent)
    assert template.prompts[-1] == "[s:be][u:three]="


def test_no_other_id_than_those_of_the_template_ends_an_answer():  # pain 11
    eq, o, k = TOKENIZER.encode("=ok")
    conversation, _ = talk([eq, o, 1, k, END])  # EOS of the tokenizer in the middle
    assert conversation.ask("x", silent).text == "ok"


def test_the_oldest_turns_are_dropped_to_make_room_and_the_system_message_stays():
    conversation, template = talk(context_tokens=65, system="be")
    prompt = "[s:be]" + "[u:0123456789][a:ok]" * 2 + "[u:0123456789]="
    assert len(prompt) == 61
    dropped = [conversation.ask("0123456789", silent).num_dropped for _ in range(4)]
    # Two exchanges and a question take 61 ids, one exchange and a question 41; 10 are for the answer.
    assert dropped == [0, 0, 2, 4]
    assert template.prompts[-1] == "[s:be][u:0123456789][a:ok][u:0123456789]="


def test_a_message_that_leaves_no_room_is_refused_and_forgotten():
    conversation, template = talk(context_tokens=20)
    with pytest.raises(UserError, match="takes 35 tokens of the 20 that the model reads"):
        conversation.ask("x" * 30, silent)
    with pytest.raises(UserError, match="refuses"):
        conversation.ask("refuse", silent)
    # Of an answer there is as much as fits.
    conversation, _ = talk("=oooo", context_tokens=20)
    conversation._model[1]["table"] = conversation._model[1]["table"].at[2 + ord("o"), 2 + ord("o")].set(99.0)
    answer = conversation.ask("0123456789", silent)
    assert (answer.text, answer.finish_reason) == ("ooooo", "length")
    with pytest.raises(UserError, match="refuses"):
        talk(system="refuse")


def test_an_interrupt_ends_the_answer_and_what_was_said_is_remembered():
    conversation, template = talk("=abcdefghijklmnop;", max_new_tokens=30)

    def interrupt(new):
        raise KeyboardInterrupt

    answer = conversation.ask("one", interrupt)
    assert answer.finish_reason == "interrupted"
    assert "abcdefghijklmnop".startswith(answer.text)
    assert 0 < len(answer.text) < 16
    conversation.ask("two", silent)
    assert template.prompts[-1] == f"[u:one][a:{answer.text}][u:two]="
    assert conversation.turns[-1] == Message("assistant", "abcdefghijklmnop")


def test_a_run_without_a_template_says_so(tmp_path):
    tokenizer = SimpleNamespace(chat_template=None)
    with pytest.raises(UserError, match="has no chat template, neither stored nor in its tokenizer"):
        run_template(tmp_path, tokenizer, "pretrain")
    with pytest.raises(UserError, match="is a classifier.*jaxlm predict"):
        run_template(tmp_path, tokenizer, "classify")
