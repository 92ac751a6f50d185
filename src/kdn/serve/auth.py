"""The first thing every HTTP request meets: may it come from there, whose is it, how large is it.

Keys are compared by their SHA-256 digests, all of them each time, so that neither a stored list nor
the time of a refusal tells about a key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kdn.core import PUBLIC_SALT
from kdn.errors import BadConfig
from kdn.machine.text import read_bounded
from kdn.serve.errors import AMBIGUOUS_LENGTH, Refused, response
from kdn.serve.limits import MAX_HEADER_BYTES, Backpressure, Held, Shutdown
from kdn.serve.settings import ServeSettings, is_loopback
from kdn.serve.store.grants import Grant, grant_for

__all__ = [
    "ADAPTER_PATHS",
    "ADMIN",
    "LOCAL",
    "ApiKey",
    "Auth",
    "Caller",
    "caller_of",
    "find_caller",
    "is_background",
    "may_operate",
    "own_scope",
    "read_keys",
]

_DIGEST = re.compile(r"[0-9a-f]{64}")
ANY = "*"
"""In a key's list of salts: it may name every salt but the public one."""


@dataclass(frozen=True)
class Caller:
    """The remote side of one request. `name` tells callers apart and reveals no key."""

    name: str
    salts: tuple[str, ...] = ()
    keyed: bool = True
    """False for a server without keys, where salts are taken as they are named."""

    def salt(self, named: str | None) -> str:
        """The salt under which blocks of this caller's request are stored and found.

        A salt that is granted to the key stays as it is.  Any other one is joined with the key's
        name: two keys that name it share nothing.  Without a name it is the key's first salt, or,
        for a key without salts, the one that all such keys share.  Raises Refused for `public`
        without a grant: what is stored there answers every caller.
        """
        if not named:
            return self.salts[0] if self.salts and self.salts[0] != ANY else ""
        if named in self.salts:
            return named
        if named == PUBLIC_SALT:
            raise Refused(
                f"this key may not name the salt {PUBLIC_SALT!r}, which every caller reads: "
                "leave cache_salt out, or grant it to the key",
                param="cache_salt",
                status=403,
            )
        if not self.keyed or ANY in self.salts:
            return named
        return f"{self.name}/{named}"


ADMIN = Caller("admin", (ANY,))
"""The holder of the store's admin key, at the routes for operators."""
LOCAL = Caller("local", keyed=False)
"""Every caller of a server without keys."""


@dataclass(frozen=True)
class ApiKey:
    """A key by its digest, and the salts that it may name."""

    digest: str
    """SHA-256, 64 hexadecimal digits."""
    salts: tuple[str, ...] = ()

    @classmethod
    def of(cls, key: str, salts: tuple[str, ...] = ()) -> ApiKey:
        return cls(hashlib.sha256(key.encode()).hexdigest(), salts)

    @property
    def caller(self) -> Caller:
        return Caller(f"key-{self.digest[:16]}", self.salts)


def find_caller(authorization: str, keys: Sequence[ApiKey]) -> Caller | None:
    """The caller of a bearer key; None for a wrong one. Takes the same time for each."""
    scheme, _, given = authorization.partition(" ")
    digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).hexdigest()
    found = None
    for key in keys:
        if hmac.compare_digest(digest, key.digest):
            found = key
    return found.caller if found is not None and scheme.lower() == "bearer" else None


def read_keys(settings: ServeSettings) -> tuple[ApiKey, ...]:
    """All keys of the settings. Raises BadConfig for one, or a key file, that cannot be read."""
    plain = tuple(map(ApiKey.of, settings.api_keys))
    file = () if settings.key_file is None else _read_key_file(settings.key_file)
    return (*plain, *map(_salted, settings.salted_keys), *file)


def _salted(given: str) -> ApiKey:
    salts, _, key = given.partition("=")
    if not (salts and key and all(salts.split("+"))):
        raise BadConfig(f"a salted key of {salts!r}: write SALT=KEY, or SALT+SALT=KEY")
    return ApiKey.of(key, tuple(salts.split("+")))


def _read_key_file(path: Path) -> tuple[ApiKey, ...]:
    """Keys of a file: on each line the SHA-256 of a key, then its salts. `#` begins a comment."""
    try:
        lines = read_bounded(path).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"the key file {path} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if not _DIGEST.fullmatch(words[0]):
            raise BadConfig(
                f"{path}, line {number}: write the SHA-256 of a key (64 hexadecimal digits, as "
                "sha256sum prints it), then its salts"
            )
        found.append(ApiKey(words[0], tuple(words[1:])))
    if not found:
        raise BadConfig(f"the key file {path} holds no key: every caller would be refused")
    return tuple(found)


_CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_OF_FORMS = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data")
"""What a page of any site may send here without asking: no client of this server does."""
_UPLOAD = ("/v1/files", "multipart/form-data")
"""OpenAI's clients upload files so; a browser's form would name its origin, which is checked before."""
_WITHOUT_KEY = ("/health", "/ping", "/", "/console.js", "/console.css", "/console.svg")
"""Of the console the page itself, which holds nothing; what it shows is asked for with a key."""
ADAPTER_PATHS = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
_STORE = "/v1/store/"
_FOR_OPERATORS = ("/v1/kdn/", *ADAPTER_PATHS)
_CALLER = "kdn.caller"
_BACKGROUND = "kdn.background"


def caller_of(scope: Scope) -> Caller:
    """Whose request it is, as `Auth` found."""
    caller: Caller = scope.get(_CALLER, LOCAL)
    return caller


