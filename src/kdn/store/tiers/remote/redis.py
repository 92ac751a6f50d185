"""Blocks in Redis: one value a block, a hash of notes, and a stream that tells of changes.

PREFIX:block:KEY   the encoded block
PREFIX:notes       hash: key -> size and note
PREFIX:changes     stream of (op, key), the last CHANGES of them
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

from kdn.clock import Clock, SystemClock
from kdn.core import BlockKey
from kdn.errors import BadConfig, MissingExtra, NoSpace, Unreachable
from kdn.store.tiers.remote.client import (
    LISTING_S,
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
_PIECE_BYTES = 1 << 16
_CHECKED = 4
"""Notes whose values are looked for, for each change that is told: few are then without a value."""
_MOST_CHECKED = 4000
_TOGETHER = 1000
"""Commands that are sent before the first answer is read."""


class RedisRemote(Remote):
    """Blocks under `prefix` in the Redis at `url` (`redis://`, `rediss://` for TLS, `unix://`).

    Redis may evict values by itself; a block that it lost is a miss.  Its note goes when the block is asked
    for, at the first look at all notes, and in the course of later ones.
    """

    name = "redis"

    @classmethod
    def from_settings(cls, settings: FarSettings) -> Self | None:
        if settings.redis_url is None:
            return None
        return cls(settings.redis_url, timeout_s=settings.far_timeout_s)

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "kdn",
        timeout_s: float = 2.0,
        clock: Clock | None = None,
    ) -> None:
        try:
            import redis
        except ImportError as error:
            raise MissingExtra("a Redis tier needs: pip install 'kdn[redis]'") from error
        self._errors, self._refusal = redis.RedisError, redis.ResponseError
        self._overtaken = redis.WatchError
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._bounds = _ReplyBounds(clock or SystemClock())
        self._lock = threading.Lock()
        self._seen: str | None = None
        self._looked = 0
        """Where the look over all notes has got to."""
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
            if self._redis.hexists(self._notes, key):
                self._forget([key])
        return None

    def read(self, key: BlockKey, start: int, stop: int) -> bytes:
        with self._gate("reading a block", stop - start):
            data: bytes = self._redis.getrange(self._block(key), start, stop - 1)
            return data

    def write(self, key: BlockKey, note: bytes, data: memoryview) -> None:
        sized = data.nbytes.to_bytes(_SIZE_BYTES, "little") + note
        with self._gate("writing a block", may_refuse=True):
            pipe = self._redis.pipeline(transaction=True)
            pipe.set(self._block(key), data)
            pipe.hset(self._notes, key, sized)
            self._announce(pipe, "came", key)
            pipe.execute()

    def remove(self, key: BlockKey) -> bool:
        with self._gate("dropping a block", may_refuse=True):
            try:
                return self._drop(key, tells=True)
            except self._refusal:  # a full one takes no transaction and no word: others miss it
                return self._drop(key, tells=False)

    def changes(self) -> RemoteChanges:
        with (
            self._lock,
            self._gate("asking for changes", MAX_LISTING_BYTES, within_s=LISTING_S),
        ):
            has_stream = self._redis.exists(self._stream)
            stream = self._redis.xinfo_stream(self._stream) if has_stream else None
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

    def _drop(self, key: BlockKey, *, tells: bool) -> bool:
        pipe = self._redis.pipeline(transaction=tells)
        pipe.hdel(self._notes, key)
        pipe.delete(self._block(key))
        if tells:
            self._announce(pipe, "went", key)
        return any(pipe.execute()[:2])

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
        ours = [one for one in found if one is not None]
        gone = self._without_value([one.key for one in ours])
        self._forget(gone)
        added = tuple(one for one in ours if one.key not in gone)
        return RemoteChanges(added, whole=True, foreign=len(found) - len(ours))

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
        self._check_some(min(_CHECKED * len(told), _MOST_CHECKED))
        return RemoteChanges(tuple(added), tuple(gone), foreign=foreign)

    def _check_some(self, count: int) -> None:
        """Go on with some notes where the last look ended, and begin again after the last one.

        Each process that follows the stream hears of those that go, this one too.
        """
        if count:
            self._looked, rows = self._redis.hscan(self._notes, self._looked, count=count)
            keys = [key for key in map(block_key, rows) if key is not None]
            self._forget(self._without_value(keys))

    def _without_value(self, keys: list[BlockKey]) -> set[BlockKey]:
        """Those of the noted blocks that Redis has evicted."""
        gone: set[BlockKey] = set()
        for some in _groups(keys):
            pipe = self._redis.pipeline(transaction=False)
            for key in some:
                pipe.exists(self._block(key))
            gone.update(key for key, there in zip(some, pipe.execute(), strict=True) if not there)
        return gone

    def _forget(self, keys: Iterable[BlockKey]) -> None:
        """The notes of blocks without a value go, and the stream tells of them.

        They stay where another process writes one of the blocks meanwhile, and where Redis takes no writes.
        """
        for some in _groups(list(keys)):
            names = [self._block(key) for key in some]
            with self._redis.pipeline() as pipe, suppress(self._overtaken, self._refusal):
                pipe.watch(*names)
                if pipe.exists(*names):
                    continue
                pipe.multi()
                pipe.hdel(self._notes, *some)
                for key in some:
                    self._announce(pipe, "went", key)
                pipe.execute()

    @contextmanager
    def _gate(
        self,
        doing: str,
        max_bytes: int = 0,
        *,
        within_s: float | None = None,
        may_refuse: bool = False,
    ) -> Iterator[None]:
        """Raises Unreachable, also for replies of more than `max_bytes` beside their own few words, and
        for what has not ended `within_s`, by default the time-out.  Raises NoSpace for what Redis refuses
        where it `may_refuse`: it is full, is a replica, or gives this user no right to write.
        """
        self._bounds.begin(max_bytes + _WORDS_BYTES, within_s or self._timeout_s)
        try:
            yield
        except (self._errors, OSError) as error:
            if may_refuse and isinstance(error, self._refusal):
                raise NoSpace(f"Redis refused {doing}: {str(error)[-200:]}") from error
            raise Unreachable(f"{doing} in Redis failed: {error}") from error


class _ReplyBounds(threading.local):
    """How many bytes the calls of this thread may still bring, and until when."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._left_bytes, self._deadline_s = 0, 0.0

    def begin(self, max_bytes: int, within_s: float) -> None:
        """A call begins."""
        self._left_bytes, self._deadline_s = max_bytes, self._clock.now() + within_s

    def took(self, num_bytes: int) -> None:
        """So many bytes came. Raises ConnectionError where they are too many, or too late."""
        self._left_bytes -= num_bytes
        if self._left_bytes < 0:
            raise ConnectionError("it answers with more than was asked for")
        self.check_time()

    def check_time(self) -> None:
        """Raises ConnectionError where the call should have ended."""
        if self._clock.now() > self._deadline_s:
            raise ConnectionError("its answer did not end in time")


