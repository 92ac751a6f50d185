"""Bounds hold before the work that they bound, and chat bodies of any shape get an answer."""

from __future__ import annotations

import asyncio
import json
import resource
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdn.core import TokenIds
from kdn.serve import Limits, ServeSettings
from kdn.serve.errors import Refused
from kdn.serve.limits import MAX_JSON_VALUES, check_length, prefix_of, read_json
from tests.serve.running import Running, running
from tests.serve.scripted import Characters, ScriptedService


class Counting(Characters):
    """Notes how many characters were tokenised, and how many together at most."""

    def __init__(self) -> None:
        self.total = 0
        self.largest = 0

    def encode(self, text: str, *, special: bool = False) -> TokenIds:
        self.total += len(text)
        self.largest = max(self.largest, len(text))
        return super().encode(text, special=special)


class Middle(Counting):
    """Has tokens that fill in the middle, and notes what is tokenised, and whether an event loop waits."""

    marks = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.on_loop = False

    def encode(self, text: str, *, special: bool = False) -> TokenIds:
        try:
            asyncio.get_running_loop()
            self.on_loop = True
        except RuntimeError:
            self.texts.append(text)
        ids = super().encode(text, special=special)
        return (self.marks.index(text),) if special and text in self.marks else ids


class Decoding(Characters):
    """Notes what is decoded while no event loop waits."""

    def __init__(self) -> None:
        self.decoded: list[Sequence[int]] = []

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self.decoded.append(token_ids)
        return super().decode(token_ids, special=special)


@pytest.fixture
def middle() -> Iterator[tuple[Middle, Running, ScriptedService]]:
    service, vocabulary = ScriptedService(max_context=4096), Middle()
    service.vocabulary = vocabulary
    with running(service) as server:
        yield vocabulary, server, service
    service.close()


@pytest.fixture(scope="module")
def service() -> Iterator[ScriptedService]:
    service = ScriptedService(max_context=600)
    yield service
    service.close()


@pytest.fixture(scope="module")
def server(service: ScriptedService) -> Iterator[Running]:
    with running(service) as server:
        yield server


# --- texts -----------------------------------------------------------------------------------


def test_a_text_far_too_long_costs_one_piece() -> None:
    counting = Counting()
    with pytest.raises(Refused, match="31000000 characters") as caught:
        check_length(["a" * 31_000_000], counting, 1000, "prompt")
    assert caught.value.fault.code == "context_length_exceeded"
    assert counting.total == counting.largest == 1 << 16


def test_many_small_texts_are_judged_together() -> None:
    counting = Counting()
    with pytest.raises(Refused):
        check_length(["word "] * 100_000, counting, 4096, "messages")
    assert counting.total < 3 << 16


def test_texts_that_may_fit_are_not_judged_here() -> None:
    counting = Counting()
    check_length(["x" * 7000], counting, 1000, "prompt")
    assert counting.total == 0, "8 characters a token are counted where they are needed"
    check_length(["x" * 70_000], counting, 69_800, "prompt")


@given(st.integers(0, 300_000), st.integers(1, 100_000))
@settings(max_examples=25)
def test_what_is_refused_is_too_long_and_a_prefix_holds_enough(size: int, most: int) -> None:
    """One character is one token here."""
    text = "x" * size
    try:
        check_length([text], Characters(), most, "prompt")
    except Refused:
        assert size > most
    kept = prefix_of(text, Characters(), most)
    assert text.startswith(kept)
    assert len(kept) >= min(size, most)


def test_a_long_body_is_refused_without_much_memory(server: Running) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path, body in [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 5_000_000}]}),
        ("/v1/completions", {"prompt": "a" * 5_000_000}),
        ("/v1/score", {"text_1": "a" * 5_000_000, "text_2": "b"}),
        ("/v1/classify", {"input": "a" * 5_000_000, "labels": ["x", "y"]}),
        ("/v1/decisions", {"input": "a" * 5_000_000, "questions": ["x"]}),
        ("/tokenize", {"prompt": "a" * 5_000_000}),
    ]:
        answer = server.http.post(path, json=body)
        assert answer.status_code == 400, path
        assert answer.json()["error"]["code"] == "context_length_exceeded", path
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 * 1024, f"{grown} KiB"


