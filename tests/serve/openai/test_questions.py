"""One-token questions over HTTP, against the same questions asked in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import kdn
from kdn.config import load_config
from kdn.core import Prompt, Request
from kdn.model import ChatOptions, Document, Message
from kdn.rank import classify_question, make_choices
from kdn.serve import served
from tests.serve.running import Running, running
from tests.serve.scripted import ScriptedService, ScriptedStream


@pytest.fixture(scope="module")
def opened(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[kdn.Kdn]:
    config = load_config({}, home=tmp_path_factory.mktemp("home"))
    folder = tiny_model("llama", max_position_embeddings=4096)
    with kdn.open(folder, config=config, dtype="float32") as found:
        yield found
        found.check()


@pytest.fixture(scope="module")
def server(opened: kdn.Kdn) -> Iterator[Running]:
    with running(served(opened)) as server:
        yield server


def post(server: Running, path: str, **body: Any) -> Any:
    answer = server.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


TEXTS = ["The mat has a cat.", "It rains."]


@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")]
)
def test_pairs_of_texts_under_every_name(
    server: Running, opened: kdn.Kdn, names: tuple[str, str]
) -> None:
    found = post(server, "/v1/score", **{names[0]: "Where is the cat?", names[1]: TEXTS})
    expected = [
        expected_one.probabilities[0] for expected_one in opened.score("Where is the cat?", TEXTS)
    ]
    assert [one["score"] for one in found["data"]] == pytest.approx(expected, abs=1e-5)
    assert [one["index"] for one in found["data"]] == [0, 1]
    assert found["object"] == "list"
    assert found["usage"]["completion_tokens"] == 2


def test_the_querys_tokens_are_reused(server: Running) -> None:
    query = "Which of these is it? " * 20
    post(server, "/v1/score", text_1=query, text_2="first")
    again = post(server, "/v1/score", text_1=query, text_2="second")
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > len(query)


def test_label_tokens_after_query_and_items(server: Running, opened: kdn.Kdn) -> None:
    """As shares of the two, and as probabilities among all tokens: the ratio is the same."""
    body = {"query": "Yes or no: ", "items": ["a", [98, 99]], "label_token_ids": [121, 110]}
    shares = post(server, "/v1/score", **body, apply_softmax=True)["scores"]
    raw = post(server, "/v1/score", **body)["scores"]
    for share, plain in zip(shares, raw, strict=True):
        assert sum(share) == pytest.approx(1)
        assert sum(plain) < 1
        assert share[0] / share[1] == pytest.approx(plain[0] / plain[1], rel=1e-3)
    flipped = post(server, "/v1/score", **body, apply_softmax=True, item_first=True)["scores"]
    assert flipped != shares


def test_classify(server: Running, opened: kdn.Kdn) -> None:
    labels = ["weather", "animal", "money"]
    found = post(server, "/classify", input=TEXTS, labels=labels)["data"]
    choices = make_choices(labels, opened.model.tokenizer.encode)
    asked = [opened.prompts.question(classify_question(text, labels)) for text in TEXTS]
    for one, expected_one in zip(found, opened.scoring.judge().ask(asked, choices), strict=True):
        assert one["probs"] == pytest.approx(expected_one.probabilities, abs=1e-5)
        assert one["label"] == expected_one.best
        assert one["num_classes"] == 3


def test_decisions_about_one_text(server: Running, opened: kdn.Kdn) -> None:
    questions = ["Is there a cat?", "Does it rain?"]
    found = post(server, "/v1/decisions", input=TEXTS[0], questions=questions)["data"]
    for one, expected_one in zip(found, opened.decide(TEXTS[0], questions), strict=True):
        assert one["probability"] == pytest.approx(expected_one.probabilities[0], abs=1e-5)
        assert one["decision"] == (expected_one.best == "Yes")


def test_a_chat_of_one_token_takes_no_kv_but_one_layers(server: Running, opened: kdn.Kdn) -> None:
    """Logprobs of the first token are those of a longer answer, which runs the other way."""
    create = server.openai.chat.completions.create
    found = []
    for max_tokens in (1, 2):
        answer = create(
            model=opened.name,
            messages=[{"role": "user", "content": "Say something, please."}],
            max_tokens=max_tokens,
            temperature=0,
            logprobs=True,
            top_logprobs=5,
            extra_body={"ignore_eos": True, "kdn": {"reuse": False}},
        )
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        found.append([top.logprob for top in logprobs.content[0].top_logprobs])
    assert found[0] == pytest.approx(found[1], abs=1e-4)


@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        ("/v1/score", {"text_1": "a"}, "text_1 and text_2"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "cannot be paired"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "1 text on one side cannot be paired with 0"),
        ("/v1/score", {"text_1": "a", "text_2": "b", "label_token_ids": [5]}, "text_1 would"),
        ("/v1/score", {"text_1": "a", "text_2": "b", "item_first": True}, "item_first would"),
        ("/v1/score", {"queries": "a", "text_1": "b", "text_2": "c"}, "queries would"),
        ("/v1/score", {"query": "a", "text_1": "b", "text_2": "c"}, "query would"),
        ("/v1/score", {"query": "a", "items": [], "label_token_ids": [5]}, "go with a query"),
        ("/v1/score", {"query": "a", "items": ["b"], "label_token_ids": [5, 5]}, "each once"),
        ("/v1/score", {"query": "a", "items": ["b"], "label_token_ids": [99999]}, "token id 99999"),
        ("/v1/score", {"text_1": "a", "text_2": "b", "model": "other"}, "is not served"),
        ("/classify", {"input": "a", "labels": ["cat", "car"]}, "same token"),
    ],
)
def test_refusals_say_what_to_do(
    server: Running, path: str, body: dict[str, object], why: str
) -> None:
    answer = server.http.post(path, json=body)
    assert answer.status_code in (400, 404)
    assert why in answer.json()["error"]["message"]


def test_half_characters_are_told_by_their_bytes(server: Running) -> None:
    """Bytes are tokens here; after the first of a character many alternatives read alike."""
    ids = list("ab\N{GRINNING FACE}".encode())[:-1]
    body = {"prompt": ids, "max_tokens": 1, "logprobs": 20, "temperature": 0}
    logprobs = server.http.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    top = logprobs["top_logprobs"][0]
    assert len(top) == 20
    assert max(top.values()) == pytest.approx(logprobs["token_logprobs"][0])
    assert all("\ufffd" not in name for name in top)
    assert any(name.startswith("bytes:\\x") for name in top)


def test_bytes_of_a_chat_join_to_its_content(server: Running) -> None:
    """The answer is made to be one character of two bytes, again and again."""
    first, second = "\N{LATIN SMALL LETTER N WITH TILDE}".encode()
    for wanted in (first, second):
        body = {
            "messages": [{"role": "user", "content": "x"}],
            "max_tokens": 2,
            "logprobs": True,
            "top_logprobs": 3,
            "logit_bias": {str(wanted): 100},
        }
        answer = server.http.post("/v1/chat/completions", json=body).json()["choices"][0]
        entries = answer["logprobs"]["content"]
        assert [entry["bytes"] for entry in entries] == [[wanted]] * 2
        assert all(len(one["bytes"]) >= 1 for entry in entries for one in entry["top_logprobs"])


class Noting(ScriptedService):
    """Notes in which order prompts are made and submitted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.order = ""

    def segments(
        self,
        messages: Sequence[Message],
        documents: Sequence[Document] = (),
        salt: str = "",
        options: ChatOptions | None = None,
    ) -> Prompt:
        self.order += "m"
        return super().segments(messages, documents, salt, options)

    def submit(self, request: Request) -> ScriptedStream:
        self.order += "s"
        return super().submit(request)


