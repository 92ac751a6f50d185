"""Sends a request to a server, and to the next one while nothing of an answer has been passed on.

    order of servers ─> send ─> begun? ─ yes ─> pass on as it comes
           ^                      │ no
           └── refused, dead ─────┘

An answer that is not streamed begins when all of it is here, or 8 MiB; a stream begins with its first token,
or with 64 KiB of none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
from fastapi import Request as HttpRequest
from fastapi import Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from kdn.clock import Clock
from kdn.errors import EngineFailed, Unreachable
from kdn.scale.router.content import prompt_of
from kdn.scale.router.events import begins_answer, events_of, told_tokens_of
from kdn.scale.router.fetch import read_up_to
from kdn.scale.router.fleet import Confirmed, Fleet, FleetServer, RoutedPrompt
from kdn.scale.router.numbers import RouterNumbers
from kdn.scale.router.rules import RoutingRule
from kdn.serve.errors import Refused, fault_of
from kdn.serve.limits import read_json
from kdn.serve.openai.streams import until_disconnect

__all__ = ["Forwarder"]

_TRY_ANOTHER = (429, 502, 503, 504)
"""The server is too busy, stopping, or not the one that failed."""
_NOT_PASSED_ON = frozenset(
    ("host", "content-length", "connection", "transfer-encoding", "accept-encoding", "keep-alive")
)
_PASSED_BACK = ("content-type", "retry-after", "x-request-id", "cache-control", "x-accel-buffering")
_COMPUTES_NOTHING = ("/tokenize", "/detokenize")
"""Routes whose text is no prompt to the server: it is neither computed nor stored."""
_TAIL_BYTES = 1 << 16
"""Of a stream's end, to read its usage: the last event of `/v1/responses` repeats the whole answer."""
_HELD_BYTES = 8 << 20
"""A longer answer is passed on as it comes: a server cannot fill this process's memory."""
_HELD_OF_STREAM_BYTES = 1 << 16


@dataclass
class _Sent:
    """A request that was sent to one server."""

    server: FleetServer
    number: int
    prompt: RoutedPrompt
    confirmed: Confirmed


@dataclass
class _Begun:
    """An answer that has begun: its head, what came of it, and what is to come."""

    status: int
    headers: dict[str, str]
    came: bytes
    rest: AsyncGenerator[bytes] | None = None


class _Dead(Exception):
    """A server failed before its answer began; it says how."""


_GONE = (httpx.ConnectError, httpx.ConnectTimeout)
"""Nobody listens there. Any other failure may be that of one connection."""


