"""Blocks of another kdn, over HTTP: its node is a remote like any other.

GET    /v1/store/blocks?since=CURSOR   what changed there (MessagePack, see `PeerChanges`)
GET    /v1/store/blocks/KEY            bytes of a block; with Range, some of them
GET    /v1/store/blocks/KEY/layers?start=A&stop=B&codec=C   layers transcoded (see `stream.transcode`)
PUT    /v1/store/blocks/KEY            store a block; the node verifies all of it
DELETE /v1/store/blocks/KEY            remove it
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from kdn.clock import Clock, SystemClock
from kdn.core import BlockKey
from kdn.errors import BadConfig, LostBlock, NoSpace, Unreachable
from kdn.machine.replies import get_answer, pieces, read_reply
from kdn.store.tiers.remote.client import (
    LISTING_S,
    MAX_LISTED,
    MAX_LISTING_BYTES,
    Listed,
    Remote,
    RemoteChanges,
    block_key,
)

if TYPE_CHECKING:
    from kdn.store.settings import FarSettings

__all__ = ["UNREADABLE", "PeerChanges", "PeerRemote"]

UNREADABLE = http.HTTPStatus.CONFLICT
"""A node's answer for a block that is there and cannot be read now."""
_TOO_MUCH = http.HTTPStatus.TOO_MANY_REQUESTS
_BUSY = frozenset({_TOO_MUCH, http.HTTPStatus.SERVICE_UNAVAILABLE})
"""Answers to reads that say: as many bytes are under way as may be."""
_REFUSALS = frozenset({400, 403, 413, _TOO_MUCH, http.HTTPStatus.INSUFFICIENT_STORAGE})
"""Answers that say no to one block or one tenant: the node serves everything else as before."""
_MAX_WORDS_BYTES = 1 << 16
_MAX_CURSOR = 200
_MAX_DIGITS = 15
_IDLE_CONNECTIONS = 16
_SILENT_S = 30.0
"""How long a node may be silent before it lists: 131,072 blocks take it some 4 s to write down."""
T = TypeVar("T")


class PeerChanges(msgspec.Struct, frozen=True, array_like=True):
    """A node's answer to what is new: (key, note) of blocks that came, keys that went."""

    cursor: str
    whole: bool
    added: Annotated[list[tuple[str, bytes]], msgspec.Meta(max_length=MAX_LISTED)]
    removed: Annotated[list[str], msgspec.Meta(max_length=MAX_LISTED)]


