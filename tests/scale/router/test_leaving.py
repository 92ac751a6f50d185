"""A client that leaves, or a server that is left, holds nothing: no running request, no open answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Message

from kdn.clock import ManualClock
from kdn.core import JctModel
from kdn.scale.router import RULES, Fleet
from kdn.scale.router.forward import Forwarder
from kdn.scale.router.numbers import RouterNumbers

TOKEN = b'data: {"choices": [{"text": "a"}]}\n\n'


class Open(httpx.AsyncByteStream):
    """An answer that begins so and never ends."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.closed = True


def answering(answers: dict[str, httpx.Response]) -> Forwarder:
    """A router before servers of these names that answer so."""
    fleet = Fleet([f"http://{name}" for name in answers], JctModel(0.0, 1.0, 0.0, 0.0))
    transport = httpx.MockTransport(lambda asked: answers[asked.url.host])
    client = httpx.AsyncClient(transport=transport)
    return Forwarder(fleet, RULES["round-robin"](), client, ManualClock(), RouterNumbers(fleet))


async def ask(forwarder: Forwarder) -> Response:
    """What a client gets that stays until the answer begins."""

    async def stay() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    scope: Message = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "headers": [],
        "query_string": b"",
        "server": ("router", 80),
        "scheme": "http",
    }
    return await forwarder.answer(Request(scope, stay), {"prompt": "x", "stream": True}, b"{}")


@pytest.mark.parametrize("version", ["2.3", "2.4"])
def test_a_client_that_leaves_before_a_stream_s_first_piece_ends_its_request(version: str) -> None:
    """Servers of ASGI 2.3 are asked whether it left, those of 2.4 tell as they send."""
    source = Open(TOKEN)
    stream = httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=source)
    forwarder = answering({"a": stream})
    (server,) = forwarder.fleet.servers.values()

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        if version == "2.4":
            raise OSError("nobody reads")
        await asyncio.Event().wait()

    async def leave() -> tuple[int, bool]:
        answer = await ask(forwarder)
        running = server.num_running
        try:
            await answer({"type": "http", "asgi": {"spec_version": version}}, gone, send)
        except ClientDisconnect:
            assert version == "2.4"
        return running, source.closed

    assert asyncio.run(leave()) == (1, True)
    assert server.num_running == 0


def test_a_refusal_without_an_end_is_closed_as_another_server_is_asked() -> None:
    """8 MiB of it are read; the rest would hold its connection for ever."""
    refusal = Open(b"\0" * (9 << 20))
    forwarder = answering(
        {
            "a": httpx.Response(503, stream=refusal),
            "b": httpx.Response(200, stream=httpx.ByteStream(b"{}")),
        }
    )

    async def found() -> tuple[Response, bool]:
        return await ask(forwarder), refusal.closed  # the loop's own end would close it

    answer, closed = asyncio.run(found())
    assert (answer.status_code, answer.body, closed) == (200, b"{}", True)
    assert [one.num_running for one in forwarder.fleet.servers.values()] == [0, 0]
