"""Promises of `jaxlm doctor`: a good run has only ok lines; each broken thing has one FAIL that names it; it changes
nothing and never hangs. With several processes: tests/test_processes.py."""

import contextlib
import errno
import fcntl
import functools
import json
import os
import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoint_states import data_file, flip

from jaxlm import processes, run
from jaxlm.checkpoint_meta import Meta
from jaxlm.corpus.build import build_corpus
from jaxlm.data.tokenizer import SentencePieceTokenizer
from jaxlm.data.tokenizer_training import train_tokenizer
from jaxlm.doctor import data, examine, machine, together
from jaxlm.doctor.check import Doubt
from jaxlm.doctor.examine import Examination
from jaxlm.parallel.distributed import Cluster
from jaxlm.types import UserError

CONFIG = """
from jaxlm import run

def get_config():
    cfg = run.default_config()
    for name in ("raw", "built"):
        cfg.data.sources[name] = dict(path=dict(raw="squares.txt", built="corpus")[name], on_exhausted="repeat")
    cfg.data.seq_len, cfg.data.global_batch_size, cfg.data.eval_split = 16, 8, "tail"
    cfg.model.embed_dim, cfg.model.num_layers, cfg.model.num_heads, cfg.model.num_kv_heads = 16, 1, 2, 2
    cfg.train.num_steps, cfg.train.eval_batches, cfg.checkpoint.every_steps = 2, 0, 1
    cfg.optimizer.warmup_steps, cfg.optimizer.schedule = 1, "constant"
    return cfg
"""
ARGV = ("--config=small.py",)


def squares(power=2):
    return "".join(f"{n} to the {power} is {n**power}.\n\n" for n in range(300))


@functools.cache
def tokenizer(kind="bpe"):
    return SentencePieceTokenizer(train_tokenizer([squares()], kind, 300))


def build(folder, text):
    Path("built.txt").write_text(text)
    options = dict(document="paragraph", eval_fraction=0.1, eval_split="tail", progress=False, workers=1)
    build_corpus(["built.txt"], folder, tokenizer(), **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a config, text, a corpus and a run of two steps that has read them."""
    folder = tmp_path_factory.mktemp("doctor") / "all"
    folder.mkdir()
    with contextlib.chdir(folder):
        Path("small.py").write_text(CONFIG)
        Path("squares.txt").write_text(squares())
        build("corpus", squares(3))
        run.train(run.resolve(run.parse(list(ARGV))), "run")
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A copy of it, as the current folder, with a cache of its own."""
    shutil.copytree(trained, tmp_path / "all")
    shutil.copytree(os.environ["JAXLM_CACHE"], tmp_path / "cache")
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "all")
    return tmp_path / "all"


def results(argv=ARGV, workdir="run", cluster=None):
    return Examination(argv, workdir, cluster or Cluster(), emit=lambda result: None).run()


def not_ok(*args, **kwargs):
    return [(r.name, r.status, r.text) for r in results(*args, **kwargs) if r.status != "ok"]


def test_a_good_run_has_only_ok_lines(here, jaxlm):
    code, out, err = jaxlm("doctor", *ARGV, "--workdir=run")
    assert (code, err) == (0, "")
    assert all(line.startswith("ok    ") for line in out.splitlines()), out
    names = [line.split()[1].rstrip(":") for line in out.splitlines()]
    assert names == [
        "versions", "config", "processes", "devices", "mesh", "workdir", "lock", "config", "writing", "checkpoints",
        "event", "cache", "tokenizer", "source", "source", "memory", "disk",
    ]  # fmt: skip
    assert out.count("those of checkpoint 2") == 2
    assert "steps 1, 2; every checksum of step 2 is right" in out


def test_without_config_that_of_the_run_is_taken_and_without_workdir_the_machine_is_checked(here, jaxlm):
    code, out, _ = jaxlm("doctor", "--workdir=run")
    assert code == 0
    assert "config: that of the run in the workdir: pretrain, 2 steps" in out
    assert "source built" in out
    code, out, _ = jaxlm("doctor", *ARGV)
    assert code == 0
    assert "mesh" in out
    assert "workdir" not in out
    code, out, _ = jaxlm("doctor")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == ["versions:", "processes:", "devices:", "cache:"]


