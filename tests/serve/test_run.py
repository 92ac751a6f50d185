"""The door that clients come through."""

from __future__ import annotations

import asyncio
import socket

from kdn.serve.run import listen
from kdn.serve.settings import ServeSettings


def test_small_answers_are_sent_at_once() -> None:
    async def options() -> list[int]:
        told: list[int] = []

        async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            end = writer.get_extra_info("socket")
            told.append(end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        door = listen(ServeSettings(port=0))
        async with await asyncio.start_server(meet, sock=door):
            reader, writer = await asyncio.open_connection(*door.getsockname()[:2])
            await reader.read()
            writer.close()
            await writer.wait_closed()
        return told

    assert asyncio.run(options()) == [1]
