"""What a corpus was planned for is what a run does: sources, weights and epochs, from raw files to the event log."""

import json
import random
from pathlib import Path

import pytest

pytest.importorskip("datatrove")

from jaxlm import run
from jaxlm.corpus.raw import config as corpora
from jaxlm.corpus.raw import pipeline

STEPS, ROWS, LENGTH = 40, 8, 32
BUDGET = STEPS * ROWS * LENGTH
SMALL = {
    "data.seq_len": LENGTH, "data.global_batch_size": ROWS, "model.embed_dim": 16, "model.num_layers": 1,
    "model.num_heads": 2, "model.num_kv_heads": 2, "train.num_steps": STEPS, "train.log_every_steps": 20,
    "train.eval_every_steps": STEPS, "train.eval_batches": 1, "checkpoint.every_steps": STEPS,
    "optimizer.warmup_steps": 1,
}  # fmt: skip
SOURCES = {"books": (5, 12), "crawl": (3, 6), "links": (2, 3)}
"""Weight, and documents."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(folder, report) of three small corpora, planned for a run of BUDGET tokens."""
    folder = tmp_path_factory.mktemp("corpus")
    own = random.Random(1)
    argv = [f"--config={Path(__file__).parent / 'small_corpus.py'}", f"--config.root={folder}"]
    for name, (weight, count) in SOURCES.items():
        rows = [" ".join(own.choices("abcdefgh", k=400)) for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
        argv.append(f"--config.sources.{name}.path={name}.jsonl")
        argv.append(f"--config.sources.{name}.weight_tokens={weight}")
    argv += [
        "--config.tokenizer.kind=char",
        f"--config.budget_tokens={BUDGET}",
        "--config.dedup.minhash=false",
    ]
    cfg = corpora.resolve(corpora.parse([*argv, "--config.executor.workers=1"]))
    report = pipeline.build(cfg, str(folder / "out"), progress=False)
    return folder / "out", report


def test_a_run_reads_each_source_as_often_as_the_report_plans(built, tmp_path):
    folder, report = built
    cfg = run.parse([f"--config=pretrain_corpus:{folder}"])
    with cfg.unlocked():
        cfg.update_from_flattened_dict(SMALL)
    run.train(run.resolve(cfg), tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    plan = next(event for event in events if event["event"] == "plan")["sources"]
    last = [event for event in events if "data/books/epochs" in event][-1]
    assert last["step"] == STEPS
    assert set(plan) == set(SOURCES)
    for name, source in report["sources"].items():
        assert last[f"data/{name}/epochs"] == pytest.approx(plan[name]["epochs"], rel=1e-9)
        assert last[f"data/{name}/epochs"] == pytest.approx(source["epochs"], rel=0.01)
    assert report["sources"]["links"]["epochs"] > 1  # one that is read again and again, and one that is not
    assert report["sources"]["books"]["epochs"] != pytest.approx(
        report["sources"]["links"]["epochs"], rel=0.05
    )


def test_the_config_of_a_run_names_what_was_built(built):
    folder, _ = built
    cfg = run.resolve(run.parse([f"--config=pretrain_corpus:{folder}"]))
    shares = {name: source.weight_tokens for name, source in cfg.data.sources.items()}
    assert shares == {name: weight for name, (weight, _) in SOURCES.items()}
    assert all(Path(source.path).parent == folder for source in cfg.data.sources.values())
    assert cfg.train.num_steps == 100  # the least of this config; BUDGET is less
