"""`jaxlm plan scaling` and `jaxlm plan ladder`."""

import builtins
import json
from pathlib import Path

import pytest

from jaxlm.plan.scaling import Law
from jaxlm.report.events import EventLog
from jaxlm.run import parse, resolve, save_config

SMALL = Path(__file__).parent.parent / "small_config.py"
LAW = Law(E=2.0, A=60.0, B=300.0, alpha=0.3, beta=0.35)
GRID = [(n, d) for n in (1e6, 4e6, 16e6) for d in (1e7, 4e7, 16e7)]


def write_csv(path, rows, header="params,tokens,loss"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def csv_of_law(path):
    return write_csv(path, [(n, d, LAW.loss(n, d)) for n, d in GRID])


def write_run(folder, flags=(), *, num_steps=20, last=20, scores=None, ended=True):
    """A workdir as a run leaves it, without its weights."""
    argv = [
        f"--config={SMALL}",
        "--config.model.vocab_size=8000",
        f"--config.train.num_steps={num_steps}",
        *flags,
    ]
    folder.mkdir(parents=True)
    save_config(folder / "config.json", resolve(parse(argv)))
    with EventLog(folder / "events.jsonl") as log:
        for step in range(1, last + 1):
            log.write("step", step=step, **{"train/num_tokens": 2000.0, "train/loss": 9.0})
        if scores is None:
            scores = {"eval/loss": 5.0}
        if scores:
            log.write("eval", step=last, **scores)
        if ended:
            log.write("end", seconds=1.0, **scores)
    return folder


def refused(jaxlm, *argv):
    code, out, error = jaxlm("plan", *argv)
    assert (code, out) == (2, "")
    assert error.startswith("jaxlm: error: ")
    assert error.count("\n") == 1
    return error


def test_published_points_by_name_with_the_best_use_of_a_budget(jaxlm):
    code, out, _ = jaxlm("plan", "scaling", "--csv=chinchilla", "--flops=1e24", "--bootstrap=20")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "Scaling law of 240 runs: L(N, D) = E + A / N^alpha + B / D^beta" in lines
    assert any(line.startswith("alpha exponent of N 0.3473 ") for line in lines)
    assert any(line.startswith("beta exponent of D 0.3672 ") for line in lines)
    assert any(line.startswith("parameters N 97.2B ") for line in lines)
    assert any(line.startswith("tokens D 1.72T ") for line in lines)
    assert "Points, the furthest from the law first (20 of 240)" in lines
    assert "line 7 1.73B 875M 9.09e+18 3.3957 3.2293 -4.90%" in lines
    assert "the 5 with the highest loss are left out (--drop-highest)" in " ".join(lines)


def test_a_file_of_flops_gives_the_law_that_made_it(jaxlm, tmp_path):
    rows = [(n, LAW.loss(n, d), 6 * n * d, "x") for n, d in GRID]
    path = write_csv(tmp_path / "mine.csv", rows, "params,loss,flops,name")
    code, out, _ = jaxlm("plan", "scaling", f"--csv={path}", "--params=5e7", "--tokens=1e9", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["law"]["alpha"]["value"] == pytest.approx(LAW.alpha, rel=1e-3)
    assert found["prediction"]["loss"]["value"] == pytest.approx(LAW.loss(5e7, 1e9), rel=1e-4)
    assert found["points"][4]["tokens"] == pytest.approx(4e7)
    assert len(found["points"]) == 9
    assert found["warnings"] == [
        "9 points for five parameters: so few always lie close to some such law, and the intervals are too narrow. "
        "Add runs."
    ]


def test_plot_is_a_png(jaxlm, tmp_path):
    pytest.importorskip("matplotlib")
    path = csv_of_law(tmp_path / "mine.csv")
    options = (f"--csv={path}", "--flops=1e17", "--bootstrap=20", f"--plot={tmp_path}/law.png")
    assert jaxlm("plan", "scaling", *options)[0] == 0
    assert (tmp_path / "law.png").read_bytes().startswith(b"\x89PNG")
    assert "cannot be written" in refused(jaxlm, "scaling", *options[:-1], f"--plot={tmp_path}/no/law.png")


def test_plot_without_matplotlib_names_the_package(jaxlm, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    path = csv_of_law(tmp_path / "mine.csv")
    assert "pip install 'jaxlm[plot]'" in refused(jaxlm, "scaling", f"--csv={path}", "--plot=law.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: give a header"),
        ("params,tokens,loss\n", "has a header and no rows"),
        ("params,loss\n1e6,3\n", "line 1: column tokens (or flops) is missing; the header is params, loss"),
        ("size,tokens,loss\n1e6,1e8,3\n", "line 1: column params is missing"),
        ("params,tokens,loss,loss\n1e6,1e8,3,3\n", "column loss is there twice"),
        ("params,tokens,loss\n1e6,1e8,3\n\n1e6,0,3\n", "line 4: tokens=0 must be positive and finite"),
        ("params,tokens,loss\n-1,1e8,3\n", "line 2: params=-1 must be positive"),
        ("params,tokens,loss\n1e6,1e8,nan\n", "line 2: loss=nan must be positive and finite"),
        ("params,tokens,loss\n1e6,inf,3\n", "line 2: tokens=inf must be positive and finite"),
        ("params,tokens,loss\n1e6,1e8,low\n", "line 2: loss='low' must be a number"),
        ("params,tokens,loss\n1e6,1e8\n", "line 2 has 2 cells, and the header has 3 columns"),
        ("params,tokens,loss\n1e6,1e8,3\n", "1 different (N, D) in 1 points are too few"),
    ],
)
def test_a_bad_file_is_refused_by_line_and_rule(jaxlm, tmp_path, text, message):
    (tmp_path / "bad.csv").write_text(text)
    assert message in refused(jaxlm, "scaling", f"--csv={tmp_path}/bad.csv")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Give RUN... or --csv=FILE (neither is given)"),
        (["runs/a", "--csv=chinchilla"], "Give RUN... or --csv=FILE (both is given)"),
        (["--csv=chinchila"], "did you mean chinchilla?"),
        (["--csv=chinchilla", "--flops=1e24", "--params=1e9"], "--flops with --params is no budget"),
        (["--csv=chinchilla", "--params=1e9"], "--params is no budget"),
        (["--csv=chinchilla", "--flops=0"], "--flops=0 must be positive"),
        (["--csv=chinchilla", "--params=1e9", "--tokens=-1"], "--tokens=-1 must be positive"),
        (["--csv=chinchilla", "--flops=nan"], "--flops=nan must be positive and finite"),
        (
            ["--csv=chinchilla", "--flops=1e26", "--bootstrap=20"],
            "7,718 times beyond the largest run (1.3e+22)",
        ),
        (["--csv=chinchilla", "--drop-highest=245"], "--drop-highest=245 must be in [0, 245)"),
        (["--csv=chinchilla", "--count=non_embedding"], "a CSV file says itself what its params count"),
        (["--csv=chinchilla", "--count=totl"], "total"),
        (["--csv=chinchilla", "--config=quickstart"], "--config=quickstart is not for `jaxlm plan scaling`"),
    ],
)
def test_flags_that_make_no_question_are_refused(jaxlm, flags, message):
    assert message in refused(jaxlm, "scaling", *flags)


