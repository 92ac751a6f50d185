"""The routes by which another kdn reads and writes this one's blocks, within its grant.

A block that a caller may not see is answered exactly as one that is not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import msgspec
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request, Response
from starlette.types import Receive, Scope, Send

from kdn.core import BlockKey
from kdn.errors import BadInput, CorruptBlock, LostBlock
from kdn.serve.auth import caller_of
from kdn.serve.errors import Refused
from kdn.serve.limits import Backpressure, Held
from kdn.serve.store.grants import Grant
from kdn.store import Store, check_whole, pack_note
from kdn.store.block.reader import Handle
from kdn.store.stream.transcode import encode_layers
from kdn.store.tiers.remote.client import first_rows
from kdn.store.tiers.remote.peer import UNREADABLE, PeerChanges

__all__ = ["block_routes"]

_KEY = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{0,15})")
_NOT_HERE = "no such block"
_PIECE_BYTES = 1 << 18
"""Of an answer, handed to a connection as it takes them."""
_ENCODING_THREADS = 16
"""Blocks that are transcoded at one time: the other routes have threads of their own."""
_WRITING_THREADS = 16
"""Blocks that are written at one time: a slow disk does not keep others from what memory has."""


def block_routes(
    store: Store, grant_of: Callable[[Request], Grant], backpressure: Backpressure
) -> APIRouter:
    """The routes over `store`; `grant_of` gives the grant of a caller, and raises for unknown ones.

    What is sent counts in `backpressure` as a body does, until the client has taken it.
    """
    router, encoding = APIRouter(), CapacityLimiter(_ENCODING_THREADS)
    writing = CapacityLimiter(_WRITING_THREADS)

    @router.get("/v1/store/blocks")
    def changes(request: Request) -> Response:
        grant = grant_of(request)
        pages = store.index.pages(request.query_params.get("since", ""))
        seen = (entry for entry in pages.added if grant.reads(entry.family.salt))
        # Readers refuse a longer list: of a larger store they follow a part.
        added = list(first_rows((str(entry.key), pack_note(entry)) for entry in seen))
        removed = [str(key) for key, salt in pages.removed if grant.reads(salt)]
        changes = PeerChanges(pages.cursor, pages.whole, added, removed)
        return _Sent(
            backpressure, msgspec.msgpack.encode(changes), media_type="application/msgpack"
        )

    @router.get("/v1/store/blocks/{key}")
    def read(request: Request, key: str) -> Response:
        grant = grant_of(request)
        wanted = _seen(store, grant, key, reading=True)
        with _opened(store, wanted) as handle:
            data, status, headers = _part(request, handle.buffer.nbytes, handle.read)
        headers["accept-ranges"] = "bytes"
        return _Sent(backpressure, data, status, headers, "application/octet-stream")

    @router.get("/v1/store/blocks/{key}/layers")
    async def layers(request: Request, key: str, start: int, stop: int, codec: str) -> Response:
        """Some layers in another encoding: what a reader on a slow link asks for."""
        grant = grant_of(request)

        def encoded() -> bytes:
            wanted = _seen(store, grant, key, reading=True)
            with _opened(store, wanted) as handle:
                data = encode_layers(wanted, handle, start, stop, codec)
            store.note_delivered(wanted, start, stop - 1, codec, len(data))
            return data

        data = await to_thread.run_sync(encoded, limiter=encoding)
        return _Sent(backpressure, data, media_type="application/msgpack")

    @router.put("/v1/store/blocks/{key}")
    async def write(request: Request, key: str) -> Response:
        grant = grant_of(request)
        data = memoryview(await request.body())
        await to_thread.run_sync(_take_in, store, grant, _key(key), data, limiter=writing)
        return Response(status_code=204)

    @router.delete("/v1/store/blocks/{key}")
    def forget(request: Request, key: str) -> Response:
        grant = grant_of(request)
        if not store.drop(_seen(store, grant, key, reading=False)):
            raise Refused(_NOT_HERE, status=404)
        return Response(status_code=204)

    return router


def _key(given: str) -> BlockKey:
    if not _KEY.fullmatch(given):
        raise BadInput("a block's key is 64 hexadecimal digits")
    return BlockKey(given)


def _seen(store: Store, grant: Grant, given: str, *, reading: bool) -> BlockKey:
    """The key of a block that the caller may know of."""
    entry = store.index.get(_key(given))
    allowed = grant.reads if reading else grant.sees
    if entry is None or not allowed(entry.family.salt):
        raise Refused(_NOT_HERE, status=404)
    return entry.key


def _handle(store: Store, key: BlockKey) -> Handle:
    """Raises Refused where the block is gone, CorruptBlock, and LostBlock where it cannot be opened now."""
    handle = store.tiers.open_local(key)
    if handle is not None:
        return handle
    store.index.refresh()
    if store.tiers.durable.holds(key):
        raise LostBlock("its file cannot be opened")
    raise Refused(_NOT_HERE, status=404)


@contextmanager
def _opened(store: Store, key: BlockKey) -> Iterator[Handle]:
    """The block as this machine holds it. A damaged one is put out of use, and is not there."""
    try:
        with closing(_handle(store, key)) as handle:
            yield handle
    except LostBlock as error:  # it may be whole: a reader must not forget it
        store.index.quarantine(store.tiers.durable, key, error)  # which only counts it
        raise Refused(f"the block cannot be read now: {error}", status=UNREADABLE) from error
    except CorruptBlock as error:  # of the disk: what memory holds was verified
        store.index.quarantine(store.tiers.durable, key, error)
        raise Refused(_NOT_HERE, status=404) from error


def _take_in(store: Store, grant: Grant, key: BlockKey, data: memoryview) -> None:
    try:
        block = check_whole(key, data)
    except CorruptBlock as error:
        raise BadInput(f"what was sent is not a whole block: {error}") from error
    if not grant.sees(block.header.id.salt):
        raise Refused("this key may not write for that tenant", status=403)
    store.put_encoded(block)


def _part(
    request: Request, size_bytes: int, read: Callable[[int, int], memoryview]
) -> tuple[memoryview, int, dict[str, str]]:
    """The whole block, or the range that was asked for, with its status and headers."""
    asked = request.headers.get("range")
    if asked is None:
        return read(0, size_bytes), 200, {}
    found = _RANGE.fullmatch(asked)
    start = int(found[1]) if found else size_bytes
    if found is None or start >= size_bytes:
        raise Refused(f"the range {asked!r} is not within {size_bytes} bytes", status=416)
    stop = min(int(found[2]) + 1 if found[2] else size_bytes, size_bytes)
    if stop <= start:
        raise Refused(f"the range {asked!r} is empty", status=416)
    return read(start, stop), 206, {"content-range": f"bytes {start}-{stop - 1}/{size_bytes}"}


class _Sent(Response):
    """Bytes that count for their caller until the connection has taken them, piece by piece.

    Raises Refused before anything is sent: 429 for the caller's bound, 503 for all's.
    """

    def __init__(
        self,
        backpressure: Backpressure,
        data: bytes | memoryview,
        status: int = 200,
        headers: dict[str, str] | None = None,
        media_type: str | None = None,
    ) -> None:
        super().__init__(data, status, headers, media_type)
        self._backpressure = backpressure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        data, caller = memoryview(self.body), caller_of(scope).name
        with self._backpressure.hold(caller, Held(size_bytes=len(data))):
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            for start in range(0, len(data), _PIECE_BYTES):
                stop = start + _PIECE_BYTES
                piece, more = data[start:stop], stop < len(data)
                await send({"type": "http.response.body", "body": piece, "more_body": more})
