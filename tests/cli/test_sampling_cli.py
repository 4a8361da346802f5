"""Promises of `jaxlm generate` and `jaxlm next-token`: text as asked for, and one line for each mistake."""

import json
import math
import os

import jax
import pytest

from jaxlm import run as run_lib
from jaxlm.checkpoint import Checkpoints
from jaxlm.checkpoint_meta import Meta
from jaxlm.cli import main as cli
from jaxlm.data.tokenizer import SentencePieceTokenizer
from jaxlm.data.tokenizer_training import train_tokenizer
from jaxlm.models.build import build
from jaxlm.train.config import CheckpointConfig

TEXT = "The lion is in the zoo. The zoo is in the forest.\nবাংলা $x$ 😀 "


def make_run(folder, **model):
    """A workdir as a training leaves it, with random weights; 40 positions where they are learned."""
    cfg = run_lib.default_config()
    cfg.data.sources = {"text": {"path": "embedded:topics", "weight_tokens": 1.0}}
    cfg.data.seq_len = 40
    cfg.model.update(embed_dim=16, num_layers=2, num_heads=2, mlp_dim=32, tie_embeddings=False, **model)
    cfg = run_lib.resolve(cfg)
    tokenizer = SentencePieceTokenizer(train_tokenizer([TEXT], "char", 0))
    os.makedirs(folder)
    run_lib.save_config(folder / run_lib.CONFIG_FILE, cfg)
    tokenizer.save(folder)
    params = jax.jit(build(run_lib.with_vocabulary(cfg, tokenizer).model, 40).init)(jax.random.key(0))
    params["head"] = params["head"] * 20  # far from uniform, so that filters matter
    with Checkpoints(folder / run_lib.CHECKPOINTS, CheckpointConfig()) as checkpoints:
        meta = Meta(3, config={}, tokenizer_sha256=tokenizer.sha256, corpus_sha256={}, tokens=0, epochs={},
                    wall_time_s=0.0, eval_loss=None)  # fmt: skip
        checkpoints.save({"params": params}, meta)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "rope")


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "learned", positions="learned")


@pytest.fixture
def jaxlm(run, capsys):
    """jaxlm("generate", "--prompt=a") -> (exit code, stdout, stderr), with --run filled in."""

    def call(command, *flags):
        where = () if any(flag.startswith("--run") for flag in flags) else (f"--run={run}",)
        code = cli.main([command, *where, *flags])
        return code, *capsys.readouterr()

    return call


def generated(jaxlm, *flags):
    code, out, err = jaxlm("generate", "--json", "--max-new-tokens=12", *flags)
    assert (code, err) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


def test_streamed_text_is_the_text_printed_at_the_end(jaxlm):
    flags = ("generate", "--prompt=The lion", "--max-new-tokens=30", "--seed=3")
    streamed, whole = jaxlm(*flags), jaxlm(*flags, "--no-stream")
    assert streamed == whole
    assert streamed[1].startswith("The lion")
    assert streamed[1].endswith("\n")


def test_a_seed_gives_its_text_again_and_another_gives_another(jaxlm):
    one, again, other = (generated(jaxlm, "--prompt=The", f"--seed={seed}") for seed in (1, 1, 2))
    assert one == again != other


def test_samples_of_a_prompt_differ_and_prompts_may_have_any_lengths(jaxlm):
    first, second, *lions = generated(jaxlm, "--prompt=", "--prompt=The lion is", "--num-samples=2")
    assert first["text"] != second["text"]
    assert [one["prompt"] for one in lions] == ["The lion is"] * 2


def test_greedy_is_temperature_0_and_top_k_1_and_a_small_top_p(jaxlm):
    texts = [
        generated(jaxlm, "--prompt=The lion", *flags)[0]["text"]
        for flags in (("--temperature=0",), ("--top-k=1",), ("--top-p=1e-6", "--seed=5"), ("--min-p=1",))
    ]
    assert len(set(texts)) == 1


def test_text_ends_before_a_stop_string_over_several_tokens(jaxlm):
    whole = generated(jaxlm, "--prompt=The lion", "--seed=3")[0]["text"]
    cut = generated(jaxlm, "--prompt=The lion", "--seed=3", f"--stop={whole[4:8]}")[0]
    assert (cut["text"], cut["finish_reason"]) == (whole[: whole.find(whole[4:8])], "stop")


def test_a_prompt_from_stdin_is_without_its_last_newline(jaxlm, monkeypatch, tmp_path):
    (tmp_path / "prompt").write_text("The\nlion\n")
    with open(tmp_path / "prompt") as file:
        monkeypatch.setattr("sys.stdin", file)
        assert generated(jaxlm, "--prompt=-")[0]["prompt"] == "The\nlion"


def test_a_text_beyond_the_training_length_is_noted_on_stderr(jaxlm):
    code, out, err = jaxlm("generate", "--prompt=" + "The lion is " * 4, "--max-new-tokens=5", "--json")
    assert (code, len(out.splitlines())) == (0, 1)
    assert err == (
        "jaxlm: note: the text has 54 tokens; the model was trained on 40 at a time, and what comes "
        "after them is less reliable.\n"
    )


