"""A server over loopback that answers each request with any bytes at all."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Answer = Callable[[str, socket.socket], None]


def _size(request: bytes, end: bytes) -> int:
    """Of a request with the body that its head announces."""
    head, _, _ = request.partition(end)
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return len(head) + len(end) + (int(length[1]) if length else 0)


@contextmanager
def answering(answer: Answer, end: bytes = b"\r\n\r\n") -> Iterator[str]:
    """Its host and port. It gives each request's first line to `answer`, with the socket to write to."""
    ended = threading.Event()

    def serve_one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while not ended.is_set():
                request = b""
                while end not in request or len(request) < _size(request, end):
                    piece = connection.recv(4096)
                    if not piece:
                        return
                    request += piece
                answer(request.split(b"\r\n", 1)[0].decode(), connection)

    def serve(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=serve_one, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        ended.set()
        listening.shutdown(socket.SHUT_RDWR)