def ladder_of_runs(folder):
    """Six workdirs, N by width, D by steps."""
    for width in (64, 128, 256):
        for steps in (20, 60 + width):
            flags = [f"--config.model.embed_dim={width}", "--config.optimizer.warmup_steps=2"]
            scores = {"eval/loss": 3.0 + 30 / width**0.5 + 20 / steps**0.5}
            write_run(folder / f"w{width}_s{steps}", flags, num_steps=steps, last=steps, scores=scores)
    return sorted(folder.iterdir())


def test_runs_are_points_of_their_parameters_tokens_and_last_held_out_loss(jaxlm, tmp_path):
    runs = ladder_of_runs(tmp_path)
    code, out, _ = jaxlm("plan", "scaling", *runs, "--json", "--bootstrap=20")
    assert code == 0
    total = {row["name"]: row for row in json.loads(out)["points"]}
    row = total[str(tmp_path / "w64_s124")]
    assert (row["tokens"], row["loss"]) == (248_000, 3.0 + 30 / 8 + 20 / 124**0.5)
    # vocabulary x width; 4 layers of q, k, v, o (4 heads, 2 for k and v), SwiGLU 192 wide and two norms; final norm.
    layers = 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192 + 2 * 64) + 64
    assert row["params"] == 8000 * 64 + layers
    code, out, _ = jaxlm("plan", "scaling", *runs, "--json", "--bootstrap=20", "--count=non_embedding")
    assert {r["name"]: r for r in json.loads(out)["points"]}[row["name"]]["params"] == layers


def test_runs_on_other_text_are_warned_of(jaxlm, tmp_path):
    runs = ladder_of_runs(tmp_path)
    other = write_run(tmp_path / "x", ["--config.data.seq_len=64", "--config.tokenizer.vocab_size=300"])
    code, out, _ = jaxlm("plan", "scaling", *runs, other, "--json", "--bootstrap=20")
    assert code == 0
    assert f"{other} differs from {runs[0]} in tokenizer.vocab_size, data.seq_len:" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last": 12}, "is not finished: its log ends at step 12 of 20"),
        ({"ended": False}, "is not finished: its log ends at step 20 of 20"),
        (
            {"scores": {}},
            "has no held-out loss (eval/loss) at its last step 20: the training loss does not stand in",
        ),
        ({"scores": {"eval/loss": float("nan")}}, "has eval/loss=nan at its last step"),
        ({"flags": ["--config.model.num_experts=4"]}, "the law is of dense models"),
        ({"flags": ["--config.objective=instruct"]}, "objective='instruct': the law is of pretraining"),
    ],
)
def test_a_run_that_is_no_point_is_refused(jaxlm, tmp_path, options, message):
    assert message in refused(jaxlm, "scaling", write_run(tmp_path / "run", **options))