@dataclass
class Forwarder:
    """Answers requests out of a fleet. Used on the event loop."""

    fleet: Fleet
    rule: RoutingRule
    client: httpx.AsyncClient
    clock: Clock
    numbers: RouterNumbers
    server_key: str | None = None
    """Sent to the servers in place of what the caller sent."""
    _lost: dict[str, asyncio.Event] = field(default_factory=dict)

    async def answer(self, request: HttpRequest, body: Mapping[str, Any], raw: bytes) -> Response:
        """The answer of the first server, in the rule's order, that begins one.

        Raises Unreachable when none does, and Disconnected when the client leaves first.
        """
        prompt, tried, refused = prompt_of(body), list[str](), None
        model = body.get("model")
        model = model if isinstance(model, str) else None
        order = self.rule.order(prompt, self.fleet, self.clock.now())
        if request.url.path in _COMPUTES_NOTHING:
            prompt = prompt_of({})
        while (server := self._next(order, tried, model)) is not None:
            tried.append(server.name)
            sent = self._send(server, prompt)
            work = self._try(sent, request, raw)
            try:
                begun = await until_disconnect(request, None, work)
            except _Dead as dead:
                self._end(sent)
                self.numbers.retries.labels(server.name).inc()
                if isinstance(dead.__cause__, _GONE):
                    self.lose(server.name)
                refused = str(dead)
                continue
            except BaseException:
                self._end(sent)
                raise
            if self._is_for_another(server, begun, order, tried, model):
                await self._leave(sent, begun)
                self.numbers.retries.labels(server.name).inc()
                continue
            return self._respond(sent, begun)
        raise Unreachable(
            f"no server{f' of {model!r}' if model else ''} answers ({len(self.fleet.servers)} are known"
            f"{', the last one: ' + refused if refused else ''}); send again in a moment"
        )

    def lose(self, name: str) -> None:
        """A server does not answer: what waits for it is sent to others."""
        self.fleet.down(name)
        self._lost.pop(name, asyncio.Event()).set()

    def _next(
        self, order: Sequence[FleetServer], tried: list[str], model: str | None
    ) -> FleetServer | None:
        """The best that is not tried and may serve the model: those that list it before those that list none.

        Any may serve a model that no server lists, to refuse it.
        """
        left = [one for one in order if one.is_up and one.name not in tried]
        if any(one.lists(model) for one in self.fleet.servers.values()):
            may = (one for one in left if one.may_serve(model))
            left = sorted(may, key=lambda one: not one.lists(model))
        return left[0] if left else None

    def _is_for_another(
        self,
        server: FleetServer,
        begun: _Begun,
        order: Sequence[FleetServer],
        tried: list[str],
        model: str | None,
    ) -> bool:
        """Is another server to be asked? Also where this one may only lack the model."""
        lacks = begun.status == httpx.codes.NOT_FOUND and not server.lists(model)
        if not lacks and begun.status not in _TRY_ANOTHER:
            return False
        following = self._next(order, tried, model)
        return following is not None and (not lacks or following.may_serve(model))

    def _send(self, server: FleetServer, prompt: RoutedPrompt) -> _Sent:
        believed = server.match(prompt.chunks)
        confirmed = server.stored.confirmed(prompt.chunks)
        number = self.fleet.begin(server.name, prompt, self.clock.now())
        self.numbers.sent(server.name, prompt.num_tokens, prompt.tokens_of(believed))
        return _Sent(server, number, prompt, confirmed)

    def _end(self, sent: _Sent) -> None:
        sent.server.ended(sent.number)

    async def _leave(self, sent: _Sent, begun: _Begun) -> None:
        """The answer ends here, read or not; may be told again."""
        self._end(sent)
        if begun.rest is not None:
            with suppress(httpx.HTTPError):
                await begun.rest.aclose()

    async def _try(self, sent: _Sent, request: HttpRequest, raw: bytes) -> _Begun:
        """The beginning of a server's answer. Raises _Dead, also when it dies while it is waited for."""
        lost = self._lost.setdefault(sent.server.name, asyncio.Event())
        begun = asyncio.ensure_future(self._begin(sent, request, raw))
        died = asyncio.ensure_future(lost.wait())
        try:
            await asyncio.wait({begun, died}, return_when=asyncio.FIRST_COMPLETED)
            if not begun.done():
                raise _Dead("it stopped answering")
            return await begun
        except httpx.HTTPError as error:
            raise _Dead(str(error) or type(error).__name__) from error
        finally:
            died.cancel()
            begun.cancel()

    async def _begin(self, sent: _Sent, request: HttpRequest, raw: bytes) -> _Begun:
        asked = self.client.build_request(
            request.method,
            sent.server.name + request.url.path,
            content=raw,
            headers=self.headers(request),
        )
        response = await self.client.send(asked, stream=True)
        begun = _Begun(response.status_code, _back(response.headers), b"")
        rest = _pieces(response)
        is_stream = begun.headers.get("content-type", "").startswith("text/event-stream")
        try:
            if is_stream and begun.status == httpx.codes.OK:
                begun.came, begun.rest = await _until_token(rest), rest
                return begun
            begun.came = await read_up_to(rest, _HELD_BYTES)
        except BaseException:
            await rest.aclose()
            raise
        if len(begun.came) > _HELD_BYTES:
            begun.rest = rest
        return begun

    def headers(self, request: HttpRequest) -> dict[str, str]:
        """Those of a request to a server for this one."""
        passed = {
            name: value for name, value in request.headers.items() if name not in _NOT_PASSED_ON
        }
        if self.server_key is not None:
            passed["authorization"] = f"Bearer {self.server_key}"
        return passed | {"accept-encoding": "identity"}

    def _respond(self, sent: _Sent, begun: _Begun) -> Response:
        # a refusal stores nothing, and is sooner than any prefill
        if httpx.codes.is_success(begun.status):
            sent.server.began(sent.number, self.clock.now())
        if begun.rest is None:
            self._end(sent)
            self._learn(sent, [begun.came])
            return Response(begun.came, begun.status, begun.headers)
        pieces, leave = self._pass_on(sent, begun), partial(self._leave, sent, begun)
        return _PassedStream(pieces, begun.status, begun.headers, leave)

    async def _pass_on(self, sent: _Sent, begun: _Begun) -> AsyncGenerator[bytes]:
        assert begun.rest is not None
        tail = begun.came
        try:
            yield begun.came
            async for piece in begun.rest:
                tail = (tail + piece)[-_TAIL_BYTES:]
                yield piece
            self._learn(sent, events_of(tail))
        except httpx.HTTPError:
            self.numbers.cut.labels(sent.server.name).inc()
            cut = EngineFailed("the server ended in the middle of this answer; send it again")
            yield b"data: " + fault_of(cut).body() + b"\n\n"

    def _learn(self, sent: _Sent, events: Sequence[bytes]) -> None:
        """Believe a server's own word of what it had stored: the last one, where each event holds it."""
        told = next(filter(None, map(told_tokens_of, reversed(events))), None)
        if told is not None:
            self.fleet.correct(sent.server.name, sent.prompt, sent.confirmed, told)


class _PassedStream(StreamingResponse):
    """A stream that is passed on; `leave` is called however it ends, also before its first piece."""

    def __init__(
        self,
        pieces: AsyncGenerator[bytes],
        status: int,
        headers: dict[str, str],
        leave: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(pieces, status, headers)
        self._pieces, self._leave = pieces, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            try:
                await self._pieces.aclose()
            finally:
                await self._leave()


async def _until_token(pieces: AsyncGenerator[bytes]) -> bytes:
    """What came of a stream up to its first token, or to 64 KiB. Raises _Dead when it ends before."""
    came = b""
    async for piece in pieces:
        came += piece
        parts = [begins_answer(one) for one in events_of(came)]
        if None in parts:
            break
        if True in parts or len(came) > _HELD_OF_STREAM_BYTES:
            return came
    raise _Dead("it ended the stream before a token")


async def _pieces(response: httpx.Response) -> AsyncGenerator[bytes]:
    try:
        async for piece in response.aiter_raw():
            yield piece
    finally:
        await response.aclose()


def _back(headers: httpx.Headers) -> dict[str, str]:
    return {name: headers[name] for name in _PASSED_BACK if name in headers}


def read_body(raw: bytes) -> dict[str, Any]:
    """The body as an object, within the bounds of every server. Raises Refused for any other text."""
    try:
        body = read_json(raw)
    except ValueError as error:
        raise Refused(f"the body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise Refused("the body must be a JSON object")
    return body