class _BoundedSocket:
    """A socket that ends a reply which is longer than asked for, or drips: the library would read all of
    it, and its time-out is one of each piece."""

    def __init__(self, inner: socket.socket, bounds: _ReplyBounds) -> None:
        self._inner, self._bounds = inner, bounds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def recv(self, num_bytes: int) -> bytes:
        data = self._inner.recv(num_bytes)
        self._bounds.took(len(data))
        return data

    def recv_into(self, buffer: Any, *sizes: int) -> int:
        num_bytes = self._inner.recv_into(buffer, *sizes)
        self._bounds.took(num_bytes)
        return num_bytes

    def sendall(self, data: Any) -> None:
        """In pieces: over TLS each send has the whole time-out."""
        whole = memoryview(data)
        for start in range(0, whole.nbytes, _PIECE_BYTES):
            self._bounds.check_time()
            self._inner.sendall(whole[start : start + _PIECE_BYTES])


def _bounded(kind: Any, bounds: _ReplyBounds) -> Any:
    """The kind of connection, over sockets that are bounded."""

    def connect(self: Any) -> _BoundedSocket:
        return _BoundedSocket(kind._connect(self), bounds)  # noqa: SLF001 - its only seam

    return type("BoundedConnection", (kind,), {"_connect": connect})


def _groups(keys: list[BlockKey]) -> Iterator[list[BlockKey]]:
    return (keys[at : at + _TOGETHER] for at in range(0, len(keys), _TOGETHER))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _order(name: str) -> tuple[int, int]:
    """The place of a stream entry in its stream."""
    time_ms, _, number = name.partition("-")
    return int(time_ms), int(number or 0)
