"""A proxy on loopback that carries bytes to a server, or hangs, drips, cuts and never ends, as it is told."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from contextlib import suppress

__all__ = ["FaultyProxy"]

ENDLESS = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\n\r\n"


class FaultyProxy:
    """Carries connections to `target_port`. `mode` is `None`, or how it fails; may change at any time."""

    def __init__(self, target_port: int) -> None:
        self.mode: str | None = None
        self.counts: Counter[str] = Counter()
        """Connections and pieces that met each fault."""
        self.port = 0
        self._target_port = target_port
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._work, name="proxy", daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def close(self) -> None:
        """End all connections."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._carry, "127.0.0.1", 0, backlog=256)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        for writer in self._writers:
            writer.transport.abort()
        self._loop.run_until_complete(asyncio.sleep(0.05))  # they close in the loop's next turns
        self._loop.close()

    async def _carry(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self._writers.add(back)
        with suppress(OSError):
            if self.mode == "refused":
                self.counts["refused"] += 1
            else:
                far, forth = await asyncio.open_connection("127.0.0.1", self._target_port)
                self._writers.add(forth)
                await asyncio.gather(self._pump(near, forth), self._pump(far, back, answers=True))
                self._writers.discard(forth)
        back.close()
        self._writers.discard(back)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool = False
    ) -> None:
        with suppress(OSError):
            while data := await source.read(1 << 16):
                mode = self.mode if answers else None
                if mode is not None:
                    self.counts[mode] += 1
                if mode == "cut":
                    sink.write(data[: len(data) // 2])
                    break
                if mode == "hangs":
                    await self._hang()
                if mode == "endless answer":
                    await self._never_end(sink)
                    break
                if mode == "drips":
                    data = await self._drip(data, sink)
                sink.write(data)
                await sink.drain()
        with suppress(OSError):
            sink.close()

    async def _hang(self) -> None:
        while self.mode == "hangs":  # noqa: ASYNC110  the mode is set by another thread
            await asyncio.sleep(0.05)

    async def _drip(self, data: bytes, sink: asyncio.StreamWriter) -> bytes:
        while data and self.mode == "drips":
            sink.write(data[:7])
            data = data[7:]
            await sink.drain()
            await asyncio.sleep(0.02)
        return data

    async def _never_end(self, sink: asyncio.StreamWriter) -> None:
        sink.write(ENDLESS)
        while self.mode == "endless answer":
            sink.write(b"+1234567\r\n" * 400)
            await sink.drain()
            await asyncio.sleep(0.005)
