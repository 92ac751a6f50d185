"""From text to stored KV over HTTP: the commands of `kdn store` that need a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request, Response

from kdn.machine.text import counted
from kdn.serve.auth import caller_of
from kdn.serve.errors import Refused
from kdn.serve.limits import Backpressure, Held, check_length
from kdn.serve.service import ServedModel
from kdn.serve.store.grants import Grant
from kdn.serve.store.manage import LOOKUP_THREADS, answer, read_body
from kdn.store import Match, Store
from kdn.store.admin.manage import copy
from kdn.store.admin.shapes import lookup_shape

__all__ = ["Prefiller", "TextStore", "text_routes"]


@dataclass(frozen=True)
class TextStore:
    """Documents of one model over HTTP."""

    model: Prefiller
    served: ServedModel

    def check(self, text: str) -> None:
        """Raise Refused for a text that no context holds, before it is tokenised whole."""
        check_length([text], self.served.vocabulary, self.served.max_context, "text")

    def num_tokens(self, text: str) -> int:
        """Of a text alone. Raises Refused as `check` does."""
        self.check(text)
        return len(self.served.vocabulary.encode(text))


class Prefiller(Protocol):
    """Computes and stores the KV of documents: an open Kdn. Safe from several threads."""

    def prefill(self, text: str, name: str | None = None, salt: str = "") -> int:
        """The number of the document's tokens, whose KV is computed and given to the store."""

    def lookup(self, text: str, name: str | None = None, salt: str = "") -> tuple[Match, int]:
        """What of the document is stored, and how many tokens it has."""


class _Text(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    text: str
    name: str | None = None
    salt: str = ""


_PUT_THREADS = 4
"""Texts that are computed and written at one time: the other routes have threads of their own."""


def text_routes(
    texts: TextStore,
    store: Store,
    grant_of: Callable[[Request], Grant],
    backpressure: Backpressure,
) -> APIRouter:
    """The routes over `texts`; a tenant puts for itself, and for all only the admin does.

    A text that is put counts in `backpressure` as any other prompt.
    """
    router, threads = APIRouter(prefix="/v1/store"), CapacityLimiter(_PUT_THREADS)
    looking = CapacityLimiter(LOOKUP_THREADS)

    @router.post("/put")
    async def put_text(request: Request) -> Response:
        grant, asked = grant_of(request), await read_body(request, _Text)
        if not grant.sees(asked.salt):
            raise Refused("this key may not write for that tenant", status=403)

        def put() -> int:
            tokens = texts.model.prefill(asked.text, asked.name, asked.salt)
            store.flush()
            _make_durable(store, *texts.model.lookup(asked.text, asked.name, asked.salt))
            return tokens

        caller = caller_of(request.scope).name
        with backpressure.hold(caller, Held(requests=1)):
            tokens = await to_thread.run_sync(texts.num_tokens, asked.text, limiter=threads)
            with backpressure.hold(caller, Held(tokens=tokens)):
                tokens = await to_thread.run_sync(put, limiter=threads)
        return answer({"salt": asked.salt, "tokens": tokens})

    @router.post("/lookup-text")
    async def lookup(request: Request) -> Response:
        grant, asked = grant_of(request), await read_body(request, _Text)
        if not grant.reads(asked.salt):
            raise Refused("this key may not look up blocks of that tenant", status=403)

        def find() -> tuple[Match, int]:
            texts.check(asked.text)
            return texts.model.lookup(asked.text, asked.name, asked.salt)

        return answer(lookup_shape(*await to_thread.run_sync(find, limiter=looking)))

    return router


def _make_durable(store: Store, found: Match, num_tokens: int) -> None:
    """What is answered is stored for good: writing behind promises nothing.

    Raises StoreError or NoSpace of the tier that refuses, Refused when part of the text is nowhere.
    """
    durable = store.tiers.durable
    missing = [hit.id.key for hit in found.hits if not durable.holds(hit.id.key)]
    copied = copy(store, missing, durable.name)
    if copied.missing or found.num_tokens < num_tokens:
        raise Refused(
            f"only {found.num_tokens} of {counted(num_tokens, 'token')} could be stored: look at /metrics for"
            " what the store refuses, and send it again",
            status=503,
            code="not_stored",
            retry_after_s=5,
        )
