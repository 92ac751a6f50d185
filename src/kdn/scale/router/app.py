"""The router as an application: OpenAI's routes, passed on; its own health, metrics and servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import msgspec
from fastapi import FastAPI, Request, Response
from starlette.middleware import Middleware

from kdn.clock import Clock, SystemClock
from kdn.core import JctModel, PrefillTime
from kdn.errors import BadConfig, Unreachable
from kdn.scale.router.fetch import fetch
from kdn.scale.router.fleet import Fleet
from kdn.scale.router.forward import Forwarder, read_body
from kdn.scale.router.models import learn_models, list_models
from kdn.scale.router.numbers import RouterNumbers
from kdn.scale.router.rules import RULES
from kdn.serve import ServeSettings
from kdn.serve.auth import Auth, read_keys
from kdn.serve.errors import Refused, response, speak_openai
from kdn.serve.limits import Backpressure, Shutdown

__all__ = ["RouterSettings", "create_router_app"]

_PASSED_ON = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/decisions",
    "/score",
    "/v1/score",
    "/classify",
    "/v1/classify",
    "/rerank",
    "/v1/rerank",
    "/v2/rerank",
    "/tokenize",
    "/detokenize",
)
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TOKENS_PER_S = 5000.0


@dataclass(frozen=True)
class RouterSettings:
    """Which servers, and how to choose among them. Raises BadConfig for what cannot be."""

    servers: Sequence[str]
    rule: str = "kv-aware"
    prefill: PrefillTime = field(default_factory=lambda: JctModel(0.0, 1 / _TOKENS_PER_S, 0.0, 0.0))
    """How long prefills take; how much slower each server is, is measured."""
    server_key: str | None = None
    capacity_chunks: int = 1 << 18
    """Chunks of 512 characters that each server is believed to hold."""
    health_s: float = 2.0
    """Time between two questions for a server's health."""
    health_timeout_s: float = 5.0
    """A server that does not answer in it, twice, is down."""
    connect_s: float = 3.0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise BadConfig(f"no routing rule {self.rule!r}; there are {', '.join(RULES)}")
        for server in self.servers:
            try:
                url = httpx.URL(server)
            except httpx.InvalidURL as error:
                raise BadConfig(
                    f"the server {server!r} is no address ({error}); write http://HOST:PORT"
                ) from error
            known = url.scheme in ("http", "https") and (url.port is None or 0 < url.port < 1 << 16)
            if not known or not url.host:
                raise BadConfig(f"the server {server!r} is no address; write http://HOST:PORT")
            if url.path not in ("", "/"):
                raise BadConfig(f"the server {server!r} has a path; leave {url.path} out")


def create_router_app(
    router: RouterSettings,
    settings: ServeSettings,
    *,
    version: str = "0",
    clock: Clock | None = None,
) -> FastAPI:
    """The router's application; its servers are asked for their health while it runs.

    Raises BadConfig where callers' keys have salts and one key is sent in place of them all.
    """
    if router.server_key is not None and any(key.salts for key in read_keys(settings)):
        raise BadConfig(
            "some callers' keys have salts, and with --server-key the servers take all callers for one:"
            " leave --server-key out, so that each caller's own key is sent, or give keys without salts"
        )
    clock = clock or SystemClock()
    fleet = Fleet([server.rstrip("/") for server in router.servers], router.prefill,
                  router.capacity_chunks)  # fmt: skip
    numbers, shutdown = RouterNumbers(fleet), Shutdown(settings.grace_s, clock)
    timeout = httpx.Timeout(None, connect=router.connect_s)
    # shorter than any server's own, so that none closes a connection as it is used again
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=2)
    client = httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False)
    forwarder = Forwarder(fleet, RULES[router.rule](), client, clock, numbers, router.server_key)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        watching = [asyncio.create_task(_watch(forwarder, name, router)) for name in fleet.servers]
        try:
            yield
        finally:
            for task in watching:
                task.cancel()
            await client.aclose()

    app = FastAPI(
        title="kdn router",
        version=version,
        middleware=[Middleware(Auth, settings, Backpressure(settings.limits), shutdown)],
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.shutdown = shutdown
    _add_routes(app, forwarder)
    speak_openai(app)
    return app


def _add_routes(app: FastAPI, forwarder: Forwarder) -> None:
    async def pass_on(request: Request) -> Response:
        raw = await request.body()
        try:
            return await forwarder.answer(request, read_body(raw), raw)
        except Unreachable as error:
            raise Refused(str(error), status=503, code="no_server", retry_after_s=1) from error

    for path in _PASSED_ON:
        app.add_api_route(path, pass_on, methods=["POST"], response_model=None)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        try:
            return await list_models(forwarder, request)
        except Unreachable as error:
            raise Refused(str(error), status=503, code="no_server", retry_after_s=1) from error

    @app.get("/health")
    @app.get("/ping")
    async def health() -> Response:
        if not forwarder.fleet.up():
            refused = Refused("no server answers", status=503, code="no_server", retry_after_s=1)
            return response(refused.fault)
        return Response()

    @app.get("/v1/router")
    async def servers() -> Response:
        now_s = forwarder.clock.now()
        shown = [
            {
                "server": name,
                "up": server.is_up,
                "running": server.num_running,
                "wait_s": server.wait_s(now_s),
                "slowdown": server.slowdown,
                "stored_chunks": len(server.stored),
                "models": sorted(server.models or ()),
            }
            for name, server in forwarder.fleet.servers.items()
        ]
        return Response(msgspec.json.encode({"servers": shown}), media_type="application/json")

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(forwarder.numbers.text(), media_type=_METRICS_TYPE)


async def _watch(forwarder: Forwarder, name: str, router: RouterSettings) -> None:
    """Ask a server for its health, again and again: up with one answer, down without two."""
    server, missed = forwarder.fleet.servers[name], 0
    while True:
        try:
            asked = fetch(forwarder.client, f"{name}/health", {}, router.health_timeout_s)
            is_well = (await asked).is_success
        except httpx.HTTPError:
            is_well = False
        missed = 0 if is_well else missed + 1
        if is_well:
            server.is_up = True
            await learn_models(forwarder, server, router.health_timeout_s)
        elif missed >= 2 and server.is_up:
            forwarder.lose(name)
        await asyncio.sleep(router.health_s)
