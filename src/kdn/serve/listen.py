"""Opens the port and serves until told to stop."""

from __future__ import annotations

import copy
import errno
import socket
from typing import Any

import uvicorn
import uvicorn.config
from starlette.types import ASGIApp

from kdn.errors import BadConfig, PortInUse
from kdn.serve.settings import ServeSettings

__all__ = ["listen", "make_server", "url_of"]


def listen(settings: ServeSettings) -> socket.socket:
    """A listening socket: clients may connect from now on and are answered once the server runs.

    Raises PortInUse when the port is taken, BadConfig for an address this machine does not have.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol said, asyncio sends small pieces at once; without it the body of an answer
    # waited 40 ms for the acknowledgement of its headers.
    door = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((settings.host, settings.port))
        door.listen(2048)
    except OSError as error:
        door.close()
        where = f"{settings.host}:{settings.port}"
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"{where} is in use by another program; stop it or choose another --port"
            ) from error
        raise BadConfig(f"cannot listen on {where}: {error.strerror or error}") from error
    return door


def url_of(door: socket.socket, scheme: str = "http") -> str:
    """Where the socket can be reached, with the port that was truly taken."""
    host, port = door.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def make_server(app: ASGIApp, settings: ServeSettings, log_level: str = "info") -> uvicorn.Server:
    """A server that stops gracefully; `.run(sockets=[door])` blocks until then."""
    config = uvicorn.Config(
        app,
        log_level=log_level,
        log_config=_all_to_stderr(),
        timeout_graceful_shutdown=settings.graceful_s,
        server_header=False,
        ws="none",
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.private_key,
    )
    return uvicorn.Server(config)


def _all_to_stderr() -> dict[str, Any]:
    """Standard output is what a command says, and may be a pipe that nobody empties."""
    config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    config["handlers"]["access"]["stream"] = "ext://sys.stderr"
    return config
