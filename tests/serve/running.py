"""A real server on a free port of loopback, for as long as a `with` lasts."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
from openai import OpenAI
from starlette.types import ASGIApp, Message, Scope

from kdn.clock import Clock, ManualClock
from kdn.serve import ServedModel, ServeSettings, create_app, listen, make_server, url_of
from kdn.serve.store.grants import Grant
from tests.serve.scripted import ScriptedService


@dataclass(frozen=True)
class Running:
    """Where the server is, and two clients that talk to it."""

    url: str
    http: httpx.Client
    openai: OpenAI

    def metric(self, name: str, **labels: str) -> float:
        """One sample of /metrics. Raises KeyError where it is not told."""
        from prometheus_client.parser import text_string_to_metric_families

        for family in text_string_to_metric_families(self.metrics()):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        raise KeyError(name)

    def metrics(self) -> str:
        """All of /metrics, with the numbers of the store: asked again while they are not read in time."""
        text = ""
        for _ in range(60):
            text = self.http.get("/metrics").text
            if "kdn_store_blocks" in text:
                break
        return text

    @contextmanager
    def asking(self, path: str, body: bytes) -> Iterator[None]:
        """A client that has posted `body`, waits for the answer, and leaves at the end of the block."""
        place = urlsplit(self.url)
        head = f"POST {path} HTTP/1.1\r\nhost: {place.netloc}\r\ncontent-type: application/json\r\n"
        with socket.create_connection((str(place.hostname), place.port or 80)) as client:
            client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            yield


def wait_for(is_so: Callable[[], bool]) -> None:
    """Wait until `is_so()`; two minutes are a failure."""
    pulse = threading.Event()
    for _ in range(24_000):
        if is_so():
            return
        pulse.wait(0.005)
    raise AssertionError("it did not happen within two minutes")


@contextmanager
def running(
    model: ServedModel | ScriptedService,
    settings: ServeSettings | None = None,
    others: Sequence[ServedModel] = (),
    own_keys: tuple[Grant, ...] = (),
    clock: Clock | None = None,
) -> Iterator[Running]:
    """Serve until the end of the block; then wait for the server to be gone."""
    model = model.served() if isinstance(model, ScriptedService) else model
    settings = settings or ServeSettings(port=0, grace_s=5)
    listening = listen(settings)
    clock = clock or ManualClock(wall_s=1_700_000_000)
    app = create_app(
        model, settings, version="1.2.3", clock=clock, others=others, own_keys=own_keys
    )
    server = make_server(app, settings, log_level="warning")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    wait_for(
        lambda: server.started or not thread.is_alive()
    )  # one that ends before would not close
    key = settings.api_keys[0] if settings.api_keys else "unused"
    url = url_of(listening)
    headers = {"authorization": f"Bearer {key}"}
    try:
        with (
            httpx.Client(base_url=url, timeout=60, headers=headers) as http,
            OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60) as openai,
        ):
            yield Running(url, http, openai)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def statuses_of_a_hang_up(app: ASGIApp, scope: Scope) -> list[int | None]:
    """What the server says to a client that leaves after one byte of its body, a message each."""
    came: Iterator[Message] = iter(
        [{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}]
    )
    sent: list[Message] = []

    async def receive() -> Message:
        return next(came)

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    return [one.get("status") for one in sent]
