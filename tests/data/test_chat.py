"""Chat templates: which ids an answer has, worked out by hand for each family; what is saved."""

import pickle
import re
from itertools import groupby

import jinja2
import pytest
import small_tokenizers
from chat_cases import ENDS, HEAD, LLAMA3, ONE, PROMPT, SPECIAL, TEMPLATES, TWO, open_file, tokenizer
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jaxlm.data.chat import ChatTemplate, Message, open_template, save_chat, saved_chat
from jaxlm.data.tokenizer import SentencePieceTokenizer
from jaxlm.data.tokenizer_hf import HFTokenizer
from jaxlm.data.tokenizer_training import train_tokenizer
from jaxlm.types import UserError


def columns(text):
    """[(piece, trained)] of a table: `~` stands for a newline, `_` in front for a space, `x` for what is trained on."""
    rows = [line.split() for line in text.strip().splitlines()]
    return [(re.sub("^_", " ", row[0].replace("~", "\n")), row[1] == "x") for row in rows]


def pieces(template, messages, **options):
    ids, trained = template.example(messages, **options)
    return [(template._tokenizer.piece(i), known) for i, known in zip(ids, trained)]


GOLDEN = {
    "chatml": """
        <|im_start|>           .
        system                 .
        ~                      .
        Be                     .
        _brief                 .
        <|im_end|>             .
        ~                      .
        <|im_start|>           .
        user                   .
        ~                      .
        Hi                     .
        <|im_end|>             .
        ~                      .
        <|im_start|>           .
        assistant              .
        ~                      .
        Hello                  x
        <|im_end|>             x
        ~                      x
        <|im_start|>           .
        user                   .
        ~                      .
        Add                    .
        <|im_end|>             .
        ~                      .
        <|im_start|>           .
        assistant              .
        ~                      .
        Bye                    x
        <|im_end|>             x
        ~                      x
        """,
    "llama3": """
        <|begin|>              .
        <|start_header_id|>    .
        user                   .
        <|end_header_id|>      .
        ~~                     .
        Hi                     .
        <|eot_id|>             .
        <|start_header_id|>    .
        assistant              .
        <|end_header_id|>      .
        ~~                     .
        Hello                  x
        <|eot_id|>             x
        <|start_header_id|>    .
        user                   .
        <|end_header_id|>      .
        ~~                     .
        Add                    .
        <|eot_id|>             .
        <|start_header_id|>    .
        assistant              .
        <|end_header_id|>      .
        ~~                     .
        Bye                    x
        <|eot_id|>             x
        """,
    "gemma": """
        <bos>                  .
        <start_of_turn>        .
        user                   .
        ~                      .
        Hi                     .
        <end_of_turn>          .
        ~                      .
        <start_of_turn>        .
        model                  .
        ~                      .
        Hello                  x
        <end_of_turn>          x
        ~                      x
        <start_of_turn>        .
        user                   .
        ~                      .
        Add                    .
        <end_of_turn>          .
        ~                      .
        <start_of_turn>        .
        model                  .
        ~                      .
        Bye                    x
        <end_of_turn>          x
        ~                      x
        """,
    "mistral": """
        <s>                    .
        [                      .
        INST                   .
        ]                      .
        _                      .
        Hi                     .
        _                      .
        [                      .
        /                      .
        INST                   .
        ]                      .
        Hello                  x
        </s>                   x
        [                      .
        INST                   .
        ]                      .
        _                      .
        Add                    .
        _                      .
        [                      .
        /                      .
        INST                   .
        ]                      .
        Bye                    x
        </s>                   x
        """,
}
ALPACA_GOLDEN = """
        ###                    .
        _Instruction           .
        :                      .
        ~                      .
        Add                    .
        ~~                     .
        ###                    .
        _Input                 .
        :                      .
        ~                      .
        Hi                     .
        ~~                     .
        ###                    .
        _Response              .
        :                      .
        ~                      .
        Bye                    x
        </s>                   x
        """


@pytest.mark.parametrize("family", GOLDEN)
def test_answers_and_the_end_of_their_turn_are_trained_on_and_nothing_else(family):  # pain 6, 7, 30
    template = open_template(tokenizer(family))
    assert pieces(template, TWO) == columns(GOLDEN[family])


