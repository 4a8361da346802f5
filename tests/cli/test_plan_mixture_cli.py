"""`jaxlm plan mixture`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.data.manifest import make_manifest, write_manifest
from jaxlm.plan.report import WIDTH

SMALL = Path(__file__).parent.parent / "small_config.py"
GPT3 = """\
Mixture of GPT-3: 300B tokens to train on
Tokens per source

 source        tokens   weight     share   drawn tokens   epochs
 ───────────────────────────────────────────────────────────────
 CommonCrawl     410B       60    59.41%           178B    0.435
 WebText2       19.0B       22    21.78%          65.3B    3.439
 Books1         12.0B        8     7.92%          23.8B    1.980
 Books2         55.0B        8     7.92%          23.8B    0.432
 Wikipedia      3.00B        3     2.97%          8.91B    2.970
 sum             499B      101   100.00%           300B    0.601

epochs = share x budget / tokens; in the last row, those of a mixture in proportion to the tokens
Published epochs beside the formula's

 source        published   formula   difference   rounding allows   explained   weight / 101%
 ────────────────────────────────────────────────────────────────────────────────────────────
 CommonCrawl        0.44     0.439        +0.2%    0.435 to 0.443         yes           0.435
 WebText2            2.9     3.474       -16.5%    3.308 to 3.649          NO           3.439
 Books1              1.9     2.000        -5.0%    1.800 to 2.217         yes           1.980
 Books2             0.43     0.436        -1.5%    0.405 to 0.468         yes           0.432
 Wikipedia           3.4     3.000       +13.3%    2.143 to 4.200         yes           2.970

formula = weight x 300B / tokens; rounding: weight +-0.5 points, tokens +-0.5B
Tokens that the published epochs stand for

 source        weight   epochs x tokens   of 300B   difference
 ─────────────────────────────────────────────────────────────
 CommonCrawl      60%           180.40B     60.1%         +0.1
 WebText2         22%            55.10B     18.4%         -3.6
 Books1            8%            22.80B      7.6%         -0.4
 Books2            8%            23.65B      7.9%         -0.1
 Wikipedia         3%            10.20B      3.4%         +0.4
 sum             101%           292.15B     97.4%         -3.6

The weights add to 101%, not to 100%.
WebText2's 2.9 epochs imply 18.4% of the tokens, not 22%; rounding allows 3.31 to 3.65 epochs.
The published epochs account for 292B of 300B tokens.

