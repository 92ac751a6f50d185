"""What the server is and how it fares: models, health, version, metrics."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Response

from kdn.errors import EngineFailed
from kdn.serve.openai.context import RequestContext
from kdn.serve.openai.responses import ModelCard, ModelList, json_response

__all__ = ["about_routes"]

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def about_routes(context: RequestContext, version: str) -> APIRouter:
    """The routes, bound to one server's parts."""
    router = APIRouter()
    cards = _cards(context)

    @router.get("/v1/models")
    async def models() -> Response:
        return json_response(ModelList(list(cards.values())))

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name not in cards:
            context.adapter(name)  # which refuses it
        return json_response(cards[name])

    @router.get("/health")
    @router.get("/ping")
    async def health() -> Response:
        if not context.model.engine.is_running:
            raise EngineFailed("the engine has stopped; restart the server")
        return Response()

    @router.get("/version")
    async def tell_version() -> Response:
        return json_response(_Version(version))

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(await context.metrics.text(), media_type=_METRICS_TYPE)

    return router


class _Version(msgspec.Struct):
    version: str


def _cards(context: RequestContext) -> dict[str, ModelCard]:
    served, created = context.model, context.created()
    cards = {served.name: ModelCard(served.name, created, served.max_context)}
    for name in served.adapters:
        cards[name] = ModelCard(name, created, served.max_context, parent=served.name)
    if served.embedder is not None:
        name = served.embedder.name
        cards[name] = ModelCard(name, created, served.embedder.max_tokens)
    return cards