def test_a_run_that_has_not_begun_can_be_checked_and_its_folder_is_not_made(here):
    assert not_ok(workdir="new/deeper") == []
    assert not Path("new").exists()


def test_json_has_every_check_and_the_exit_code(here, jaxlm):
    code, out, _ = jaxlm("doctor", *ARGV, "--workdir=run", "--config.seed=1", "--json")
    found = json.loads(out)
    assert code == found["exit_code"] == 2
    assert [c["name"] for c in found["checks"] if c["status"] == "FAIL"] == ["config of the run"]
    assert {c["status"] for c in found["checks"]} == {"ok", "FAIL"}


def listing(*folders):
    """Size and dates of every file, and of the folders in which nothing is written for a moment."""
    found = {}
    for folder in folders:
        for path in [Path(folder), *Path(folder).rglob("*")]:
            status = path.stat()
            probed = path in [Path(one) for one in folders]
            found[path] = None if probed else (status.st_mtime_ns, status.st_ctime_ns, status.st_size)
    return found


def test_nothing_is_changed(here, monkeypatch):
    monkeypatch.setattr(
        "jaxlm.corpus.sources._CLOCK_NS", 0
    )  # a text that changed just now is remembered, too
    Path("run", "run.lock").write_bytes(b"")
    Path("squares.txt").write_text(squares(4))  # neither its hash nor its tokens are in the cache
    folders = ("run", os.environ["JAXLM_CACHE"], "corpus")
    before = listing(*folders)
    assert len(before) > 20
    results()
    assert listing(*folders) == before


def damage_latest():
    flip(data_file(Path("run/checkpoints/2")))


def truncate_older():
    path = data_file(Path("run/checkpoints/1"))
    path.write_bytes(path.read_bytes()[:-1])


def break_events():
    path = Path("run/events.jsonl")
    path.write_bytes(b'{"event": "sta\n' + path.read_bytes())


def break_manifest():
    Path("corpus/manifest.json").write_text('{"format": 1, "spl')


def other_corpus():
    shutil.rmtree("corpus")
    build("corpus", squares(5))


def workdir_is_a_file():
    shutil.rmtree("run")
    Path("run").write_text("mine")


def something_else_in_workdir():
    shutil.rmtree("run")
    Path("run").mkdir()
    Path("run/letter.txt").write_text("mine")


BROKEN = {
    "latest checkpoint": (damage_latest, "checkpoints", "step 2: state/"),
    "older checkpoint": (truncate_older, "checkpoints", "step 1: state/"),
    "unsealed checkpoint": (
        lambda: Path("run/checkpoints/2/integrity.json").unlink(), "checkpoints", "integrity.json is missing"
    ),
    "event log": (break_events, "event log", "events.jsonl, line 1 is no JSON object"),
    "config of the run": (lambda: Path("run/config.json").write_text("{"), "config of the run", "run/config.json"),
    "tokenizer, cut": (
        lambda: Path("run/tokenizer.model").write_bytes(b"\x0a"), "tokenizer", "is not a sentencepiece model"
    ),
    "tokenizer, another": (
        lambda: Path("run/tokenizer.model").write_bytes(tokenizer("unigram").model_bytes), "tokenizer",
        "Checkpoint 2 was trained with the tokenizer",
    ),
    "text": (lambda: Path("squares.txt").unlink(), "source raw", "squares.txt"),
    "manifest": (break_manifest, "source built", "corpus/manifest.json is not valid JSON"),
    "shard": (
        lambda: Path("corpus/train-00000.arrayrecord").unlink(), "source built", "train-00000.arrayrecord is missing"
    ),
    "corpus": (other_corpus, "source built", "Checkpoint 2 was trained on other data: source built was"),
    "workdir, a file": (workdir_is_a_file, "workdir", "run is a file"),
    "workdir, not empty": (something_else_in_workdir, "workdir", "letter.txt is in it"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "name", "said"), BROKEN.values(), ids=BROKEN)
