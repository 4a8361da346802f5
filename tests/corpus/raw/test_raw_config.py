"""The config of corpora: what resolves, what is refused; `jaxlm config --corpus` and `jaxlm corpus report --json`."""

import json
import subprocess
import sys

import pytest

from jaxlm.cli.main import main
from jaxlm.corpus.raw import config
from jaxlm.types import UserError


def resolve(*more):
    return config.resolve(config.parse(["--config=corpus_gpt3_like", *(f"--config.{flag}" for flag in more)]))


def test_gpt3s_five_sources_with_its_weights():
    cfg = resolve("root=data")
    assert cfg.names == ["wikipedia", "books1", "books2", "webtext2", "common_crawl"]
    assert [cfg.sources[name].weight_tokens for name in cfg.names] == [3, 8, 8, 22, 60]
    assert [name for name in cfg.names if cfg.sources[name].filter] == ["common_crawl"]
    assert config.paths_of("data", cfg.sources["common_crawl"].path) == [
        "data/raw/*.warc.gz", "data/raw/*.wet.gz", "data/pretrain/common_crawl.jsonl"
    ]  # fmt: skip


def test_paths_are_below_the_root_unless_they_say_where_they_are(tmp_path):
    (tmp_path / "a, b.txt").write_text("x")
    root = str(tmp_path)
    assert config.paths_of(root, "a, b.txt") == [f"{root}/a, b.txt"]  # there is such a file
    assert config.paths_of(root, "a.txt, /b/c.txt,gs://d/e.txt, ") == [
        f"{root}/a.txt",
        "/b/c.txt",
        "gs://d/e.txt",
    ]
    assert config.paths_of(root, "") == []


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("sources.books1.format=war", "did you mean 'warc'"),
        ("sources.books1.document=page", "is not one of file, chapter"),
        ("sources.books1.weight_tokens=-1", "must not be negative"),
        ("sources.books1.weight_tokens=nan", "must be a finite number"),
        ("sources.books1.text_key=", "text_key is empty"),
        ("sources.books1.links=", "links is empty"),
        ("sources.books1.path=", "path is empty"),
        ("sources.bo/oks.path=x", "cannot be a name here"),
        ("sources.books1.pth=x", "did you mean sources.books1.path"),
        ("sources=None", "has no source"),
        ("strict=perhaps", "must be true or false"),
        ("max_document_bytes=0", "must be at least 1"),
        ("dedup.num_buckets=100000", "at most 256 buckets"),
        ("dedup.hashes_per_bucket=2000", "16,384 hashes in all"),
        ("dedup.memory_gib=0", "must be positive"),
        ("eval_fraction=1", r"must be in \[0, 1\)"),
        ("eval_split=random", "is not one of hash, tail"),
        ("budget_tokens=-1", "must not be negative"),
        ("unit_mib=0", "must be at least 1"),
        ("shard_tokens=0", "must be at least 1"),
        ("tokenizer.kind=bppe", "did you mean 'bpe'"),
        ("executor.kind=k8s", "is not one of local, slurm, ray"),
        ("executor.kind=slurm", "partition is empty"),
        ("executor.workers=0", "must be at least 1"),
        ("executor.memory_gib=0", "must be at least 1"),
        ("executor.time_limit=forever", "write hours:minutes:seconds"),
    ],
)
def test_each_mistake_is_named_with_its_rule(flag, said):
    with pytest.raises(UserError, match=said):
        resolve(flag)


def test_weights_of_nothing_are_refused():
    with pytest.raises(UserError, match="weight_tokens is 0 of every source"):
        resolve(*(f"sources.{name}.weight_tokens=0" for name in resolve().sources))


def test_the_command_line_shows_a_config_and_its_keys(capsys):
    assert main(["config", "--corpus", "--config=corpus_gpt3_like", "--config.seed=1"]) == 2
    assert "Unknown config key seed" in capsys.readouterr().err
    assert main(["config", "--corpus", "--config=corpus_gpt3_like", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sources"]["webtext2"]["weight_tokens"] == 22
    assert main(["config", "--corpus", "--keys"]) == 0
    keys = capsys.readouterr().out
    assert "sources.<name>.path" in keys
    assert "executor.time_limit: str = '24:00:00'" in keys


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["corpus", "build", "--config=quickstart", "--output=x"], "jaxlm train --config"),
        (["train", "--config=corpus_gpt3_like", "--workdir=x"], "jaxlm corpus build --config"),
        (["corpus", "build", "--config=corpus_gpt3_like", "--input=a", "--output=x"], "--input does not go with"),
        (["corpus", "build", "--output=x"], "needs --input and --tokenizer"),
        (["corpus", "report", "--json", "nowhere"], "nowhere holds no report.json"),
        (["corpus", "report", "x", "--config=corpus_gpt3_like"], "takes a folder and no --config"),
    ],
)  # fmt: skip
def test_a_command_that_is_not_meant_so_says_what_is(argv, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "x").exists()


def test_without_the_extra_the_way_to_it_is_named(tmp_path):
    """In a process of its own: modules that are imported a second time are others than those that tests know."""
    argv = ["corpus", "build", "--config=corpus_gpt3_like", "--quiet", f"--output={tmp_path}/x"]
    code = f"import sys; sys.modules['datatrove'] = None; from jaxlm.cli.main import main; sys.exit(main({argv}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "pip install 'jaxlm[corpus]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
