"""From files of records to a store of examples: what is in it, what is counted, and that it is built once."""

import dataclasses
import json
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import small_tokenizers

import jaxlm.corpus.examples as examples
from jaxlm.corpus.examples import ensure_examples, sort_labels
from jaxlm.data.chat import open_template
from jaxlm.data.config import ClassifyConfig, DataConfig, InstructConfig, SourceConfig
from jaxlm.data.examples import ExampleStore
from jaxlm.data.tokenizer_hf import HFTokenizer
from jaxlm.runconfig import RunConfig
from jaxlm.types import UserError

TOKENIZER = HFTokenizer(small_tokenizers.level())
GPT2 = HFTokenizer(small_tokenizers.gpt2())
CHAT = open_template(TOKENIZER, "alpaca")
QUESTIONS = [
    {"question": f"What is {n}?", "answer": f"It is {n} " + "and more " * (n % 7)} for n in range(200)
]
TEXTS = [{"text": f"text {n} " * (n % 5 + 1), "label": "even" if n % 2 == 0 else "odd"} for n in range(60)]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(seq_len=256, eval_fraction=0.1, strict=False, task="single_label", **instruct):
    return RunConfig(
        data=DataConfig(seq_len=seq_len, eval_fraction=eval_fraction),
        instruct=InstructConfig(strict=strict, **instruct),
        classify=ClassifyConfig(task=task),
    )


def build(path, split="train", cfg=None, objective="instruct", tokenizer=TOKENIZER, chat=CHAT, **source):
    said = []
    folder = ensure_examples(
        "mine", SourceConfig(path=path, **source), cfg or config(), objective, tokenizer,
        chat if objective == "instruct" else None, split, said.append,
    )  # fmt: skip
    return ExampleStore(folder, expected_tokenizer_sha256=tokenizer.sha256), said


def every(store):
    ends = store.document_ends
    starts = np.concatenate([[0], ends[:-1]])
    lengths = ends - starts
    return list(zip(store.read_rows(starts, lengths), store.read_trained(starts, lengths)))


def messages(row):
    return [examples.Message("user", row["question"]), examples.Message("assistant", row["answer"])]


