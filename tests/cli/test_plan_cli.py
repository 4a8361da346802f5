"""Promises of `jaxlm plan --config`: one screen of numbers, the same as JSON and as a page, and clear mistakes."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
LLAMA = "--config=pretrain_llama2_7b_v5e256"


def test_the_plan_of_llama_2_7b_is_this_one(jaxlm):
    """Renew: jaxlm plan --config=pretrain_llama2_7b_v5e256 --chip=v5p,h100,tpu7x --price=2"""
    code, out, err = jaxlm("plan", LLAMA, "--chip=v5p,h100,tpu7x", "--price=2")
    assert (code, err) == (0, "")
    shown = [line.rstrip() for line in out.splitlines()]
    assert shown == (GOLDEN / "plan_llama2_7b.txt").read_text(encoding="utf-8").splitlines()
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize(
    "config",
    [
        "quickstart",
        "classify_spam_smollm2_cpu",
        "instruct_llama31_8b_v5e16",
        "pretrain_size:mixtral-8x7b",
        "pretrain_size:gpt3-175b",
    ],
)
def test_every_kind_of_run_has_a_plan_of_100_columns(jaxlm, config):
    code, out, err = jaxlm("plan", f"--config={config}")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    assert "the smallest slice of each chip that it fits on" in out


def test_json_holds_the_numbers(jaxlm):
    code, out, _ = jaxlm("plan", LLAMA, "--chip=v5e", "--num-chips=256", "--price=1.2", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["parameters"]["total"] == 6_738_415_616
    assert found["tokens"] == 476_837 * 1024 * 4096
    assert found["slices"][0]["mesh"]["fsdp"] == 256


def test_a_source_that_is_read_too_often_is_warned_of(jaxlm):
    code, out, _ = jaxlm("plan", LLAMA, "--chip=v5e", "--source-tokens=webtext=19e9,wikipedia=30e9", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["mixture"]["sources"]["webtext"]["epochs"] == pytest.approx(
        22 / 101 * found["tokens"] / 19e9
    )
    (said,) = [warning for warning in found["warnings"] if "2305.16264" in warning]
    assert said.startswith("webtext is read 22.9 times")
    code, _, err = jaxlm("plan", LLAMA, "--source-tokens=webtxt=19e9")
    assert (code, "did you mean 'webtext'?" in err) == (2, True)


class Page(HTMLParser):
    """What of a page points elsewhere, and its cells."""

    def __init__(self, text):
        super().__init__()
        self.links, self.cells, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        self.links += [tag] if tag in ("script", "link", "img", "iframe") else []
        self.open += [tag] if tag not in ("meta",) else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_the_page_needs_no_network(jaxlm, tmp_path):
    code, out, _ = jaxlm("plan", LLAMA, "--chip=v5e", "--price=1.2", f"--html={tmp_path / 'plan.html'}")
    assert code == 0
    page = Page((tmp_path / "plan.html").read_text(encoding="utf-8"))
    assert (page.links, page.open) == ([], [])
    assert "6,738,415,616" in page.cells
    assert "6,738,415,616" in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "Give what to plan: --config=NAME_OR_PATH, or a command; see `jaxlm plan --help`."),
        ([LLAMA, "--chip=v5x"], "chip='v5x' is not one of v4, v5e,"),
        ([LLAMA, "--chip=v5e", "--num-chips=100"], "--num-chips=100 is no slice of v5e: there are 16, 32, 64, 128,"),
        ([LLAMA, "--mfu=40"], "a share of the chip's peak; 40 %? That is 0.4."),
        ([LLAMA, "--mfu=0.5,0.3"], "--mfu=0.5,0.3 has to be low,high"),
        ([LLAMA, "--price=700"], "--price=700 is above 30"),
        ([LLAMA, "--chip=tpu7x", "--commitment=spot"], "There is no spot price of tpu7x"),
        ([LLAMA, "--commitment=yearly"], "--commitment='yearly' is not one of on-demand"),
        ([LLAMA, "--provider=Gogle Cloud"], "did you mean 'Google Cloud'?"),
        ([LLAMA, "--days=0"], "--days=0 has to be a finite number above 0."),
        ([LLAMA, "--attention-flops=hlf"], "did you mean 'half'?"),
        ([LLAMA, "--config.mesh.tensor=3"], "mesh.tensor=3"),
        ([LLAMA, "--config.mesh.fsdp=64", "--chip=v5e", "--num-chips=128"], "sequence 1 x tensor 1 does not"),
        ([LLAMA, "--html=/nowhere/x.html"], "--html=/nowhere/x.html cannot be written: No such file or directory."),
        (["--config=nanogpt_char_cpu"], "model.vocab_size is unset, and the tokenizer's is known only once it is read"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(jaxlm, flags, said):
    code, out, err = jaxlm("plan", *flags)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_plan_imports_no_jax():
    code = (
        "import sys; from jaxlm.cli.main import main; code = main(sys.argv[1:]); "
        "sys.exit(code or bool({'jax', 'numpy', 'flax'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, "plan", LLAMA]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "40"})
    assert done.returncode == 0, done.stderr
    assert "plan of pretrain_llama2_7b_v5e256" in done.stdout
