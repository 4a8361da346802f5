"""Promises of `chat`, of `generate --chat` and `--input`, and of `evaluate --data`, with random weights."""

import io
import json

import jax
import pytest
from small_tokenizers import level

from jaxlm import run as run_lib
from jaxlm.checkpoint import Checkpoints
from jaxlm.checkpoint_meta import Meta
from jaxlm.cli import main as cli
from jaxlm.data.chat import CHAT_FILE, Message, open_template, save_chat, saved_chat
from jaxlm.data.tokenizer_hf import HFTokenizer
from jaxlm.infer import instructions
from jaxlm.infer.text import continue_ids
from jaxlm.models.build import build
from jaxlm.train.config import CheckpointConfig

OWN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
STORED = OWN.replace(": ", " says ")


def make_run(folder, *, stored=True, tokenizer_has_one=True, **model):
    """A workdir as instruction tuning leaves it, whose stored template is another than the tokenizer's."""
    cfg = run_lib.default_config()
    cfg.objective = "instruct"
    cfg.data.sources = {"text": {"path": "embedded:topics", "weight_tokens": 1.0}}
    cfg.data.seq_len = 128
    cfg.model.update(embed_dim=16, num_layers=2, num_heads=2, mlp_dim=32, tie_embeddings=False, **model)
    cfg = run_lib.resolve(cfg)
    tokenizer = HFTokenizer(level(config={"chat_template": OWN} if tokenizer_has_one else None))
    folder.mkdir()
    run_lib.save_config(folder / run_lib.CONFIG_FILE, cfg)
    tokenizer.save(folder)
    if stored:
        (folder.parent / "stored.jinja").write_text(STORED)
        save_chat(folder, open_template(tokenizer, str(folder.parent / "stored.jinja")))
    params = jax.jit(build(run_lib.with_vocabulary(cfg, tokenizer).model, 128).init)(jax.random.key(0))
    # Far from uniform, and from a function of the last token alone, so that answers differ.
    params = {
        **params,
        "head": params["head"] * 20,
        "layers": jax.tree.map(lambda w: w * 8, params["layers"]),
    }
    with Checkpoints(folder / run_lib.CHECKPOINTS, CheckpointConfig()) as checkpoints:
        meta = Meta(3, config={}, tokenizer_sha256=tokenizer.sha256, corpus_sha256={}, tokens=0, epochs={},
                    wall_time_s=0.0, eval_loss=None)  # fmt: skip
        checkpoints.save({"params": params}, meta)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Its answers to all sorts of questions end within 12 tokens or do not: a common id is one of its stop ids."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "rope")
    whole = expected(folder, "Hi", max_new_tokens=12)
    content = json.loads((folder / CHAT_FILE).read_text())
    content["stop_ids"] = [*content["stop_ids"], whole.tokens[5]]
    (folder / CHAT_FILE).write_text(json.dumps(content))
    return folder