@pytest.mark.parametrize("family", GOLDEN)
def test_the_last_answer_alone(family):
    expected = columns(GOLDEN[family])
    first = next(n for n, (piece, _) in enumerate(expected) if piece == "Add")
    expected = [(piece, known and n > first) for n, (piece, known) in enumerate(expected)]
    assert pieces(open_template(tokenizer(family)), TWO, train_on="last_answer") == expected


@pytest.mark.parametrize("family", GOLDEN)
def test_the_prompt_too_if_it_is_asked_for(family):
    ids, trained = open_template(tokenizer(family)).example(TWO, train_on_prompt=True)
    assert ids == open_template(tokenizer(family)).example(TWO)[0]
    assert all(trained)


@pytest.mark.parametrize("family", GOLDEN)
def test_a_prompt_is_the_example_up_to_its_answer(family):
    template = open_template(tokenizer(family))
    ids, trained = template.example(ONE)
    assert template.prompt(ONE[:1]) == ids[: trained.index(True)]


@pytest.mark.parametrize("family", GOLDEN)
def test_the_token_that_ends_a_turn_ends_what_the_model_writes(family):
    made = tokenizer(family)
    end = re.split(r"\s", ENDS[family])[0]
    stop_ids = open_template(made).stop_ids
    assert made.special[end] in stop_ids
    assert stop_ids[0] == made.eos_id


def test_alpaca_with_an_input_ends_in_eos():
    template = open_template(tokenizer("mistral"), "alpaca")
    found = pieces(template, [Message("user", "Add", "Hi"), Message("assistant", "Bye")])
    start = next(n for n, (piece, _) in enumerate(found) if piece == "###")
    assert found[start:] == columns(ALPACA_GOLDEN)
    assert "".join(piece for piece, _ in found[:start]) == (
        "<s>Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
    )
    assert not any(known for _, known in found[:start])


def test_alpaca_without_an_input_and_with_more_turns_and_a_system_message():
    template = open_template(tokenizer("chatml"), "alpaca")
    assert text_of(template, ONE) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nHi\n\n### Response:\nHello<|im_end|>"
    )
    assert text_of(template, [Message("system", "Be brief"), *TWO]) == (
        "Be brief\n\n### Instruction:\nHi\n\n### Response:\nHello<|im_end|>"
        "\n\n### Instruction:\nAdd\n\n### Response:\nBye<|im_end|>"
    )


def text_of(template, messages, trained_only=False):
    return "".join(piece for piece, known in pieces(template, messages) if known or not trained_only)


def test_an_input_follows_the_instruction_in_other_templates():
    found = text_of(open_template(tokenizer("chatml")), [Message("user", "Add", "Hi"), ONE[1]])
    assert "user\nAdd\n\nHi<|im_end|>" in found


WORDS = st.sampled_from(
    [
        "Hi",
        "Hello",
        " ",
        "\n",
        "\n\n",
        "é",
        "漢",
        "🦁",
        ":",
        "###",
        "'s",
        "<",
        "|",
        "assistant",
        "INST]",
        "\t",
        "x" * 30,
    ]
)
SPELT = st.sampled_from([token for _, _, tokens in SPECIAL.values() for token in tokens])


def dialogues(words):
    # A letter at either end: what a template strips, and a border within a token, are tests of their own.
    text = st.lists(words, max_size=8).map(lambda parts: f"a{''.join(parts)}b")
    pairs = st.lists(st.tuples(text, text), min_size=1, max_size=4)
    return pairs.map(
        lambda turns: [Message(role, t) for pair in turns for role, t in zip(("user", "assistant"), pair)]
    )


def rendered(family, messages):
    """The text of a dialogue by Jinja alone."""
    bos, eos, _ = SPECIAL[family]
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    values = {"messages": [m._asdict() for m in messages], "bos_token": bos, "eos_token": eos}
    return environment.from_string(TEMPLATES[family]).render(values)