LONG = "word " * (64 * 4096 // 5)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat/completions", {"tools": [{"function": {"name": "f", "description": LONG}}]}, "tools"),
        ("chat/completions", {"tools": [{"function": {"name": "f", "description": LONG}}],
                              "tool_choice": "none"}, "tools"),
        ("responses", {"tools": [{"name": "f", "description": LONG}]}, "tools"),
        ("chat/completions", {"chat_template_kwargs": {"x": LONG}}, "chat_template_kwargs"),
        ("completions", {"prompt": ["a", "b"], "suffix": LONG}, "suffix"),
    ],
)  # fmt: skip
def test_what_stands_beside_the_messages_is_bounded_beside_the_event_loop(
    path: str, body: Any, param: str, middle: tuple[Middle, Running, ScriptedService]
) -> None:
    vocabulary, server, _ = middle
    for tool in body.get("tools", ()):
        tool["type"] = "function"
    given: dict[str, dict[str, Any]] = {
        "chat/completions": {"messages": [{"role": "user", "content": "x"}]},
        "responses": {"input": "x"},
        "completions": {},
    }
    answer = server.http.post(f"/v1/{path}", json=given[path] | body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, "context_length_exceeded")
    assert not vocabulary.on_loop
    assert vocabulary.largest == 1 << 16, "one piece of the text's 262,140 characters"


def test_short_tools_are_tokenised_beside_the_event_loop(
    middle: tuple[Middle, Running, ScriptedService],
) -> None:
    vocabulary, server, _ = middle
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = {"messages": [{"role": "user", "content": "x"}], "tools": tools}
    assert server.http.post("/v1/chat/completions", json=body).status_code == 200
    assert vocabulary.texts
    assert not vocabulary.on_loop


def test_prompts_of_ids_are_given_back_beside_the_event_loop_and_decoded_once() -> None:
    service, vocabulary = ScriptedService(max_context=4096), Decoding()
    service.vocabulary = vocabulary
    body = {"prompt": [[97, 98], [99]], "echo": True, "max_tokens": 1, "n": 3}
    with running(service) as server:
        answer = server.http.post("/v1/completions", json=body)
    service.close()
    assert [one["text"][:1] for one in answer.json()["choices"]] == ["a"] * 3 + ["c"] * 3
    assert vocabulary.decoded == [(97, 98), (99,)]


def test_a_suffix_is_tokenised_once_for_all_prompts(
    middle: tuple[Middle, Running, ScriptedService],
) -> None:
    vocabulary, server, service = middle
    body = {"prompt": ["a", "b"], "suffix": "xy", "max_tokens": 1}
    assert server.http.post("/v1/completions", json=body).status_code == 200
    found = sorted(request.prompt.token_ids for request in service.requests)
    assert found == [(0, 97, 1, 120, 121, 2), (0, 98, 1, 120, 121, 2)]
    assert vocabulary.texts.count("xy") == 1
    vocabulary.texts.clear()
    many = server.http.post("/v1/completions", json={**body, "prompt": ["a"] * 129})
    assert many.status_code == 400
    assert "129 answers" in many.json()["error"]["message"]
    assert vocabulary.texts == [], "refused before each prompt gets its suffix"


