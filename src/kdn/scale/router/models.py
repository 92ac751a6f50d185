"""Which models stand behind a router: each server is asked, and all of them are one list."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import msgspec
from fastapi import Request, Response

from kdn.errors import Unreachable
from kdn.scale.router.fetch import fetch
from kdn.scale.router.fleet import FleetServer
from kdn.scale.router.forward import Forwarder

__all__ = ["learn_models", "list_models"]

_LIST_S = 5.0
"""A server that does not list its models in it is left out."""


class _Listed(msgspec.Struct):
    data: Sequence[Mapping[str, Any]] = ()


async def learn_models(forwarder: Forwarder, server: FleetServer, timeout_s: float) -> None:
    """Note what a server says that it serves. One that asks for a caller's key is not known."""
    key = forwarder.server_key
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        answer = await fetch(forwarder.client, f"{server.name}/v1/models", headers, timeout_s)
    except httpx.HTTPError:
        return  # its health is asked for elsewhere
    names = frozenset(str(one["id"]) for one in _told_by(server, answer))
    server.models = names or None


async def list_models(forwarder: Forwarder, request: Request) -> Response:
    """The models of all servers that answer, each name once; a refusal where all refuse.

    A name that any server of the fleet computes otherwise than another has no digest of `weights`, by what
    each told last: one that is down just now may be the next to answer.

    Raises Unreachable when no server answers.
    """
    headers, servers = forwarder.headers(request), forwarder.fleet.up()
    asked = [
        fetch(forwarder.client, f"{server.name}/v1/models", headers, _LIST_S) for server in servers
    ]
    answers = [
        (server, one)
        for server, one in zip(
            servers, await asyncio.gather(*asked, return_exceptions=True), strict=True
        )
        if isinstance(one, httpx.Response)
    ]
    if not answers:
        raise Unreachable(
            f"no server answers ({len(forwarder.fleet.servers)} are known); send again in a moment"
        )
    if not any(answer.is_success for _, answer in answers):
        (_, first), *_ = answers
        return Response(first.content, first.status_code, media_type="application/json")
    cards = [dict(one) for server, answer in answers for one in _told_by(server, answer)]
    found = {str(card["id"]): card for card in cards}
    for name, card in found.items():
        known = forwarder.fleet.servers.values()
        told = [server.weights[name] for server in known if name in server.weights]
        if any(digest != told[0] for digest in told):
            card.pop("weights", None)  # any of these servers may answer
    body = {"object": "list", "data": list(found.values())}
    return Response(msgspec.json.encode(body), media_type="application/json")


def _told_by(server: FleetServer, answer: httpx.Response) -> list[Mapping[str, Any]]:
    """The models that a server's answer lists, whose digests are noted; one that lists none changes none."""
    models = _models(answer)
    if models:
        server.weights = {str(one["id"]): one.get("weights") for one in models}
    return models


def _models(answer: httpx.Response) -> list[Mapping[str, Any]]:
    """The models of an answer; none for one that lists none."""
    if not answer.is_success:
        return []
    try:
        listed = msgspec.json.decode(answer.content, type=_Listed)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    return [one for one in listed.data if "id" in one]