warning: GPT-3: the weights sum to 101, not to 1 (or 100); each was multiplied by 0.00990099: Books1
0.07921, Books2 0.07921, CommonCrawl 0.5941, WebText2 0.2178, Wikipedia 0.0297.
Source: Brown et al. 2020, Language Models are Few-Shot Learners, arXiv:2005.14165, table 2.2;
CommonCrawl is "Common Crawl (filtered)" there.
"""


def corpus(folder, num_tokens):
    shard = {
        "file": "train-00000.arrayrecord",
        "num_documents": 1,
        "num_tokens": num_tokens,
        "num_bytes": 9,
        "sha256": "x",
    }
    folder.mkdir()
    manifest = make_manifest(
        tokenizer_sha256="x", vocab_size=300, splits={"train": [shard]}, source={}, dropped={}, chunk_tokens=8
    )
    write_manifest(folder, manifest)
    return f"--config.data.sources.topics.path={folder}"


def as_json(jaxlm, *argv):
    code, out, err = jaxlm("plan", "mixture", *argv, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_gpt3s_table_fits_the_terminal_and_says_what_does_not_add_up(jaxlm):
    code, out, err = jaxlm("plan", "mixture", "gpt3")
    lines = [line.rstrip() for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert max(map(len, lines)) <= WIDTH
    assert lines == GPT3.splitlines()


def test_json_has_the_numbers_in_full(jaxlm):
    found = as_json(jaxlm, "gpt3")
    assert found["budget_tokens"] == 300e9
    assert found["sources"]["WebText2"]["epochs"] == pytest.approx(22 / 101 * 300 / 19, rel=1e-15)
    assert found["published"]["WebText2"]["formula"] == pytest.approx(66 / 19, rel=1e-15)
    assert not found["published"]["WebText2"]["is_rounding"]


def test_published_epochs_are_compared_only_where_nothing_was_changed(jaxlm):
    assert "published" in as_json(jaxlm, "gpt3", "--tokens=300e9")
    for flag in (
        "--tokens=1e12",
        "--weights=WebText2=18.4",
        "--source-tokens=Books1=13e9",
        "--max-epochs=2",
        "--need",
    ):
        assert "published" not in as_json(jaxlm, "gpt3", flag)


def test_caps_give_weights_that_keep_them(jaxlm):
    first = as_json(jaxlm, "gpt3", "--max-epochs=WebText2=2,Wikipedia=2")["capped"]
    assert (first["WebText2"]["epochs"], first["Wikipedia"]["epochs"]) == (2.0, 2.0)
    assert (first["WebText2"]["max_epochs"], "max_epochs" in first["Books1"]) == (2.0, False)
    weights = ",".join(f"{name}={one['share']}" for name, one in first.items())
    again = as_json(jaxlm, "gpt3", f"--weights={weights}")
    assert again["warnings"] == []
    assert {name: one["epochs"] for name, one in again["sources"].items()} == pytest.approx(
        {name: one["epochs"] for name, one in first.items()}, rel=1e-12
    )


def test_the_printed_weights_can_be_given_back(jaxlm):
    _, out, _ = jaxlm("plan", "mixture", "gpt3", "--max-epochs=1")
    flag = next(line.strip() for line in out.splitlines() if line.startswith("--weights="))
    found = as_json(jaxlm, "gpt3", flag)
    assert found["warnings"] == []
    assert found["sources"]["Wikipedia"]["epochs"] == pytest.approx(1, rel=1e-6)


def test_need_is_once_unless_said(jaxlm):
    once = as_json(jaxlm, "gpt3", "--need")["need"]
    assert once["Books1"]["needed_tokens"] == pytest.approx(8 / 101 * 300e9, rel=1e-15)
    assert once["Books1"]["short_tokens"] == pytest.approx(8 / 101 * 300e9 - 12e9, rel=1e-12)
    assert once["CommonCrawl"]["short_tokens"] == 0
    twice = as_json(jaxlm, "gpt3", "--need", "--max-epochs=2")["need"]
    assert twice["Books1"]["needed_tokens"] == once["Books1"]["needed_tokens"] / 2


def test_a_configs_budget_is_its_steps_and_unknown_sizes_are_said(jaxlm):
    found = as_json(jaxlm, f"--config={SMALL}")
    assert found["budget_tokens"] == 600 * 16 * 128
    assert {name: (one["tokens"], one["epochs"]) for name, one in found["sources"].items()} == {
        "docstrings": (None, None), "licences": (None, None), "topics": (None, None)
    }  # fmt: skip
    assert "Not counted: docstrings, licences, topics" in found["notes"][-1]
    assert "--source-tokens=docstrings=NUMBER,licences=NUMBER,topics=NUMBER" in found["notes"][-1]
    code, out, _ = jaxlm("plan", "mixture", f"--config={SMALL}")
    assert code == 0
    assert "?: nobody has counted" in out


def test_a_built_corpus_is_counted_by_its_manifest_and_flags_count_the_rest(jaxlm, tmp_path):
    path = corpus(tmp_path / "corpus", 307_200)
    found = as_json(
        jaxlm, f"--config={SMALL}", path, "--source-tokens=docstrings=1e6,licences=1e6", "--tokens=614400"
    )
    assert found["sources"]["topics"] == {
        "tokens": 307_200, "weight": 0.5, "share": 0.5, "drawn_tokens": 307_200, "epochs": 1.0
    }  # fmt: skip
    assert not any("Not counted" in note for note in found["notes"])


def test_a_damaged_manifest_is_named(jaxlm, tmp_path):
    path = corpus(tmp_path / "corpus", 100)
    file = tmp_path / "corpus" / "manifest.json"
    file.write_text(file.read_text().replace('"train"', '"other"'))
    code, _, err = jaxlm("plan", "mixture", f"--config={SMALL}", path)
    assert code == 2
    assert "manifest.json was changed after the build" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "Give one mixture: gpt3, a .yaml file, or --config=NAME_OR_PATH."),
        (["gpt3", f"--config={SMALL}"], "not two of them"),
        (["gpt4"], "'gpt4' is no mixture; did you mean gpt3?"),
        (["none.yaml"], "none.yaml does not exist: give gpt3, or a .yaml file."),
        (["gpt3", "--tokens=0"], "--tokens='0' must be from 1e-09"),
        (["gpt3", "--tokens=-3"], "--tokens='-3' must be from"),
        (["gpt3", "--tokens=300B"], "--tokens='300B' must be a number, such as 3e9."),
        (["gpt3", "--tokens=nan"], "--tokens='nan' must be from"),
        (["gpt3", "--max-epochs=0"], "--max-epochs='0' must be from"),
        (["gpt3", "--max-epochs="], "--max-epochs='' must be a number"),
        (["gpt3", "--max-epochs=WebText=2"], "did you mean 'WebText2'?"),
        (["gpt3", "--max-epochs=Books1=2,Books1=3"], "names Books1 twice"),
        (["gpt3", "--max-epochs=Books1=2,Books2"], "'Books2' is not SOURCE=NUMBER"),
        (["gpt3", "--max-epochs=Books1=x"], "--max-epochs: Books1='x' must be a number"),
        (["gpt3", "--max-epochs=0.5"], "give 249,500,000,000 tokens at most within their caps"),
        (["gpt3", "--weights=Books3=2"], "--weights: source='Books3' is not one of"),
        (["gpt3", "--weights=Books1=-2"], "--weights: Books1='-2' must be 0, or from"),
        (["gpt3", "--weights=60"], "'60' is not SOURCE=NUMBER. Try --weights=CommonCrawl=1."),
        (
            ["gpt3", "--weights=CommonCrawl=0,WebText2=0,Books1=0,Books2=0,Wikipedia=0"],
            "the weights of CommonCrawl, WebText2, Books1, Books2, Wikipedia are all zero",
        ),
        (["gpt3", "--source-tokens=Books1=0"], "--source-tokens: Books1='0' must be from"),
        (["gpt3", "--source-tokens=Book1=3"], "did you mean 'Books1'?"),
        (["gpt3", "--max-epoch=3"], "did you mean --max-epochs?"),
        ([f"--config={SMALL}", "--max-epochs=2"], "how many tokens docstrings has is not known"),
        (["--config=quickstrat"], "Did you mean quickstart?"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(jaxlm, argv, message):
    code, out, err = jaxlm("plan", "mixture", *argv)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_it_answers_without_jax_and_without_numpy():
    """Of a config with tokenised corpora NumPy is needed, to read manifests."""
    code = (
        "import sys; from jaxlm.cli.main import main; main(['plan', 'mixture', 'gpt3', '--need']);"
        "main(['plan', 'mixture', '--config=quickstart']);"
        "print([name for name in ('jax', 'numpy') if name in sys.modules], file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stderr == "[]\n"
