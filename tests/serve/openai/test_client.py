"""The real openai client against a real server, over loopback."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.serve.running import Running, running, wait_for
from tests.serve.scripted import ANSWER, ScriptedService

MODEL = "scripted"
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Capital of France?"}]


@pytest.fixture(scope="module")
def service() -> Iterator[ScriptedService]:
    service = ScriptedService()
    yield service
    service.close()


@pytest.fixture(scope="module")
def server(service: ScriptedService) -> Iterator[Running]:
    with running(service) as server:
        yield server


def test_a_chat_answers_and_counts_its_tokens(server: Running) -> None:
    salt = {"cache_salt": "counts"}
    answer = server.openai.chat.completions.create(model=MODEL, messages=ASK, extra_body=salt)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    prompt = len("<user>Capital of France?")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, len(ANSWER))
    assert answer.usage.total_tokens == prompt + len(ANSWER)
    assert answer.created == 1_700_000_000


def test_asked_again_the_prompt_comes_from_the_store(server: Running) -> None:
    salt = {"cache_salt": "again"}
    for _ in range(2):
        answer = server.openai.chat.completions.create(model=MODEL, messages=ASK, extra_body=salt)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == len("<user>Capital of France?") - 1
    assert answer.model_extra is not None
    report = answer.model_extra["kdn"]
    assert (report["exact"], report["recomputed"]) == (23, 1)
    assert report["tiers"] == {"memory": 23}


def test_reuse_can_be_declined(server: Running) -> None:
    extra = {"cache_salt": "again", "kdn": {"reuse": False}}
    answer = server.openai.chat.completions.create(model=MODEL, messages=ASK, extra_body=extra)
    assert answer.model_extra is not None
    assert answer.model_extra["kdn"]["exact"] == 0


def test_a_stream_brings_the_same_text_piece_by_piece(server: Running) -> None:
    stream = server.openai.chat.completions.create(
        model=MODEL, messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == ANSWER
    assert len(pieces) > len(ANSWER)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(ANSWER)


def test_every_event_tells_its_answers_tokens_where_that_is_asked_for(server: Running) -> None:
    stream = server.openai.chat.completions.create(
        model=MODEL,
        messages=ASK,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        },
    )
    *told, last = [chunk.usage for chunk in stream if chunk.usage is not None]
    assert last.completion_tokens == len(ANSWER)
    counts = [usage.completion_tokens for usage in told]
    assert counts == [0, *range(1, len(ANSWER) + 1), len(ANSWER)]
    assert {usage.total_tokens - usage.completion_tokens for usage in told} == {last.prompt_tokens}


def test_without_being_asked_a_stream_tells_no_usage_but_what_was_reused(server: Running) -> None:
    *_, last = server.openai.chat.completions.create(model=MODEL, messages=ASK, stream=True)
    assert last.usage is None
    assert last.model_extra is not None
    assert "exact" in last.model_extra["kdn"]


def test_stop_strings_and_length_end_an_answer(server: Running) -> None:
    create = server.openai.chat.completions.create
    stopped = create(model=MODEL, messages=ASK, stop=[" of", "never"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("Paris is the capital", "stop")
    cut = create(model=MODEL, messages=ASK, max_tokens=5).choices[0]
    assert (cut.message.content, cut.finish_reason) == ("Paris", "length")
    newer = create(model=MODEL, messages=ASK, max_completion_tokens=8).choices[0]
    assert newer.message.content == "Paris is"


def test_logprobs_come_with_alternatives_whole_and_streamed(server: Running) -> None:
    create = server.openai.chat.completions.create
    whole = create(model=MODEL, messages=ASK, logprobs=True, top_logprobs=2, max_tokens=3)
    found = whole.choices[0].logprobs
    assert found is not None
    assert found.content is not None
    assert [entry.token for entry in found.content] == ["P", "a", "r"]
    assert found.content[0].logprob == -0.25
    assert [top.token for top in found.content[0].top_logprobs] == ["P", "x"]
    assert found.content[0].bytes == [80]
    streamed = [
        entry.token
        for chunk in create(model=MODEL, messages=ASK, logprobs=True, max_tokens=3, stream=True)
        for choice in chunk.choices
        if choice.logprobs and choice.logprobs.content
        for entry in choice.logprobs.content
    ]
    assert streamed == ["P", "a", "r"]


def test_several_choices_have_seeds_of_their_own(server: Running, service: ScriptedService) -> None:
    answer = server.openai.chat.completions.create(model=MODEL, messages=ASK, n=3, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [request.sampling.seed for request in service.requests[-3:]] == [7, 8, 9]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3 * len(ANSWER)
    assert answer.usage.prompt_tokens == len("<user>Capital of France?")


def test_the_models_own_sampling_holds_where_nothing_is_said(
    server: Running, service: ScriptedService
) -> None:
    server.openai.chat.completions.create(model=MODEL, messages=ASK)
    sampling = service.requests[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.0, 1.0, 0)
    assert (sampling.max_tokens, sampling.logprobs) == (512, None)


def test_documents_stand_first_however_they_arrive(
    server: Running, service: ScriptedService
) -> None:
    document = {"type": "text", "text": "SECOND", "kdn": {"role": "document", "id": "b"}}
    question = {"type": "text", "text": "Why?"}
    messages: Any = [{"role": "user", "content": [document, question]}]
    server.openai.chat.completions.create(
        model=MODEL,
        messages=messages,
        extra_body={"documents": [{"id": "a", "text": "FIRST"}]},
    )
    segments = service.requests[-1].prompt.segments
    assert [segment.source for segment in segments] == ["a", "b", None]
    texts = [service.vocabulary.decode(segment.token_ids) for segment in segments]
    assert texts == ["FIRST", "SECOND", "<user>Why?"]


@pytest.mark.parametrize(
    ("given", "name", "text"),
    [
        ("plain", None, "plain"),
        ({"text": "body"}, None, "body"),
        ({"text": "body", "id": "a"}, "a", "body"),
        ({"title": "Boats", "text": "body"}, "Boats", "Boats\n\nbody"),
        ({"title": "Boats", "text": "body", "id": "a"}, "a", "Boats\n\nbody"),
        ({"page_content": "body", "metadata": {"source": "b.md", "page": 3}}, "b.md", "body"),
        ({"page_content": "body", "metadata": {}, "type": "Document", "id": None}, None, "body"),
    ],
)
def test_documents_come_as_text_with_titles_or_as_langchain_writes_them(
    server: Running, service: ScriptedService, given: Any, name: str | None, text: str
) -> None:
    body = {"messages": ASK, "documents": [given], "max_tokens": 1}
    assert server.http.post("/v1/chat/completions", json=body).status_code == 200
    segment = service.requests[-1].prompt.segments[0]
    assert (segment.source, service.vocabulary.decode(segment.token_ids)) == (name, text)


def test_a_document_needs_a_text(server: Running) -> None:
    for given in ({"title": "x"}, {"id": "x"}, {}, {"text": 5}, {"text": "x", "pages": 3}, 7):
        body = {"messages": ASK, "documents": ["good", given]}
        answer = server.http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400, given
        assert answer.json()["error"]["param"].startswith("documents[1]")


def test_the_ids_of_an_answer_are_remembered_for_the_next_turn(
    server: Running, service: ScriptedService
) -> None:
    extra = {"cache_salt": "tenant"}
    server.openai.chat.completions.create(model=MODEL, messages=ASK, extra_body=extra)
    assert service.remembered["tenant", ANSWER] == tuple(map(ord, ANSWER))
    assert ("other", ANSWER) not in service.remembered


def test_an_adapter_is_a_model_of_its_own(server: Running, service: ScriptedService) -> None:
    answer = server.openai.chat.completions.create(model="scripted-tuned", messages=ASK)
    assert answer.model == "scripted-tuned"
    assert service.requests[-1].adapter == "scripted-tuned"
    assert [model.id for model in server.openai.models.list()] == [
        "scripted",
        "scripted-tuned",
        "lengths",
    ]
    assert server.openai.models.retrieve("scripted").id == "scripted"


def test_plain_completions_take_text_lists_and_ids(server: Running) -> None:
    create = server.openai.completions.create
    assert create(model=MODEL, prompt="Paris", max_tokens=5).choices[0].text == "Paris"
    both = create(model=MODEL, prompt=["one", "two"], max_tokens=2, echo=True)
    assert [choice.text for choice in both.choices] == ["onePa", "twoPa"]
    assert both.usage is not None
    assert (both.usage.prompt_tokens, both.usage.completion_tokens) == (6, 4)
    ids = create(model=MODEL, prompt=[104, 105], max_tokens=2, echo=True)
    assert ids.choices[0].text == "hiPa"
    lists = create(model=MODEL, prompt=[[104], [105]], max_tokens=1, n=2)
    assert [choice.text for choice in lists.choices] == ["P"] * 4


def test_plain_completions_stream_with_logprobs_and_offsets(server: Running) -> None:
    create = server.openai.completions.create
    whole = create(model=MODEL, prompt="q", max_tokens=3, logprobs=2).choices[0].logprobs
    assert whole is not None
    assert (whole.tokens, whole.text_offset) == (["P", "a", "r"], [0, 1, 2])
    assert whole.top_logprobs is not None
    assert whole.top_logprobs[0] == {"P": -0.25, "x": -2.0}
    offsets = [
        offset
        for chunk in create(model=MODEL, prompt="q", max_tokens=3, logprobs=0, stream=True)
        if chunk.choices[0].logprobs
        for offset in chunk.choices[0].logprobs.text_offset or []
    ]
    assert offsets == [0, 1, 2]


def test_leaving_a_stream_cancels_the_work(server: Running, service: ScriptedService) -> None:
    service.pause_at = 5
    try:
        stream = server.openai.chat.completions.create(model=MODEL, messages=ASK, stream=True)
        running_stream = service.streams[-1]
        wait_for(lambda: running_stream.num_sent == 5)
        for _ in zip(range(3), stream, strict=False):
            pass
        stream.close()
        wait_for(lambda: running_stream.finish is not None)
    finally:
        service.pause_at = None
    assert running_stream.finish is not None
    assert running_stream.finish.reason == "cancelled"
    assert running_stream.finish.usage.completion_tokens == 5


def test_leaving_a_waiting_answer_cancels_the_work(
    server: Running, service: ScriptedService
) -> None:
    """It gives up after three seconds, in which its request has come to the engine."""
    num_streams = len(service.streams)
    service.gate.clear()
    try:
        with pytest.raises(openai.APITimeoutError):
            server.openai.with_options(timeout=3).chat.completions.create(model=MODEL, messages=ASK)
        assert len(service.streams) == num_streams + 1
        wait_for(lambda: service.streams[-1].ended)
    finally:
        service.gate.set()
    assert service.streams[-1].cancelled


def test_thirty_two_at_once_each_get_their_own(server: Running) -> None:
    def ask(number: int) -> str:
        text = "x" * (number + 1)
        answer = server.openai.completions.create(
            model=MODEL, prompt=text, max_tokens=number + 1, echo=True
        )
        return answer.choices[0].text

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(ask, range(32)))
    assert found == ["x" * (n + 1) + ANSWER[: n + 1] for n in range(32)]