def test_a_store_holds_the_examples_of_the_template(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", QUESTIONS)
    store, _ = build(path, cfg=config(eval_fraction=0.0))
    found = every(store)
    expected = [CHAT.example(messages(row)) for row in QUESTIONS]
    assert [(ids.tolist(), known.tolist()) for ids, known in found] == expected
    assert all(ids.dtype == np.int32 and known.dtype == bool for ids, known in found)
    assert store.num_documents == 200
    assert store.num_tokens == sum(len(ids) for ids, _ in expected) == store.document_ends[-1]
    assert store.num_trained == sum(sum(known) for _, known in expected)
    assert store.where(4) == f"{path}, line 5"
    assert store.manifest["columns"]["name"] == "question_answer"
    # Any stretch can be read, over borders too.
    flat = np.concatenate([ids for ids, _ in found])
    assert store.read_rows(np.array([3, 250]), np.array([400, 0]))[0].tolist() == flat[3:403].tolist()


def test_held_out_records_are_no_others_than_those_left_out(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [*QUESTIONS, *QUESTIONS[:50]])
    train, _ = build(path)
    held_out, _ = build(path, "eval")
    both = [Counter(tuple(ids.tolist()) for ids, _ in every(store)) for store in (train, held_out)]
    assert not set(both[0]) & set(both[1])  # the same record twice is on one side
    assert sum((both[0] + both[1]).values()) == 250
    assert 5 < held_out.num_documents < 60


def test_a_record_keeps_its_side_when_others_are_added(tmp_path):
    few, _ = build(jsonl(tmp_path / "a.jsonl", QUESTIONS[:150]), "eval")
    many, _ = build(jsonl(tmp_path / "b.jsonl", QUESTIONS[::-1]), "eval")
    assert {tuple(ids.tolist()) for ids, _ in every(few)} <= {tuple(ids.tolist()) for ids, _ in every(many)}


def test_an_eval_path_is_all_that_is_held_out(tmp_path):
    path, other = jsonl(tmp_path / "a.jsonl", QUESTIONS), jsonl(tmp_path / "b.jsonl", QUESTIONS[:7])
    assert build(path, eval_path=other)[0].num_documents == 200
    store, _ = build(path, "eval", eval_path=other)
    assert store.num_documents == 7
    assert store.where(0) == f"{other}, line 1"
    assert build(path, "eval", cfg=config(eval_fraction=0.0))[0].num_documents == 0
    assert build(jsonl(tmp_path / "c.jsonl", QUESTIONS[:1]))[0].num_documents == 1  # one record: trained on


def test_long_records_are_cut_at_the_end_and_those_without_an_answer_left_dropped(tmp_path):  # pain 4
    rows = [QUESTIONS[0], {"question": "q" * 2000, "answer": "a"}, {"question": "q", "answer": "a" * 2000}]
    path = jsonl(
        tmp_path / "a.jsonl", [*rows, {"question": "q", "answer": ""}, {"question": "", "answer": "a"}]
    )
    store, said = build(path, cfg=config(seq_len=200, eval_fraction=0.0))
    assert store.manifest["dropped"] == {"answer_truncated_away": 1, "empty_answer": 1, "empty_prompt": 1}
    assert store.manifest["num_truncated"] == 1
    found = every(store)
    assert [len(ids) for ids, _ in found][1] == 201
    assert found[1][0].tolist() == CHAT.example(messages(rows[2]))[0][:201]
    assert "1 empty_answer dropped" in said[0]
    assert "1 truncated" in said[0]


def test_an_answer_of_which_only_the_first_target_is_left_is_kept_and_of_none_dropped(tmp_path):
    ids, trained = CHAT.example(messages(QUESTIONS[0]))
    start = trained.index(True)
    path = jsonl(tmp_path / "a.jsonl", QUESTIONS[:1])
    store, _ = build(path, cfg=config(seq_len=start, eval_fraction=0.0))
    assert store.num_trained == 1
    with pytest.raises(UserError, match=r"has no example to train on \(1 answer_truncated_away dropped\)"):
        build(path, cfg=config(seq_len=start - 1, eval_fraction=0.0))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "q", "answer": ""}, "empty answer"),
        ({"question": "q" * 3000, "answer": "a"}, "answer truncated away"),
    ],
)  # fmt: skip
def test_strict_refuses_a_record_with_nothing_to_learn(tmp_path, row, reason):  # pain 4
    path = jsonl(tmp_path / "a.jsonl", [*QUESTIONS, row])
    with pytest.raises(
        UserError, match=rf"sources.mine.path: .*a.jsonl, line 201: nothing to learn \({reason}\)"
    ):
        build(path, cfg=config(strict=True, eval_fraction=0.0))


def test_options_of_the_mask_reach_the_store(tmp_path):  # pain 9
    turns = [{"role": role, "content": word} for role, word in zip(("user", "assistant") * 2, "qaQA")]
    path = jsonl(tmp_path / "a.jsonl", [{"messages": turns}])
    counts = [
        build(path, cfg=config(eval_fraction=0.0, **options))[0].num_trained
        for options in ({}, {"train_on": "last_answer"}, {"train_on_prompt": True})
    ]
    assert counts[0] == 2 * counts[1]
    assert (
        counts[2] == build(path, cfg=config(eval_fraction=0.0))[0].num_tokens - 1
    )  # the first id is no target


def test_what_the_template_refuses_is_named_with_its_line(tmp_path):
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('a bad word') }}{% endif %}{{ m.role }}:"
        "{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    chat = open_template(TOKENIZER, str(tmp_path / "own.jinja"))
    path = jsonl(tmp_path / "a.jsonl", [*QUESTIONS[:3], {"question": "bad", "answer": "a"}])
    with pytest.raises(UserError, match=r"a.jsonl, line 4: chat template .*own.jinja: a bad word"):
        build(path, cfg=config(eval_fraction=0.0), chat=chat)


