"""What a run says of itself at its evaluations, on eight devices: samples, tables of labels, where its time went."""

import glob
import json
import logging
import re

import jax
import pytest
from small_run import small, write_squares

from jaxlm import run
from jaxlm.infer.text import generate_text
from jaxlm.report.events import last_of_each_step, read_events
from jaxlm.report.goodput import goodput
from jaxlm.report.run_log import RunLog
from jaxlm.types import UserError


def events_of(folder, kind):
    return [event for event in read_events(folder / "events.jsonl") if event["event"] == kind]


def test_samples_change_nothing_and_are_what_generate_would_write(tmp_path):
    text = write_squares(tmp_path / "text.txt")
    compiled = []

    class Listener(logging.Handler):
        def emit(self, record):
            compiled.extend(re.findall(r"^Compiling (?:jit\()?(\w+)", record.getMessage()))

    logger, listener = logging.getLogger("jax._src.interpreters.pxla"), Listener()
    keys = dict(mesh__sequence=2, train__num_steps=4, optimizer__learning_rate=0.03)
    run.train(small(text, **(keys | {"train__num_steps": 2})), tmp_path / "plain")
    run.train(small(text, **keys), tmp_path / "plain")
    check_account(tmp_path / "plain")
    logger.addHandler(listener)
    try:
        with jax.log_compiles():
            prompts = "12 to the|7| a prompt of more characters than a row has"
            run.train(small(text, report__sample_prompts=prompts, **keys), tmp_path / "run")
    finally:
        logger.removeHandler(listener)
    assert compiled.count("step") == 1, compiled
    with_samples, without = (
        {
            step: (e["batch_hash"], e["train/loss"], e["train/grad_norm"])
            for step, e in last_of_each_step(found).items()
        }
        for found in (read_events(tmp_path / name / "events.jsonl") for name in ("run", "plain"))
    )
    assert with_samples == without
    texts = {(e["step"], e["name"]): e["text"] for e in events_of(tmp_path / "run", "text")}
    names = [f"sample: {one}" for one in ("12 to the", "7", "a prompt of more characters than a row has")]
    assert list(texts) == [(step, name) for step in (2, 4) for name in names]
    loaded = run.load_run(tmp_path / "run")
    wanted = generate_text(
        loaded.lm, loaded.params, loaded.tokenizer, ["12 to the"[-8:], "7"], max_new_tokens=8, temperature=0.0
    )
    assert [texts[4, name] for name in names[:2]] == [one.text for one in wanted]


def check_account(folder):
    """The parts of a real run in two processes add up, and little of it is not measured."""
    log = RunLog()
    log.add_all(read_events(folder / "events.jsonl"))
    found = goodput(log)
    assert found.num_starts == 2
    assert None not in found.seconds.values()
    assert sum(found.seconds.values()) == pytest.approx(found.wall_s)
    for part in ("productive", "compile", "checkpoint", "restore", "evaluation", "startup"):
        assert found.seconds[part] > 0, part
    assert found.seconds["other"] < 0.25 * found.wall_s
    assert {e["step"] for e in events_of(folder, "memory") if "step" in e} == {1, 2, 3, 4}


def test_a_classifier_ends_with_a_table_of_its_held_out_labels(tmp_path):
    records = tmp_path / "records.jsonl"
    lines = [
        {"text": f"{n} {'even' if n % 2 == 0 else 'odd'}", "label": ["even", "odd"][n % 2]}
        for n in range(120)
    ]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = small(
        records,
        objective="classify",
        data__eval_split="hash",
        train__eval_batches=9,
        report__writers="tensorboard",
        mesh__tensor=2,  # beside four of data
        model__vocab_size=512,
    )
    scores = run.train(config, tmp_path / "run")
    (event,) = events_of(tmp_path / "run", "scores")
    assert (event["step"], event["name"]) == (2, "mine")
    assert event["scores"]["accuracy"] == pytest.approx(scores["eval/mine/accuracy"])
    assert event["scores"]["loss"] == pytest.approx(scores["eval/mine/loss"], rel=1e-4)
    assert sum(map(sum, event["scores"]["confusion"])) == event["scores"]["num_texts"]
    (file,) = glob.glob(str(tmp_path / "run" / "tensorboard" / "events.out*"))
    content = open(file, "rb").read()
    for name in (b"eval/mine/confusion", b"eval/mine/reliability", b"\x89PNG"):
        assert name in content


def test_prompts_that_would_be_ignored_are_refused(tmp_path):
    text = write_squares(tmp_path / "text.txt")
    with pytest.raises(UserError, match="a classifier writes no text"):
        small(text, objective="classify", report__sample_prompts="a")
    with pytest.raises(UserError, match="eval_batches=0"):
        small(text, train__eval_batches=0, report__sample_prompts="a")
    with pytest.raises(UserError, match="16 at most"):
        small(text, report__sample_prompts="|".join(map(str, range(17))))
