"""Constrained answers and the newer sampling parameters, by the real client over a tiny real model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

import kdn
from kdn import Constraint
from kdn.config import load_config
from kdn.errors import BadInput
from kdn.serve import served
from tests.serve.running import Running, running

pytest.importorskip("llguidance")
ASK: list[Any] = [{"role": "user", "content": "Say it."}]
SHORT = {"34": 6.0}
"""The quotation mark: strings end soon."""


class Reply(BaseModel):
    """What is asked for by `parse`."""

    mood: Literal["good", "bad"]
    times: list[bool]


@pytest.fixture(scope="module")
def opened(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[kdn.Kdn]:
    folder = tiny_model(max_position_embeddings=2048)
    config = load_config({}, home=tmp_path_factory.mktemp("home"))
    with kdn.open(folder, config=config, dtype="float32") as found:
        yield found
        found.check()


@pytest.fixture(scope="module")
def server(opened: kdn.Kdn) -> Iterator[Running]:
    with running(served(opened)) as server:
        yield server


def chat(server: Running, **body: Any) -> Any:
    asked = {"model": server.openai.models.list().data[0].id, "messages": ASK, "temperature": 1.0}
    return server.openai.chat.completions.create(**{**asked, "seed": 3, "max_tokens": 600, **body})


def text_of(answer: Any) -> str:
    return str(answer.choices[0].message.content)


def test_json_object_and_json_schema_are_kept_to(server: Running) -> None:
    answer = chat(server, response_format={"type": "json_object"}, logit_bias={"125": 6.0, **SHORT})
    assert isinstance(json.loads(text_of(answer)), dict)
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert json.loads(text_of(chat(server, response_format=form)))["a"] in (1, 2)


def test_the_client_parses_into_its_own_class(server: Running) -> None:
    answer = server.openai.chat.completions.parse(
        model=server.openai.models.list().data[0].id,
        messages=ASK,
        response_format=Reply,
        temperature=1,
        seed=5,
        max_tokens=900,
        logit_bias={"93": 5},
    )
    found = answer.choices[0].message.parsed
    assert isinstance(found, Reply)
    assert found.mood in ("good", "bad")


@pytest.mark.parametrize(
    ("extra", "allowed"),
    [
        ({"structured_outputs": {"choice": ["red", "green"]}}, {"red", "green"}),
        ({"structured_outputs": {"regex": "a|b"}}, {"a", "b"}),
        ({"structured_outputs": {"json": {"enum": [1, 2]}}}, {"1", "2"}),
        ({"structured_outputs": {"grammar": 'root ::= "x" | "y"'}}, {"x", "y"}),
        ({"guided_choice": ["red"]}, {"red"}),
        ({"guided_regex": "c{2}"}, {"cc"}),
        ({"guided_json": '{"const": null}'}, {"null"}),
        ({"guided_grammar": 'start: "z"'}, {"z"}),
    ],
)
def test_the_ways_of_vllm_are_understood(
    server: Running, extra: dict[str, Any], allowed: set[str]
) -> None:
    answer = chat(server, extra_body=extra, n=3)
    assert {choice.message.content for choice in answer.choices} <= allowed
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}


def test_a_stream_a_stop_and_log_probabilities_go_with_it(server: Running) -> None:
    extra = {"structured_outputs": {"choice": ["up;down", "up;left"]}}
    stream = chat(server, extra_body=extra, stop=[";"], stream=True, logprobs=True, top_logprobs=4)
    chunks = [chunk.choices[0] for chunk in stream]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == "up"
    assert chunks[-1].finish_reason == "stop"
    told = [entry for chunk in chunks if chunk.logprobs for entry in chunk.logprobs.content or []]
    assert [entry.logprob for entry in told] == [0.0, 0.0, 0.0]
    assert [len(entry.top_logprobs) for entry in told] == [1, 1, 1]


def test_what_is_cut_off_says_length(server: Running) -> None:
    answer = chat(server, response_format={"type": "json_object"}, max_tokens=1)
    assert (text_of(answer), answer.choices[0].finish_reason) == ("{", "length")


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "needs"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
            "response_format.json_schema",
            "it uses not, which is not supported",
        ),
        ({"guided_regex": "(a"}, "guided_regex", "unclosed group"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["b"]}},
            "structured_outputs.choice",
            "keep one",
        ),
        (
            {"guided_regex": "a", "response_format": {"type": "json_object"}},
            "guided_regex",
            "keep one",
        ),
        ({"guided_json": "{"}, "guided_json", "no JSON"),
        ({"guided_choice": []}, "guided_choice", "one text or more"),
        ({"guided_regex": "a" * 70000}, "guided_regex", "70000 bytes"),
        ({"guided_regex": "a", "ignore_eos": True}, None, "ignore_eos"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", ""),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_name(
    server: Running, body: dict[str, Any], param: str | None, said: str
) -> None:
    answer = server.http.post("/v1/chat/completions", json={"messages": ASK, **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert said in error["message"]


def test_python_takes_a_schema_a_class_or_a_constraint(opened: kdn.Kdn) -> None:
    schema = {"enum": ["left", "right"]}
    assert json.loads(opened.generate("Which?", schema=schema).text) in ("left", "right")
    assert opened.generate("Which?", schema=Constraint.choice(["up"])).text == "up"
    sampling = kdn.Sampling(temperature=1, seed=2, logit_bias={93: 5.0}, max_tokens=900)
    Reply.model_validate_json(opened.generate("Which?", sampling=sampling, schema=Reply).text)
    with pytest.raises(BadInput, match="a JSON schema, a Pydantic model"):
        opened.generate("Which?", schema=3)  # type: ignore[arg-type]


# --- sampling that others have ---------------------------------------------------------------


def complete(server: Running, **body: Any) -> Any:
    answer = server.http.post(
        "/v1/completions", json={"prompt": "abcdef", "temperature": 0, **body}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_harness_gets_the_prompts_own_probabilities(server: Running) -> None:
    """`echo` with `logprobs` and no new tokens, as evaluation harnesses ask."""
    found = complete(server, echo=True, logprobs=2, max_tokens=0)
    (choice,) = found["choices"]
    told = choice["logprobs"]
    assert (choice["text"], choice["finish_reason"]) == ("abcdef", "length")
    assert told["tokens"] == list("abcdef")
    assert told["text_offset"] == [0, 1, 2, 3, 4, 5]
    assert told["token_logprobs"][0] is None
    assert all(value < 0 for value in told["token_logprobs"][1:])
    assert found["usage"]["completion_tokens"] == 0
    longer = complete(server, echo=True, logprobs=2, max_tokens=2)["choices"][0]["logprobs"]
    assert longer["token_logprobs"][:6] == told["token_logprobs"]
    assert len(longer["tokens"]) == 8


def test_prompt_logprobs_are_told_by_token_id(server: Running) -> None:
    (choice,) = complete(server, prompt_logprobs=1, max_tokens=1)["choices"]
    first, second, *_ = choice["prompt_logprobs"]
    assert first is None
    assert second[str(ord("b"))]["decoded_token"] == "b"
    assert 1 in {one["rank"] for one in second.values()}
    body = {"messages": ASK, "prompt_logprobs": 0, "max_tokens": 1}
    answer = server.http.post("/v1/chat/completions", json=body).json()
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]


def test_the_best_of_several_is_the_likeliest(server: Running) -> None:
    body = {"temperature": 1.0, "seed": 1, "max_tokens": 4, "logprobs": 0}
    every = complete(server, n=5, **body)["choices"]
    best = complete(server, n=2, best_of=5, **body)
    wanted = sorted(every, key=lambda one: -sum(one["logprobs"]["token_logprobs"]))[:2]
    assert [one["text"] for one in best["choices"]] == [one["text"] for one in wanted]
    assert best["usage"]["completion_tokens"] == 20


def test_only_the_last_tokens_of_a_prompt_are_kept(server: Running) -> None:
    found = complete(server, truncate_prompt_tokens=2, max_tokens=1)
    assert found["usage"]["prompt_tokens"] == 2
    for size in (3000, 30_000, 300_000):
        found = complete(server, prompt="x" * size, truncate_prompt_tokens=-1, max_tokens=8)
        assert found["usage"]["prompt_tokens"] == 2040
    answer = server.http.post(
        "/v1/completions", json={"prompt": "x" * 30_000, "truncate_prompt_tokens": 2100}
    )
    assert answer.status_code == 400  # it keeps more than the context holds


def test_only_the_last_tokens_of_a_conversation_are_kept(server: Running) -> None:
    turns = [{"role": "user", "content": "x" * 30_000 + "y"}]
    asked = {"messages": turns, "max_tokens": 8}
    answer = server.http.post("/v1/chat/completions", json=asked)
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    for kept, expected in ((-1, 2040), (100, 100)):
        answer = server.http.post(
            "/v1/chat/completions", json={**asked, "truncate_prompt_tokens": kept}
        )
        assert answer.json()["usage"]["prompt_tokens"] == expected


def test_penalties_and_the_least_number_of_tokens_reach_the_sampler(server: Running) -> None:
    """A bias repeats one letter; a penalty breaks the row. An end that is lifted comes only after three."""
    row = complete(server, max_tokens=3, logit_bias={"65": 9})["choices"][0]["text"]
    assert row == "AAA"
    for name in ("frequency_penalty", "presence_penalty"):
        body = {"max_tokens": 3, "logit_bias": {"65": 9, "66": 8.5}, name: 2}
        assert complete(server, **body)["choices"][0]["text"] == "ABA"
    body = {"max_tokens": 6, "logit_bias": {"256": 50, "65": 9}}
    assert complete(server, **body)["usage"]["completion_tokens"] == 0
    assert complete(server, min_tokens=3, **body)["choices"][0]["text"] == "AAA"


def test_the_stop_text_and_special_tokens_can_be_shown(server: Running) -> None:
    body = {"max_tokens": 4, "logit_bias": {"65": 9}, "stop": ["AA"]}
    assert complete(server, **body)["choices"][0]["text"] == ""
    shown = complete(server, include_stop_str_in_output=True, **body)["choices"][0]
    assert (shown["text"], shown["finish_reason"]) == ("AA", "stop")
    special = {"max_tokens": 1, "logit_bias": {"257": 99}, "skip_special_tokens": False}
    assert complete(server, **special)["choices"][0]["text"] == "<|turn|>"


def test_a_model_without_tokens_for_it_refuses_a_suffix(server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="fill in the middle"):
        server.openai.completions.create(
            model=server.openai.models.list().data[0].id, prompt="a", suffix="b"
        )
