"""What the server is and how it fares: models, health, version, metrics."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Response
from msgspec import UNSET

from kdn.errors import EngineFailed
from kdn.serve.openai.context import RequestContext
from kdn.serve.openai.responses import ModelCard, ModelList, json_response

__all__ = ["about_routes"]

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def about_routes(context: RequestContext, version: str) -> APIRouter:
    """The routes, bound to one server's parts."""
    router = APIRouter()
    created = context.created()

    @router.get("/v1/models")
    async def models() -> Response:
        return json_response(ModelList(list(_cards(context, created).values())))

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        cards = _cards(context, created)
        if name not in cards:
            context.find(name)  # which refuses it
        return json_response(cards[name])

    @router.get("/health")
    @router.get("/ping")
    async def health() -> Response:
        stopped = [one.name for one in context.models.all if not one.engine.is_running]
        if stopped:
            raise EngineFailed(f"the engine of {stopped[0]} has stopped; restart the server")
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


def _cards(context: RequestContext, created: int) -> dict[str, ModelCard]:
    cards = {}
    for served in context.models.all:
        cards[served.name] = ModelCard(
            served.name, created, served.max_context, weights=served.weights or UNSET
        )
        for name in served.adapters:
            cards[name] = ModelCard(
                name,
                created,
                served.max_context,
                parent=served.name,
                weights=served.weights_with(name) or UNSET,
            )
    embedder = context.models.first.embedder
    if embedder is not None:
        cards[embedder.name] = ModelCard(embedder.name, created, embedder.max_tokens)
    return cards
