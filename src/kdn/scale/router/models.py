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
    names = frozenset(str(one["id"]) for one in _models(answer))
    server.models = names or None


async def list_models(forwarder: Forwarder, request: Request) -> Response:
    """The models of all servers that answer, each name once; a refusal where all refuse.

    A name whose servers compute it otherwise than one another has no digest of `weights`.

    Raises Unreachable when no server answers.
    """
    headers = forwarder.headers(request)
    asked = [
        fetch(forwarder.client, f"{server.name}/v1/models", headers, _LIST_S)
        for server in forwarder.fleet.up()
    ]
    answers = [
        one
        for one in await asyncio.gather(*asked, return_exceptions=True)
        if isinstance(one, httpx.Response)
    ]
    if not answers:
        raise Unreachable(
            f"no server answers ({len(forwarder.fleet.servers)} are known); send again in a moment"
        )
    listed = [answer for answer in answers if answer.is_success]
    if not listed:
        (first, *_) = answers
        return Response(first.content, first.status_code, media_type="application/json")
    found = dict[str, dict[str, Any]]()
    for one in (one for answer in listed for one in _models(answer)):
        name, card = str(one["id"]), dict(one)
        if found.get(name, card).get("weights") != card.get("weights"):
            card.pop("weights", None)  # any of these servers may answer
        found[name] = card
    body = {"object": "list", "data": list(found.values())}
    return Response(msgspec.json.encode(body), media_type="application/json")


def _models(answer: httpx.Response) -> list[Mapping[str, Any]]:
    """The models of an answer; none for one that lists none."""
    if not answer.is_success:
        return []
    try:
        listed = msgspec.json.decode(answer.content, type=_Listed)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    return [one for one in listed.data if "id" in one]