def test_a_long_query_of_many_pairs_is_not_held_for_all_of_them() -> None:
    """Three prompts of some 100,000 tokens pass 262,144; the next are made once these are answered."""
    service = Noting(max_context=120_000)
    try:
        with running(service) as server:
            body = {"text_1": "q" * 100_000, "text_2": ["a", "bb", "c", "d", "e", "f", "g"]}
            answer = server.http.post("/v1/score", json=body)
            assert [one["index"] for one in answer.json()["data"]] == [0, 1, 2, 3, 4, 5, 6]
            assert service.order == "mmmsss" * 2 + "ms"
            tokens = [one.prompt.num_tokens for one in service.requests]
            assert [one - tokens[0] for one in tokens] == [0, 1, 0, 0, 0, 0, 0]
            assert len({one.id for one in service.requests}) == 7
            for size in (2_000_000, 30_000):
                late = {**body, "text_2": ["a", "b", "c", "d", "x" * size]}
                answer = server.http.post("/v1/score", json=late)
                assert answer.json()["error"]["code"] == "context_length_exceeded"
                assert len(service.order) == 14, "refused before the first is made"
            assert "number 4, counted from 0, have 130" in answer.json()["error"]["message"]
            items = {"query": [5] * 100_000, "items": ["a", "b", "c", "d", "x" * 30_000]}
            answer = server.http.post("/v1/score", json={**items, "label_token_ids": [5, 6]})
            assert "number 4, counted from 0, have 129984" in answer.json()["error"]["message"]
            assert len(service.order) == 14
    finally:
        service.close()
