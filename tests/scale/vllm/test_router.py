"""The router in front of two real vLLM servers that share kdn's store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.scale.served import routed
from tests.scale.vllm.running import tiny, vllm_server

pytestmark = pytest.mark.timeout(900)
TIDES = "The tide at the northern harbour comes twice a day and nobody waits for it. " * 10


def ask(client: httpx.Client, text: str) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": text, "max_tokens": 4, "temperature": 0}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_prompts_meet_their_kv_again_and_a_killed_vllm_leaves_its_own(tmp_path: Path) -> None:
    """Five topics over two servers: each asked again with another end finds its five blocks of 128.

    So it does when one server was killed: the other one loads them from the folder that both use.
    """
    model = tiny(tmp_path / "model")
    transfer = {
        "kv_connector": "KdnConnector",
        "kv_connector_module_path": "kdn.scale.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"folder": str(tmp_path / "store"), "memory_bytes": 1 << 26},
    }
    options = ("--enable-prompt-tokens-details", "--kv-transfer-config", json.dumps(transfer))
    with (
        vllm_server(model, *options) as (one, _),
        vllm_server(model, *options) as (other, dying),
        routed(one, other) as client,
    ):
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["tiny"]
        topics = [f"{topic}. " + TIDES for topic in ("Tides", "Winds", "Birds", "Ropes", "Bread")]
        first = [ask(client, topic)["choices"][0]["text"] for topic in topics]
        for topic in topics:
            used = ask(client, topic + "What of them?")["usage"]
            assert used["prompt_tokens_details"]["cached_tokens"] == 640, used
        body = {"model": "tiny", "prompt": topics[0], "max_tokens": 4, "temperature": 0}
        with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        told = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        assert "".join(piece["choices"][0]["text"] for piece in told) == first[0]
        refused = client.post("/v1/completions", json=body | {"model": "another"})
        assert refused.status_code == 404
        dying.kill()
        dying.wait()
        for topic, text in zip(topics, first, strict=True):
            again = ask(client, topic)
            assert again["choices"][0]["text"] == text
            assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 640
