"""Prompts that kdn blended, answered by a real vLLM that loads all of their KV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import kdn
from kdn.core import Blend, Prompt, Request, Role, Sampling, Segment, Token
from kdn.model import Document, Message
from kdn.scale.handoff import HandedPrompt, hand_over
from kdn.scale.identity import digest_weights
from kdn.store import open_store
from tests.scale.vllm.running import Vllm, text, tiny, vllm

pytestmark = pytest.mark.timeout(900)
TIDES = "The tide comes twice a day, and the ferry of the northern harbour waits for it. " * 4
BREAD = "Bread needs flour, water, salt and time; the oven of the village is lit at four. " * 4
QUESTION = (
    "What is said about the ferry, and at which hour does the oven of the village begin? " * 3
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def own(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[kdn.Kdn]:
    with kdn.open(model, home=tmp_path_factory.mktemp("home"), dtype="float32") as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kv") / "store"


@pytest.fixture(scope="module")
def engine(model: Path, folder: Path) -> Iterator[Vllm]:
    with vllm(model, {"folder": str(folder)}) as started:
        yield started


def handed(own: kdn.Kdn, model: Path, folder: Path, request: Request, salt: str) -> HandedPrompt:
    with open_store(folder) as store:
        return hand_over(own, request, store, digest_weights(model), lambda: salt)


def request_of(prompt: Prompt, name: str, *options: Blend) -> Request:
    sampling = Sampling(max_tokens=8, ignore_eos=True)
    return Request(name, prompt, sampling, techniques=options)


def test_vllm_goes_on_from_what_kdn_computed(
    own: kdn.Kdn, model: Path, folder: Path, engine: Vllm
) -> None:
    """Without blending the KV is a full prefill's: in fp32 vLLM's answer is its own, 640 of 700 loaded."""
    tokens = tuple(text("handed", 700))
    cold = engine.one(list(tokens))
    prompt = Prompt((Segment(Role.QUESTION, tokens),))
    found = handed(own, model, folder, request_of(prompt, "plain"), "plain-salt")
    assert (found.num_blended, found.token_ids) == (0, tokens)
    loaded = engine.one(list(tokens), salt=found.salt, params={"kdn_handoff": True})
    assert (loaded.cached, loaded.tokens) == (640, cold.tokens)
    assert loaded.logprobs == pytest.approx(cold.logprobs, abs=1e-4)


def test_a_blended_prompt_is_answered_as_kdn_does_and_reaches_no_other_request(
    own: kdn.Kdn, model: Path, folder: Path, engine: Vllm
) -> None:
    for name, document in (("tides", TIDES), ("bread", BREAD)):
        own.prefill(document, name)
    documents = (Document("bread", BREAD), Document("tides", TIDES))
    prompt = own.prompts.segments((Message("user", QUESTION),), documents)
    request = request_of(prompt, "blended", Blend(0.1))
    found = handed(own, model, folder, request, "blended-salt")
    length = len(found.token_ids)
    assert found.num_blended > 200
    assert found.num_rows < 4 * length, "four layers: fewer rows than a full prefill"
    question = prompt.segments[-1].token_ids
    assert length - 1 - (length - 1) % 128 > length - len(question), "vLLM computes question only"

    events = list(own.submit(request_of(prompt, "answered", Blend(0.1))))
    answer = [event.token_id for event in events if isinstance(event, Token)]
    loaded = engine.one(list(found.token_ids), salt=found.salt, params={"kdn_handoff": True})
    assert loaded.cached == (length - 1) // 128 * 128
    assert loaded.tokens == answer

    plain = engine.one(list(found.token_ids))
    assert plain.cached == 0, "neither vLLM's cache nor an exact lookup has it"
    other = engine.one(list(found.token_ids), salt="another")
    assert other.cached == 0
    assert other.tokens == plain.tokens


def test_a_handoff_without_a_salt_is_computed(engine: Vllm) -> None:
    before = engine.counts()["unnamed_requests"]
    prompt = text("without", 300)
    assert engine.one(prompt, params={"kdn_handoff": True}).cached == 0
    assert engine.counts()["unnamed_requests"] == before + 1


def test_a_handed_prompt_names_what_a_request_needs() -> None:
    body = HandedPrompt((1, 2), "s", 0, 1, 2).body()
    assert body == {
        "prompt": [1, 2],
        "cache_salt": "s",
        "kv_transfer_params": {"kdn_handoff": True},
    }
