"""A far tier that accepts connections and never answers: a server starts, and goes on without it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kdn
from kdn.config import load_config
from kdn.serve import served
from tests.serve.running import running

TIMEOUT_S = 0.5
"""What one call of a tier may take."""


@pytest.fixture
def silent() -> Iterator[int]:
    """A port whose connections are taken and never answered."""
    listening = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                held.append(listening.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=accept)
    thread.start()
    yield listening.getsockname()[1]
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()
    for one in held:
        one.close()


@pytest.mark.parametrize(
    ("name", "package", "setting", "address"),
    [
        ("redis", "redis", "KDN_STORE_REDIS_URL", "redis://127.0.0.1:{port}"),
        ("peer", "kdn", "KDN_STORE_PEER_URL", "http://127.0.0.1:{port}"),
        ("objects", "obstore", "KDN_STORE_OBJECTS_URL", "s3://bucket/kdn"),
    ],
)
def test_a_tier_that_hangs_delays_the_start_by_its_time_only(
    name: str, package: str, setting: str, address: str,
    silent: int, tiny_model: Callable[..., Path], tmp_path: Path,
) -> None:  # fmt: skip
    pytest.importorskip(package)
    folder = tiny_model("llama", max_position_embeddings=2048)
    environ = {
        setting: address.format(port=silent),
        "KDN_STORE_FAR_TIMEOUT_S": str(TIMEOUT_S),
        "KDN_ENGINE_FIT_IDLE_S": "0",
    }
    if name == "objects":
        environ["KDN_STORE_OBJECT_OPTIONS"] = (
            f'{{"endpoint": "http://127.0.0.1:{silent}", "region": "us-east-1",'
            ' "access_key_id": "k", "secret_access_key": "s"}'
        )
    with kdn.open(folder, home=tmp_path / "warm"):
        pass  # kernels, imports
    began_s = time.monotonic()
    config = load_config(environ, home=tmp_path / "warm")
    with kdn.open(folder, config=config) as k:
        opened_s = time.monotonic() - began_s
        with running(served(k)) as server:
            body = {"prompt": "a long prompt about a harbour " * 10, "max_tokens": 2}
            for _ in range(2):
                assert server.http.post("/v1/completions", json=body).status_code == 200
            assert server.http.get("/health").status_code == 200
            k.store.flush()
            assert server.metric("kdn_tier_errors_total", tier=name) > 0
        assert opened_s < 20, "the start waits for each tier once"
        closing_s = time.monotonic()
    assert time.monotonic() - closing_s < 20
