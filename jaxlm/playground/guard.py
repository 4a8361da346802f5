"""Who may talk to the playground, and what a page of it may do.

A server on this machine is reached by every page that the browser has open. Three things keep them out: the `Host` of
a request has to be a name of this machine (a stranger's name that suddenly points here is refused: DNS rebinding);
its `Origin` has to be the page of the playground itself; and its body has to be JSON, which no form of another page
can send. Beyond this machine, a token is asked for as well.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

COOKIE = "jaxlm_playground"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


class Refused(Exception):
    """A request that is not answered: (status, one line)."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Guard:
    """An ASGI app around another: refuses strangers, and adds the headers above to every answer.

    Args:
      token: asked for in the address (once; it becomes a cookie) or as `Authorization: Bearer`; None: not needed, and
        only names of the loopback are served.
    """

    def __init__(self, app: App, token: str | None):
        self._app = app
        self._token = token

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        try:
            self._check_source(scope, headers)
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[-1]
            if self._token is not None and given and scope["path"] == "/" and scope["method"] == "GET":
                self._check_token(given)
                return await _redirect_with_cookie(send_guarded, self._token)
            if self._token is not None:
                self._check_token(_bearer(headers) or _cookie(headers))
        except Refused as refused:
            return await answer(send_guarded, refused.status, str(refused))
        await self._app(scope, receive, send_guarded)

    def _check_source(self, scope: Message, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if self._token is None and _name_of(host) not in LOOPBACK:
            raise Refused(403, "the playground answers at 127.0.0.1 and localhost only.")
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{host}":
            raise Refused(403, "this request comes from another site's page: open the playground itself.")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and scope["path"] != "/":
            raise Refused(403, "this request comes from another site's page: open the playground itself.")
        if (
            scope["method"] == "POST"
            and headers.get("content-type", "").partition(";")[0] != "application/json"
        ):
            raise Refused(415, "a request has to be JSON (Content-Type: application/json).")

    def _check_token(self, given: str) -> None:
        if not hmac.compare_digest(given.encode(), str(self._token).encode()):
            raise Refused(401, "open the address that `jaxlm playground` printed, with its token.")


def _name_of(host: str) -> str:
    """127.0.0.1 of `127.0.0.1:7860`."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _bearer(headers: dict[str, str]) -> str:
    return headers.get("authorization", "").removeprefix("Bearer ").strip()


def _cookie(headers: dict[str, str]) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


async def _redirect_with_cookie(send: Send, token: str) -> None:
    """To the page without the token, which then is in no history and no screenshot."""
    cookie = f"{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/"
    headers = [(b"location", b"/"), (b"set-cookie", cookie.encode()), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def answer(send: Send, status: int, message: str) -> None:
    """One line, as JSON."""
    body = json.dumps({"event": "error", "message": message}).encode() + b"\n"
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
