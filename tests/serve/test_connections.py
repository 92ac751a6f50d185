"""Bounds on connections: clients that hold one for nothing neither keep it nor keep others out."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import h11
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from kdn.serve import Limits, ServeSettings
from kdn.serve.connections import BoundedProtocol, _Connection, _taken_bytes, fitting_connections
from kdn.store import open_store
from tests.serve.running import running, wait_for
from tests.serve.scripted import ScriptedService
from tests.store.remotes import node_server

GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


class Slow:
    """An application that answers once it is let go, after it has read the body."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.num_waiting = 0
        """Of requests that are read and wait to be let go."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        if scope["path"] == "/slow":
            self.num_waiting += 1
            while not self.go_on.is_set():  # noqa: ASYNC110  set by another thread
                await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


@contextmanager
def serving(app: Slow | Sending, **bounds: Any) -> Iterator[int]:
    listening = socket.create_server(("127.0.0.1", 0))
    protocol = partial(BoundedProtocol, **{"max_connections": 100, **bounds})
    config = uvicorn.Config(app, log_level="error", http=cast("Any", protocol), lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        app.go_on.set()
        server.should_exit = True
        thread.join()
        listening.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def status(connection: socket.socket) -> bytes:
    """Of the next answer; empty when the connection was closed without one."""
    answer = b""
    with suppress(ConnectionError):  # what came after the end resets the connection
        while more := connection.recv(1 << 16):
            answer += more
            if answer.endswith(b"0\r\n\r\n"):
                break
    return answer.removeprefix(b"HTTP/1.1 ")[:3]


def drop_by_drop(connection: socket.socket) -> None:
    """A head that never ends, until the connection does."""
    with suppress(OSError):
        connection.sendall(GET[:-2])
        for number in range(10_000):
            connection.sendall(f"x-{number}: y\r\n".encode())
            time.sleep(0.01)


def test_a_head_that_drips_in_has_its_time_and_no_more() -> None:
    began_s = time.monotonic()
    with serving(Slow(), head_s=0.4) as port, connect(port) as drip, connect(port) as silent:
        thread = threading.Thread(target=drop_by_drop, args=(drip,))
        thread.start()
        assert status(drip) in (b"408", b"")
        thread.join()
        assert 0.3 < time.monotonic() - began_s < 60, "not a hundred seconds of drops"
        assert status(silent) == b"408"


def test_the_time_of_a_head_begins_again_with_each_request() -> None:
    with serving(Slow(), head_s=2) as port, connect(port) as client:
        for _ in range(3):
            client.sendall(GET)
            assert status(client) == b"200"
        client.sendall(GET[:10])
        assert status(client) == b"408"


def test_a_body_that_stands_still_is_given_up() -> None:
    with serving(Slow(), body_gap_s=0.3) as port, connect(port) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nfour")
        assert status(client) == b"408"


class Sending:
    """An application that sends 64 MiB in pieces, more than two sockets hold between them."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.ended = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for left in reversed(range(256)):
            await send(
                {"type": "http.response.body", "body": bytes(1 << 18), "more_body": left > 0}
            )
        self.ended.set()


def test_a_client_that_takes_nothing_of_its_answer_is_given_up() -> None:
    app = Sending()
    with serving(app, body_gap_s=0.3) as port, connect(port) as client:
        client.sendall(GET)
        assert app.ended.wait(60)
        with suppress(ConnectionError):
            while client.recv(1 << 20):
                pass


def test_what_a_slow_client_takes_is_seen_while_nothing_more_can_be_sent() -> None:
    """The system's buffer of 4 MB says that there is room once a third of it is free."""
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as stack:
        client = stack.enter_context(connect(listening.getsockname()[1]))
        sender = stack.enter_context(listening.accept()[0])
        transport = cast("Any", SimpleNamespace(get_extra_info=lambda _: sender))
        sender.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                sender.send(bytes(1 << 16))
        taken_bytes = _taken_bytes(transport)
        if not taken_bytes:
            pytest.skip("the system does not tell what was taken: Linux does")
        for _ in range(24):
            client.recv(1 << 14, socket.MSG_WAITALL)
        wait_for(lambda: _taken_bytes(transport) > taken_bytes)
        assert select.select([], [sender], [], 0) == ([], [], [])


