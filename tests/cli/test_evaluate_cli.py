"""Promises of `jaxlm evaluate` on texts, sets, tasks of lm-eval and the suite: a tiny model, trained for two steps."""

import json
import math
import re

import pytest
from small_run import small, write_squares

from jaxlm import run as run_lib

PROGRESS = re.compile(r"^\s*$|\d+%\|")
"""A bar of tqdm: the command switches it off, before it is imported, which another test may have done."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    text = write_squares(folder / "squares.txt")
    config = small(text, data__seq_len=128, data__eval_fraction=0.2)
    run_lib.train(config, folder / "run")
    return folder / "run"


@pytest.fixture
def evaluate(trained, jaxlm):
    """evaluate(flags) -> (exit code, stdout, stderr)."""
    return lambda *flags: jaxlm("evaluate", f"--run={trained}", *flags)


def found(evaluate, *flags):
    code, out, err = evaluate(*flags, "--json")
    assert code == 0, err
    return json.loads(out)


def test_several_texts_come_with_their_total_and_standard_errors(evaluate, tmp_path):
    text, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_text("3 to the 2 is 9.\n" * 30)
    lines.write_text("".join(json.dumps({"body": f"{n} to the 2 is {n * n}."}) + "\n" for n in range(40)))
    whole = found(evaluate, text, lines, "--window=32", "--text-key=body")
    one, two = whole["results"]
    assert (one["num_documents"], two["num_documents"], whole["all"]["num_documents"]) == (1, 40, 41)
    assert whole["all"]["nats"] == pytest.approx(one["nats"] + two["nats"])
    assert whole["all"]["loss"] == pytest.approx(whole["all"]["nats"] / whole["all"]["num_tokens"])
    assert 0 < two["loss_stderr"] < 1
    assert two["perplexity_stderr"] == pytest.approx(math.exp(two["loss"]) * two["loss_stderr"])
    code, out, _ = evaluate(text, lines, "--window=32", "--text-key=body", "--stride=16")
    assert code == 0
    assert "±" in out
    assert out.splitlines()[-1].startswith("all: ")
    assert "stride 16" in out


def test_the_same_checkpoint_gives_the_same_bits_twice(evaluate):
    flags = ("--set=heldout,embedded:licences", "--window=64", "--stride=32", "--max-tokens=500")
    assert found(evaluate, *flags) == found(evaluate, *flags)


def test_sets_are_the_runs_own_those_of_python_and_those_of_a_file(evaluate, tmp_path):
    (tmp_path / "news.txt").write_text("5 to the 2 is 25.\n" * 9)
    sets = tmp_path / "sets.yaml"
    sets.write_text("news: news.txt\n")
    code, out, _ = evaluate("--list", f"--sets={sets}")
    assert code == 0
    assert [line.split("  ")[0] for line in out.splitlines()] == [
        "heldout", "mine", *(f"embedded:{n}" for n in ("topics", "docstrings", "comments", "licences")), "news",
    ]  # fmt: skip
    both = found(evaluate, "--set=mine,news", f"--sets={sets}", "--window=64")["results"]
    assert [one["set"] for one in both] == ["mine", "news"]
    assert both[0]["num_tokens"] > 500
    assert found(evaluate, "--set=heldout", "--window=64")["nats"] == both[0]["nats"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--set=minee"], "did you mean mine?"),
        (["--set=x", "--sets={bad}"], "needs a path"),
        (["{empty}"], "is empty"),
        (["{no}.jsonl"], "does not exist"),
        (["{ok}", "--window=8", "--stride=8"], "stride=8 must be in [1, 7]"),
        (["{ok}", "--window=1"], "window=1 must be at least"),
        (["{ok}", "--suite"], "give --suite or texts, not both"),
        (["--suite", "--tasks=a"], "give one of them"),
        (["--suite", "--window=9"], "--window is about texts"),
        (["--suite", "--shots=9"], "--shots=9"),
        (["--suite", "--suite-tasks=question_en"], "questions_en"),
        (["--suite", "--steps=7"], "has no checkpoint of step 7"),
        (["--limit=3", "{ok}"], "--limit is about tasks"),
        (["--shots=3", "{ok}"], "--shots is about --suite"),
        (["--tasks=a", "--limit=0"], "--limit=0 must be at least 1"),
        (["--tasks=a", "--gen-kwargs=b"], "is not KEY=VALUE"),
        (["{ok}", "--mesh=sequence:8"], "evaluation cuts no rows"),
        (["{ok}", "--run=another"], "only --suite compares several runs"),
    ],
)
def test_mistakes_are_one_line(evaluate, tmp_path, flags, said):
    names = {"bad": "sets.yaml", "empty": "empty.txt", "ok": "ok.txt", "no": "no"}
    (tmp_path / "sets.yaml").write_text("x: [1]\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "ok.txt").write_text("1 to the 2 is 1.")
    paths = {name: tmp_path / file for name, file in names.items()}
    code, out, err = evaluate(*(flag.format(**paths) for flag in flags))
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_mesh_of_devices_gives_the_same_numbers(evaluate, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("3 to the 2 is 9.\n" * 30)
    alone = found(evaluate, text, "--window=32")
    spread = found(evaluate, text, "--window=32", "--mesh=fsdp:4,tensor:2")
    assert spread["nats"] == pytest.approx(alone["nats"], rel=1e-5)


def test_the_suite_is_a_curve_over_checkpoints(evaluate, tmp_path):
    flags = ("--suite", "--suite-tasks=questions_bn,translate_en_fr", "--steps=all")
    curve = found(evaluate, *flags)["results"]
    assert [(one["step"], one["task"]) for one in curve] == [
        (step, task) for step in (1, 2) for task in ("questions_bn", "translate_en_fr")
    ]
    for one in curve:
        assert one["chance"] == 0.25
        assert 0 <= one["choice"] <= 1
        assert one["choice_stderr"] is not None
        assert one["bits_per_byte_stderr"] > 0
        assert one["num_items"] >= 20
    items = tmp_path / "items.jsonl"
    code, out, _ = evaluate("--suite", "--suite-tasks=questions_en", "--shots=0,2", f"--suite-items={items}")
    assert code == 0
    assert "chance" in out
    assert "±" in out
    shots = [json.loads(line)["shots"] for line in items.read_text().splitlines()]
    assert sorted(set(shots)) == [0, 2]


def write_tasks(folder):
    (folder / "data.jsonl").write_text(
        "".join(
            json.dumps({"n": n, "right": str(n * n), "choices": [str(n * n), str(n + 1)]}) + "\n"
            for n in range(2, 8)
        )
    )
    about = "dataset_path: json\ndataset_kwargs: {data_files: {test: data.jsonl}}\ntest_split: test\n"
    (folder / "choose.yaml").write_text(
        "task: choose\noutput_type: multiple_choice\ndoc_to_text: '{{n}} to the 2 is'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: 0\nmetric_list: [{metric: acc, aggregation: mean}]\n"
        + about
    )
    (folder / "write.yaml").write_text(
        "task: write\noutput_type: generate_until\ndoc_to_text: '{{n}} to the 2 is'\ndoc_to_target: '{{right}}'\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 6}\n"
        "metric_list: [{metric: exact_match, aggregation: mean}]\n" + about
    )
    (folder / "read.yaml").write_text(
        "task: read\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\n"
        "doc_to_target: '{{n}} to the 2 is {{right}}.'\n"
        "metric_list: [{metric: bits_per_byte}]\n" + about
    )
    (folder / "evil.yaml").write_text("task: evil\nprocess_docs: !function evil.run\n" + about)
    (folder / "escape.yaml").write_text(
        "task: escape\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\nmetric_list: [{metric: bits_per_byte}]\n"
        "doc_to_target: \"{{ ''.__class__.__mro__[1].__subclasses__() }}\"\n" + about
    )
    (folder / "far.yaml").write_text(
        "task: far\noutput_type: generate_until\ndoc_to_text: a\ndoc_to_target: a\ndataset_path: nobody/nothing\n"
        "test_split: test\n"
    )
    return f"--task-path={folder}"


def test_tasks_of_lm_eval_are_scored_offline_the_same_twice_and_in_any_batch(evaluate, tmp_path):
    path = write_tasks(tmp_path)
    samples = tmp_path / "samples.jsonl"
    flags = ("--tasks=choose,write,read", path, "--num-fewshot=1")
    first = found(evaluate, *flags, f"--samples={samples}")["results"]
    assert first["choose"]["acc_stderr,none"] > 0 or first["choose"]["acc,none"] in (0, 1)
    assert first["read"]["bits_per_byte_stderr,none"] > 0
    assert len(samples.read_text().splitlines()) == 18
    assert found(evaluate, *flags)["results"] == first
    other = found(evaluate, *flags, "--batch-size=2")["results"]
    assert other["read"]["bits_per_byte,none"] == pytest.approx(first["read"]["bits_per_byte,none"], abs=1e-5)
    code, out, _ = evaluate("--tasks=choose", path, "--limit=2")
    assert code == 0
    assert out.splitlines()[1].split() == ["task", "shots", "filter", "metric", "value", "standard", "error"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tasks=chose"], "did you mean choose?"),
        (["--tasks=evil"], "!function evil.run"),
        (["--tasks=far"], "is not on this machine"),
        (["--tasks=choose", "--apply-chat-template"], "has no chat template"),
        (["--tasks=write", "--gen-kwargs=num_beams=3"], "generation_kwargs.num_beams=3"),
        (["--tasks=write", "--gen-kwargs=max_gen_toks=500"], "asks for 500 new tokens"),
        (["--tasks=escape"], "is unsafe"),
    ],
)
def test_tasks_that_cannot_be_asked_are_one_line(evaluate, tmp_path, flags, said):
    code, out, err = evaluate(*flags, write_tasks(tmp_path))
    assert (code, out) == (2, "")
    assert said in err
    lines = [line for line in err.splitlines() if not PROGRESS.search(line)]
    assert len(lines) == 1
