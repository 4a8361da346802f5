"""The playground over HTTP: one page, its files, and one stream of JSON lines for each question."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import jaxlm
from jaxlm.playground.fields import MAX_BODY_BYTES, Fields, Limits, size_words
from jaxlm.playground.model import CHAT_DEFAULT, TEXT_DEFAULT, Model
from jaxlm.playground.worker import Job, Worker, bug_event, error_event, show_bug
from jaxlm.types import UserError

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in (
        "page", "common", "next", "texts", "compare")},
}  # fmt: skip
"""All that is served besides answers: no path of a request ever becomes the path of a file."""
DRAINED_BYTES = 16 << 20
"""Of a body that is too large, this much is still read: a browser shows an answer only after it has sent all."""
ASKS = ("next_token", "continue_text", "chat", "classify")
"""Methods of Model, by the end of their address."""


def make_app(models: list[Model], worker: Worker) -> Starlette:
    """The app. Its answers carry no header of `Guard`, which stands in front of it."""
    page = resources.files("jaxlm.playground") / "page"
    contents = {path: (page / name).read_bytes() for path, (name, _) in FILES.items()}

    def serve_file(path: str) -> Callable[[Request], Any]:
        async def serve(request: Request) -> Response:
            return Response(contents[path], media_type=FILES[path][1])

        return serve

    async def describe(request: Request) -> Response:
        return JSONResponse(
            {
                "version": jaxlm.__version__,
                "models": [model.describe() for model in models],
                "limits": Limits()._asdict(),
                "defaults": {"text": TEXT_DEFAULT, "chat": CHAT_DEFAULT},
            }
        )

    def ask(name: str) -> Callable[[Request], Any]:
        async def asked(request: Request) -> Response:
            try:
                fields = Fields.parse(await read_body(request))
                model = models[fields.whole("model", 0, len(models) - 1, 0)]
                events = Events()
                job = Job(lambda job: getattr(model, name)(job, fields), events.emit)
                num_before = worker.submit(job)
            except BodyTooLarge as error:
                return JSONResponse(error_event(error), 413)
            except UserError as error:
                return JSONResponse(error_event(error), 400)
            return StreamingResponse(events.stream(job, num_before), media_type="application/x-ndjson")

        return asked

    async def not_found(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        line = {404: "there is nothing here.", 405: "this address is asked in another way."}
        return JSONResponse(
            {"event": "error", "message": line.get(status, "the request is not valid.")}, status
        )

    async def failed(request: Request, error: Exception) -> Response:
        show_bug(error)
        return JSONResponse(bug_event(error), 500)

    routes = [Route(path, serve_file(path), methods=["GET"]) for path in FILES]
    routes.append(Route("/api/models", describe, methods=["GET"]))
    routes += [Route(f"/api/{name}", ask(name), methods=["POST"]) for name in ASKS]
    return Starlette(routes=routes, exception_handlers={HTTPException: not_found, Exception: failed})


class BodyTooLarge(UserError):
    """A request with more bytes than any may have."""


async def read_body(request: Request) -> bytes:
    """The body. Errors: BodyTooLarge, after it has been read and dropped."""
    content, num_bytes = bytearray(), 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes <= MAX_BODY_BYTES:
            content += chunk
        elif num_bytes > DRAINED_BYTES:
            break
    if num_bytes > MAX_BODY_BYTES:
        raise BodyTooLarge(
            f"the request has {size_words(num_bytes)}{' or more' if num_bytes > DRAINED_BYTES else ''}; the playground "
            f"takes {size_words(MAX_BODY_BYTES)} at a time: shorten the text."
        )
    return bytes(content)


class Events:
    """From the worker's thread to the browser."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def emit(self, event: dict[str, Any]) -> None:
        """Called in the worker's thread."""
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)
        except RuntimeError:  # the loop is closed: the server ends
            return

    async def stream(self, job: Job, num_before: int) -> AsyncIterator[bytes]:
        """Lines of JSON up to the event `end` or `error`. A browser that leaves cancels the job."""
        try:
            if num_before:
                yield line_of({"event": "waiting", "before": num_before})
            while True:
                event = await self._queue.get()
                yield line_of(event)
                if event["event"] in ("end", "error"):
                    return
        finally:
            job.cancel()


def line_of(event: dict[str, Any]) -> bytes:
    """One line of NDJSON."""
    return json.dumps(event, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
