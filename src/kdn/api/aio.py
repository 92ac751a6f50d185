"""The same verbs for programs with an event loop: `AsyncKdn`.

async with await kdn.AsyncKdn.open() as k:
    answers = await asyncio.gather(*(k.generate(text) for text in texts))
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self, TypeVar

from kdn.api.answers import Answer
from kdn.api.kdn import Kdn
from kdn.errors import BadInput, Cancelled
from kdn.rag import IngestReport
from kdn.rank import ChoiceProbabilities, LabelTable, Ranking

__all__ = ["AsyncKdn"]

_AT_ONCE = 32
"""Verbs that run at the same time; more wait for a thread."""
T = TypeVar("T")


class AsyncKdn:
    """An open `Kdn` whose verbs are awaited. Each takes what the verb of `Kdn` takes, and raises the same.

    Verbs that are awaited together run together and share passes of the model.  When the task that awaits
    `generate`, `ask` or `stream` is cancelled, the answer is stopped at its next token.
    """

    def __init__(self, kdn: Kdn) -> None:
        """The `Kdn` becomes this one's to close."""
        self.kdn = kdn
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="kdn-async")

    @classmethod
    async def open(cls, *arguments: Any, **options: Any) -> Self:
        """As `kdn.open`, while the event loop goes on."""
        from kdn.api.build import open as open_kdn

        return cls(await asyncio.to_thread(partial(open_kdn, *arguments, **options)))

    async def generate(self, *arguments: Any, **options: Any) -> Answer:
        """As `Kdn.generate`."""
        return await self._stoppable(self.kdn.generate, *arguments, **options)

    async def ask(self, *arguments: Any, **options: Any) -> Answer:
        """As `Kdn.ask`."""
        return await self._stoppable(self.kdn.ask, *arguments, **options)

    async def stream(self, *arguments: Any, **options: Any) -> AsyncIterator[str]:
        """The pieces of `Kdn.generate`'s answer as they come. Leaving the loop stops the answer."""
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def push(piece: str | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        answer = asyncio.ensure_future(self.generate(*arguments, stream=push, **options))
        answer.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            await answer
        finally:
            answer.cancel()

    async def rerank(self, *arguments: Any, **options: Any) -> Ranking:
        """As `Kdn.rerank`."""
        return await self._run(self.kdn.rerank, *arguments, **options)

    async def score(self, *arguments: Any, **options: Any) -> list[ChoiceProbabilities]:
        """As `Kdn.score`."""
        return await self._run(self.kdn.score, *arguments, **options)

    async def decide(self, *arguments: Any, **options: Any) -> list[ChoiceProbabilities]:
        """As `Kdn.decide`."""
        return await self._run(self.kdn.decide, *arguments, **options)

    async def label(self, *arguments: Any, **options: Any) -> LabelTable:
        """As `Kdn.label`."""
        return await self._run(self.kdn.label, *arguments, **options)

    async def ingest(self, *arguments: Any, **options: Any) -> IngestReport:
        """As `Kdn.ingest`."""
        return await self._run(self.kdn.ingest, *arguments, **options)

    async def prefill(self, *arguments: Any, **options: Any) -> int:
        """As `Kdn.prefill`."""
        return await self._run(self.kdn.prefill, *arguments, **options)

    async def close(self) -> None:
        """As `Kdn.close`, after the verbs that run."""
        await asyncio.to_thread(self._threads.shutdown, wait=True)
        await asyncio.to_thread(self.kdn.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, verb: Callable[..., T], *arguments: Any, **options: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(verb, *arguments, **options))

    async def _stoppable(
        self,
        verb: Callable[..., T],
        *arguments: Any,
        stream: Callable[[str], None] | None = None,
        **options: Any,
    ) -> T:
        """Runs a verb that shows its pieces, each of which is a chance to stop it."""
        stopped = threading.Event()

        def show(piece: str) -> None:
            if stopped.is_set():
                raise Cancelled("the task that awaited this answer was cancelled")
            if stream is not None:
                stream(piece)

        if not (stream is None or callable(stream)):
            raise BadInput(f"stream is {stream!r:.60}; it must be a function or None")
        try:
            return await self._run(verb, *arguments, stream=show, **options)
        except asyncio.CancelledError:
            stopped.set()
            raise
