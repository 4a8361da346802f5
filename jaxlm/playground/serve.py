"""Starts and ends the server of the playground."""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import sys
from typing import Any

from jaxlm.types import UserError

CLOSING_S = 2.0


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Errors: UserError for a port in use, or a host that is none of this machine's."""
    if not 0 <= port < 65536:
        raise UserError(f"--port={port} must be from 0 (any free one) to 65535.")
    try:
        [(family, kind, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(
            f"--host={host} is no name or address of this machine ({error.strerror}). Leave it out for 127.0.0.1."
        ) from None
    sock = socket.socket(family, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise UserError(
            f"--port={port} on {host} cannot be used: {(error.strerror or str(error)).lower()}. Choose another, or "
            "--port=0 for any free one."
        ) from None
    return sock


def is_loopback(sock: socket.socket) -> bool:
    """Whether nothing but this machine reaches a socket."""
    return ipaddress.ip_address(sock.getsockname()[0]).is_loopback


def address_of(sock: socket.socket, token: str | None) -> str:
    """What to open in a browser."""
    host, port = sock.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.gethostname()
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{port}/" + ("" if token is None else f"?token={token}")


def new_token() -> str:
    """Cannot be guessed."""
    return secrets.token_urlsafe(24)


def config_of(app: Any) -> Any:
    """The uvicorn.Config of an ASGI app."""
    import uvicorn

    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="critical",  # the app reports what goes wrong; an access log would hold the token
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=128,
        timeout_graceful_shutdown=0,
    )


def serve(app: Any, sock: socket.socket) -> None:
    """Answers until it is interrupted; the signal then has its usual effect."""
    import uvicorn

    uvicorn.Server(config_of(app)).run(sockets=[sock])


def leave(code: int) -> None:
    """Ends the process where its thread is in the middle of a compilation, which nothing interrupts."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
