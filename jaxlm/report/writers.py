"""Where metrics go besides the terminal and the event log: TensorBoard, Weights & Biases, MLflow.

Each is an extra of the package, imported when a config asks for it. Keys and addresses of their services come from
their own environment variables and files; jaxlm neither reads nor writes them.
"""

from __future__ import annotations

import html
import importlib
import math
import os
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from etils import epath

from jaxlm.paths import is_local
from jaxlm.redact import HIDDEN, SECRET_KEY, redact
from jaxlm.types import UserError

TEXT_FOLDER, IMAGE_FOLDER = "text", "images"
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}


class Writer(Protocol):
    """One place that metrics are sent to."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step, by name: `train/loss`, `eval/topics/bits_per_byte`."""
        ...

    def text(self, step: int, name: str, value: str) -> None:
        """A text of one step, such as a sample."""
        ...

    def image(self, step: int, name: str, path: str) -> None:
        """A PNG file of one step, which is read before this returns."""
        ...

    def close(self) -> None:
        """Sends what is left."""
        ...


class TensorBoardWriter:
    """Event files in `<workdir>/tensorboard`, for `tensorboard --logdir`.

    Args:
      start_step: events of later steps, written by a process that was killed, are hidden.
    """

    def __init__(self, workdir: epath.PathLike, *, start_step: int = 0):
        tensorboard = import_extra("tensorboardX", "tensorboard")
        folder = os.fspath(epath.Path(workdir) / "tensorboard")
        self._writer = tensorboard.SummaryWriter(
            folder, purge_step=start_step + 1 if start_step else None, flush_secs=30
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, step: int, name: str, value: str) -> None:
        quoted = "\n".join(f"    {line}" for line in value.splitlines())  # Markdown for: exactly as it is
        self._writer.add_text(name, quoted, step)

    def image(self, step: int, name: str, path: str) -> None:
        summary = importlib.import_module("tensorboardX.proto.summary_pb2")
        with open(path, "rb") as file:
            png = file.read()  # as it is: `add_image` would need a package that decodes it
        width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
        shown = summary.Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        values = [summary.Summary.Value(tag=name, image=shown)]
        self._writer.file_writer.add_summary(summary.Summary(value=values), step)

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    """A run on Weights & Biases, resumed under its own id; WANDB_MODE=offline and the like are its to obey.

    Code, git state and console output are not sent. Steps are a metric of their own, since W&B drops what comes
    for a step below its counter, as after resuming from a checkpoint.
    """

    def __init__(self, workdir: epath.PathLike, *, name: str, config: Mapping[str, Any]):
        wandb = import_extra("wandb", "wandb")
        self._html, self._image = wandb.Html, wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "jaxlm"),
            dir=os.fspath(workdir) if is_local(workdir) else None,
            id=kept_id(workdir, "wandb_run_id", uuid.uuid4().hex[:8]),
            name=name,
            config=public_config(config),
            resume="allow",
            save_code=False,
            settings=wandb.Settings(console="off", disable_git=True, disable_code=True),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def text(self, step: int, name: str, value: str) -> None:
        self._run.log({name: self._html(f"<pre>{html.escape(value)}</pre>"), "step": step})

    def image(self, step: int, name: str, path: str) -> None:
        self._run.log({name: self._image(path), "step": step})

    def close(self) -> None:
        self._run.finish()


