"""Events on their way: what a client may rely on line by line, and what slow or many clients get."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from kdn.core import Token
from kdn.engine.request import RunningStream
from kdn.serve import Limits, ServeSettings
from kdn.serve.openai.streams import ResponseStreams
from tests.serve.running import Running, running, wait_for
from tests.serve.scripted import ANSWER, ScriptedService

ASK = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def service() -> Iterator[ScriptedService]:
    service = ScriptedService()
    yield service
    service.close()


@pytest.fixture(scope="module")
def server(service: ScriptedService) -> Iterator[Running]:
    with running(service) as server:
        yield server


def lines_of(server: Running, path: str, **body: Any) -> list[str]:
    """What httpx calls lines, and so do clients built on it."""
    with server.http.stream("POST", path, json={**body, "stream": True}) as answer:
        return [line for line in answer.iter_lines() if line]


def test_what_unicode_calls_a_line_end_does_not_end_a_line(server: Running) -> None:
    text = "a\u2028b\u0085c\u2029d\x0be"
    lines = lines_of(server, "/v1/completions", prompt=text, echo=True, max_tokens=1)
    assert all(line.startswith("data: ") for line in lines)
    assert json.loads(lines[0].removeprefix("data: "))["choices"][0]["text"] == text
    assert lines[-1] == "data: [DONE]"


def test_nor_does_it_end_a_line_of_a_response(server: Running) -> None:
    text = "a\u2028b\u0085c"
    lines = lines_of(server, "/v1/responses", input="Hello", instructions=text, max_output_tokens=1)
    assert all(line.startswith(("event: ", "data: ")) for line in lines)
    assert json.loads(lines[1].removeprefix("data: "))["response"]["instructions"] == text


def test_the_role_goes_out_with_the_first_token(server: Running, service: ScriptedService) -> None:
    """A load generator takes the first event for the first token, and must be right in that."""
    service.gate.clear()
    try:
        with server.http.stream(
            "POST", "/v1/chat/completions", json={"messages": ASK, "max_tokens": 2, "stream": True}
        ) as answer:
            lines = answer.iter_lines()
            assert answer.status_code == 200  # the head is here, and no event yet
            first: list[str] = []
            reader = threading.Thread(target=lambda: first.append(next(lines)))
            reader.start()
            reader.join(0.2)
            assert first == []
            service.gate.set()
            reader.join()
            rest = [line for line in lines if line]
    finally:
        service.gate.set()
    deltas = [json.loads(one[6:])["choices"][0]["delta"] for one in [*first, *rest[:-1]]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [one.get("content") for one in deltas[1:]] == ["P", "a", None]


def test_echo_gives_back_the_prompt_as_it_was(server: Running) -> None:
    prompt = "<|im_start|>user\nhi<|im_end|>\n"
    body = {"prompt": prompt, "echo": True, "max_tokens": 1}
    answer = server.http.post("/v1/completions", json=body).json()
    assert answer["choices"][0]["text"] == prompt + "P"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"prompt": "ab", "prompt_logprobs": 1}),
        ("completions", {"prompt": "ab", "echo": True, "logprobs": 1}),
        ("chat/completions", {"messages": ASK, "prompt_logprobs": 1}),
    ],
)
def test_a_prompt_is_spelled_out_beside_the_event_loop(
    server: Running, path: str, body: dict[str, Any]
) -> None:
    """Seconds for a long one, in which no other client would hear anything."""
    answer = server.http.post(f"/v1/{path}", json={**body, "max_tokens": 1})
    assert answer.status_code == 200
    assert "-0.5" in answer.text, "the prompt's own probabilities"


def test_prompts_are_made_while_others_are_spelled_out() -> None:
    """Twenty answers that tell their prompts would take every thread that makes prompts, of 16."""
    service = ScriptedService()
    service.spelling.clear()
    body = {"messages": ASK, "prompt_logprobs": 1, "max_tokens": 1}
    with running(service) as server, ThreadPoolExecutor(20) as clients:
        try:
            post = server.http.post
            told = [clients.submit(post, "/v1/chat/completions", json=body) for _ in range(20)]
            wait_for(lambda: sum(one.ended for one in service.streams) == 20)
            made = server.http.post("/tokenize", json={"prompt": "ab"}, timeout=20)
        finally:
            service.spelling.set()
        assert made.json()["tokens"] == [97, 98]
        assert all("-0.5" in one.result().text for one in told), "each in its turn"
    service.close()


def test_an_answer_of_n_choices_streams_each_with_its_own_role(server: Running) -> None:
    lines = lines_of(server, "/v1/chat/completions", messages=ASK, n=3, max_tokens=2)
    choices = [json.loads(line[6:])["choices"][0] for line in lines[:-1]]
    roles = [one["index"] for one in choices if one["delta"].get("role")]
    assert sorted(roles) == [0, 1, 2]
    for index in range(3):
        own = [one for one in choices if one["index"] == index]
        assert own[0]["delta"].get("role") == "assistant"
        assert own[-1]["finish_reason"] == "length"


def test_an_error_after_the_start_is_told_and_the_stream_is_closed_properly() -> None:
    service = ScriptedService()
    service.pause_at = 3
    try:
        with (
            running(service) as server,
            server.http.stream(
                "POST", "/v1/completions", json={"prompt": "x", "stream": True}
            ) as answer,
        ):
            lines = answer.iter_lines()
            next(lines)
            service.broken = ValueError("out of memory")
            service.pause_at = None
            *_, error, done = [line for line in lines if line]
        assert json.loads(error[6:])["error"]["code"] == "engine_failed"
        assert done == "data: [DONE]"
    finally:
        service.close()


def test_a_slow_reader_has_a_bounded_buffer() -> None:
    """52,000 tokens come at once and nobody reads: after 500 waiting events the answer is ended."""
    service = ScriptedService(max_context=100_000)
    settings = ServeSettings(port=0, grace_s=5, limits=Limits(stream_events=500))
    body = {"prompt": "x" * 9, "stream": True, "ignore_eos": True, "max_tokens": 52_000}
    try:
        with (
            running(service, settings) as server,
            server.http.stream("POST", "/v1/completions", json=body) as answer,
        ):
            wait_for(lambda: service.streams[0].ended)
            lines = [line for line in answer.iter_lines() if line]
            assert service.streams[0].num_sent < 52_000
        assert "500 events wait" in json.loads(lines[-2][6:])["error"]["message"]
        assert lines[-1] == "data: [DONE]"
    finally:
        service.close()


def test_more_than_may_wait_is_refused_with_a_time_and_taken_later() -> None:
    service = ScriptedService()
    limits = Limits(caller_requests=2, all_requests=3)
    settings = ServeSettings(port=0, api_keys=("one", "two"), limits=limits)

    def ask(server: Running, key: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        body = {"prompt": "x", "max_tokens": 1}
        return server.http.post("/v1/completions", json=body, headers=headers)

    try:
        with running(service, settings) as server:
            service.gate.clear()
            waiting = [threading.Thread(target=ask, args=(server, "one")) for _ in range(2)]
            for one in waiting:
                one.start()
            wait_for(lambda: len(service.streams) == 2)
            refused = ask(server, "one")
            assert (refused.status_code, refused.json()["error"]["type"]) == (
                429,
                "rate_limit_error",
            )
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            third = threading.Thread(target=ask, args=(server, "two"))
            third.start()
            wait_for(lambda: len(service.streams) == 3)
            full = ask(server, "two")
            assert (full.status_code, full.json()["error"]["code"]) == (503, "overloaded")
            assert "retry-after" in full.headers
            service.gate.set()
            for one in (*waiting, third):
                one.join()
            assert ask(server, "one").status_code == 200
    finally:
        service.close()


def test_two_thousand_long_prompts_are_not_all_taken() -> None:
    """Ten thousand tokens may wait: of prompts of a thousand, ten."""
    service = ScriptedService()
    limits = Limits(caller_tokens=10_000, all_tokens=10_000)
    try:
        with running(service, ServeSettings(port=0, limits=limits)) as server:
            service.gate.clear()
            body = {"prompt": ["x" * 1000] * 10, "max_tokens": 1}
            held = threading.Thread(
                target=server.http.post, args=("/v1/completions",), kwargs={"json": body}
            )
            held.start()
            wait_for(lambda: len(service.streams) == 10)
            more = {"prompt": "x" * 1000, "max_tokens": 1}
            assert server.http.post("/v1/completions", json=more).status_code == 429
            service.gate.set()
            held.join()
            assert server.http.post("/v1/completions", json=more).status_code == 200
    finally:
        service.close()


def test_a_request_cancelled_while_it_waits_is_counted(
    server: Running, service: ScriptedService
) -> None:
    def aborted() -> float:
        return server.metric("vllm:request_success_total", finished_reason="abort")

    before, num_streams = aborted(), len(service.streams)
    service.gate.clear()
    try:
        with server.asking("/v1/completions", b'{"prompt": "x"}'):
            wait_for(lambda: len(service.streams) > num_streams)
        wait_for(lambda: aborted() == before + 1)
    finally:
        service.gate.set()
    assert service.streams[-1].num_sent == 0


def test_the_answer_is_the_same_whole_and_streamed(server: Running) -> None:
    whole = server.http.post("/v1/completions", json={"prompt": "x"}).json()["choices"][0]["text"]
    events = lines_of(server, "/v1/completions", prompt="x")[:-1]
    pieces = [json.loads(line[6:])["choices"][0]["text"] for line in events]
    assert "".join(pieces) == whole == ANSWER


def test_what_comes_together_is_read_together_and_an_error_after_it() -> None:
    """Two answers: three tokens wait, then the second one's failure; nobody hears of what follows."""

    async def story() -> None:
        first, second = RunningStream(lambda: None), RunningStream(lambda: None)
        streams = ResponseStreams(2, 100, ExitStack())
        for stream in (first, second):
            streams.attach(stream, lambda _: None)
        a, b, c = Token(1, "a"), Token(2, "b"), Token(3, "c")
        first.push(a, b)
        second.push(c, ValueError("it broke"), None)
        assert await streams.arrived() == [(0, a), (0, b), (1, c)]
        with pytest.raises(ValueError, match="it broke"):
            await streams.arrived()
        assert first.is_cancelled is False
        streams.close()
        assert first.is_cancelled

    asyncio.run(story())
