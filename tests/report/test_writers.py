"""Promises of jaxlm/report/writers.py, with stand-ins of wandb and mlflow that have their signatures."""

import glob
import importlib
import math
import sys
import types

import pytest

from jaxlm.report import writers
from jaxlm.report.writers import open_writers, public_config
from jaxlm.types import UserError

CONFIG = {
    "model": {"embed_dim": 8, "name": None},
    "data": {"sources": {"a": {"path": "https://me:pass@host/x.jsonl?sig=abc", "text_key": "text"}}},
    "service": {"api_key": "abc", "password": "abc", "token": "abc"},
    "weight_tokens": 3,
}
NO_SECRETS = {
    "model": {"embed_dim": 8, "name": None},
    "data": {"sources": {"a": {"path": "https://(hidden)@host/x.jsonl?(hidden)", "text_key": "text"}}},
    "service": {"api_key": "(hidden)", "password": "(hidden)", "token": "(hidden)"},
    "weight_tokens": 3,
}


@pytest.fixture
def calls():
    return []


@pytest.fixture
def fake_wandb(monkeypatch, calls):
    """wandb 0.31: the part that is used, with the same names and keywords."""

    class Run:
        def log(self, data, step=None, commit=None):
            calls.append(("log", data, step))

        def define_metric(
            self, name, step_metric=None, step_sync=None, hidden=None, summary=None, overwrite=None
        ):
            calls.append(("define_metric", name, step_metric))

        def finish(self, exit_code=None):
            calls.append(("finish", exit_code))

    def init(entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None, config=None,
             mode=None, resume=None, save_code=None, settings=None):  # fmt: skip
        calls.append(("init", dict(project=project, dir=dir, id=id, name=name, config=config, mode=mode,
                                   resume=resume, save_code=save_code, settings=settings)))  # fmt: skip
        return Run()

    module = types.ModuleType("wandb")
    module.init = init
    module.Settings = lambda *, console="auto", disable_git=False, disable_code=False: (
        console,
        disable_git,
        disable_code,
    )
    module.Html = lambda data, inject=True: f"Html({data})"
    module.Image = lambda data_or_path, mode=None, caption=None: f"Image({data_or_path})"
    monkeypatch.setitem(sys.modules, "wandb", module)


@pytest.fixture
def fake_mlflow(monkeypatch, calls):
    """mlflow 3: the part of MlflowClient that is used, with the same names and keywords."""

    class MlflowException(Exception):
        pass

    class MlflowClient:
        def __init__(self, tracking_uri=None, registry_uri=None):
            if tracking_uri == "http://down":
                raise MlflowException("http://user:secret@down")
            calls.append(("client", tracking_uri))

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name, artifact_location=None, tags=None):
            calls.append(("create_experiment", name))
            return "7"

        def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
            calls.append(("create_run", experiment_id, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="run1"))

        def update_run(self, run_id, status=None, name=None):
            calls.append(("update_run", run_id, status))

        def log_batch(self, run_id, metrics=(), params=(), tags=(), synchronous=None):
            calls.append(("log_batch", run_id, list(metrics), list(params)))

        def log_text(self, run_id, text, artifact_file):
            calls.append(("log_text", run_id, text, artifact_file))

        def log_artifact(self, run_id, local_path, artifact_path=None):
            calls.append(("log_artifact", run_id, local_path, artifact_path))

        def set_terminated(self, run_id, status=None, end_time=None):
            calls.append(("set_terminated", run_id))

    module = types.ModuleType("mlflow")
    module.MlflowClient = MlflowClient
    module.exceptions = types.SimpleNamespace(MlflowException=MlflowException)
    entities = types.ModuleType("mlflow.entities")
    entities.Metric = lambda key, value, timestamp, step: (key, value, step)
    entities.Param = lambda key, value: (key, value)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_tensorboard_files_hold_scalars_and_text(tmp_path):
    (writer,) = open_writers(["tensorboard"], tmp_path, run_name="r", config=CONFIG)
    writer.scalars(3, {"train/loss": 2.5, "eval/topics/bits_per_byte": 1.25})
    writer.text(3, "sample", "two\nlines & <tags>")
    writer.close()
    from tensorboardX.proto.event_pb2 import Event

    (file,) = glob.glob(str(tmp_path / "tensorboard" / "events.out*"))
    found = {}
    content = open(file, "rb").read()
    while content:  # TFRecord: length, its CRC, the event, its CRC
        length = int.from_bytes(content[:8], "little")
        for value in Event.FromString(content[12 : 12 + length]).summary.value:
            found[value.tag] = value.simple_value or value.tensor.string_val[0].decode()
        content = content[16 + length :]
    assert found["train/loss"] == 2.5
    assert found["eval/topics/bits_per_byte"] == 1.25
    assert "two\n    lines & <tags>" in next(text for tag, text in found.items() if tag.startswith("sample"))