def test_examples_are_built_once_and_again_when_anything_that_decides_changes(tmp_path, monkeypatch):
    path, other = jsonl(tmp_path / "a.jsonl", QUESTIONS), jsonl(tmp_path / "b.jsonl", QUESTIONS)
    first, said = build(path)
    assert "built in" in said[0]
    folders = {first.directory}
    (tmp_path / "own.jinja").write_text(CHAT.text + "\n")
    variants = [
        {"cfg": config(seq_len=255)}, {"cfg": config(eval_fraction=0.2)}, {"cfg": config(strict=True)},
        {"cfg": config(train_on="last_answer")}, {"cfg": config(train_on_prompt=True)}, {"split": "eval"},
        {"columns": "question_answer"}, {"tokenizer": GPT2, "chat": open_template(GPT2, "alpaca")},
        {"chat": open_template(TOKENIZER, str(tmp_path / "own.jinja"))}, {"eval_path": other},
    ]  # fmt: skip
    for variant in variants:
        store, _ = build(path, **variant)
        assert store.directory not in folders, variant
        folders.add(store.directory)
    monkeypatch.setattr(examples, "_write", None)  # nothing more is written
    again, said = build(path)
    assert again.directory == first.directory
    assert "in the cache" in said[0]
    cfg = dataclasses.replace(
        config(), seed=7, data=DataConfig(seq_len=256, eval_fraction=0.1, global_batch_size=3)
    )
    assert build(path, cfg=cfg)[0].directory == first.directory  # these decide nothing
    jsonl(Path(path), QUESTIONS[1:])
    with pytest.raises(TypeError):
        build(path)


def test_the_same_records_have_the_same_hash_wherever_they_lie(tmp_path):
    a, _ = build(jsonl(tmp_path / "a.jsonl", QUESTIONS))
    b, _ = build(jsonl(tmp_path / "b.jsonl", QUESTIONS))
    c, _ = build(jsonl(tmp_path / "c.jsonl", [{"question": "q", "answer": "b"}, *QUESTIONS]))
    assert a.manifest["sha256"] == b.manifest["sha256"] != c.manifest["sha256"]
    assert b.where(0).startswith(str(tmp_path / "b.jsonl"))


def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path / "cache"))
    path = jsonl(tmp_path / "a.jsonl", [*QUESTIONS, {"question": 1, "answer": "a"}])
    with pytest.raises(UserError, match=r"data.sources.mine.path: .*a.jsonl, line 201, field 'question'"):
        build(path, cfg=config(eval_fraction=0.0))
    assert os.listdir(tmp_path / "cache" / "examples") == []


def test_a_file_that_changes_meanwhile_is_refused(tmp_path, monkeypatch):
    path = jsonl(tmp_path / "a.jsonl", QUESTIONS)
    write = examples._write_arrays

    def slow(*args):
        made = write(*args)
        jsonl(tmp_path / "a.jsonl", QUESTIONS[:3])
        return made

    monkeypatch.setattr(examples, "_write_arrays", slow)
    with pytest.raises(UserError, match="changed while it was read"):
        build(path)


def test_a_damaged_store_is_named(tmp_path):
    store, _ = build(jsonl(tmp_path / "a.jsonl", QUESTIONS))
    folder = Path(store.directory)
    (folder / "trained.npy").write_bytes((folder / "trained.npy").read_bytes()[:-5])
    with pytest.raises(UserError, match=r"is damaged: trained.npy"):
        ExampleStore(folder)
    (folder / "examples.json").write_text("{")
    with pytest.raises(UserError, match=r"examples.json is not valid JSON"):
        ExampleStore(folder)
    with pytest.raises(UserError, match="holds no examples"):
        ExampleStore(tmp_path)


def test_another_tokenizer_is_refused_and_a_store_can_be_pickled(tmp_path):
    store, _ = build(jsonl(tmp_path / "a.jsonl", QUESTIONS))
    with pytest.raises(UserError, match="was tokenised by another tokenizer"):
        ExampleStore(store.directory, expected_tokenizer_sha256="0" * 64)
    again = pickle.loads(pickle.dumps(store))
    assert again.document_ends.tolist() == store.document_ends.tolist()


