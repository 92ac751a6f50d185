"""Who may come in, and with how much: the first thing every request meets."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kdn.serve.errors import Fault, Refused, response
from kdn.serve.settings import LOOPBACK, ServeSettings

__all__ = ["Auth"]


class Auth:
    """Checks the API key (everywhere but /health), the Host header and the size of the body.

    Plain ASGI: nothing stands between a route and its client's disconnect.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, *, own_keys: bool = False) -> None:
        """With `own_keys` the routes of the store check their callers themselves."""
        self._elsewhere = "/v1/store/" if own_keys else None
        self._app = app
        self._settings = settings
        self._keys = [key.encode() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        fault = self._judge(scope["path"], Headers(scope=scope))
        if fault is not None:
            await response(fault)(scope, receive, send)
            return
        await self._app(scope, self._measured(receive), send)

    def _judge(self, path: str, headers: Headers) -> Fault | None:
        if self._settings.guards_host and not _own_name(headers.get("host", "")):
            return _refusal(403, "this server answers only to localhost; set an API key to open it")
        elsewhere = self._elsewhere is not None and path.startswith(self._elsewhere)
        asked = bool(self._keys) and path != "/health" and not elsewhere
        if asked and not self._knows(headers.get("authorization", "")):
            return _refusal(401, "a valid API key is needed: Authorization: Bearer KEY")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._settings.max_body_bytes:
            return self._too_big().fault
        return None

    def _knows(self, authorization: str) -> bool:
        """Compares with every key, in time that does not tell where they differ."""
        scheme, _, given = authorization.partition(" ")
        right = [hmac.compare_digest(given.strip().encode(), key) for key in self._keys]
        return scheme.lower() == "bearer" and any(right)

    def _too_big(self) -> Refused:
        most = self._settings.max_body_bytes
        return Refused(f"the body is larger than {most} bytes", status=413)

    def _measured(self, receive: Receive) -> Receive:
        """Counts a body that came without a length."""
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._settings.max_body_bytes:
                raise self._too_big()
            return message

        return counted


def _own_name(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    return name in LOOPBACK or name.startswith("127.")


def _refusal(status: int, message: str) -> Fault:
    return Refused(message, status=status).fault
