"""A node: a store over HTTP, without any model."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from starlette.middleware import Middleware

from kdn.clock import SystemClock
from kdn.serve.auth import Auth
from kdn.serve.errors import Refused, speak_openai
from kdn.serve.limits import Backpressure, Shutdown
from kdn.serve.settings import ServeSettings
from kdn.serve.store.blocks import block_routes
from kdn.serve.store.grants import Grant, grant_for
from kdn.serve.store.manage import manage_routes
from kdn.serve.store.texts import TextStore, text_routes
from kdn.store import Store

__all__ = ["create_node_app", "mount_store"]


def create_node_app(
    store: Store, settings: ServeSettings, grants: tuple[Grant, ...], *, version: str = "0"
) -> FastAPI:
    """The node's application. `settings.api_keys` must be the tokens of `grants`.

    The store stays the caller's to close.
    """
    backpressure = Backpressure(settings.limits)
    shutdown = Shutdown(settings.grace_s, SystemClock())
    app = FastAPI(
        title="kdn node",
        version=version,
        middleware=[Middleware(Auth, settings, backpressure, shutdown)],
        redoc_url=None,
    )
    app.state.shutdown = shutdown
    app.state.backpressure = backpressure
    mount_store(app, store, grants)

    @app.get("/health")
    def health() -> Response:
        return Response()

    speak_openai(app)
    return app


def mount_store(
    app: FastAPI, store: Store, grants: tuple[Grant, ...], texts: TextStore | None = None
) -> None:
    """The store's routes, each within the caller's grant; with `texts` those for documents too.

    Texts and the blocks of answers count in the backpressure of `app`, which `create_app` or
    `create_node_app` made.
    """

    def grant_of(request: Request) -> Grant:
        grant = grant_for(request.headers.get("authorization", ""), grants)
        if grant is None:
            raise Refused("this key does not open the store", status=401)
        return grant

    app.include_router(block_routes(store, grant_of, app.state.backpressure))
    app.include_router(manage_routes(store, grant_of))
    if texts is not None:
        app.include_router(text_routes(texts, store, grant_of, app.state.backpressure))