def expected(run, *texts, max_new_tokens=12, template=None, system=None):
    """The greedy answer, put together by hand."""
    loaded = run_lib.load_run(run)
    template = template or saved_chat(run, loaded.tokenizer)
    messages = [Message(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]
    if system:
        messages = [Message("system", system), *messages]
    ids = template.prompt(messages)
    options = dict(stop_ids=template.stop_ids, max_new_tokens=max_new_tokens, temperature=0.0)
    return continue_ids(loaded.lm, loaded.params, loaded.tokenizer, [ids], **options)[0]


@pytest.fixture
def jaxlm(run, capsys):
    """jaxlm("chat", "--system=x") -> (exit code, stdout, stderr), with --run and --temperature=0 filled in."""

    def call(command, *flags):
        where = () if any(flag.startswith("--run") for flag in flags) else (f"--run={run}",)
        code = cli.main([command, *where, *flags])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def records(tmp_path):
    """records([...]) -> path of a JSONL file; texts are lines as they are."""

    def write(lines, name="in.jsonl"):
        path = tmp_path / name
        path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
        return path

    return write


def test_messages_are_put_into_the_stored_template_and_its_stop_ids_end_the_answer(jaxlm, run):  # pain 11
    flags = ("--temperature=0", "--max-new-tokens=12", "--json")
    code, out, err = jaxlm("generate", "--chat", "--prompt=Hi", *flags)
    assert (code, err) == (0, "")
    answer, wanted = json.loads(out), expected(run, "Hi")
    assert (answer["prompt"], answer["text"]) == ("Hi", wanted.text)
    assert (answer["finish_reason"], len(answer["tokens"])) == ("stop", len(wanted.tokens))
    assert len(answer["tokens"]) < 12
    other = expected(run, "Hi", template=open_template(run_lib.load_run(run).tokenizer, "chat"))
    assert other.text != wanted.text
    told = json.loads(jaxlm("generate", "--chat", "--prompt=Hi", "--system=Be brief", *flags)[1])
    assert told["text"] == expected(run, "Hi", system="Be brief").text != wanted.text
    # Only the answer is printed; without --chat the prompt is a text, as ever.
    assert jaxlm("generate", "--chat", "--prompt=Hi", *flags[:2])[1] == wanted.text + "\n"
    assert jaxlm("generate", "--prompt=Hi", *flags[:2])[1].startswith("Hi")


def chat(jaxlm, monkeypatch, lines, *flags):
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    return jaxlm("chat", "--temperature=0", *flags)


def test_piped_lines_are_turns_of_one_conversation(jaxlm, run, monkeypatch):
    code, out, err = chat(
        jaxlm, monkeypatch, "Hi\n\nWhy?\n/reset\nWhy?\n/exit\nnever\n", "--max-new-tokens=6"
    )
    assert code == 0
    first = expected(run, "Hi", max_new_tokens=6).text.strip()
    second = expected(run, "Hi", first, "Why?", max_new_tokens=6).text.strip()
    third = expected(run, "Why?", max_new_tokens=6).text.strip()
    # An answer may itself hold newlines, and blanks at its ends.
    assert [part.strip() for part in (first, second, third)] == [first, second, third]
    assert "".join(out.split()) == "".join((first + second + third).split())
    assert second != third
    assert all(line.startswith("jaxlm: ") for line in err.splitlines())


def test_what_no_longer_fits_is_forgotten_with_a_note_and_a_message_too_long_is_refused(jaxlm, monkeypatch):
    long = "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 2
    code, out, err = chat(jaxlm, monkeypatch, f"{long}\n{long}\n{long * 9}\nHi\n", "--max-new-tokens=4")
    assert "the first 2 turns no longer fit and were forgotten" in err
    assert "tokens of the 128 that the model reads" in err
    assert code == 2
    assert len(out.splitlines()) >= 3


def test_a_run_without_a_stored_template_uses_that_of_its_tokenizer_or_says_so(jaxlm, tmp_path, monkeypatch):
    own = make_run(tmp_path / "own", stored=False)
    template = open_template(run_lib.load_run(own).tokenizer, "chat")
    out = jaxlm("generate", f"--run={own}", "--chat", "--prompt=Hi", "--temperature=0", "--max-new-tokens=6")[
        1
    ]
    assert out == expected(own, "Hi", max_new_tokens=6, template=template).text + "\n"
    none = make_run(tmp_path / "none", stored=False, tokenizer_has_one=False)
    for command in (["chat"], ["generate", "--chat", "--prompt=Hi"]):
        monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
        code, out, err = jaxlm(command[0], f"--run={none}", *command[1:])
        assert (code, out) == (2, "")
        assert "has no chat template, neither stored nor in its tokenizer" in err


QUESTIONS = [
    {"id": 1, "instruction": "Hi", "output": "Hello"},
    {"instruction": "Sum", "input": "1 2", "id": 2},  # without an answer
    "{not json",
    {"instruction": "Name three lions of the zoo and say why they are there.", "id": 3, "note": ["kept"]},
    "",
    {"instruction": "  ", "id": 4},
    [1],
    {"instruction": 5, "id": 5},
    {"instruction": "আমি?", "id": 6, "response": "old"},
]


def answer(jaxlm, source, target, *flags):
    flags = (f"--input={source}", f"--output={target}", "--max-new-tokens=8", "--batch-size=2", *flags)
    return jaxlm("generate", *flags)


def test_records_are_answered_in_order_and_bad_ones_are_named(jaxlm, run, records, tmp_path):
    source, target = records(QUESTIONS), tmp_path / "out.jsonl"
    code, out, err = answer(jaxlm, source, target, "--temperature=0")
    assert code == 0
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line.get("id") for line in lines] == [1, 2, None, 3, 4, None, 5, 6]
    assert [line["response"] is None for line in lines] == [
        False,
        False,
        True,
        False,
        True,
        True,
        True,
        False,
    ]
    wanted = expected(run, "Hi", max_new_tokens=8)
    assert lines[0] == {
        **QUESTIONS[0], "response": wanted.text.strip(), "finish_reason": "stop", "num_tokens": len(wanted.tokens)
    }  # fmt: skip
    assert lines[1]["response"] == expected(run, "Sum\n\n1 2", max_new_tokens=8).text.strip()
    third = expected(run, QUESTIONS[3]["instruction"], max_new_tokens=8)
    assert (lines[3]["note"], lines[3]["response"], lines[3]["num_tokens"]) == (
        ["kept"], third.text.strip(), len(third.tokens)
    )  # fmt: skip
    assert lines[3]["finish_reason"] == ("length" if len(third.tokens) == 8 else "stop")
    assert f"{source}, line 3: not valid JSON" in lines[2]["error"]
    for number, message in (
        (3, "not valid JSON"),
        (6, "empty prompt"),
        (7, "has to be an object"),
        (8, "'instruction'"),
    ):
        assert any(f"{source}, line {number}" in line and message in line for line in err.splitlines())
    assert "4 answers, 4 lines without one" in out
    code, _, err = answer(jaxlm, source, target)
    assert (code, "exists: it is complete" in err) == (2, True)