def test_wandb_gets_numbers_with_their_step_and_no_secrets(tmp_path, fake_wandb, calls):
    (writer,) = open_writers(["wandb"], tmp_path, run_name="r", config=CONFIG)
    writer.scalars(3, {"train/loss": 2.5})
    writer.text(3, "sample", "<b>")
    writer.image(3, "confusion", "confusion.png")
    writer.close()
    (_, init), *rest = calls
    assert init["config"] == NO_SECRETS
    assert (init["resume"], init["save_code"], init["settings"]) == ("allow", False, ("off", True, True))
    assert init["mode"] is None  # so that WANDB_MODE=offline holds
    assert rest == [
        ("define_metric", "step", None),
        ("define_metric", "*", "step"),
        ("log", {"train/loss": 2.5, "step": 3}, None),
        ("log", {"sample": "Html(<pre>&lt;b&gt;</pre>)", "step": 3}, None),
        ("log", {"confusion": "Image(confusion.png)", "step": 3}, None),
        ("finish", None),
    ]
    open_writers(["wandb"], tmp_path, run_name="r", config=CONFIG)
    assert calls[-3][1]["id"] == init["id"] == (tmp_path / "wandb_run_id").read_text().strip()


def test_mlflow_gets_numbers_params_and_text_and_resumes_its_run(tmp_path, fake_mlflow, calls):
    for _ in range(2):
        (writer,) = open_writers(["mlflow"], tmp_path, run_name="r", config=CONFIG)
    writer.scalars(3, {"train/loss": 2.5, "train/grad_norm": math.inf})
    writer.text(3, "sample", "text")
    writer.image(3, "sample/../../of me", "sample.png")
    writer.close()
    assert ("client", f"sqlite:///{tmp_path}/mlflow.db") in calls
    assert calls.count(("create_run", "7", "r")) == 1
    assert ("update_run", "run1", "RUNNING") in calls
    (_, _, _, params), (_, _, metrics, _) = [call for call in calls if call[0] == "log_batch"]
    assert ("model.embed_dim", "8") in params
    assert ("service.api_key", "(hidden)") in params
    assert metrics[0] == ("train/loss", 2.5, 3)
    assert math.isnan(metrics[1][1])
    assert calls[-3:] == [
        ("log_text", "run1", "text", "text/sample/00000003.txt"),
        ("log_artifact", "run1", "sample.png", "images/sample_of_me/00000003"),
        ("set_terminated", "run1"),
    ]


def test_a_tracking_server_that_is_down_is_a_user_error_without_its_address(
    tmp_path, fake_mlflow, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://down")
    with pytest.raises(UserError, match="mlflow could not be opened") as error:
        open_writers(["mlflow"], tmp_path, run_name="r", config=CONFIG)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_names_the_extra_that_installs_it(name, monkeypatch):
    real = importlib.import_module

    def missing(module):
        if module == writers.PACKAGES[name]:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return real(module)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=rf"pip install 'jaxlm\[{name}\]'"):
        writers.check_installed([name])


def test_secrets_never_leave():
    assert public_config(CONFIG) == NO_SECRETS
    for kept in ("gs://bucket/folder", "runs/a", "s3://bucket/key", "tokenizer.model"):
        assert public_config({"path": kept, "tokenizer": kept}) == {"path": kept, "tokenizer": kept}
    assert public_config({"path": "http://[no address?key=secret"}) == {"path": "(hidden)"}
