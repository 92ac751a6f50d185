"""What the server is and how it fares: models, health, version, metrics."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Response

from kdn.serve.openai.context import RequestContext
from kdn.serve.openai.parse import adapter_of
from kdn.serve.openai.responses import ModelCard, ModelList

__all__ = ["about_routes"]

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def about_routes(desk: RequestContext, version: str) -> APIRouter:
    """The routes, bound to one server's parts."""
    router = APIRouter()
    cards = _cards(desk)

    @router.get("/v1/models")
    async def models() -> Response:
        return _json(ModelList(list(cards.values())))

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        adapter_of(desk.service, name)
        return _json(cards[name])

    @router.get("/health")
    @router.get("/ping")
    async def health() -> Response:
        desk.service.load()
        return Response()

    @router.get("/version")
    async def tell_version() -> Response:
        return _json(_Version(version))

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(desk.metrics.text(), media_type=_METRICS_TYPE)

    return router


class _Version(msgspec.Struct):
    version: str


def _cards(desk: RequestContext) -> dict[str, ModelCard]:
    service, created = desk.service, desk.created()
    cards = {service.name: ModelCard(service.name, created, service.max_context)}
    for name in service.adapters:
        cards[name] = ModelCard(name, created, service.max_context, parent=service.name)
    return cards


def _json(shape: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(shape), media_type="application/json")