def may_operate(scope: Scope, settings: ServeSettings, *, has_admin: bool) -> bool:
    """May this caller do what changes or shows what is everybody's? The admin may.

    Where no admin key is set everybody may on loopback, as long as callers are asked for no key.
    """
    caller = caller_of(scope)
    return caller is ADMIN or (not has_admin and caller is LOCAL and settings.loopback)


def own_scope(path: str, body: bytes, caller: Caller) -> Scope:
    """The scope of a request that this server sends itself for a caller that it has checked before.

    Its answers run after those that somebody waits for. Only code makes scopes: no client can.
    """
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ],
        "client": None,
        "server": None,
        "state": {},
        _CALLER: caller,
        _BACKGROUND: True,
    }


def is_background(scope: Scope) -> bool:
    """Is it a request that the server sends itself?"""
    return bool(scope.get(_BACKGROUND))


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
        own_keys: tuple[Grant, ...] = (),
    ) -> None:
        """With `own_keys` the routes of the store check their callers themselves, and the admin's key
        opens those for operators."""
        self._app = app
        self._keys = read_keys(settings)
        self._guards_host = settings.guards_host
        self._trusts_loopback = settings.loopback
        self._body_bytes = settings.limits.body_bytes
        self._backpressure = backpressure
        self._shutdown = shutdown
        self._own_keys = own_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_background(scope):
            await self._app(scope, receive, send)
            return
        headers, held = Headers(scope=scope), ExitStack()
        try:
            self._check_stopping(scope["path"])
            _check_head(scope)
            self._check_site(scope, headers)
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

    def _check_site(self, scope: Scope, headers: Headers) -> None:
        """A web page of another site must not act through the browser of somebody near."""
        host = headers.get("host", "")
        if self._guards_host and not _is_own(host):
            raise Refused(
                "this server answers only to localhost; set an API key to open it", status=403
            )
        if scope["method"] not in _CHANGING:
            return
        origin = headers.get("origin")
        crossing = headers.get("sec-fetch-site") == "cross-site"
        if crossing or (origin is not None and not self._is_same(origin, host)):
            raise Refused(
                f"a page of {origin or 'another site'} may not send requests here", status=403
            )
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        is_upload = (scope["path"], kind) == _UPLOAD
        if kind in _OF_FORMS and not is_upload:
            raise Refused(
                f"the body's content type is {kind}; send it as application/json", status=415
            )

    def _is_same(self, origin: str, host: str) -> bool:
        """Is the page of this server's own address, or of this machine where that is trusted?"""
        netloc = origin.partition("://")[2]
        return netloc == host or (self._trusts_loopback and _is_own(netloc))

    def _caller(self, path: str, authorization: str) -> Caller:
        keys = self._keys
        if self._own_keys and path.startswith((_STORE, *_FOR_OPERATORS)):
            grant = grant_for(authorization, self._own_keys)
            if grant is not None and grant.admin:
                return ADMIN
            if path.startswith(_STORE):  # whose routes refuse an unknown key before they read
                return LOCAL if grant is None else Caller(_name_of(grant))
        if not keys or path in _WITHOUT_KEY:
            return LOCAL
        caller = find_caller(authorization, keys)
        if caller is None:
            raise Refused("a valid API key is needed: Authorization: Bearer KEY", status=401)
        return caller

    def _length(self, headers: Headers) -> int:
        """Of the body by its header; 0 where nothing is said."""
        length = headers.get("content-length", "0")
        if "content-length" in headers and "transfer-encoding" in headers:  # RFC 9112, 6.1 and 6.3
            raise Refused(
                "the body has both content-length and transfer-encoding; send one of them",
                code=AMBIGUOUS_LENGTH,
            )
        if not (length.isascii() and length.isdecimal()):
            raise Refused("the header content-length is no number")
        if len(length) > _LONGEST_NUMBER or int(length) > self._body_bytes:
            raise self._too_big()
        return int(length)

    def _too_big(self) -> Refused:
        most = self._body_bytes
        return Refused(f"the body is larger than {most} bytes", status=413)

    def _counted(
        self, receive: Receive, caller: Caller, headers: Headers, held: ExitStack
    ) -> Receive:
        """Counts a body that came without a length, as it comes."""
        if "content-length" in headers:
            return receive  # without a transfer-encoding no server hands over more than was said
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            size_bytes = len(message.get("body", b""))
            if seen + size_bytes > self._body_bytes:
                raise self._too_big()
            self._backpressure.take(caller.name, Held(size_bytes=size_bytes))
            seen += size_bytes
            return message

        # one for all pieces: a body of 64 MiB may come byte by byte
        held.callback(lambda: self._backpressure.give_back(caller.name, Held(size_bytes=seen)))
        return counted


def _name_of(grant: Grant) -> str:
    """A tenant is one caller; peers that act for every tenant are told apart by their keys."""
    own = grant.name if grant.salt is not None else ApiKey.of(grant.token).caller.name
    return f"store-{own}"


_LONGEST_NUMBER = 18


def _check_head(scope: Scope) -> None:
    size_bytes = len(scope["raw_path"]) + len(scope["query_string"])
    size_bytes += sum(len(name) + len(value) for name, value in scope["headers"])
    if size_bytes > MAX_HEADER_BYTES:
        raise Refused(
            f"the request's line and headers hold {size_bytes} bytes; at most {MAX_HEADER_BYTES} "
            "are read",
            status=431,
        )


def _is_own(host: str) -> bool:
    """Is `host` (with or without a port) a name or an address of this machine alone?"""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return is_loopback(name)
