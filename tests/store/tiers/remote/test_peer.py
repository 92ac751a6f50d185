"""A node closes connections that were idle for a while: that is no fault of the node."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from kdn.core import BlockKey
from kdn.errors import Unreachable
from kdn.store import PeerRemote

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


def test_a_node_that_is_gone_is_unreachable(server: http.server.HTTPServer) -> None:
    with closing(PeerRemote(f"http://127.0.0.1:{server.server_port}")) as remote:
        assert remote.head(KEY, 100) is None
        server.shutdown()
        server.server_close()
        with pytest.raises(Unreachable, match=r"cannot be reached: .*refused"):
            remote.head(KEY, 100)
