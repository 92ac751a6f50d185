"""The benchmark of serving: loads by hand, and its generator against a server of four lines."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from kdn.bench.serve.generator import run_load
from kdn.bench.serve.serve import ALONE, KDN, NOTHING_KEPT, VLLM, _Found, _shares, turns
from kdn.bench.serve.servers import LoadedServer
from kdn.bench.serve.traffic import (
    LoadAnswer,
    LoadRequest,
    LoadResult,
    OfferedLoad,
    TrafficShape,
    make_load,
)

UNIQUE = TrafficShape("unique", (20, 20), (3, 3))
SHARED = TrafficShape("shared", (4, 4), (3, 3), num_documents=3, document_tokens=16)
MIXED = TrafficShape("mixed", (8, 512), (2, 64))


def test_a_load_of_equal_seed_is_the_same_but_for_its_readers_tokens() -> None:
    one = make_load(MIXED, 50, 2.0, 1000, "seed", reader="a")
    assert one == make_load(MIXED, 50, 2.0, 1000, "seed", reader="a")
    other = make_load(MIXED, 50, 2.0, 1000, "seed", reader="b")
    assert [(r.at_s, len(r.prompt), r.max_tokens) for r in one] == [
        (r.at_s, len(r.prompt), r.max_tokens) for r in other
    ]
    assert all(a.prompt[:8] != b.prompt[:8] for a, b in zip(one, other, strict=True))
    assert 0.3 < one[-1].at_s / 49 < 0.8  # two a second
    assert all(8 <= len(r.prompt) <= 512 and 2 <= r.max_tokens <= 64 for r in one)


def test_shared_prompts_begin_with_one_of_the_documents_and_the_first_most_often() -> None:
    requests = make_load(SHARED, 300, None, 1000, "seed")
    begins = [tuple(r.prompt[:16]) for r in requests]
    counts = sorted((begins.count(one) for one in set(begins)), reverse=True)
    assert len(counts) == 3
    assert 130 < counts[0] < 200  # 6 of 11 by Zipf: 164
    assert all(r.at_s == 0 for r in requests)
    again = make_load(SHARED, 300, None, 1000, "another seed")
    assert {tuple(r.prompt[:16]) for r in again} == set(begins)


def test_a_result_counts_answers_by_the_whole_time() -> None:
    result = LoadResult(
        [
            LoadAnswer(0.0, 1.0, 2.0, 5),
            LoadAnswer(0.5, 3.0, 4.0, 1),
            LoadAnswer(0.5, error="refused"),
        ]
    )
    assert result.seconds == 4.0
    assert result.requests_per_s == 0.5
    assert result.first_token_s == [1.0, 2.5]
    assert result.token_s == [0.25]  # an answer of one token has none after the first


def test_the_summary_is_of_medians_over_rounds() -> None:
    found = _Found()
    assert set(found.summary().values()) == {None}
    found.rates = {
        ("unique", KDN): [2.0, 3.0, 9.0],
        ("unique", NOTHING_KEPT): [4.0, 4.0, 10.0],
        ("unique", ALONE): [2.5, 3.0, 10.0],
        ("unique", VLLM): [1.0, 1.0, 1.0],
    }
    found.cpu_s = {
        ("unique", KDN): [2.0, 1.0, 4.0],
        ("unique", NOTHING_KEPT): [1.0, 0.75, 4.0],
        ("unique", ALONE): [1.9, 0.9, 3.0],
    }
    found.waits = {("unique", 0.5, KDN): 0.25, ("unique", 0.5, VLLM): 1.0}
    assert found.summary() == {
        "throughput_gain_vllm": 3.0,
        "ttft_gain_vllm": 4.0,
        "shared_gain_vllm": None,
        "retention_cost": pytest.approx(0.25),
        "retention_cpu_cost": pytest.approx(0.25),
        "http_cost": pytest.approx(0.1),
        "http_cpu_cost": pytest.approx(0.1),
    }
    assert found.spreads() == [
        "Of 3 rounds `retention_cost` is 0.100 to 0.500.",
        "Of 3 rounds `retention_cpu_cost` is 0.000 to 0.500.",
        "Of 3 rounds `http_cost` is 0.000 to 0.200.",
        "Of 3 rounds `http_cpu_cost` is 0.050 to 0.250.",
    ]


class _Ticking(LoadedServer):
    """A server that spends so many processor seconds between two looks."""

    def __init__(self, spent_s: list[float]) -> None:
        self.spent_s = spent_s
        self._total_s = 0.0

    def run(self, requests: list[LoadRequest], extra: dict[str, object]) -> LoadResult:
        raise NotImplementedError

    def cpu_s(self) -> float:
        self._total_s += self.spent_s.pop(0)
        return self._total_s


def test_a_load_ends_when_the_server_works_no_more() -> None:
    server = _Ticking([5.0, 0.2, 0.01, 0.3])
    waited_s: list[float] = []
    server.settle(waited_s.append)
    assert waited_s == [0.5, 0.5]
    assert server.spent_s == [0.3], "after half a second with 10 ms it is not asked again"


def test_idle_is_what_the_engine_does_not_spend_during_the_load() -> None:
    result = LoadResult([LoadAnswer(10.0, 11.0, 12.0, 5)])
    spent = {"wait": 30.0, "prefill": 1.0, "decode": 0.5, "http": 0.2}  # it waited long before
    assert _shares(spent, result) == {"idle": 0.25, "prefill": 0.5, "decode": 0.25, "http": 0.1}
    assert _shares({}, result) == {}


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Three events in chunks that are cut anywhere; a prompt of one token is refused."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"Connection: close" in head
    size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    body = json.loads(await reader.readexactly(size))
    if len(body["prompt"]) == 1:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\ntoo short")
    else:
        assert body["kdn"] == {"keep": "nothing"}
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        events = b'data: {"choices": [{"text": "a"}]}\n\ndata: {"choices": [{"text": "b"}]}\n\n'
        events += b'data: {"choices": [], "usage": {"completion_tokens": 2}}\n\ndata: [DONE]\n\n'
        for at in range(0, len(events), 30):
            writer.write(_chunk(events[at : at + 30]))
        writer.write(b"0\r\n\r\n")
    await writer.drain()
    writer.close()


def test_the_generator_times_streams_and_tells_of_what_was_refused() -> None:
    began_s = 0.0

    async def story() -> LoadResult:
        server = await asyncio.start_server(_serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        requests = [LoadRequest(0.0, [1, 2], 2), LoadRequest(0.02, [1], 2)]
        extra: dict[str, object] = {"kdn": {"keep": "nothing"}}
        async with server:
            nonlocal began_s
            began_s = time.perf_counter()
            return await run_load(OfferedLoad(requests, f"http://127.0.0.1:{port}", "tiny", extra))

    good, refused = asyncio.run(story()).answered
    assert good.num_tokens == 2
    assert good.sent_s < good.first_s <= good.last_s
    assert refused.error.startswith("ValueError: HTTP/1.1 400")
    assert refused.sent_s - began_s >= 0.019, "20 ms after the beginning, or later"


def test_rivals_run_less_often_than_what_is_compared_with_itself() -> None:
    """Two rounds beside vLLM; a third for our own costs. Who was first is last in the next round."""
    names = ["kdn", "kdn, nothing retained", "engine alone", "vllm"]
    assert list(turns(names, rounds=2, cost_rounds=3)) == [
        *((0, name) for name in names),
        *((1, name) for name in reversed(names)),
        *((2, name) for name in names[:3]),
    ]
    assert list(turns(names, rounds=1, cost_rounds=0)) == [(0, "kdn"), (0, "vllm")]
