"""The first thing every HTTP request meets: may it come from there, whose is it, how large is it."""

from __future__ import annotations

from contextlib import ExitStack
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kdn.serve.backpressure import Backpressure, Held
from kdn.serve.errors import Refused, response
from kdn.serve.keys import LOCAL, Caller, find_caller
from kdn.serve.settings import ServeSettings, is_loopback
from kdn.serve.shutdown import Shutdown

__all__ = ["Auth", "caller_of"]

_CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_OF_FORMS = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data")
"""What a page of any site may send here without asking: no client of this server does."""
_WITHOUT_KEY = ("/health", "/ping")
_CALLER = "kdn.caller"


def caller_of(scope: Scope) -> Caller:
    """Whose request it is, as `Auth` found."""
    caller: Caller = scope.get(_CALLER, LOCAL)
    return caller


class Auth:
    """Checks host, origin, content type, API key and size, before a route sees the request.

    Plain ASGI: nothing stands between a route and its client's disconnect.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServeSettings,
        backpressure: Backpressure,
        shutdown: Shutdown,
        *,
        own_keys: bool = False,
    ) -> None:
        """With `own_keys` the routes of the store check their callers themselves."""
        self._app = app
        self._settings = settings
        self._backpressure = backpressure
        self._shutdown = shutdown
        self._elsewhere = "/v1/store/" if own_keys else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, held = Headers(scope=scope), ExitStack()
        try:
            self._check_stopping(scope["path"])
            self._check_site(scope["method"], headers)
            caller = self._caller(scope["path"], headers.get("authorization", ""))
            scope[_CALLER] = caller
            held.enter_context(
                self._backpressure.hold(caller.name, Held(size_bytes=self._length(headers)))
            )
        except Refused as refused:
            await response(refused.fault)(scope, receive, send)
            return
        with held, self._shutdown.active():
            await self._app(scope, self._counted(receive, caller, headers, held), send)

    def _check_stopping(self, path: str) -> None:
        if self._shutdown.has_begun and path != "/metrics":
            raise Refused("the server is stopping", status=503, code="stopping", retry_after_s=5)

    def _check_site(self, method: str, headers: Headers) -> None:
        """A web page of another site must not act through the browser of somebody near."""
        host = headers.get("host", "")
        if self._settings.guards_host and not _is_own(host):
            raise Refused(
                "this server answers only to localhost; set an API key to open it", status=403
            )
        if method not in _CHANGING:
            return
        origin = headers.get("origin")
        crossing = headers.get("sec-fetch-site") == "cross-site"
        if crossing or (origin is not None and not self._is_same(origin, host)):
            raise Refused(
                f"a page of {origin or 'another site'} may not send requests here", status=403
            )
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in _OF_FORMS:
            raise Refused(
                f"the body's content type is {kind}; send it as application/json", status=415
            )

    def _is_same(self, origin: str, host: str) -> bool:
        """Is the page of this server's own address, or of this machine where that is trusted?"""
        netloc = origin.partition("://")[2]
        return netloc == host or (self._settings.loopback and _is_own(netloc))

    def _caller(self, path: str, authorization: str) -> Caller:
        keys = self._settings.keys
        elsewhere = self._elsewhere is not None and path.startswith(self._elsewhere)
        if not keys or path in _WITHOUT_KEY or elsewhere:
            return LOCAL
        caller = find_caller(authorization, keys)
        if caller is None:
            raise Refused("a valid API key is needed: Authorization: Bearer KEY", status=401)
        return caller

    def _length(self, headers: Headers) -> int:
        """Of the body by its header; 0 where nothing is said."""
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()):
            raise Refused("the header content-length is no number")
        if len(length) > _LONGEST_NUMBER or int(length) > self._settings.limits.body_bytes:
            raise self._too_big()
        return int(length)

    def _too_big(self) -> Refused:
        most = self._settings.limits.body_bytes
        return Refused(f"the body is larger than {most} bytes", status=413)

    def _counted(
        self, receive: Receive, caller: Caller, headers: Headers, held: ExitStack
    ) -> Receive:
        """Counts a body that came without a length, as it comes."""
        if "content-length" in headers:
            return receive  # no server hands over more than was said
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            size_bytes = len(message.get("body", b""))
            seen += size_bytes
            if seen > self._settings.limits.body_bytes:
                raise self._too_big()
            held.enter_context(self._backpressure.hold(caller.name, Held(size_bytes=size_bytes)))
            return message

        return counted


_LONGEST_NUMBER = 18


def _is_own(host: str) -> bool:
    """Is `host` (with or without a port) a name or an address of this machine alone?"""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return is_loopback(name)