class MlflowWriter:
    """A run of an MLflow server, MLFLOW_TRACKING_URI, or of the database `<workdir>/mlflow.db`.

    The experiment is MLFLOW_EXPERIMENT_NAME, or jaxlm. NaN and infinities are sent as NaN, which every store takes.
    """

    def __init__(self, workdir: epath.PathLike, *, name: str, config: Mapping[str, Any]):
        mlflow = import_extra("mlflow", "mlflow")
        entities = importlib.import_module("mlflow.entities")
        self._metric = entities.Metric
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None and not is_local(workdir):
            raise UserError(
                f"report.writers: mlflow needs MLFLOW_TRACKING_URI when the workdir is {workdir}."
            )
        artifacts = None if uri else f"{os.path.abspath(os.fspath(workdir))}/mlartifacts"
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "jaxlm")
        try:
            self._client = mlflow.MlflowClient(
                tracking_uri=uri or f"sqlite:///{os.path.abspath(os.fspath(workdir))}/mlflow.db"
            )
            found = self._client.get_experiment_by_name(experiment)
            experiment_id = (
                found.experiment_id if found else self._client.create_experiment(experiment, artifacts)
            )
            run_id = kept_id(workdir, "mlflow_run_id", "")
            new = not run_id
            if new:
                run_id = self._client.create_run(experiment_id, run_name=name).info.run_id
                kept_id(workdir, "mlflow_run_id", run_id)
            else:
                self._client.update_run(run_id, status="RUNNING")
        except (ImportError, mlflow.exceptions.MlflowException) as error:
            raise UserError(
                f"report.writers: mlflow could not be opened ({type(error).__name__}). Set MLFLOW_TRACKING_URI to a "
                "server that can be reached, or pip install mlflow for a local database."
            ) from error
        self._run_id: str = run_id
        if new:
            params = flatten(public_config(config))
            self._client.log_batch(
                run_id, params=[entities.Param(key, str(value)[:500]) for key, value in params.items()][:100]
            )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        self._client.log_batch(
            self._run_id,
            metrics=[
                self._metric(name, value if math.isfinite(value) else math.nan, now_ms, step)
                for name, value in values.items()
            ],
        )

    def text(self, step: int, name: str, value: str) -> None:
        self._client.log_text(self._run_id, value, f"{TEXT_FOLDER}/{_file_name(name)}/{step:08d}.txt")

    def image(self, step: int, name: str, path: str) -> None:
        self._client.log_artifact(self._run_id, path, f"{IMAGE_FOLDER}/{_file_name(name)}/{step:08d}")

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def _file_name(name: str) -> str:
    """Of a text or an image, whose name may hold the prompt it belongs to: / and .. are no folders."""
    return re.sub(r"[^\w-]+", "_", name)[:80].strip("_") or "text"


def check_installed(names: Sequence[str]) -> None:
    """Errors: UserError with what to install, for a writer whose package is missing."""
    for name in names:
        import_extra(PACKAGES[name], name)


def open_writers(
    names: Sequence[str],
    workdir: epath.PathLike,
    *,
    run_name: str,
    config: Mapping[str, Any],
    start_step: int = 0,
) -> list[Writer]:
    """The writers a config asks for: `ReportConfig.names`, which has checked them.

    Errors: UserError that says what to install, or what could not be reached.
    """
    writers: list[Writer] = []
    for name in names:
        if name == "tensorboard":
            writers.append(TensorBoardWriter(workdir, start_step=start_step))
        elif name == "wandb":
            writers.append(WandbWriter(workdir, name=run_name, config=config))
        else:
            writers.append(MlflowWriter(workdir, name=run_name, config=config))
    return writers


def import_extra(module: str, extra: str) -> Any:
    """Imports a package that is an extra of jaxlm.

    Errors: UserError with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"report.writers={extra} needs the package {error.name}, which is not installed. "
            f"Install it: pip install 'jaxlm[{extra}]'."
        ) from error


def kept_id(workdir: epath.PathLike, file: str, new: str) -> str:
    """The id in a file of the workdir; where there is none, `new`, written down unless empty."""
    path = epath.Path(workdir) / file
    if path.exists():
        return path.read_text().strip()
    if new:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(new + "\n")
    return new


def public_config(config: Any, key: str = "") -> Any:
    """A copy without secrets: values of keys such as `password` or `api_key`, logins and queries in addresses."""
    if isinstance(config, Mapping):
        return {str(name): public_config(value, str(name)) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [public_config(value, key) for value in config]
    if not isinstance(config, str):
        return config
    if SECRET_KEY.search(key):
        return HIDDEN
    if "://" not in config:
        return redact(config)
    try:
        address = urlsplit(config)
    except ValueError:
        return HIDDEN
    login, _, host = address.netloc.rpartition("@")
    netloc = f"{HIDDEN}@{host}" if login else host
    return redact(urlunsplit((address.scheme, netloc, address.path, HIDDEN if address.query else "", "")))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"model": {"embed_dim": 8}}` -> `{"model.embed_dim": 8}`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
