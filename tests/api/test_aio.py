"""AsyncKdn: the verbs of Kdn, awaited: together, as a stream, and stopped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import kdn
from kdn.config import Config, EngineConfig
from kdn.core import Sampling
from kdn.errors import BadInput

LONG = Sampling(max_tokens=400, ignore_eos=True)
SHORT = Sampling(max_tokens=6, ignore_eos=True)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(home=tmp_path, engine=EngineConfig(fit_idle_s=0))


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", max_position_embeddings=2048)


def test_answers_that_are_awaited_together_are_those_of_kdn(model: Path, config: Config) -> None:
    texts = [f"What is {number} and {number}?" for number in range(4)]

    async def ask_all() -> list[str]:
        async with await kdn.AsyncKdn.open(model, config=config) as k:
            answers = await asyncio.gather(*(k.generate(one, sampling=SHORT) for one in texts))
            same = [k.kdn.generate(one, sampling=SHORT).text for one in texts]
            assert [str(answer) for answer in answers] == same
            ranking = await k.rerank("falcons", ["about falcons", "about tabs"])
            assert len(ranking) == 2
            assert await k.prefill("a text to be kept") > 10
            with pytest.raises(BadInput):
                await k.generate([])
            k.kdn.check()
            return [answer.text for answer in answers]

    assert len(asyncio.run(ask_all())) == 4


def test_a_stream_is_the_answer_in_pieces(model: Path, config: Config) -> None:
    async def read() -> tuple[list[str], str]:
        async with await kdn.AsyncKdn.open(model, config=config) as k:
            pieces = [piece async for piece in k.stream("Who?", sampling=SHORT)]
            return pieces, (await k.generate("Who?", sampling=SHORT)).text

    pieces, whole = asyncio.run(read())
    assert "".join(pieces) == whole


def test_a_cancelled_answer_stops(model: Path, config: Config) -> None:
    """Cancelled at its first piece, which waits for that, it shows no second one; then the engine is idle."""

    async def stop() -> int:
        async with await kdn.AsyncKdn.open(model, config=config) as k:
            heard, loop, pieces = asyncio.Event(), asyncio.get_running_loop(), list[str]()
            is_cancelled = threading.Event()

            def hear(piece: str) -> None:
                pieces.append(piece)
                loop.call_soon_threadsafe(heard.set)
                is_cancelled.wait(60)

            task = asyncio.create_task(k.generate("Go on", sampling=LONG, stream=hear))
            await heard.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            is_cancelled.set()
            async for _ in k.stream("Go on", sampling=LONG):
                break
            while not k.kdn.engine.is_idle():  # noqa: ASYNC110  the engine has no event for it
                await asyncio.sleep(0)
            return len(pieces)

    assert asyncio.run(stop()) == 1