@pytest.mark.parametrize("family", GOLDEN)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=dialogues(WORDS))
def test_any_dialogue_has_the_ids_of_its_text_and_trains_on_its_answers(family, messages):
    made = tokenizer(family)
    ids, trained = open_cached(family).example(messages)
    assert ids == made.encode_markup(rendered(family, messages))
    assert not all(trained)
    answers = [m.content + ENDS[family] for m in messages if m.role == "assistant"]
    assert decoded(made, [i for i, known in zip(ids, trained) if known]) == "".join(answers)


@pytest.mark.parametrize("family", GOLDEN)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=dialogues(st.one_of(WORDS, SPELT)))
def test_a_special_token_that_a_message_spells_is_text(family, messages):
    made, special = tokenizer(family), set(tokenizer(family).special.values())
    ids, trained = open_cached(family).example(messages)
    plain, _ = open_cached(family).example([Message(m.role, "a") for m in messages])
    assert [i for i in ids if i in special] == [i for i in plain if i in special]
    assert decoded(made, ids) == rendered(family, messages)
    answers = [m.content + ENDS[family] for m in messages if m.role == "assistant"]
    assert decoded(made, [i for i, known in zip(ids, trained) if known]) == "".join(answers)
    prompt = open_cached(family).prompt(messages[:-1])
    assert ids[: len(prompt)] == prompt


_OPEN = {}


def open_cached(family):
    if family not in _OPEN:
        _OPEN[family] = open_template(tokenizer(family))
    return _OPEN[family]


def decoded(made, ids):
    """The text of ids, special ones by their names."""
    names = {i: token.encode() for token, i in made.special.items()}
    return b"".join(names.get(i) or made._bytes[i] for i in ids).decode()


def test_a_token_that_reaches_over_the_border_is_trained_on_where_it_holds_answer():
    # The header ends in a newline, the answer begins with one: together they are one token.
    template = open_template(tokenizer("chatml"))
    found = pieces(template, [ONE[0], Message("assistant", "\nHello")])
    assert found[-4:] == [("\n\n", True), ("Hello", True), ("<|im_end|>", True), ("\n", True)]
    # The header ends in two, one token: the answer's own newline is another.
    found = pieces(
        open_template(tokenizer("llama3", LLAMA3.replace(" | trim", ""))),
        [ONE[0], Message("assistant", "\nHi")],
    )
    assert found[-4:] == [("\n\n", False), ("\n", True), ("Hi", True), ("<|eot_id|>", True)]


GENERATION = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{% generation %}"
    "{{ m.content }}<|im_end|>{% endgeneration %}\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_generation_blocks_say_what_is_trained_on(tmp_path):
    template = open_file(tmp_path, GENERATION)
    assert text_of(template, TWO, trained_only=True) == "Hello<|im_end|>Bye<|im_end|>"
    ids, trained = template.example(TWO, train_on="last_answer")
    assert decoded(tokenizer("chatml"), [i for i, k in zip(ids, trained) if k]) == "Bye<|im_end|>"
    assert template.note is None


def test_generation_blocks_inside_a_macro_and_a_filter(tmp_path):
    text = (
        "{% macro turn(m) %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endmacro %}"
    )
    text += "{% for m in messages %}{% set x %}Q {% if m.role == 'assistant' %}{{ turn(m) }}{% else %}{{ m.content }}"
    text += "{% endif %}{% endset %}{{ x }}{% endfor %}"
    assert text_of(open_file(tmp_path, text), TWO, trained_only=True) == "Hello<|im_end|>Bye<|im_end|>"


def test_generation_that_leaves_out_the_end_of_a_turn_is_told(tmp_path):
    text = GENERATION.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    template = open_file(tmp_path, text)
    assert text_of(template, TWO, trained_only=True) == "HelloBye"
    assert template.note is not None
    assert "not taught to stop" in template.note


