"""kdn as the chat model of LangChain and LlamaIndex, with the packages themselves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from pydantic import BaseModel, field_validator

import kdn
from kdn.api import Query, QueryOptions
from kdn.config import load_config
from kdn.core import Finish, FinishReason, Sampling, StreamEvent, Token, Usage
from kdn.errors import BadInput, Cancelled

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Weather(BaseModel):
    """How it is somewhere."""

    place: Literal["Ulm", "Bonn"]
    degrees: int


class Picky(BaseModel):
    place: Literal["Ulm", "Bonn"]

    @field_validator("place")
    @classmethod
    def _refuse(cls, value: str) -> str:
        raise ValueError(f"{value} is not good enough")


@pytest.fixture(scope="module")
def k(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[kdn.Kdn]:
    pytest.importorskip("llguidance")
    config = load_config({}, home=tmp_path_factory.mktemp("home"))
    folder = tiny_model("llama", max_position_embeddings=4096)
    with kdn.open(folder, config=config, dtype="float32") as made:
        yield made


@pytest.fixture
def chat(k: kdn.Kdn) -> Any:
    pytest.importorskip("langchain_core", reason="langchain-core is not installed")
    from kdn.integrations.langchain_chat import KdnChat

    return KdnChat(kdn=k, max_tokens=400, temperature=0.0)


@pytest.fixture
def llm(k: kdn.Kdn) -> Any:
    pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")
    from kdn.integrations.llamaindex_llm import KdnLlm

    return KdnLlm(kdn=k, max_tokens=400, temperature=0.0)


def test_a_chain_of_prompt_and_model_says_what_kdn_says(chat: Any, k: kdn.Kdn) -> None:
    from langchain_core.prompts import ChatPromptTemplate

    prompt = ChatPromptTemplate.from_messages([("system", "Be short."), ("human", "{question}")])
    chat = chat.model_copy(update={"max_tokens": 8})
    answer = (prompt | chat).invoke({"question": "Where?"})
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Where?"},
    ]
    assert answer.content == k.generate(turns, max_tokens=8, temperature=0.0).text
    assert answer.usage_metadata["output_tokens"] == 8
    assert answer.response_metadata["finish_reason"] == "length"
    pieces = list((prompt | chat).stream({"question": "Where?"}))
    assert "".join(piece.content for piece in pieces) == answer.content
    assert len(pieces) > 1


def test_structured_output_is_an_object_of_the_class(chat: Any) -> None:
    found = chat.with_structured_output(Weather).invoke("How is it?")
    assert isinstance(found, Weather)
    plain = chat.with_structured_output(Weather.model_json_schema()).invoke("How is it?")
    assert plain == found.model_dump()
    (batched,) = chat.with_structured_output(Weather).batch(["How is it?"])
    assert batched == found
    assert asyncio.run(chat.with_structured_output(Weather).ainvoke("How is it?")) == found


def test_structured_output_that_a_stop_ended_says_so(chat: Any) -> None:
    for wanted in (Weather, Weather.model_json_schema()):
        found = chat.with_structured_output(wanted, include_raw=True).invoke("?", stop=[":"])
        assert "before its JSON did" in str(found["parsing_error"])


def test_a_picture_is_refused_and_not_left_out(llm: Any) -> None:
    types = pytest.importorskip("llama_index.core.base.llms.types")
    if "blocks" not in types.ChatMessage.model_fields:
        pytest.skip("this version's messages hold no pictures")
    blocks = [
        types.TextBlock(text="What is in it?"),
        types.ImageBlock(url="https://a.example/b.png"),
    ]
    with pytest.raises(BadInput, match="takes texts"):
        llm.chat([types.ChatMessage(role="user", blocks=blocks)])


def test_structured_output_that_fails_says_why(chat: Any) -> None:
    short = chat.model_copy(update={"max_tokens": 3})
    with pytest.raises(BadInput, match="cut off"):
        short.with_structured_output(Weather).invoke("How is it?")
    raw = short.with_structured_output(Weather, include_raw=True).invoke("How is it?")
    assert raw["parsed"] is None
    assert "cut off" in str(raw["parsing_error"])
    assert raw["raw"].content.startswith("{")
    with pytest.raises(BadInput, match="Picky refuses"):
        chat.with_structured_output(Picky).invoke("How is it?")
    with pytest.raises(BadInput, match="does not take method"):
        chat.with_structured_output(Weather, method="function_calling")
    with pytest.raises(BadInput, match="not supported"):
        chat.with_structured_output({"not": {}}).invoke("x")


def test_langchain_is_refused_what_kdn_cannot_do(chat: Any) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    with pytest.raises(BadInput, match="type tool"):
        chat.invoke([ToolMessage("x", tool_call_id="1")])
    with pytest.raises(BadInput, match="as its content"):
        chat.invoke([HumanMessage([{"type": "image_url", "image_url": "x"}])])
    with pytest.raises(BadInput, match="does not take top_p"):
        chat.invoke("x", top_p=0.5)


def test_llamaindex_completes_and_chats(llm: Any, k: kdn.Kdn) -> None:
    from llama_index.core.base.llms.types import ChatMessage

    llm = llm.model_copy(update={"max_tokens": 8})
    expected = k.generate("Where?", max_tokens=8, temperature=0.0).text
    assert llm.complete("Where?").text == expected
    assert [one.delta for one in llm.stream_complete("Where?")][:-1]
    assert list(llm.stream_complete("Where?"))[-1].text == expected
    turns = [ChatMessage(role="user", content="Where?")]
    assert llm.chat(turns).message.content == expected
    assert list(llm.stream_chat(turns))[-1].message.content == expected
    assert llm.metadata.num_output == 8
    with pytest.raises(BadInput, match="message of tool"):
        llm.chat([ChatMessage(role="tool", content="x")])
    with pytest.raises(BadInput, match="does not take top_p"):
        llm.complete("x", top_p=0.5)


def test_llamaindex_predicts_objects_of_a_class(llm: Any) -> None:
    from llama_index.core.base.llms.types import ChatMessage
    from llama_index.core.prompts import PromptTemplate

    prompt = PromptTemplate("How is it in {place}?")
    found = llm.structured_predict(Weather, prompt, place="Ulm")
    assert isinstance(found, Weather)
    assert asyncio.run(llm.astructured_predict(Weather, prompt, place="Ulm")) == found
    structured = llm.as_structured_llm(Weather)
    asked = [ChatMessage(role="user", content="How is it in Ulm?")]
    assert structured.chat(asked).raw == found
    with pytest.raises(BadInput, match="cut off"):
        llm.model_copy(update={"max_tokens": 3}).structured_predict(Weather, prompt, place="Ulm")


class Blocking:
    """A model that says `text` once the event loop has turned: on the loop itself it would never be heard."""

    name = "blocking"

    def __init__(self, text: str) -> None:
        self.text, self.loop = text, asyncio.get_running_loop()
        decoder = SimpleNamespace(config=SimpleNamespace(max_position=2048))
        self.model = SimpleNamespace(sampling=Sampling(), decoder=decoder)
        self.prompts = SimpleNamespace(request=lambda turns, **_: turns)
        self.cancelled = threading.Event()

    def submit(self, request: object) -> Blocking:
        turned = threading.Event()
        self.loop.call_soon_threadsafe(turned.set)
        assert turned.wait(5), "the event loop stands still"
        return self

    def __iter__(self) -> Iterator[StreamEvent]:
        yield Finish(FinishReason.STOP, Usage(1, 1), tail=self.text)

    def cancel(self) -> None:
        self.cancelled.set()


def test_llamaindexs_awaited_verbs_leave_the_event_loop_free() -> None:
    pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")
    from llama_index.core.base.llms.types import ChatMessage
    from llama_index.core.prompts import PromptTemplate

    from kdn.integrations.llamaindex_llm import KdnLlm

    turns = [ChatMessage(role="user", content="Where?")]
    text = '{"place": "Ulm", "degrees": 3}'

    async def ask() -> None:
        llm: Any = KdnLlm.model_construct(kdn=Blocking(text))
        found = await llm.astructured_predict(Weather, PromptTemplate("How is it?"))
        assert found == Weather(place="Ulm", degrees=3)
        assert (await llm.achat(turns)).message.content == text
        assert (await llm.acomplete("Where?")).text == text
        assert [one.delta async for one in await llm.astream_chat(turns)] == [text]
        assert [one.delta async for one in await llm.astream_complete("Where?")] == [text]

    asyncio.run(ask())


def test_a_reader_that_leaves_an_awaited_stream_ends_the_answer() -> None:
    pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")
    from kdn.integrations.llamaindex_llm import KdnLlm

    async def leave() -> Blocking:
        model = Blocking("Here.")
        stream = await KdnLlm.model_construct(kdn=model).astream_complete("Where?")
        async for _ in stream:
            break
        await stream.aclose()
        return model

    assert asyncio.run(leave()).cancelled.wait(5)


class Slow(Blocking):
    """Says one word and no more until it is cancelled."""

    def __init__(self) -> None:
        super().__init__("")
        self.begun = asyncio.Event()
        self.answering = SimpleNamespace(answer=self.answer)

    def __iter__(self) -> Iterator[StreamEvent]:
        yield Token(1, "Here")
        self.wait()
        yield Finish(FinishReason.CANCELLED, Usage(1, 1))

    def answer(self, question: str, options: QueryOptions, *, query: Query | None) -> None:
        assert query is not None
        query.runs(self.cancel)
        self.wait()
        raise Cancelled(question)

    def wait(self) -> None:
        self.loop.call_soon_threadsafe(self.begun.set)
        self.cancelled.wait(5)


async def is_stopped(verb: Callable[[Any], Coroutine[Any, Any, Any]]) -> bool:
    """Does a cancelled task stop the answer that it awaits?"""
    model = Slow()
    task = asyncio.create_task(verb(model))
    await asyncio.wait_for(model.begun.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return model.cancelled.is_set()


def test_a_cancelled_task_stops_the_answer_of_llamaindexs_awaited_verbs() -> None:
    pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")
    from llama_index.core.base.llms.types import ChatMessage
    from llama_index.core.prompts import PromptTemplate

    from kdn.integrations.llamaindex import KdnQueryEngine
    from kdn.integrations.llamaindex_llm import KdnLlm

    turns, prompt = [ChatMessage(role="user", content="Where?")], PromptTemplate("Where?")

    async def streamed(model: Any) -> None:
        async for _ in await KdnLlm.model_construct(kdn=model).astream_chat(turns):
            pass

    async def ask() -> None:
        made = KdnLlm.model_construct
        assert await is_stopped(lambda model: made(kdn=model).achat(turns))
        assert await is_stopped(lambda model: made(kdn=model).acomplete("Where?"))
        assert await is_stopped(lambda model: made(kdn=model).astructured_predict(Weather, prompt))
        assert await is_stopped(streamed)
        assert await is_stopped(lambda model: KdnQueryEngine(model).aquery("Where?"))

    asyncio.run(ask())


def test_a_cancelled_task_stops_the_answer_of_langchains_awaited_verbs() -> None:
    pytest.importorskip("langchain_core", reason="langchain-core is not installed")
    from kdn.integrations.langchain_chat import KdnChat

    async def ask(model: Any) -> Any:
        return await KdnChat.model_construct(kdn=model).ainvoke("Where?")

    assert asyncio.run(is_stopped(ask))


def test_an_error_of_an_awaited_stream_reaches_its_reader(llm: Any) -> None:
    async def read() -> None:
        async for _ in await llm.astream_complete("x", top_p=0.5):
            pass

    with pytest.raises(BadInput, match="does not take top_p"):
        asyncio.run(read())