def test_a_killed_run_goes_on_and_gives_the_same_file(jaxlm, records, tmp_path, monkeypatch):
    source, flags = records(QUESTIONS), ("--seed=3", "--temperature=1.5")
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    summary = answer(jaxlm, source, whole, *flags)[1]
    asked = []

    def counted(*args, row_ids, **options):
        asked.append(list(row_ids))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return continue_ids(*args, row_ids=row_ids, **options)

    monkeypatch.setattr(instructions, "continue_ids", counted)
    assert answer(jaxlm, source, killed, *flags)[0] == 130
    assert not killed.exists()
    code, out, _ = answer(jaxlm, source, killed, *flags)
    assert (code, out) == (0, summary.replace("whole", "killed"))
    assert killed.read_bytes() == whole.read_bytes()
    # Rows 0 to 3 were done, and not done again.
    assert asked[3:] == [asked[2], asked[-1]]
    assert asked[0] == [0, 1]
    assert not list(tmp_path.glob("*.partial"))


def test_dialogues_are_answered_after_their_last_question(jaxlm, run, records, tmp_path):
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "Why?"},
    ]
    source = records(
        [
            {"messages": turns},
            {"messages": [*turns, {"role": "assistant", "content": "So."}]},
            {"messages": turns[:1]},
        ]
    )
    answer(jaxlm, source, tmp_path / "out.jsonl", "--temperature=0")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    long, short = (
        expected(run, *texts, max_new_tokens=8).text.strip() for texts in (("Hi", "Yes", "Why?"), ("Hi",))
    )
    assert [line["response"] for line in lines] == [long, long, short]
    assert lines[0]["messages"] == turns


def test_answers_are_judged_with_rules_and_groups(jaxlm, records, tmp_path):
    source = records(
        [
            {"instruction": "Hi", "output": "Hello", "group": "g"},
            {"instruction": "Hi ", "output": "Hello", "group": "g"},
            {"instruction": "in 3 lines: sum", "output": "one two", "group": 7},
            {"instruction": "dropped", "output": ""},
        ]
    )
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "rules:\n- {name: short, when: in 3 lines, max_lines: 3}\n- {name: all, must_match: '^$'}\n"
    )
    report, answers = tmp_path / "report.json", tmp_path / "answers.jsonl"
    flags = (f"--data={source}", f"--rules={rules}", "--max-new-tokens=8", f"--records={answers}")
    code, out, err = jaxlm("evaluate", *flags, f"--json={report}")
    assert (code, err) == (0, "")
    found = json.loads(report.read_text())
    assert (found["num_records"], found["dropped"]) == (3, {"empty_answer": 1})
    assert [rule["num_records"] for rule in found["rules"]] == [1, 3]
    assert found["consistency"]["num_groups"] == 1
    assert len(answers.read_text().splitlines()) == 3
    for words in (
        "exact match",
        "token F1",
        "ROUGE-L",
        "chrF",
        "BLEU",
        "answer loss",
        "stopped by itself",
        "all: 0 of 3",
    ):
        assert words in out
    assert "1 dropped: empty answer" in out
    assert json.loads(jaxlm("evaluate", *flags, "--json")[1]) == found
    first = json.loads(jaxlm("evaluate", *flags, "--json", "--max-records=1")[1])
    assert (first["num_records"], first["consistency"]) == (1, None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["generate", "--input=x"], "--input and --output go together"),
        (["generate", "--input=x", "--output=y", "--prompt=z"], "--prompt is of no use beside --input"),
        (["generate", "--input=x", "--output=y", "--num-samples=2"], "--num-samples=2"),
        (["generate", "--input=/no/such.jsonl", "--output=y"], "/no/such.jsonl does not exist"),
        (["generate", "--chat"], "--chat needs a message"),
        (["generate", "--system=x", "--prompt=y"], "--system is part of a dialogue"),
        (["generate", "--prompt=y", "--batch-size=0"], "--batch-size=0"),
        (["chat", "--max-new-tokens=0"], "--max-new-tokens=0"),
        (["chat", "--config.seed=1"], "chat takes its config from --run"),
        (["evaluate"], "Nothing to evaluate"),
        (["evaluate", "--rules=x", "text.txt"], "--rules is about records"),
        (["evaluate", "--plots=x", "text.txt"], "--plots is about records"),
        (["evaluate", "--data=x.jsonl", "--plots=x"], "--plots is about labels"),
        (["evaluate", "--data=x", "text.txt"], "give records (--data) or texts, not both"),
        (["evaluate", "--data=x", "--max-records=0"], "--max-records=0"),
        (["evaluate", "--data=/no/such.jsonl"], "/no/such.jsonl does not exist"),
        (["evaluate", "--data=x.jsonl", "--template=alpaca"], "has a template of its own"),
        (["evaluate", "--data=x.jsonl", "--rules=/no/such.yaml"], "/no/such.yaml does not exist"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(jaxlm, flags, message):
    code, out, err = jaxlm(*flags)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
