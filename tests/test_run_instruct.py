"""Whole runs on dialogues, of a model as small as can be: what it learns to end, and what it never sees twice."""

import json

import numpy as np
import pytest
from small_run import small
from small_tokenizers import level

from jaxlm import run
from jaxlm.data.chat import Message, saved_chat
from jaxlm.infer.text import continue_ids
from jaxlm.report.events import read_events
from jaxlm.run_data import make_rows, open_data

OWN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FILES = level(config={"pad_token": "<|end|>", "chat_template": OWN})
"""Of a tokenizer whose padding is its EOS, as is so often done."""
WORDS = {"lion": "cat", "zoo": "a place", "dog": "no cat"}
KEYS = {
    "train__num_steps": 40,
    "train__log_every_steps": 40,
    "checkpoint__every_steps": 40,
    "train__eval_batches": 0,
    "data__eval_fraction": 0.0,
    "data__eval_split": "hash",
    "data__seq_len": 48,
    "model__embed_dim": 64,
    "optimizer__learning_rate": 0.01,
    "optimizer__schedule": "linear",
}


@pytest.fixture
def instruct(tmp_path):
    """instruct(records, ...) -> a resolved config for them."""
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name, content in FILES.items():
        (tokenizer / name).write_bytes(content)

    def make(records, **changes):
        path = tmp_path / "records.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        keys = {"objective": "instruct", "tokenizer__kind": "bpe", "tokenizer__path": str(tokenizer)}
        return small(path, **(KEYS | keys | changes))

    return make


def test_a_model_learns_to_stop_where_padding_is_eos(instruct, tmp_path):  # pain 8
    """And its samples on the way are answers, on a mesh that cuts its matrices."""
    records = [{"question": question, "answer": answer} for question, answer in WORDS.items()] * 8
    held_out = {"question": "bear", "answer": "no place"}
    asked = [*WORDS, "lion dog", "a"]
    samples = {
        "report__sample_prompts": "|".join(asked),
        "train__eval_batches": 1,
        "train__eval_every_steps": 40,
    }
    cut = {
        "mesh__tensor": 2,
        "model__vocab_size": 506,
        "data__eval_split": "tail",
        "data__eval_fraction": 0.02,
    }
    config = instruct([*records, held_out], data__packing="pad", **samples, **cut)
    run.train(config, tmp_path / "run")
    loaded = run.load_run(tmp_path / "run")
    assert loaded.tokenizer.pad_id == loaded.tokenizer.eos_id
    template = saved_chat(tmp_path / "run", loaded.tokenizer)
    prompts = [template.prompt([Message("user", question)]) for question in asked]
    answers = continue_ids(
        loaded.lm, loaded.params, loaded.tokenizer, prompts,
        stop_ids=template.stop_ids, max_new_tokens=16, temperature=0.0,
    )  # fmt: skip
    assert [answer.finish_reason for answer in answers[:3]] == ["eos"] * 3
    assert all(answer.text for answer in answers[:3])  # not at once
    events = read_events(tmp_path / "run" / "events.jsonl")
    texts = {event["name"]: event["text"] for event in events if event["event"] == "text"}
    assert texts == {f"sample: {question}": answer.text for question, answer in zip(asked, answers)}


def test_the_loss_is_finite_where_long_records_lose_their_answer(instruct, tmp_path, capsys):  # pain 4
    """They are counted and left out, instead of making batches without a target."""
    records = [{"question": "zoo " * 60, "answer": "a place"}] * 20 + [
        {"question": "dog", "answer": "no cat"}
    ] * 4
    run.train(instruct(records, train__num_steps=3, data__packing="pad"), tmp_path / "run")
    assert "20 answer_truncated_away dropped" in capsys.readouterr().err
    steps = [event for event in read_events(tmp_path / "run" / "events.jsonl") if event["event"] == "step"]
    assert len(steps) == 3
    for step in steps:
        assert 0 < step["train/loss"] < 10
        assert step["train/num_tokens"] > 0


@pytest.mark.parametrize("packing", ["best_fit", "pad"])
def test_every_document_of_a_batch_begins_with_the_only_bos_it_has(instruct, packing):  # pain 10
    records = [{"question": f"<|begin|>{n}", "answer": "<|begin|>" * (n % 3) + "no"} for n in range(24)]
    config = instruct(records, data__packing=packing, data__seq_len=64)
    data = open_data(config, quiet=True)
    rows, bos_id = make_rows(config, data), data.tokenizer.bos_id
    for step in range(3):
        batch = rows.batch(step)
        first = (batch["positions"] == 0) & (batch["segments"] > 0)
        assert first.any()
        np.testing.assert_array_equal((batch["tokens"] == bos_id) & (batch["segments"] > 0), first)
        assert not (batch["targets"] == bos_id)[batch["segments"] > 0].any()


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_every_text_of_a_batch_begins_with_the_only_bos_it_has(tmp_path, packing):  # pain 10
    (tmp_path / "lines.txt").write_text("".join(f"<s>line {n}</s>\n" for n in range(300)))
    keys = {"data__sources__mine__document": "line", "data__packing": packing, "data__seq_len": 64}
    config = small(tmp_path / "lines.txt", **keys)
    data = open_data(config, quiet=True)
    rows, bos_id = make_rows(config, data), data.tokenizer.bos_id
    num_begins = 0
    for step in range(3):
        batch = rows.batch(step)
        bos = batch["tokens"] == bos_id
        assert not (bos & (batch["positions"] > 0)).any()
        for row, segments in zip(bos, batch["segments"]):
            inner = [row[segments == one].sum() for one in range(2, segments.max())]
            assert inner == [1] * len(inner)  # the first of a row may have begun in another
            num_begins += len(inner)
    assert num_begins > 20
