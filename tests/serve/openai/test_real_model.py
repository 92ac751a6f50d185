"""The whole server over SmolLM2: what the stand-in cannot show."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

import kdn
from kdn.config import load_config
from kdn.errors import UnknownModel
from kdn.model import resolve
from kdn.serve import served
from tests.serve.running import Running, running

pytestmark = pytest.mark.model

MODEL = "smollm2-135m"
# Every greedy token of the answer leads by two nats, so that no rounding can change it.
BOXES = (("red", "violin"), ("green", "kettle"), ("blue", "compass"))
FRANCE: list[ChatCompletionMessageParam] = [
    {
        "role": "user",
        "content": "Which city is the capital of France? Begin with the words: The capital of France is",
    }
]


@pytest.fixture(scope="module")
def opened(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[kdn.Kdn]:
    config = load_config({}, home=tmp_path_factory.mktemp("home"))
    with kdn.open(MODEL, config=config) as found:
        yield found
        found.check()


@pytest.fixture(scope="module")
def server(opened: kdn.Kdn) -> Iterator[Running]:
    with running(served(opened)) as server:
        yield server


def test_it_knows_the_capital_whole_and_streamed(server: Running) -> None:
    create = server.openai.chat.completions.create
    whole = create(model=MODEL, messages=FRANCE, temperature=0, max_tokens=20)
    text = whole.choices[0].message.content or ""
    assert "Paris" in text
    stream = create(model=MODEL, messages=FRANCE, temperature=0, max_tokens=20, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == text


def test_logprobs_are_probabilities(server: Running) -> None:
    answer = server.openai.chat.completions.create(
        model=MODEL, messages=FRANCE, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    )
    found = answer.choices[0].logprobs
    assert found is not None
    for entry in found.content or []:
        assert entry.logprob <= 0
        assert entry.top_logprobs[0].token == entry.token
        ranked = [top.logprob for top in entry.top_logprobs]
        assert ranked == sorted(ranked, reverse=True)
    assert "".join(entry.token for entry in found.content or []).strip()


def test_a_stop_string_ends_it_and_stays_out(server: Running) -> None:
    answer = server.openai.chat.completions.create(
        model=MODEL, messages=FRANCE, temperature=0, max_tokens=20, stop=["Paris"]
    )
    assert "Paris" not in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


def test_a_seed_repeats_itself_and_choices_differ(server: Running) -> None:
    def draw(seed: int) -> list[str | None]:
        answer = server.openai.chat.completions.create(
            model=MODEL, messages=FRANCE, seed=seed, n=2, max_tokens=12, temperature=1.5
        )
        return [choice.message.content for choice in answer.choices]

    first = draw(1)
    assert first == draw(1)
    assert first[0] != first[1]


def test_the_next_turn_and_the_next_question_hit(server: Running, opened: kdn.Kdn) -> None:
    def ask(messages: list[Any], **extra: Any) -> tuple[str, dict[str, Any]]:
        answer = server.openai.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, max_tokens=16, extra_body=extra
        )
        assert answer.model_extra is not None
        usage = answer.usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        report: dict[str, Any] = answer.model_extra["kdn"]
        assert usage.prompt_tokens_details.cached_tokens == report["exact"]
        return answer.choices[0].message.content or "", report | {"prompt": usage.prompt_tokens}

    tenant = {"cache_salt": "tenant"}
    text, first = ask(FRANCE, **tenant)
    turns = [*FRANCE, {"role": "assistant", "content": text}, {"role": "user", "content": "Why?"}]
    _, second = ask(turns, **tenant)
    assert first["exact"] == 0
    assert second["exact"] >= first["prompt"]
    _, stranger = ask(turns, cache_salt="another")
    assert stranger["exact"] == 0
    documents = [{"text": "The brass key hangs behind the clock. " * 40}]
    _, cold = ask([{"role": "user", "content": "Where is the key?"}], documents=documents)
    _, warm = ask([{"role": "user", "content": "Is it made of iron?"}], documents=documents)
    assert cold["exact"] < 20  # the opening of the template, at most
    assert warm["exact"] > 300
    assert warm["recomputed"] < 30


def test_documents_are_blended_where_the_body_asks_for_it(server: Running, opened: kdn.Kdn) -> None:
    texts = [f"The {colour} box holds a {thing}. " * 30 for colour, thing in BOXES]
    for text in texts:
        opened.prefill(text)

    def ask(**options: Any) -> dict[str, Any]:
        answer = server.openai.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "What does the red box hold?"}],
            temperature=0,
            max_tokens=4,
            extra_body={"documents": [{"text": text} for text in texts], "kdn": options},
        )
        assert answer.model_extra is not None
        report: dict[str, Any] = answer.model_extra["kdn"]
        return report

    blended = ask(reuse="blend", ratio=0.1, keep="nothing")
    assert blended["blended"] > 300
    assert blended["exact"] > 150
    assert ask(reuse="blend", keep="nothing", collection="boxes")["blended"] > 200
    assert ask(reuse="exact", keep="nothing")["blended"] == 0
    assert ask(reuse=False, keep="nothing")["exact"] == 0
    with pytest.raises(openai.BadRequestError, match="ratio"):
        ask(reuse="blend", ratio=2)
    opened.catch_up()
    assert server.metric("kdn_blend", what="ratio", collection="boxes") == 0.15


def test_leaving_a_stream_frees_its_memory(server: Running, opened: kdn.Kdn) -> None:
    free = opened.engine.free_kv()
    stream = server.openai.chat.completions.create(
        model=MODEL, messages=FRANCE, stream=True, max_tokens=4000, extra_body={"ignore_eos": True}
    )
    for _ in zip(range(4), stream, strict=False):
        pass
    stream.close()
    pulse = threading.Event()
    for _ in range(3000):
        if opened.engine.free_kv() == free:
            break
        pulse.wait(0.01)
    assert opened.engine.free_kv() == free
    assert server.metric("vllm:request_success_total", finished_reason="abort") >= 1


def test_a_long_prefill_does_not_freeze_a_running_stream(server: Running) -> None:
    stream = server.openai.completions.create(
        model=MODEL,
        prompt="Once upon a time",
        stream=True,
        max_tokens=2000,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    long = [1000 + number for number in range(3000)]

    def ask_long() -> int:
        answer = server.openai.completions.create(model=MODEL, prompt=long, max_tokens=1)
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask_long)
        during = 0
        for _ in stream:
            if asked.done():
                break
            during += 1
        stream.close()
    assert asked.result() == 3000
    assert during >= 3


def test_thirty_two_at_once_all_get_an_answer(server: Running) -> None:
    def ask(number: int) -> str:
        messages: list[ChatCompletionMessageParam] = [
            {"role": "user", "content": f"Write the number {number % 4}."}
        ]
        answer = server.openai.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, max_tokens=8
        )
        assert answer.choices[0].finish_reason in ("stop", "length")
        return answer.choices[0].message.content or ""

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(ask, range(32)))
    assert len(found) == 32
    assert all(found)


def test_too_long_and_unknown_are_refused_in_openais_words(server: Running) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.openai.completions.create(model=MODEL, prompt=[5] * 9000, max_tokens=1)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        server.openai.chat.completions.create(model="gpt-4", messages=FRANCE)


def test_counters_equal_what_the_answers_said(server: Running) -> None:
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total",
             "vllm:prefix_cache_hits_total", "kdn_recomputed_tokens_total")  # fmt: skip
    before = [server.metric(name) for name in names]
    said = [0, 0, 0, 0]
    for _ in range(2):
        answer = server.openai.chat.completions.create(
            model=MODEL, messages=FRANCE, max_tokens=6, extra_body={"cache_salt": "counted"}
        )
        assert answer.usage is not None
        assert answer.model_extra is not None
        report = answer.model_extra["kdn"]
        usage = answer.usage
        new = [usage.prompt_tokens, usage.completion_tokens, report["exact"], report["recomputed"]]
        said = [have + more for have, more in zip(said, new, strict=True)]
    after = [server.metric(name) for name in names]
    assert [now - then for now, then in zip(after, before, strict=True)] == said


def test_embeddings_are_near_for_near_texts(server: Running, opened: kdn.Kdn) -> None:
    try:
        resolve("minilm-l6", opened.config.home)
    except UnknownModel:
        pytest.skip("the embedder's weights are not installed")
    answer = server.openai.embeddings.create(
        model="minilm-l6", input=["A dog barks.", "A hound howls.", "Taxes are due in May."]
    )
    dog, hound, taxes = (item.embedding for item in answer.data)
    assert len(dog) == 384

    def near(left: list[float], right: list[float]) -> float:
        return sum(a * b for a, b in zip(left, right, strict=True))

    assert near(dog, dog) == pytest.approx(1.0, abs=1e-4)
    assert near(dog, hound) > near(dog, taxes) + 0.2


def test_a_stopped_engine_is_seen_in_health(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    opened = kdn.open(tiny_model("llama"), config=load_config({}, home=tmp_path))
    with running(served(opened)) as server:
        assert server.http.get("/health").status_code == 200
        opened.close()
        assert server.http.get("/health").status_code == 503
        with pytest.raises(openai.InternalServerError):
            server.openai.chat.completions.create(model=opened.name, messages=FRANCE)
