"""The router in front of real kdn servers: each a process of its own, with a tiny model."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from kdn.errors import BadConfig
from kdn.scale.router.app import RouterSettings
from tests.scale.served import routed, served

pytestmark = pytest.mark.slow

TIDES = "The tide at the northern harbour comes twice a day and nobody waits for it. " * 20


def state(client: httpx.Client) -> dict[str, dict[str, Any]]:
    return {one["server"]: one for one in client.get("/v1/router").json()["servers"]}


def metric(client: httpx.Client, name: str) -> dict[str, float]:
    from prometheus_client.parser import text_string_to_metric_families

    return {
        sample.labels["server"]: sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name == name
    }


def ask(client: httpx.Client, text: str, **more: Any) -> dict[str, Any]:
    body = {"model": "any", "prompt": text, "max_tokens": 4, "temperature": 0, **more}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model(max_position_embeddings=8192)


def test_a_prompt_goes_to_the_server_that_computed_its_beginning(
    tmp_path: Path, model: Path
) -> None:
    with served(tmp_path, model, 2) as [(one, _), (other, _)], routed(one, other) as client:
        name = client.get("/v1/models").json()["data"][0]["id"]
        for topic in ("Tides. ", "Winds. ", "Birds. "):
            ask(client, topic + TIDES, model=name)
        before = metric(client, "kdn_router_requests_total")
        again = ask(client, "Winds. " + TIDES + "What of them?", model=name)
        after = metric(client, "kdn_router_requests_total")
        used = again["usage"]
        assert used["prompt_tokens_details"]["cached_tokens"] > used["prompt_tokens"] / 2
        assert sum(after.values()) == sum(before.values()) + 1
        assert sum(metric(client, "kdn_router_matched_tokens_total").values()) > 0
        answer = client.post("/v1/completions", json={"model": name, "prompt": 3.5})
        assert answer.status_code == 400  # a server's refusal is passed on, not tried elsewhere
        assert sum(metric(client, "kdn_router_retries_total").values()) == 0


def test_a_killed_server_loses_no_request_that_had_not_begun(tmp_path: Path, model: Path) -> None:
    with (
        served(tmp_path, model, 2) as [(alive, _), (dying, program)],
        routed(alive, dying, rule="round-robin") as client,
    ):
        name = client.get("/v1/models").json()["data"][0]["id"]
        expected = ask(client, "Tides. " + TIDES, model=name)["choices"][0]["text"]
        started = threading.Barrier(9)

        def one(number: int) -> str:
            started.wait()
            return str(ask(client, "Tides. " + TIDES, model=name)["choices"][0]["text"])

        with ThreadPoolExecutor(8) as threads:
            answers = [threads.submit(one, number) for number in range(8)]
            started.wait()
            program.kill()
            assert [answer.result() for answer in answers] == [expected] * 8
        ask(client, "After it. " + TIDES, model=name)
        program.wait()
        for _ in range(3):
            ask(client, "Once more. " + TIDES, model=name)
        assert state(client)[alive]["up"]
        assert not state(client)[dying]["up"]
        assert client.get("/health").status_code == 200


def test_a_stream_passes_through_as_it_comes(tmp_path: Path, model: Path) -> None:
    with served(tmp_path, model) as [(url, program)], routed(url) as client:
        name = client.get("/v1/models").json()["data"][0]["id"]
        body = {
            "model": name,
            "messages": [{"role": "user", "content": TIDES}],
            "max_tokens": 8,
            "temperature": 0,
            "ignore_eos": True,
        }
        plain = client.post("/v1/chat/completions", json=body).json()
        lines = []
        with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in stream.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        told = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        texts = [one["choices"][0]["delta"].get("content") or "" for one in told if one["choices"]]
        assert "".join(texts) == plain["choices"][0]["message"]["content"]
        # a server that dies in the middle ends the stream with an error that clients raise
        long = body | {"stream": True, "max_tokens": 6000}
        with client.stream("POST", "/v1/chat/completions", json=long) as stream:
            coming = stream.iter_lines()
            first = next(coming)
            program.kill()
            rest = [line for line in coming if line]
        assert first.startswith("data: ")
        assert "send it again" in json.loads(rest[-1].removeprefix("data: "))["error"]["message"]
        program.wait()
        refused = client.post("/v1/chat/completions", json=body)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "no_server"
        assert refused.headers["retry-after"] == "1"


def test_a_streamed_response_is_computed_once(tmp_path: Path, model: Path) -> None:
    """Its first events tell of the request, and none has the `choices` of the older API."""
    with served(tmp_path, model, 2) as [(one, _), (other, _)], routed(one, other) as client:
        body = {"input": TIDES, "stream": True, "max_output_tokens": 4}
        with client.stream("POST", "/v1/responses", json=body) as stream:
            lines = [line for line in stream.iter_lines() if line.startswith("data: ")]
        told = [json.loads(line.removeprefix("data: ")) for line in lines]
        assert stream.status_code == 200
        assert told[0]["type"] == "response.created"
        assert told[-1]["type"] in ("response.completed", "response.incomplete")
        assert sum(metric(client, "kdn_router_requests_total").values()) == 1
        assert sum(metric(client, "kdn_router_retries_total").values()) == 0


def test_what_cannot_be_routed_is_refused_in_words() -> None:
    with pytest.raises(BadConfig, match="no routing rule 'fastest'; there are kv-aware"):
        RouterSettings(["http://a:1"], rule="fastest")
    with pytest.raises(BadConfig, match="'localhost:8000' is no address; write http://HOST:PORT"):
        RouterSettings(["localhost:8000"])
    with pytest.raises(BadConfig, match="has a path; leave /v1 out"):
        RouterSettings(["http://localhost:8000/v1"])
