"""A server: its event loop, its connections, how long one may take over its request, and how it ends.

A client that sends its head a byte at a time holds a connection for nothing.  It gets a bounded time, and
its place when others want it: connections whose request is not complete go first, the oldest in front.
One that takes nothing of its answer holds memory, too: it gets as long as a body may stand still.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, ref

import h11
import uvicorn
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from kdn.serve.limits import BODY_GAP_S, HEAD_S, MAX_HEADER_BYTES, Shutdown

__all__ = ["BoundedProtocol", "Handover", "Server", "fitting_connections"]

_RESERVED_DESCRIPTORS = 128
"""For the store, the model and what the process has open otherwise."""
_TCP_INFO_BYTES, _ACKNOWLEDGED = 128, slice(120, 128)
"""Where `tcpi_bytes_acked` lies in Linux's struct tcp_info (linux/tcp.h); an older kernel's is shorter."""
_TOO_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b"
)
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
)
_WHY_LATE = (
    b'{"error":{"message":"the request did not come within the time that it has: send it whole",'
    b'"type":"invalid_request_error","param":null,"code":"request_timeout"}}'
)
_WHY_MANY = (
    b'{"error":{"message":"every connection of this server is busy: try again in 1 s",'
    b'"type":"server_error","param":null,"code":"overloaded"}}'
)


def _taken_bytes(transport: asyncio.Transport) -> int:
    """What the client's system has acknowledged so far; 0 where ours does not tell: Linux alone does."""
    sock = transport.get_extra_info("socket")
    try:
        told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except (AttributeError, OSError):
        return 0
    return int.from_bytes(told[_ACKNOWLEDGED], sys.byteorder)


