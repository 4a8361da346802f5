"""`jaxlm data`: the plan is told, hashes do not depend on processes, the loader is measured."""

import re
from types import SimpleNamespace

import pytest

from jaxlm.cli.main import main
from jaxlm.data.shards import TokenStore, write_corpus

CONFIG = """
from jaxlm import run

def get_config():
    cfg = run.default_config()
    cfg.data.sources = {
        "web": {"path": "x", "weight_tokens": 0.75, "on_exhausted": "repeat"},
        "books": {"path": "x", "weight_tokens": 0.25, "on_exhausted": "repeat"},
    }
    cfg.data.seq_len = 16
    cfg.data.global_batch_size = 8
    cfg.train.num_steps = 200
    return cfg
"""


@pytest.fixture
def jaxlm_data(tmp_path, monkeypatch, capsys):
    """Runs `jaxlm data ACTION` on two small corpora; returns exit code, stdout, stderr."""
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "small.py").write_text(CONFIG)
    for name, count in (("web", 80), ("books", 40)):
        documents = [([1, *range(2, 2 + (7 * i) % 50), 3], 100) for i in range(count)]
        write_corpus(tmp_path / name, {"train": documents}, tokenizer_sha256="t", vocab_size=300)

    def open_data(cfg, *, quiet=False):
        train = {name: TokenStore(tmp_path / name, "train") for name in cfg.data.sources}
        return SimpleNamespace(tokenizer=None, train=train, eval={}, notices=None)

    monkeypatch.setattr("jaxlm.run.open_data", open_data, raising=False)

    def run(action, *flags):
        code = main(["data", action, f"--config={tmp_path}/small.py", *flags])
        return code, *capsys.readouterr()

    return run


def test_plan_tells_tokens_epochs_and_weights_that_were_normalised(jaxlm_data):
    code, out, _ = jaxlm_data("plan", "--config.data.sources.web.weight_tokens=1.75")
    assert code == 0
    assert "200 steps x 8 x 16 tokens, concat" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines()[2:4]}
    assert rows["web"][1] == "87.50%"
    assert rows["books"][1] == "12.50%"
    assert float(rows["books"][4]) > 1
    assert "note: data.sources: the weights sum to 2, not to 1 (or 100); each was multiplied by 0.5" in out


def test_plan_that_a_source_does_not_allow_is_an_error(jaxlm_data):
    code, _, err = jaxlm_data("plan", "--config.data.sources.books.on_exhausted=error")
    assert code == 2
    assert err.startswith("jaxlm: error: data.sources.books")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_hashes_are_the_same_for_any_number_of_processes(jaxlm_data, packing):  # pain 3
    outputs = {
        jaxlm_data("hash", f"--config.data.packing={packing}", f"--processes={count}", "--num-steps=6")
        for count in (1, 2, 4, 8)
    }
    ((code, out, _),) = outputs
    assert code == 0
    assert len(set(re.findall(r"^step \d+  ([0-9a-f]{8})  rows: ", out, re.MULTILINE))) == 6


def test_hashes_continue_where_they_are_asked_to(jaxlm_data):
    _, whole, _ = jaxlm_data("hash", "--num-steps=10")
    _, tail, _ = jaxlm_data("hash", "--start=7", "--num-steps=3")
    assert whole.splitlines()[7:] == tail.splitlines()
    assert jaxlm_data("hash", "--config.seed=1", "--num-steps=10")[1] != whole


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--processes=3"], r"--processes=3 must divide data.global_batch_size=8.*\[1, 2, 4, 8\]"),
        (["--processes=0"], r"--processes=0"),
        (["--num-steps=0"], r"--num-steps=0"),
        (["--start=-1"], r"--start=-1"),
        (["--start=99999999999999999999"], r"--start=9+ is beyond the last row that can be numbered"),
    ],
)
def test_flags_that_make_no_sense_are_one_line_of_error(jaxlm_data, flags, message):
    code, out, err = jaxlm_data("hash", *flags)
    assert (code, out) == (2, "")
    assert re.search(message, err)


def test_bench_measures_the_loader_and_a_limit(jaxlm_data):  # pain 20
    code, out, _ = jaxlm_data("bench", "--num-steps=20")
    assert code == 0
    found = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith("first"))
    assert set(found) == {"batch", "loader", "limit", "ratio"}
    assert float(found["loader"].split()[0]) > 0
    assert 0 < float(found["limit"].split()[0])
    first = re.search(r"^first batch  (\d+\.\d+) s$", out, re.MULTILINE)
    assert first
    assert float(first[1]) < 5
