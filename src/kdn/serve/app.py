"""Joins the parts of one server into an ASGI application."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from kdn.clock import Clock, SystemClock
from kdn.errors import KdnError
from kdn.serve.auth import Auth
from kdn.serve.errors import fault_of, http_fault, response, validation_fault
from kdn.serve.metrics import Metrics
from kdn.serve.openai.chat import chat_routes
from kdn.serve.openai.completions import completion_routes
from kdn.serve.openai.context import RequestContext
from kdn.serve.openai.embeddings import embedding_routes
from kdn.serve.openai.rerank import rerank_routes
from kdn.serve.openai.score import one_token_routes
from kdn.serve.openai.tokenize import token_routes
from kdn.serve.service import Service
from kdn.serve.settings import ServeSettings
from kdn.serve.status import about_routes
from kdn.serve.store.grants import Grant

__all__ = ["create_app", "speak_openai"]


def create_app(
    service: Service,
    settings: ServeSettings,
    *,
    version: str = "",
    clock: Clock | None = None,
    own_keys: tuple[Grant, ...] = (),
    new_id: Callable[[], str] = lambda: secrets.token_hex(12),
) -> FastAPI:
    """The server's application. The service stays the caller's to close.

    The store's routes, if there are any, ask for keys of `own_keys` instead of the API key.
    """
    clock = clock or SystemClock()
    desk = RequestContext(service, settings, Metrics(service, clock), clock, new_id)
    app = FastAPI(
        title="kdn",
        version=version,
        middleware=[Middleware(Auth, settings=settings, own_keys=bool(own_keys))],
        redoc_url=None,
    )
    for routes in (
        chat_routes,
        completion_routes,
        embedding_routes,
        one_token_routes,
        rerank_routes,
        token_routes,
    ):
        app.include_router(routes(desk))
    app.include_router(about_routes(desk, version))
    speak_openai(app)
    return app


def speak_openai(app: FastAPI) -> None:
    """Every error leaves in OpenAI's shape."""

    async def on_kdn(_request: Request, error: Exception) -> Response:
        return response(fault_of(error))

    async def on_http(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        cause = error.__cause__
        return response(fault_of(cause) if isinstance(cause, KdnError) else http_fault(error))

    async def on_shape(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return response(validation_fault(error))

    app.add_exception_handler(KdnError, on_kdn)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_shape)
    app.add_exception_handler(Exception, on_kdn)
