"""`kdn label` and `kdn rerank` on a real vLLM server, and a router before it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kdn.errors import PromptTooLong
from kdn.model import Message
from kdn.rank import Conversation
from kdn.scale.remote import JsonClient, RemoteEngine
from tests.scale.served import served
from tests.scale.vllm.running import tiny, vllm_server

pytestmark = pytest.mark.timeout(900)
WORDS = ["Yes", "No", "Maybe"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def url(model: Path) -> Iterator[str]:
    with vllm_server(model) as (address, _):
        yield address


def test_log_probabilities_are_those_of_each_choice_alone(url: str) -> None:
    """The plain twin: vLLM's own `allowed_token_ids`, a request for each choice."""
    question = Conversation((Message("user", "Is the ferry late?"),))
    with RemoteEngine(JsonClient(url)) as engine:
        assert engine.model == "tiny"
        choices = engine.choices(WORDS)
        (found,) = engine.ask_each([question], choices)
    assert not isinstance(found, PromptTooLong)
    logprobs = []
    for choice in choices:
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Is the ferry late?"}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "allowed_token_ids": [choice.token_id],
        }
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
        logprobs.append(answer["choices"][0]["logprobs"]["content"][0]["logprob"])
    weights = [math.exp(one) for one in logprobs]
    assert found.probabilities == pytest.approx([one / sum(weights) for one in weights], rel=1e-4)


def test_vllm_and_kdn_rank_alike(url: str, model: Path, tmp_path: Path) -> None:
    """In fp32 both engines compute the same log-odds but for the order of additions."""
    texts = [f"Text {number} about ferries and bread. " * number for number in range(1, 7)]
    with (
        served(tmp_path, model, options=("--dtype", "float32")) as [(own, _)],
        RemoteEngine(JsonClient(own)) as kdn,
    ):
        ours = kdn.rerank("Which is about ships?", texts)
    with RemoteEngine(JsonClient(url)) as vllm:
        theirs = vllm.rerank("Which is about ships?", texts)
    odds = {one.index: one.log_odds for one in ours}
    assert {one.index: one.log_odds for one in theirs} == pytest.approx(odds, abs=1e-3)
