"""From text to stored KV over HTTP: the commands of `kdn store` that need a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from kdn.serve.errors import Refused
from kdn.serve.store.grants import Grant
from kdn.serve.store.manage import answer, read_body
from kdn.store import Match
from kdn.store.admin.shapes import lookup_shape

__all__ = ["Prefiller", "text_routes"]


class Prefiller(Protocol):
    """Computes and stores what documents are made of. Safe from several threads."""

    def put_text(self, text: str, name: str | None, salt: str) -> int:
        """The number of tokens whose KV is stored for good when this returns."""
        ...

    def find_text(self, text: str, name: str | None, salt: str) -> tuple[Match, int]:
        """What of the document is stored, and how many tokens it has."""
        ...


class _Text(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    text: str
    name: str | None = None
    salt: str = ""


def text_routes(model: Prefiller, grant_of: Callable[[Request], Grant]) -> APIRouter:
    """The routes over `model`; a tenant puts for itself, and for all only the admin does."""
    router = APIRouter(prefix="/v1/store")

    @router.post("/put")
    async def put(request: Request) -> Response:
        grant, asked = grant_of(request), await read_body(request, _Text)
        if not grant.sees(asked.salt):
            raise Refused("this key may not write for that tenant", status=403)
        tokens = await run_in_threadpool(model.put_text, asked.text, asked.name, asked.salt)
        return answer({"salt": asked.salt, "tokens": tokens})

    @router.post("/lookup-text")
    async def lookup(request: Request) -> Response:
        grant, asked = grant_of(request), await read_body(request, _Text)
        if not grant.reads(asked.salt):
            raise Refused("this key may not look up blocks of that tenant", status=403)
        found = await run_in_threadpool(model.find_text, asked.text, asked.name, asked.salt)
        return answer(lookup_shape(*found))

    return router
