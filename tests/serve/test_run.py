"""The listening socket that clients connect to."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

import kdn
from kdn.clock import SystemClock
from kdn.config import load_config
from kdn.errors import BadConfig, EngineFailed
from kdn.serve.run import listen, run, url_of
from kdn.serve.settings import ServeSettings


def test_small_answers_are_sent_at_once() -> None:
    async def options() -> list[int]:
        found: list[int] = []

        async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            end = writer.get_extra_info("socket")
            found.append(end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listening = listen(ServeSettings(port=0))
        async with await asyncio.start_server(meet, sock=listening):
            reader, writer = await asyncio.open_connection(*listening.getsockname()[:2])
            await reader.read()
            writer.close()
            await writer.wait_closed()
        return found

    assert asyncio.run(options()) == [1]


def test_a_certificate_that_cannot_be_used_is_refused_before_the_port_opens(tmp_path: Path) -> None:
    letter, missing = tmp_path / "letter.txt", tmp_path / "missing.pem"
    letter.write_text("Dear reader")
    for found, why in ((missing, "No such file"), (letter, "PEM")):
        with pytest.raises(BadConfig, match=rf"{found.name} .* cannot be used .*{why}"):
            listen(ServeSettings(port=0, certificate=found))
    with pytest.raises(BadConfig, match="comes without its certificate"):
        listen(ServeSettings(port=0, private_key=letter))


class BreakingClock(SystemClock):
    """A clock that fails the engine, and nobody else, once it is broken."""

    is_broken = False

    def now(self) -> float:
        if self.is_broken and threading.current_thread().name == "kdn-engine":
            raise OSError("the clock stopped")
        return super().now()


def test_an_engine_that_stops_ends_the_server_with_its_reason(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Clients get 503 while it fails; then `run` raises, and the command's exit code is not 0."""
    clock, raised = BreakingClock(), list[EngineFailed]()
    config = load_config({"KDN_ENGINE_FIT_IDLE_S": "0"}, home=tmp_path)
    listening = listen(ServeSettings(port=0))
    with kdn.open(tiny_model("llama"), config=config, clock=clock) as opened, listening:

        def serve() -> None:
            try:
                run([opened], listening, ServeSettings(port=0))
            except EngineFailed as error:
                raised.append(error)

        server = threading.Thread(target=serve)
        server.start()
        with httpx.Client(base_url=url_of(listening), timeout=30) as http:
            body = {"prompt": "x", "max_tokens": 2}
            assert http.post("/v1/completions", json=body).status_code == 200
            clock.is_broken = True
            statuses = set[int]()
            with suppress(httpx.TransportError):  # until the port is closed
                for _ in range(200):
                    statuses.add(http.post("/v1/completions", json=body).status_code)
        server.join(60)
        assert not server.is_alive()
    assert statuses == {503}
    assert "the clock stopped" in str(raised[0])


def test_the_address_says_where_it_can_be_reached() -> None:
    with listen(ServeSettings(port=0)) as listening:
        port = listening.getsockname()[1]
        assert url_of(listening) == f"http://127.0.0.1:{port}"
        assert url_of(listening, "https") == f"https://127.0.0.1:{port}"
    try:
        listening = listen(ServeSettings(host="::1", port=0))
    except BadConfig:
        pytest.skip("this machine has no IPv6")
    with listening:
        assert url_of(listening).startswith("http://[::1]:")
