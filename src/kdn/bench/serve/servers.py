"""Who answers the loads: `kdn serve`, the engine without HTTP, vLLM's server. Each is a process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from kdn.bench.common.result import BenchOptions
from kdn.bench.serve.traffic import LoadRequest, LoadResult, OfferedLoad
from kdn.errors import EngineFailed

__all__ = [
    "AloneServer",
    "HttpServer",
    "LoadedServer",
    "server_settings",
    "start_alone",
    "start_kdn",
    "start_vllm",
]

_SOURCE = Path(__file__).parents[3]
_START_S = 240.0
_SETTLE_S = 30.0
_IDLE_CPU_S = 0.015
"""Of half a second: a server's own ticks."""
_STORE_BYTES = 4 * 1024**3


class _Process:
    """A program with its log, ended with everything that it started."""

    def __init__(
        self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str]
    ) -> None:
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={k: v for k, v in os.environ.items() if not k.startswith("KDN_")}
                | {"PYTHONPATH": str(_SOURCE)}
                | dict(environment),
            )
        self._log = log

    def read_line(self) -> bytes:
        """The next line of its output. Raises EngineFailed when it has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise EngineFailed(f"a server ended; its last words: {self.last_line()}")
        return line

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Ends the process where what happens inside fails or is stopped."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def last_line(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "(none)"

    def cpu_s(self) -> float:
        return sum(map(_cpu_s, _family(self.process.pid)))

    def close(self) -> None:
        """End it, and wait until it is gone."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class LoadedServer(ABC):
    """Answers loads, one after another, in a process of its own."""

    def __init__(self, process: _Process) -> None:
        self._process = process

    @abstractmethod
    def run(self, requests: list[LoadRequest], extra: dict[str, object]) -> LoadResult:
        """What became of the requests; `extra` goes into every body. Raises EngineFailed."""

    def cpu_s(self) -> float:
        """Processor seconds of the server and its children so far."""
        return self._process.cpu_s()

    def settle(self, wait: Callable[[float], None] = time.sleep) -> None:
        """Wait until it has nothing left to do: what a load leaves for later, such as writing what is
        retained, belongs to that load and disturbs no other."""
        deadline_s, before_s = time.monotonic() + _SETTLE_S, -1.0
        while (now_s := self.cpu_s()) - before_s > _IDLE_CPU_S and time.monotonic() < deadline_s:
            before_s = now_s
            wait(0.5)

    def close(self) -> None:
        """End the process."""
        self._process.close()


class HttpServer(LoadedServer):
    """A server with OpenAI's completions, loaded by a generator in another process."""

    def __init__(self, process: _Process, url: str, model: str) -> None:
        super().__init__(process)
        self.url = url
        self._model = model

    def run(self, requests: list[LoadRequest], extra: dict[str, object]) -> LoadResult:
        load = OfferedLoad(requests, self.url, self._model, extra)
        done = subprocess.run(
            [sys.executable, "-m", "kdn.bench.serve.generator"],
            input=msgspec.json.encode(load),
            capture_output=True,
            check=False,
            env=os.environ | {"PYTHONPATH": str(_SOURCE)},
        )
        if done.returncode:
            raise EngineFailed(f"the generator of load failed: {done.stderr.decode()[-300:]}")
        return msgspec.json.decode(done.stdout, type=LoadResult)

    def metrics(self, name: str) -> dict[str, float]:
        """The values of one metric of ours by its last label."""
        lines = self.get("/metrics").decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if line.startswith(f"{name}{{"))
        return {labels.split('"')[-2]: float(value) for labels, _, value in pairs}

    def get(self, path: str) -> bytes:
        """The body of what the server has there. Raises OSError, also for another status than 200."""
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            if answer.status != HTTPStatus.OK:
                raise OSError(f"{path} answered {answer.status}")
            return answer.read()
        finally:
            connection.close()


class AloneServer(LoadedServer):
    """The engine in a process, without HTTP."""

    def run(self, requests: list[LoadRequest], extra: dict[str, object]) -> LoadResult:
        assert self._process.process.stdin is not None
        self._process.process.stdin.write(
            msgspec.json.encode(OfferedLoad(requests, extra=extra)) + b"\n"
        )
        self._process.process.stdin.flush()
        return msgspec.json.decode(self._process.read_line(), type=LoadResult)


def start_kdn(options: BenchOptions, scratch: Path) -> HttpServer:
    """`kdn serve` with a fresh store in `scratch`, ready."""
    command = [sys.executable, "-m", "kdn", "serve", "--model", options.model]
    command += ["--port", "0", "--json"]
    process = _Process(command, scratch / "kdn.log", server_settings(options, scratch / "served"))
    with process.starting():
        told = msgspec.json.decode(process.read_line())
        server = HttpServer(process, told["url"], told["model"])
        _await(server, process)
    return server


def start_alone(options: BenchOptions, scratch: Path) -> AloneServer:
    """Our engine without HTTP, ready."""
    command = [sys.executable, "-m", "kdn.bench.serve.alone", options.model]
    process = _Process(command, scratch / "alone.log", server_settings(options, scratch / "alone"))
    with process.starting():
        process.read_line()
    return AloneServer(process)


def start_vllm(
    options: BenchOptions, scratch: Path, python: Path, model: Path, *, eager: bool
) -> HttpServer:
    """vLLM's own server on the processor, ready. Compiling takes it two minutes, `eager` 40 seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command: list[str | Path] = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        model,
    ]
    command += ["--served-model-name", "bench", "--host", "127.0.0.1", "--port", str(port)]
    command += [
        "--dtype",
        options.machine_dtype(),
        "--max-num-seqs",
        "64",
        "--no-enable-log-requests",
    ]
    command += ["--enforce-eager"] if eager else []
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "3",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": str(options.threads),
        "PYTHONPATH": "",
    }
    process = _Process(command, scratch / "vllm.log", environment)
    server = HttpServer(process, f"http://127.0.0.1:{port}", "bench")
    with process.starting():
        _await(server, process)
    return server


def server_settings(options: BenchOptions, folder: Path) -> dict[str, str]:
    """The environment of our servers, whose store lies in `folder`."""
    found = {
        "KDN_STORE_FOLDER": str(folder),
        "KDN_STORE_MEMORY_BYTES": str(_STORE_BYTES),
        "KDN_STORE_DISK_BYTES": str(_STORE_BYTES),
        "KDN_ENGINE_THREADS": str(options.threads),
        "KDN_ENGINE_FIT_IDLE_S": "0",
        # Answers to random tokens repeat themselves, which guesses would gain from as on nobody's text.
        "KDN_ENGINE_SPECULATIVE_TOKENS": "0",
    }
    return found if options.home is None else found | {"KDN_HOME": str(options.home)}


def _await(server: HttpServer, process: _Process) -> None:
    """Until /health answers. Raises EngineFailed when the server ends, or takes too long."""
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        if process.process.poll() is not None:
            raise EngineFailed(f"a server ended; its last words: {process.last_line()}")
        try:
            server.get("/health")
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise EngineFailed(f"a server was not ready within {_START_S:.0f} s: {process.last_line()}")


def _family(pid: int) -> list[int]:
    """The process and all that descend from it."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(c) for task in tasks for c in (task / "children").read_text().split()]
    except OSError:
        return []
    return [pid, *(one for child in children for one in _family(child))]


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
