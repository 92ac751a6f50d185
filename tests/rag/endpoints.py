"""Addresses of OpenAI's API that fail as real ones do: down, silent, broken, or talking nonsense."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kdn.errors import UnknownModel
from kdn.model import resolve

__all__ = ["WAYS", "failing_endpoint", "need_embedder"]

WAYS = ("down", "silent", "broken", "nonsense", "no json", "wrong profile")
_SAID = {
    "nonsense": "The complexity is blue.",
    "wrong profile": '{"joint_reasoning": "Perhaps", "complexity": 7}',
}


def need_embedder() -> None:
    """Skip where the packaged embedder is not installed."""
    try:
        resolve("minilm-l6", Path("no-home"))
    except UnknownModel:
        pytest.skip("the embedder's weights are not installed")


@contextmanager
def failing_endpoint(way: str) -> Iterator[str]:
    """The URL of an API that fails in one of `WAYS`, until the end of the block."""
    if way == "down":
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        yield f"http://127.0.0.1:{port}/v1"
        return
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            if way == "silent":
                over.wait()
                return
            message = {"role": "assistant", "content": _SAID.get(way, "")}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            body = b"<html>" if way == "no json" else json.dumps({"choices": [choice]}).encode()
            self.send_response(500 if way == "broken" else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()
