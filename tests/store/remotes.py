"""Real servers for the remote tiers, each on a free port of loopback and ended with its `with`."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from kdn.serve import (
    Limits,
    ServeSettings,
    create_node_app,
    listen,
    make_server,
    read_grants,
    url_of,
)
from kdn.store import Store
from tests.ports import free_port


@contextmanager
def redis_server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Redis of our own, that keeps nothing; or a skip."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    port = free_port()
    command = [
        program,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        str(folder),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            _answers(port, server)
            yield f"redis://127.0.0.1:{port}/0", server
        finally:
            server.kill()


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """An S3 server with a bucket called `kv-test`; yields the options that reach it."""
    pytest.importorskip("moto.server", reason="moto[server] is not installed")
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-p", str(port)]
    with (
        (folder / "s3.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as server,
    ):
        try:
            _answers(port, server)
            endpoint = f"http://127.0.0.1:{port}"
            bucket = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            sign = "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request, Signature=x"
            bucket.request("PUT", "/kv-test", headers={"authorization": sign})
            answer = bucket.getresponse()
            assert answer.status == 200, answer.read()
            bucket.close()
            yield {
                "endpoint": endpoint,
                "region": "us-east-1",
                "access_key_id": "k",
                "secret_access_key": "s",
            }
        finally:
            server.kill()


@contextmanager
def node_server(
    store: Store,
    *,
    admin_key: str | None = None,
    tenant_keys: tuple[str, ...] = (),
    certificate: Path | None = None,
    body_bytes: int = 1 << 30,
) -> Iterator[str]:
    """A node over `store`; yields its address. The store stays the caller's."""
    grants = read_grants(admin_key, tenant_keys)
    tokens = tuple(grant.token for grant in grants)
    settings = ServeSettings(
        port=0,
        api_keys=tokens,
        certificate=certificate,
        limits=Limits(body_bytes=body_bytes),
        grace_s=1,
    )
    door = listen(settings)
    server = make_server(create_node_app(store, settings, grants), settings, log_level="warning")
    with door, running(server, door):
        yield url_of(door, settings.scheme)


@contextmanager
def running(server: uvicorn.Server, door: socket.socket) -> Iterator[None]:
    """The server answers at that door inside."""
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
    thread.start()
    pulse = threading.Event()
    while not server.started and thread.is_alive():  # one that ends before would not close
        pulse.wait(0.005)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def _answers(port: int, server: subprocess.Popen[bytes]) -> None:
    """Wait until somebody listens there."""
    tick = threading.Event()
    for _ in range(2400):
        assert server.poll() is None, "the server ended at once"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            tick.wait(0.05)
        else:
            return
    raise AssertionError("the server does not listen")
