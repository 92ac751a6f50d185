"""The traffic of a campaign, a program of its own: `python -m tests.soak.traffic ORDER.json`.

Prints one JSON object at its end: what was asked, what came, and every answer that was not the right one.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.soak.asks import Ask, compared, draw_asks, stored_text

TIMEOUT_S = 60.0
BUSY = (429, 503, 507)
"""The server says that it has too much to do, or no room: the client comes again."""


@dataclass
class Order:
    """What the program is told."""

    url: str
    key: str
    seed: int
    seconds: float
    per_s: float = 8.0
    idle_connections: int = 150
    slow_readers: int = 12
    flood_every_s: float = 20.0
    flood_size: int = 120
    expected: dict[str, Any] = field(default_factory=dict)


@dataclass
class Seen:
    """What came back."""

    sent: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    """Connections that ended before their answer did."""
    left: int = 0
    """Streams that the client gave up."""
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """Other answers than 200 and busy, and what did not come in a minute."""
    cuts_s: list[float] = field(default_factory=list)
    cut_whys: list[str] = field(default_factory=list)
    light_s: list[float] = field(default_factory=list)
    light_in_flood_s: list[float] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    """Numbers of the texts that were acknowledged and pinned."""
    most_connections: int = 0


class Traffic:
    """Everything that clients do, until the time is over."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.seen = Seen()
        self._rng = random.Random(order.seed)
        self._asks = draw_asks(order.seed)
        self._light = [ask for ask in self._asks if ask.kind == "light"]
        self._running: set[asyncio.Task[None]] = set()
        self._stop_s = time.monotonic() + order.seconds
        self._flooding = 0
        limits = httpx.Limits(max_connections=400, max_keepalive_connections=100)
        headers = {"authorization": f"Bearer {order.key}"}
        self._http = httpx.AsyncClient(
            base_url=order.url, timeout=TIMEOUT_S, limits=limits, headers=headers
        )

    async def record(self) -> dict[str, Any]:
        """The right answer to each request, of a server that nothing happens to."""
        found = {}
        for ask in self._asks:
            answer = await self._http.post(ask.path, json=ask.body)
            answer.raise_for_status()
            found[ask.name] = compared(answer.json())
        return found

    async def run(self) -> None:
        """All sorts of clients together."""
        order = self.order
        loops = [self._poisson(), self._floods(), self._lights(), self._stores(), self._looks()]
        loops += [self._slow_reader(number) for number in range(order.slow_readers)]
        loops += [self._idle() for _ in range(order.idle_connections)]
        await asyncio.gather(*loops)
        if self._running:
            await asyncio.wait(self._running, timeout=TIMEOUT_S + 5)
        await self._http.aclose()

    def _goes_on(self) -> bool:
        return time.monotonic() < self._stop_s

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        connections = len(self._running) + self.order.idle_connections + self.order.slow_readers
        self.seen.most_connections = max(self.seen.most_connections, connections)

    # --- the sorts of clients ---

    async def _poisson(self) -> None:
        while self._goes_on():
            await asyncio.sleep(self._rng.expovariate(self.order.per_s))
            ask = self._rng.choice(self._asks)
            streams = ask.path.endswith("completions") and self._rng.random() < 0.4
            self._spawn(self._stream(ask) if streams else self._post(ask))

    async def _floods(self) -> None:
        """Bursts: many at once, more than the server can do for some seconds."""
        heavy = [ask for ask in self._asks if ask.kind in ("chat", "rag", "completion")]
        while self._goes_on():
            await asyncio.sleep(self.order.flood_every_s)
            self._flooding += 1
            tasks = [
                asyncio.create_task(self._post(self._rng.choice(heavy)))
                for _ in range(self.order.flood_size)
            ]
            connections = len(tasks) + len(self._running) + self.order.idle_connections
            self.seen.most_connections = max(self.seen.most_connections, connections)
            await asyncio.wait(tasks)
            self._flooding -= 1

    async def _lights(self) -> None:
        while self._goes_on():
            await asyncio.sleep(0.25)
            self._spawn(self._post(self._rng.choice(self._light)))

    async def _looks(self) -> None:
        """What Prometheus and operators ask."""
        paths = ("/metrics", "/health", "/v1/models", "/v1/store/stat", "/v1/store/quota")
        while self._goes_on():
            await asyncio.sleep(1.0)
            for path in paths:
                self._spawn(self._get(path))

    async def _stores(self) -> None:
        """Texts are put and pinned: what is acknowledged must be there at the end."""
        number = 0
        while self._goes_on():
            await asyncio.sleep(2.0)
            number += 1
            with suppress(httpx.HTTPError):
                text = {"text": stored_text(self.order.seed, number)}
                self.seen.sent["put"] += 1
                put = await self._http.post("/v1/store/put", json=text)
                if put.status_code != 200:
                    self._refused("put", put, may_fail=True)
                    continue
                found = (await self._http.post("/v1/store/lookup-text", json=text)).json()
                keys = [hit["key"] for hit in found["hits"]]
                pinned = await self._http.post("/v1/store/pin", json={"keys": keys})
                # Until it was pinned it could be evicted: what counts is what is put again after that.
                again = await self._http.post("/v1/store/put", json=text)
                whole = found["hit_tokens"] == found["tokens"]
                if whole and pinned.status_code == again.status_code == 200:
                    self.seen.stored.append(number)

    async def _slow_reader(self, number: int) -> None:
        """A client that takes two hundred bytes now and then, of a long stream."""
        rng = random.Random(f"{self.order.seed}/{number}")
        body = {"prompt": "x " * 40, "max_tokens": 300, "stream": True, "ignore_eos": True}
        data = json.dumps(body).encode()
        host, port = self.order.url.removeprefix("http://").split(":")
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n"
        )
        while self._goes_on():
            await asyncio.sleep(rng.uniform(0.5, 3))
            with suppress(OSError, asyncio.TimeoutError):
                reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
                writer.write(head.encode() + data)
                await writer.drain()
                for _ in range(rng.randint(5, 60)):
                    await asyncio.wait_for(reader.read(200), 5)
                    await asyncio.sleep(0.1)
                    if not self._goes_on():
                        break
                writer.close()
                self.seen.left += 1

    async def _idle(self) -> None:
        """A connection that is open and says nothing, opened again when the server ends it."""
        host, port = self.order.url.removeprefix("http://").split(":")
        while self._goes_on():
            with suppress(OSError, asyncio.TimeoutError):
                reader, writer = await asyncio.open_connection(host, int(port))
                await asyncio.wait_for(reader.read(1), max(self._stop_s - time.monotonic(), 0.1))
                writer.close()
            await asyncio.sleep(1.0)

    # --- one request ---

    async def _post(self, ask: Ask) -> None:
        self.seen.sent[ask.kind] += 1
        began_s, in_flood = time.monotonic(), self._flooding > 0
        try:
            answer = await self._http.post(ask.path, json=ask.body)
        except httpx.TimeoutException:
            self.seen.failed.append(f"{ask.name}: nothing came for {TIMEOUT_S:.0f} s")
        except httpx.HTTPError as error:
            self._was_cut(ask.kind, error)
        else:
            if answer.status_code != 200:
                self._refused(ask.kind, answer)
                return
            whole = answer.json()
            if not self._compare(ask, compared(whole)):
                await self._look_closer(ask, whole)
            if ask.kind == "light":
                took_s = time.monotonic() - began_s
                (self.seen.light_in_flood_s if in_flood else self.seen.light_s).append(took_s)

    async def _stream(self, ask: Ask) -> None:
        self.seen.sent["stream"] += 1
        leaves_after = self._rng.choice([None, None, None, 1, 3])
        try:
            async with self._http.stream(
                "POST", ask.path, json={**ask.body, "stream": True}
            ) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    self._refused("stream", answer)
                    return
                await self._read_events(ask, answer, leaves_after)
        except httpx.TimeoutException:
            self.seen.failed.append(f"{ask.name}: a stream stood still for {TIMEOUT_S:.0f} s")
        except httpx.HTTPError as error:
            self._was_cut("stream", error)

    async def _read_events(
        self, ask: Ask, answer: httpx.Response, leaves_after: int | None
    ) -> None:
        text, finish, count = "", None, 0
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                self._compare(ask, [text, finish])
                return
            event = json.loads(line[6:])
            if "error" in event:
                self.seen.busy["stream"] += 1
                return
            for choice in event["choices"]:
                text += choice.get("text") or choice.get("delta", {}).get("content") or ""
                finish = choice.get("finish_reason") or finish
            count += 1
            if leaves_after is not None and count >= leaves_after:
                self.seen.left += 1
                self._begins_so(ask, text)
                return
        self._was_cut("stream", "no [DONE]")

    async def _get(self, path: str) -> None:
        self.seen.sent["look"] += 1
        try:
            answer = await self._http.get(path)
        except httpx.TimeoutException:
            self.seen.failed.append(f"{path}: nothing came for {TIMEOUT_S:.0f} s")
        except httpx.HTTPError as error:
            self._was_cut("look", error)
        else:
            if answer.status_code == 200:
                self.seen.right["look"] += 1
            else:
                self._refused("look", answer, may_fail=path.startswith("/v1/store"))

    # --- what became of it ---

    def _compare(self, ask: Ask, found: Any) -> bool:
        wanted = self.order.expected[ask.name]
        if json.loads(json.dumps(found)) == wanted:
            self.seen.right[ask.kind] += 1
            return True
        self.seen.wrong.append(f"{ask.name}: {found!r} is not {wanted!r}")
        return False

    async def _look_closer(self, ask: Ask, whole: dict[str, Any]) -> None:
        """Where a wrong answer came from, and whether it comes again with and without stored KV."""
        began_s = self._stop_s - self.order.seconds
        told = [
            f"after {time.monotonic() - began_s:.0f} s, {whole.get('usage')} {whole.get('kdn')}"
        ]
        for reuse in (True, False):
            body = {**ask.body, "kdn": {"reuse": reuse}}
            with suppress(httpx.HTTPError, KeyError):
                again = (await self._http.post(ask.path, json=body)).json()
                told.append(f"reuse {reuse}: {compared(again)!r} {again.get('kdn')}")
        self.seen.wrong.append("; ".join(told))

    def _begins_so(self, ask: Ask, text: str) -> None:
        wanted = self.order.expected[ask.name][0]
        if not wanted.startswith(text):
            self.seen.wrong.append(f"{ask.name}: {text!r} does not begin {wanted!r}")

    def _refused(self, kind: str, answer: httpx.Response, *, may_fail: bool = False) -> None:
        if answer.status_code in BUSY:
            self.seen.busy[kind] += 1
        elif may_fail and answer.status_code == 500 and "internal" not in answer.text:
            self.seen.busy[kind] += 1  # a tier's own sentence
        else:
            self.seen.failed.append(f"{kind}: {answer.status_code} {answer.text[:300]}")

    def _was_cut(self, kind: str, why: object) -> None:
        self.seen.cut[kind] += 1
        self.seen.cuts_s.append(time.monotonic())
        self.seen.cut_whys.append(f"{kind}: {type(why).__name__}: {why}"[:90])


async def _main(order: Order) -> dict[str, Any]:
    traffic = Traffic(order)
    if not order.expected:
        return await traffic.record()
    await traffic.run()
    return vars(traffic.seen)


if __name__ == "__main__":
    found = asyncio.run(_main(Order(**json.loads(Path(sys.argv[1]).read_text("utf-8")))))
    sys.stdout.write(json.dumps(found))
