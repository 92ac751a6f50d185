"""The listening socket that clients connect to."""

from __future__ import annotations

import asyncio
import socket

from kdn.serve.run import listen
from kdn.serve.settings import ServeSettings


def test_small_answers_are_sent_at_once() -> None:
    async def options() -> list[int]:
        found: list[int] = []

        async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            end = writer.get_extra_info("socket")
            found.append(end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listening = listen(ServeSettings(port=0))
        async with await asyncio.start_server(meet, sock=listening):
            reader, writer = await asyncio.open_connection(*listening.getsockname()[:2])
            await reader.read()
            writer.close()
            await writer.wait_closed()
        return found

    assert asyncio.run(options()) == [1]
