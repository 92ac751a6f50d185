"""The programs of a campaign: each can be killed at any moment and is started again on its port."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from tests.ports import free_port

__all__ = ["BUCKET", "Program", "child_processes", "kdn_program", "redis_program", "s3_program"]

ROOT = Path(__file__).parents[2]
BUCKET = "kv-soak"


class Program:
    """One program on one port of loopback. Its output goes to a file."""

    def __init__(
        self,
        name: str,
        command: list[str],
        port: int,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """`prepare` is called each time that the program answers."""
        self.name = name
        self.port = port
        self.log = folder / f"{name}.log"
        self._command = command
        self._environment = {**os.environ, **(environment or {})}
        self._prepare = prepare
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()
        self._is_ended = False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns once the program listens, or immediately after `end`."""
        if self.launch():
            self.wait()

    def launch(self) -> bool:
        """Begin a process where none runs; False after `end`: what begins then would outlive its test."""
        with self._starting:
            if self._is_ended:
                return False
            if self.is_alive():
                return True
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command, stdout=log, stderr=log, env=self._environment, cwd=ROOT
                )
            return True

    def wait(self, timeout_s: float = 60.0) -> None:
        """Until it listens."""
        until_s, tick = time.monotonic() + timeout_s, threading.Event()
        while time.monotonic() < until_s:
            assert self._process is not None
            if self._is_ended:
                return
            assert self._process.poll() is None, f"{self.name} ended: {self.tail()}"
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                self._prepare()
                return
            tick.wait(0.01)
        raise AssertionError(f"{self.name} does not listen: {self.tail()}")

    def kill(self) -> None:
        """As kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def end(self) -> None:
        """Kill it for good: a thread that starts it meanwhile leaves no process behind."""
        with self._starting:
            self._is_ended = True
        self.kill()

    def stop(self, timeout_s: float) -> tuple[int, float]:
        """As an operator does it: the exit code, and how long it took."""
        assert self._process is not None
        began_s = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout_s), time.monotonic() - began_s

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def tail(self) -> str:
        """The last lines of its output."""
        return self.log.read_text("utf-8", "replace")[-3000:]


def answers(url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bool:
    """Is the answer 200?"""
    request = urllib.request.Request(
        url, body, {"content-type": "application/json", **(headers or {})}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status) == 200
    except (OSError, ValueError):
        return False


def kdn_program(
    name: str,
    arguments: list[str],
    home: Path,
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> Program:
    """`kdn arguments...` on a free port, with that home."""
    port = free_port()
    command = [sys.executable, "-m", "kdn", *arguments, "--port", str(port)]
    own = {"KDN_HOME": str(home), "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return Program(name, command, port, folder, {**own, **(environment or {})})


def redis_program(folder: Path) -> Program:
    """A Redis that keeps nothing over a restart; or a skip."""
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("redis-server is not installed")
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    return Program("redis", [found, *options, "--maxmemory", "64mb"], port, folder)


def s3_program(folder: Path) -> Program:
    """moto's S3 with an empty bucket after each start; or a skip."""
    pytest.importorskip("moto.server", reason="moto[server] is not installed")
    port = free_port()

    def make_bucket() -> None:
        sign = "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request, Signature=x"
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/{BUCKET}", method="PUT", headers={"authorization": sign}
        )
        urllib.request.urlopen(request, timeout=30).close()

    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-p", str(port)]
    return Program("s3", command, port, folder, prepare=make_bucket)


def child_processes(pid: int) -> list[int]:
    """Processes that `pid` started, as /proc has them."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found