def test_a_client_that_takes_its_answer_gets_all_of_it() -> None:
    app = Sending()
    with serving(app, body_gap_s=30) as port, connect(port) as client:
        client.sendall(GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        taken = 0
        while piece := client.recv(1 << 20):
            taken += len(piece)
    assert taken > 64 << 20


def test_an_answer_that_takes_long_is_not_the_clients_fault() -> None:
    app = Slow()
    with serving(app, head_s=1, body_gap_s=1) as port, connect(port) as client:
        client.sendall(GET.replace(b"/ ", b"/slow "))
        wait_for(lambda: app.num_waiting == 1)
        client.settimeout(1.5)
        with pytest.raises(TimeoutError):
            client.recv(1)
        app.go_on.set()
        client.settimeout(60)
        assert status(client) == b"200"


def test_who_sends_nothing_gives_way_to_who_asks() -> None:
    with serving(Slow(), max_connections=3) as port, ExitStack() as stack:
        silent = [stack.enter_context(connect(port)) for _ in range(3)]
        asking = stack.enter_context(connect(port))
        asking.sendall(GET)
        assert status(asking) == b"200"
        assert status(silent[0]) == b"503", "the oldest went"
        silent[2].sendall(GET)
        assert status(silent[2]) == b"200"


def test_where_all_are_at_work_one_more_is_told_so() -> None:
    app = Slow()
    with serving(app, max_connections=2) as port, ExitStack() as stack:
        working = [stack.enter_context(connect(port)) for _ in range(2)]
        for one in working:
            one.sendall(GET.replace(b"/ ", b"/slow "))
        wait_for(lambda: app.num_waiting == 2)
        assert status(stack.enter_context(connect(port))) == b"503"
        app.go_on.set()
        assert [status(one) for one in working] == [b"200", b"200"]


def test_no_more_connections_than_descriptors() -> None:
    assert fitting_connections(1) == 1
    assert 1 <= fitting_connections(10**9) < 10**9


def test_silent_connections_do_not_close_a_server_or_a_node(tmp_path: Path) -> None:
    settings = ServeSettings(port=0, grace_s=1, limits=Limits(connections=8))
    with ExitStack() as stack:
        server = stack.enter_context(
            running(stack.enter_context(closing(ScriptedService())), settings)
        )
        port = int(server.url.rpartition(":")[2])
        for _ in range(30):
            stack.enter_context(connect(port))
        assert server.http.get("/health").status_code == 200
    with (
        open_store(tmp_path, disk_bytes=10**6) as store,
        node_server(store) as url,
        connect(int(url.rpartition(":")[2])) as client,
    ):
        client.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        assert status(client) == b"200"


def test_a_body_in_pieces_has_the_bytes_that_h11_gives_it() -> None:
    """Also the one of an answer whose length is told, the empty piece, and what follows on the connection."""
    told = [h11.Data(data=b"data: a\n\n"), h11.Data(data=b""), h11.Data(data=b"x" * 17)]
    answers = [
        [h11.Response(status_code=200, headers=[]), *told, h11.EndOfMessage()],
        [
            h11.Response(status_code=200, headers=[("content-length", "26")]),
            *told,
            h11.EndOfMessage(),
        ],
    ]
    ours, theirs = _Connection(h11.SERVER), h11.Connection(h11.SERVER)
    for answer in answers:
        for one in (ours, theirs):
            one.receive_data(GET)
            assert isinstance(one.next_event(), h11.Request)
            assert isinstance(one.next_event(), h11.EndOfMessage)
        assert [ours.send(event) for event in answer] == [theirs.send(event) for event in answer]
        for one in (ours, theirs):
            one.start_next_cycle()
    with pytest.raises(h11.LocalProtocolError):
        ours.send(told[0])  # before its answer has begun


def test_a_connection_that_rests_as_long_as_clients_keep_theirs_is_not_closed() -> None:
    """Httpx, which OpenAI's client uses, sends on one that has rested for up to five seconds: a server that
    closes it after five as well loses a request now and then."""
    with closing(ScriptedService()) as service, running(service) as served:
        host, port = served.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as client:
            look = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
            for _ in range(2):
                client.sendall(look)
                assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
                assert select.select([client], [], [], 5.5)[0] == [], "nothing is said, nor closed"
