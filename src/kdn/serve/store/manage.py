"""The store managed over HTTP: what the commands of `kdn store` do, for holders of the admin key.

A tenant may look up and count its own blocks; everything else is the admin's.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import IO, Annotated, TypeVar

import msgspec
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from kdn.clock import Clock, SystemClock
from kdn.core import EXACT, BlockKey, Fingerprint
from kdn.core.blocks import MAX_TOKEN_ID
from kdn.errors import BadInput
from kdn.machine.files import system_errors
from kdn.serve.errors import Refused
from kdn.serve.limits import read_json
from kdn.serve.store.grants import Grant
from kdn.store import Store
from kdn.store.admin.bundle import export_blocks, import_blocks
from kdn.store.admin.manage import (
    Which,
    compress,
    copy,
    forget,
    move,
    select,
    warm,
)
from kdn.store.admin.shapes import lookup_shape, quota_shape, stat_shape
from kdn.store.tenants.tenancy import TenantLimits

__all__ = ["LOOKUP_THREADS", "answer", "manage_routes", "read_body"]

GrantOf = Callable[[Request], Grant]
Check = Callable[[Request], None]
_Body = TypeVar("_Body", bound=msgspec.Struct)
_CHUNK_BYTES = 1 << 20
LOOKUP_THREADS = 4
"""Look-ups at one time: a tenant's long ones leave the other routes their threads."""
_ACTING_THREADS = 4
"""That read or write many blocks for an admin, so that readers of blocks find a thread meanwhile."""


class _Lookup(msgspec.Struct, forbid_unknown_fields=True):
    fingerprint: str
    tokens: list[Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN_ID)]]
    salt: str = ""


