"""The generator of load, in a process of its own: one connection a request, answers streamed.

python -m kdn.bench.serve.generator < load.json > result.json

It only notes what comes, and reads it when the load is over: until then the server needs the cores.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import msgspec

from kdn.bench.serve.traffic import LoadAnswer, LoadRequest, LoadResult, OfferedLoad

__all__ = ["run_load"]


_Pieces = list[tuple[float, bytes]]
"""What came, and when."""


async def run_load(load: OfferedLoad) -> LoadResult:
    """Send every request at its time, and wait for all answers."""
    began_s = time.perf_counter()

    async def one(request: LoadRequest) -> tuple[float, _Pieces | OSError]:
        await asyncio.sleep(max(request.at_s - (time.perf_counter() - began_s), 0))
        sent_s = time.perf_counter()
        try:
            return sent_s, await _ask(load, request)
        except OSError as error:
            return sent_s, error

    replies = await asyncio.gather(*map(one, load.requests))
    return LoadResult([_answer(*reply) for reply in replies])


async def _ask(load: OfferedLoad, request: LoadRequest) -> _Pieces:
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
    transport, reply = await asyncio.get_running_loop().create_connection(
        _Reply, str(place.hostname), place.port or 80
    )
    try:
        transport.write(head.encode() + body)
        return await reply.whole
    finally:
        transport.close()


class _Reply(asyncio.Protocol):
    """Notes what comes, and when, until the server closes."""

    def __init__(self) -> None:
        self.whole: asyncio.Future[_Pieces] = asyncio.get_running_loop().create_future()
        self._pieces: _Pieces = []

    def data_received(self, data: bytes) -> None:
        self._pieces.append((time.perf_counter(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.whole.done():
            self.whole.set_result(self._pieces)


def _answer(sent_s: float, reply: _Pieces | OSError) -> LoadAnswer:
    try:
        if isinstance(reply, OSError):
            raise reply
        return _read(sent_s, reply)
    except (OSError, ValueError) as error:
        return LoadAnswer(sent_s, error=f"{type(error).__name__}: {error}")


def _read(sent_s: float, pieces: _Pieces) -> LoadAnswer:
    """Times of the first and last event with a choice; tokens by the usage that comes last."""
    head, _, body = b"".join(data for _, data in pieces).partition(b"\r\n\r\n")
    status = head.partition(b"\r\n")[0]
    if b" 200 " not in status:
        raise ValueError(f"{status.decode()}: {body[:300]!r}")
    first_s = last_s = 0.0
    num_tokens = 0
    for at_s, event in _events(pieces, len(head) + 4, is_chunked=b"chunked" in head.lower()):
        if event == b"[DONE]":
            break
        told = msgspec.json.decode(event)
        if "error" in told:
            raise ValueError(str(told["error"])[:300])
        if told.get("choices"):
            last_s = at_s
            first_s = first_s or last_s
        if told.get("usage"):
            num_tokens = told["usage"]["completion_tokens"]
    if not num_tokens:
        raise ValueError("the stream ended without usage")
    return LoadAnswer(sent_s, first_s, last_s, num_tokens)


def _events(pieces: _Pieces, size_head: int, *, is_chunked: bool) -> Iterator[tuple[float, bytes]]:
    """What stands after `data: ` in the lines of the body, and when the end of the line had come."""
    raw = rest = b""
    skip = size_head
    for at_s, data in pieces:
        raw += data[skip:]
        skip = max(skip - len(data), 0)
        if is_chunked:
            told, raw = _dechunked(raw)
        else:
            told, raw = raw, b""
        *lines, rest = (rest + told).split(b"\n")
        for line in lines:
            if line.startswith(b"data: "):
                yield at_s, line[len(b"data: ") :].strip()


def _dechunked(raw: bytes) -> tuple[bytes, bytes]:
    """The contents of the whole chunks at the front, and what is left."""
    whole = []
    while (end := raw.find(b"\r\n")) >= 0:
        stop = end + 2 + int(raw[:end], 16)
        if len(raw) < stop + 2:
            break
        whole.append(raw[end + 2 : stop])
        raw = raw[stop + 2 :]
    return b"".join(whole), raw


def main() -> None:
    """One load, one result."""
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=OfferedLoad)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(run_load(load))))


if __name__ == "__main__":
    main()