def test_each_broken_file_has_one_fail_that_names_it(here, damage, name, said):  # pain 17
    damage()
    ((found, status, text),) = not_ok()
    assert (found, status) == (name, "FAIL")
    assert said in text


FLAGS = {
    "--config.train.nmu_steps=3": (
        "config",
        "Unknown config key train.nmu_steps; did you mean train.num_steps?",
    ),
    "--config.seed=7": ("config of the run", "seed was 0, now 7"),
    "--config.mesh.fsdp=4": ("mesh", "must multiply to the 8 devices"),
}


@pytest.mark.parametrize("flag", FLAGS)
def test_each_wrong_key_has_one_fail_that_names_it(here, flag):
    ((name, status, text),) = not_ok((*ARGV, flag))
    assert (name, status) == (FLAGS[flag][0], "FAIL")
    assert FLAGS[flag][1] in text


def older_flax(patch):
    patch.setattr(
        machine,
        "version",
        lambda name: "0.11.9" if name == "flax" else "99.0" if name != "jaxlib" else "0.10.2",
    )
    patch.setattr(
        machine, "requires", lambda name: ["flax>=0.12", "numpy; extra == 'x'"] if name == "jaxlm" else []
    )


def read_only(patch):
    def refuse(path, content):
        if path.parent.name == "run":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        path.write_bytes(content)

    patch.setattr(machine, "_write_synced", refuse)


MACHINE = {
    "versions": (older_flax, "flax 0.11.9 is installed, and jaxlm needs >=0.12"),
    "writing": (read_only, "not allowed to write here"),
    "disk": (
        lambda patch: patch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000)),
        "1000 bytes free at run; a checkpoint takes about",
    ),
    "memory": (
        lambda patch: patch.setattr(
            "psutil.virtual_memory", lambda: SimpleNamespace(available=1024, total=1024)
        ),
        "1.0 KiB free of 1.0 KiB; the training step takes about",
    ),
    "lock": (
        lambda patch: patch.setattr(
            "jaxlm.doctor.folder.find_holder",
            lambda workdir: SimpleNamespace(name="process 7 on x", is_certain=True),
        ),
        "in use by process 7 on x",
    ),
}


@pytest.mark.parametrize("name", MACHINE)
def test_each_fault_of_the_machine_has_one_fail_that_names_it(here, monkeypatch, name):
    MACHINE[name][0](monkeypatch)
    ((found, status, text),) = not_ok()
    assert (found, status) == (name, "FAIL")
    assert MACHINE[name][1] in text


def test_a_cache_that_is_a_file_is_named(here, monkeypatch):
    Path("file").write_text("")
    monkeypatch.setenv("JAXLM_CACHE", str(Path("file").absolute()))
    (name, status, text), *others = not_ok()
    assert (name, status) == ("cache", "FAIL")
    assert "is a file, and has to be a folder" in text
    assert {status for _, status, _ in others} <= {"warn"}  # tokens that are not in the cache


def test_a_run_that_goes_on_is_found_and_not_disturbed(here):
    lock = Path("run/run.lock")
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(f"process 4711 on {socket.gethostname()}\n")
        held.flush()
        ((name, status, text),) = not_ok()
        assert (name, status) == ("lock", "FAIL")
        assert "in use by process 4711 on " in text
    assert not_ok() == []  # killed: its name is left, and no lock
    lock.write_text("process 4711 on another-machine\n")
    ((name, status, _),) = not_ok()
    assert (name, status) == ("lock", "warn")


def test_leftovers_and_text_that_changed_are_warnings(here, jaxlm):
    Path("run/checkpoints/3.orbax-checkpoint-tmp").mkdir()
    Path("squares.txt").write_text(squares(4))
    found = not_ok()
    assert [(name, status) for name, status, _ in found] == [("checkpoints", "warn"), ("source raw", "warn")]
    assert "3.orbax-checkpoint-tmp" in found[0][2]
    assert jaxlm("doctor", *ARGV, "--workdir=run")[0] == 0


