"""Joins the parts of one server into an ASGI application."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import partial

from anyio import CapacityLimiter
from fastapi import FastAPI
from starlette.middleware import Middleware

from kdn.clock import Clock, SystemClock
from kdn.serve.auth import Auth
from kdn.serve.batch.routes import Batches, batch_routes
from kdn.serve.errors import speak_openai
from kdn.serve.limits import Backpressure, Shutdown
from kdn.serve.metrics import Metrics, RecentRequests
from kdn.serve.openai.adapters import adapter_routes
from kdn.serve.openai.chat import chat_routes
from kdn.serve.openai.completions import completion_routes
from kdn.serve.openai.context import RequestContext
from kdn.serve.openai.embeddings import embedding_routes
from kdn.serve.openai.questions import question_routes
from kdn.serve.openai.rag import rag_routes
from kdn.serve.openai.rerank import rerank_routes
from kdn.serve.openai.response_api import response_routes
from kdn.serve.openai.tokenize import token_routes
from kdn.serve.openai.why import why_routes
from kdn.serve.service import ServedModel, ServedModels
from kdn.serve.settings import ServeSettings
from kdn.serve.status import about_routes
from kdn.serve.store.grants import Grant

__all__ = ["create_app"]

_THREADS = 16
"""That make prompts at one time."""
_random_id = partial(secrets.token_hex, 12)


def create_app(
    model: ServedModel,
    settings: ServeSettings,
    *,
    version: str = "0",
    clock: Clock | None = None,
    own_keys: tuple[Grant, ...] = (),
    new_id: Callable[[], str] = _random_id,
    others: Sequence[ServedModel] = (),
) -> FastAPI:
    """The server's application. The model stays the caller's to close, and so do `others`, which are
    answered for by their names.

    The store's routes, if there are any, ask for keys of `own_keys` instead of the API key.
    """
    clock = clock or SystemClock()
    backpressure, shutdown = Backpressure(settings.limits), Shutdown(settings.grace_s, clock)
    models = ServedModels(model, *others)
    metrics = Metrics(models, clock)
    context = RequestContext(
        models,
        settings,
        metrics,
        backpressure,
        shutdown,
        threads=CapacityLimiter(_THREADS),
        compiling=CapacityLimiter(_THREADS),
        telling=CapacityLimiter(1),  # work of Python, which several threads do no sooner
        comparing=CapacityLimiter(_THREADS),
        clock=clock,
        new_id=new_id,
        recent=RecentRequests(clock),
    )
    batches = Batches(context)
    app = FastAPI(
        lifespan=batches.lifespan,
        title="kdn",
        version=version,
        middleware=[
            Middleware(Auth, settings, backpressure, shutdown, own_keys=own_keys),
        ],
        redoc_url=None,
    )
    app.state.shutdown = shutdown
    app.state.recent = context.recent
    app.state.backpressure = backpressure
    has_admin = any(grant.admin for grant in own_keys)
    app.include_router(adapter_routes(context, has_admin=has_admin))
    for routes in (
        chat_routes,
        completion_routes,
        response_routes,
        embedding_routes,
        question_routes,
        rag_routes,
        rerank_routes,
        token_routes,
        why_routes,
    ):
        app.include_router(routes(context))
    app.include_router(batch_routes(batches))
    app.include_router(about_routes(context, version))
    speak_openai(app)
    return app
