"""What a node's answers, and its silence, count for."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice

import msgspec
import pytest

from kdn.clock import ManualClock
from kdn.core import BlockKey
from kdn.errors import LostBlock, NoSpace, Unreachable
from kdn.store import PeerRemote
from kdn.store.tiers.remote.client import RemoteChanges
from tests.answering import answering

KEY = BlockKey("a" * 64)


class _Closing(http.server.BaseHTTPRequestHandler):
    """Has no block, and closes each connection after its answer without a word."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(404)

    def do_DELETE(self) -> None:
        self._answer(404)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(204)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's name
        return


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Closing) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_a_connection_that_the_node_has_closed_is_made_anew(
    server: http.server.HTTPServer,
) -> None:
    """Three such connections at once opened the circuit, and what the node held was not found."""
    with closing(PeerRemote(f"http://127.0.0.1:{server.server_port}")) as remote:
        assert [remote.head(KEY, 100) for _ in range(3)] == [None, None, None]
        assert not remote.remove(KEY)
        remote.write(KEY, b"", memoryview(bytes(1 << 20)))


@pytest.mark.parametrize("status", [400, 403, 413, 429, 507])
def test_a_node_that_says_no_to_one_call_has_not_failed(status: int) -> None:
    """Callers count what is Unreachable, and after three of them ask the node no more."""

    def say(_: str, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 %d No\r\ncontent-length: 2\r\n\r\nno" % status)

    with answering(say) as place, closing(PeerRemote(f"http://{place}", timeout_s=20)) as remote:
        with pytest.raises(NoSpace, match=f"answered {status}: no"):
            remote.write(KEY, b"", memoryview(b"block"))
        with pytest.raises(NoSpace, match=f"answered {status}: no"):
            remote.remove(KEY)
        wanted = LostBlock if status == 429 else Unreachable
        with pytest.raises(wanted, match=f"answered {status}: no"):
            remote.read(KEY, 0, 5)


@pytest.mark.parametrize("status", [429, 503])
def test_a_node_that_is_busy_is_asked_again_for_the_same(status: int) -> None:
    """As many bytes as may be are on their way to its callers: it has not failed."""
    asked: list[str] = []

    def say(request: str, connection: socket.socket) -> None:
        asked.append(request.split()[1])
        connection.sendall(b"HTTP/1.1 %d Busy\r\ncontent-length: 2\r\n\r\nno" % status)

    with answering(say) as place, closing(PeerRemote(f"http://{place}", timeout_s=20)) as remote:
        assert [remote.changes(), remote.changes()] == [RemoteChanges()] * 2
        assert asked == ["/v1/store/blocks?since="] * 2
        with pytest.raises(LostBlock, match=f"answered {status}: no"):
            remote.read(KEY, 0, 5)


def test_a_node_that_answers_before_it_has_the_whole_block_is_heard() -> None:
    """It closes the connection while 32 MiB are on their way; the next call goes over a new one."""

    def refuse(listening: socket.socket) -> None:
        for status in (413, 507):
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 %d No\r\ncontent-length: 0\r\n\r\n" % status)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        node = threading.Thread(target=refuse, args=(listening,), daemon=True)
        node.start()
        with closing(PeerRemote(f"http://127.0.0.1:{listening.getsockname()[1]}")) as remote:
            for status in (413, 507):
                with pytest.raises(NoSpace, match=f"answered {status}"):
                    remote.write(KEY, b"", memoryview(bytes(32 << 20)))
        node.join()


def test_a_long_list_may_take_longer_than_other_answers() -> None:
    """It was begun again at each poll, and what a large node held was never found."""
    clock = ManualClock()
    rows = [(f"{number:064x}", bytes(1000)) for number in range(4000)]
    body = msgspec.msgpack.encode(["c.1", True, rows, []])
    assert len(body) > 4_000_000

    def say(_: str, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
        for part in range(4):
            connection.sendall(body[part * len(body) // 4 : (part + 1) * len(body) // 4])
            clock.advance(3)

    with (
        answering(say) as place,
        closing(PeerRemote(f"http://{place}", timeout_s=2, clock=clock)) as remote,
    ):
        assert len(remote.changes().added) == 4000


def test_a_listing_ends_when_the_tier_is_closed() -> None:
    """It may take minutes, and Python waits for its thread before it ends."""
    begun = threading.Event()

    def say(_: str, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        begun.set()

    with answering(say) as place, ThreadPoolExecutor() as pool:
        remote = PeerRemote(f"http://{place}", timeout_s=60)
        listing = pool.submit(remote.changes)
        assert begun.wait(60)
        remote.close()
        with pytest.raises(Unreachable, match="cannot be reached"):
            listing.result(20)


def _dripping_head(connection: socket.socket) -> Iterator[None]:
    connection.sendall(b"HTTP/1.1 206 Partial Content\r\nx-slow: ")
    while True:
        connection.sendall(b"y")
        yield


def _continuing(connection: socket.socket) -> Iterator[None]:
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        yield


def _dripping_body(connection: socket.socket) -> Iterator[None]:
    connection.sendall(b"HTTP/1.1 206 Partial Content\r\ncontent-length: 100\r\n\r\n")
    while True:
        connection.sendall(b"y")
        yield


@pytest.mark.parametrize("drip", [_dripping_head, _continuing, _dripping_body])
def test_an_answer_that_drips_ends_in_time(
    drip: Callable[[socket.socket], Iterator[None]],
) -> None:
    """A piece a second, where the whole answer has two."""
    clock = ManualClock()

    def say(_: str, connection: socket.socket) -> None:
        for _piece in islice(drip(connection), 50):
            clock.advance(1)

    with (
        answering(say) as place,
        closing(PeerRemote(f"http://{place}", timeout_s=2, clock=clock)) as remote,
        pytest.raises(Unreachable, match="did not end in time"),
    ):
        remote.read(KEY, 0, 100)


def test_a_node_that_is_gone_is_unreachable(server: http.server.HTTPServer) -> None:
    with closing(PeerRemote(f"http://127.0.0.1:{server.server_port}")) as remote:
        assert remote.head(KEY, 100) is None
        server.shutdown()
        server.server_close()
        with pytest.raises(Unreachable, match=r"cannot be reached: .*refused"):
            remote.head(KEY, 100)