def test_a_run_whose_tokenizer_is_gone_is_a_doubt():
    meta = Meta(2, tokenizer_sha256="a" * 64)
    with pytest.raises(
        Doubt, match="the workdir has none, though checkpoint 2 was trained with aaaaaaaaaaaa: soon, "
    ):
        data.describe_tokenizer(None, meta, "soon")
    assert data.describe_tokenizer(None, None, "soon") == "none yet: soon"


def test_a_check_that_fails_in_an_unexpected_way_does_not_end_the_others(here, monkeypatch):
    monkeypatch.setattr(machine, "find_devices", lambda: 1 // 0)
    found = results()
    (bad,) = [r for r in found if r.status != "ok"]
    assert (bad.name, bad.text) == ("devices", "ZeroDivisionError: integer division or modulo by zero")
    assert found[-1].name == "disk"


def test_a_check_that_hangs_is_left_behind_and_says_so(here, monkeypatch):
    monkeypatch.setattr(examine, "LIMIT_S", 1.0)
    monkeypatch.setattr(examine.folder, "check_lock", lambda workdir: time.sleep(60))
    begin = time.monotonic()
    found = results()
    assert time.monotonic() - begin < 20
    (hung,) = [r for r in found if r.status != "ok"]
    assert (hung.name, hung.status, hung.is_late) == ("lock", "FAIL", True)
    assert hung.text.startswith("not done after 1 s: something it reads or asks does not answer")
    assert found[-1].name == "disk"


@pytest.mark.parametrize(
    ("have", "relation", "bound", "expected"),
    [
        ("0.12.8", ">=", "0.12", True), ("0.9", ">=", "0.12", False), ("0.12", ">=", "0.12.0", True),
        ("0.11.1rc1", ">=", "0.11.1", True), ("1.0.dev3", "<", "2", True), ("2.0.0", "<=", "2", True),
    ],
)  # fmt: skip
def test_versions_are_compared_as_numbers(have, relation, bound, expected):
    assert machine.holds(have, relation, bound) is expected


def test_the_bounds_are_those_of_the_installed_package():
    bounds = machine.stated_bounds("jaxlm")
    assert bounds["flax"][0][0] == ">="
    assert "torch" not in bounds  # of an extra


def test_clocks_that_differ_are_named(monkeypatch):
    monkeypatch.setattr(processes, "name_of", lambda index: f"process {index}")
    assert together.compare_clocks([100.0, 100.5]) == "2 clocks within 0.50 s"
    with pytest.raises(Doubt, match="the clock of process 2 is 61.0 s behind that of process 0"):
        together.compare_clocks([100.0, 101.0, 39.0])


def test_a_coordinator_that_does_not_answer_is_named_in_bounded_time():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begin = time.monotonic()
    with pytest.raises(UserError, match=f"nothing answers at 127.0.0.1:{port} .* Run this on process 0 too"):
        together.reach(Cluster(f"127.0.0.1:{port}", 2, 1, timeout_s=1.0))
    assert time.monotonic() - begin < 5
    assert together.reach(Cluster(f"127.0.0.1:{port}", 2, 0)) is None


@pytest.mark.parametrize("device", ["/dev/accel0", "/dev/vfio/0"])
def test_a_tpu_that_is_not_used_is_told_unless_cpus_are_meant(device, monkeypatch):
    only_cpus = machine.Devices("cpu", "cpu", 1, 1, 1)
    monkeypatch.setattr(
        "glob.glob", lambda pattern: [device] if pattern.startswith(device.rstrip("0")) else []
    )
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(Doubt, match=r"seems to have a TPU: pip install 'jaxlm\[tpu\]'"):
        machine.check_platform(only_cpus)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert machine.check_platform(only_cpus) == only_cpus.words