class PeerRemote(Remote):
    """The node at `url` (http or https), seen with `token`'s rights.

    `authority` is a file of certificates to trust instead of the system's.  A node does not list
    sizes, so a tier over it counts, and drops for room, only what it put there itself.
    """

    name = "peer"
    transcodes = True
    seals_itself = True

    @classmethod
    def from_settings(cls, settings: FarSettings) -> Self | None:
        if settings.peer_url is None:
            return None
        return cls(
            settings.peer_url,
            token=settings.peer_token,
            authority=settings.peer_authority,
            timeout_s=settings.far_timeout_s,
        )

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        authority: Path | None = None,
        timeout_s: float = 2.0,
        clock: Clock | None = None,
    ) -> None:
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:  # a port that is no number, half a bracket
            parts, self._host = urlsplit(""), ""
        if parts.scheme not in {"http", "https"} or not self._host:
            raise BadConfig(f"{url!r} is no address of a node: write http://host:port")
        self._base = parts.path.rstrip("/")
        self._timeout_s = timeout_s
        self._clock = clock or SystemClock()
        self._tls = _trust(authority) if parts.scheme == "https" else None
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._telling = threading.Lock()
        self._listing: http.client.HTTPConnection | None = None
        self._is_closed = False
        self._cursor = ""

    def head(self, key: BlockKey, num_bytes: int) -> tuple[bytes, int] | None:
        asked = {"range": f"bytes=0-{num_bytes - 1}"}
        status, headers, body = self._call("GET", key, asked, max_bytes=num_bytes)
        if status == http.HTTPStatus.NOT_FOUND:
            return None
        self._expect_part(status, body)
        size = headers.get("content-range", "").rpartition("/")[2]
        if not size.isdecimal() or len(size) > _MAX_DIGITS:
            raise Unreachable(f"the node at {self._host} does not say how large a block is")
        return bytes(body), int(size)

    def read(self, key: BlockKey, start: int, stop: int) -> bytes | memoryview:
        asked = {"range": f"bytes={start}-{stop - 1}"}
        status, _, body = self._call("GET", key, asked, max_bytes=stop - start)
        if status == http.HTTPStatus.NOT_FOUND:
            return b""
        self._expect_part(status, body)
        return body

    def transcode(
        self, key: BlockKey, start: int, stop: int, codec: str, max_bytes: int
    ) -> bytes | memoryview | None:
        asked = f"{key}/layers?start={start}&stop={stop}&codec={quote(codec)}"
        status, _, body = self._call("GET", asked, {}, max_bytes=max_bytes)
        return body if status == http.HTTPStatus.OK else None

    def write(self, key: BlockKey, note: bytes, data: memoryview) -> None:
        status, _, body = self._call("PUT", key, {}, body=data)
        self._expect_changed(status, body)

    def remove(self, key: BlockKey) -> bool:
        status, _, body = self._call("DELETE", key, {})
        if status == http.HTTPStatus.NOT_FOUND:
            return False
        self._expect_changed(status, body)
        return True

    def changes(self) -> RemoteChanges:
        with self._telling:
            asked = f"?since={quote(self._cursor)}"
            try:
                status, _, body = self._call(
                    "GET", asked, {}, max_bytes=MAX_LISTING_BYTES, is_listing=True
                )
            finally:
                self._listing = None
            if status in _BUSY:  # the cursor stays: the next look asks for the same
                return RemoteChanges()
            self._expect(status, body, http.HTTPStatus.OK)
            try:
                told = msgspec.msgpack.decode(body, type=PeerChanges)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise Unreachable(
                    f"the node at {self._host} gave another kind of answer: {error}"
                ) from error
            if len(told.cursor) > _MAX_CURSOR:
                raise Unreachable(f"the node at {self._host} gave a cursor that is too long")
            self._cursor = told.cursor
        keys = [(block_key(key), note) for key, note in told.added]
        added = tuple(Listed(key, note, 0) for key, note in keys if key is not None)
        removed = tuple(key for key in map(block_key, told.removed) if key is not None)
        foreign = len(told.added) - len(added) + len(told.removed) - len(removed)
        return RemoteChanges(added, removed, told.whole, foreign)

    def close(self) -> None:
        """A listing that is under way, which may take minutes, ends."""
        with self._lock:
            self._is_closed, listing = True, self._listing
        sock = None if listing is None else listing.sock
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._close_idle()

    # --- inside ---

    def _close_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _call(
        self,
        verb: str,
        what: str,
        headers: Mapping[str, str],
        *,
        body: memoryview | None = None,
        max_bytes: int = _MAX_WORDS_BYTES,
        is_listing: bool = False,
    ) -> tuple[int, http.client.HTTPMessage, memoryview]:
        """Raises Unreachable for an answer of more than `max_bytes`, or one that does not end in time.

        A node closes connections that were idle for a while. Every call may be made twice, so one that
        meets such a connection is made again over a new one, and is no fault of the node.  Nobody waits for a
        listing: it has minutes.
        """
        slash = "" if what.startswith("?") else "/"
        path = f"{self._base}/v1/store/blocks{slash}{what}"
        silent_s = within_s = self._timeout_s
        if is_listing:
            silent_s, within_s = max(_SILENT_S, silent_s), max(LISTING_S, within_s)
        deadline_s = self._clock.now() + within_s
        length = {} if body is None else {"content-length": str(body.nbytes)}
        sent = {**self._headers, **headers, **length}

        def over(
            connection: http.client.HTTPConnection,
        ) -> tuple[int, http.client.HTTPMessage, memoryview]:
            if connection.sock is None:
                connection.connect()
            connection.sock.settimeout(silent_s)
            if is_listing:
                self._begin_listing(connection)
            data = None if body is None else pieces(body, deadline_s, self._clock)
            is_sent = True
            try:
                connection.request(verb, path, data, sent)
            except ConnectionError:
                if body is None:
                    raise
                is_sent = False  # a body that is refused: the node may have said why, and closed
            with get_answer(connection, deadline_s, self._clock) as answer:
                is_right = answer.status < http.HTTPStatus.BAD_REQUEST
                limit = max_bytes if is_right else _MAX_WORDS_BYTES
                said = read_reply(answer, limit, deadline_s, self._clock)
            if not is_sent:
                connection.close()
            return answer.status, answer.headers, said

        try:
            return self._made(over)
        except (OSError, http.client.HTTPException) as error:
            self._close_idle()  # what else is idle is as old
            raise Unreachable(
                f"the node at {self._host} cannot be reached: {str(error) or type(error).__name__}"
            ) from error

    def _begin_listing(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if self._is_closed:
                raise http.client.HTTPException("this tier is closed")
            self._listing = connection

    def _made(self, call: Callable[[http.client.HTTPConnection], T]) -> T:
        """What `call` gives over an idle connection; over a new one where the node has closed that."""
        with self._lock:
            idle = self._idle.pop() if self._idle else None
        if idle is not None:
            with suppress(ConnectionError, ssl.SSLEOFError):
                return self._over(idle, call)
            self._close_idle()
        return self._over(self._connect(), call)

    def _over(
        self,
        connection: http.client.HTTPConnection,
        call: Callable[[http.client.HTTPConnection], T],
    ) -> T:
        """What `call` gives; the connection is kept for the next call."""
        try:
            given = call(connection)
        except BaseException:
            connection.close()
            raise
        with self._lock:
            is_kept = len(self._idle) < _IDLE_CONNECTIONS
            if is_kept:
                self._idle.append(connection)
        if not is_kept:
            connection.close()
        return given

    def _expect_part(self, status: int, body: memoryview) -> None:
        if status == UNREADABLE or status in _BUSY:
            raise LostBlock(self._answered(status, body))
        self._expect(status, body, http.HTTPStatus.PARTIAL_CONTENT)

    def _expect_changed(self, status: int, body: memoryview) -> None:
        if status in _REFUSALS:
            raise NoSpace(self._answered(status, body))
        self._expect(status, body, http.HTTPStatus.NO_CONTENT)

    def _expect(self, status: int, body: memoryview, wanted: int) -> None:
        if status != wanted:
            raise Unreachable(self._answered(status, body))

    def _answered(self, status: int, body: memoryview) -> str:
        said = bytes(body[:200]).decode(errors="replace")
        return f"the node at {self._host} answered {status}: {said}"

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=self._timeout_s, context=self._tls
        )


def _trust(authority: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError) as error:
        raise BadConfig(f"{authority} holds no certificates that can be read: {error}") from error