def fitting_connections(wanted: int) -> int:
    """So many connections as are wanted, or as the process may have descriptors for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, soft - _RESERVED_DESCRIPTORS))


class Handover:
    """Runs calls on an event loop, in order. Any thread may hand them over.

    `call_soon_threadsafe` wakes the loop for each call, by a byte through a socket: with 24 answers a step of
    the engine woke it 24 times, and each time both threads wanted the interpreter.
    """

    _of: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, Handover]] = WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)
        self._lock = threading.Lock()
        self._calls: list[Callable[[], None]] = []

    @staticmethod
    def here() -> Handover:
        """The one of the running loop."""
        loop = asyncio.get_running_loop()
        return Handover._of.setdefault(loop, Handover(loop))

    def call(self, call: Callable[[], None]) -> None:
        """Run `call` soon; a loop that is closed runs nothing any more."""
        with self._lock:
            self._calls.append(call)
            is_first = len(self._calls) == 1
        loop = self._loop()
        if is_first and loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        with self._lock:
            calls, self._calls = self._calls, []
        for call in calls:
            try:
                call()
            except Exception as error:  # noqa: BLE001  one that raises costs itself only
                told = {"message": "a call that was handed over failed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(told)


class _Connection(h11.Connection):
    """As h11's own, which asks its table of states again for each piece of a body, and copies it.

    A piece changes no state, and of a body without a known length it has the same form each time.
    """

    _is_chunked = False

    def send(self, event: h11.Event) -> bytes | memoryview | None:  # type: ignore[override]
        if self._is_chunked and type(event) is h11.Data and self.our_state is h11.SEND_BODY:
            data = event.data
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        if type(event) is h11.Data:
            (piece,) = self.send_with_data_passthrough(event) or [b""]
            return piece
        sent = super().send(event)
        if type(event) is h11.Response:
            self._is_chunked = b"\r\ntransfer-encoding: chunked\r\n" in (sent or b"").lower()
        return sent


class BoundedProtocol(H11Protocol):
    """One connection, as uvicorn's own, with a bound on how many there are and on slow requests."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        max_connections: int,
        head_s: float = HEAD_S,
        body_gap_s: float = BODY_GAP_S,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = _Connection(
            h11.SERVER, config.h11_max_incomplete_event_size or MAX_HEADER_BYTES
        )
        self._max_connections = max_connections
        self._head_s = head_s
        self._body_gap_s = body_gap_s
        self._patience: asyncio.TimerHandle | None = None
        self._reader: asyncio.TimerHandle | None = None
        """Runs while more of an answer waits than the transport wants."""
        self.waits_since_s: float | None = None
        """Since when the client has been sending its request; None: it is here whole."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()
        if len(self.connections) > self._max_connections:
            waiting = [one for one in self.connections if isinstance(one, BoundedProtocol)]
            others = [one for one in waiting if one is not self and one.waits_since_s is not None]
            first = min(others, key=lambda one: one.waits_since_s or 0.0, default=self)
            first.end(_TOO_MANY % (len(_WHY_MANY), _WHY_MANY))

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_patience()
        self._forget_reader()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.waits_since_s = self.loop.time()  # uvicorn's own timer ends what says nothing now

    def _expect(self) -> None:
        """Give the client its time for what is missing of its request."""
        state = self.conn.their_state
        if state is h11.IDLE:
            if self._patience is None or self.waits_since_s is None:
                self._begin_patience(self._head_s)
        elif state is h11.SEND_BODY:
            self._begin_patience(self._body_gap_s)
        else:
            self._forget_patience()

    def _begin_patience(self, seconds: float) -> None:
        since_s = self.waits_since_s
        self._forget_patience()
        self.waits_since_s = self.loop.time() if since_s is None else since_s
        self._patience = self.loop.call_later(seconds, self._out_of_patience)

    def _forget_patience(self) -> None:
        self.waits_since_s = None
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _out_of_patience(self) -> None:
        self._patience = None
        if self.flow.read_paused:  # it is the route that does not read
            self._begin_patience(self._body_gap_s)
            return
        self.end(_TOO_LATE % (len(_WHY_LATE), _WHY_LATE))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        self._forget_reader()
        super().resume_writing()

    def _await_reader(self) -> None:
        left_bytes, taken_bytes = (
            self.transport.get_write_buffer_size(),
            _taken_bytes(self.transport),
        )
        self._forget_reader()
        self._reader = self.loop.call_later(
            self._body_gap_s, self._check_reader, left_bytes, taken_bytes
        )

    def _forget_reader(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    def _check_reader(self, left_bytes: int, taken_bytes: int) -> None:
        """The buffer alone says little: of a slow client it shrinks once a third of the system's is free."""
        is_shorter = self.transport.get_write_buffer_size() < left_bytes
        if is_shorter or _taken_bytes(self.transport) > taken_bytes:
            self._await_reader()
        else:
            self.transport.abort()  # what waits for it cannot be sent

    def end(self, answer: bytes) -> None:
        """Close, with an answer where none has begun."""
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(answer)
        self.transport.close()


class Server(uvicorn.Server):
    """The first signal begins the stop, which lasts no longer than the grace; the second one ends
    the process."""

    def __init__(self, config: uvicorn.Config, shutdown: Shutdown) -> None:
        super().__init__(config)
        self._shutdown = shutdown

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._shutdown.has_begun:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._captured_signals.append(sig)  # raised again by uvicorn once the server has ended
        self._shutdown.begin()
        # whatever hangs in the closing, a tier that does not answer or a core that is not to be had
        last = threading.Timer(self._shutdown.grace_s + _CLOSING_S, _leave_now, [sig])
        last.daemon = True
        last.start()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: is it time to end?"""
        return await super().on_tick(counter) or self._shutdown.is_over()


_CLOSING_S = 1.7
"""What closing may take after the grace: what waits to be written is written by then, or given up."""


def _leave_now(sig: int) -> None:
    """Blocks are whole or absent whenever the process ends."""
    logging.getLogger("uvicorn.error").error(
        "closing took longer than %.1f s after the grace: what waited to be written is given up",
        _CLOSING_S,
    )
    os._exit(0 if sig == signal.SIGTERM else 128 + sig)