def test_next_token_shows_tokens_model_distribution_words_and_pick(jaxlm, run):
    flags = ("next-token", "--prompt=The lion is in the", "--candidates=zoo, forest", "--top=3", "--seed=1")
    code, out, err = jaxlm(*flags)
    assert (code, err) == (0, "")
    said = json.loads(jaxlm(*flags, "--json")[1])
    assert [line.split()[0] for line in out.splitlines()] == [
        "input", "model", "distribution", "1", "2", "3", "whole", "'zoo'", "'forest'", "sampled", "pick",
    ]  # fmt: skip
    assert f"{run}, step 3" in out
    assert f"entropy {said['entropy_nats']:.3f} nats, {said['entropy_bits']:.3f} bits" in out
    assert f"greedy {said['greedy']['piece']!r}, sampled {said['sampled']['piece']!r} (seed 1)" in out
    assert sum(token["p"] for token in said["top"]) == pytest.approx(said["top"][-1]["cumulative_p"])
    assert 0 < said["top"][-1]["cumulative_p"] <= 1
    for word in said["candidates"]:
        assert math.prod(word["token_ps"]) * word["p_end"] == pytest.approx(word["p_word"])
        assert word["pieces"] == list(" " + word["word"])
        assert f"{word['p_word']:.3e}" in out


def test_next_token_draws_tokens_that_look_like_formulas_or_like_each_other(jaxlm, tmp_path):
    flags = ("--prompt=a $^$ 😀", "--top=500", f"--plot={tmp_path}/p.png", "--json")
    code, out, _ = jaxlm("next-token", *flags)
    assert code == 0
    assert any("$" in token["piece"] for token in json.loads(out)["top"])
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("generate", ["--temperature=-1"], r"temperature=-1.0 must be 0 (greedy) or a positive number"),
        ("generate", ["--top-p=0"], "top_p=0.0 must be in (0, 1]"),
        ("generate", ["--top-p=2"], "top_p=2.0 must be in (0, 1]"),
        ("generate", ["--top-k=0"], "top_k=0 must be at least 1"),
        ("generate", ["--min-p=3"], "min_p=3.0 must be in [0, 1]"),
        ("generate", ["--seed=-1"], "seed=-1 must be in [0, 2**32)"),
        ("generate", [f"--seed={10**30}"], f"seed={10**30} must be in"),
        ("generate", ["--max-new-tokens=0"], "max_new_tokens=0 must be at least 1"),
        ("generate", ["--num-samples=0"], "--num-samples=0 must be at least 1"),
        ("generate", ["--stop="], "a stop string is empty"),
        ("generate", ["--step=7"], "There is no checkpoint of step 7"),
        ("generate", ["--run=/no/such/run"], "--run=/no/such/run holds no run"),
        ("generate", ["--config.seed=3"], "generate takes its config from --run"),
        ("next-token", ["--temperature=-1"], "temperature=-1.0 must be 0"),
        ("next-token", ["--seed=-1"], "seed=-1 must be in"),
        ("next-token", ["--top=0"], "top=0 must be at least 1"),
        ("next-token", ["--candidates="], "--candidates='' holds an empty word"),
        ("next-token", ["--candidates=zoo,,wild"], "--candidates='zoo,,wild' holds an empty word"),
        ("next-token", ["--plot=x.jpg"], "--plot=x.jpg must end in .png"),
        ("next-token", ["--plot=/no/such/x.png"], "there is no folder /no/such"),
        ("next-token", ["--run=/no/such/run"], "--run=/no/such/run holds no run"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_else(jaxlm, command, flags, message):
    code, out, err = jaxlm(command, "--prompt=The", *flags)
    assert (code, out) == (2, "")
    assert err.startswith("jaxlm: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_learned_positions_bound_the_text(jaxlm, learned):
    where = f"--run={learned}"
    code, out, err = jaxlm("generate", where, "--prompt=The lion is in the zoo.", "--max-new-tokens=17")
    assert (code, out) == (2, "")
    assert "24 tokens and max_new_tokens=17, together beyond the 40 positions" in err
    assert "ask for 16 new tokens at most" in err
    assert jaxlm("generate", where, "--prompt=The lion is in the zoo.", "--max-new-tokens=16")[0] == 0
    assert "shorten the prompt" in jaxlm("next-token", where, "--prompt=" + "The lion " * 5)[2]


def test_a_run_before_its_first_checkpoint_says_so(jaxlm, run, tmp_path):
    for name in (run_lib.CONFIG_FILE, "tokenizer.model"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    for command in ("generate", "next-token"):
        code, out, err = jaxlm(command, f"--run={tmp_path}", "--prompt=The")
        assert (code, out) == (2, "")
        assert "has no checkpoint yet" in err


def test_evaluate_prints_perplexity_and_bits_per_byte(run, jaxlm, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The lion is in the zoo. " * 5)
    code, out, _ = jaxlm("evaluate", "--window=16", str(text))
    assert code == 0
    assert "perplexity" in out
    assert "bits per byte" in out
    code, out, _ = jaxlm("evaluate", "--window=16", "--json", str(text))
    found = json.loads(out)
    assert found["num_bytes"] == 120
    assert found["perplexity"] == pytest.approx(math.exp(found["nats"] / found["num_tokens"]))


def test_evaluate_refuses_what_it_cannot_score(run, learned, jaxlm, tmp_path):
    bad = tmp_path / "latin1.txt"
    bad.write_bytes(b"abc\xff")
    code, _, err = jaxlm("evaluate", str(bad))
    assert (code, "not UTF-8 at byte 3" in err) == (2, True)
    bad.write_text("abc")
    code, _, err = jaxlm("evaluate", f"--run={learned}", "--window=512", str(bad))
    assert (code, "beyond the 40 positions" in err) == (2, True)
    assert jaxlm("evaluate", str(tmp_path / "none.txt"))[0] == 2
