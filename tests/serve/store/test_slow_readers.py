"""What waits for clients that do not take their answers counts for them, as their bodies do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio import to_thread
from starlette.types import ASGIApp, Message

from kdn.serve import Grant, Limits, ServeSettings, create_node_app
from kdn.serve.auth import LOCAL, own_scope
from kdn.store import Store, encode_block, open_store
from tests.store.helpers import block_id, make_block

BLOCK = make_block(block_id(range(256)))
KEY = "/v1/store/blocks/" + BLOCK.id.key
LAYERS = KEY + "/layers?start=0&stop=2&codec=int8"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "kv", disk_bytes=10**9) as one:
        one.put(BLOCK)
        yield one


def node(store: Store, caller_bytes: int) -> ASGIApp:
    limits = Limits(caller_bytes=caller_bytes)
    settings = ServeSettings(port=0, api_keys=("root",), check_host=False, limits=limits)
    return create_node_app(store, settings, (Grant("admin", "root", admin=True),))


class Client:
    """Asks for one path, and takes what is sent once it `reads`."""

    def __init__(self, *, reads: bool) -> None:
        self.status = self.size_bytes = self.num_taken = 0
        self.begun, self.reads = asyncio.Event(), asyncio.Event()
        if reads:
            self.reads.set()

    async def ask(self, app: ASGIApp, path: str, method: str = "GET", body: bytes = b"") -> None:
        path, _, query = path.partition("?")
        scope = own_scope(path, body, LOCAL)
        headers = [(b"host", b"localhost"), (b"authorization", b"Bearer root")]
        headers.append((b"content-length", str(len(body)).encode()))
        scope.update({"kdn.background": False, "method": method, "headers": headers})
        scope["query_string"] = query.encode()
        bodies: list[Message] = [{"type": "http.request", "body": body}]

        async def receive() -> Message:
            if not bodies:
                await asyncio.Event().wait()
            return bodies.pop()

        await app(scope, receive, self._take)

    async def _take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.size_bytes = int(dict(message["headers"]).get(b"content-length", 0))
            return
        self.begun.set()
        await self.reads.wait()
        self.num_taken += len(message["body"])


@pytest.mark.parametrize("path", [KEY, LAYERS, "/v1/store/blocks"])
def test_a_caller_that_takes_none_of_two_answers_gets_no_third(store: Store, path: str) -> None:
    """The limit is two such answers. When they are taken there is room for others."""

    async def ask_three(app: ASGIApp) -> list[int]:
        slow = [Client(reads=False) for _ in range(2)]
        held = [asyncio.create_task(one.ask(app, path)) for one in slow]
        for one in slow:
            await one.begun.wait()
        refused, later = Client(reads=True), Client(reads=True)
        await refused.ask(app, path)
        for one in slow:
            one.reads.set()
        await asyncio.gather(*held)
        await later.ask(app, path)
        assert all(one.num_taken == one.size_bytes for one in (*slow, later))
        return [one.status for one in (*slow, refused, later)]

    whole = Client(reads=True)
    asyncio.run(whole.ask(node(store, 1 << 30), path))
    assert (whole.status, whole.num_taken) == (200, whole.size_bytes)
    assert asyncio.run(ask_three(node(store, 2 * whole.size_bytes))) == [200, 200, 429, 200]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", LAYERS, b""),
        ("PUT", KEY, bytes(encode_block(BLOCK).data)),
        ("POST", "/v1/store/verify", b""),
        ("POST", "/v1/store/copy", b'{"keys": ["%s"], "to": "memory"}' % BLOCK.id.key.encode()),
        ("POST", "/v1/store/warm", b'{"keys": ["%s"]}' % BLOCK.id.key.encode()),
    ],
)
def test_long_work_is_done_on_threads_of_its_own(
    store: Store, method: str, path: str, body: bytes
) -> None:
    """Every thread for other routes is busy: a queue of such requests would have taken those, too."""
    client, app = Client(reads=True), node(store, 1 << 30)

    async def ask() -> None:
        threads = to_thread.current_default_thread_limiter()
        for _ in range(int(threads.total_tokens)):
            await threads.acquire_on_behalf_of(object())
        async with asyncio.timeout(30):
            await client.ask(app, path, method, body)

    asyncio.run(ask())
    assert client.status == (204 if method == "PUT" else 200)