def test_reasoning_that_only_the_last_turn_keeps(tmp_path):
    text = (
        "{% for m in messages %}{% if m.role == 'assistant' and loop.last %}<|im_start|>assistant\n<think>\n\n</think>"
        "\n\n{{ m.content }}<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    found = text_of(open_file(tmp_path, text), TWO, trained_only=True)
    assert found == "Hello<|im_end|>\n<think>\n\n</think>\n\nBye<|im_end|>\n"


def test_eos_behind_the_last_turn_only(tmp_path):
    text = (
        "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>assistant\n{% else %}{{ eos_token }}{% endif %}"
    )
    template = open_file(tmp_path, text, "gemma")
    assert text_of(template, TWO, trained_only=True) == "Hello<end_of_turn>Bye<end_of_turn>\n<eos>"
    assert text_of(template, ONE).count("<eos>") == 1


def test_helpers_of_transformers(tmp_path):
    extra = "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i > 2 %}{% break %}{% endif %}{{ i }}"
    extra += "{% endfor %}{{ {'a<': 1} | tojson }}{{ strftime_now('%d %b %Y') }}{{ tools is none }}"
    found = text_of(open_file(tmp_path, extra + HEAD + PROMPT), ONE)
    assert found.startswith('02{"a<": 1}26 Jul 2024True<|im_start|>')


def test_the_template_refuses_a_dialogue_in_its_own_words():
    with pytest.raises(UserError, match="chat template chat: System role not supported"):
        open_template(tokenizer("gemma")).example([Message("system", "Be brief"), *ONE])


def test_half_a_character_is_refused():
    with pytest.raises(UserError, match="lone surrogate"):
        open_template(tokenizer("chatml")).example([Message("user", "\ud83d"), ONE[1]])


@pytest.mark.parametrize("family", ["llama3", "gemma", "mistral"])
@pytest.mark.parametrize("bos_first", [True, False])
@pytest.mark.parametrize("name", ["chat", "alpaca", "own"])
def test_bos_stands_in_front_once_where_the_tokenizer_has_it(tmp_path, family, bos_first, name):  # pain 10
    made = tokenizer(family, None, bos_first)
    if name == "own":
        name = str(tmp_path / "own.jinja")
        (tmp_path / "own.jinja").write_text(
            "  {% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}\n"
            "{% if add_generation_prompt %}assistant: {% endif %}"
        )
    template = open_template(made, name)
    for ids in (template.example(TWO)[0], template.prompt(TWO[:3])):
        assert ids.count(made.bos_id) == (bos_first or name == "chat")
        assert made.bos_id not in ids[1:]


@pytest.mark.parametrize("make", ["gpt2", "metaspace", "level", "trained", "t5"])
def test_alpaca_works_with_any_tokenizer_that_has_eos(make):  # pain 8
    if make == "trained":
        made = SentencePieceTokenizer(train_tokenizer(small_tokenizers.TEXTS, "bpe", 400))
    else:
        made = HFTokenizer(getattr(small_tokenizers, make)())
    answer = (
        "a letter" if make == "t5" else "é is a letter"
    )  # whose <unk> would swallow the newline before it
    template = open_template(made, "alpaca")
    ids, trained = template.example([Message("user", "what is 漢"), Message("assistant", answer)])
    assert ids[-1] == made.eos_id  # also where pad is eos
    assert trained[-1]
    assert ids.count(made.eos_id) == 1
    assert made.decode([i for i, known in zip(ids, trained) if known]).strip() == answer
    prompt = template.prompt([Message("user", "what is 漢")])
    assert ids[: len(prompt)] == prompt
    assert not any(trained[: len(prompt)])


def test_a_tokenizer_without_eos_cannot_be_taught_to_stop():
    with pytest.raises(UserError, match="never learn to stop.*take a tokenizer that has one"):
        open_template(HFTokenizer(small_tokenizers.bert()), "alpaca")


def test_names():
    base = HFTokenizer(small_tokenizers.gpt2())
    assert open_template(base, "auto").name == "alpaca"
    assert open_template(tokenizer("chatml"), "auto").name == "chat"
    assert open_template(tokenizer("chatml"), "alpaca").name == "alpaca"
    with pytest.raises(UserError, match="has no chat template"):
        open_template(base, "chat")
    with pytest.raises(UserError, match="instruct.template: alpacca does not exist"):
        open_template(base, "alpacca")


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "own.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"own.jinja is not UTF-8"):
        open_template(tokenizer("chatml"), str(tmp_path / "own.jinja"))


@pytest.mark.parametrize("name", ["auto", "alpaca"])
def test_what_is_saved_comes_back_the_same(tmp_path, name):  # pain 11
    made = tokenizer("llama3")
    template = open_template(made, name)
    assert saved_chat(tmp_path, made) is None
    save_chat(tmp_path, template)
    for again in (saved_chat(tmp_path, made), pickle.loads(pickle.dumps(template))):
        assert again is not None
        assert (again.name, again.text, again.stop_ids) == (template.name, template.text, template.stop_ids)
        assert again.example(TWO) == template.example(TWO)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"name": "x"}', '{"name": "x", "template": "", "stop_ids": [999999]}']
)
def test_a_damaged_saved_template_is_named(tmp_path, content):
    (tmp_path / "chat.json").write_text(content)
    with pytest.raises(UserError, match=r"chat\.json is damaged, or belongs to another tokenizer"):
        saved_chat(tmp_path, tokenizer("chatml"))


