"""Blocks in Redis: one value a block, a hash of notes, and a stream that tells of changes.

PREFIX:block:KEY   the encoded block
PREFIX:notes       hash: key -> size and note
PREFIX:changes     stream of (op, key), the last CHANGES of them
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from kdn.core import BlockKey
from kdn.errors import BadConfig, MissingExtra, Unreachable
from kdn.store.tiers.remote.client import (
    MAX_LISTING_BYTES,
    Remote,
    RemoteChanges,
    block_key,
    first_rows,
    listed,
)

if TYPE_CHECKING:
    from kdn.store.settings import FarSettings

__all__ = ["RedisRemote"]

CHANGES = 10_000
_SIZE_BYTES = 8
_WORDS_BYTES = 1 << 16


class RedisRemote(Remote):
    """Blocks under `prefix` in the Redis at `url` (`redis://`, `rediss://` for TLS, `unix://`).

    Redis may evict values by itself; a block that it lost is a miss, and its note goes then.
    """

    name = "redis"

    @classmethod
    def from_settings(cls, settings: FarSettings) -> Self | None:
        if settings.redis_url is None:
            return None
        return cls(settings.redis_url, timeout_s=settings.far_timeout_s)

    def __init__(self, url: str, *, prefix: str = "kdn", timeout_s: float = 2.0) -> None:
        try:
            import redis
        except ImportError as error:
            raise MissingExtra("a Redis tier needs: pip install 'kdn[redis]'") from error
        self._errors = redis.RedisError
        self._prefix = prefix
        self._bounds = _ReplyBounds()
        self._lock = threading.Lock()
        self._seen: str | None = None
        try:
            # The remote caller tries again; here a call ends.
            self._redis: Any = redis.Redis.from_url(
                url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=None
            )
            pool = self._redis.connection_pool
            pool.connection_class = _bounded(pool.connection_class, self._bounds)
        except ValueError as error:
            raise BadConfig(f"{url!r} is no address of a Redis: write redis://host:port") from error

    def head(self, key: BlockKey, num_bytes: int) -> tuple[bytes, int] | None:
        name = self._block(key)
        with self._gate("looking for a block", num_bytes):
            pipe = self._redis.pipeline(transaction=False)
            pipe.strlen(name)
            pipe.getrange(name, 0, num_bytes - 1)
            size_bytes, first = pipe.execute()
            if size_bytes:
                return first, size_bytes
            if self._redis.hdel(self._notes, key):
                self._announce(self._redis, "went", key)
        return None

    def read(self, key: BlockKey, start: int, stop: int) -> bytes:
        with self._gate("reading a block", stop - start):
            data: bytes = self._redis.getrange(self._block(key), start, stop - 1)
            return data

    def write(self, key: BlockKey, note: bytes, data: memoryview) -> None:
        sized = data.nbytes.to_bytes(_SIZE_BYTES, "little") + note
        with self._gate("writing a block"):
            pipe = self._redis.pipeline(transaction=True)
            pipe.set(self._block(key), data)
            pipe.hset(self._notes, key, sized)
            self._announce(pipe, "came", key)
            pipe.execute()

    def remove(self, key: BlockKey) -> bool:
        with self._gate("dropping a block"):
            pipe = self._redis.pipeline(transaction=True)
            pipe.delete(self._block(key))
            pipe.hdel(self._notes, key)
            self._announce(pipe, "went", key)
            return any(pipe.execute()[:2])

    def changes(self) -> RemoteChanges:
        with self._lock, self._gate("asking for changes", MAX_LISTING_BYTES):
            stream = self._redis.xinfo_stream(self._stream) if self._has_stream() else None
            last = "0-0" if stream is None else _text(stream["last-generated-id"])
            if self._seen is None or not self._follows(stream):
                changes = self._everything()
            else:
                changes = self._since(self._seen)
            self._seen = last
            return changes

    def close(self) -> None:
        self._redis.close()

    # --- inside ---

    def _block(self, key: BlockKey) -> str:
        return f"{self._prefix}:block:{key}"

    @property
    def _notes(self) -> str:
        return f"{self._prefix}:notes"

    @property
    def _stream(self) -> str:
        return f"{self._prefix}:changes"

    def _announce(self, where: Any, what: str, key: BlockKey) -> None:
        where.xadd(self._stream, {"op": what, "key": key}, maxlen=CHANGES, approximate=True)

    def _has_stream(self) -> bool:
        return bool(self._redis.exists(self._stream))

    def _follows(self, stream: Any) -> bool:
        """Does the stream still hold everything since what was seen?

        Not when it was trimmed past that, nor when it was emptied and begun again.
        """
        if stream is None or self._seen is None or not stream["first-entry"]:
            return False
        first = _text(stream["first-entry"][0])
        return _order(first) <= _order(self._seen) <= _order(_text(stream["last-generated-id"]))

    def _everything(self) -> RemoteChanges:
        rows = first_rows(self._redis.hscan_iter(self._notes, count=1000))
        found = [listed(key, sized) for key, sized in rows]
        added = tuple(one for one in found if one is not None)
        return RemoteChanges(added, whole=True, foreign=len(found) - len(added))

    def _since(self, seen: str) -> RemoteChanges:
        rows = self._redis.xrange(self._stream, min=f"({seen}", count=2 * CHANGES)
        told = [(block_key(fields.get(b"key", b"")), fields.get(b"op")) for _, fields in rows]
        last = {key: what for key, what in told if key is not None}
        came = [key for key, what in last.items() if what == b"came"]
        notes = self._redis.hmget(self._notes, came) if came else []
        pairs = [(key, sized) for key, sized in zip(came, notes, strict=True) if sized is not None]
        added = [one for one in (listed(key, sized) for key, sized in pairs) if one is not None]
        gone = set(last) - {one.key for one in added}
        foreign = sum(key is None for key, _ in told) + len(pairs) - len(added)
        return RemoteChanges(tuple(added), tuple(gone), foreign=foreign)

    @contextmanager
    def _gate(self, doing: str, max_bytes: int = 0) -> Iterator[None]:
        """Raises Unreachable, also for replies of more than `max_bytes` beside their own few words."""
        self._bounds.left_bytes = max_bytes + _WORDS_BYTES
        try:
            yield
        except (self._errors, OSError) as error:
            raise Unreachable(f"{doing} in Redis failed: {error}") from error


class _ReplyBounds(threading.local):
    """How many bytes the calls of this thread may still bring."""

    left_bytes = 0


class _BoundedSocket:
    """A socket that ends a reply which is longer than asked for: the library would read all of it."""

    def __init__(self, inner: socket.socket, bounds: _ReplyBounds) -> None:
        self._inner, self._bounds = inner, bounds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def recv(self, num_bytes: int) -> bytes:
        data = self._inner.recv(num_bytes)
        self._took(len(data))
        return data

    def recv_into(self, buffer: Any, *sizes: int) -> int:
        num_bytes = self._inner.recv_into(buffer, *sizes)
        self._took(num_bytes)
        return num_bytes

    def _took(self, num_bytes: int) -> None:
        self._bounds.left_bytes -= num_bytes
        if self._bounds.left_bytes < 0:
            raise ConnectionError("it answers with more than was asked for")


def _bounded(kind: Any, bounds: _ReplyBounds) -> Any:
    """The kind of connection, over sockets that are bounded."""

    def connect(self: Any) -> _BoundedSocket:
        return _BoundedSocket(kind._connect(self), bounds)  # noqa: SLF001 - its only seam

    return type("BoundedConnection", (kind,), {"_connect": connect})


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _order(name: str) -> tuple[int, int]:
    """The place of a stream entry in its stream."""
    time_ms, _, number = name.partition("-")
    return int(time_ms), int(number or 0)
