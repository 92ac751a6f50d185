"""The generator of load, in a process of its own: one connection a request, answers streamed.

python -m kdn.bench.serve.generator < load.json > result.json

Written on bare sockets, so that it takes little from the cores that the server needs.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import msgspec

from kdn.bench.serve.traffic import LoadAnswer, LoadRequest, LoadResult, OfferedLoad

__all__ = ["run_load"]

_LIMIT = 1 << 22
"""Bytes of one line of an answer."""


async def run_load(load: OfferedLoad) -> LoadResult:
    """Send every request at its time, and wait for all answers."""
    began_s = time.perf_counter()

    async def one(request: LoadRequest) -> LoadAnswer:
        await asyncio.sleep(max(request.at_s - (time.perf_counter() - began_s), 0))
        sent_s = time.perf_counter()
        try:
            return await _ask(load, request, sent_s)
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            return LoadAnswer(sent_s, error=f"{type(error).__name__}: {error}")

    return LoadResult(list(await asyncio.gather(*map(one, load.requests))))


async def _ask(load: OfferedLoad, request: LoadRequest, sent_s: float) -> LoadAnswer:
    place = urlsplit(load.url)
    body = msgspec.json.encode(
        {
            "model": load.model,
            "prompt": request.prompt,
            "max_tokens": request.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **load.extra,
        }
    )
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=_LIMIT)
    try:
        writer.write(head.encode() + body)
        await writer.drain()
        return await _answer(reader, sent_s)
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader, sent_s: float) -> LoadAnswer:
    """Times of the first and last event with a choice; tokens by the usage that comes last."""
    head = await reader.readuntil(b"\r\n\r\n")
    status = head.partition(b"\r\n")[0]
    if b" 200 " not in status:
        raise ValueError(f"{status.decode()}: {(await reader.read())[:300]!r}")
    first_s = last_s = 0.0
    num_tokens = 0
    async for event in _events(reader, is_chunked=b"chunked" in head.lower()):
        if event == b"[DONE]":
            break
        told = msgspec.json.decode(event)
        if "error" in told:
            raise ValueError(str(told["error"])[:300])
        if told.get("choices"):
            last_s = time.perf_counter()
            first_s = first_s or last_s
        if told.get("usage"):
            num_tokens = told["usage"]["completion_tokens"]
    if not num_tokens:
        raise ValueError("the stream ended without usage")
    return LoadAnswer(sent_s, first_s, last_s, num_tokens)


async def _events(reader: asyncio.StreamReader, *, is_chunked: bool) -> AsyncIterator[bytes]:
    """What stands after `data: ` in the lines of the body."""
    rest = b""
    while True:
        if is_chunked:
            size = int(await reader.readline() or b"0", 16)
            piece = (await reader.readexactly(size + 2))[:-2]
        else:
            piece = await reader.read(1 << 16)
        if not piece:
            return
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data: "):
                yield line[len(b"data: ") :].strip()


def main() -> None:
    """One load, one result."""
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=OfferedLoad)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(run_load(load))))


if __name__ == "__main__":
    main()
