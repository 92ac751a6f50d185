"""The program as an operator stops it, and as it ends by itself: signals, exit codes, what clients get."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kdn.store import open_store
from tests.cli.program import Done, finish, start

LONG = {"prompt": "x" * 300, "max_tokens": 3500, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def folder(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", max_position_embeddings=4096)


@contextmanager
def program(home: Path, folder: Path, **settings: Any) -> Iterator[tuple[Any, str]]:
    """`kdn serve`, ready to answer, and its address."""
    home.mkdir(exist_ok=True)
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    (home / "kdn.toml").write_text("\n".join(["[engine]", "fit_idle_s = 0", "[serve]", *lines]))
    process = start(home, "serve", "-m", folder, "--port", "0", "--json")
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        post(url, {"prompt": "x", "max_tokens": 1})
        yield process, url
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def post(url: str, body: dict[str, Any]) -> tuple[int, bytes]:
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


class Streaming(threading.Thread):
    """A client in the middle of a stream."""

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        super().__init__()
        self._url, self._body = url, body
        self.begun = threading.Event()
        self.lines: list[bytes] = []
        self.start()
        assert self.begun.wait(60)

    def run(self) -> None:
        request = urllib.request.Request(
            f"{self._url}/v1/completions",
            json.dumps(self._body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            for line in answer:
                if line.strip():
                    self.lines.append(line)
                    self.begun.set()


def ended(process: subprocess.Popen[str]) -> tuple[Done, float]:
    begun = time.monotonic()
    done = finish(process)
    return done, time.monotonic() - begun


@pytest.mark.alone
def test_a_stop_ends_running_streams_with_an_error_and_keeps_what_was_stored(
    tmp_path: Path, folder: Path
) -> None:
    home = tmp_path / "home"
    with program(home, folder, grace_s=1) as (process, url):
        client = Streaming(url, LONG)
        process.send_signal(signal.SIGTERM)
        refused = _until_refused(url)
        done, took_s = ended(process)
        client.join()
    assert refused in (503, None)  # None: the port is closed already
    assert json.loads(client.lines[-2][6:])["error"]["code"] == "cancelled"
    assert client.lines[-1] == b"data: [DONE]\n"
    assert done.code == 0, done.err
    assert took_s < 1 + 2 + 8  # eight more for a machine that is shared
    with open_store(home / "store", disk_bytes=1 << 30) as store:
        assert store.verify().corrupt == ()
        assert store.stat().blocks >= 1


@pytest.mark.alone
def test_a_stop_under_load_ends_every_stream_within_the_grace(tmp_path: Path, folder: Path) -> None:
    home = tmp_path / "home"
    bodies = [{**LONG, "prompt": f"{number} " + "x" * 200} for number in range(24)]
    with program(home, folder, grace_s=2) as (process, url):
        clients = [Streaming(url, body) for body in bodies]
        process.send_signal(signal.SIGTERM)
        done, took_s = ended(process)
        for client in clients:
            client.join()
    assert done.code == 0, done.err
    assert took_s < 2 + 2 + 8  # eight more for a machine that is shared
    for client in clients:
        assert json.loads(client.lines[-2][6:])["error"]["code"] == "cancelled"
        assert client.lines[-1] == b"data: [DONE]\n"
    with open_store(home / "store", disk_bytes=1 << 30) as store:
        assert store.verify().corrupt == ()


def _until_refused(url: str) -> int | None:
    for _ in range(200):
        try:
            status, _ = post(url, {"prompt": "x", "max_tokens": 1})
        except OSError:
            return None
        if status != 200:
            return status
    raise AssertionError("requests are still taken")


def test_what_ends_within_the_grace_ends_well(tmp_path: Path, folder: Path) -> None:
    with program(tmp_path / "home", folder, grace_s=60) as (process, url):
        client = Streaming(url, {**LONG, "max_tokens": 40})
        process.send_signal(signal.SIGINT)
        done, took_s = ended(process)
        client.join()
    assert client.lines[-1] == b"data: [DONE]\n"
    assert b'"finish_reason":"length"' in client.lines[-2]
    assert done.code == 130
    assert took_s < 50, "the grace is a minute"


_HANGS = """
import os, signal, socket, threading, time, uvicorn
from kdn.clock import SystemClock
from kdn.serve.connections import Server
from kdn.serve.limits import Shutdown
async def app(scope, receive, send): ...
signal.signal(signal.SIGTERM, lambda *_: time.sleep(600))  # a closing that never ends
listening = socket.create_server(("127.0.0.1", 0))
server = Server(uvicorn.Config(app, lifespan="off"), Shutdown(0.2, SystemClock()))
def stop():
    while not server.started:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=stop, daemon=True).start()
server.run(sockets=[listening])
"""


def test_a_closing_that_hangs_does_not_hold_up_the_end() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HANGS], timeout=120, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"closing took longer than 1.7 s" in done.stderr


@pytest.mark.alone
def test_control_c_twice_does_not_wait(tmp_path: Path, folder: Path) -> None:
    with program(tmp_path / "home", folder, grace_s=60) as (process, url):
        client = Streaming(url, LONG)
        process.send_signal(signal.SIGINT)
        _until_refused(url)
        process.send_signal(signal.SIGINT)
        done, took_s = ended(process)
        client.join()
    assert done.code in (-signal.SIGINT, 130)
    assert took_s < 30, "half of the grace"