class _Which(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    keys: list[str] = []
    salt: str | None = None
    fingerprint: str | None = None
    tier: str | None = None
    all: bool = False

    def which(self) -> Which:
        """Raises BadInput when nothing is named: everything must be said."""
        keys = tuple(map(BlockKey, self.keys))
        which = Which(keys, self.salt, self.fingerprint, self.tier)
        if which == Which() and not self.all:
            raise BadInput("say which blocks: keys, salt, fingerprint or tier, or all: true")
        return which


class _Limit(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    salt: str
    limit_bytes: int | None = None
    priority: int | None = None
    forget: bool = False


class _Pin(_Which):
    seconds: Annotated[float, msgspec.Meta(ge=0, le=1e10)] | None = None


class _Carry(_Which):
    to: str
    source: str | None = None


class _Compress(_Which):
    codec: str


def manage_routes(
    store: Store, grant_of: Callable[[Request], Grant], clock: Clock | None = None
) -> APIRouter:
    """The routes over `store`; `grant_of` gives the grant of a caller, and raises for unknown ones."""
    router = APIRouter(prefix="/v1/store")

    def admin(request: Request) -> None:
        if not grant_of(request).admin:
            raise Refused("this needs the admin key of the store", status=403)

    _looking(router, store, grant_of, admin, CapacityLimiter(LOOKUP_THREADS))
    _pinning(router, store, admin, (clock or SystemClock()).wall)
    threads = CapacityLimiter(_ACTING_THREADS)
    _acting(router, store, admin, threads)
    _bundling(router, store, admin, threads)
    return router


def _looking(
    router: APIRouter, store: Store, grant_of: GrantOf, admin: Check, threads: CapacityLimiter
) -> None:
    @router.post("/lookup")
    async def lookup(request: Request) -> Response:
        grant, asked = grant_of(request), await read_body(request, _Lookup)
        if not grant.reads(asked.salt):
            raise Refused("this key may not look up blocks of that tenant", status=403)
        fingerprint = Fingerprint(asked.fingerprint)
        match = await to_thread.run_sync(
            store.match, fingerprint, EXACT, asked.salt, asked.tokens, limiter=threads
        )
        return answer(lookup_shape(match, len(asked.tokens)))

    @router.get("/stat")
    def stat(request: Request) -> Response:
        admin(request)
        store.index.refresh()
        return answer(stat_shape(store.stat()))

    @router.get("/quota")
    def quota(request: Request) -> Response:
        """Every tenant's use for the admin, and for a tenant its own."""
        grant = grant_of(request)
        return answer({s: held for s, held in quota_shape(store).items() if grant.sees(s)})

    def limit(asked: _Limit) -> object:
        """A tenant's quota or priority, from now on, for every process on this store."""
        limits, decided = store.tenancy.limits, TenantLimits(asked.limit_bytes, asked.priority)
        if asked.forget and decided != TenantLimits():
            raise BadInput("forget drops what was decided: leave out limit_bytes and priority")
        if asked.forget:
            limits.forget(asked.salt)
        else:
            limits.decide(asked.salt, decided)
        return quota_shape(store)

    _post(router, admin, "/quota", _Limit, limit)


def _pinning(router: APIRouter, store: Store, admin: Check, wall: Callable[[], float]) -> None:
    pinned = store.tenancy.persistent_pins

    @router.get("/pins")
    def pins(request: Request) -> Response:
        admin(request)
        return answer(pinned.all())

    def pin(asked: _Pin) -> object:
        keys = select(store, asked.which())
        pinned.pin(keys, None if asked.seconds is None else wall() + asked.seconds)
        return {"blocks": len(keys)}

    def unpin(asked: _Which) -> object:
        return {"blocks": pinned.unpin(select(store, asked.which()))}

    _post(router, admin, "/pin", _Pin, pin)
    _post(router, admin, "/unpin", _Which, unpin)


def _acting(router: APIRouter, store: Store, admin: Check, threads: CapacityLimiter) -> None:
    verifying = CapacityLimiter(_ACTING_THREADS)  # minutes, in which others may be asked to clear

    def chosen(asked: _Which) -> list[BlockKey]:
        return select(store, asked.which())

    @router.post("/verify")
    async def verify(request: Request) -> Response:
        admin(request)
        report = await to_thread.run_sync(store.verify, limiter=verifying)
        shape = {"blocks": report.blocks, "size_bytes": report.size_bytes}
        return answer({**shape, "corrupt": list(report.corrupt)})

    def act(path: str, kind: type[_Body], done: Callable[[_Body], object]) -> None:
        _post(router, admin, path, kind, done, threads)

    act("/warm", _Which, lambda asked: warm(store, chosen(asked)))
    act("/clear", _Which, lambda asked: forget(store, chosen(asked), asked.tier))
    act("/copy", _Carry, lambda asked: copy(store, chosen(asked), asked.to, asked.source))
    act("/move", _Carry, lambda asked: move(store, chosen(asked), asked.to, _source(asked)))
    act("/compress", _Compress, lambda asked: compress(store, chosen(asked), asked.codec))


def _post(
    router: APIRouter,
    admin: Check,
    path: str,
    kind: type[_Body],
    act: Callable[[_Body], object],
    threads: CapacityLimiter | None = None,
) -> None:
    """A route of the admin: what `act` answers to a body of that kind, worked out on one of `threads`."""

    async def route(request: Request) -> Response:
        admin(request)
        asked = await read_body(request, kind)
        return answer(await to_thread.run_sync(act, asked, limiter=threads))

    router.add_api_route(path, route, methods=["POST"], name=path.strip("/"))


def _bundling(router: APIRouter, store: Store, admin: Check, threads: CapacityLimiter) -> None:
    @router.post("/export")
    async def export(request: Request) -> Response:
        admin(request)
        asked = await read_body(request, _Which)
        keys = await to_thread.run_sync(select, store, asked.which(), limiter=threads)
        if not keys:
            raise BadInput("there are no such blocks: nothing is exported")
        bundle = await to_thread.run_sync(_bundle, store, keys, limiter=threads)
        return StreamingResponse(_chunks(bundle), media_type="application/x-tar")

    @router.post("/import")
    async def take_in(request: Request) -> Response:
        admin(request)
        body = await request.body()
        taken = await to_thread.run_sync(import_blocks, store, io.BytesIO(body), limiter=threads)
        return answer(taken)


async def read_body(request: Request, kind: type[_Body]) -> _Body:
    """The body as that shape. Raises BadInput."""
    try:
        return msgspec.convert(read_json(await request.body() or b"{}"), kind)
    except (json.JSONDecodeError, msgspec.ValidationError) as error:
        raise BadInput(f"the body does not fit: {error}") from error


def _source(asked: _Carry) -> str:
    if asked.source is None:
        raise BadInput("a move needs its source: the tier that the blocks leave")
    return asked.source


def _bundle(store: Store, keys: list[BlockKey]) -> IO[bytes]:
    """The whole archive in a file, so that memory does not hold it. Raises NoSpace, StoreError."""
    with system_errors("writing an archive in the folder for temporary files"), ExitStack() as undo:
        file = undo.enter_context(tempfile.TemporaryFile())
        export_blocks(store, keys, file)
        file.seek(0)
        undo.pop_all()
        return file


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def answer(shape: object) -> Response:
    """A plain value as JSON."""
    return Response(msgspec.json.encode(shape), media_type="application/json")