# --- numbers, lists, nesting -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"seed": 2**64}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"\u0663": 1}}, "logit_bias"),
        ({"logit_bias": {str(n): 0 for n in range(1025)}}, "logit_bias"),
        ({"priority": 10**30}, "priority"),
        ({"top_k": 2**40}, "top_k"),
        ({"max_tokens": 10**40}, "max_tokens"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"stop": ["x" * 1025]}, "stop[0]"),
        ({"stop_token_ids": [1] * 65}, "stop_token_ids"),
        ({"cache_salt": "s" * 513}, "cache_salt"),
        ({"cache_salt": "\u0001alice"}, "cache_salt"),
        ({"model": "m" * 513}, "model"),
        ({"messages": [{"role": "user", "content": "x"}] * 4097}, "messages"),
        ({"documents": ["x"] * 1025}, "documents"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 1025}]},
         "messages[0].content"),
    ],
)  # fmt: skip
def test_numbers_and_lists_have_bounds(server: Running, body: dict[str, Any], param: str) -> None:
    given_body = {"messages": [{"role": "user", "content": "x"}], **body}
    answer = server.http.post("/v1/chat/completions", json=given_body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_the_greatest_seed_goes_with_several_choices(
    server: Running, service: ScriptedService
) -> None:
    body = {"prompt": "x", "seed": 2**64 - 1, "n": 2, "max_tokens": 1}
    assert server.http.post("/v1/completions", json=body).status_code == 200
    seeds = [request.sampling.seed for request in service.requests[-2:]]
    assert seeds == [2**64 - 1, 0]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"prompt": ' + b"9" * 5000 + b"}", 400),
        (b'{"prompt": "x", "metadata": ' + b"[" * 200 + b"]" * 200 + b"}", 400),
        (b"[" * 200_000 + b"]" * 200_000, 400),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
        (b'{"prompt": [' + b"1," * MAX_JSON_VALUES + b"1]}", 413),
        (b'{"prompt": "\xff"}', 400),
        (b'{"prompt": "x", "prompt2"', 400),
    ],
)
def test_json_is_judged_before_it_is_built(server: Running, body: bytes, status: int) -> None:
    headers = {"content-type": "application/json"}
    answer = server.http.post("/v1/completions", content=body, headers=headers)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@given(st.recursive(st.integers() | st.text(max_size=3), lambda one: st.lists(one, max_size=3)))
@settings(max_examples=50)
def test_json_within_the_bounds_is_read_as_it_is(value: Any) -> None:
    assert read_json(json.dumps(value).encode()) == value


def test_a_nesting_of_a_hundred_is_read_and_one_more_is_not() -> None:
    read_json(b"[" * 100 + b"]" * 100)
    with pytest.raises(Refused, match="nested deeper than 100"):
        read_json(b"[" * 102 + b"]" * 102)


# --- fairness --------------------------------------------------------------------------------


def test_a_ranking_waits_in_parts_that_others_can_pass() -> None:
    """Of 2,000 documents no more than 512 are in the queue together."""
    from tests.serve.scripted import rank_by_length

    service = ScriptedService(asking=rank_by_length)
    try:
        with running(service) as server:
            service.gate.clear()
            body = {"query": "q", "documents": [f"text {n}" for n in range(2000)], "top_n": 1}
            ranking = threading.Thread(
                target=server.http.post, args=("/rerank",), kwargs={"json": body}
            )
            ranking.start()
            pulse = threading.Event()
            while len(service.streams) < 512:
                pulse.wait(0.01)
            pulse.wait(0.1)
            assert len(service.streams) == 512
            assert server.http.get("/version").status_code == 200
            service.gate.set()
            ranking.join()
            assert len(service.streams) == 2000
    finally:
        service.close()


# --- any body at all -------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda one: (
        st.lists(one, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "kdn", "id"]), one)
    ),
    max_leaves=6,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant", "tool", ""])},
    optional={"content": st.text(max_size=9) | VALUES, "name": VALUES},
)
FIELDS = (
    *("model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n", "seed", "stop"),
    *("stop_token_ids", "ignore_eos", "logit_bias", "stream", "stream_options", "cache_salt"),
    *("priority", "kdn", "documents", "max_completion_tokens", "logprobs", "top_logprobs"),
    *("tools", "response_format"),
)
BODIES = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE, max_size=3) | VALUES},
    optional=dict.fromkeys(FIELDS, VALUES),
)


@given(body=BODIES)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_chat_body_is_answered_or_refused_in_shape(server: Running, body: Any) -> None:
    content = json.dumps(body).encode("utf-8", "surrogatepass")
    headers = {"content-type": "application/json"}
    answer = server.http.post("/v1/chat/completions", content=content, headers=headers)
    assert answer.status_code in (200, 400, 403, 404), answer.text
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_limits_of_settings_reach_the_routes(service: ScriptedService) -> None:
    limits = Limits(choices=2, body_bytes=300)
    with running(service, ServeSettings(port=0, limits=limits)) as server:
        assert server.http.post("/v1/completions", json={"prompt": "x", "n": 3}).status_code == 400
        long = server.http.post("/v1/completions", json={"prompt": "x" * 400})
        assert (long.status_code, long.headers["connection"]) == (413, "close")
