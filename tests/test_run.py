"""Promises of jaxlm/run.py that need a whole run, of a model as small as can be."""

import logging
import re
import shutil

import jax
import pytest
from small_classifier import make_run
from small_run import small, write_squares
from small_tokenizers import level

from jaxlm import compile_cache, run
from jaxlm.data.tokenizer_hf import HFTokenizer
from jaxlm.report.events import read_events
from jaxlm.types import UserError


@pytest.fixture
def text(tmp_path):
    return write_squares(tmp_path / "squares.txt")


def test_a_relative_workdir_trains_continues_loads_and_starts_others(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run.train(small(text), "runs/a")
    run.train(small(text, train__num_steps=3), "runs/a")
    assert "resumed from step 2" in capsys.readouterr().out
    assert run.load_run("runs/a").step == 3
    run.train(small(text, init_from="runs/a"), "runs/b")
    assert "weights of step 3 of runs/a" in capsys.readouterr().out


def test_the_first_screen_says_whether_a_run_is_new(text, tmp_path):
    workdir = tmp_path / "run"

    def said(config):
        run.train(config, workdir)
        starts = [event for event in read_events(workdir / "events.jsonl") if event["event"] == "start"]
        return starts[-1]["workdir"].removeprefix(f"{workdir} ")

    with pytest.raises(UserError, match=r"absent\.txt"):
        run.train(small(tmp_path / "absent.txt"), workdir)
    assert said(small(text)) == "(new: nothing was saved here before)"
    assert said(small(text, train__num_steps=3)) == "(continued)"
    shutil.rmtree(workdir)
    assert said(small(text)) == "(new)"


def test_a_run_does_not_continue_on_other_data(text, tmp_path):
    run.train(small(text), tmp_path / "run")
    tokenizer = (tmp_path / "run" / "tokenizer.model").read_bytes()
    write_squares(text, power=3)
    with pytest.raises(
        UserError, match=r"source mine was \w{12} and is \w{12}.* Set the text back .*workdir"
    ):
        run.train(small(text, train__num_steps=3), tmp_path / "run")
    assert (tmp_path / "run" / "tokenizer.model").read_bytes() == tokenizer
    write_squares(text)
    run.train(small(text, train__num_steps=3), tmp_path / "run")
    assert run.load_run(tmp_path / "run").step == 3


def test_a_run_with_a_hugging_face_tokenizer_trains_continues_and_loads(text, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for name, content in level(chat_template__jinja=b"old").items():
        (model / name).write_bytes(content)
    changes = {"tokenizer__path": str(model), "data__cache_dir": str(tmp_path / "cache")}
    run.train(small(text, **changes), tmp_path / "run")
    assert run.load_run(tmp_path / "run").tokenizer.chat_template == "old"
    (model / "chat_template.jinja").write_bytes(b"new")  # decides about no id
    run.train(small(text, **changes, train__num_steps=3), tmp_path / "run")
    loaded = run.load_run(tmp_path / "run")
    assert (loaded.step, loaded.tokenizer.chat_template, loaded.config.model.vocab_size) == (3, "new", 505)
    for name, content in level(bos=False).items():
        (model / name).write_bytes(content)
    with pytest.raises(UserError, match="was trained on other data.*The tokenizer was .*, too"):
        run.train(small(text, **changes, train__num_steps=4), tmp_path / "run")
    assert run.load_run(tmp_path / "run").tokenizer.prefix_ids == (500,)


def test_each_step_is_compiled_once_in_a_run(text, tmp_path):  # pain 22
    """With evaluations in between, and checkpoints: nothing of them comes back in another form."""
    compiled = []

    class Listener(logging.Handler):
        def emit(self, record):
            compiled.extend(re.findall(r"^Compiling (?:jit\()?(\w+)", record.getMessage()))

    logger, listener = logging.getLogger("jax._src.interpreters.pxla"), Listener()
    logger.addHandler(listener)
    try:
        with jax.log_compiles():
            run.train(small(text, train__num_steps=4, mesh__tensor=2), tmp_path / "run")
    finally:
        logger.removeHandler(listener)
    assert compiled.count("step") == 1, compiled
    assert compiled.count("evaluate") == 1, compiled


def test_a_run_keeps_all_it_compiles_in_the_cache(tmp_path, monkeypatch):  # pain 22
    """However quickly it was compiled and however small it is; the next start reads it."""
    keys = ["jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
            "jax_persistent_cache_min_entry_size_bytes"]  # fmt: skip
    before = {key: getattr(jax.config, key) for key in keys}
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path / "cache"))
    try:
        folder = compile_cache.use_default()
        assert folder == str(tmp_path / "cache" / "compiled")
        assert [getattr(jax.config, key) for key in keys] == [folder, 0.0, 0]
    finally:
        for key, value in before.items():
            jax.config.update(key, value)


def test_epochs_and_the_share_of_waiting_are_logged(text, tmp_path):  # pain 16, 20
    """A source that begins anew is seen in the log at that step; so is a loader that the devices wait for."""
    steps = 30
    config = small(text, train__num_steps=steps, train__eval_batches=0, train__log_every_steps=10,
                   checkpoint__every_steps=steps, data__seq_len=128)  # fmt: skip
    run.train(config, tmp_path / "run")
    events = [event for event in read_events(tmp_path / "run" / "events.jsonl") if event["event"] == "step"]
    logged = {event["step"]: event for event in events if "data/mine/epochs" in event}
    assert list(logged) == [1, 10, 20, 30]
    epochs = [event["data/mine/epochs"] for event in logged.values()]
    assert epochs == sorted(epochs)
    assert epochs[0] < 1 < epochs[-1]
    assert all(0 <= event["perf/stall_share"] <= 1 for event in logged.values())


def test_a_run_whose_tokenizer_was_exchanged_is_not_loaded(tmp_path):  # pain 27
    folder = make_run(tmp_path / "run")
    assert run.load_run(folder).step == 3
    HFTokenizer(level(bos=False)).save(folder)
    with pytest.raises(UserError, match="tokenizer"):
        run.load_run(folder)