def test_texts_to_classify_begin_with_bos_and_end_in_no_eos(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", TEXTS)
    store, _ = build(path, cfg=config(seq_len=16, eval_fraction=0.0), objective="classify")
    for (ids, known), row in zip(every(store), TEXTS):
        assert ids.tolist() == [TOKENIZER.bos_id, *TOKENIZER.encode(row["text"])][:16]
        assert not known.any()
    assert store.labels(["odd", "even"]).tolist() == [1, 0] * 30
    assert store.labels(["odd", "even"]).dtype == np.int32
    assert store.manifest["labels"] == ["even", "odd"]
    assert store.manifest["label_counts"] == {"even": 30, "odd": 30}
    assert store.manifest["num_truncated"] == sum(len(TOKENIZER.encode(r["text"])) > 15 for r in TEXTS) > 0
    assert store.label_of(1) == ["odd"]


def test_a_pair_is_one_text_with_a_newline_between(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text_a": "one", "text_b": "two", "label": 0}])
    store, _ = build(path, cfg=config(eval_fraction=0.0), objective="classify", tokenizer=GPT2)
    assert every(store)[0][0].tolist() == GPT2.encode("one\ntwo")


def test_a_text_is_on_one_side_whatever_its_label(tmp_path):
    rows = [{**row, "label": label} for row in TEXTS for label in ("x", "y")]
    path = jsonl(tmp_path / "a.jsonl", rows)
    train, held_out = ({tuple(ids.tolist()) for ids, _ in every(build(path, split, objective="classify")[0])}
                       for split in ("train", "eval"))  # fmt: skip
    assert held_out
    assert not train & held_out


def test_a_label_that_training_never_saw_is_named_with_its_line(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [*TEXTS, {"text": "new", "label": "neither"}, *TEXTS])
    store, _ = build(path, cfg=config(eval_fraction=0.0), objective="classify")
    with pytest.raises(UserError, match=r"a.jsonl, line 61: the label 'neither' is none of 'even', 'odd'"):
        store.labels(["even", "odd"])
    assert store.labels(["even", "neither", "odd"]).tolist()[58:63] == [0, 2, 1, 0, 2]


def test_any_number_of_labels(tmp_path):
    rows = [{"text": "a", "label": ["x", "z"]}, {"text": "b", "label": []}, {"text": "c", "label": ["y"]}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    store, _ = build(path, cfg=config(eval_fraction=0.0, task="multi_label"), objective="classify")
    found = store.labels(["z", "y", "x"])
    assert found.dtype == np.float32
    assert found.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert [store.label_of(i) for i in range(3)] == [["x", "z"], [], ["y"]]
    with pytest.raises(UserError, match=r"line 3: the label 'y' is none of"):
        store.labels(["x", "z"])


def test_numbers(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": 0.5}, {"text": "b", "label": -3}])
    store, _ = build(path, cfg=config(eval_fraction=0.0, task="regression"), objective="classify")
    assert store.labels([]).dtype == np.float32
    assert store.labels([]).tolist() == [[0.5], [-3.0]]
    assert store.label_of(1) == -3.0
    assert store.manifest["labels"] == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "9", "1"], ["1", "9", "10"]),
        (["10", "9", "a"], ["10", "9", "a"]),
        (["-1", "1", "0"], ["-1", "0", "1"]),
    ],
)
def test_labels_that_are_all_numbers_are_in_their_order(names, expected):
    assert sort_labels(names) == expected


def test_a_file_without_records_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=r"mine.path: .* has no example to train on \(2 blank_line dropped\)"):
        build(str(tmp_path / "a.jsonl"))
    with pytest.raises(UserError, match=r"data.sources.mine.eval_path: .*nowhere.jsonl does not exist"):
        build(jsonl(tmp_path / "b.jsonl", QUESTIONS), "eval", eval_path=str(tmp_path / "nowhere.jsonl"))
