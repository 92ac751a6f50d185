"""A router over servers of two models, with a key of its own: names, refusals, and clients that leave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.scale.served import routed, served, until

pytestmark = pytest.mark.slow
KEY = "k" * 32


def ask(client: httpx.Client, model: str) -> httpx.Response:
    body = {"model": model, "prompt": "The tide", "max_tokens": 2, "temperature": 0}
    return client.post("/v1/completions", json=body)


def ended(url: str) -> dict[str, float]:
    """A server's requests that ended, by how."""
    text = httpx.get(f"{url}/metrics", timeout=60).text
    return {
        sample.labels["finished_reason"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "vllm:request_success_total"
    }


def test_each_model_has_its_own_server(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    models = [tiny_model("llama"), tiny_model("qwen2")]
    with (
        served(tmp_path / "one", models[0]) as [(one, _)],
        served(tmp_path / "other", models[1]) as [(other, program)],
        routed(one, other, rule="round-robin", key=KEY) as client,
    ):
        names = [model.name for model in models]
        # four in turn: each second one meets the wrong server, from the first request on
        for name in (names[0], names[0], names[1], names[1]):
            answer = ask(client, name)
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == name
        listed = [one["id"] for one in client.get("/v1/models").json()["data"]]
        assert set(names) <= set(listed)
        assert len(set(listed)) == len(listed), "what both serve is listed once"
        refused = ask(client, "another")
        assert refused.status_code == 404
        assert "'another' is not served here" in refused.json()["error"]["message"]

        def known() -> bool:
            told = client.get("/v1/router").json()["servers"]
            return [set(names) & set(one["models"]) for one in told] == [{name} for name in names]

        assert until(known)
        program.kill()
        program.wait()
        gone = ask(client, names[1])
        assert gone.status_code == 503
        assert gone.json()["error"]["message"].startswith(f"no server of {names[1]!r} answers")
        assert ask(client, names[0]).status_code == 200


def test_a_key_opens_everything_but_health(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    """Routes for operators are each server's own: the router has none for any key."""
    model = tiny_model("llama", max_position_embeddings=4096)
    with (
        served(tmp_path, model) as [(url, _)],
        routed(url, key=KEY) as client,
        httpx.Client(base_url=client.base_url, timeout=60) as without,
    ):
        assert without.get("/health").status_code == 200
        for path in ("/metrics", "/v1/router", "/v1/models"):
            assert without.get(path).status_code == 401
            assert client.get(path).status_code == 200
        assert client.post("/v1/kdn/checkpoint", json={}).status_code == 404

        long = {"model": model.name, "prompt": "The tide", "max_tokens": 4000, "stream": True}
        long["ignore_eos"] = True
        with client.stream("POST", "/v1/completions", json=long) as stream:
            next(stream.iter_lines())
        assert until(lambda: client.get("/v1/router").json()["servers"][0]["running"] == 0)
        assert until(lambda: ended(url).get("abort") == 1), ended(url)
