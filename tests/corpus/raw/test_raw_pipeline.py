"""From raw files to corpora with one command: whole, again, killed in the middle, with more files, anywhere."""

import bz2
import concurrent.futures
import errno
import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("datatrove")

from jaxlm.corpus.raw import config as corpora
from jaxlm.corpus.raw import executors, pipeline
from jaxlm.corpus.raw.work import BUILD
from jaxlm.data.manifest import read_manifest
from jaxlm.data.shards import TokenStore
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.types import UserError

NOUNS = (
    "the river a stone her lantern old music winter bread this garden letter of glass and to be that have with"
).split()


def prose(seed, sentences=12):
    """Text that the filters of web pages keep: sentences with stop words."""
    own = random.Random(seed)
    lines = []
    for _ in range(sentences):
        words = own.choices(NOUNS, k=own.randint(8, 14)) + [f"word{seed}x{own.randint(0, 999)}"]
        lines.append(" ".join(words).capitalize() + ".")
    return "\n".join(lines)


def wet(texts):
    records = []
    for number, text in enumerate(texts):
        body = text.encode()
        head = (
            "WARC/1.0\r\nWARC-Type: conversion\r\n"
            f"WARC-Target-URI: https://example.org/{number}\r\nWARC-Date: 2024-05-{number % 28 + 1:02d}T00:00:00Z\r\n"
            f"WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-{number:012d}>\r\n"
            f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        records.append(gzip.compress(head.encode() + body + b"\r\n\r\n", mtime=0))
    return b"".join(records)


def dump(pages):
    items = "".join(
        f"<page><title>{title}</title><ns>0</ns><id>{i}</id><revision><id>{i}</id><timestamp>2024-01-01T00:00:00Z"
        f'</timestamp><model>wikitext</model><text xml:space="preserve">{text}</text></revision></page>'
        for i, (title, text) in enumerate(pages, 1)
    )
    return (
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="en"><siteinfo><dbname>enwiki</dbname>'
        f"<base>https://en.wikipedia.org/wiki/Main_Page</base></siteinfo>{items}</mediawiki>"
    ).encode()


@pytest.fixture
def raw(tmp_path):
    """Files of four kinds: 40 crawled pages, two of them copies of others, 8 articles, 3 books, 30 rows."""
    folder = tmp_path / "data"
    (folder / "books").mkdir(parents=True)
    pages = [prose(i) for i in range(38)]
    (folder / "a.warc.wet.gz").write_bytes(wet(pages[:20] + [pages[3]]))
    (folder / "b.warc.wet.gz").write_bytes(wet(pages[20:] + [prose(1000)]))
    articles = [(f"Topic {i}", f"'''Topic {i}''' is [[thing|here]].\n\n" + prose(1000 + i)) for i in range(8)]
    (folder / "xx-pages-articles.xml.bz2").write_bytes(bz2.compress(dump(articles)))
    for i in range(3):
        (folder / "books" / f"{i}.txt").write_text(prose(2000 + i, 200))
    rows = [json.dumps({"text": prose(3000 + i), "url": f"https://x.org/{i}", "score": i}) for i in range(30)]
    (folder / "links.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def flags(raw, *more):
    paths = {
        "wikipedia": "*-pages-articles.xml.bz2", "books": "books", "links": "links.jsonl", "crawl": "*.wet.gz"
    }  # fmt: skip
    argv = [f"--config.sources.{name}.path={path}" for name, path in paths.items()]
    argv += [f"--config.sources.{name}.order={order}" for order, name in enumerate(paths)]
    own = [f"--config={Path(__file__).parent / 'small_corpus.py'}", f"--config.root={raw}", *argv]
    return [*own, "--config.tokenizer.vocab_size=400", "--config.executor.workers=1", *more]


def configured(raw, *more):
    return corpora.resolve(corpora.parse(flags(raw, *more)))


def build(raw, output, *more):
    return pipeline.build(configured(raw, *more), str(output), progress=False)


def digest(output):
    """What all files of the corpora hold."""
    found = {}
    for path in sorted(Path(output).rglob("*")):
        if (
            path.is_file()
            and BUILD not in path.parts
            and path.name not in ("report.json", "report.html", ".lock")
        ):
            found[str(path.relative_to(output))] = hashlib.sha256(path.read_bytes()).hexdigest()
    del found["config.json"]
    return found


def texts(output, source, splits=("train", "eval")):
    folder = os.path.join(output, source)
    tokenizer = load_tokenizer(folder)
    found = []
    for split in splits:
        store = TokenStore(folder, split)
        starts = [0, *store.document_ends[:-1]]
        found += [tokenizer.decode(store.read(a, b).tolist()) for a, b in zip(starts, store.document_ends)]
    return found


def test_four_kinds_of_files_become_four_corpora(raw, tmp_path):
    output = tmp_path / "out"
    report = build(raw, output, "--config.budget_tokens=50000")
    sources = report["sources"]
    assert {name: source["documents_read"] for name, source in sources.items()} == {
        "wikipedia": 8, "books": 3, "links": 30, "crawl": 40
    }  # fmt: skip
    # A page is there twice; another one is the text of an article, and goes where it comes second.
    assert {name: source["exact_copies"] for name, source in sources.items()} == {
        "wikipedia": 0, "books": 0, "links": 0, "crawl": 1
    }  # fmt: skip
    assert sources["crawl"]["near_copies"] == 1
    assert sources["crawl"]["documents_kept"] == 38
    assert sorted(texts(output, "crawl")) == sorted(prose(i) for i in range(38))
    assert (
        "crawl: <urn:uuid:00000000-0000-0000-0000-000000000020>"
        in sources["crawl"]["examples"]["exact_copy"][0]
    )
    for name, source in sources.items():
        manifest = read_manifest(output / name)
        assert manifest["splits"]["train"]["num_tokens"] == source["train_tokens"]
        assert source["epochs"] == pytest.approx(50000 / 4 / source["train_tokens"], rel=1e-4)
    page = (output / "report.html").read_text()
    assert "<svg" in page
    assert "exact_copy" in page
    assert "<script" not in page


def test_again_does_nothing_and_any_number_of_workers_gives_the_same(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "SINGLE_PROCESS_BYTES", 0)
    one, three = tmp_path / "one", tmp_path / "three"
    build(raw, one)
    build(raw, three, "--config.executor.workers=3")
    assert digest(one) == digest(three)
    before = {path: path.stat().st_mtime_ns for path in one.rglob("*.arrayrecord")}
    build(raw, one)
    assert {path: path.stat().st_mtime_ns for path in one.rglob("*.arrayrecord")} == before


def test_a_build_that_is_killed_at_any_stage_goes_on(raw, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    build(raw, whole)
    done = []
    run_task = executors.TaskExecutor.run_task

    def killed(self, rank):
        if (self.logging_dir.path, rank) not in done:
            done.append((self.logging_dir.path, rank))
            if len(done) % 3 == 0:
                run_task(self, rank)  # after the work of the task, before anybody hears of it
            raise KeyboardInterrupt
        run_task(self, rank)

    monkeypatch.setattr(executors.TaskExecutor, "run_task", killed)
    for _ in range(200):
        try:
            build(raw, cut)
            break
        except KeyboardInterrupt:
            continue
    assert len(done) > 20
    assert digest(cut) == digest(whole)


def test_a_killed_process_leaves_nothing_that_is_wrong(raw, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    build(raw, whole)
    command = [sys.executable, "-m", "jaxlm", "corpus", "build", *flags(raw), f"--output={cut}", "--quiet"]
    for attempt in range(2):
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(cut.glob(f"{BUILD}/*/*"))) > 5 * attempt + 1:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        process.wait()
    assert subprocess.run(command).returncode == 0
    assert digest(cut) == digest(whole)


def test_only_what_is_new_is_built_when_files_are_added(raw, tmp_path, capsys):
    output, fresh = tmp_path / "out", tmp_path / "fresh"
    build(raw, output)
    held_out = set(texts(output, "crawl")) - set(texts(output, "crawl", ["train"]))
    units = {path.parent.name: path.stat().st_mtime_ns for path in output.glob(f"{BUILD}/read/*/unit.json")}
    shards = {
        path.parent.name: path.stat().st_mtime_ns for path in output.glob(f"{BUILD}/tokens/*/unit.json")
    }
    (raw / "c.warc.wet.gz").write_bytes(wet([prose(i) for i in range(50, 60)]))
    sha256 = read_manifest(output / "books")["tokenizer_sha256"]
    assert "is kept" not in capsys.readouterr().out
    build(raw, output)
    assert "The tokenizer of the first build is kept" in capsys.readouterr().out
    assert {read_manifest(output / name)["tokenizer_sha256"] for name in ("books", "crawl")} == {sha256}
    after = {path.parent.name: path.stat().st_mtime_ns for path in output.glob(f"{BUILD}/read/*/unit.json")}
    assert len(set(after) - set(units)) == 1
    assert len(set(units) - set(after)) <= 1
    assert all(after[name] == units[name] for name in set(units) & set(after))
    later = {path.parent.name: path.stat().st_mtime_ns for path in output.glob(f"{BUILD}/tokens/*/unit.json")}
    assert all(later[name] == shards[name] for name in set(shards) & set(later))
    assert len(set(later) & set(shards)) >= len(shards) - 1
    assert held_out < set(texts(output, "crawl")) - set(texts(output, "crawl", ["train"]))
    build(raw, fresh, f"--config.tokenizer.path={output / 'books'}")
    assert digest(fresh) == digest(output)


def test_evaluation_sets_are_held_out(raw, tmp_path):
    secret = " ".join(prose(5).split()[10:40])
    (raw / "test_set.jsonl").write_text(json.dumps({"text": secret}) + "\n")
    report = build(raw, tmp_path / "out", "--config.decontaminate.evaluation=test_set.jsonl")
    dropped = report["sources"]["crawl"]["dropped"]
    assert sum(n for reason, n in dropped.items() if "contaminated" in reason) == 1
    assert prose(5) not in texts(tmp_path / "out", "crawl")


def test_personal_data_is_scrubbed_and_counted(raw, tmp_path):
    rows = [{"text": prose(4000) + "\nWrite to jane.doe@corp.com or 8.8.8.8 now."}, {"text": prose(4001)}]
    (raw / "links.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = build(raw, tmp_path / "out", "--config.filters.personal_data")
    found = " ".join(texts(tmp_path / "out", "links"))
    assert "jane.doe" not in found
    assert "8.8.8.8" not in found
    assert sum(report["sources"]["links"]["changed"].values()) >= 2


def test_faults_are_counted_or_in_strict_mode_an_error(raw, tmp_path):
    whole = (raw / "b.warc.wet.gz").read_bytes()
    (raw / "b.warc.wet.gz").write_bytes(whole[: len(whole) - 40])
    report = build(raw, tmp_path / "out")
    assert sum(report["sources"]["crawl"]["faults"].values()) == 1
    with pytest.raises(UserError, match=r"b\.warc\.wet\.gz, .*offset"):
        build(raw, tmp_path / "strict", "--config.strict")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--config.sources.books.path=none.txt",), r"sources\.books\.path: .*none\.txt"),
        (("--config.extractor=trafilatur",), "did you mean 'trafilatura'"),
        (("--config.sources=None",), "has no source"),
        (("--config.executor.kind=slurm",), r"executor\.partition is empty"),
        (("--config.dedup.num_buckets=0",), r"dedup\.num_buckets=0 must be at least 1"),
        (("--config.sources.crawl.weigth_tokens=1",), "weight_tokens"),
    ],
)
def test_mistakes_are_named_before_any_work(raw, tmp_path, more, said):
    with pytest.raises(UserError, match=said):
        build(raw, tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_a_source_of_which_nothing_is_left_is_an_error(raw, tmp_path):
    (raw / "links.jsonl").write_text(json.dumps({"text": "short"}) + "\n")
    with pytest.raises(
        UserError, match=r"sources\.wikipedia: no document is left to train on, of 8 read\. Dropped: 8 lang"
    ):
        build(raw, tmp_path / "out", "--config.filters.languages=de")


def test_an_output_that_holds_something_else_is_refused(raw, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty \(thesis\.txt"):
        build(raw, output)
    with pytest.raises(UserError, match="lies inside the input"):
        build(raw, raw / "books" / "out")


def reads(output):
    return {
        path.parent.name: path.stat().st_mtime_ns for path in Path(output).glob(f"{BUILD}/read/*/unit.json")
    }


def test_only_what_a_changed_setting_concerns_is_read_again(raw, tmp_path):
    output = tmp_path / "out"
    own = "--config.sources.books.filter=false"
    build(raw, output, own)
    before = reads(output)
    build(raw, output, own, "--config.filters.min_sentences=3", "--config.filters.c4")
    after = reads(output)
    assert {name.partition("-")[0] for name in set(after) - set(before)} == {"crawl", "links", "wikipedia"}
    build(
        raw,
        output,
        own,
        "--config.filters.min_sentences=3",
        "--config.filters.c4",
        "--config.dedup.across_sources=false",
    )
    assert reads(output) == after


def test_a_source_that_is_gone_is_named_and_its_corpus_stays(raw, tmp_path):
    output, said = tmp_path / "out", []
    build(raw, output)
    cfg = configured(raw, "--config.sources.links=None")
    report = pipeline.build(cfg, str(output), progress=False, say=said.append)
    assert "links" not in report["sources"]
    assert "links" not in json.loads((output / "corpus.json").read_text())["sources"]
    assert read_manifest(output / "links")
    assert said == [f"{output}/links is of no source of this config any more: remove it, if no run needs it."]


def test_a_changed_file_is_read_again(raw, tmp_path):
    output = tmp_path / "out"
    build(raw, output)
    before = reads(output)
    (raw / "books" / "1.txt").write_text(prose(2100, 210))
    build(raw, output)
    assert {name.partition("-")[0] for name in set(reads(output)) - set(before)} == {"books"}
    assert prose(2100, 210) in texts(output, "books")
    assert prose(2001, 200) not in texts(output, "books")


def test_a_damaged_unit_is_an_error_that_names_it(raw, tmp_path):
    output = tmp_path / "out"
    build(raw, output)
    (path,) = output.glob(f"{BUILD}/read/links-*/documents.jsonl.zst")
    whole = path.read_bytes()
    for broken in (whole[:-30], whole[: len(whole) // 2], b"junk", b""):
        path.write_bytes(broken)
        with pytest.raises(
            UserError, match=r"documents\.jsonl\.zst is damaged \(.*remove its folder and run"
        ):
            build(raw, output, "--config.tokenizer.vocab_size=390")


def test_with_the_tail_of_each_held_out_a_document_is_kept_once(raw, tmp_path):
    report = build(raw, tmp_path / "out", "--config.eval_split=tail")
    assert report["sources"]["books"]["documents_kept"] == 3
    assert report["sources"]["crawl"]["documents_kept"] == 38
    assert all(source["eval_tokens"] for source in report["sources"].values())


def test_a_second_build_says_that_it_waits(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "_PATIENCE_S", 0.05)
    said = []
    output = tmp_path / "out"
    output.mkdir()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        with pipeline.exclusive(str(output / ".lock")):
            later = thread.submit(
                pipeline.build, configured(raw), str(output), progress=False, say=said.append
            )
            while not said and not later.done():
                time.sleep(0.01)
        assert later.result(120)["sources"]
    assert said == [f"{output}: another build works on this folder; this one waits."]


def test_a_full_disk_is_a_line_and_what_is_done_stays(raw, tmp_path, monkeypatch):
    output, whole = tmp_path / "out", tmp_path / "whole"
    written, fsync = [], os.fsync

    def full(descriptor):
        written.append(descriptor)
        if len(written) > 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="the disk is full"):
            build(raw, output)
    done = reads(output)
    assert done
    assert not list(output.rglob("*.partial"))
    build(raw, output)
    assert {name: reads(output)[name] for name in done} == done
    build(raw, whole)
    assert digest(output) == digest(whole)


SBATCH = """#!{python}
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
args = dict(re.findall(r"^#SBATCH --([\\w-]+)=(.*)$", script, re.M))
count = int(args.get("array", "0-0").partition("%")[0].partition("-")[2] or 0) + 1
log = open(os.environ["FAKE_SLURM"], "a")
log.write(f"{{args['job-name']}} {{count}} {{[a for a in sys.argv if 'dependency' in a]}}\\n")
body = "\\n".join(line for line in script.splitlines() if not line.startswith("#"))
body = re.sub(r"srun .*?-n 1 ", "", body)
if "merge_stats" not in body:
    for rank in range(count):
        environ = os.environ | {{"SLURM_ARRAY_TASK_ID": str(rank), "SLURM_NODELIST": "localhost"}}
        subprocess.run(["bash", "-c", body], env=environ, check=True, stdout=subprocess.DEVNULL)
print("Submitted batch job", 100 + sum(1 for _ in open(os.environ["FAKE_SLURM"])))
"""


@pytest.mark.slow
def test_slurm_runs_the_same_stages_in_their_order(raw, tmp_path, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (
        ("sbatch", SBATCH.format(python=sys.executable)),
        ("scontrol", "#!/bin/sh\necho localhost\n"),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path / "jobs"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    argv = flags(raw, "--config.executor.kind=slurm", "--config.executor.partition=cpu")
    for name in ("wikipedia", "links"):
        argv.append(f"--config.sources.{name}=None")
    output = tmp_path / "out"
    assert pipeline.build(corpora.resolve(corpora.parse(argv)), str(output), progress=False) is None
    jobs = [line.split()[0] for line in (tmp_path / "jobs").read_text().splitlines() if "jaxlm-" in line]
    order = list(dict.fromkeys(jobs))
    assert order == [
        f"jaxlm-{s}"
        for s in ("read:books", "read:crawl", "compare", "choose", "tokenizer", "tokenise", "finish")
    ]
    local = [flag for flag in argv if "executor" not in flag]
    pipeline.build(corpora.resolve(corpora.parse(local)), str(tmp_path / "local"), progress=False)
    assert digest(output) == digest(tmp_path / "local")
