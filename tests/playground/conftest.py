"""Tiny runs of each kind, made once, and the playground over them as a real server in this process."""

import contextlib
import http.client
import json
import threading

import pytest
import uvicorn
from playground_hostile import PIECES
from small_classifier import make_run

from jaxlm import run as run_lib
from jaxlm import run_loading
from jaxlm.data.chat import open_template, save_chat
from jaxlm.data.tokenizer import SentencePieceTokenizer
from jaxlm.data.tokenizer_training import train_tokenizer
from jaxlm.playground import serve
from jaxlm.playground.app import make_app
from jaxlm.playground.guard import Guard
from jaxlm.playground.model import Model
from jaxlm.playground.worker import Worker


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """kind -> workdir."""
    folder = tmp_path_factory.mktemp("runs")
    chars = SentencePieceTokenizer(train_tokenizer(["The lion is in the zoo.\nবাংলা 😀 $x$"], "char", 0))
    made = {
        "base": make_run(folder / "base", None, objective="pretrain", seq_len=64, num_layers=1),
        "chars": make_run(
            folder / "chars", None, objective="pretrain", tokenizer=chars, dtype="bfloat16", num_layers=1
        ),
        "chat": make_run(folder / "chat", None, objective="instruct", seq_len=128, num_layers=1),
        "labels": make_run(folder / "labels"),
        "hostile": make_run(folder / "hostile", PIECES),
    }
    save_chat(made["chat"], open_template(run_loading.run_tokenizer(made["chat"]), "alpaca"))
    return made


@pytest.fixture(scope="session")
def model_of(runs):
    """kind -> its Model, loaded once."""
    models = {}

    def model(kind):
        if kind not in models:
            models[kind] = Model(str(runs[kind]), run_lib.load_run(runs[kind]))
        return models[kind]

    return model


class Served:
    """A running playground."""

    def __init__(self, port, worker):
        self.port, self.worker = port, worker
        self.url = f"http://127.0.0.1:{port}/"

    def open(self, method, path, body=None, **headers):
        """The open (connection, response)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, body, headers)
        return connection, connection.getresponse()

    def get(self, path, **headers):
        """(status, body, headers)."""
        connection, response = self.open("GET", path, **headers)
        with contextlib.closing(connection):
            return response.status, response.read().decode(), dict(response.headers)

    def ask(self, name, body, **headers):
        """(status, events)."""
        connection, response = self.open("POST", f"/api/{name}", body, **headers)
        with contextlib.closing(connection):
            return response.status, [json.loads(line) for line in response.read().splitlines()]

    def event(self, name, kind, **body):
        """The one event of this kind in the answer to a good question."""
        status, events = self.ask(name, body)
        assert (status, events[-1]) == (200, {"event": "end"}), events
        [found] = [event for event in events if event["event"] == kind]
        return found


@pytest.fixture(scope="session")
def serving(model_of):
    """serving("base", "chat") is a context manager of a Served."""

    @contextlib.contextmanager
    def started(*kinds, token=None, models=None):
        worker = Worker()
        app = Guard(make_app(models or [model_of(kind) for kind in kinds], worker), token)
        with serve.bind("127.0.0.1", 0) as sock:
            server = uvicorn.Server(serve.config_of(app))
            thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
            thread.start()
            try:
                yield Served(sock.getsockname()[1], worker)
            finally:
                server.should_exit = True
                thread.join(30)
                assert worker.close(60)

    return started
