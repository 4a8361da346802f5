"""`jaxlm data show`: what is trained on is marked, what is dropped is counted."""

import json
import re

import pytest
import small_tokenizers

from jaxlm.cli.main import main
from jaxlm.data.tokenizer_hf import HFTokenizer

CONFIG = """
from jaxlm import run

def get_config(objective="instruct"):
    cfg = run.default_config()
    cfg.objective = objective
    cfg.tokenizer.path = "{folder}/tokenizer"
    cfg.data.sources = {{"qa": {{"path": "{folder}/data.jsonl"}}}}
    return cfg
"""
ROWS = [{"question": f"What is {n}?", "answer": f"It <is> {n}."} for n in range(40)]


@pytest.fixture
def show(tmp_path, monkeypatch, capsys):
    """Writes rows, runs `jaxlm data show`; returns exit code, stdout, stderr."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    (tmp_path / "small.py").write_text(CONFIG.format(folder=tmp_path))
    HFTokenizer(small_tokenizers.level()).save(tmp_path)

    def run(rows, *flags, objective="instruct"):
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        code = main(["data", "show", f"--config={tmp_path}/small.py:{objective}", *flags])
        return code, *capsys.readouterr()

    return run


def test_answers_are_in_brackets_and_counts_follow(show):  # pain 7
    code, out, err = show([*ROWS, {"question": "q", "answer": ""}], "-n", "2")
    assert code == 0
    assert out.count("### Instruction:") == 2
    assert re.search(r"^--- qa: .*data\.jsonl, line \d+\n<\|begin\|>Below is an instruction", out)
    assert re.findall(r"\[\[(.*)\]\]", out)[0].endswith("<|end|>")
    assert re.search(r"^qa: 39 records, [\d,]+ tokens$", out, re.MULTILINE)
    assert re.search(r"^qa: [\d,]+ trained tokens \(\d+\.\d%\), template alpaca$", out, re.MULTILINE)
    assert "qa: 0 truncated" in out
    assert "qa: dropped: 1 empty_answer; columns: question_answer" in out
    assert "built in" in err


def test_what_is_held_out(show):
    _, out, _ = show(ROWS, "--split=eval", "-n", "9")
    assert out.count("### Instruction:") == 1


def test_colours_on_a_terminal(show, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, out, _ = show(ROWS, "-n", "1")
    assert "\x1b[1;32m" in out
    assert "[[" not in out
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, _ = show(ROWS, "-n", "1")
    assert "\x1b" not in out
    assert "[[" in out


def test_a_page(show, tmp_path):
    code, out, _ = show(ROWS, "-n", "3", f"--html={tmp_path}/page.html")
    page = (tmp_path / "page.html").read_text()
    assert (code, out) == (0, f"{tmp_path}/page.html\n")
    assert page.count("<pre>") == page.count("<mark>It &lt;is&gt;") == 3
    assert "&lt;|end|&gt;</mark></pre>" in page


def test_labels(show):
    rows = [{"text": f"text {n}", "label": n % 3} for n in range(40)]
    code, out, _ = show(rows, "-n", "1", "--config.data.eval_fraction=0", "--config.train.eval_batches=0",
                        objective="classify")  # fmt: skip
    assert code == 0
    assert out.startswith("--- qa: ")
    assert "line 1  label: 0\n<|begin|>text 0\n" in out
    assert "qa: labels: 0 14, 1 13, 2 13" in out


@pytest.mark.parametrize(
    ("flags", "objective", "message"),
    [
        (["-n", "0"], "instruct", "--num=0 must be at least 1"),
        ([], "pretrain", "needs objective=instruct or classify"),
        (["--config.instruct.template=chat"], "instruct", "has no chat template"),
        (["--config.data.sources.qa.columns=clause"], "instruct", "field 'clause' is missing"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(show, flags, objective, message):
    code, out, err = show(ROWS, *flags, objective=objective)
    assert (code, out) == (2, "")
    assert re.search(message, err)
    assert len(err.splitlines()) == 1
