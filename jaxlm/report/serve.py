"""The page of runs while they go on: a server on the loopback, which reads only what is new of the logs.

It answers GET of `/` (the page), `/data.json?after=VERSION` (what it shows, when it has changed since) and nothing
else; and only to browsers that ask for this machine by its name, so that no page of the web reads it by a name of its
own.
"""

from __future__ import annotations

import http
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from jaxlm.report.page import embed_json, page_html, plotly_js
from jaxlm.report.run_folder import RunFolder
from jaxlm.types import UserError

HOST = "127.0.0.1"
POLL_S = 2.0
"""How often a browser asks."""
LEAST_S = 1.0
"""However many browsers ask: a log is looked at no more often than this."""

MakeData = Callable[[Sequence[RunFolder]], dict[str, Any]]


class LivePage:
    """What the page shows now; safe between threads.

    Args:
      make_data: the data of the page, of runs that have been read.
    """

    def __init__(self, runs: Sequence[RunFolder], make_data: MakeData):
        self._runs, self._make_data = runs, make_data
        self._lock = threading.Lock()
        self._looked_at = -LEAST_S
        self._states: list[Any] = []
        self._data: dict[str, Any] = {}
        self.version = 0

    def data(self) -> dict[str, Any]:
        """Of the latest version. Errors: UserError, of a log that is damaged or gone."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at >= LEAST_S:
                has_new = [run.read() for run in self._runs]
                states = [run.state() for run in self._runs]
                if any(has_new) or states != self._states:
                    self._states = states
                    self.version += 1
                    self._data = self._make_data(self._runs) | {"version": self.version, "poll_s": POLL_S}
                self._looked_at = now
            return self._data


class PageServer(ThreadingHTTPServer):
    """Serves a LivePage, until `shutdown`.

    Args:
      port: 0: any that is free; see `address`.

    Errors: UserError when the port is taken.
    """

    daemon_threads = True

    def __init__(self, page: LivePage, port: int = 0):
        plotly_js()  # a missing package is said now, and not to a browser
        self.page = page
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise UserError(
                f"--port={port} of {HOST} cannot be used ({error.strerror}). Leave it out for one that is free."
            ) from None

    @property
    def address(self) -> str:
        """For a browser."""
        return f"http://{HOST}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: PageServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            return self._answer(403, b"This page is for the machine that it runs on.", "text/plain")
        address = urlsplit(self.path)
        if address.path not in ("/", "/data.json"):
            return self._answer(404, b"There is / and /data.json.", "text/plain")
        try:
            data = self.server.page.data()
        except UserError as error:
            return self._answer(500, str(error).encode("utf-8", "replace"), "text/plain")
        if address.path == "/":
            return self._answer(200, page_html(data), "text/html")
        if parse_qs(address.query).get("after") == [str(data["version"])]:
            return self._answer(204, b"", "application/json")
        return self._answer(200, embed_json(data).encode("utf-8", "backslashreplace"), "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        try:
            self.send_response(http.HTTPStatus(status))
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            if status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("X-Frame-Options", "DENY")
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the browser went away

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: who looks at a page is nobody's business."""


def serve(server: PageServer) -> None:
    """Answers until Ctrl-C."""
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