PARTS = st.sampled_from(["", " ", "\n", "\n\n", ": ", "###", "<|im_start|>", "[", "é"])
ENDINGS = st.sampled_from(["", "\n", "<|im_end|>", "<|im_end|>\n", "{{ eos_token }}", "\n###\n"])


@st.composite
def any_template(draw):
    """A template as people write them, good and bad: with and without EOS, a generation prompt, or blocks."""
    begin, middle, end = draw(PARTS), draw(PARTS), draw(ENDINGS)
    answer = draw(st.sampled_from(["{{ m.content }}", "{{ m.content | trim }}", "{{ m.content | upper }}"]))
    inside, body = draw(
        st.sampled_from([("no", answer + end)] * 3 + [("end", answer + end), ("out", answer)])
    )
    if inside == "end":
        body = f"{{% generation %}}{body}{{% endgeneration %}}"
    elif inside == "out":
        body = f"{{% generation %}}{body}{{% endgeneration %}}{end}"
    prompt = draw(st.sampled_from([f"{begin}assistant{middle}", f"{begin}bot{middle}", begin, ""]))
    around = draw(st.sampled_from([("", "")] * 4 + [("{% generation %}", "{% endgeneration %}")]))
    behind = draw(st.sampled_from([""] * 6 + ["{% generation %}{% endgeneration %}"]))
    if inside != "no":
        around, behind = ("", ""), ""
    return (
        around[0]
        + draw(st.sampled_from(["", "{{ bos_token }}", "Be brief.\n"]))
        + "{% for m in messages %}"
        + f"{begin}{{{{ m.role }}}}{middle}{{% if m.role == 'assistant' %}}{body}"
        + f"{{% else %}}{{{{ m.content }}}}{end}{{% endif %}}{{% endfor %}}"
        + around[1]
        + behind
        + f"{{% if add_generation_prompt %}}{prompt}{{% endif %}}"
    )


@settings(max_examples=25, deadline=None)
@example(text=TEMPLATES["chatml"], messages=TWO)
@example(text=GENERATION, messages=TWO)
@example(text="{% generation %}" + HEAD + PROMPT + "{% endgeneration %}", messages=TWO)
@example(text=HEAD + PROMPT + "{% generation %}{% endgeneration %}", messages=TWO)
@given(text=any_template(), messages=dialogues(WORDS))
def test_any_template_is_refused_or_trains_on_answers_and_nothing_that_the_user_says(
    text, messages
):  # pain 5
    """Never on all tokens and never on none, whether it marks its answers or not."""
    made = tokenizer("chatml")
    refused, ids, trained = "", [], []
    try:
        ids, trained = ChatTemplate("any", text, made).example(messages)
    except UserError as error:
        refused = str(error)
    if refused:
        assert "cannot be trained with" in refused
        assert text not in (TEMPLATES["chatml"], GENERATION)
        return
    assert any(trained)
    assert not all(trained)
    runs = [(known, [i for i, _ in run]) for known, run in groupby(zip(ids, trained), lambda one: one[1])]
    learnt = [decoded(made, run) for known, run in runs if known]
    answers = [m.content for m in messages if m.role == "assistant"]
    assert len(learnt) == len(answers)
    for found, answer in zip(learnt, answers):
        assert answer.upper() in found.upper()
        assert len(found) <= len(answer) + len("\n<|im_end|>\n")
