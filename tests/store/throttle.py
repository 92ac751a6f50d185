"""A link that is as slow as a test wants: bytes are counted, and a clock goes on by what they take."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from kdn.clock import ManualClock


class Link:
    """How fast the link is, by the bytes that went over it so far; nobody waits."""

    def __init__(self, clock: ManualClock, bytes_per_s: Callable[[int], float]) -> None:
        self.size_bytes = 0
        self._clock = clock
        self._bytes_per_s = bytes_per_s
        self._lock = threading.Lock()

    def carry(self, size_bytes: int) -> None:
        with self._lock:
            self._clock.advance(size_bytes / self._bytes_per_s(self.size_bytes))
            self.size_bytes += size_bytes


@contextmanager
def throttled(url: str, link: Link) -> Iterator[str]:
    """Another address of the server at `url`, whose answers go over `link`."""
    target = urlsplit(url)
    assert target.hostname is not None
    assert target.port is not None
    open_ends: list[socket.socket] = []
    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]

        def pump(source: socket.socket, sink: socket.socket, carry: Callable[[int], None]) -> None:
            with suppress(OSError):
                while data := source.recv(1 << 16):
                    carry(len(data))
                    sink.sendall(data)
            for end in (source, sink):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    near, _ = door.accept()
                    far = socket.create_connection((target.hostname, target.port))
                    open_ends.extend((near, far))
                    for ends, carry in (((near, far), _freely), ((far, near), link.carry)):
                        thread = threading.Thread(target=pump, args=(*ends, carry))
                        threads.append(thread)
                        thread.start()

        accepting = threading.Thread(target=serve)
        accepting.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            door.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for end in open_ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for end in open_ends:
                end.close()


def _freely(_size_bytes: int) -> None:
    return