def test_a_folder_without_a_run_or_a_log_is_refused(jaxlm, tmp_path):
    assert "holds no run: config.json is missing" in refused(jaxlm, "scaling", tmp_path)
    run = write_run(tmp_path / "run")
    (run / "events.jsonl").unlink()
    assert "There is no event log" in refused(jaxlm, "scaling", run)
    assert "is given twice" in refused(jaxlm, "scaling", run, run)


def test_every_config_of_a_ladder_resolves_to_the_run_of_the_table(jaxlm, tmp_path):
    folder = tmp_path / "ladder"
    code, out, _ = jaxlm(
        "plan", "ladder", f"--config={SMALL}", "--config.seed=7", "--sizes=1.2e6,3e6,9e6", f"--output={folder}",
        "--flops-per-s=1e12", "--json",
    )  # fmt: skip
    assert code == 0
    found = json.loads(out)
    assert found["warnings"] == []
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["run.sh", *(f"{row['name']}.py" for row in found["runs"])]
    )
    for row in found["runs"]:
        cfg = resolve(parse([f"--config={folder / row['name']}.py"]))
        assert (cfg.model.embed_dim, cfg.model.num_layers) == (row["embed_dim"], row["num_layers"])
        assert (cfg.train.num_steps, cfg.optimizer.learning_rate) == (row["steps"], row["learning_rate"])
        assert (cfg.seed, cfg.train.eval_every_steps) == (7, row["steps"])
        assert cfg.data.sources.keys() == {"topics", "docstrings", "licences"}
        assert row["hours"] > 0
    script = (folder / "run.sh").read_text().splitlines()
    assert [line.split("/")[1].split(".")[0] for line in script if "jaxlm train" in line] == [
        row["name"] for row in found["runs"]
    ]
    assert script[-1] == 'jaxlm plan scaling "$here"/runs/*'


def test_the_table_of_a_ladder_fits_the_terminal(jaxlm, tmp_path):
    code, out, _ = jaxlm(
        "plan", "ladder", "--config=quickstart", "--flops=1e15,1e16", f"--output={tmp_path}/l"
    )
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "config shape N D D / N steps rate FLOPs time" in lines
    assert "n5p74m_d29p0m 320 x 4 5.74M 29.0M 5.06 14,184 0.00205 1e+15 -" in lines


def test_too_few_rungs_are_warned_of(jaxlm, tmp_path):
    code, out, _ = jaxlm(
        "plan", "ladder", f"--config={SMALL}", "--sizes=2e6", f"--output={tmp_path}/l", "--json"
    )
    assert code == 0
    assert json.loads(out)["warnings"][0].startswith(
        "this ladder cannot be fitted: 3 different (N, D) in 3 points"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sizes=2e6"], "Give the config that the ladder varies"),
        ([f"--config={SMALL}", "--sizes=2e6", "--output="], "Give a folder for the configs"),
        ([f"--config={SMALL}"], "Give --flops=C,C,... or --sizes=N,N,..."),
        ([f"--config={SMALL}", "--sizes=2e6", "--flops=1e15"], "either budgets or sizes make the rungs"),
        ([f"--config={SMALL}", "--sizes=2e6,0"], "--sizes=2e6,0: 0 must be positive"),
        ([f"--config={SMALL}", "--sizes=2e6,big"], "'big' is no number"),
        ([f"--config={SMALL}", "--sizes=2e6,2e6"], "2e6 is there twice"),
        ([f"--config={SMALL}", "--sizes=2e6", "--tokens-per-param=-5"], "--tokens-per-param=-5: -5 must be"),
        ([f"--config={SMALL}", "--sizes=2e6", "--flops-per-s=0"], "--flops-per-s=0 must be positive"),
        ([f"--config={SMALL}", "--sizes=1e3"], "No model of the ladder is near 1,000 parameters"),
        ([f"--config={SMALL}", "--sizes=2e6", "--config.train.eval_batches=0"], "of held-out losses"),
        (
            [f"--config={SMALL}", "--sizes=2e6", "--config.tokenizer.kind=char"],
            "Give --config.model.vocab_size",
        ),
        ([f"--config={SMALL}", "--sizes=2e6", "--config.objective=instruct"], "the law is of pretraining"),
        ([f"--config={SMALL}", "--sizes=1.2e6", "--config.mesh.tensor=2"], "rung n"),
    ],
)
def test_a_ladder_of_bad_flags_is_refused_and_writes_nothing(jaxlm, tmp_path, flags, message):
    output = [] if "--output=" in flags else [f"--output={tmp_path}/l"]
    assert message in refused(jaxlm, "ladder", *flags, *output)
    assert not (tmp_path / "l").exists()


def test_files_are_never_overwritten(jaxlm, tmp_path):
    (tmp_path / "mine.py").write_text("x = 1")
    error = refused(jaxlm, "ladder", f"--config={SMALL}", "--sizes=2e6", f"--output={tmp_path}")
    assert "is not empty: files are never overwritten" in error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]
    error = refused(jaxlm, "ladder", f"--config={SMALL}", "--sizes=2e6", f"--output={tmp_path}/mine.py")
    assert "cannot be written" in error
